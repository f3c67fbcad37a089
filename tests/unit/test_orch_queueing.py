"""Decisions over several pools, one rule at a time, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from casstore_orchestrator.gang import TaskRequest
from casstore_orchestrator.pools import Machine, Pool, Resources, parse_pools
from casstore_orchestrator.queueing import Decisions, decide
from casstore_orchestrator.reasons import Why, explain
from casstore_orchestrator.status import Priority
from casstore_orchestrator.waiting import Holding, Waiting

GIB = 1 << 30
MACHINE = Machine("laptop", Resources(cpu=16, memory=64 * GIB, storage=100 * GIB, gpu=0))
HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


def pools(**declared: dict[str, Any]) -> dict[str, Pool]:
    found = parse_pools(
        {name: {"platforms": {"a40": {"gpu": 4, "nodes": ["n1", "n2"]}}, **rest} for name, rest in declared.items()},
        MACHINE,
    )
    return {name: found[name] for name in declared}


def group(
    name: str,
    gpus: int,
    *,
    tasks: int = 1,
    where: str = "p",
    priority: Priority = NORMAL,
    at: float = 0.0,
    limit: float | None = None,
) -> Waiting:
    requests = tuple(TaskRequest(f"t{i}", Resources(cpu=1, gpu=gpus), ("a40",)) for i in range(tasks))
    return Waiting(name, "g", where, priority, at, None, frozenset(), f"user-{name}", limit, requests)


def run(own: dict[str, Pool], *entries: Waiting, since: float = 0.0) -> list[Holding]:
    """Have these run."""
    made = decide(own, entries, (), since)
    assert len(made.placed) == len(entries)
    return [placing.holding(since) for placing in made.placed]


def placed(made: Decisions) -> list[str]:
    return [placing.waiting.workflow_id for placing in made.placed]


def victims(made: Decisions) -> list[tuple[str, str]]:
    return [(entry.victim.workflow_id, entry.for_whom.workflow_id) for entry in made.preempt]


def why(made: Decisions, entry: Waiting) -> Why:
    return explain(made.source, entry, made.verdicts[entry.key])


def test_a_pool_takes_back_what_another_one_borrowed_and_no_more() -> None:
    own = pools(p={"gpu_guarantee": 4}, q={"gpu_guarantee": 4})
    runs = run(own, *[group(f"low{i}", 2, where="q", priority=LOW, at=i) for i in range(4)])
    made = decide(own, [group("mine", 4)], runs, 10.0)
    assert len(made.preempt) == 2
    assert {entry.victim.pool for entry in made.preempt} == {"q"}
    left = [held for held in runs if held.key not in {entry.victim.key for entry in made.preempt}]
    more = [*left, *run(own, group("mine", 4))]
    # Pool q now has what is guaranteed to it, and p may not have more than that.
    assert not decide(own, [group("again", 2)], more, 11.0).preempt
    assert not decide(own, [group("greedy", 2, priority=LOW)], more, 11.0).preempt


def test_low_groups_borrow_and_a_maximum_ends_that() -> None:
    own = pools(p={"gpu_guarantee": 2, "gpu_maximum": 5})
    made = decide(own, [group(f"w{i}", 2, priority=LOW, at=i) for i in range(4)], (), 0.0)
    assert placed(made) == ["w0", "w1"]
    assert why(made, group("w2", 2, priority=LOW, at=2)).code == "maximum"


def test_who_has_the_gpus_of_a_limit_is_named() -> None:
    own = pools(p={"gpu_guarantee": 2, "gpu_maximum": 4})
    runs = run(own, group("low", 2, priority=LOW), group("firm", 2))
    made = decide(own, [group("more", 1, at=5), group("cheap", 2, priority=LOW, at=6)], runs, 5.0)
    quota = why(made, group("more", 1, at=5))
    assert (quota.code, [holder.workflow_id for holder in quota.lacks[0].holders]) == ("quota", ["firm"])
    assert quota.line.endswith("the quota of pool 'p': 2 of 2 are in use; held by firm of user-firm (gpu 2)")
    maximum = why(made, group("cheap", 2, priority=LOW, at=6))
    assert (maximum.code, maximum.lacks[0].missing) == ("maximum", 2)
    assert "held by firm of user-firm (gpu 2), low of user-low (gpu 2)" in maximum.line


def test_weights_share_what_can_be_borrowed() -> None:
    own = pools(p={"gpu_guarantee": 0, "gpu_weight": 3}, q={"gpu_guarantee": 0})
    queue = [group(f"{where}{i}", 1, where=where, priority=LOW, at=i) for where in "pq" for i in range(8)]
    made = decide(own, queue, (), 0.0)
    assert sum(name.startswith("p") for name in placed(made)) == 6


def test_normal_preempts_low_of_its_pool_but_never_normal() -> None:
    own = pools(p={})
    runs = run(own, group("low", 4, priority=LOW), group("firm", 4))
    made = decide(own, [group("new", 4, at=5)], runs, 5.0)
    assert victims(made) == [("low", "new")]
    assert "its nodes are being cleared of low (g)" in why(made, group("new", 4, at=5)).line
    assert not decide(own, [group("new", 4, tasks=2, at=5)], runs, 5.0).preempt
    assert not decide(own, [group("new", 4, priority=LOW, at=5)], runs, 5.0).preempt


def test_small_groups_overtake_only_if_they_end_in_time() -> None:
    own = pools(p={})
    runs = run(own, group("first", 4, limit=100.0))
    large = group("large", 4, tasks=2, at=1)
    made = decide(own, [large, group("long", 1, at=2, limit=200.0), group("short", 1, at=3, limit=50.0)], runs, 10.0)
    assert placed(made) == ["short"]
    assert why(made, large).starts_by == 100.0
    behind = why(made, group("long", 1, at=2, limit=200.0))
    assert (behind.code, behind.behind, behind.before) == ("behind", "large", 1)
    assert "waits behind large (g)" in behind.line


def test_the_reason_names_task_resource_amount_and_holder() -> None:
    own = pools(p={})
    runs = run(own, group("first", 3), group("second", 3))
    large = group("large", 2, tasks=2, at=1)
    told = why(decide(own, [large], runs, 10.0), large)
    assert told.task == "t0"
    assert told.lacks[0].resource == "gpu"
    assert told.lacks[0].missing == 1
    assert told.lacks[0].holders[0].user in {"user-first", "user-second"}
    assert "lacks gpu 1; held by" in told.line
    assert told.line.count("user-") == 1


@pytest.mark.parametrize(
    ("entry", "code"),
    [(group("w", 5), "never"), (group("w", 1, tasks=9), "never"), (group("w", 1, where="x"), "undeclared")],
)
def test_what_can_never_run_holds_up_nobody(entry: Waiting, code: str) -> None:
    own = pools(p={})
    made = decide(own, [entry, group("small", 4, tasks=2, at=9)], (), 0.0)
    assert placed(made) == ["small"]
    assert why(made, entry).code == code


def test_a_named_node_is_one_node_for_all_pools_and_a_numbered_one_is_not() -> None:
    shared = pools(p={}, q={})
    made = decide(shared, [group("one", 4, tasks=2), group("other", 1, where="q", at=1)], (), 0.0)
    assert placed(made) == ["one"]
    numbered = {"platforms": {"a40": {"gpu": 4, "nodes": 2}}}
    apart = parse_pools({"p": numbered, "q": numbered}, MACHINE)
    made = decide(apart, [group("one", 4, tasks=2), group("other", 1, where="q", at=1)], (), 0.0)
    assert placed(made) == ["one", "other"]
