from __future__ import annotations

from typing import Any

import pytest

from casstore.errors import UsageError
from casstore_orchestrator.pools import (
    Machine,
    PoolStatus,
    Resources,
    default_pools,
    describe,
    find_pool,
    parse_pools,
    this_machine,
)

GIB = 1 << 30
MACHINE = Machine("laptop", Resources(cpu=4, memory=16 * GIB, storage=100 * GIB, gpu=0))


def test_nothing_declared_is_this_machine() -> None:
    pool = default_pools(MACHINE)["default"]
    assert pool.default_platform == "default"
    assert [(node.name, node.capacity) for node in pool.nodes] == [("laptop", MACHINE.capacity)]
    assert pool.platforms["default"].defaults == Resources()


def test_a_declaration() -> None:
    pools = parse_pools(
        {
            "robots": {
                "description": "dry run",
                "default_platform": "ovx-a40",
                "status": "offline",
                "max_exec_timeout": "1h",
                "default_exec_timeout": "2h",
                "default_exit_actions": {"RESCHEDULE": "3006"},
                "topology_keys": ["rack"],
                "platforms": {
                    "ovx-a40": {"gpu": 1, "nodes": 2, "topology": {"rack": "r1"}, "defaults": {"cpu": 2}},
                    "agx-orin-jp6": {
                        "cpu": 8,
                        "memory": "32Gi",
                        "nodes": ["left", "right"],
                        "resources": {"camera": 2},
                        "allowed_mounts": ["/data"],
                        "privileged_allowed": True,
                    },
                },
            }
        },
        MACHINE,
    )
    assert list(pools) == ["default", "robots"]
    pool = pools["robots"]
    assert pool.status is PoolStatus.OFFLINE
    assert [node.name for node in pool.nodes] == ["ovx-a40-1", "ovx-a40-2", "left", "right"]
    a40, orin = pool.platforms["ovx-a40"], pool.platforms["agx-orin-jp6"]
    assert a40.nodes[0].capacity == Resources(cpu=4, memory=16 * GIB, storage=100 * GIB, gpu=1)
    assert a40.nodes[0].topology == {"rack": "r1"}
    assert a40.defaults.cpu == 2
    assert orin.nodes[0].capacity.memory == 32 * GIB
    assert orin.nodes[0].capacity.amount("camera") == 2
    assert orin.defaults == Resources(cpu=1, memory=GIB, storage=GIB)
    assert orin.mounts == {"/data"}
    assert orin.privileged_allowed
    assert not a40.privileged_allowed
    assert pool.exec_timeout(None) == 3600
    assert pool.exec_timeout(60) == 60
    assert pool.queue_timeout(1e9) == 60 * 86400


def test_one_platform_is_the_default_platform() -> None:
    assert parse_pools({"p": {"platforms": {"x": None}}}, MACHINE)["p"].default_platform == "x"
    assert parse_pools({"p": {"platforms": {"x": {}, "y": {}}}}, MACHINE)["p"].default_platform is None


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ([], "pools: expected a mapping"),
        ({"a b": {}}, "pools: 'a b' is not a name"),
        ({"p": {"plattforms": {}}}, "pools.p: unknown key 'plattforms'"),
        ({"p": {"default_platform": "x"}}, "pools.p.default_platform: there is no platform 'x'"),
        ({"p": {"status": "gone"}}, "pools.p.status"),
        ({"p": {"max_exec_timeout": "soon"}}, "pools.p.max_exec_timeout"),
        ({"p": {"platforms": {"x": {"cpu": -1}}}}, "pools.p.platforms.x.cpu"),
        ({"p": {"platforms": {"x": {"cpu": "four"}}}}, "pools.p.platforms.x.cpu"),
        ({"p": {"platforms": {"x": {"memory": "4GB"}}}}, "pools.p.platforms.x.memory"),
        ({"p": {"platforms": {"x": {"gpu": 0.5}}}}, "pools.p.platforms.x.gpu"),
        ({"p": {"platforms": {"x": {"nodes": 10**6}}}}, "pools.p.platforms.x.nodes"),
        ({"p": {"platforms": {"x": {"nodes": ["a", "a"]}}}}, "node 'a' is declared twice"),
        ({"p": {"platforms": {"x": {"nodes": ["n"]}, "y": {"nodes": ["n"]}}}}, "node 'n' is declared twice"),
        ({"p": {"platforms": {"x": {"allowed_mounts": "/data"}}}}, "allowed_mounts: expected a list"),
        ({"p": {"platforms": {"x": {"privileged_allowed": "yes"}}}}, "privileged_allowed: expected bool"),
    ],
)
def test_a_bad_declaration_names_the_place(declared: Any, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_pools(declared, MACHINE)
    assert problem in caught.value.message


def test_finding_a_pool() -> None:
    pools = parse_pools({"closed": {"status": "MAINTENANCE"}}, MACHINE)
    assert find_pool(pools, "closed").name == "closed"
    with pytest.raises(UsageError, match="maintenance"):
        find_pool(pools, "closed", submitting=True)
    with pytest.raises(UsageError, match="'nope' does not exist"):
        find_pool(pools, "nope")


def test_amounts_add_and_take_away() -> None:
    one = Resources(cpu=0.1, memory=5, extras={"camera": 1})
    total = one + one + one
    assert total - one - one - one == Resources(extras={"camera": 0})
    assert describe(Resources(cpu=2, memory=GIB, gpu=1)) == "cpu 2, memory 1Gi, gpu 1"


def test_the_size_of_this_machine_is_plausible() -> None:
    machine = this_machine()
    assert machine.capacity.cpu >= 1
    assert machine.capacity.memory > 1 << 20
    assert machine.capacity.storage > 1 << 20
    assert default_pools(machine)["default"].nodes[0].name == machine.name


def test_quota_of_gpus() -> None:
    pool = parse_pools({"p": {"gpu_guarantee": 2, "gpu_maximum": 4, "gpu_weight": 3}}, MACHINE)["p"]
    assert (pool.gpu_guarantee, pool.gpu_maximum, pool.gpu_weight) == (2, 4, 3)
    assert parse_pools({"p": {}}, MACHINE)["p"].gpu_maximum is None


@pytest.mark.parametrize(
    ("quota", "problem"),
    [
        ({"gpu_weight": 0}, "gpu_weight: 0 is not a weight"),
        ({"gpu_guarantee": 4, "gpu_maximum": 2}, "2 is less than the guarantee of 4"),
        ({"gpu_maximum": -1}, "gpu_maximum: -1 is not a whole number"),
    ],
)
def test_a_quota_that_is_none(quota: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_pools({"p": quota}, MACHINE)


def test_a_named_node_is_the_same_in_every_pool_and_a_numbered_one_is_the_pool_s_own() -> None:
    found = parse_pools(
        {name: {"platforms": {"a": {"nodes": ["left"]}, "b": {"nodes": 2}}} for name in ("p", "q")}, MACHINE
    )
    keys = {name: [node.key for node in found[name].nodes] for name in ("p", "q")}
    assert keys == {"p": ["left", "p/b-1", "p/b-2"], "q": ["left", "q/b-1", "q/b-2"]}
