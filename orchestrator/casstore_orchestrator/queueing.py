"""Who runs now, who has to make room, who waits and why: one decision over all pools.

Decided here and only here: which group is looked at first, for whom nodes are kept free, and who may overtake. The
rules of quota are in ``quota``, those of preemption in ``eviction``. ``decide`` is a pure function of what it is told.

A group that has to wait keeps nothing in part. The first one of each (pool, set of platforms) gets a *reservation*: the
nodes that are free soonest if every running group takes as long as it may. Whoever is behind may overtake when it
ends before that, or leaves those nodes what the reservation needs (EASY backfill). A group that could not have even
the empty pool holds up nobody.
"""

from __future__ import annotations

import gc
import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from .capacity import Cluster, Kind, Vector
from .eviction import Evictions
from .fitting import Arrangement, Shape, fit
from .pools import Pool, PoolStatus
from .quota import MAXIMUM, QUOTA, Quotas, ending_order
from .records import Held
from .waiting import Ask, Holding, Key, Memory, Placing, Preemption, Reservation, Waiting

__all__ = ["Decisions", "Pass", "Verdict", "decide"]

_REHEARSALS: Final = 5
"""How often preemptions are tried out together, fewer each time, before all are given up for this pass."""
_AHEAD: Final = 256
"""Groups without a reservation that take part in that: the first ones that wait."""
_LARGE: Final = 2_000
_RELEASES: Final = 100_000
"""Amounts that one pass may imagine to be given back while it looks for reservations."""


class Verdict(NamedTuple):
    """Why a group waits: a word, what belongs to it, and how many of its pool wait before it."""

    code: str
    detail: tuple[object, ...]
    before: int


class _Dead:
    """What does not fit a view any more. A group with at least as many tasks of a kind as did not fit alone is not
    tried.
    """

    def __init__(self) -> None:
        self.shapes: set[Shape] = set()
        self.least: dict[Kind, int] = {}

    def copy(self) -> _Dead:
        twin = _Dead()
        twin.shapes, twin.least = self.shapes.copy(), self.least.copy()
        return twin

    def __contains__(self, shape: Shape) -> bool:
        if shape in self.shapes:
            return True
        least = self.least
        for kind, count in shape.parts:
            if kind in least and count >= least[kind]:
                self.shapes.add(shape)
                return True
        return False

    def add(self, shape: Shape, *, alone: bool = True) -> None:
        self.shapes.add(shape)
        if alone and len(shape.parts) == 1:
            kind, count = shape.parts[0]
            self.least[kind] = min(count, self.least.get(kind, count))

    def clear(self) -> None:
        self.shapes.clear()
        self.least.clear()


@dataclass(frozen=True)
class Decisions:
    """``placed`` in the order of decision; ``verdicts`` has an entry for every group that was not.

    ``source`` is for ``reasons.explain``, until the memory is used for another pass.
    """

    placed: tuple[Placing, ...]
    preempt: tuple[Preemption, ...]
    reservations: tuple[Reservation, ...]
    verdicts: Mapping[Key, Verdict]
    source: Pass


def decide(
    pools: Mapping[str, Pool],
    queue: Sequence[Waiting],
    holdings: Sequence[Holding],
    now: float,
    memory: Memory | None = None,
) -> Decisions:
    """Go once through the queue. ``memory`` saves what the last pass found out about the same cluster."""
    with _collector_at_rest(len(queue) + len(holdings)):
        return Pass(pools, queue, holdings, now, memory or Memory()).run()


@contextmanager
def _collector_at_rest(size: int) -> Iterator[None]:
    """A large pass makes many small objects, none of them in a cycle: looking for cycles would take half its time."""
    pause = size > _LARGE and gc.isenabled()
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()


