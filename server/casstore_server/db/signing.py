"""The signing keys in the database, sealed.

Decided here and only here: that of servers that find at the same time that a key is due, one makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update

from casstore_server.db import sealed
from casstore_server.db.schema import signing_key
from casstore_server.db.store import Database

__all__ = ["SigningKeys", "StoredKey"]

_MAKING = 0x6B65_7973
"""The advisory lock of PostgreSQL under which keys are made."""


class StoredKey(NamedTuple):
    """A row; times in seconds since the epoch."""

    kid: str
    sealed: bytes
    created: float
    retired: float | None


class SigningKeys:
    """Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[StoredKey]:
        """All of them, the oldest first."""
        with self._database.reading() as connection:
            return _all(connection)

    def add(
        self,
        kid: str,
        created: float,
        seal: Callable[[], bytes],
        *,
        due: Callable[[Sequence[StoredKey]], bool],
        forget_before: float,
    ) -> list[StoredKey]:
        """Add a key and retire the others, if ``due`` says of those that there are that it is; forget those that were
        retired before ``forget_before``. Gives all that there are then.
        """
        table = signing_key
        with self._database.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_MAKING)))
            sealed.hold(connection)
            if due(_all(connection)):
                connection.execute(update(table).where(table.c.retired.is_(None)).values(retired=created))
                connection.execute(insert(table).values(kid=kid, sealed=seal(), created=created))
            connection.execute(delete(table).where(table.c.retired < forget_before))
            return _all(connection)


def _all(connection: Connection) -> list[StoredKey]:
    table = signing_key
    rows = connection.execute(select(table).order_by(table.c.created, table.c.kid))
    return [StoredKey(row.kid, bytes(row.sealed), row.created, row.retired) for row in rows]
