"""Nodes for all tasks of a group at once, or none.

Decided here and only here: the order in which the arrangements of a group are tried, and how long. Tasks that ask for
the same are placed as one. A group of one kind is placed exactly when that is possible; one of several kinds by the
hardest kind first, and when that fails, while it is small, by a search that is given up after a fixed amount of work.
Topology keys that are required hold, those that are preferred hold together or are approached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .capacity import GPU, Bucket, Cluster, Kind, Layout, room

__all__ = ["Arrangement", "Shape", "fit", "stuck"]

_SMALL: Final = 64
"""Larger groups are not searched for: among so many it would rarely end."""
_LOOKS: Final = 200_000
"""Buckets that one search may look at,"""
_ALL_LOOKS: Final = 600_000
"""and all searches on one cluster together."""
_STEPS: Final = 5_000
_DOMAINS: Final = 64
"""Combinations of values of topology keys that are tried."""

Arrangement = list[list[tuple[int, int]]]
"""For each part of a shape: (node, how many of its tasks)."""
Pair = tuple[str, str]
_Chosen = dict[Pair, str]


class Shape:
    """What a group asks for, without names: (kind, how many tasks), the hardest to place first."""

    __slots__ = ("gpus", "parts", "plain", "platforms", "pool", "tasks")

    def __init__(self, parts: Sequence[tuple[Kind, int]]) -> None:
        self.parts = tuple(parts)
        self.tasks = sum(count for _, count in parts)
        self.gpus = sum(kind.amount[GPU] * count for kind, count in parts)
        self.pool = parts[0][0].pool if parts else ""
        self.platforms = frozenset(name for kind, _ in parts for name in kind.platforms)
        self.plain = all(kind.plain for kind, _ in parts)

    @classmethod
    def of(cls, layout: Layout, kinds: Sequence[Kind]) -> tuple[Shape, tuple[tuple[int, ...], ...]]:
        """The shape of tasks of these kinds, and for each part which tasks are meant."""
        members: dict[Kind, list[int]] = {}
        for number, kind in enumerate(kinds):
            members.setdefault(kind, []).append(number)
        order = sorted(members, key=layout.hardness, reverse=True) if len(members) > 1 else list(members)
        return cls([(kind, len(members[kind])) for kind in order]), tuple(tuple(members[kind]) for kind in order)


def fit(cluster: Cluster, shape: Shape) -> Arrangement | None:
    """Nodes for the whole group, which are in use from then on; None, and nothing changed, when there are none."""
    mark = cluster.mark()
    found = _plain(cluster, shape) if shape.plain else _constrained(cluster, shape)
    if found is None:
        cluster.rollback(mark)
        if len(shape.parts) > 1 and shape.tasks <= _SMALL and cluster.looks < _ALL_LOOKS:
            found = _Search(cluster, shape).run()
    return found


def stuck(cluster: Cluster, shape: Shape) -> tuple[int, int]:
    """For a group that does not fit: the part that found no node, and how many tasks of that part did.

    The nodes of everything before are in use from then on.
    """
    for number, (kind, count) in enumerate(shape.parts):
        done = sum(times for _, times in _fill(cluster, kind, count, lambda bucket: True))
        if done < count:
            return number, done
    return max(0, len(shape.parts) - 1), 0


def _plain(cluster: Cluster, shape: Shape) -> Arrangement | None:
    found: Arrangement = []
    for kind, count in shape.parts:
        part: list[tuple[int, int]] = []
        left = count
        while left:
            bucket = cluster.best(kind)
            if bucket is None:
                return None
            node = cluster.first(bucket)
            times = room(kind, bucket, left)
            cluster.take(node, kind.amount, times)
            part.append((node, times))
            left -= times
        found.append(part)
    return found


def _fill(
    cluster: Cluster,
    kind: Kind,
    count: int,
    allowed: Callable[[Bucket], bool],
    rank: Callable[[Bucket], object] | None = None,
) -> list[tuple[int, int]]:
    """As many tasks of a kind as there is room for on allowed nodes, the best ones first."""
    part: list[tuple[int, int]] = []
    buckets = [bucket for bucket in cluster.candidates(kind) if allowed(bucket)]
    if rank is not None:
        buckets.sort(key=rank)  # type: ignore[arg-type]
    for bucket in buckets:
        most = room(kind, bucket, count) if count else 0
        for node in cluster.members(bucket, kind.excluded) if most else ():
            times = min(most, count)
            cluster.take(node, kind.amount, times)
            part.append((node, times))
            count -= times
            if not count:
                return part
    return part


# --- topology


def _constrained(cluster: Cluster, shape: Shape) -> Arrangement | None:
    required = tuple(dict.fromkeys(pair for kind, _ in shape.parts for pair in kind.required))
    wished = tuple(dict.fromkeys(pair for kind, _ in shape.parts for pair in kind.preferred if pair not in required))
    for pairs in ((*required, *wished), required) if wished else (required,):
        for chosen in _values(cluster, shape, pairs):
            mark = cluster.mark()
            found = _within(cluster, shape, chosen)
            if found is not None:
                return found
            cluster.rollback(mark)
    return None


def _within(cluster: Cluster, shape: Shape, chosen: _Chosen) -> Arrangement | None:
    """The greedy arrangement where every pair has its chosen value."""
    found: Arrangement = []
    for kind, count in shape.parts:
        part = _fill(cluster, kind, count, _allowed(kind, chosen), _closeness(cluster, kind, chosen))
        if sum(times for _, times in part) < count:
            return None
        found.append(part)
    return found


def _closeness(cluster: Cluster, kind: Kind, chosen: _Chosen) -> Callable[[Bucket], object] | None:
    """Where a wish for being together can't be met: the values with the most room first, so that few are used."""
    open_pairs = [pair for pair in kind.preferred if pair not in chosen]
    if not open_pairs:
        return None
    key = open_pairs[0][0]
    rooms = _rooms(cluster, kind, key, _allowed(kind, chosen))
    return lambda bucket: (-rooms.get(_value(kind, bucket, key), 0), _value(kind, bucket, key))


