"""Pools that share a node: what clients see of its use, of what waits for it, and of who had to leave."""

from __future__ import annotations

import time
from typing import Any

import yaml

from tests.compat.conftest import HELLO, Server

GPU = HELLO.replace("  tasks:", "  resources: {default: {cpu: 1, gpu: 1, platform: a40}}\n  tasks:")


def declare(server: Server) -> None:
    platform = {"a40": {"cpu": 4, "gpu": 2, "nodes": ["left"]}}
    pools = {name: {"gpu_guarantee": 1, "platforms": platform} for name in ("lab", "team")}
    server.config_file.write_text(yaml.safe_dump({"casstore": {"pools": pools}}))


def until(server: Server, workflow_id: str, word: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: dict[str, Any] = server.get(f"/api/workflow/{workflow_id}")
        if word in (found["pending_reason"] or ""):
            return found
        time.sleep(0.01)
    raise AssertionError(found["pending_reason"])


def test_a_shared_node_is_counted_once_and_what_waits_for_it_says_so(server: Server) -> None:
    declare(server)
    for _ in range(3):
        server.submit(GPU, pool="team", priority="LOW")
    server.gang("hello-1")
    server.gang("hello-2")
    found = until(server, "hello-3", "lacks gpu 1")
    assert found["pending"][0]["lacks"][0]["resource"] == "gpu"
    holders = {holder["workflow_id"] for holder in found["pending"][0]["lacks"][0]["holders"]}
    assert holders == {"hello-1", "hello-2"}
    (row,) = server.get("/api/task", statuses="SCHEDULING")["tasks"]
    assert row["pending_reason"] == found["pending"][0]["line"]
    assert row["pending"]["task"] == "one"

    quota = server.get("/api/pool_quota", pools=["lab", "team"])
    (shared,) = quota["node_sets"]
    usage = {pool["name"]: pool["resource_usage"] for pool in shared["pools"]}
    assert usage["team"]["total_usage"] == "2"
    assert usage["lab"]["total_usage"] == "0"
    assert {pool["total_free"] for pool in usage.values()} == {"0"}
    assert quota["resource_sum"]["total_capacity"] == "2"
    nodes = server.get("/api/resources", pools=["lab", "team"])["resources"]
    assert [(node["resource_type"], node["usage_fields"]["gpu"]) for node in nodes] == [("SHARED", "2")] * 2


def test_a_pool_gets_back_what_it_lent_and_who_left_runs_again(server: Server) -> None:
    declare(server)
    for _ in range(2):
        server.submit(GPU, pool="team", priority="LOW")
        server.gang(f"hello-{_ + 1}")
    server.submit(GPU, pool="lab")
    server.finish("hello-3")
    waited = [server.services.database.load(name) for name in ("hello-1", "hello-2")]
    (back,) = [record for record in waited if len(record.groups[0].tasks) == 2]
    assert back.id == "hello-2"
    first = back.groups[0].tasks[0]
    assert (str(first.status), first.exit_code) == ("RESCHEDULED", 3006)
    assert "hello-3 (one-group, priority NORMAL)" in (first.failure_message or "")
