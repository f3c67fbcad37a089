"""Placement over generated pools, queues and histories: what always holds, and small cases against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore_orchestrator.gang import Placement, TaskRequest, place
from casstore_orchestrator.pools import Node, Platform, Pool, PoolStatus, Resources
from casstore_orchestrator.queueing import Decisions, decide
from casstore_orchestrator.records import Held
from casstore_orchestrator.status import Priority
from casstore_orchestrator.waiting import Holding, Memory, Placing, Waiting

NAMES = ("n0", "n1", "n2", "n3", "n4")


def pool(
    name: str,
    nodes: Sequence[str],
    *,
    gpu: int = 4,
    cpu: int = 8,
    guarantee: int | None = None,
    maximum: int | None = None,
    weight: int = 1,
    extras: int = 1,
    racks: int = 2,
    status: PoolStatus = PoolStatus.ONLINE,
) -> Pool:
    """Even nodes are of platform ``a``, odd ones of ``b``; the number gives the rack."""
    platforms: dict[str, Platform] = {}
    for label, odd in (("a", 0), ("b", 1)):
        own = [node for node in nodes if int(node[1:]) % 2 == odd]
        platforms[label] = Platform(
            label,
            tuple(
                Node(
                    node,
                    name,
                    label,
                    Resources(cpu=cpu, memory=100, storage=100, gpu=gpu, extras={"camera": extras}),
                    topology={"rack": f"r{int(node[1:]) // racks}"},
                )
                for node in own
            ),
        )
    return Pool(
        name=name,
        platforms=platforms,
        status=status,
        topology_keys=("rack",),
        gpu_guarantee=guarantee,
        gpu_maximum=maximum,
        gpu_weight=weight,
    )


def asks(count: int = 1, *, platforms: tuple[str, ...] = ("a", "b"), **amounts: float) -> tuple[TaskRequest, ...]:
    return tuple(TaskRequest(f"t{i}", Resources(**amounts), platforms) for i in range(count))  # type: ignore[arg-type]


def waiting(
    name: str,
    requests: tuple[TaskRequest, ...],
    *,
    priority: Priority = Priority.NORMAL,
    at: float = 0.0,
    where: str = "p",
    timeout: float | None = None,
) -> Waiting:
    return Waiting(name, "g", where, priority, at, None, frozenset(), f"user-{name}", timeout, requests)


@dataclass
class World:
    """A queue and what runs, as the scheduler keeps them; each step checks what must always hold."""

    pools: dict[str, Pool]
    now: float = 0.0
    queue: dict[str, Waiting] = field(default_factory=dict)
    running: dict[str, Holding] = field(default_factory=dict)
    was: dict[str, Waiting] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    started: dict[str, float] = field(default_factory=dict)
    preempted: list[str] = field(default_factory=list)

    def submit(self, entry: Waiting) -> None:
        self.queue[entry.workflow_id] = entry
        self.was[entry.workflow_id] = entry

    def step(self) -> Decisions:
        queue, running = list(self.queue.values()), list(self.running.values())
        made = decide(self.pools, queue, running, self.now, self.memory)
        afresh = decide(self.pools, queue[::-1], running[::-1], self.now)
        for one, other in zip(
            (made.placed, made.preempt, made.reservations, made.verdicts),
            (afresh.placed, afresh.preempt, afresh.reservations, afresh.verdicts),
            strict=True,
        ):
            assert one == other, "the memory and the order in which things are told change nothing"
        self.check(made)
        for victim in made.preempt:
            self.running[victim.victim.workflow_id] = replace(victim.victim, ending=True)
            self.preempted.append(victim.victim.workflow_id)
        for placing in made.placed:
            name = placing.waiting.workflow_id
            del self.queue[name]
            self.running[name] = placing.holding(self.now)
            self.started.setdefault(name, self.now)
        self.capacity()
        return made

    def end(self, name: str) -> None:
        gone = self.running.pop(name)
        if gone.ending and name in self.preempted:
            self.queue[name] = self.was[name]

    def check(self, made: Decisions) -> None:
        """Whole groups, on nodes that they may use, within quotas; and only LOW groups leave, for somebody's good."""
        assert {placing.waiting.key for placing in made.placed}.isdisjoint(made.verdicts)
        assert len(made.placed) + len(made.verdicts) == len(self.queue)
        for placing in made.placed:
            entry = placing.waiting
            assert self.pools[entry.pool].status is not PoolStatus.OFFLINE
            assert sorted(part.task for part in placing.held) == sorted(wanted.task for wanted in entry.requests)
            nodes = {node.name: node for node in self.pools[entry.pool].nodes}
            wanted = {request.task: request for request in entry.requests}
            shared: dict[tuple[str, str], set[str]] = {}
            for part in placing.held:
                request = wanted[part.task]
                assert part.node not in request.nodes_excluded
                assert nodes[part.node].platform == part.platform
                assert part.platform in request.platforms
                assert part.amount == request.amount
                for key, group in request.required:
                    shared.setdefault((key, group), set()).add(nodes[part.node].topology[key])
            assert all(len(values) == 1 for values in shared.values())
        self.quotas(made)
        for entry in made.preempt:
            assert entry.victim.priority is Priority.LOW
            assert not entry.victim.ending
            assert made.verdicts[entry.for_whom.key].code == "soon"
            if entry.victim.pool == entry.for_whom.pool:
                assert entry.for_whom.priority is not Priority.LOW
            else:
                lender, borrower = self.pools[entry.for_whom.pool], self.pools[entry.victim.pool]
                assert lender.gpu_guarantee is not None
                assert borrower.gpu_guarantee is not None
                held = sum(gpus(run) for run in self.running.values() if run.pool == borrower.name)
                placed = sum(gpus(run) for run in made.placed if run.waiting.pool == borrower.name)
                assert held + placed > borrower.gpu_guarantee

    def quotas(self, made: Decisions) -> None:
        for name, own in self.pools.items():
            runs = [run for run in self.running.values() if run.pool == name]
            new = [placing for placing in made.placed if placing.waiting.pool == name]
            used = sum(map(gpus, runs))
            firm = sum(gpus(run) for run in runs if run.priority is not Priority.LOW)
            for placing in new:
                used += gpus(placing)
                assert not gpus(placing) or own.gpu_maximum is None or used <= own.gpu_maximum
                if placing.waiting.guaranteed:
                    firm += gpus(placing)
                    assert not gpus(placing) or own.gpu_guarantee is None or firm <= own.gpu_guarantee

    def capacity(self) -> None:
        used: dict[str, Resources] = {}
        for run in self.running.values():
            for part in run.held:
                used[part.node] = used.get(part.node, Resources()) + part.amount
        largest: dict[str, Node] = {}
        for node in (node for own in self.pools.values() for node in own.nodes):
            if node.name not in largest or node.capacity.gpu > largest[node.name].capacity.gpu:
                largest[node.name] = node  # a pool may see a smaller part of it than another one does
        for name, node in largest.items():
            left = node.capacity - used.get(name, Resources())
            assert min(amount for _, amount in left.items()) >= 0


