"""How pages are found: in which indexes, with how many statements. Not how long that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from casstore.dataset.query_parser import parse
from casstore.model import DatasetType, Head, Totals, VersionRecord
from casstore_server.db import index, index_lists, index_query, queries
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.queries import TaskFilter, WorkflowFilter

ADDRESS = "file:///lab"
USERS = ("ann", "bob")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = open_database(tmp_path / "db")
    _fill(made)
    yield made
    made.dispose()


@pytest.fixture
def shared(postgres: Callable[[], str]) -> Iterator[Engine]:
    made = open_postgres(postgres())
    _fill(made)
    yield made
    made.dispose()


def _fill(made: Engine) -> None:
    with made.begin() as connection:
        bucket = index.clear(connection, ADDRESS, ADDRESS, "s")
        for number in range(20):
            head = Head(
                id=f"d{number:021d}",
                name=f"set-{number}",
                type=DatasetType.DATASET,
                created_at="2026-01-01T00:00:00Z",
                created_by=USERS[number % 2],
                write_id="",
                labels={"team": number % 3},
                tags={"golden": 1},
                last_version=5,
            )
            records = {at: _record(number, at) for at in range(1, 6)}
            reading = index.Reading(
                name=head.name, before=None, key=head.id, head=head, there=records, versions=records
            )
            assert index.applied(connection, bucket, reading, 1)


def _record(number: int, at: int) -> VersionRecord:
    return VersionRecord(
        number=at,
        manifest="0" * 64,
        checksum="0" * 64,
        totals=Totals(),
        created_at=f"2026-01-{at:02d}T00:00:00Z",
        created_by=USERS[at % 2],
        write_id="",
        metadata={"score": number + at / 10, "note": f"hall {number}"},
    )


@contextmanager
def plans(engine: Engine) -> Iterator[list[list[str]]]:
    """The plan of each statement that is carried out meanwhile."""
    found: list[list[str]] = []

    def look(connection: Connection, _cursor: Any, sql: str, values: Any, _context: Any, _many: bool) -> None:
        if sql.startswith("SELECT"):
            driver: Any = connection.connection.driver_connection
            how = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
            found.append([row[-1].strip() for row in driver.execute(f"{how} {sql}", values)])

    event.listen(engine, "before_cursor_execute", look)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", look)


def scans(plan: list[str]) -> list[str]:
    """What is read from end to end, with or without an index that has all of it."""
    return [step for step in plan if step.startswith("SCAN") and "anon" not in step and "CONSTANT" not in step]


Asked = Callable[[Connection], Any]


def _query(text: str) -> Asked:
    return lambda connection: index_query.run(connection, parse(text), 1, 1000)


SEARCHED = [
    'name = "set-3"',
    "label.team = 1 LIMIT 3",
    'user = "ann" LIMIT 3',
    "metadata.score > 3.2",
    "metadata.score = 3.2 AND NOT label.team = 2",
    'metadata.note CONTAINS "hall 1" ORDER BY created_date DESC LIMIT 2',
    'metadata CONTAINS KEY "score" AND name = "set-3"',
    'metadata CONTAINS KEY "score" AND user IN ["ann"] LIMIT 2',
    'metadata.score IN [1.1, 2.2] OR metadata.note = "hall 3"',
    'metadata.score > 1 AND created_date = "2026-01-02" ORDER BY user ASC',
]


@pytest.mark.parametrize("text", SEARCHED)
@pytest.mark.parametrize("few", [True, False])
def test_queries_search_and_never_read_all(
    engine: Engine, text: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not few:  # as if everything fitted
        monkeypatch.setattr(index_query, "PROBED", -1)
    with plans(engine) as found, engine.connect() as connection:
        assert _query(text)(connection)
    assert [scan for plan in found for scan in scans(plan)] == []


@pytest.mark.parametrize("order", ["", "ORDER BY name DESC", "ORDER BY created_date ASC", "ORDER BY user ASC"])
def test_what_fits_nearly_everything_is_read_in_the_order_of_the_answer(
    engine: Engine, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_query, "PROBED", 3)
    asked = f'metadata.score < 100 AND NOT user = "eve" AND created_date > "2025" {order} LIMIT 3'
    with plans(engine) as found, engine.connect() as connection:
        assert len(_query(asked)(connection)) == 3
    assert not [step for step in found[-1] if step == "USE TEMP B-TREE FOR ORDER BY"]


def test_a_query_with_few_hits_reads_these_by_their_ids(engine: Engine) -> None:
    with plans(engine) as found, engine.connect() as connection:
        assert len(_query("metadata.score = 3.2 AND metadata.score < 100")(connection)) == 1
    assert len(found) == 2  # one look suffices to know that they are few
    assert found[-1][0] == "SEARCH index_version USING INTEGER PRIMARY KEY (rowid=?)"


def test_a_page_takes_as_many_statements_as_any_other(engine: Engine) -> None:
    counts = []
    for limit in (1, 5, 20):
        with plans(engine) as found, engine.connect() as connection:
            rows = index_lists.datasets(connection, [1], index_lists.Filter(users=USERS), limit)
            assert len(rows) == limit
            page = index_lists.version_page(connection, rows[0].id, limit, ready=True)
            assert index_lists.versions_of(connection, page)
            index_lists.collections_of(connection, 1, rows[0].key, 1, 5)
        counts.append(len(found))
        assert [scan for plan in found for scan in scans(plan)] == []
    assert counts == [5, 5, 5]


WORKFLOWS = [
    WorkflowFilter(),
    WorkflowFilter(users=["ann"]),
    WorkflowFilter(users=["ann", "bob"]),
    WorkflowFilter(statuses=["RUNNING"]),
    WorkflowFilter(statuses=["FAILED", "COMPLETED"]),
    WorkflowFilter(pools=["p"], priorities=["LOW"], name="part"),
    WorkflowFilter(tags=["t"]),
    WorkflowFilter(submitted_after=1.0, submitted_before=2.0, app=("x", 1)),
]


@pytest.mark.parametrize("wanted", WORKFLOWS)
@pytest.mark.parametrize("oldest_first", [True, False])
def test_pages_of_workflows_are_found_without_their_rows(
    engine: Engine, wanted: WorkflowFilter, oldest_first: bool
) -> None:
    with plans(engine) as found, engine.connect() as connection:
        queries.workflows(connection, wanted, limit=20, offset=1000, oldest_first=oldest_first)
    (plan,) = found
    rows = [step for step in plan if " workflow " in f"{step} "]
    assert rows
    assert all("COVERING INDEX workflow_by" in step or "USING INDEX sqlite_autoindex_workflow_1" in step or
               "workflow_by_app" in step for step in rows), plan  # fmt: skip


TASKS = [
    TaskFilter(statuses=["COMPLETED"]),
    TaskFilter(statuses=["COMPLETED", "FAILED"], users=["ann"]),
    TaskFilter(statuses=["COMPLETED"], pools=["p"], started_after=1.0),
    TaskFilter(statuses=["COMPLETED"], nodes=["n"], started_before=2.0),
]


@pytest.mark.parametrize("wanted", TASKS)
def test_pages_of_tasks_follow_the_workflows_unless_few_tasks_fit(
    engine: Engine, wanted: TaskFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_FEW", -1)
    with plans(engine) as found, engine.connect() as connection:
        queries.tasks(connection, wanted, limit=20, offset=1000, oldest_first=False)
    plan = found[-1]
    assert "COVERING INDEX workflow_by" in plan[0], plan
    assert "SEARCH task USING COVERING INDEX task_listed (workflow_id=?)" in plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan


@pytest.mark.parametrize("text", ['metadata.score > 0.5 AND name CONTAINS "-3"', 'metadata.score > 3 AND user = "ann"'])
def test_postgresql_begins_with_the_few_that_fit(shared: Engine, text: str) -> None:
    with plans(shared) as found, shared.connect() as connection:
        assert _query(text)(connection)
    plan = found[-1]
    assert any(step.startswith("Index Cond: (id = ANY (") for step in plan), plan
    assert not [step for step in plan if "Seq Scan" in step]


def test_postgresql_reads_a_long_list_of_tasks_in_its_order(shared: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_FEW", -1)
    with plans(shared) as found, shared.connect() as connection:
        queries.tasks(connection, TASKS[0], limit=20, offset=1000, oldest_first=False)
    plan = found[-1]
    assert any("Backward using workflow_by_time" in step for step in plan), plan
    assert not [step for step in plan if step.startswith(("->  Sort", "Sort  ("))], plan