class Pass:
    """One pass over the queue. There are up to four views of the cluster:

    ``truth`` is what is in use now. ``long`` is what may be used by groups that may still run when a reservation comes
    due, ``brief`` by those that end before. ``soon`` is what is free once everything that is ending has ended.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        queue: Sequence[Waiting],
        holdings: Sequence[Holding],
        now: float,
        memory: Memory,
        *,
        may_evict: bool = True,
    ) -> None:
        memory.follow(pools, queue, holdings)
        self.pools, self.queue, self.holdings, self.now, self.memory = pools, queue, holdings, now, memory
        self.layout = memory.layout
        self.truth = memory.cluster
        self.truth.looks = 0
        self.long: Cluster | None = None
        self.brief: Cluster | None = None
        self.soon: Cluster | None = None
        self.held = {holding.key: holding for holding in holdings}
        self.quotas = Quotas(pools, holdings, memory)
        self.placed: list[Placing] = []
        self.preempt: list[Preemption] = []
        self.reservations: list[Reservation] = []
        self.kept: dict[int, None] = {}
        """Nodes that are reserved for a time that is not now: what is given back there is not anybody's to take."""
        self.verdicts: dict[Key, Verdict] = {}
        self._keys: set[tuple[str, frozenset[str]]] = set()
        self._closed: dict[tuple[str, str], Waiting] = {}
        self._horizon: dict[str, float] = {}
        self._dead: dict[str, _Dead] = {"long": _Dead(), "brief": _Dead(), "soon": _Dead()}
        self._before: dict[str, int] = {}
        self._releases = _RELEASES
        self._may_evict = may_evict
        self._ahead: list[Waiting] = []
        self._ends: list[Holding] | None = None
        self._by_node: dict[int, list[Key]] | None = None
        self._evictions = Evictions(self)

    def by_node(self) -> Mapping[int, Sequence[Key]]:
        """Which groups are on each node."""
        if self._by_node is None:
            found: dict[int, list[Key]] = {}
            for key, known in self.memory.known.items():
                for node in dict.fromkeys(node for node, _ in known.amounts):
                    found.setdefault(node, []).append(key)
            self._by_node = found
        return self._by_node

    def run(self) -> Decisions:
        """Look at every group once."""
        lines: dict[str, list[Waiting]] = {}
        for entry in sorted(self.queue, key=lambda waiting: waiting.rank):
            lines.setdefault(entry.pool, []).append(entry)
        heads = [(self._turn(line[0]), name, 0) for name, line in lines.items()]
        heapq.heapify(heads)
        while heads:
            _, name, number = heads[0]
            line = lines[name]
            self._look(line[number])
            number += 1
            if number < len(line):
                heapq.heapreplace(heads, (self._turn(line[number]), name, number))
            else:
                heapq.heappop(heads)
        if self.preempt:
            self._rehearse()
        return Decisions(tuple(self.placed), tuple(self.preempt), tuple(self.reservations), self.verdicts, self)

    def _turn(self, waiting: Waiting) -> tuple[float, ...]:
        """When the head of a pool's line is looked at: borrowers by what their pool has borrowed for its weight."""
        share = 0.0
        pool = self.pools.get(waiting.pool)
        if pool is not None and not waiting.guaranteed:
            share = max(0, self.quotas.total[pool.name] - (pool.gpu_guarantee or 0)) / pool.gpu_weight
        return waiting.priority.rank, share, waiting.submit_time

    def _wait(self, waiting: Waiting, code: str, *detail: object) -> None:
        before = self._before.get(waiting.pool, 0)
        self._before[waiting.pool] = before + 1
        if len(self._ahead) < _AHEAD:
            self._ahead.append(waiting)
        self.verdicts[waiting.key] = Verdict(code, detail, before)

    def _look(self, waiting: Waiting) -> None:
        pool = self.pools.get(waiting.pool)
        if pool is None:
            self._wait(waiting, "undeclared")
        elif pool.status is PoolStatus.OFFLINE:
            self._wait(waiting, "offline")
        elif waiting.key in self.held:
            self._wait(waiting, "leaving")
        elif isinstance(ask := self.memory.ask(waiting, pool), str):
            self._wait(waiting, "refused", ask)
        elif not self._over_guarantee(waiting, pool, ask.shape.gpus):
            self._seek(waiting, pool, ask)

    def _over_guarantee(self, waiting: Waiting, pool: Pool, gpus: int) -> bool:
        if pool.gpu_guarantee is None or not gpus or not waiting.guaranteed:
            return False
        return self._refused(waiting, self.quotas.over(waiting, QUOTA, gpus, pool.gpu_guarantee, self._end(waiting)))

    def _refused(self, waiting: Waiting, verdict: tuple[object, ...] | None) -> bool:
        if verdict is None:
            return False
        code, *detail = verdict
        self._wait(waiting, str(code), *detail)
        return True

    # Nodes.

    def _end(self, waiting: Waiting) -> float:
        return math.inf if waiting.exec_timeout is None else self.now + waiting.exec_timeout

    def _seek(self, waiting: Waiting, pool: Pool, ask: Ask) -> None:
        shape = ask.shape
        excess = 0 if pool.gpu_maximum is None else self.quotas.total[pool.name] + shape.gpus - pool.gpu_maximum
        if excess > 0 and shape.gpus:
            if not (waiting.guaranteed and self._make_room(waiting, pool, shape, excess)):
                self._over_maximum(waiting, pool, shape.gpus)
            return
        if shape.gpus and self._over_maximum(waiting, pool, shape.gpus):
            return
        blocker = self._closed and self.closed(shape)
        if blocker:
            self._wait(waiting, "behind", blocker)
            return
        if self._place(waiting, ask):
            return
        if not self.memory.possible(shape):
            self._wait(waiting, "never")
        elif not self._make_room(waiting, pool, shape, 0):
            self._wait(waiting, "nodes")
            key = (pool.name, shape.platforms)
            if key not in self._keys:
                self._keys.add(key)
                self._reserve(waiting, shape)

    def _over_maximum(self, waiting: Waiting, pool: Pool, gpus: int) -> bool:
        if pool.gpu_maximum is None:
            return False
        return self._refused(waiting, self.quotas.over(waiting, MAXIMUM, gpus, pool.gpu_maximum, self._end(waiting)))

    def _place(self, waiting: Waiting, ask: Ask) -> bool:
        shape = ask.shape
        if self.long is None:
            name, view = "long", self.truth
        # Strictly before: two groups with the same default limit do not count as one that is surely shorter.
        elif self._end(waiting) < self._horizon.get(self.layout.family(waiting.pool), math.inf):
            name, view = "brief", self.brief or self.truth
        else:
            name, view = "long", self.long
        dead = self._dead[name]
        if shape in dead:
            return False
        found = fit(view, shape)
        if found is None:
            dead.add(shape)
            return False
        for other in (self.truth, self.long, self.brief, self.soon):
            if other is not None and other is not view:
                _take(other, shape, found)
        held = self._name(waiting, ask, found)
        self.placed.append(Placing(waiting, held))
        self.memory.hold(waiting.key, waiting.pool, held, taken=True)
        self.quotas.use(waiting, shape.gpus, self._end(waiting))
        return True

    def _name(self, waiting: Waiting, ask: Ask, found: Arrangement) -> tuple[Held, ...]:
        names, classes, pool = self.layout.names, self.layout.classes, waiting.pool
        held: list[Held] = []
        for requests, part in zip(ask.requests, found, strict=True):
            number = 0
            for node, times in part:
                platform = classes[node].views[pool].platform
                chosen = requests[number : number + times]
                held.extend(Held(request.task, platform, names[node], request.amount) for request in chosen)
                number += times
        return tuple(held)

    def closed(self, shape: Shape) -> Waiting | None:
        """Whom nobody may overtake on platforms that a shape needs."""
        for kind, _ in shape.parts:
            owners = [self._closed.get((kind.pool, name)) for name in kind.platforms]
            if owners and all(owners):
                return owners[0]
        return None

    # Room that is made, or waited for.

    def clearing(self) -> Cluster:
        """The view ``soon``."""
        if self.soon is None:
            self.soon = (self.long or self.truth).copy()
            for holding in self.holdings:
                if holding.ending:
                    self.release(self.soon, holding)
        return self.soon

    def release(self, view: Cluster, holding: Holding) -> int:
        """Give back in a view what a group holds; the number of amounts."""
        amounts = self.memory.known[holding.key].amounts
        for node, amount in amounts:
            if node not in self.kept:
                view.give(node, amount)
        return len(amounts)

    def _make_room(self, waiting: Waiting, pool: Pool, shape: Shape, excess: int) -> bool:
        """Keep nodes for a group that are about to be free, or have others leave theirs."""
        dead = self._dead["soon"]
        if shape in dead:
            return False
        soon = self.clearing()
        excess -= self.quotas.leaving[pool.name]
        found = fit(soon, shape) if excess <= 0 else None
        victims: Sequence[Holding] = ()
        if found is None and self._may_evict:
            victims, found = self._evictions.find(waiting, pool, shape, excess)
        if found is None:
            dead.add(shape, alone=False)
            return False
        for victim in victims:
            self._evictions.gone.add(victim.key)
            self.preempt.append(Preemption(victim, waiting))
            self.quotas.leaving[victim.pool] += self.memory.gpus(victim.key)
        if victims:
            dead.clear()
        nodes = list(dict.fromkeys(node for part in found for node, _ in part))
        if self.brief is None:
            self.brief = self.truth.copy()
        after = {node: soon.used(node) for node in nodes}
        self._keep(waiting, after, self.now, (self._long(), self.brief))
        self.quotas.use(waiting, shape.gpus, self._end(waiting))
        self._wait(waiting, "soon")
        return True

    def _rehearse(self) -> None:
        """Take back preemptions whose group would not run even then: with more nodes free, a group that comes before it
        may choose others than were meant for it.
        """
        ahead = [*self._ahead, *(entry.waiting for entry in self.reservations)]
        owners = list({entry.key: entry for entry in ahead}.values())
        placed = [placing.holding(self.now) for placing in self.placed]
        for _ in range(_REHEARSALS):
            gone = {entry.victim.key for entry in self.preempt}
            stay = [held for held in self.holdings if not held.ending and held.key not in gone] + placed
            memory = self.memory.twin()
            run = Pass(self.pools, owners, stay, self.now, memory, may_evict=False).run()
            runs = {placing.key for placing in run.placed}
            kept = [entry for entry in self.preempt if entry.for_whom.key in runs]
            if len(kept) == len(self.preempt):
                return
            for entry in self.preempt:
                if entry.for_whom.key not in runs:
                    before = self.verdicts[entry.for_whom.key].before
                    self.verdicts[entry.for_whom.key] = Verdict("nodes", (), before)
            self.preempt = kept
        for entry in self.preempt:
            self.verdicts[entry.for_whom.key] = Verdict("nodes", (), self.verdicts[entry.for_whom.key].before)
        self.preempt = []

    def _long(self) -> Cluster:
        if self.long is None:
            self.long = self.truth.copy()
            self._dead["brief"] = self._dead["long"].copy()
        return self.long

    def _keep(self, waiting: Waiting, after: Mapping[int, Vector], at: float | None, views: Sequence[Cluster]) -> None:
        """Leave these nodes enough in some views that they have at most ``after`` in use, the group's part included."""
        for view in views:
            for node, most in after.items():
                view.put(node, tuple(map(max, view.used(node), most)))
        self.reservations.append(Reservation(waiting, tuple(self.layout.names[node] for node in after), at))

    def _reserve(self, waiting: Waiting, shape: Shape) -> None:
        """Keep the nodes that are free soonest if everything runs for as long as it may."""
        soon = self.clearing()
        start = soon.mark()
        ends = self._endings(waiting.pool)
        found, count = None, 0
        if self._releases > 0:
            found, count = self._soonest(soon, shape, ends)
        if found is None:
            soon.rollback(start)
            if self._releases <= 0:  # not looked at, so nobody overtakes it
                for name in shape.platforms:
                    self._closed.setdefault((waiting.pool, name), waiting)
            return
        after = {node: soon.used(node) for part in found for node, _ in part}
        soon.rollback(start)
        until = ends[count - 1].until if count else self.now
        at = None if until is None else max(until, self.now)
        self._keep(waiting, after, at, (self._long(), soon))
        self.kept.update(dict.fromkeys(after))
        self.quotas.keep(waiting, shape.gpus, at)
        family = self.layout.family(waiting.pool)
        self._horizon[family] = min(self._horizon.get(family, math.inf), -math.inf if at is None else at)

    def _endings(self, pool: str) -> list[Holding]:
        """The running groups that use nodes which a pool has too, by when they end."""
        if self._ends is None:
            self._ends = sorted((held for held in self.holdings if not held.ending), key=ending_order)
        gone, family = self._evictions.gone, self.layout.family
        own = family(pool)
        return [held for held in self._ends if family(held.pool) == own and held.key not in gone]

    def _soonest(self, soon: Cluster, shape: Shape, ends: Sequence[Holding]) -> tuple[Arrangement | None, int]:
        """The least number of groups that have to end before this one fits, and where: they have ended in the view."""
        low, mark, step = 0, soon.mark(), 1
        high = None
        while low < len(ends) and self._releases > 0:
            top = min(low + step, len(ends))
            if self._fits_after(soon, shape, ends[low:top]):
                high = top
                break
            low, mark, step = top, soon.mark(), step * 2
        if high is None:
            return None, 0
        while high - low > 1:
            soon.rollback(mark)
            middle = (low + high) // 2
            if self._fits_after(soon, shape, ends[low:middle]):
                high = middle
            else:
                low, mark = middle, soon.mark()
        soon.rollback(mark)
        for held in ends[low:high]:
            self.release(soon, held)
        return fit(soon, shape), high

    def _fits_after(self, soon: Cluster, shape: Shape, ends: Sequence[Holding]) -> bool:
        for held in ends:
            self._releases -= self.release(soon, held)
        mark = soon.mark()
        fits = fit(soon, shape) is not None
        soon.rollback(mark)
        return fits


def _take(view: Cluster, shape: Shape, found: Arrangement) -> None:
    for (kind, _), part in zip(shape.parts, found, strict=True):
        for node, times in part:
            view.take(node, kind.amount, times)
