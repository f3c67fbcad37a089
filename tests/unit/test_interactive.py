"""Ports as they are written, keys as they are given out, and what is said of a task that can't be entered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from casstore.errors import ConflictError, ServiceError, UsageError
from casstore_cli.commands.workflow.forward import parse_ports
from casstore_cli.tunnel import pause
from casstore_orchestrator import frames
from casstore_orchestrator.agent.attach import Request
from casstore_orchestrator.frames import Frames, Kind
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.records import GroupRecord, TaskRecord
from casstore_orchestrator.status import TaskPhase, TaskStatus
from casstore_server.db import schema
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.sessions import SessionRows
from casstore_server.db.store import Database
from casstore_server.identity.caller import Caller
from casstore_server.secrets import SecretBox, new_key
from casstore_server.services import sessions
from casstore_server.services.interactive import GoneError, TooEarlyError, check_enterable
from casstore_server.services.sessions import Session, Sessions


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("8000", [(8000, 8000)]),
        ("8000:2000", [(8000, 2000)]),
        ("0:80", [(0, 80)]),
        ("8000-8002", [(8000, 8000), (8001, 8001), (8002, 8002)]),
        ("8000-8001:9000-9001", [(8000, 9000), (8001, 9001)]),
        ("1, 2:3,4-5:6-7", [(1, 1), (2, 3), (4, 6), (5, 7)]),
        ("0:80,0:81", [(0, 80), (0, 81)]),
    ],
)
def test_ports_are_understood(text: str, pairs: list[tuple[int, int]]) -> None:
    assert parse_ports(text) == pairs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not a port"),
        ("a", "is not a port"),
        ("1:2:3", "is not a port"),
        ("-5", "is not a port"),
        ("٣", "is not a port"),
        ("0", "is not between"),
        ("80:0", "is not between"),
        ("65536", "is not between"),
        ("9-8", "ends before it begins"),
        ("8-8", "ends before it begins"),
        ("1-3:1-2", "3 ports here and 2 there"),
        ("1-31", "More than 30"),
        ("1-65535:1-65535", "More than 30"),
        ("80,80:81", "twice"),
    ],
)
def test_ports_that_make_no_sense_are_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_ports(text)


def test_pauses_grow_and_have_an_end() -> None:
    assert pause(0) <= 0.5
    assert 8 <= pause(5) <= 16
    assert pause(1000) <= 16


RUN = RunKey("flow-1", "group", 1)


def session(user: str = "ada", use: Any = "exec") -> Session:
    return Session(use, "flow-1", user, RUN, Request(attach="exec", task="one", argv=("x",)))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        found = Database(open_database(tmp_path / "server.sqlite"))
    else:
        found = Database(open_postgres(request.getfixturevalue("postgres")()))
    yield found
    found.close()


@pytest.fixture
def servers(database: Database) -> tuple[Sessions, Sessions]:
    """Two servers of a database; one that is started anew knows no more than the second."""
    key = new_key()
    return (
        Sessions(SessionRows(database, SecretBox(lambda: [key])), shared=True),
        Sessions(SessionRows(database, SecretBox(lambda: [key])), shared=True),
    )


def test_a_key_is_used_once_by_its_user_for_its_use(
    servers: tuple[Sessions, Sessions], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, other = servers
    key = keys.add(session())
    assert other.take(key, "exec", "flow-1", "eve") is None
    assert other.take(key, "rsync", "flow-1", "ada") is None
    assert keys.take(key, "exec", "flow-2", "ada") is None
    assert other.take(key, "exec", "flow-1", "ada") == session()
    assert keys.take(key, "exec", "flow-1", "ada") is None
    monkeypatch.setattr(sessions, "KEY_SECONDS", -1.0)
    assert keys.take(keys.add(session()), "exec", "flow-1", "ada") is None


def test_a_key_and_what_it_stands_for_are_not_in_the_database(
    servers: tuple[Sessions, Sessions], database: Database
) -> None:
    key = servers[0].add(session())
    with database.reading() as connection:
        row = connection.execute(select(schema.session)).one()
    assert key not in str(row)
    assert b"flow-1" not in row.sealed


def test_keys_that_nobody_uses_do_not_pile_up(
    servers: tuple[Sessions, Sessions], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_MAX_KEYS", 3)
    keys = servers[0]
    for _ in range(3):
        keys.add(session())
    with pytest.raises(ServiceError, match="More than 3 keys"):
        keys.add(session())
    with database.writing() as connection:
        connection.execute(update(schema.session).values(until=0.0))
    keys.add(session())
    with database.reading() as connection:
        assert len(connection.execute(select(schema.session.c.id)).all()) == 1


def test_pages_are_known_to_all_servers_and_live_on_by_use(
    servers: tuple[Sessions, Sessions], database: Database
) -> None:
    one, other = servers
    key = one.add_page(session(use="webserver"))
    assert one.page(key) == other.page(key) == session(use="webserver")
    assert one.take(key, "webserver", "flow-1", "ada") is None
    table = schema.session
    with database.writing() as connection:
        connection.execute(update(table).values(until=table.c.until - sessions.FIRST_USE_SECONDS + 60))
    assert Sessions(one._rows).page(key) is not None
    with database.reading() as connection:
        assert connection.execute(select(table.c.until)).scalar_one() > time.time() + sessions.IDLE_SECONDS - 60
    assert one.page("0" * 32) is None


def test_a_connection_finds_its_announcement_whichever_comes_first(servers: tuple[Sessions, Sessions]) -> None:
    async def run(keys: Sessions, there: Sessions) -> None:
        forward = session(use="portforward")
        keys.announce("PORTFORWARD-1", forward)
        assert await there.wait("PORTFORWARD-1", "portforward", "flow-1", "ada", 10) == forward
        waiting = asyncio.create_task(there.wait("PORTFORWARD-2", "portforward", "flow-1", "ada", 10))
        await asyncio.sleep(0)
        keys.announce("PORTFORWARD-2", forward)
        assert await waiting == forward
        stranger = asyncio.create_task(there.wait("PORTFORWARD-3", "portforward", "flow-1", "eve", 10))
        await asyncio.sleep(0)
        keys.announce("PORTFORWARD-3", forward)
        assert await stranger is None
        assert await there.wait("PORTFORWARD-4", "portforward", "flow-1", "ada", 0.01) is None
        with pytest.raises(UsageError):
            keys.announce("other", forward)

    asyncio.run(run(servers[0], servers[0]))
    asyncio.run(run(*servers))


@pytest.mark.parametrize(
    ("status", "phase", "kind", "told"),
    [
        (TaskStatus.PROCESSING, TaskPhase.NONE, TooEarlyError, r"does not run yet: PROCESSING \(no GPU is free\)"),
        (TaskStatus.RUNNING, TaskPhase.INPUTS, TooEarlyError, "its inputs are being put in place"),
        (TaskStatus.RUNNING, TaskPhase.READY, TooEarlyError, "waits for the other tasks of group group"),
        (TaskStatus.RUNNING, TaskPhase.OUTPUTS, GoneError, "has ended: its outputs are being stored"),
        (TaskStatus.COMPLETED, TaskPhase.NONE, GoneError, "has ended: COMPLETED"),
        (TaskStatus.FAILED_CANCELED, TaskPhase.NONE, GoneError, "has ended: FAILED_CANCELED"),
    ],
)
def test_why_a_task_can_not_be_entered(
    status: TaskStatus, phase: TaskPhase, kind: type[ConflictError], told: str
) -> None:
    task = TaskRecord(name="one", uuid="u", status=status, phase=phase)
    group = GroupRecord(name="group", tasks=(task,))
    services: Any = SimpleNamespace(scheduler=SimpleNamespace(why_pending=lambda _: "no GPU is free"))
    record: Any = SimpleNamespace(id="flow-1")
    with pytest.raises(kind, match=told) as raised:
        check_enterable(services, Caller("ada"), record, group, task)
    assert raised.value.http_status == {TooEarlyError: 425, GoneError: 410}[kind]


def test_frames_come_out_as_they_went_in() -> None:
    sent = [(Kind.DATA, b"x" * 65536), (Kind.EOF, b""), (Kind.ERRORS, b"e")]
    data = b"".join(frames.encode(*frame) for frame in sent)
    for size in (1, 7, len(data)):
        reader = Frames()
        found = [frame for at in range(0, len(data), size) for frame in reader.feed(data[at : at + size])]
        assert found == sent
