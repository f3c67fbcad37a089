"""A cluster that does not exist: the real scheduler, its records and rules, over agents that only wait.

Decided here and only here: how long things take that are not the scheduler's (a task's run time is the trace's; to
begin and to end takes none), and how often the scheduler looks (``every`` virtual seconds while something happens).
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import cast

from casstore.errors import NotFoundError, ServiceError
from casstore_orchestrator.events import (
    Attempt,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    InputsReady,
    KillTask,
    NewAttempt,
    ReleaseTasks,
    StartGroup,
    TaskExited,
    TaskRunning,
)
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.pools import Pool, Resources
from casstore_orchestrator.ports import AgentEvents, RunKey
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.spec import GroupSpec, ResourceSpec, TaskSpec, Timeout, WorkflowSpec
from casstore_orchestrator.state import new_workflow, with_number
from casstore_orchestrator.statestore import Fence, Notes, no_notes
from casstore_orchestrator.status import TaskStatus

from .traces import Job

__all__ = ["Outcome", "simulate"]


@dataclass(slots=True)
class Outcome:
    """What became of one job. ``waited`` counts until its first start; ``runs`` is how often it was placed."""

    job: Job
    started: float | None = None
    ended: float | None = None
    runs: int = 0
    status: str = ""


@dataclass
class Result:
    """A simulation: what became of every job, GPU seconds in use, seconds of processor time, and passes."""

    outcomes: list[Outcome]
    gpus: int
    busy: float = 0.0
    until: float = 0.0
    steps: int = 0
    step_seconds: list[float] = field(default_factory=list)
    preemptions: int = 0


class VirtualClock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        """The virtual time."""
        return self.now


class Records:
    """Records in memory, as they are (``ports.StateStore`` for one scheduler)."""

    def __init__(self) -> None:
        self._records: dict[str, WorkflowRecord] = {}
        self._number = itertools.count(1)
        self.told: Callable[[WorkflowRecord, WorkflowRecord], None] = lambda _before, _after: None

    def create(
        self,
        record: WorkflowRecord,
        begin: Callable[[WorkflowRecord], WorkflowRecord] = lambda record: record,
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """See ``ports.StateStore``."""
        del notes, fence, tell
        made = begin(with_number(record, next(self._number)))
        self._records[made.id] = made
        return made

    def load(self, workflow_id: str) -> WorkflowRecord:
        """See ``ports.StateStore``."""
        try:
            return self._records[workflow_id]
        except KeyError:
            raise NotFoundError(f"there is no workflow {workflow_id}") from None

    def change(
        self,
        workflow_id: str,
        fn: Callable[[WorkflowRecord], WorkflowRecord],
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """See ``ports.StateStore``."""
        del notes, fence, tell
        before = self.load(workflow_id)
        after = self._records[workflow_id] = fn(before)
        self.told(before, after)
        return after

    def forget(self, workflow_id: str) -> None:
        """Let go of a workflow that has ended."""
        self._records.pop(workflow_id, None)

    def live(self, pool: str) -> list[str]:
        """See ``ports.StateStore``."""
        return [name for name, record in self._records.items() if record.pool == pool and record.live]

    def live_pools(self) -> list[str]:
        """See ``ports.StateStore``."""
        return sorted({record.pool for record in self._records.values() if record.live})

    def keep_leases(
        self, names: Sequence[str], owner: str, now: float, until: float, *, force: bool = False
    ) -> dict[str, Fence]:
        """See ``ports.StateStore``."""
        del owner, now, until, force
        return {name: Fence(name, 1) for name in names}

    def release_leases(self, owner: str) -> None:
        """See ``ports.StateStore``."""

    def news(self, fences: Sequence[Fence]) -> list[str]:
        """See ``ports.StateStore``."""
        del fences
        return []


class NoLogs:
    """What the scheduler says to people, to nobody."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


@dataclass(slots=True)
class _Run:
    seen: int = 0
    taken: int = 0
    running: set[Attempt] = field(default_factory=set)


