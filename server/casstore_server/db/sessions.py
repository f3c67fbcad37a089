"""The keys of interactive connections in the database, where all its servers find them.

Decided here and only here: that a row is found by a digest of its key and is sealed for it, so that whoever reads the
database can use none; and that rows whose time is over go when new ones come.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final, NamedTuple

from sqlalchemy import delete, func, insert, select, update

from casstore.errors import CasstoreError
from casstore_server.db import schema, sealed
from casstore_server.db.store import Database
from casstore_server.secrets import SecretBox

__all__ = ["Kept", "SessionRows"]

_TABLE: Final = schema.session


class Kept(NamedTuple):
    """What is kept of a key; ``until`` in seconds since the epoch."""

    data: bytes
    until: float


class SessionRows:
    """Thread-safe; every call is a transaction of its own."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box

    def add(self, kind: str, key: str, data: bytes, until: float) -> None:
        """Keep a new key."""
        row = _digest(key)
        made = self._box.seal(data, *sealed.context_of(_TABLE, row))
        with self._database.writing() as connection:
            connection.execute(delete(_TABLE).where(_TABLE.c.until < time.time()))
            connection.execute(insert(_TABLE).values(id=row, kind=kind, sealed=made, until=until))

    def count(self, kind: str) -> int:
        """How many keys of a kind are good."""
        query = select(func.count()).where(_TABLE.c.kind == kind, _TABLE.c.until >= time.time())
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one()

    def find(self, kind: str, key: str) -> Kept | None:
        """What a key that is good stands for."""
        row = _digest(key)
        where = (_TABLE.c.id == row, _TABLE.c.kind == kind, _TABLE.c.until >= time.time())
        with self._database.reading() as connection:
            found = connection.execute(select(_TABLE.c.sealed, _TABLE.c.until).where(*where)).first()
        if found is None:
            return None
        try:
            return Kept(self._box.open(found.sealed, *sealed.context_of(_TABLE, row)), found.until)
        except CasstoreError:  # sealed with a key that is no more: it is as if its time were over
            return None

    def remove(self, key: str) -> bool:
        """Forget a key; False when somebody else did."""
        with self._database.writing() as connection:
            return connection.execute(delete(_TABLE).where(_TABLE.c.id == _digest(key))).rowcount == 1

    def prolong(self, key: str, until: float) -> None:
        """Have a key be good for longer."""
        with self._database.writing() as connection:
            connection.execute(update(_TABLE).where(_TABLE.c.id == _digest(key)).values(until=until))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
