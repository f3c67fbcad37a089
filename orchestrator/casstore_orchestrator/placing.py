"""The queue of groups that wait for nodes, and what the running ones hold.

Decided here and only here: who is placed first (priority, then time of submission), who waits for whom, and the
reason that a waiting group is shown with. Where the tasks of one group go is decided in ``gang``.

A group that has to wait keeps the platforms it asks for from everyone behind it, so that a large group is not
overtaken for ever by small ones; a group that could not even have the empty pool holds up nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from casstore.errors import CasstoreError

from .events import Placed
from .gang import Pending, Placement, TaskRequest, group_requests, place
from .pools import Node, Pool, PoolStatus, Resources
from .records import WorkflowRecord
from .spec import WorkflowSpec
from .status import Priority

__all__ = ["Holding", "Placer", "Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A group that may run as soon as there are nodes for the named tasks."""

    workflow_id: str
    group: str
    pool: str
    priority: Priority
    submit_time: float
    spec: WorkflowSpec
    tasks: frozenset[str]

    @classmethod
    def of(cls, record: WorkflowRecord, group: str) -> Waiting:
        """The entry of a group that was just queued."""
        return cls(
            workflow_id=record.id,
            group=group,
            pool=record.pool,
            priority=record.priority,
            submit_time=record.submit_time or 0.0,
            spec=record.spec,
            tasks=frozenset(task.name for task in record.group(group).current() if not task.status.finished),
        )

    @property
    def key(self) -> tuple[str, str]:
        """What names it."""
        return self.workflow_id, self.group

    @property
    def rank(self) -> tuple[int, float, str]:
        """Position in the queue."""
        return self.priority.rank, self.submit_time, self.workflow_id


@dataclass(eq=False, slots=True)
class Holding:
    """What a placed group holds until ``Placer.free``: (node, amount) of every task."""

    key: tuple[str, str]
    pool: str
    priority: Priority
    amounts: tuple[tuple[str, Resources], ...]
    limits: dict[str, Resources]
    gpus: int = 0


@dataclass(slots=True)
class _Pass:
    """What one pass over the queue has learned."""

    pools: Mapping[str, Pool]
    blocked: dict[tuple[str, str], str] = field(default_factory=dict)
    """(pool, platform) -> the group that waits for it."""


