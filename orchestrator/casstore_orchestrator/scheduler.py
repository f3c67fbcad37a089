"""Driving workflows from submission to their end.

Decided here and only here: how events become stored records and effects (one transaction, then the effects in their
order, one event of a workflow at a time), who gets free nodes first, and what happens when the server starts and
stops. The rules of a workflow's life are in ``state``, those of placement in ``gang``, the steps of a group in
``runner``.

Nothing is kept here that a new start could not do without: queue, holdings and deadlines follow from the records.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from casstore.errors import NotFoundError, ServiceError

from .credentials import NoCredentials, secret_values
from .events import (
    CancelRequested,
    CloseGroup,
    Effect,
    Event,
    FinishWorkflow,
    GroupFailed,
    GroupPlaced,
    QueueGroup,
    ServerRestarted,
    StartGroup,
    Submitted,
    TimedOut,
)
from .homes import Homes
from .logs import Clock, LogStore
from .placing import Holding, Placer, Waiting
from .pools import Pool
from .ports import Credentials, DataStore, Executor, StateStore, UrlStore, VersionMounts
from .records import GroupRecord, TaskRecord, WorkflowRecord
from .agent.runner import GroupRunner, Services
from .state import apply, next_deadline
from .status import GroupStatus, TaskStatus

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)
_IDLE = 5.0
"""Seconds between two looks at the queue when nothing happens (pools may have changed)."""
_RETRY = 0.5
"""Seconds before an event is stored again after the state store failed; grows to ten times that."""
_STOP = 60.0
"""Seconds that a stop waits for groups to end."""


@dataclass(slots=True)
class _Live:
    """What is known about an unfinished workflow besides its record."""

    lock: threading.RLock
    runners: int = 0
    """Groups whose runner has not ended."""
    finished: bool = False


class Scheduler:
    """Runs the workflows in ``store``. Safe to use from any thread.

    ``pools`` is asked at every placement, so that what the operator changes is used at once (after ``wake``).
    ``home`` is where logs, attempts and kept outputs lie. ``file_urls`` opens this machine's files to ``url:``
    inputs and outputs, ``urls`` object storage. ``clock`` gives the time of the records and of every deadline;
    ``tick`` may be called instead of ``start`` by whoever drives the time.
    """

    def __init__(
        self,
        store: StateStore,
        data: DataStore,
        executor: Executor,
        pools: Callable[[], Mapping[str, Pool]],
        home: Path,
        *,
        clock: Clock = time,
        credentials: Credentials | None = None,
        file_urls: bool = False,
        urls: UrlStore | None = None,
        mounts: VersionMounts | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._credentials = credentials or NoCredentials()
        self.logs = LogStore(home, clock=clock)
        self._services = Services(
            executor=executor,
            data=data,
            homes=Homes(home),
            logs=self.logs,
            credentials=self._credentials,
            file_urls=file_urls,
            urls=urls,
            mounts=mounts,
        )
        self._placer = Placer(pools)
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._runners: dict[tuple[str, str], GroupRunner] = {}
        self._open: set[GroupRunner] = set()
        self._deadlines: dict[str, tuple[float, TimedOut]] = {}
        self._news = threading.Condition()
        self._woken = False
        self._stopping = threading.Event()
        self._ticking = threading.Lock()
        self._thread: threading.Thread | None = None

    # What the server calls.

    def start(self) -> None:
        """Take up what an earlier server left unfinished, and begin to place groups."""
        self.recover()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def recover(self) -> None:
        """Tell every unfinished workflow that its processes are gone; part of ``start``."""
        if self._services.mounts is not None:
            self._services.mounts.clear()
        for workflow_id in self._store.unfinished():
            try:
                record = self._store.load(workflow_id)
                self._begin(record)
                for task in record.spec.tasks:
                    self._services.homes.remove_attempts(record.id, task.name)
                self.post(workflow_id, ServerRestarted())
            except Exception:  # noqa: BLE001 - one damaged record must not keep the others from running
                _log.exception("workflow %s can't be taken up", workflow_id)

    def stop(self) -> None:
        """End all tasks and give up their groups. Records stay as they are: the next start takes them up."""
        self._stopping.set()
        self.wake()
        if self._thread is not None:
            self._thread.join()
        with self._ticking, self._lock:
            runners = list(self._open)
        for runner in runners:
            runner.order(CloseGroup(""))
        deadline = time.monotonic() + _STOP
        for runner in runners:
            if not runner.join(max(0.0, deadline - time.monotonic())):
                _log.error("a group did not end within %s s", _STOP)
        self.logs.close()

    def submit(self, record: WorkflowRecord) -> WorkflowRecord:
        """Store a new workflow and let it run; gives the record with its id."""
        if self._stopping.is_set():
            msg = "the server is stopping"
            raise ServiceError(msg, hint="Try again in a moment.")
        if record.submit_time is None:
            record = replace(record, submit_time=self._clock.time())
        record = self._store.create(record)
        self._begin(record)
        return self.post(record.id, Submitted())

    def cancel(self, workflow_id: str, *, force: bool = False, user: str, message: str | None = None) -> WorkflowRecord:
        """End a workflow. Its record says so at once; its processes end soon after."""
        record = self._store.load(workflow_id)
        return self.post(record.id, CancelRequested(user=user, message=message, force=force))

    def wake(self) -> None:
        """Look at queue and deadlines now: something has changed."""
        with self._news:
            self._woken = True
            self._news.notify_all()

    def why_pending(self, workflow_id: str) -> str:
        """Why groups of a workflow do not run yet, in one line; empty when none waits."""
        record = self._store.load(workflow_id)
        reasons = []
        for group in record.groups:
            if group.status is GroupStatus.SCHEDULING:
                reason = self._placer.reason(record.id, group.name) or "waiting for its turn"
                reasons.append(f"{group.name}: {reason}")
            elif group.status is GroupStatus.WAITING:
                before = [name for name in group.upstream if record.group(name).status is not GroupStatus.COMPLETED]
                reasons.append(f"{group.name}: waits for {', '.join(before)}")
        return "; ".join(reasons)

    def idle(self) -> bool:
        """Whether no group runs, and nothing of an ended one is left to clean up."""
        with self._lock:
            return not self._open

    # Events.

    def post(self, workflow_id: str, event: Event) -> WorkflowRecord:
        """Store what follows from an event, and have its effects carried out. Gives the new record."""
        with self._serial(workflow_id):
            before: list[WorkflowRecord] = []
            effects: list[Effect] = []

            def change(record: WorkflowRecord) -> WorkflowRecord:
                after, ordered = apply(record, event, self._clock.time())
                before[:] = [record]
                effects[:] = ordered
                return after

            after = self._store.change(workflow_id, change)
            self._follow_up(before[0], after, effects)
        return after

    def _follow_up(self, before: WorkflowRecord, after: WorkflowRecord, effects: list[Effect]) -> None:
        """Everything after an event is stored. It is not taken back any more, so nothing here may fail it."""
        try:
            self._observe(before, after)
        except Exception:  # noqa: BLE001 - what people are told is worth less than the work itself
            _log.exception("a change of %s could not be told", after.id)
        for effect in effects:
            try:
                self._dispatch(after, effect)
            except Exception as error:  # noqa: BLE001 - a group that can't be started must not wait for ever
                _log.exception("%s of %s could not be ordered", effect, after.id)
                if isinstance(effect, StartGroup):
                    message = f"The group can't be started: {type(error).__name__}: {error}"
                    self.post(after.id, GroupFailed(effect.group, message, TaskStatus.FAILED_SERVER_ERROR))

    def _report(self, workflow_id: str, event: Event) -> None:
        """``post`` for the threads of a runner: an event is not lost because the store fails for a while."""
        pause = _RETRY
        while True:
            try:
                self.post(workflow_id, event)
                return
            except NotFoundError:
                return  # the workflow was deleted
            except Exception:  # noqa: BLE001 - whatever it is, the event must be stored in the end
                _log.exception("event %s of %s could not be stored", event, workflow_id)
                if self._stopping.wait(pause):
                    return
                pause = min(pause * 2, _RETRY * 10)

    @contextmanager
    def _serial(self, workflow_id: str) -> Iterator[None]:
        with self._lock:
            live = self._live.get(workflow_id)
        if live is None:  # it has ended: only a forced cancellation comes here
            yield
            return
        with live.lock:
            yield

    def _begin(self, record: WorkflowRecord) -> None:
        self.logs.begin(record.id, secret_values(record.spec, record.user, self._credentials))
        with self._lock:
            self._live[record.id] = _Live(threading.RLock())

    def _observe(self, before: WorkflowRecord, after: WorkflowRecord) -> None:
        """What people see of a change: events, the logs of what failed; and what the queue must know."""
        now = self._clock.time()
        deadline = next_deadline(after)
        with self._lock:
            if deadline is None:
                self._deadlines.pop(after.id, None)
            elif self._deadlines.get(after.id) != deadline:
                self._deadlines[after.id] = deadline
        for group in after.groups:
            if group.status is not GroupStatus.SCHEDULING:
                self._placer.drop(after.id, group.name)
        for group in after.groups:
            for task in _changed(before, group):
                self._store.add_event(
                    after.id, task.name, task.retry_id, task.status.value, task.failure_message or "", now
                )
                if task.failure_message:
                    self.logs.say(after.id, task.name, task.retry_id, task.failure_message)
                if task.status.failed or task.status is TaskStatus.RESCHEDULED:
                    self.logs.keep_error(after.id, task.name, task.retry_id)

    def _dispatch(self, record: WorkflowRecord, effect: Effect) -> None:
        if isinstance(effect, FinishWorkflow):
            self._finished(record.id)
        elif isinstance(effect, QueueGroup):
            self._placer.add(Waiting.of(record, effect.group))
            self.wake()
        elif isinstance(effect, StartGroup):
            self._start_group(record, effect)
        else:
            key = (record.id, effect.group)
            with self._lock:
                runner = self._runners.get(key)
                if isinstance(effect, CloseGroup):
                    self._runners.pop(key, None)
            if runner is not None:
                runner.order(effect)

    def _start_group(self, record: WorkflowRecord, effect: StartGroup) -> None:
        holding = self._placer.take(record.id, effect.group)
        try:
            runner = GroupRunner(
                self._services,
                record,
                effect.group,
                holding.limits,
                report=partial(self._report, record.id),
                freed=partial(self._freed, holding),
                ended=partial(self._ended, record.id, effect.group),
            )
        except BaseException:
            self._freed(holding)
            raise
        with self._lock:
            self._live[record.id].runners += 1
            self._runners[record.id, effect.group] = runner
            self._open.add(runner)
        runner.order(effect)

    def _freed(self, holding: Holding) -> None:
        self._placer.free(holding)
        self.wake()

    def _ended(self, workflow_id: str, group: str, runner: GroupRunner) -> None:
        with self._lock:
            self._live[workflow_id].runners -= 1
            self._open.discard(runner)
            if self._runners.get((workflow_id, group)) is runner:
                del self._runners[workflow_id, group]
        self._close_log(workflow_id)

    def _finished(self, workflow_id: str) -> None:
        with self._lock:
            self._live[workflow_id].finished = True
        self._close_log(workflow_id)

    def _close_log(self, workflow_id: str) -> None:
        """Once a workflow has ended and nothing of it runs, its log is complete."""
        with self._lock:
            live = self._live[workflow_id]
            if not live.finished or live.runners:
                return
            del self._live[workflow_id]
        self.logs.end(workflow_id)

    # Time and free nodes.

    def tick(self) -> bool:
        """End what has passed its deadline, and place what fits; one step of the loop.

        False when something could not be stored: it is tried again by the next step.
        """
        with self._ticking:
            if self._stopping.is_set():
                return True
            now = self._clock.time()
            with self._lock:
                due = [(key, event) for key, (at, event) in self._deadlines.items() if at <= now]
            stored = [self._try_post(workflow_id, event) for workflow_id, event in due]
            for waiting, placement in self._placer.place():
                key = f"{waiting.workflow_id}/{waiting.group}"
                hosts = {
                    name: place._replace(host=self._services.executor.host(key, name))
                    for name, place in placement.items()
                }
                done = self._try_post(waiting.workflow_id, GroupPlaced(waiting.group, hosts))
                (self._placer.settle if done else self._placer.undo)(waiting)
                stored.append(done)
            return all(stored)

    def _try_post(self, workflow_id: str, event: Event) -> bool:
        try:
            self.post(workflow_id, event)
        except Exception:  # noqa: BLE001 - one workflow must not hold up the others
            _log.exception("event %s of %s could not be stored", event, workflow_id)
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
            if not done:
                self._stopping.wait(_RETRY)
                self.wake()

    def _pause(self) -> float:
        with self._lock:
            first = min((at for at, _ in self._deadlines.values()), default=None)
        if first is None:
            return _IDLE
        return min(_IDLE, max(0.0, first - self._clock.time()))


def _changed(before: WorkflowRecord, group: GroupRecord) -> Iterator[TaskRecord]:
    """Attempts of a group that are new or have another status or run than before."""
    known = {(task.name, task.retry_id): task for task in before.group(group.name).tasks}
    for task in group.tasks:
        old = known.get((task.name, task.retry_id))
        if old is None or (old.status, old.run) != (task.status, task.run):
            yield task
