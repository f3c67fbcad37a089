from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import SpecError
from casstore_orchestrator.gang import (
    Pending,
    Placement,
    TaskRequest,
    group_requests,
    place,
    task_request,
    validate_fit,
)
from casstore_orchestrator.loader import load
from casstore_orchestrator.pools import Machine, Node, Pool, Resources, parse_pools
from casstore_orchestrator.spec import WorkflowSpec
from casstore_orchestrator.status import Priority

GIB = 1 << 30
MACHINE = Machine("laptop", Resources(cpu=4, memory=16 * GIB, storage=100 * GIB, gpu=0))
TWO = {
    "platforms": {
        "ovx-a40": {"gpu": 1, "nodes": 2},
        "agx-orin-jp6": {"cpu": 2, "memory": "8Gi"},
    },
    "default_platform": "agx-orin-jp6",
    "topology_keys": ["rack"],
}


def pool(**changes: Any) -> Pool:
    return parse_pools({"robots": {**TWO, **changes}}, MACHINE)["robots"]


def node(name: str, platform: str = "p", **amounts: Any) -> Node:
    capacity = Resources(**{"cpu": 4, "memory": 100, "storage": 100, "gpu": 0, **amounts})
    return Node(name=name, pool="x", platform=platform, capacity=capacity)


def request(task: str, *platforms: str, **amounts: Any) -> TaskRequest:
    return TaskRequest(task=task, amount=Resources(**amounts), platforms=platforms or ("p",))


def spec(resources: str, *, tasks: str = "", groups: bool = False) -> WorkflowSpec:
    task = "- {name: t, image: i, command: [x], resource: r, lead: true" + tasks + "}"
    body = f"  groups:\n  - name: g\n    tasks:\n    {task}\n" if groups else f"  tasks:\n  {task}\n"
    return load(f"workflow:\n  name: w\n  resources: {{r: {resources}}}\n{body}").spec


def chosen(result: Placement | Pending) -> dict[str, str]:
    assert isinstance(result, Placement), result
    return {task: found.name for task, found in result.nodes.items()}


def pending(result: Placement | Pending) -> Pending:
    assert isinstance(result, Pending), result
    return result


def test_a_heterogeneous_gang_is_placed_together() -> None:
    result = place([request("gpu", "a", gpu=1), request("edge", "b", cpu=1)], [node("n", "b"), node("m", "a", gpu=1)])
    assert chosen(result) == {"gpu": "m", "edge": "n"}


def test_all_or_none() -> None:
    result = pending(place([request("one", gpu=1), request("two", gpu=1)], [node("n", gpu=1)]))
    assert "lacks gpu 1" in result.reason
    assert "beside 1 other task of its group" in result.reason


def test_what_is_in_use_counts_and_the_reason_says_how_much_is_missing() -> None:
    busy = node("n").taking(Resources(cpu=3, memory=90))
    result = pending(place([request("t", cpu=2, memory=50)], [busy]))
    assert result.task == "t"
    assert {(short.node, short.resource, short.missing) for short in result.shortages} == {
        ("n", "cpu", 1.0),
        ("n", "memory", 40),
    }
    assert result.reason.endswith("'n' lacks cpu 1, memory 40")


def test_declared_extras_count() -> None:
    nodes = [node("n", extras={"camera": 1})]
    assert chosen(place([request("t", extras={"camera": 1})], nodes)) == {"t": "n"}
    assert "camera 1" in pending(place([request("t", extras={"camera": 2})], nodes)).reason
    assert "arm 1" in pending(place([request("t", extras={"arm": 1})], nodes)).reason


def test_storage_is_never_given_away_whole() -> None:
    assert chosen(place([request("t", storage=99, cpu=4, memory=100)], [node("n")])) == {"t": "n"}
    assert "storage" in pending(place([request("t", storage=100)], [node("n")])).reason


