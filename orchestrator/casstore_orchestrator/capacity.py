"""How much of every node is free, kept so that a node for a task is found without looking at every node.

Decided here and only here: which nodes count as alike, what it means that a task fits a node, and which of the nodes
that it fits is taken: one of the task's first platform, and there the one with the least left (GPUs first), so that
whole nodes stay free for what needs whole nodes.

Nodes of one class (the same platform, size and topology in every pool that has them) with the same amounts in use are
interchangeable and lie in one *bucket*. Whether a kind of task fits a bucket never changes, only how many nodes are in
it does: what was once found out stays known.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from .families import Families
from .pools import Node, Resources

__all__ = ["GPU", "Bucket", "Cluster", "Kind", "Layout", "NodeClass", "Vector", "View", "room"]

Vector = tuple[int, ...]
_CPU: Final = 1_000_000
"""Cores are counted in millionths: whole numbers, so that a node that was freed is exactly as empty as before."""
_PLAIN: Final = ("cpu", "memory", "storage", "gpu")
_STORAGE: Final = 2
GPU: Final = 3
"""Where GPUs stand in a vector."""


class View(NamedTuple):
    """What one pool sees of the nodes of a class."""

    platform: str
    capacity: Vector
    topology: tuple[tuple[str, str], ...]


class NodeClass:
    """Nodes that are alike for every pool. Classes of the same platforms of the same pools are one ``zone``."""

    __slots__ = ("number", "size", "views", "zone")

    def __init__(self, number: int, zone: int, views: Mapping[str, View]) -> None:
        self.number = number
        self.zone = zone
        self.views = views
        self.size = 0


class Kind:
    """What a task asks of a pool's nodes; equal demands are one object within a layout."""

    __slots__ = ("amount", "excluded", "limits", "needs", "platforms", "pool", "preferred", "required", "zones")

    def __init__(
        self,
        zones: tuple[int, ...],
        pool: str,
        amount: Vector,
        platforms: tuple[str, ...],
        excluded: frozenset[str],
        required: tuple[tuple[str, str], ...],
        preferred: tuple[tuple[str, str], ...],
    ) -> None:
        self.zones = zones
        self.pool = pool
        self.amount = amount
        self.needs = tuple((index, value) for index, value in enumerate(amount) if value)
        self.platforms = platforms
        self.excluded = excluded
        self.required = required
        self.preferred = preferred
        self.limits: dict[int, tuple[tuple[int, int], ...] | None] = {}
        """By class: the largest use of each needed resource that leaves room; None: never a node of this class."""

    @property
    def plain(self) -> bool:
        """Whether it does not matter where the other tasks of the group are, or how a node is called."""
        return not (self.excluded or self.required or self.preferred)

    def limit(self, cls: NodeClass) -> tuple[tuple[int, int], ...] | None:
        """See ``limits``."""
        try:
            return self.limits[cls.number]
        except KeyError:
            found = self.limits[cls.number] = self._limit(cls)
            return found

    def _limit(self, cls: NodeClass) -> tuple[tuple[int, int], ...] | None:
        view = cls.views.get(self.pool)
        if view is None or view.platform not in self.platforms:
            return None
        capacity = view.capacity
        if any(need > capacity[index] for index, need in self.needs):
            return None
        # Storage of a node is never given away whole: the system on it needs some.
        if self.amount[_STORAGE] and self.amount[_STORAGE] >= capacity[_STORAGE]:
            return None
        return tuple((index, capacity[index] - need) for index, need in self.needs)