def gpus(run: Holding | Placing) -> int:
    return sum(part.amount.gpu for part in run.held)


requests = st.builds(
    lambda cpu, memory, gpu, camera, platforms, excluded, required, preferred: TaskRequest(
        "",
        Resources(cpu=cpu, memory=memory, storage=1, gpu=gpu, extras={"camera": 1} if camera else {}),
        platforms,
        frozenset(excluded),
        (("rack", "x"),) if required else (),
        (("rack", "y"),) if preferred else (),
    ),
    st.sampled_from([0, 1, 2, 4, 8, 0.5]),
    st.sampled_from([0, 10, 60]),
    st.integers(0, 4),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a")]),
    st.sampled_from([(), (), (), ("n0",), ("n1", "n2")]),
    st.sampled_from([False, False, True]),
    st.sampled_from([False, False, True]),
)


def numbered(members: Sequence[TaskRequest]) -> tuple[TaskRequest, ...]:
    return tuple(replace(member, task=f"t{i}") for i, member in enumerate(members))


gangs = st.lists(requests, min_size=1, max_size=4).map(numbered)
pools = st.one_of(
    st.builds(
        lambda nodes, guarantee, maximum: {
            "p": pool("p", nodes, guarantee=guarantee, maximum=None if maximum is None else maximum + (guarantee or 0)),
        },
        st.sets(st.sampled_from(NAMES), min_size=1).map(sorted),
        st.one_of(st.none(), st.integers(0, 16)),
        st.one_of(st.none(), st.integers(0, 8)),
    ),
    st.builds(
        lambda first, second, guarantees, weight, status: {
            "p": pool("p", first, guarantee=guarantees[0], weight=weight),
            "q": pool("q", second, guarantee=guarantees[1], gpu=3, cpu=6, status=status),
        },
        st.sets(st.sampled_from(NAMES), min_size=1).map(sorted),
        st.sets(st.sampled_from(NAMES), min_size=1).map(sorted),
        st.tuples(st.one_of(st.none(), st.integers(0, 8)), st.one_of(st.none(), st.integers(0, 8))),
        st.integers(1, 4),
        st.sampled_from([PoolStatus.ONLINE, PoolStatus.ONLINE, PoolStatus.OFFLINE]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(declared=pools, data=st.data())
def test_histories(declared: dict[str, Pool], data: st.DataObject) -> None:
    world = World(declared)
    for number in range(data.draw(st.integers(1, 12))):
        for extra in range(data.draw(st.integers(0, 3))):
            world.submit(
                waiting(
                    f"w{number}-{extra}",
                    data.draw(gangs),
                    priority=data.draw(st.sampled_from(Priority)),
                    at=world.now,
                    where=data.draw(st.sampled_from(sorted(declared))),
                    timeout=data.draw(st.sampled_from([None, 1.0, 5.0, 50.0])),
                )
            )
        made = world.step()
        # What is preempted is not preempted for nothing: once the victims are gone, the groups they went for run,
        # unless somebody came before them meanwhile, and nobody did.
        if made.preempt:
            after = World(declared, world.now, dict(world.queue), dict(world.running), dict(world.was))
            for name in [name for name, run in after.running.items() if run.ending]:
                after.running.pop(name)
            got = {placing.waiting.key for placing in after.step().placed}
            assert {entry.for_whom.key for entry in made.preempt} <= got
        if world.running and data.draw(st.booleans()):
            world.end(data.draw(st.sampled_from(sorted(world.running))))
        world.now += data.draw(st.sampled_from([0.0, 1.0, 3.0]))


def possible(members: Sequence[TaskRequest], nodes: Sequence[Node]) -> bool:
    """By trying everything."""
    for choice in itertools.product(nodes, repeat=len(members)):
        used: dict[str, Resources] = {}
        racks: dict[tuple[str, str], set[str]] = {}
        good = True
        for member, node in zip(members, choice, strict=True):
            good = good and node.platform in member.platforms and node.name not in member.nodes_excluded
            used[node.name] = used.get(node.name, Resources()) + member.amount
            for pair in member.required:
                racks.setdefault(pair, set()).add(node.topology[pair[0]])
        good = good and all(len(values) == 1 for values in racks.values())
        if good and all(
            min(amount for _, amount in (node.free - used[node.name]).items()) >= 0
            for node in nodes
            if node.name in used
        ):
            return True
    return False


@settings(max_examples=200, deadline=None)
@given(
    members=st.lists(requests, min_size=1, max_size=5).map(numbered),
    used=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=5, max_size=5),
    count=st.integers(1, 5),
)
def test_a_small_group_is_placed_exactly_when_it_is_possible(
    members: tuple[TaskRequest, ...], used: list[tuple[int, int]], count: int
) -> None:
    nodes = [
        node.taking(Resources(cpu=used[int(node.name[1:])][0], gpu=used[int(node.name[1:])][1]))
        for node in pool("p", NAMES[:count]).nodes
    ]
    assert isinstance(place(members, nodes), Placement) == possible(members, nodes)


@settings(max_examples=100, deadline=None)
@given(members=gangs, held=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 4)), max_size=5))
def test_what_is_freed_is_never_to_the_disadvantage_of_the_first(
    members: tuple[TaskRequest, ...], held: list[tuple[str, int]]
) -> None:
    own = {"p": pool("p", NAMES)}
    platform = {node.name: node.platform for node in own["p"].nodes}
    runs = []
    for number, (node, gpu) in enumerate(held):
        part = (Held("t", platform[node], node, Resources(gpu=gpu)),)
        if sum(gpus(run) for run in runs if run.held[0].node == node) + gpu <= 4:
            runs.append(
                Holding(f"r{number}", "g", "p", Priority.NORMAL, part, since=float(number), until=100.0 + number)
            )
    head = waiting("head", members)
    before = decide(own, [head], runs, 0.0)
    for left in range(len(runs)):
        after = decide(own, [head], runs[:left] + runs[left + 1 :], 0.0)
        assert len(after.placed) >= len(before.placed)
        if before.reservations and after.reservations:
            soon, sooner = before.reservations[0].at, after.reservations[0].at
            assert soon is not None
            assert sooner is not None
            assert sooner <= soon