class Placer:
    """Thread-safe; ``place`` is called by one thread at a time."""

    def __init__(self, pools: Callable[[], Mapping[str, Pool]]) -> None:
        self._pools = pools
        self._lock = threading.Lock()
        self._queue: dict[tuple[str, str], Waiting] = {}
        self._reasons: dict[tuple[str, str], str] = {}
        self._holdings: list[Holding] = []
        self._placing: dict[tuple[str, str], Holding] = {}

    def add(self, waiting: Waiting) -> None:
        """Queue a group (again: it is queued once)."""
        with self._lock:
            self._queue[waiting.key] = waiting

    def drop(self, workflow_id: str, group: str) -> None:
        """Forget a group that does not wait any more."""
        with self._lock:
            self._queue.pop((workflow_id, group), None)
            self._reasons.pop((workflow_id, group), None)

    def reason(self, workflow_id: str, group: str) -> str:
        """Why a group waits, as of the last pass; empty when it does not, or nobody has looked yet."""
        with self._lock:
            return self._reasons.get((workflow_id, group), "")

    def used(self, pool: str) -> dict[str, Resources]:
        """What running groups hold of each node of a pool."""
        with self._lock:
            return self._used(pool)

    def place(self) -> Iterator[tuple[Waiting, dict[str, Placed]]]:
        """Go once through the queue and yield every group that fits; its nodes are held at once.

        The caller has the group started (``take``) or not, and then calls ``settle`` (or ``undo``).
        """
        state = _Pass(self._pools())
        with self._lock:
            order = sorted(self._queue.values(), key=lambda waiting: waiting.rank)
        for waiting in order:
            with self._lock:
                if self._queue.get(waiting.key) is not waiting:
                    continue
                found = self._try(waiting, state)
                if isinstance(found, str):
                    self._reasons[waiting.key] = found
                    continue
                holding, placement = found
                self._holdings.append(holding)
                self._placing[waiting.key] = holding
            yield waiting, placement

    def take(self, workflow_id: str, group: str) -> Holding:
        """The holding of a group that is being started."""
        with self._lock:
            return self._placing.pop((workflow_id, group))

    def settle(self, waiting: Waiting) -> None:
        """The group was started, or it did not want to be any more: then give its nodes back."""
        with self._lock:
            if self._queue.get(waiting.key) is waiting:
                del self._queue[waiting.key]
            self._reasons.pop(waiting.key, None)
            holding = self._placing.pop(waiting.key, None)
            if holding is not None:
                self._holdings.remove(holding)

    def undo(self, waiting: Waiting) -> None:
        """The placement could not be stored: the group waits on, and holds nothing."""
        with self._lock:
            holding = self._placing.pop(waiting.key, None)
            if holding is not None:
                self._holdings.remove(holding)

    def free(self, holding: Holding) -> None:
        """Nothing of the group runs any more."""
        with self._lock:
            if holding in self._holdings:
                self._holdings.remove(holding)

    def _used(self, pool: str) -> dict[str, Resources]:
        used: dict[str, Resources] = {}
        for holding in self._holdings:
            if holding.pool == pool:
                for node, amount in holding.amounts:
                    used[node] = used.get(node, Resources()) + amount
        return used

    def _try(self, waiting: Waiting, state: _Pass) -> str | tuple[Holding, dict[str, Placed]]:
        """A holding with its placement, or the reason why there is none."""
        pool = state.pools.get(waiting.pool)
        if pool is None:
            return f"pool '{waiting.pool}' is not declared any more"
        if pool.status is PoolStatus.OFFLINE:
            return f"pool '{pool.name}' is offline"
        try:
            requests = group_requests(waiting.spec, waiting.spec.group(waiting.group), pool, waiting.tasks)
        except CasstoreError as error:
            return error.message
        before = self._ahead(requests, pool, state)
        if before is not None:
            return f"waits behind {before}, which asks for the same platform"
        gpus = sum(request.amount.gpu for request in requests)
        quota = self._over_quota(waiting, pool, gpus)
        used = self._used(pool.name)
        nodes = [replace(node, used=used.get(node.name, Resources())) for node in pool.nodes]
        found: Placement | Pending | str = quota or place(requests, nodes)
        if isinstance(found, Placement):
            return _hold(waiting, pool, requests, found.nodes, gpus)
        if isinstance(place(requests, pool.nodes), Placement):
            name = f"{waiting.workflow_id} ({waiting.group})"
            for request in requests:
                for platform in request.platforms:
                    state.blocked.setdefault((pool.name, platform), name)
        return found if isinstance(found, str) else found.reason

    @staticmethod
    def _ahead(requests: tuple[TaskRequest, ...], pool: Pool, state: _Pass) -> str | None:
        """The group that is ahead in the queue and waits for a platform that these requests need."""
        for request in requests:
            waited = [state.blocked.get((pool.name, platform)) for platform in request.platforms]
            if waited and all(waited):
                return waited[0]
        return None

    def _over_quota(self, waiting: Waiting, pool: Pool, gpus: int) -> str | None:
        if pool.gpu_guarantee is None or waiting.priority is Priority.LOW or not gpus:
            return None
        held = sum(
            holding.gpus
            for holding in self._holdings
            if holding.pool == pool.name and holding.priority is not Priority.LOW
        )
        if held + gpus <= pool.gpu_guarantee:
            return None
        return f"{gpus} GPUs would exceed the quota of pool '{pool.name}': {held} of {pool.gpu_guarantee} are in use"


def _hold(
    waiting: Waiting,
    pool: Pool,
    requests: tuple[TaskRequest, ...],
    nodes: Mapping[str, Node],
    gpus: int,
) -> tuple[Holding, dict[str, Placed]]:
    holding = Holding(
        key=waiting.key,
        pool=pool.name,
        priority=waiting.priority,
        amounts=tuple((nodes[request.task].name, request.amount) for request in requests),
        limits={request.task: request.amount for request in requests},
        gpus=gpus,
    )
    return holding, {task: Placed(node.platform, node.name, None) for task, node in nodes.items()}
