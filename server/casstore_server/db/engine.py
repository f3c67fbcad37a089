"""Opening the database: pragmas, transactions, migrations.

Decided here and only here: how SQLite is set up (WAL, foreign keys, a busy timeout, full durability) and
that writing transactions take the write lock at their start, so that what they read can't change before they
write.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError

from casstore.errors import ServiceError, StorageError
from casstore_server.db.schema import HEAD

__all__ = ["WRITES", "migrate", "open_database"]

WRITES = {"casstore_writes": True}
"""Execution options of a connection whose next transaction writes."""
BUSY_TIMEOUT_MS = 15_000

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"})
_log = logging.getLogger(__name__)


def open_database(path: Path) -> Engine:
    """The database in this file, made or brought up to date.

    Raises ``StorageError`` when it is not usable.
    """
    filesystem = _filesystem_of(path.parent)
    if filesystem in _NETWORK or filesystem.startswith("fuse.sshfs"):
        _log.warning("%s is on a network file system (%s): locks may not hold there", path, filesystem)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
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
