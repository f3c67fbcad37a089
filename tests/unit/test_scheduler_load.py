"""Many queued workflows cost nothing while nothing happens: statements are counted, never time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from casstore_orchestrator.pools import Machine, Resources, parse_pools
from casstore_orchestrator.scheduler import LEASE, Scheduler
from casstore_orchestrator.scripted_agents import ScriptedAgents, ScriptedMachine
from casstore_orchestrator.spec import GroupSpec, TaskSpec, WorkflowSpec
from casstore_orchestrator.state import new_workflow
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.store import Database

QUEUED = 200
POOLS = parse_pools(
    {"default": {"status": "OFFLINE"}}, Machine("box", Resources(cpu=4, memory=1 << 36, storage=1 << 40))
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_233_600.0

    def time(self) -> float:
        return self.now


class NoLogs:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        found = Database(open_database(tmp_path / "server.sqlite"))
    else:
        found = Database(open_postgres(request.getfixturevalue("postgres")()))
    yield found
    found.close()


def queue(scheduler: Scheduler, count: int) -> None:
    task = TaskSpec(name="a", command=("true",), lead=True)
    spec = WorkflowSpec(name="wf", groups=(GroupSpec(name="g", tasks=(task,)),))
    for _ in range(count):
        scheduler.submit(new_workflow(spec, uuid=uuid.uuid4().hex, user="tester", pool=POOLS["default"]))


def test_an_idle_step_makes_the_same_few_statements_however_many_wait(database: Database) -> None:
    clock, logs = Clock(), NoLogs()
    agents: Any = ScriptedAgents(ScriptedMachine())
    untyped: Any = logs
    scheduler = Scheduler(database, agents, lambda: POOLS, untyped, clock=clock, alone=not database.shared)
    agents.follow(scheduler)
    scheduler.tick()
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))

    def step(seconds: float) -> list[str]:
        clock.now += seconds
        statements.clear()
        assert scheduler.tick()
        return list(statements)

    queue(scheduler, 1)
    step(0)
    few = step(0.5), step(LEASE / 3)
    queue(scheduler, QUEUED)
    step(0)
    many = step(0.5), step(LEASE / 3)
    assert [len(found) for found in few] == [len(found) for found in many]
    assert len(many[0]) <= 1, "between two heartbeats nothing but a look for news"
    assert len(many[1]) <= 5, many[1]
    scheduler.stop()


def test_another_server_hears_of_each_change_by_a_row(postgres: Callable[[], str]) -> None:
    database = Database(open_postgres(postgres()))
    clock, machine = Clock(), ScriptedMachine()
    logs: Any = NoLogs()
    holder, other = (
        Scheduler(database, ScriptedAgents(machine), lambda: POOLS, logs, clock=clock, alone=False) for _ in range(2)
    )
    for scheduler in (holder, other):
        scheduler._agents.follow(scheduler)
        scheduler.tick()
    queue(other, 3)
    assert holder.why_pending("wf-1") == "g: waiting for its turn"
    assert holder.tick()
    assert "offline" in holder.why_pending("wf-3")
    assert other.why_pending("wf-3") == holder.why_pending("wf-3"), "it looks for itself"
    other.cancel("wf-2", user="tester")
    assert holder.tick()
    assert holder.why_pending("wf-2") == ""
    for scheduler in (holder, other):
        scheduler.stop()
    database.close()