@settings(max_examples=60, deadline=None)
@given(low=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=6), gpu=st.integers(1, 4))
def test_as_few_as_possible_leave_and_of_those_the_youngest(low: list[tuple[int, int]], gpu: int) -> None:
    own = {"p": pool("p", NAMES, guarantee=20)}
    platform = {node.name: node.platform for node in own["p"].nodes}
    left = dict.fromkeys(NAMES, 4)
    runs = []
    for number, (node, amount) in enumerate(low):
        if left[NAMES[node]] >= amount:
            left[NAMES[node]] -= amount
            part = (Held("t", platform[NAMES[node]], NAMES[node], Resources(gpu=amount)),)
            runs.append(Holding(f"r{number}", "g", "p", Priority.LOW, part, since=float(number)))
    head = waiting("head", asks(5, gpu=gpu))

    def fits(gone: Sequence[Holding]) -> bool:
        free = dict.fromkeys(NAMES, 4)
        for run in runs:
            if run not in gone:
                free[run.held[0].node] -= run.held[0].amount.gpu
        return sum(amount // gpu for amount in free.values()) >= 5

    made = decide(own, [head], runs, 0.0)
    if fits(()):
        assert len(made.placed) == 1
        return
    youngest = runs[::-1]
    best = next(
        gone for size in range(1, len(runs) + 1) for gone in itertools.combinations(youngest, size) if fits(gone)
    )
    assert [entry.victim for entry in made.preempt] == list(best)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), bounded=st.booleans(), size=st.integers(2, 5))
def test_a_large_group_is_not_starved_by_small_ones(seed: int, bounded: bool, size: int) -> None:
    """New small groups come for ever, each of which fits at once."""
    world = World({"p": pool("p", NAMES)})
    limit = 7.0 if bounded else None
    ends: dict[str, float] = {}
    for number in range(60):
        for extra in range(3):
            length = 1 + (seed * 7 + number * 3 + extra * 5) % 6
            name = f"s{number}-{extra}"
            world.submit(waiting(name, asks(gpu=1 + (seed + number + extra) % 4), at=world.now, timeout=limit))
            ends[name] = float(length)
        if number == 5:
            world.submit(waiting("large", asks(size, gpu=4), at=world.now, timeout=limit))
        world.step()
        for name, run in list(world.running.items()):
            if name != "large" and run.since + ends[name] <= world.now:
                world.end(name)
        world.now += 1
        if "large" in world.started:
            break
    # What was queued before it has at most 15 places of 7 time units each, on 5 nodes.
    assert "large" in world.started
