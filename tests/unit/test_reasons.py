"""What somebody is told of others when their work waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert

from casstore_orchestrator.reasons import Holder, Lack, Why
from casstore_server.db import schema
from casstore_server.db.engine import open_database
from casstore_server.db.store import Database
from casstore_server.identity.actions import Grants, Policy
from casstore_server.identity.caller import Caller
from casstore_server.services.reasons import visible, visible_text

LINE = (
    "task 'one' (2 GPUs): no node has room; held by train-1 of lena (4 GPUs), secret-plan-7 of max (2 GPUs); "
    "waits behind secret-plan-7 (main), which asks for the same; on node-1; its nodes are being cleared of gone-3"
)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Any]:
    database = Database(open_database(tmp_path / "db"))
    with database.writing() as connection:
        for name, number, pool in (("train", 1, "gpu"), ("secret-plan", 7, "other")):
            connection.execute(
                insert(schema.workflow).values(
                    id=f"{name}-{number}", uuid=name, name=name, number=number, user="u", pool=pool, status="RUNNING",
                    priority="NORMAL", submit_time=1.0, live=1, record="{}", spec="{}", spec_text="",
                )
            )  # fmt: skip
    yield SimpleNamespace(database=database)
    database.close()


def caller(*resources: str) -> Caller:
    return Caller("ada", grants=Grants(policies=(Policy(("workflow:Read",), resources),)))


def why() -> Why:
    holders = tuple(
        Holder(workflow_id=name, group="main", user="u", pool=pool, priority="NORMAL", amount=1)
        for name, pool in (("train-1", "gpu"), ("secret-plan-7", "other"))
    )
    lacks = (Lack(resource="gpu", missing=2, node="node-1", holders=holders),)
    return Why(code="nodes", line=LINE, group="main", lacks=lacks, behind="secret-plan-7")


def test_workflows_of_other_pools_are_not_named(services: Any) -> None:
    shown = visible(services, caller("pool/gpu"), why())
    assert shown.line == (
        "task 'one' (2 GPUs): no node has room; held by train-1 of lena (4 GPUs), another workflow (2 GPUs); "
        "waits behind another workflow, which asks for the same; on node-1; its nodes are being cleared of gone-3"
    )
    assert [holder.workflow_id for holder in shown.lacks[0].holders] == ["train-1"]
    assert shown.behind is None
    assert visible_text(services, caller("pool/nothing"), "behind train-1 (main)") == "behind another workflow"


def test_who_may_read_all_is_told_all(services: Any) -> None:
    for one in (caller("*"), caller("pool/*"), caller("pool/gpu", "pool/oth*"), Caller("ada")):
        assert visible(services, one, why()) == why()
