"""Where the server's database is.

Decided here and only here: that it is the SQLite file of the state folder, unless the operator names a PostgreSQL: in
the environment (CASSTORE_DATABASE_URL), or as ``casstore.server.database`` in the configuration. The URL may hold a
password, so it is in no setting that is passed on, is taken out of the environment of what the server starts, and is
refused in a configuration that others can read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from casstore.errors import UsageError
from casstore_server.config import database_setting
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.store import Database
from casstore_server.options import DATABASE_VARIABLE
from casstore_server.settings import Settings

__all__ = ["VARIABLE", "open_state"]

VARIABLE = DATABASE_VARIABLE


def open_state(settings: Settings) -> Database:
    """The database of this server, its tables up to date. Raises ``UsageError`` and ``StorageError``."""
    url = os.environ.pop(VARIABLE, "") or _from_file(settings.config_file)
    return Database(open_postgres(url) if url else open_database(settings.database))


def _from_file(file: Path) -> str:
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
