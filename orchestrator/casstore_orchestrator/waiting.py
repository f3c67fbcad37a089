"""What the placement engine is told, what it answers, and what it may remember between two passes.

Decided here and only here: the order of the queue (priority, then time of submission), until when a running group may
hold its nodes, and how the memory follows the records. The memory only saves work: with an empty one the answers are
the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from casstore.errors import CasstoreError

from .capacity import Cluster, Kind, Layout, Vector
from .deadlines import exec_limit
from .fitting import Shape, fit
from .gang import TaskRequest, group_requests
from .pools import Node, Pool, Resources
from .records import GroupRecord, Held, WorkflowRecord
from .spec import WorkflowSpec
from .status import Priority

__all__ = ["Ask", "Holding", "Key", "Memory", "Placing", "Preemption", "Reservation", "Waiting"]

Key = tuple[str, str]
"""(workflow id, group)"""


@dataclass(frozen=True)
class Waiting:
    """A group that may run as soon as there are nodes for the named tasks.

    ``exec_timeout`` is how many seconds it may run at most; None: nobody knows. ``requests`` are used in place of the
    specification's where they are given. ``key`` names it, ``rank`` is its position in the queue of its pool,
    ``guaranteed`` says whether it counts against its pool's guarantee, and can't be preempted.
    """

    workflow_id: str
    group: str
    pool: str
    priority: Priority
    submit_time: float
    spec: WorkflowSpec | None
    tasks: frozenset[str]
    user: str = ""
    exec_timeout: float | None = None
    requests: tuple[TaskRequest, ...] = ()
    key: Key = field(init=False, compare=False, repr=False)
    rank: tuple[int, float, str, str] = field(init=False, compare=False, repr=False)
    guaranteed: bool = field(init=False, compare=False, repr=False)

    @classmethod
    def of(cls, record: WorkflowRecord, group: str) -> Waiting:
        """The entry of a group that was just queued."""
        queued = record.group(group)
        return cls(
            workflow_id=record.id,
            group=group,
            pool=record.pool,
            priority=record.priority,
            submit_time=record.submit_time or 0.0,
            spec=record.spec,
            tasks=frozenset(task.name for task in queued.current() if not task.status.finished),
            user=record.user,
            exec_timeout=exec_limit(record, queued),
        )

    def __post_init__(self) -> None:
        # Asked for a hundred thousand times in one pass.
        object.__setattr__(self, "key", (self.workflow_id, self.group))
        object.__setattr__(self, "rank", (self.priority.rank, self.submit_time, self.workflow_id, self.group))
        object.__setattr__(self, "guaranteed", self.priority is not Priority.LOW)


@dataclass(frozen=True)
class Holding:
    """A placed group with what it holds, until nothing of it is left on its nodes.

    ``since`` is when it was placed, ``until`` when its time is over at the latest (None: nobody knows). ``ending``:
    it has ended or was told to, and only has to be cleaned up. ``key`` names it.
    """

    workflow_id: str
    group: str
    pool: str
    priority: Priority
    held: tuple[Held, ...]
    user: str = ""
    since: float = 0.0
    until: float | None = None
    ending: bool = False
    key: Key = field(init=False, compare=False, repr=False)

    @classmethod
    def of(cls, record: WorkflowRecord, group: GroupRecord) -> Holding:
        """What a group holds, as its record says."""
        since = group.initializing_time or 0.0
        limit = exec_limit(record, group)
        return cls(
            workflow_id=record.id,
            group=group.name,
            pool=record.pool,
            priority=record.priority,
            held=group.holds,
            user=record.user,
            since=since,
            until=None if limit is None else max(since, group.start_time or since) + limit,
            ending=not group.status.active,
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.workflow_id, self.group))

    @property
    def limits(self) -> dict[str, Resources]:
        """What each task may use."""
        return {part.task: part.amount for part in self.held}


@dataclass(frozen=True)
class Placing:
    """A group with the nodes that it gets now, one for each task."""

    waiting: Waiting
    held: tuple[Held, ...]

    @property
    def key(self) -> Key:
        """What names it."""
        return self.waiting.key

    def holding(self, now: float) -> Holding:
        """What it holds from now on."""
        entry = self.waiting
        until = None if entry.exec_timeout is None else now + entry.exec_timeout
        return Holding(*entry.key, entry.pool, entry.priority, self.held, entry.user, now, until)


@dataclass(frozen=True)
class Preemption:
    """A group that has to leave its nodes, and the one that needs them."""

    victim: Holding
    for_whom: Waiting

    @property
    def message(self) -> str:
        """One line for the victim's owner."""
        whose = (
            "" if self.victim.pool == self.for_whom.pool else f" of pool '{self.for_whom.pool}', which lent the nodes"
        )
        return (
            f"Preempted for {self.for_whom.workflow_id} ({self.for_whom.group}, priority {self.for_whom.priority})"
            f"{whose}. The group is queued again."
        )


@dataclass(frozen=True)
class Reservation:
    """Nodes that are kept for a group: ``at`` is when they are free at the latest (None: nobody knows)."""

    waiting: Waiting
    nodes: tuple[str, ...]
    at: float | None


