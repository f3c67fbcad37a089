"""The database: numbers, transactions, lists, migrations."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy

from casstore.errors import ConflictError, NotFoundError, ServiceError, StorageError
from casstore_orchestrator.pools import Resources
from casstore_orchestrator.records import GroupRecord, Held, TaskRecord, WorkflowRecord
from casstore_orchestrator.spec import GroupSpec, ResourceSpec, TaskSpec, WorkflowSpec
from casstore_orchestrator.statestore import TaskNote
from casstore_orchestrator.status import Priority, TaskStatus, WorkflowStatus
from casstore_server.db import index_tables, queries, schema
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.queries import TaskFilter, WorkflowFilter
from casstore_server.db.standing import Standing
from casstore_server.db.store import Database
from casstore_server.identity.actions import ANYWHERE

_replace = msgspec.structs.replace


def record(name: str = "hello", *, uuid: str = "a" * 32, at: float = 1000.0, **fields: Any) -> WorkflowRecord:
    task = TaskSpec(name="one", image="ubuntu", command=("true",), lead=True)
    spec = WorkflowSpec(
        name=name,
        groups=(GroupSpec(name="one-group", tasks=(task,)),),
        resources={"default": ResourceSpec(cpu=2, memory=4 * 2**30, gpu=1)},
    )
    groups = (GroupRecord(name="one-group", tasks=(TaskRecord(name="one", uuid="b" * 32, lead=True),)),)
    values: dict[str, Any] = {"user": "ada", "pool": "default", "spec_text": "text", **fields}
    return WorkflowRecord(name=name, uuid=uuid, spec=spec, groups=groups, submit_time=at, **values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.sqlite"


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, path: Path) -> Callable[[], Database]:
    """Opens the same database, as often as it is called."""
    if request.param == "sqlite":
        return lambda: Database(open_database(path))
    url = request.getfixturevalue("postgres")()
    return lambda: Database(open_postgres(url))


@pytest.fixture
def database(opened: Callable[[], Database]) -> Iterator[Database]:
    found = opened()
    yield found
    found.close()


@pytest.fixture
def sqlite(path: Path) -> Iterator[Database]:
    found = Database(open_database(path))
    yield found
    found.close()


def test_create_allots_numbers_by_name_and_load_finds_id_and_uuid(database: Database) -> None:
    first = database.create(record(uuid="1" * 32))
    second = database.create(record(uuid="2" * 32))
    other = database.create(record("other", uuid="3" * 32))
    assert (first.id, second.id, other.id) == ("hello-1", "hello-2", "other-1")
    assert (first.number, second.number) == (1, 2)
    assert database.load("hello-2") == second == database.load("2" * 32)
    with pytest.raises(NotFoundError, match="hello-3"):
        database.load("hello-3")


def test_everything_of_a_record_survives_another_process(database: Database, opened: Callable[[], Database]) -> None:
    made = database.create(record(template_text="{{ x }}", tags=("t",), warnings=("careful",), priority=Priority.LOW))
    other = opened()
    try:
        assert other.load(made.id) == made
    finally:
        other.close()


def test_racing_creations_never_share_a_number(database: Database) -> None:
    made: list[str] = []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait()
        made.append(database.create(record(uuid=f"{number:032d}")).id)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [f"hello-{number}" for number in range(1, 9)]


def test_racing_changes_are_all_kept(database: Database, opened: Callable[[], Database]) -> None:
    made = database.create(record())
    other = opened()  # another connection pool: only the database keeps them apart
    stores = [database, other]

    def add(store: Database, number: int) -> None:
        store.change(made.id, lambda old: _replace(old, warnings=(*old.warnings, f"w{number}")))

    threads = [threading.Thread(target=add, args=(stores[number % 2], number)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(database.load(made.id).warnings) == sorted(f"w{number}" for number in range(16))


def test_a_change_that_raises_changes_nothing(database: Database) -> None:
    made = database.create(record())

    def fail(old: WorkflowRecord) -> WorkflowRecord:
        raise KeyError(old.id)

    with pytest.raises(KeyError):
        database.change(made.id, fail)
    with pytest.raises(ConflictError, match="identity"):
        database.change(made.id, lambda old: _replace(old, name="other"))
    assert database.load(made.id) == made


def test_live_are_those_that_have_not_ended_or_hold_something(database: Database) -> None:
    old = database.create(record(uuid="1" * 32, at=1.0))
    new = database.create(record(uuid="2" * 32, at=2.0))
    done = database.create(record(uuid="3" * 32, at=3.0))
    database.change(new.id, lambda r: _replace(r, status=WorkflowStatus.RUNNING, start_time=5.0))
    database.change(done.id, lambda r: _replace(r, status=WorkflowStatus.FAILED_CANCELED, end_time=5.0))
    assert database.live("default") == [old.id, new.id]
    held = (Held("one", "p", "n1", Resources(cpu=1, extras={"arm": 1})),)
    database.change(done.id, lambda r: _replace(r, groups=(_replace(r.groups[0], holds=held),)))
    assert database.load(done.id).groups[0].holds == held
    assert database.live("default") == [old.id, new.id, done.id]
    assert database.live("other") == []
    assert database.live_pools() == ["default"]


def _ids(database: Database, *, oldest_first: bool = False, **filters: Any) -> list[str]:
    with database.reading() as connection:
        rows = queries.workflows(connection, WorkflowFilter(**filters), limit=100, offset=0, oldest_first=oldest_first)
    return [row.id for row in rows]


def test_lists_filter_by_every_column(database: Database) -> None:
    database.create(record("aa", uuid="1" * 32, at=1.0, user="ada", tags=("x", "y")))
    database.create(record("ab", uuid="2" * 32, at=2.0, user="bob", pool="robots", priority=Priority.LOW))
    database.create(record("a%b", uuid="3" * 32, at=3.0, user="bob", tags=("y",)))
    assert _ids(database) == ["a%b-1", "ab-1", "aa-1"]
    assert _ids(database, oldest_first=True) == ["aa-1", "ab-1", "a%b-1"]
    assert _ids(database, users=["bob"]) == ["a%b-1", "ab-1"]
    assert _ids(database, pools=["robots"]) == ["ab-1"]
    assert _ids(database, priorities=["LOW", "HIGH"]) == ["ab-1"]
    assert _ids(database, tags=["y"]) == ["a%b-1", "aa-1"]
    assert _ids(database, name="%") == ["a%b-1"]
    assert _ids(database, name="'; DROP TABLE workflow; --") == []
    assert _ids(database, submitted_after=2.0, submitted_before=3.0) == ["ab-1"]
    assert _ids(database, statuses=["RUNNING"]) == []


def test_tags_follow_the_record(database: Database) -> None:
    made = database.create(record(tags=("x", "y")))
    database.change(made.id, lambda r: _replace(r, tags=("y", "z")))
    with database.reading() as connection:
        assert queries.tags_of(connection, [made.id]) == {made.id: ["y", "z"]}
        assert queries.tags_in_use(connection, ANYWHERE) == ["y", "z"]


def _next_attempt(old: WorkflowRecord) -> WorkflowRecord:
    group = old.groups[0]
    first = _replace(group.tasks[0], status=TaskStatus.RESCHEDULED, node="n1", start_time=10.0, end_time=11.0)
    second = TaskRecord(name="one", uuid="c" * 32, retry_id=1, status=TaskStatus.RUNNING, node="n2", start_time=12.0)
    return _replace(old, groups=(_replace(group, tasks=(first, second)),))


def test_rows_of_tasks_follow_the_record(database: Database) -> None:
    made = database.create(record())
    database.change(made.id, _next_attempt)

    def found(**filters: Any) -> list[tuple[str, int, str]]:
        with database.reading() as connection:
            rows = queries.tasks(connection, TaskFilter(**filters), limit=9, offset=0, oldest_first=True)
        return [(row.name, row.retry_id, row.status) for row in rows]

    assert found() == [("one", 0, "RESCHEDULED"), ("one", 1, "RUNNING")]
    assert found(statuses=["RUNNING"]) == [("one", 1, "RUNNING")]
    assert found(nodes=["n1"]) == [("one", 0, "RESCHEDULED")]
    assert found(workflow_id=made.uuid, started_after=11.5) == [("one", 1, "RUNNING")]
    assert found(started_before=11.5) == [("one", 0, "RESCHEDULED")]
    assert found(users=["bob"]) == []
    with database.reading() as connection:
        (sums,) = queries.task_sums(connection, TaskFilter(statuses=["RUNNING"]), by_workflow=True)
    assert (sums.cpu, sums.memory, sums.gpu, sums.workflow_id) == (2, 4 * 2**30, 1, made.id)


def test_events_come_back_in_order_and_by_number(database: Database) -> None:
    made = database.create(record())
    notes = [TaskNote("", 0, "Submitted", "m1", 1.0), TaskNote("one", 0, "Scheduled", "m2", 0.5)]
    database.change(made.id, lambda r: _replace(r, tags=("x",)), notes=lambda _old, _new: notes)
    rows = database.events(made.id)
    assert [row.reason for _, row in rows] == ["Submitted", "Scheduled"]
    assert [row.message for _, row in database.events(made.id, after=rows[0][0])] == ["m2"]


def test_profiles_keep_what_is_not_changed(database: Database) -> None:
    assert database.profile("ada") == {}
    database.set_profile("ada", {"pool": "robots"})
    database.set_profile("ada", {"bucket": "b"})
    assert database.profile("ada") | {} == {
        "user": "ada",
        "pool": "robots",
        "bucket": "b",
        "email_notification": 0,
        "slack_notification": 0,
    }


def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert {table.metadata for table in index_tables.ALL} == {schema.metadata}
        assert compare_metadata(context, schema.metadata) == []
        assert context.get_current_revision() == schema.HEAD


def test_a_database_of_a_newer_version_is_refused(sqlite: Database, path: Path) -> None:
    sqlite.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ServiceError, match="newer"):
        open_database(path)


def test_a_file_that_is_no_database_is_one_clear_error(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"server\.sqlite can't be used"):
        open_database(path)


def test_the_database_is_private(sqlite: Database, path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0
    assert sqlite.live_pools() == []


def test_followers_share_one_look_at_where_workflows_stand(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("casstore_server.db.standing.time.monotonic", lambda: now[0])
    names = [database.create(record(uuid=f"{number:032x}")).id for number in range(3)]
    statements: list[str] = []
    sqlalchemy.event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for name in names:
        assert database.standings.of(name) == Standing(finished=False, live=True)
    first = len([text for text in statements if "FROM workflow" in text])
    for _ in range(20):
        for name in names:
            database.standings.of(name)
    assert len([text for text in statements if "FROM workflow" in text]) == first
    database.change(names[0], lambda old: _replace(old, status=WorkflowStatus.COMPLETED, groups=()))
    now[0] += 1
    statements.clear()
    assert database.standings.of(names[0]) == Standing(finished=True, live=False)
    assert database.standings.of(names[1]) == Standing(finished=False, live=True)
    assert len([text for text in statements if "FROM workflow" in text]) == 1
    assert database.standings.of("never-1") == Standing(finished=True, live=False)