class WaitingAgents:
    """Agents whose tasks do nothing but take their time (``ports.GroupAgents``)."""

    listener: AgentEvents

    def __init__(self, later: Callable[[float, Callable[[], None]], None], duration: Callable[[str], float]) -> None:
        self._later = later
        self._duration = duration
        self._runs: dict[RunKey, _Run] = {}
        self.todo: deque[Callable[[], None]] = deque()

    def follow(self, listener: AgentEvents) -> None:
        """See ``ports.GroupAgents``."""
        self.listener = listener

    def start(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], *, seen: int = 0) -> None:
        """See ``ports.GroupAgents``."""
        del record, limits
        self._runs.setdefault(run, _Run(seen=seen))

    def order(self, run: RunKey, number: int, effect: Effect) -> None:
        """See ``ports.GroupAgents``."""
        state = self._runs.get(run)
        if state is None or number <= state.taken:
            return
        state.taken = number
        self.todo.append(lambda: self.listener.taken(run, number))
        if isinstance(effect, StartGroup):
            for attempt in effect.attempts:
                self._report(run, TaskRunning(attempt), InputsReady(attempt))
        elif isinstance(effect, NewAttempt):
            self._report(run, TaskRunning(effect.attempt), InputsReady(effect.attempt))
        elif isinstance(effect, ReleaseTasks):
            state.running.update(effect.attempts)
            wanted = list(effect.attempts)
            self._later(self._duration(run.workflow_id), lambda: self._exit(run, wanted))
        elif isinstance(effect, KillTask):
            state.running.discard(effect.attempt)
        elif isinstance(effect, CloseGroup):
            del self._runs[run]
            self.todo.append(lambda: self.listener.ended(run))

    def _exit(self, run: RunKey, attempts: Iterable[Attempt]) -> None:
        state = self._runs.get(run)
        for attempt in attempts:
            if state is not None and attempt in state.running:
                state.running.discard(attempt)
                self._report(run, CommandExited(attempt, 0), TaskExited(attempt, 0))

    def _report(self, run: RunKey, *events: Event) -> None:
        for event in events:
            state = self._runs[run]
            state.seen += 1
            number = state.seen
            self.todo.append(lambda number=number, event=event: self.listener.event(run, number, event))  # type: ignore[misc]

    def acknowledge(self, run: RunKey, number: int) -> None:
        """See ``ports.GroupAgents``."""

    def attach(self, run: RunKey) -> socket:
        """There is no process to talk to."""
        raise ServiceError(f"the agent of {run} is no process")

    def strays(self) -> list[RunKey]:
        """See ``ports.GroupAgents``."""
        return []

    def leave(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""

    def discard(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""

    def close(self) -> None:
        """See ``ports.GroupAgents``."""


class _World:
    def __init__(self, pools: Mapping[str, Pool], jobs: Sequence[Job]) -> None:
        self.pools = pools
        self.clock = VirtualClock()
        self.records = Records()
        self.records.told = self.learn
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.agents = WaitingAgents(self.later, lambda name: self.outcomes[name].job.duration)
        self.scheduler = Scheduler(
            self.records, self.agents, lambda: pools, cast("LogStore", NoLogs(Path())), clock=self.clock
        )
        self.agents.follow(self.scheduler)
        self.outcomes: dict[str, Outcome] = {}
        capacity = {node.key: node.capacity.gpu for pool in pools.values() for node in pool.nodes}
        self.result = Result([], sum(capacity.values()))
        for job in jobs:
            heapq.heappush(self.events, (job.submit, next(self._order), lambda job=job: self.submit(job)))  # type: ignore[misc]

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self._order), what))

    def submit(self, job: Job) -> None:
        pool = self.pools[job.pool]
        record = new_workflow(
            _spec(job, pool), uuid=f"{next(self._order)}", user=job.user, pool=pool, priority=job.priority
        )
        made = self.scheduler.submit(record)
        self.outcomes[made.id] = Outcome(job)
        self.result.outcomes.append(self.outcomes[made.id])

    def learn(self, before: WorkflowRecord, after: WorkflowRecord) -> None:
        """Take from a change of a record what is counted."""
        outcome = self.outcomes.get(after.id)
        if outcome is None:
            return
        group, old = after.groups[0], before.groups[0]
        if group.placements > old.placements:
            outcome.runs += 1
            outcome.started = self.clock.now if outcome.started is None else outcome.started
        if old.holds and not group.holds:
            since = self.clock.now if old.initializing_time is None else old.initializing_time
            self.result.busy += sum(held.amount.gpu for held in old.holds) * (self.clock.now - since)
        fresh = [task for task in group.tasks if task.status is TaskStatus.RESCHEDULED]
        stale = [task for task in old.tasks if task.status is TaskStatus.RESCHEDULED]
        self.result.preemptions += len(fresh) > len(stale)
        if after.status.finished and not before.status.finished:
            outcome.ended, outcome.status = self.clock.now, str(after.status)
        if not after.live:
            self.outcomes.pop(after.id)
            self.later(0.0, lambda: self.records.forget(after.id))

    def quiet(self) -> None:
        """Let everybody be told everything that is to be told now."""
        todo = self.agents.todo
        while todo:
            todo.popleft()()

    def step(self) -> None:
        """Have the scheduler look, and look again at what follows from it: it is woken when nodes become free."""
        while True:
            begun = time.perf_counter()
            self.scheduler.tick()
            self.result.step_seconds.append(time.perf_counter() - begun)
            self.result.steps += 1
            if not self.agents.todo:
                return
            self.quiet()

    def run(self, every: float, tell: Callable[[float], None]) -> Result:
        while self.events or self.agents.todo:
            at = max(self.clock.now, self.events[0][0]) if self.events else self.clock.now
            self.clock.now = at if not every else max(at, -(-at // every) * every)
            while self.events and self.events[0][0] <= self.clock.now:
                heapq.heappop(self.events)[2]()
            self.quiet()
            self.step()
            tell(self.clock.now)
        self.result.until = self.clock.now
        return self.result


def simulate(
    pools: Mapping[str, Pool],
    jobs: Sequence[Job],
    *,
    every: float = 10.0,
    tell: Callable[[float], None] = lambda _: None,
) -> Result:
    """Run the jobs on the pools. ``tell`` is given the virtual time now and then."""
    return _World(pools, jobs).run(every, tell)


def _spec(job: Job, pool: Pool) -> WorkflowSpec:
    tasks = tuple(
        TaskSpec(name=f"t{number}", image="none", command=("wait",), lead=not number) for number in range(job.tasks)
    )
    limit = None if job.limit is None else max(job.limit, job.duration + 1)
    wanted = ResourceSpec(cpu=job.cpu, memory=job.memory, storage=0, gpu=job.gpu)
    return WorkflowSpec(
        name="job",
        groups=(GroupSpec(name="g", tasks=tasks),),
        pool=pool.name,
        timeout=Timeout(exec_timeout=limit),
        resources={"default": wanted},
    )
