"""The scheduler at sizes that no machine here has: a pass over a long queue, and a week of work in virtual time."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

from casstore_orchestrator.gang import TaskRequest
from casstore_orchestrator.pools import Node, Platform, Pool, Resources
from casstore_orchestrator.queueing import decide
from casstore_orchestrator.simulator.report import report
from casstore_orchestrator.simulator.traces import generate
from casstore_orchestrator.simulator.world import simulate
from casstore_orchestrator.status import Priority
from casstore_orchestrator.waiting import Holding, Memory, Waiting

__all__ = ["passes", "week"]

_KINDS = (
    ("a40", 0.5, Resources(cpu=64, memory=512 << 30, storage=4 << 40, gpu=8)),
    ("h100", 0.3, Resources(cpu=128, memory=2 << 40, storage=8 << 40, gpu=8)),
    ("orin", 0.2, Resources(cpu=8, memory=32 << 30, storage=1 << 40, gpu=1)),
)


def _pools(nodes: int, count: int = 4) -> dict[str, Pool]:
    """Pools of three platforms, each of them in twenty racks."""
    pools = {}
    for name in (f"pool{number}" for number in range(count)):
        platforms = {}
        for label, share, size in _KINDS:
            own = int(nodes // count * share)
            racks = [{"rack": f"{label}-{rack}"} for rack in range(20)]
            members = tuple(
                Node(f"{label}-{number}", name, label, size, topology=racks[number * 20 // own], numbered=True)
                for number in range(own)
            )
            platforms[label] = Platform(label, members)
        pools[name] = Pool(name, platforms, topology_keys=("rack",), gpu_guarantee=nodes // count * 5)
    return pools


def _queue(groups: int, seed: int) -> list[Waiting]:
    """Groups of 1 to 9 tasks: a tenth over two platforms, a twentieth in one rack."""
    source, queue = random.Random(seed), []
    for number in range(groups):
        label = source.choice(("a40", "a40", "h100", "orin"))
        gpu = source.choice((0, 1)) if label == "orin" else source.choice((1, 1, 2, 4, 8))
        cpu, memory = source.choice((1, 2, 4)), source.choice((1, 4, 8)) << 30
        amount = Resources(cpu=cpu, memory=memory, storage=1 << 30, gpu=gpu)
        count = source.choice((1, 1, 1, 2, 2, 2, 4, 4, 8, 8))
        rack = (("rack", "x"),) if source.random() < 0.05 else ()
        tasks = [TaskRequest(f"t{task}", amount, (label,), required=rack) for task in range(count)]
        if source.random() < 0.1:
            tasks.append(TaskRequest("edge", Resources(cpu=1, memory=1 << 30, storage=1 << 30), ("orin",)))
        priority = source.choice((Priority.HIGH, Priority.NORMAL, Priority.NORMAL, Priority.LOW))
        limit = source.choice((3600.0, 7200.0, 86400.0))
        where = f"pool{source.randrange(4)}"
        name = f"w{seed}-{number}"
        queue.append(
            Waiting(name, "g", where, priority, seed * 1e6 + number, None, frozenset(), "u", limit, tuple(tasks))
        )
    return queue


def passes(nodes: int = 10_000, groups: int = 30_000, rounds: int = 5) -> str:
    """A table: the first pass on empty nodes, then passes on full ones where a fiftieth of what runs has ended."""
    pools, queue, memory = _pools(nodes), _queue(groups, 1), Memory()
    memory.follow(pools, queue, ())
    for entry in queue:  # as the scheduler does when a group is queued
        memory.ask(entry, pools[entry.pool])
    lines = [
        "| pass | tasks waiting | groups placed | tasks placed | wall s | CPU s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    holdings: list[Holding] = []
    for number in range(rounds + 1):
        kept = [held for at, held in enumerate(holdings) if at % 50 != number]
        waiting = sum(len(entry.requests) for entry in queue)
        wall, cpu = time.perf_counter(), time.process_time()
        made = decide(pools, queue, kept, 100.0 * number, memory)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        what = f"{nodes:,} nodes, " + ("full" if number else "empty")
        tasks = sum(len(placing.held) for placing in made.placed)
        lines.append(f"| {what} | {waiting:,} | {len(made.placed):,} | {tasks:,} | {wall:.2f} | {cpu:.2f} |")
        holdings = kept + [placing.holding(100.0 * number) for placing in made.placed]
        gone = {placing.key for placing in made.placed}
        queue = [entry for entry in queue if entry.key not in gone]
        queue += _queue(groups - len(queue), number + 2)
        for entry in queue:
            memory.ask(entry, pools[entry.pool])
    return "\n".join(lines)


def week(nodes: int = 1_000, days: float = 7.0, loads: Sequence[float] = (0.7, 0.95)) -> str:
    """A table: made-up weeks on two pools that share their nodes."""
    lines = [
        (
            "| load | groups | tasks | GPUs in use | lost | possible | waited, s: HIGH, NORMAL, LOW | over 8 GPUs "
            "| preempted | fairness of users | passes | ms a pass | placements/s | wall s |"
        ),
        "|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    size = Resources(cpu=128, memory=1 << 40, storage=4 << 40, gpu=8)
    names = [f"n{number}" for number in range(nodes)]
    pools = {}
    for name in ("vision", "control"):
        members = tuple(Node(node, name, "gpu", size) for node in names)
        pools[name] = Pool(
            name,
            {"gpu": Platform("gpu", members)},
            default_platform="gpu",
            gpu_guarantee=nodes * 4,
            gpu_maximum=nodes * 8,
        )
    for load in loads:
        jobs = generate(1, pools, seconds=days * 86400, load=load)
        begun = time.perf_counter()
        found = report(simulate(pools, jobs, every=60.0))
        wall = time.perf_counter() - begun
        waits = {kind.name: kind.mean for kind in found.waits}
        by_priority = ", ".join(f"{waits.get(name, 0):.0f}" for name in ("HIGH", "NORMAL", "LOW"))
        largest = statistics.fmean(kind.mean for kind in found.waits if "more" in kind.name or "64" in kind.name)
        lines.append(
            f"| {load:.0%} | {found.groups:,} | {found.tasks:,} | {found.utilisation:.1%} | {found.lost:.1%} "
            f"| {found.possible:.1%} "
            f"| {by_priority} | {largest:.0f} | {found.preemptions:,} | {found.fair_users:.3f} | {found.passes:,} "
            f"| {1000 * found.pass_mean:.0f} | {found.decisions:.0f} | {wall:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(passes())
    print()
    print(week())
