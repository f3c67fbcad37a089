"""Opening the database: pragmas, transactions, migrations.

Decided here and only here: how SQLite is set up (WAL, foreign keys, a busy timeout, full durability) and that writing
transactions take the write lock at their start, so that what they read can't change before they write; how PostgreSQL
is reached, and that one server at a time brings its tables up to date.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import NullPool

from casstore.errors import ServiceError, StorageError, UsageError
from casstore_server.db.schema import HEAD

__all__ = ["WRITES", "join_database", "join_postgres", "migrate", "open_database", "open_postgres"]

WRITES = {"casstore_writes": True}
"""Execution options of a connection whose next transaction writes."""
BUSY_TIMEOUT_MS = 15_000
CONNECT_TIMEOUT_S = 10
_MIGRATING = 0x6361_7373
"""The advisory lock of PostgreSQL under which the tables are made."""

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"})
_log = logging.getLogger(__name__)


def open_database(path: Path) -> Engine:
    """The database in this file, made or brought up to date.

    Raises ``StorageError`` when it is not usable.
    """
    filesystem = _filesystem_of(path.parent)
    if filesystem in _NETWORK or filesystem.startswith("fuse.sshfs"):
        _log.warning("%s is on a network file system (%s): locks may not hold there", path, filesystem)
    engine = _sqlite(path)
    try:
        path.touch(mode=0o600, exist_ok=True)
        migrate(engine)
    except DatabaseError as exc:
        engine.dispose()
        raise StorageError(
            f"The server's database {path} can't be used: {exc.orig}",
            hint="Move the file away to start with an empty one; past workflows are then forgotten.",
        ) from exc
    except BaseException:
        engine.dispose()
        raise
    return engine


def join_database(path: Path) -> Engine:
    """The database of a server in this file, for another process of it: as it is, no connection kept."""
    return _sqlite(path, poolclass=NullPool)


def _sqlite(path: Path, **options: Any) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, **options)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def open_postgres(url: str) -> Engine:
    """The PostgreSQL database at a URL, its tables brought up to date. No message shows the password.

    ``UsageError`` when it is not such a URL or psycopg is not installed, ``StorageError`` when it can't be reached.
    """
    parsed = _parsed(url)
    shown = parsed.render_as_string(hide_password=True)
    # A connection that broke while it lay idle is replaced.
    engine = _postgres(parsed, pool_pre_ping=True, pool_size=10, max_overflow=20)
    try:
        migrate(engine)
    except DatabaseError as exc:
        engine.dispose()
        first = str(exc.orig).strip().splitlines()[:1]
        raise StorageError(f"The server's database {shown} can't be used: {first[0] if first else exc.orig}") from None
    except BaseException:
        engine.dispose()
        raise
    return engine


def join_postgres(url: str) -> Engine:
    """The PostgreSQL of a server, for another process of it: as it is, no connection kept. Raises ``UsageError``."""
    return _postgres(_parsed(url), poolclass=NullPool)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise UsageError("The URL of the server's database is not like postgresql://user@host/name")
    return parsed


def _postgres(url: URL, **options: Any) -> Engine:
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "casstore"},
            **options,
        )
    except ImportError:
        raise UsageError(
            "PostgreSQL needs a package that is not installed: psycopg",
            hint="Install it with: pip install 'casstore[postgres]'",
        ) from None


def migrate(engine: Engine) -> None:
    """Bring the tables up to the newest revision.

    Raises ``ServiceError`` when they are from a newer version.
    """
    with engine.connect() as connection:
        found = _revision(connection)
    if found == HEAD:  # the usual case, without the import of alembic
        return
    from alembic import command  # noqa: PLC0415  # slow to import, and rarely needed
    from alembic.config import Config  # noqa: PLC0415  # as above
    from alembic.script import ScriptDirectory  # noqa: PLC0415  # as above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise ServiceError(f"The server's database is of a newer version (revision {found})", hint="Upgrade casstore.")
    with engine.connect().execution_options(**WRITES) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("casstore_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _filesystem_of(folder: Path) -> str:
    """The type of the file system that holds ``folder``; empty when it is not known."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = folder.resolve()
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mounted = before.split(" ")[4].replace("\\040", " ")
        if real.is_relative_to(mounted) and len(mounted) >= best:
            best, kind = len(mounted), after.split(" ")[0]
    return kind
