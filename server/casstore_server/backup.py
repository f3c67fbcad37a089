"""Copies of the server's SQLite database, made while it runs, and put back.

Decided here and only here: that a copy is one consistent SQLite file, checked before it gets its name, and never
written over anything; and what else must be right when one is put back: the numbers of workflows go on behind those
that the state folder has seen, so that no new one gets the log or the runs of another.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from casstore.errors import CasstoreError, ConflictError, FormatError, NotFoundError, StorageError, UsageError
from casstore_server.db.schema import HEAD
from casstore_server.redacting import redact_url
from casstore_server.settings import Settings

__all__ = ["Copied", "make", "not_here", "restore"]

_BESIDE = ("", "-wal", "-shm", "-journal")
_ID = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_-]*)-(?P<number>[1-9][0-9]{0,17})(?:\..*)?")
_BUSY_S = 60.0


class Copied(NamedTuple):
    """What a copy holds; ``size`` in bytes, ``key`` is where the key of its secrets is."""

    file: str
    workflows: int
    revision: str
    size: int
    key: str = ""


def not_here(url: str, action: str) -> CasstoreError:
    """What to say where the database is a PostgreSQL, which has tools of its own."""
    shown = redact_url(url)
    tool = (
        f"pg_dump --format=custom --file=FILE '{shown}'"
        if action == "backup"
        else f"pg_restore --exit-on-error --dbname='{shown}' FILE, into an empty database while no server runs"
    )
    return UsageError("The server's database is a PostgreSQL, which is copied by its own tools", hint=f"Use: {tool}")


def make(database: Path, target: Path) -> Copied:
    """Copy ``database``, in use or not, to the new file ``target``; it is as it was at one moment.

    Raises ``NotFoundError`` without a database, ``ConflictError`` when ``target`` exists, ``FormatError`` when the copy
    is not sound, ``StorageError`` when it can't be read or written.
    """
    _refuse_existing([target])
    if not database.exists():
        raise NotFoundError(f"There is no database to copy: {database}", hint="A server makes it when it first starts.")
    with _failures(f"{database} can't be copied to {target}"), _draft(target) as draft:
        # One that may only read leaves files beside the database when it is the last to use it.
        with _opened(database, "rw") as source, _opened(draft, "rw") as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            found = _checked(copy, database)
        _publish(draft, target)
        return Copied(str(target), *found, target.stat().st_size)


def restore(file: Path, settings: Settings) -> Copied:
    """Make the database of a state folder from a copy. The caller holds the server's lock.

    Raises as ``make`` does; ``ConflictError`` when there is a database, or what is left of one.
    """
    database = settings.database
    if not file.is_file():
        raise NotFoundError(f"There is no file {file}")
    _refuse_existing([database.with_name(database.name + ending) for ending in _BESIDE])
    with _failures(f"{file} can't be restored to {database}"), _draft(database) as draft:
        with _opened(file) as source, _opened(draft, "rw") as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")
            found = _checked(copy, file)
            _go_on_behind(copy, settings)
        _publish(draft, database)
        return Copied(str(database), *found, database.stat().st_size)


def _refuse_existing(paths: list[Path]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise ConflictError(f"{path} exists, and is not written over", hint="Move it away, or choose another name.")


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as exc:
        kind = StorageError if isinstance(exc, sqlite3.OperationalError) else FormatError
        raise kind(f"{what}: {exc}") from exc
    except OSError as exc:
        raise StorageError(f"{what}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A new empty file of ours beside ``target``, gone at the end unless it has got its name."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        yield draft
    finally:
        for ending in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{draft}{ending}")


@contextlib.contextmanager
def _opened(path: Path, mode: str = "ro") -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, timeout=_BUSY_S, isolation_level=None
    )
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        yield connection
    finally:
        connection.close()


def _checked(copy: sqlite3.Connection, source: Path) -> tuple[int, str]:
    """How many workflows there are, and the revision. Raises ``FormatError`` when it is not a sound database."""
    wrong = [str(row[0]) for row in copy.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
    wrong += [f"a row of {row[0]} leads nowhere" for row in copy.execute("PRAGMA foreign_key_check").fetchmany(3)]
    if wrong:
        raise FormatError(f"{source} is damaged: {'; '.join(wrong)}")
    tables = {str(row[0]) for row in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"alembic_version", "workflow", "counter"} <= tables:
        raise FormatError(f"{source} is not the database of a server")
    revision = str((copy.execute("SELECT version_num FROM alembic_version").fetchone() or ("none",))[0])
    if revision > HEAD:
        raise FormatError(f"{source} is of a newer version (revision {revision})", hint="Upgrade casstore.")
    return int(copy.execute("SELECT count(*) FROM workflow").fetchone()[0]), revision


def _go_on_behind(copy: sqlite3.Connection, settings: Settings) -> None:
    """Count on from the highest number of each name that has a folder, or a run or what is left of one."""
    highest: dict[str, int] = {}
    for folder in (settings.workflows, settings.state_dir / "runs", settings.state_dir / "runs" / "closed"):
        names = os.listdir(folder) if folder.is_dir() else []
        for match in filter(None, map(_ID.fullmatch, names)):
            highest[match["name"]] = max(highest.get(match["name"], 0), int(match["number"]))
    copy.execute("BEGIN")
    copy.executemany(
        "INSERT INTO counter (name, last) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET last = max(last, excluded.last)",
        highest.items(),
    )
    copy.execute("COMMIT")


def _publish(draft: Path, target: Path) -> None:
    """Give the file its name, durably, unless somebody has taken it meanwhile."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(draft, target)
    except FileExistsError:
        _refuse_existing([target])
    except OSError as exc:
        if exc.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        _refuse_existing([target])  # a file system without hard links
        os.rename(draft, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