class Ask(NamedTuple):
    """A group's shape, and the requests of each part of it."""

    shape: Shape
    requests: tuple[tuple[TaskRequest, ...], ...]


@dataclass(slots=True)
class Known:
    """What the memory's cluster has in use for a holding."""

    held: tuple[Held, ...]
    amounts: tuple[tuple[int, Vector], ...]
    gpus: int


@dataclass
class Memory:
    """State of the cluster and of the queue as of the last pass. Not thread-safe."""

    pools: dict[str, Pool] = field(default_factory=dict)
    layout: Layout = field(default_factory=lambda: Layout(()))
    known: dict[Key, Known] = field(default_factory=dict)
    _asks: dict[Key, tuple[Waiting, Ask | str]] = field(default_factory=dict)
    _shapes: dict[tuple[tuple[Kind, int], ...], Shape] = field(default_factory=dict)
    _possible: dict[Shape, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cluster = Cluster(self.layout)
        self._empty: Cluster | None = None

    def follow(self, pools: Mapping[str, Pool], queue: Sequence[Waiting], holdings: Iterable[Holding]) -> None:
        """Take over what has changed since the last pass."""
        if not self._same(pools):
            self.pools = dict(pools)
            nodes: Iterable[Node] = (node for pool in pools.values() for node in pool.nodes)
            self.layout = Layout(nodes, (key for pool in pools.values() for key in pool.topology_keys))
            self.cluster, self._empty = Cluster(self.layout), None
            self.known.clear()
            self._asks.clear()
            self._shapes.clear()
            self._possible.clear()
        elif len(self._asks) > 2 * len(queue) + 1_000:
            waiting = {entry.key for entry in queue}
            self._asks = {key: ask for key, ask in self._asks.items() if key in waiting}
        now = {holding.key: holding for holding in holdings}
        for key in [key for key in self.known if key not in now]:
            self._forget(key)
        for key, holding in now.items():
            known = self.known.get(key)
            if known is not None and known.held is not holding.held and known.held != holding.held:
                self._forget(key)
                known = None
            if known is None:
                self.hold(key, holding.pool, holding.held)
        self.cluster.settle()

    def twin(self) -> Memory:
        """A memory of the same that may follow another course."""
        twin = Memory(self.pools, self.layout, self.known.copy(), self._asks, self._shapes, self._possible)
        twin.cluster = self.cluster.copy()
        return twin

    def _same(self, pools: Mapping[str, Pool]) -> bool:
        if self.pools.keys() != pools.keys():
            return False
        return all(self.pools[name] is pool or self.pools[name] == pool for name, pool in pools.items())

    def hold(self, key: Key, pool: str, held: tuple[Held, ...], *, taken: bool = False) -> None:
        """Count what a group holds; ``taken``: its nodes are in use already."""
        amounts = []
        for part in held:
            node = self.layout.by_name.get((pool, part.node))
            amount = self.layout.vector(part.amount)
            if node is not None and amount is not None:  # else it was taken out of the configuration meanwhile
                amounts.append((node, amount))
                if not taken:
                    self.cluster.take(node, amount)
        self.known[key] = Known(held, tuple(amounts), sum(part.amount.gpu for part in held))

    def _forget(self, key: Key) -> None:
        for node, amount in self.known.pop(key).amounts:
            self.cluster.give(node, amount)

    def ask(self, waiting: Waiting, pool: Pool) -> Ask | str:
        """What a group asks for, or why it can't be told."""
        found = self._asks.get(waiting.key)
        if found is not None and (found[0] is waiting or found[0] == waiting):
            return found[1]
        ask = self._ask(waiting, pool)
        self._asks[waiting.key] = waiting, ask
        return ask

    def _ask(self, waiting: Waiting, pool: Pool) -> Ask | str:
        requests = waiting.requests
        if not requests and waiting.spec is not None:
            try:
                requests = group_requests(waiting.spec, waiting.spec.group(waiting.group), pool, waiting.tasks)
            except CasstoreError as error:
                return error.message
        kinds = []
        for request in requests:
            kind = request.kind(self.layout, pool.name)
            if kind is None:
                return f"task '{request.task}' asks for a resource that no node of any pool has"
            kinds.append(kind)
        shape, members = Shape.of(self.layout, kinds)
        shape = self._shapes.setdefault(shape.parts, shape)
        return Ask(shape, tuple(tuple(requests[number] for number in numbers) for numbers in members))

    def possible(self, shape: Shape) -> bool:
        """Whether a shape fits at all, with nothing in use."""
        found = self._possible.get(shape)
        if found is None:
            if self._empty is None:
                self._empty = Cluster(self.layout)
            mark = self._empty.mark()
            found = self._possible[shape] = fit(self._empty, shape) is not None
            self._empty.rollback(mark)
            self._empty.looks = 0
        return found

    def gpus(self, key: Key) -> int:
        """The GPUs that a group holds."""
        return self.known[key].gpus