class Layout:
    """The nodes of all pools, without what is in use.

    ``nodes`` are their keys in the order of declaration, ``classes`` the class of each by the same number;
    ``distinct`` has every class once. ``keys`` are the topology keys that may be asked for: a node without a value
    of one has its own name for a value.
    """

    def __init__(self, nodes: Iterable[Node], keys: Iterable[str] = ()) -> None:
        self.nodes: list[str] = []
        self.names: list[str] = []
        self.classes: list[NodeClass] = []
        self.distinct: list[NodeClass] = []
        self.by_name: dict[tuple[str, str], int] = {}
        self.resources: tuple[str, ...] = _PLAIN
        self.zones: dict[tuple[tuple[str, str], ...], int] = {}
        self._kinds: dict[tuple[object, ...], Kind] = {}
        declared: dict[str, dict[str, Node]] = {}
        extras: set[str] = set()
        for node in nodes:
            declared.setdefault(node.key, {})[node.pool] = node
            extras.update(node.capacity.extras)
        self.resources += tuple(sorted(extras))
        self.zero: Vector = (0,) * len(self.resources)
        self._classify(declared, sorted(set(keys)))
        self._groups = Families()
        for views in declared.values():
            self._groups.join(views)

    def _classify(self, declared: Mapping[str, Mapping[str, Node]], keys: Sequence[str]) -> None:
        known: dict[tuple[tuple[str, View], ...], NodeClass] = {}
        vectors: dict[int, tuple[Resources, Vector]] = {}
        topologies: dict[int, tuple[Mapping[str, str], tuple[tuple[str, str], ...]]] = {}
        for number, (key, views) in enumerate(declared.items()):
            seen = []
            for pool, node in sorted(views.items()):
                # The nodes of a platform share these two objects; a reference is kept, so that an id stays one's own.
                if id(node.capacity) not in vectors:
                    vectors[id(node.capacity)] = node.capacity, self.vector(node.capacity) or self.zero
                if id(node.topology) not in topologies:
                    topologies[id(node.topology)] = node.topology, tuple(sorted(node.topology.items()))
                topology = topologies[id(node.topology)][1]
                topology += tuple((name, node.name) for name in keys if name not in node.topology)
                view = View(node.platform, vectors[id(node.capacity)][1], topology)
                seen.append((pool, view))
                self.by_name[pool, node.name] = number
            cls = known.get(tuple(seen))
            if cls is None:
                where = tuple((pool, view.platform) for pool, view in seen)
                zone = self.zones.setdefault(where, len(self.zones))
                cls = known[tuple(seen)] = NodeClass(len(known), zone, dict(seen))
            cls.size += 1
            self.nodes.append(key)
            self.names.append(next(iter(views.values())).name)
            self.classes.append(cls)
        self.distinct = list(known.values())

    def vector(self, amount: Resources) -> Vector | None:
        """An amount as whole numbers; None when it has a resource that no node has."""
        plain = (round(amount.cpu * _CPU), amount.memory, amount.storage, amount.gpu)
        extras = amount.extras
        if not extras:
            return plain + self.zero[4:]
        if any(count and name not in self.resources for name, count in extras.items()):
            return None
        return plain + tuple(extras.get(name, 0) for name in self.resources[4:])

    def amount(self, vector: Vector) -> Resources:
        """The reverse of ``vector``."""
        cpu, memory, storage, gpu, *extras = vector
        named = {name: count for name, count in zip(self.resources[4:], extras, strict=True) if count}
        return Resources(cpu=cpu / _CPU, memory=memory, storage=storage, gpu=gpu, extras=named)

    def kind(
        self,
        pool: str,
        amount: Resources,
        platforms: tuple[str, ...],
        excluded: frozenset[str],
        required: tuple[tuple[str, str], ...],
        preferred: tuple[tuple[str, str], ...],
    ) -> Kind | None:
        """The one object for this demand; None when it asks for a resource that no node has."""
        vector = self.vector(amount)
        if vector is None:
            return None
        key = (pool, vector, platforms, excluded, required, preferred)
        found = self._kinds.get(key)
        if found is None:
            own = {(pool, platform) for platform in platforms}
            zones = tuple(zone for where, zone in self.zones.items() if not own.isdisjoint(where))
            found = self._kinds[key] = Kind(zones, pool, vector, platforms, excluded, required, preferred)
        return found

    def hardness(self, kind: Kind) -> tuple[float, ...]:
        """How hard a kind is to place: few nodes first, then the largest share of what a node has."""
        own = [cls for cls in self.distinct if (view := cls.views.get(kind.pool)) and view.platform in kind.platforms]
        largest = 0.0
        for index, need in kind.needs:
            most = max((cls.views[kind.pool].capacity[index] for cls in own), default=0)
            largest = max(largest, need / most if most else 1.0)
        return -sum(cls.size for cls in own), largest

    def together(self, one: str, other: str) -> bool:
        """Whether two pools share nodes, with each other or by way of others."""
        return self._groups.find(one) == self._groups.find(other)

    def family(self, pool: str) -> str:
        """The name of one pool for all that share nodes with it."""
        return self._groups.find(pool)