def test_excluded_nodes() -> None:
    excluded = TaskRequest("t", Resources(cpu=1), ("p",), nodes_excluded=frozenset({"n"}))
    assert chosen(place([excluded], [node("n"), node("m")])) == {"t": "m"}
    assert "every node of platform 'p' is excluded" in pending(place([excluded], [node("n")])).reason


def test_greed_alone_would_fail_here() -> None:
    # Largest first onto the first node gives 6+5 and 5+4, and no room for the last 4; 5+4+4 and 6+5 works.
    hard = [request(f"t{i}", cpu=size) for i, size in enumerate([6, 5, 5, 4, 4])]
    assert isinstance(place(hard, [node("a", cpu=13), node("b", cpu=11)]), Placement)


def test_topology_keeps_tasks_together() -> None:
    def racked(name: str, rack: str, cpu: int) -> Node:
        return Node(name, "x", "p", Resources(cpu=cpu, storage=1), topology={"rack": rack})

    nodes = [racked("a1", "a", 2), racked("b1", "b", 2), racked("b2", "b", 2)]
    together = [TaskRequest(f"t{i}", Resources(cpu=2), ("p",), required=(("rack", "default"),)) for i in range(2)]
    assert set(chosen(place(together, nodes)).values()) == {"b1", "b2"}
    apart = [TaskRequest(f"t{i}", Resources(cpu=2), ("p",), required=(("rack", "default"),)) for i in range(3)]
    pending(place(apart, nodes))
    wished = [TaskRequest(f"t{i}", Resources(cpu=2), ("p",), preferred=(("rack", "default"),)) for i in range(3)]
    assert isinstance(place(wished, nodes), Placement)


def test_nothing_to_place() -> None:
    assert chosen(place([], [])) == {}


def test_a_large_gang_of_equals_is_placed_at_once() -> None:
    nodes = [node(f"n{index}", gpu=8) for index in range(100)]
    assert len(chosen(place([request(f"t{index}", gpu=1) for index in range(800)], nodes))) == 800
    pending(place([request(f"t{index}", gpu=1) for index in range(801)], nodes))


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    capacities=st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
def test_small_gangs_are_placed_exactly_when_it_is_possible(sizes: list[int], capacities: list[int]) -> None:
    nodes = [node(f"n{index}", cpu=cpu) for index, cpu in enumerate(capacities)]
    requests = [request(f"t{index}", cpu=size) for index, size in enumerate(sizes)]
    possible = any(
        all(
            sum(size for size, at in zip(sizes, choice, strict=True) if at == index) <= cpu
            for index, cpu in enumerate(capacities)
        )
        for choice in itertools.product(range(len(capacities)), repeat=len(sizes))
    )
    result = place(requests, nodes)
    assert isinstance(result, Placement) == possible
    if isinstance(result, Placement):
        for index, cpu in enumerate(capacities):
            placed = [task for task, found in result.nodes.items() if found.name == f"n{index}"]
            assert sum(sizes[int(task[1:])] for task in placed) <= cpu
        assert len(result.nodes) == len(sizes)


# --- requests of a specification


def test_defaults_of_the_platform_fill_what_is_left_out() -> None:
    workflow = spec("{gpu: 1, platform: ovx-a40}")
    wanted = task_request(workflow, workflow.tasks[0], pool())
    assert wanted.platforms == ("ovx-a40",)
    assert wanted.amount == Resources(cpu=1, memory=GIB, storage=GIB, gpu=1)


def test_a_task_without_platform_goes_to_one_that_fits() -> None:
    small, large = spec("{cpu: 1}"), spec("{gpu: 1}")
    assert task_request(small, small.tasks[0], pool()).platforms == ("agx-orin-jp6",)
    assert task_request(large, large.tasks[0], pool()).platforms == ("ovx-a40",)


