"""Where the server's database is.

Decided here and only here: that it is the SQLite file of the state folder, unless the operator names a PostgreSQL: in
the environment (CASSTORE_DATABASE_URL), or as ``casstore.server.database`` in the configuration. The URL may hold a
password, so it is in no setting that is passed on (see ``private``), and is refused in a configuration that others can
read.
"""

from __future__ import annotations

import stat
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from casstore.errors import UsageError
from casstore_server.config import database_setting
from casstore_server.db.engine import join_database, join_postgres, open_database, open_postgres
from casstore_server.db.store import Database
from casstore_server.options import DATABASE_VARIABLE
from casstore_server.settings import Settings

__all__ = ["VARIABLE", "find_url", "join_state", "open_state"]

VARIABLE = DATABASE_VARIABLE


def open_state(settings: Settings, url: str = "") -> Database:
    """The database of this server, its tables up to date; ``url`` is that of a PostgreSQL. Raises ``UsageError`` and
    ``StorageError``.
    """
    return Database(open_postgres(url) if url else open_database(settings.database))


def join_state(settings: Settings, url: str = "") -> Database | None:
    """The same for a process of the server's: as it is, with connections that end with each use. None when there is no
    file. Raises ``UsageError``.
    """
    if not url and not settings.database.exists():
        return None
    return Database(join_postgres(url) if url else join_database(settings.database))


def find_url(file: Path) -> str:
    """The URL in the configuration; empty for SQLite. Raises ``UsageError`` when others can read its password."""
    url = database_setting(file)
    if not url:
        return ""
    try:
        password = make_url(url).password
    except (ArgumentError, ValueError):
        return url  # whoever opens it says what is wrong
    if password and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"{file} can be read by others, and casstore.server.database holds a password",
            hint=f"chmod 600 {file}, or leave the password to ~/.pgpass.",
        )
    return url
