"""Driving workflows from submission to their end.

Decided here and only here: who may do what to a workflow, and when. Whoever holds the lease of a pool places its
groups, keeps its deadlines, and talks to the agents that run them; every one of its transactions checks the lease.
Requests of users are one transaction by any server, and the holder is told. The rules of a workflow's life are in
``state``, what a record keeps of its agents in ``ledger``, who gets nodes in ``decisions``.

Nothing is kept here that a new start could not do without: an event and the orders that follow from it are stored in
one transaction, orders are sent after it, and again by the next holder. So the process may be killed at any moment.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from casstore.errors import NotFoundError, ServiceError

from . import ledger
from .credentials import NoCredentials
from .decisions import Waiting
from .events import CancelRequested, Event, GroupPreempted, Submitted
from .families import families_of, keep_whole
from .figures import Figures
from .logs import Clock, LogStore
from .pools import Pool
from .poolview import Others, Passes, PoolView
from .ports import Credentials, GroupAgents, RunKey
from .reasons import Why
from .records import GroupRecord, Held, WorkflowRecord
from .statestore import Fence, LeaseLostError, StateStore, pool_of
from .status import GroupStatus
from .telling import Told

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)
LEASE = 15.0
"""Seconds that a lease is good for; it is prolonged three times as often."""
POLL = 0.5
"""Seconds between two looks for what other servers changed."""
_RETRY = 0.5
"""Seconds before the loop tries again what could not be stored."""
_STRIPES = 64

Change = Callable[[WorkflowRecord], WorkflowRecord]


class Scheduler:
    """Runs the workflows in ``store``. Safe to use from any thread.

    ``pools`` is asked at every step, so that what the operator changes is used soon (at once after ``wake``). ``host``
    gives the name under which a task's peers reach it, by group and task. ``alone``: no other server uses the store, so
    leases of one before are void, and workflows of pools that are not declared any more are looked after too. After
    ``lease`` seconds without a sign of the holder of a pool another server takes the pool over.
    ``on_pass`` is told how many seconds each pass over the queues took.
    ``clock`` gives the time of the records and of every deadline; ``tick`` may be called instead of ``start`` by
    whoever drives the time.
    """

    def __init__(
        self,
        store: StateStore,
        agents: GroupAgents,
        pools: Callable[[], Mapping[str, Pool]],
        logs: LogStore,
        *,
        host: Callable[[str, str], str] = lambda _group, task: task,
        clock: Clock = time,
        credentials: Credentials | None = None,
        alone: bool = True,
        lease: float = LEASE,
        on_pass: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self.logs = logs
        self._store = store
        self._agents = agents
        self._pools = pools
        self._host = host
        self._clock = clock
        self._credentials = credentials or NoCredentials()
        self._alone = alone
        self._lease = lease
        self._on_pass = on_pass
        self._stepped = time.monotonic()
        self._owner = uuid.uuid4().hex
        self._views: dict[str, PoolView] = {}
        self._passes = Passes()
        self._others = Others(store)
        self._renewed = float("-inf")
        self._taken: dict[RunKey, int] = {}
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._news = threading.Condition()
        self._woken = False
        self._placing = True
        self._stopping = threading.Event()
        self._ticking = threading.Lock()
        self._thread: threading.Thread | None = None

    # What the server calls.

    def start(self) -> None:
        """Take up the workflows of every pool whose lease can be had, and go on with them."""
        self._agents.follow(self)
        self.tick()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Do nothing more. What runs goes on: the next scheduler takes it up."""
        self._stopping.set()
        self.wake()
        if self._thread is not None:
            self._thread.join()
        with self._ticking:
            self._views = {}
        self._agents.close()
        try:
            self._store.release_leases(self._owner)
        except Exception:  # noqa: BLE001 - they expire
            _log.exception("the leases can't be given back")
        self.logs.close()

    def end_tasks(self, why: str, timeout: float) -> int:
        """Place nothing more and end everything that runs; it begins again with the next server. How many groups had
        not ended after ``timeout`` seconds.
        """
        with self._ticking:
            self._placing = False
        for view in list(self._views.values()):
            for workflow_id, group in view.holding():
                self._try(partial(self._happen, view, workflow_id, GroupPreempted(group, why)))
        deadline = time.monotonic() + timeout
        with self._news:
            while not self.idle() and (left := deadline - time.monotonic()) > 0:
                self._news.wait(min(left, 1.0))
        return sum(len(view.holding()) for view in list(self._views.values()))

    def submit(self, record: WorkflowRecord) -> WorkflowRecord:
        """Store a new workflow and let it run; gives the record with its id."""
        if self._stopping.is_set():
            msg = "the server is stopping"
            raise ServiceError(msg, hint="Try again in a moment.")
        now = self._clock.time()
        if record.submit_time is None:
            record = replace(record, submit_time=now)
        begin = partial(ledger.decided, event=Submitted(), now=now)
        return self._as_user(record.pool, partial(self._store.create, record, begin))

    def cancel(self, workflow_id: str, *, force: bool = False, user: str, message: str | None = None) -> WorkflowRecord:
        """End a workflow. Its record says so at once; its processes end soon after."""
        record = self._store.load(workflow_id)
        return self.post(record.id, CancelRequested(user=user, message=message, force=force), pool=record.pool)

    def post(self, workflow_id: str, event: Event, *, pool: str | None = None) -> WorkflowRecord:
        """Store what follows from an event that no agent reported. Gives the new record."""
        now = self._clock.time()
        change = partial(ledger.decided, event=event, now=now)
        return self._as_user(
            pool or self._store.load(workflow_id).pool, partial(self._store.change, workflow_id, change)
        )

    def wake(self) -> None:
        """Look at queue and deadlines now: something has changed."""
        with self._news:
            self._woken = True
            self._news.notify_all()

    def why_pending(self, workflow_id: str) -> str:
        """Why groups of a workflow do not run yet, in one line; empty when none waits."""
        record = self._store.load(workflow_id)
        waits = self.pending(record)
        reasons = []
        for group in record.groups:
            if group.status is GroupStatus.SCHEDULING:
                reason = waits[group.name].line if group.name in waits else "waiting for its turn"
                if group.holds:
                    reason = "what ran of it before is being ended"
                reasons.append(f"{group.name}: {reason}")
            elif group.status is GroupStatus.WAITING:
                before = [name for name in group.upstream if record.group(name).status is not GroupStatus.COMPLETED]
                reasons.append(f"{group.name}: waits for {', '.join(before)}")
        return "; ".join(reasons)

    def pending(self, record: WorkflowRecord) -> dict[str, Why]:
        """Why groups of a workflow wait for nodes, by group: as of the last pass, or for a pool that another server
        looks after as a pass over its records finds that only looks.
        """
        view, passes = self._views.get(record.pool), self._passes
        if view is None:
            view, passes = self._others.look(record.pool, self._pools(), self._clock.time())
        found = {}
        for group in record.groups:
            why = passes.why(view.waiting(record.id, group.name))
            if why is not None:
                found[group.name] = why
        return found

    def idle(self) -> bool:
        """Whether no group runs here, and nothing of an ended one is left to clean up."""
        return not any(view.holding() for view in list(self._views.values()))

    def figures(self) -> Figures:
        """How much waits and runs in the pools that are ours, and whether the scheduler goes on."""
        now = self._clock.time()
        return Figures(
            pools={view.name: view.figures(now) for view in list(self._views.values())},
            alive=self._thread is not None and self._thread.is_alive(),
            seconds_since_step=time.monotonic() - self._stepped,
        )

    # What the agents tell (``ports.AgentEvents``).

    def event(self, run: RunKey, number: int, event: Event) -> None:
        """Store what happened, and send what follows from it."""
        now = self._clock.time()
        taken = self._taken.get(run, 0)

        def change(record: WorkflowRecord) -> WorkflowRecord:
            return ledger.reported(ledger.delivered(record, run, taken), run, number, event, now)

        self._report(run, change)
        self._agents.acknowledge(run, number)

    def taken(self, run: RunKey, order: int) -> None:
        """The agent has its orders up to this one; stored with the next event."""
        self._taken[run] = max(order, self._taken.get(run, 0))

    def ended(self, run: RunKey) -> None:
        """Free what a run held."""
        now = self._clock.time()
        self._report(run, lambda record: ledger.ended(record, run, now))
        self._taken.pop(run, None)

    def lost(self, run: RunKey, why: str) -> None:
        """Free what a run held, and decide what becomes of its group."""
        now = self._clock.time()
        self._report(run, lambda record: ledger.lost(record, run, why, now))
        self._taken.pop(run, None)

    def _report(self, run: RunKey, fn: Change) -> None:
        view = next((view for view in list(self._views.values()) if view.knows(run.workflow_id)), None)
        try:
            if view is None:
                view = self._views.get(self._store.load(run.workflow_id).pool)
            if view is None:
                msg = f"{run} is another server's business"
                raise ServiceError(msg)
            self._change(view, run.workflow_id, fn)
        except NotFoundError:  # the workflow was deleted
            self._agents.discard(run)

    # Transactions, and what follows from them.

    def _as_user(self, pool: str, write: Callable[..., WorkflowRecord]) -> WorkflowRecord:
        """A transaction that any server may make: as the holder of the pool's lease, or telling the one who is."""
        told = Told(self._clock.time())
        view = self._views.get(pool)
        if view is not None:
            try:
                return self._follow_up(view, write(fence=view.fence, notes=told), told)
            except LeaseLostError:
                self._drop(view)
        record = write(tell=True, notes=told)
        view = self._views.get(pool)
        if view is not None:  # we have become the holder, and may have looked before this was stored
            return self._follow_up(view, record, told)
        told.write(self.logs, record, self._credentials)
        self._renewed = float("-inf")
        self.wake()
        return record

    def _change(self, view: PoolView, workflow_id: str, fn: Change) -> WorkflowRecord:
        """A transaction that only the holder of the pool's lease may make."""
        told = Told(self._clock.time())
        try:
            record = self._store.change(workflow_id, fn, notes=told, fence=view.fence)
        except LeaseLostError:
            self._drop(view)
            raise
        except NotFoundError:
            view.forget(workflow_id)
            raise
        return self._follow_up(view, record, told)

    def _follow_up(self, view: PoolView, record: WorkflowRecord, told: Told | None = None) -> WorkflowRecord:
        """Everything after a transaction. It is not taken back any more, so nothing here may fail it."""
        try:
            if told is not None:
                told.write(self.logs, record, self._credentials)
        except Exception:  # noqa: BLE001 - what people are told is worth less than the work itself
            _log.exception("a change of %s could not be told", record.id)
        with self._stripes[hash(record.id) % _STRIPES]:
            if not view.update(record):
                return record
            try:
                for group in record.groups:
                    if view is self._views.get(view.name):
                        self._send(view, record, group)
                if not record.live:
                    self.logs.end(record.id)
            except Exception:  # noqa: BLE001 - the orders are stored, and sent by the next step
                _log.exception("the agents of %s could not be told", record.id)
                view.again.add(record.id)
        if view.dirty:
            self.wake()
        return record

    def _send(self, view: PoolView, record: WorkflowRecord, group: GroupRecord) -> None:
        """Have the run of a group followed, and its orders carried out; each once, as long as we follow it."""
        key = record.id, group.name
        if not group.holds:
            view.sent.pop(key, None)
            return
        run = ledger.run_of(record, group)
        placement, sent = view.sent.get(key, (0, 0))
        if placement != run.placement:
            sent = 0
            view.sent[key] = run.placement, sent
            try:
                self._agents.start(run, record, {held.task: held.amount for held in group.holds}, seen=group.seen)
            except Exception:
                del view.sent[key]
                raise
        for order in group.orders:
            if order.number > sent:
                self._agents.order(run, order.number, order.effect)
                view.sent[key] = run.placement, order.number

    # Leases.

    def _keep_leases(self, pools: Mapping[str, Pool], now: float) -> bool:
        """Prolong our leases in time, and take those that are free."""
        if now < self._renewed + self._lease / 3:
            return True
        try:
            names = {*pools, *(self._store.live_pools() if self._alone else ())}
            kept = keep_whole(names, families_of(pools), partial(self._keep, now))
        except Exception:  # noqa: BLE001 - tried again; meanwhile they may expire
            _log.exception("the leases can't be prolonged")
            for view in [view for view in self._views.values() if view.until <= now]:
                self._drop(view)
            return False
        self._renewed = now
        for view in list(self._views.values()):
            if kept.get(view.fence.name) != view.fence:
                self._drop(view)
        for fence in kept.values():
            view = self._views.setdefault(pool_of(fence), PoolView(pool_of(fence), fence))
            view.until = now + self._lease
        return True

    def _keep(self, now: float, leases: Sequence[str]) -> dict[str, Fence]:
        return self._store.keep_leases(leases, self._owner, now, now + self._lease, force=self._alone)

    def _drop(self, view: PoolView) -> None:
        """The lease is somebody else's: nothing more is done for the pool."""
        if self._views.get(view.name) is view:
            del self._views[view.name]
            _log.warning("the lease of pool %s was lost", view.name)
        self._renewed = float("-inf")
        for key, (placement, _) in list(view.sent.items()):
            with self._stripes[hash(key[0]) % _STRIPES]:
                now = self._views.get(view.name)  # we may have it again, and follow the run again
                if now is None or now.sent.get(key, (0, 0))[0] != placement:
                    self._agents.leave(RunKey(*key, placement))

    def _adopt(self, view: PoolView) -> None:
        """Take up what there is in a pool, and end what no record knows."""
        self._take_up(view, self._store.live(view.name))
        for run in self._agents.strays():
            if self._is_stray(view, run):
                _log.warning("%s is not known any more, and is ended", run)
                self._agents.discard(run)
        view.adopted = True

    def _take_up(self, view: PoolView, workflow_ids: Iterable[str]) -> None:
        """Go on with workflows from what their records say."""
        now = self._clock.time()
        known, view.again = view.again, set()
        for workflow_id in dict.fromkeys([*workflow_ids, *known]):
            try:
                record = self._store.load(workflow_id)
                if ledger.recovered(record, now) is record:
                    self._follow_up(view, record)
                else:
                    self._change(view, workflow_id, lambda found: ledger.recovered(found, now))
            except LeaseLostError:
                raise
            except NotFoundError:
                view.forget(workflow_id)
            except Exception:  # noqa: BLE001 - one damaged record must not keep the others from running
                if workflow_id not in known:
                    _log.exception("workflow %s can't be taken up; it is tried again and again", workflow_id)
                view.again.add(workflow_id)

    def _is_stray(self, view: PoolView, run: RunKey) -> bool:
        try:
            record = self._store.load(run.workflow_id)
        except NotFoundError:
            return True
        return record.pool == view.name and all(
            ledger.run_of(record, group) != run or not group.holds for group in record.groups
        )

    # Time, news and free nodes.

    def tick(self) -> bool:
        """Do everything that is to be done now; one step of the loop.

        False when something could not be stored: it is tried again by the next step.
        """
        with self._ticking:
            if self._stopping.is_set():
                return True
            now = self._clock.time()
            pools = self._pools()
            done = self._keep_leases(pools, now)
            for view in list(self._views.values()):
                done = self._try(partial(self._step, view, now)) and done
            return self._place_all(pools, now) and done

    def _step(self, view: PoolView, now: float) -> None:
        if not view.adopted:
            self._adopt(view)
        self._take_up(view, () if self._alone else self._store.news([view.fence]))
        failed = [
            workflow_id
            for workflow_id, event in view.due(now)
            if not self._try(partial(self._happen, view, workflow_id, event))
        ]
        if failed:
            raise ServiceError(f"{len(failed)} deadlines in pool {view.name} are looked at again")

    def _place_all(self, pools: Mapping[str, Pool], now: float) -> bool:
        """Give nodes to who may have them now. False when something of it did not happen: it is looked at again."""
        began = time.perf_counter()
        views = {name: view for name, view in sorted(self._views.items()) if view.adopted}
        decisions = self._passes.decide(list(views.values()), pools, now) if self._placing else None
        if decisions is None:
            return True
        done = True
        for victim, why in decisions.preempt:
            for view in views.values():
                if view.knows(victim[0]):
                    done = self._try(partial(self._happen, view, victim[0], GroupPreempted(victim[1], why))) and done
        for waiting, holds in decisions.placed:
            done = self._try(partial(self._place, views[waiting.pool], waiting, holds)) and done
        if not done:
            for view in views.values():
                view.touch()
        self._on_pass(time.perf_counter() - began)
        return done

    def _happen(self, view: PoolView, workflow_id: str, event: Event) -> None:
        now = self._clock.time()
        self._change(view, workflow_id, lambda record: ledger.decided(record, event, now))

    def _place(self, view: PoolView, waiting: Waiting, holds: tuple[Held, ...]) -> None:
        now = self._clock.time()
        hosts = {held.task: self._host(f"{waiting.workflow_id}/{waiting.group}", held.task) for held in holds}
        self._change(view, waiting.workflow_id, lambda record: ledger.placed(record, waiting.group, holds, hosts, now))

    def _try(self, what: Callable[[], object]) -> bool:
        try:
            what()
        except NotFoundError:
            return True  # the workflow was deleted
        except Exception:  # noqa: BLE001 - one workflow must not hold up the others
            _log.exception("a step of the scheduler failed; it is tried again")
            return False
        return True

    def _loop(self) -> None:
        while not self._stopping.is_set():
            with self._news:
                if not self._woken:
                    self._news.wait(self._pause())
                self._woken = False
            try:
                done = self.tick()
            except Exception:  # noqa: BLE001 - the loop must not end
                _log.exception("the scheduler's step failed; it is tried again")
                done = False
            self._stepped = time.monotonic()
            if not done:
                self._stopping.wait(_RETRY)
                self.wake()

    def _pause(self) -> float:
        deadlines = [at for view in list(self._views.values()) if (at := view.next_deadline()) is not None]
        first = min([self._renewed + self._lease / 3, *deadlines]) - self._clock.time()
        return min(max(0.0, first), self._lease / 3 if self._alone else POLL)