def _allowed(kind: Kind, chosen: _Chosen) -> Callable[[Bucket], bool]:
    wanted = [(pair[0], chosen[pair]) for pair in (*kind.required, *kind.preferred) if pair in chosen]
    return lambda bucket: all(_value(kind, bucket, key) == value for key, value in wanted)


def _values(cluster: Cluster, shape: Shape, pairs: Sequence[Pair]) -> Iterator[_Chosen]:
    """Values for all pairs, for which each kind alone would find room; those with the least to spare first."""
    tried = 0
    chosen: _Chosen = {}

    def choose(rest: Sequence[Pair]) -> Iterator[_Chosen]:
        nonlocal tried
        if not rest:
            tried += 1
            yield dict(chosen)
            return
        pair = rest[0]
        spare: dict[str, int] = {}
        first = True
        for kind, count in shape.parts:
            if pair in kind.required or pair in kind.preferred:
                rooms = _rooms(cluster, kind, pair[0], _allowed(kind, chosen))
                own = {value: room - count for value, room in rooms.items() if room >= count}
                spare = own if first else {value: min(spare[value], own[value]) for value in own if value in spare}
                first = False
        for value in sorted(spare, key=lambda value: (spare[value], value)):
            if tried >= _DOMAINS:
                return
            chosen[pair] = value
            yield from choose(rest[1:])
            del chosen[pair]

    return choose(pairs)


def _rooms(cluster: Cluster, kind: Kind, key: str, allowed: Callable[[Bucket], bool]) -> dict[str, int]:
    """How many tasks of a kind fit, by value of a topology key."""
    rooms: dict[str, int] = {}
    for bucket in cluster.candidates(kind):
        if allowed(bucket):
            nodes = sum(1 for _ in cluster.members(bucket, kind.excluded)) if kind.excluded else bucket.count
            value = _value(kind, bucket, key)
            rooms[value] = rooms.get(value, 0) + room(kind, bucket, 1 << 40) * nodes
    return rooms


def _value(kind: Kind, bucket: Bucket, key: str) -> str:
    """The value of a topology key of the bucket's nodes, for this kind's pool."""
    for name, value in bucket.cls.views[kind.pool].topology:
        if name == key:
            return value
    return ""


# --- search


class _Search:
    """Depth first, one task after the other, over the buckets (nodes that are alike count once)."""

    def __init__(self, cluster: Cluster, shape: Shape) -> None:
        self.cluster = cluster
        self.order = [(part, kind) for part, (kind, count) in enumerate(shape.parts) for _ in range(count)]
        self.parts = len(shape.parts)
        self.end = min(cluster.looks + _LOOKS, _ALL_LOOKS)
        self.values: _Chosen = {}
        self.named = frozenset(name for kind, _ in shape.parts for name in kind.excluded)

    def run(self) -> Arrangement | None:
        """The first arrangement that is found; the cluster is as before when there is none."""
        placed: list[tuple[int, int, list[Pair]]] = []
        untried = [self._nodes(0)]
        steps = 0
        while len(placed) < len(self.order):
            if not untried[-1]:
                untried.pop()
                if not placed:
                    return None
                self._undo(*placed.pop())
                continue
            steps += 1
            if steps > _STEPS or self.cluster.looks > self.end:
                while placed:
                    self._undo(*placed.pop())
                return None
            placed.append(self._take(untried[-1].pop(), self.order[len(placed)][1]))
            if len(placed) < len(self.order):
                untried.append(self._nodes(len(placed)))
        found: Arrangement = [[] for _ in range(self.parts)]
        for (part, _), (node, _, _) in zip(self.order, placed, strict=True):
            found[part].append((node, 1))
        return found

    def _nodes(self, depth: int) -> list[int]:
        """The nodes to try, the best one last: one of each bucket, and those that some task of the group excludes."""
        kind = self.order[depth][1]
        chosen = {pair: value for pair, value in self.values.items() if pair in kind.required}
        allowed = _allowed(kind, chosen)
        found: list[int] = []
        for bucket in self.cluster.candidates(kind):
            if allowed(bucket):
                found.extend(self._different(bucket, kind))
        return found[::-1]

    def _different(self, bucket: Bucket, kind: Kind) -> Iterator[int]:
        if not self.named:
            yield self.cluster.first(bucket)
            return
        names, other = self.cluster.layout.names, False
        for node in self.cluster.members(bucket, kind.excluded):
            if names[node] in self.named or not other:
                yield node
            other = other or names[node] not in self.named

    def _take(self, node: int, kind: Kind) -> tuple[int, int, list[Pair]]:
        mark = self.cluster.mark()
        fresh = [pair for pair in kind.required if pair not in self.values]
        views = self.cluster.layout.classes[node].views[kind.pool]
        for pair in fresh:
            self.values[pair] = dict(views.topology).get(pair[0], "")
        self.cluster.take(node, kind.amount)
        return node, mark, fresh

    def _undo(self, _node: int, mark: int, fresh: list[Pair]) -> None:
        self.cluster.rollback(mark)
        for pair in fresh:
            del self.values[pair]
