from __future__ import annotations

import pytest

from casstore.errors import SpecError, UsageError
from casstore_orchestrator.plan import make_plan, restart_spec
from casstore_orchestrator.spec import GroupSpec, TaskInput, TaskSpec, WorkflowSpec


def workflow(*groups: tuple[str, dict[str, list[str]]]) -> WorkflowSpec:
    """Groups of tasks with their task inputs; the first task leads."""
    return WorkflowSpec(
        name="w",
        groups=tuple(
            GroupSpec(
                name=name,
                tasks=tuple(
                    TaskSpec(name=task, lead=index == 0, inputs=tuple(TaskInput(task=before) for before in inputs))
                    for index, (task, inputs) in enumerate(tasks.items())
                ),
            )
            for name, tasks in groups
        ),
    )


def test_the_order_of_declaration_does_not_matter() -> None:
    plan = make_plan(workflow(("c", {"c1": ["a2", "b1"]}), ("b", {"b1": ["a1"]}), ("a", {"a1": [], "a2": []})))
    assert list(plan.groups) == ["a", "b", "c"]
    assert plan.groups["a"].downstream == ("b", "c")
    assert plan.groups["c"].upstream == ("a", "b")
    assert plan.groups["b"].upstream == ("a",)


def test_free_groups_keep_the_order_of_the_file() -> None:
    plan = make_plan(workflow(("z", {"z1": []}), ("y", {"y1": []}), ("x", {"x1": ["z1"]})))
    assert list(plan.groups) == ["z", "y", "x"]


def test_tasks_of_other_workflows_are_no_edges() -> None:
    plan = make_plan(workflow(("a", {"a1": ["old-3:a1", "old-3:b", "old-3:b"]})))
    assert plan.groups["a"].upstream == ()
    assert plan.external == ("old-3:a1", "old-3:b")


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"task 'b1', inputs\[1\]: task input aa1 does not exist") as caught:
        make_plan(workflow(("a", {"a1": []}), ("b", {"b1": ["a1", "aa1"]})))
    assert caught.value.hint == "did you mean 'a1'?"


@pytest.mark.parametrize("before", ["a1", "a2"])
def test_a_task_can_need_neither_itself_nor_a_peer(before: str) -> None:
    with pytest.raises(SpecError, match="same group 'a'"):
        make_plan(workflow(("a", {"a1": [before], "a2": []})))


def test_a_cycle_is_named_as_a_chain() -> None:
    with pytest.raises(SpecError, match="groups wait for each other: ") as caught:
        make_plan(
            workflow(("free", {"f": []}), ("a", {"a1": ["c1", "f"]}), ("b", {"b1": ["a1"]}), ("c", {"c1": ["b1"]}))
        )
    chain = caught.value.message.rpartition(": ")[2].split(" -> ")
    assert chain[0] == chain[-1]
    assert sorted(chain[1:]) == ["a", "b", "c"]


def test_a_restart_keeps_what_did_not_complete() -> None:
    spec = workflow(("a", {"a1": []}), ("b", {"b1": ["a1"]}), ("c", {"c1": ["a1", "b1", "old-1:x"]}))
    rest = restart_spec(spec, "w-7", frozenset({"a"}))
    assert [group.name for group in rest.groups] == ["b", "c"]
    assert rest.task("c1").inputs == (TaskInput(task="w-7:a1"), TaskInput(task="b1"), TaskInput(task="old-1:x"))
    assert list(make_plan(rest).groups) == ["b", "c"]
    rest = restart_spec(spec, "w-7", frozenset({"a"}), frozenset({"a1"}))
    assert rest.task("b1").inputs == (TaskInput(task="w-7:a1", optional=True),)
    with pytest.raises(UsageError, match="no group to run again"):
        restart_spec(spec, "w-7", frozenset({"a", "b", "c"}))