def test_a_platform_that_is_not_declared_says_how_to_declare_it() -> None:
    workflow = spec("{platform: gb200}")
    with pytest.raises(SpecError, match="platform 'gb200' does not exist in pool 'robots'") as caught:
        task_request(workflow, workflow.tasks[0], pool())
    assert "osmo pool declare robots --platform gb200" in str(caught.value.hint)


def test_no_platform_and_no_default() -> None:
    workflow = spec("{cpu: 1}")
    with pytest.raises(SpecError, match="does not have a platform"):
        task_request(workflow, workflow.tasks[0], pool(default_platform=None))


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ("{cpu: 64}", r"workflow\.resources\.r: value too high for cpu: task 't'"),
        ("{memory: 1Ti}", "too high for memory"),
        ("{storage: 100Gi}", "too high for storage"),
        ("{gpu: 2, platform: ovx-a40}", "too high for gpu"),
        ("{nodesExcluded: [agx-orin-jp6-1]}", "is excluded|lacks"),
        ("{topology: [{key: room}]}", "'room' is not a topology key"),
    ],
)
def test_what_can_never_fit_is_refused(resources: str, problem: str) -> None:
    if "Excluded" in resources:
        only = parse_pools({"robots": {"platforms": {"agx-orin-jp6": {}}}}, MACHINE)["robots"]
    else:
        only = pool()
    with pytest.raises(SpecError, match=problem):
        validate_fit(spec(resources), only)


def test_the_refusal_carries_a_table_of_nodes() -> None:
    with pytest.raises(SpecError) as caught:
        validate_fit(spec("{gpu: 8, cpu: 8, platform: ovx-a40}"), pool())
    lines = str(caught.value.hint).splitlines()
    assert lines[1].split() == ["node", "platform", "capacity", "reason"]
    assert lines[2].startswith("ovx-a40-1")
    assert "cpu 4 missing; gpu 7 missing" in lines[2]
    assert lines[3].startswith("ovx-a40-2")
    assert "osmo pool declare" in lines[-1]


def test_a_group_that_can_never_be_placed_whole_is_refused() -> None:
    text = "workflow:\n  name: w\n  resources: {r: {gpu: 1, platform: ovx-a40}}\n  groups:\n  - name: g\n    tasks:\n"
    for index in range(3):
        lead = ", lead: true" if index == 0 else ""
        text += f"    - {{name: t{index}, image: i, command: [x], resource: r{lead}}}\n"
    workflow = load(text).spec
    with pytest.raises(SpecError, match="group 'g' can never be placed as a whole"):
        validate_fit(workflow, pool())
    assert len(group_requests(workflow, workflow.groups[0], pool(), ["t0", "t2"])) == 2


@pytest.mark.parametrize(
    ("task", "problem", "setting"),
    [
        (", privileged: true", "does not allow privileged", "privileged_allowed: true"),
        (", hostNetwork: true", "does not allow the host's network", "host_network_allowed: true"),
        (", volumeMounts: ['/data:/x']", "volume mount '/data' is not allowed", "allowed_mounts: [/data]"),
    ],
)
def test_rights_are_the_platform_s_to_give(task: str, problem: str, setting: str) -> None:
    workflow = spec("{platform: ovx-a40}", tasks=task)
    with pytest.raises(SpecError, match=problem) as refused:
        validate_fit(workflow, pool())
    assert str(refused.value.hint).endswith(f"below casstore.pools.robots.platforms.ovx-a40: {setting}")
    allowed = {"privileged_allowed": True, "host_network_allowed": True, "allowed_mounts": ["/data"]}
    assert validate_fit(workflow, pool(platforms={"ovx-a40": allowed}, default_platform="ovx-a40"))


def test_a_quota_binds_all_but_low_priority() -> None:
    workflow = spec("{gpu: 1, platform: ovx-a40}")
    with pytest.raises(SpecError, match="more than the 0 guaranteed"):
        validate_fit(workflow, pool(gpu_guarantee=0))
    assert validate_fit(workflow, pool(gpu_guarantee=0), Priority.LOW)
