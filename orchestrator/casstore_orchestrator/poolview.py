"""What the holder of a pool's lease knows of the pool: who waits, who holds what, when what is due.

Decided here and only here: that all of it follows from the records, one workflow at a time, the newest revision of
each; and what a change of a record gives reason to: a look at the queues, or none. A pass over the queues is a pure
function of what is known (``decisions.decide``).
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from casstore.errors import NotFoundError

from .deadlines import next_deadline
from .decisions import Decisions, Holding, Memory, Waiting, decide, holding_of
from .events import TimedOut
from .figures import PoolFigures
from .pools import Pool
from .reasons import Why
from .records import WorkflowRecord
from .spec import WorkflowSpec
from .statestore import Fence, StateStore
from .status import GroupStatus

__all__ = ["Others", "Passes", "PoolView"]

_REMEMBERED = 1024
"""Ended workflows whose revision is remembered, so that a late thread can't bring an older one back."""
_LOOK_AGAIN = 5.0
"""Seconds for which is remembered what was seen of a pool that another server looks after."""


class PoolView:
    """One pool, as long as ``fence`` is ours. Safe to use from any thread."""

    def __init__(self, name: str, fence: Fence) -> None:
        self.name = name
        self.fence = fence
        self.until = 0.0
        """When the lease ends unless it is prolonged."""
        self.adopted = False
        """Whether everything that was there when the lease was taken is known."""
        self.sent: dict[tuple[str, str], tuple[int, int]] = {}
        """Groups whose run is followed: its placement, and the last order that was sent; guarded by the workflow's
        lock.
        """
        self.again: set[str] = set()
        """Workflows whose agents could not be told."""
        self._lock = threading.Lock()
        self._revisions: dict[str, int] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._queue: dict[tuple[str, str], Waiting] = {}
        self._holdings: dict[tuple[str, str], Holding] = {}
        self._deadlines: dict[str, tuple[float, TimedOut]] = {}
        self._dirty = True

    @property
    def dirty(self) -> bool:
        """Whether the queue should be looked at."""
        return self._dirty

    def figures(self, now: float) -> PoolFigures:
        """How much waits and runs here."""
        with self._lock:
            return PoolFigures(len(self._queue), len(self._holdings), max(0.0, self.until - now))

    def knows(self, workflow_id: str) -> bool:
        """Whether a workflow is live here."""
        with self._lock:
            return workflow_id in self._revisions and workflow_id not in self._over

    def update(self, record: WorkflowRecord) -> bool:
        """Learn from a record; False when a newer revision of it is known."""
        with self._lock:
            if self._revisions.get(record.id, -1) > record.revision:
                return False
            self._revisions[record.id] = record.revision
            if record.live:
                self._over.pop(record.id, None)
            else:
                self._over[record.id] = None
                while len(self._over) > _REMEMBERED:
                    del self._revisions[self._over.popitem(last=False)[0]]
            self._dirty = self._learn(record) or self._dirty
            deadline = next_deadline(record)
            if deadline is None:
                self._deadlines.pop(record.id, None)
            else:
                self._deadlines[record.id] = deadline
            return True

    def _learn(self, record: WorkflowRecord) -> bool:
        changed = False
        slim: WorkflowRecord | None = None
        for group in record.groups:
            key = record.id, group.name
            held, waiting = self._holdings.pop(key, None), self._queue.pop(key, None)
            if group.holds:
                found = self._holdings[key] = holding_of(record, group)
                changed = changed or (held is not None and held.held != found.held)
            elif group.status is GroupStatus.SCHEDULING:
                slim = slim or _slim(record)
                self._queue[key] = Waiting.of(slim, group.name)
            changed = changed or (held is not None and not group.holds) or waiting != self._queue.get(key)
        return changed

    def due(self, now: float) -> list[tuple[str, TimedOut]]:
        """The deadlines that have passed."""
        with self._lock:
            return [(name, event) for name, (at, event) in self._deadlines.items() if at <= now]

    def next_deadline(self) -> float | None:
        """When the next one passes."""
        with self._lock:
            return min((at for at, _ in self._deadlines.values()), default=None)

    def waiting(self, workflow_id: str, group: str) -> Waiting | None:
        """A group that waits for nodes; None when it does not."""
        with self._lock:
            return self._queue.get((workflow_id, group))

    def take(self, queue: list[Waiting], holdings: list[Holding]) -> bool:
        """Add what is known to these; whether it may be another than the last time."""
        with self._lock:
            dirty, self._dirty = self._dirty, False
            queue += self._queue.values()
            holdings += self._holdings.values()
            return dirty

    def touch(self) -> None:
        """Have the next pass look again: something that was decided did not happen."""
        with self._lock:
            self._dirty = True

    def forget(self, workflow_id: str) -> None:
        """The workflow was deleted."""
        with self._lock:
            self._revisions.pop(workflow_id, None)
            self._deadlines.pop(workflow_id, None)
            for entries in (self._queue, self._holdings):
                for key in [key for key in entries if key[0] == workflow_id]:
                    del entries[key]
            self._dirty = True

    def holding(self) -> list[tuple[str, str]]:
        """The groups that hold nodes: they run, or something of them is left."""
        with self._lock:
            return list(self._holdings)


class Passes:
    """The passes over the queues of all pools that are ours: one decision, for pools lend nodes to each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory = Memory()
        self._last: Decisions | None = None
        self._pools: Mapping[str, Pool] = {}
        self._fences: list[Fence] = []

    def decide(self, views: Sequence[PoolView], pools: Mapping[str, Pool], now: float) -> Decisions | None:
        """Go once through the queues; None when nothing can be other than the last time."""
        queue: list[Waiting] = []
        holdings: list[Holding] = []
        dirty = [view.take(queue, holdings) for view in views]
        fences = [view.fence for view in views]
        with self._lock:
            if not any(dirty) and fences == self._fences and pools == self._pools:
                return None
            self._pools, self._fences = pools, fences
            self._last = decide(pools, queue, holdings, now, self._memory)
            return self._last

    def why(self, waiting: Waiting | None) -> Why | None:
        """Why a group waits, as of the last pass; None when it does not, or nobody has looked yet."""
        with self._lock:
            return None if waiting is None or self._last is None else self._last.why(waiting)


class Others:
    """Pools that other servers look after, for who asks why a group waits there."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, PoolView, Passes]] = {}

    def look(self, pool: str, pools: Mapping[str, Pool], now: float) -> tuple[PoolView, Passes]:
        """A pool as it was a few seconds ago at most, with a pass over its queue."""
        with self._lock:
            seen = self._seen.get(pool)
            if seen is None or not 0 <= now - seen[0] < _LOOK_AGAIN:
                view, passes = PoolView(pool, Fence(pool, 0)), Passes()
                for workflow_id in self._store.live(pool):
                    with contextlib.suppress(NotFoundError):
                        view.update(self._store.load(workflow_id))
                passes.decide([view], pools, now)
                self._seen = {name: entry for name, entry in self._seen.items() if now - entry[0] < _LOOK_AGAIN}
                seen = self._seen[pool] = now, view, passes
            return seen[1], seen[2]


def _slim(record: WorkflowRecord) -> WorkflowRecord:
    """The record without what placing does not ask for: a thousand of them wait in memory."""
    groups = tuple(
        replace(
            group,
            tasks=tuple(
                replace(task, command=(), args=(), environment={}, files=(), inputs=(), outputs=(), credentials={})
                for task in group.tasks
            ),
        )
        for group in record.spec.groups
    )
    spec: WorkflowSpec = replace(record.spec, groups=groups)
    return replace(record, spec=spec, spec_text="", template_text=None)