class Bucket:
    """Nodes of one class with the same amounts in use."""

    __slots__ = ("cls", "count", "nodes", "number", "used")

    def __init__(self, number: int, cls: NodeClass, used: Vector) -> None:
        self.number = number
        self.cls = cls
        self.used = used
        self.nodes: list[int] = []
        """A heap; it may hold nodes that are elsewhere by now."""
        self.count = 0

    def copy(self) -> Bucket:
        """The same bucket of another cluster."""
        twin = Bucket(self.number, self.cls, self.used)
        if self.count:
            twin.nodes, twin.count = self.nodes.copy(), self.count
        return twin


class _Lane:
    """The buckets that one kind fits, the best one first; ``seen`` entries of the log of each zone were looked at."""

    __slots__ = ("heap", "seen")

    def __init__(self, zones: int) -> None:
        self.heap: list[tuple[tuple[int, ...], int]] = []
        self.seen = [0] * zones

    def copy(self) -> _Lane:
        twin = _Lane(0)
        twin.heap, twin.seen = self.heap.copy(), self.seen.copy()
        return twin


class Cluster:
    """What is in use of every node of a layout. Every change can be taken back (``mark``, ``rollback``)."""

    def __init__(self, layout: Layout, source: Cluster | None = None) -> None:
        self.layout = layout
        self.buckets: list[Bucket] = []
        self.looks = 0
        """Buckets looked at by searches, as a measure of work that does not depend on the machine."""
        self._where: dict[tuple[int, Vector], int] = {}
        self._at: list[int] = []
        self._live: list[dict[int, None]] = [{} for _ in layout.zones]
        self._logs: list[list[int]] = [[] for _ in layout.zones]
        self._lanes: dict[Kind, _Lane] = {}
        self._journal: list[tuple[int, Vector]] = []
        if source is not None:
            source.fill(self)
            return
        for node, cls in enumerate(layout.classes):
            bucket = self._bucket(cls, layout.zero)
            bucket.nodes.append(node)  # ascending, which is a heap
            bucket.count += 1
            self._at.append(bucket.number)
        self._index()

    def fill(self, twin: Cluster) -> None:
        """Make an empty cluster of the same layout equal to this one, with all that was found out so far."""
        twin.buckets = [bucket.copy() for bucket in self.buckets]
        twin._where, twin._at = self._where.copy(), self._at.copy()
        twin._live = [live.copy() for live in self._live]
        twin._logs = [log.copy() for log in self._logs]
        twin._lanes = {kind: lane.copy() for kind, lane in self._lanes.items()}

    def _index(self) -> None:
        """Note every bucket with nodes in its zone, as if all had just come to be."""
        self._lanes = {}
        for live, log in zip(self._live, self._logs, strict=True):
            live.clear()
            log.clear()
        for bucket in self.buckets:
            if bucket.count:
                self._live[bucket.cls.zone][bucket.number] = None
                self._logs[bucket.cls.zone].append(bucket.number)

    def copy(self) -> Cluster:
        """The same state, to be changed apart from this one."""
        return Cluster(self.layout, self)

    def _bucket(self, cls: NodeClass, used: Vector) -> Bucket:
        key = (cls.number, used)
        number = self._where.get(key)
        if number is None:
            number = self._where[key] = len(self.buckets)
            self.buckets.append(Bucket(number, cls, used))
        return self.buckets[number]

    # Changes.

    def used(self, node: int) -> Vector:
        """What is in use of a node."""
        return self.buckets[self._at[node]].used

    def put(self, node: int, used: Vector) -> None:
        """Set what is in use of a node."""
        old = self.buckets[self._at[node]]
        if old.used == used:
            return
        self._journal.append((node, old.used))
        self._move(node, old, used)

    def _move(self, node: int, old: Bucket, used: Vector) -> None:
        old.count -= 1
        if not old.count:
            del self._live[old.cls.zone][old.number]
        new = self._bucket(old.cls, used)
        if not new.count:
            new.nodes.clear()
            self._logs[new.cls.zone].append(new.number)
            self._live[new.cls.zone][new.number] = None
        heapq.heappush(new.nodes, node)
        new.count += 1
        if len(new.nodes) > 2 * new.count + 32:
            at = self._at
            new.nodes = sorted({other for other in new.nodes if at[other] == new.number} | {node})
        self._at[node] = new.number

    def take(self, node: int, amount: Vector, times: int = 1) -> None:
        """Use more of a node."""
        used = self.used(node)
        self.put(node, tuple([value + times * more for value, more in zip(used, amount, strict=True)]))

    def give(self, node: int, amount: Vector) -> None:
        """Use less of a node."""
        self.take(node, amount, -1)

    def mark(self) -> int:
        """The point to come back to."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Take back everything since a mark."""
        while len(self._journal) > mark:
            node, used = self._journal.pop()
            self._move(node, self.buckets[self._at[node]], used)

    def settle(self) -> None:
        """Let go of what is only needed to take changes back, and of what has become useless in the indexes."""
        self._journal.clear()
        live = sum(map(len, self._live))
        if sum(map(len, self._logs)) > 8 * live + 10_000 or len(self.buckets) > 4 * live + 500:
            self._compact()

    def _compact(self) -> None:
        """Forget empty buckets."""
        kept = [bucket for bucket in self.buckets if bucket.count]
        moved = {bucket.number: number for number, bucket in enumerate(kept)}
        self._at = [moved[number] for number in self._at]
        for number, bucket in enumerate(kept):
            bucket.number = number
        self.buckets = kept
        self._where = {(bucket.cls.number, bucket.used): bucket.number for bucket in kept}
        self._index()

    # Looking for room.

    def best(self, kind: Kind) -> Bucket | None:
        """The bucket from which a node for this kind is taken; None when no node has room."""
        lane = self._lanes.get(kind)
        if lane is None:
            lane = self._lanes[kind] = _Lane(len(kind.zones))
        buckets, heap = self.buckets, lane.heap
        for number, zone in enumerate(kind.zones):
            log = self._logs[zone]
            if lane.seen[number] < len(log):
                self._catch_up(kind, heap, log[lane.seen[number] :])
                lane.seen[number] = len(log)
        while heap:
            bucket = buckets[heap[0][1]]
            if bucket.count:
                return bucket
            heapq.heappop(heap)
        return None

    def _catch_up(self, kind: Kind, heap: list[tuple[tuple[int, ...], int]], numbers: Sequence[int]) -> None:
        buckets, limits = self.buckets, kind.limits
        for number in numbers:
            bucket = buckets[number]
            if bucket.count:
                cls = bucket.cls
                limit = limits[cls.number] if cls.number in limits else kind.limit(cls)
                if limit is not None:
                    used = bucket.used
                    for index, most in limit:
                        if used[index] > most:
                            break
                    else:
                        heapq.heappush(heap, (_order(kind, bucket), number))

    def live(self, kind: Kind) -> Iterator[Bucket]:
        """The buckets of the platforms of a kind."""
        for zone in kind.zones:
            for number in self._live[zone]:
                yield self.buckets[number]

    def candidates(self, kind: Kind) -> list[Bucket]:
        """Every bucket with room for this kind, the best one first."""
        self.looks += sum(len(self._live[zone]) for zone in kind.zones)
        found = []
        for bucket in self.live(kind) if self.best(kind) is not None else ():
            limit = kind.limit(bucket.cls)
            if limit is not None and all(bucket.used[index] <= most for index, most in limit):
                found.append(bucket)
        found.sort(key=lambda bucket: _order(kind, bucket))
        return found

    def first(self, bucket: Bucket) -> int:
        """The node of a bucket that was declared first."""
        nodes, at, number = bucket.nodes, self._at, bucket.number
        while at[nodes[0]] != number:
            heapq.heappop(nodes)
        return nodes[0]

    def members(self, bucket: Bucket, excluded: frozenset[str] = frozenset()) -> Iterator[int]:
        """The nodes of a bucket in the order of their declaration, but for those of an excluded name."""
        names = self.layout.names
        # A copy: whoever asks may change the bucket meanwhile.
        for node in sorted({node for node in bucket.nodes if self._at[node] == bucket.number}):
            if not excluded or names[node] not in excluded:
                yield node


def room(kind: Kind, bucket: Bucket, wanted: int) -> int:
    """How many tasks of a kind a node of the bucket can take, ``wanted`` at most."""
    capacity = bucket.cls.views[kind.pool].capacity
    used, found = bucket.used, wanted
    for index, need in kind.needs:
        found = min(found, (capacity[index] - used[index]) // need)
    return found


def _order(kind: Kind, bucket: Bucket) -> tuple[int, ...]:
    """The less is left, the better: GPUs, cores, memory, storage, extras; then the class that was declared first."""
    view, used = bucket.cls.views[kind.pool], bucket.used
    capacity = view.capacity
    return (
        kind.platforms.index(view.platform),
        capacity[GPU] - used[GPU],
        *[have - taken for have, taken in zip(capacity, used, strict=True)],
        bucket.cls.number,
    )
