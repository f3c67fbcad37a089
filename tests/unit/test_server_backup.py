"""Copies of the server's database, made while it is written to, and put back."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from casstore.errors import CasstoreError, ConflictError, FormatError, NotFoundError, StorageError
from casstore_server import backup
from casstore_server.db import schema
from casstore_server.db.engine import open_database
from casstore_server.db.store import Database
from casstore_server.settings import Settings


def settings_of(folder: Path) -> Settings:
    folder.mkdir(exist_ok=True)
    return Settings(folder / "s", folder, folder / "config.yaml", folder / "data", folder / "cache", "ada")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path / "state")


def names(settings: Settings) -> dict[str, int]:
    database = Database(open_database(settings.database))
    try:
        with database.reading() as connection:
            return {str(row[0]): int(row[1]) for row in connection.execute(select(schema.counter))}
    finally:
        database.close()


def test_a_copy_is_made_while_the_database_is_written_and_put_back(settings: Settings, tmp_path: Path) -> None:
    database = Database(open_database(settings.database))
    written, enough, stop = threading.Event(), 20, threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            with database.writing() as connection:  # both rows, or none
                connection.execute(insert(schema.counter).values(name=f"a{number}", last=1))
                connection.execute(insert(schema.counter).values(name=f"b{number}", last=1))
            number += 1
            if number == enough:
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(60)
        done = backup.make(settings.database, tmp_path / "copy")
    finally:
        stop.set()
        writer.join()
        database.close()
    assert done.workflows == 0
    assert done.size == (tmp_path / "copy").stat().st_size
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "state"]  # one file, and nothing beside it
    other = settings_of(tmp_path / "other")
    backup.restore(tmp_path / "copy", other)
    found = names(other)
    assert len(found) >= 2 * enough
    assert {name[1:] for name in found if name[0] == "a"} == {name[1:] for name in found if name[0] == "b"}


def test_nothing_is_written_over(settings: Settings, tmp_path: Path) -> None:
    Database(open_database(settings.database)).close()
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine")
    with pytest.raises(ConflictError, match="taken"):
        backup.make(settings.database, taken)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConflictError, match="dangling"):
        backup.make(settings.database, tmp_path / "dangling")
    backup.make(settings.database, tmp_path / "copy")
    with pytest.raises(ConflictError, match=r"server\.sqlite exists"):
        backup.restore(tmp_path / "copy", settings)
    settings.database.unlink()
    left = settings.database.with_name("server.sqlite-wal")  # SQLite would play it into whatever has the name
    left.write_bytes(b"log of another")
    with pytest.raises(ConflictError, match="sqlite-wal"):
        backup.restore(tmp_path / "copy", settings)
    assert taken.read_bytes() == b"mine"
    assert not settings.database.exists()


def test_a_name_that_is_taken_meanwhile_is_left_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(open_database(settings.database)).close()
    real = backup._checked

    def slow(copy: sqlite3.Connection, source: Path) -> tuple[int, str]:
        (tmp_path / "copy").write_bytes(b"somebody else's")
        return real(copy, source)

    monkeypatch.setattr(backup, "_checked", slow)
    with pytest.raises(ConflictError, match="copy exists"):
        backup.make(settings.database, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"somebody else's"


def test_new_workflows_get_no_number_that_the_folder_has_seen(settings: Settings, tmp_path: Path) -> None:
    database = Database(open_database(settings.database))
    with database.writing() as connection:
        connection.execute(insert(schema.counter), [{"name": "seen", "last": 2}, {"name": "high", "last": 9}])
    database.close()
    backup.make(settings.database, tmp_path / "copy")
    settings.database.unlink()
    for name in ("workflows/seen-7", "workflows/high-3", "workflows/new-x-4", "runs/closed/seen-8.group.1", "runs/odd"):
        (settings.state_dir / name).mkdir(parents=True)
    backup.restore(tmp_path / "copy", settings)
    assert names(settings) == {"seen": 8, "high": 9, "new-x": 4}


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 8192)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE x (y)")
    other.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damaged, "damaged|malformed"),
        (foreign, "not the database of a server"),
        (newer, "newer version"),
        (lambda path: path.write_bytes(b"no database at all" * 99), "not a database"),
    ],
)
def test_what_is_no_sound_copy_is_not_put_back(settings: Settings, tmp_path: Path, spoil: object, told: str) -> None:
    Database(open_database(settings.database)).close()
    backup.make(settings.database, tmp_path / "copy")
    spoil(tmp_path / "copy")  # type: ignore[operator]
    other = settings_of(tmp_path / "other")
    with pytest.raises((FormatError, StorageError), match=told):
        backup.restore(tmp_path / "copy", other)
    assert list(other.state_dir.iterdir()) == []


def test_what_is_not_there(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        backup.make(settings.database, tmp_path / "copy")
    with pytest.raises(NotFoundError):
        backup.restore(tmp_path / "none", settings)
    Database(open_database(settings.database)).close()
    with pytest.raises(CasstoreError, match="can't be copied"):
        backup.make(settings.database, tmp_path / "no" / "folder")


@pytest.mark.parametrize(("action", "tool"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_a_postgresql_has_its_own_tools(action: str, tool: str) -> None:
    error = backup.not_here("postgresql://ada:hush@host/db", action)
    assert tool in str(error.hint)
    assert "hush" not in f"{error.message} {error.hint}"
