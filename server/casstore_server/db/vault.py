"""The credentials of the users of a server, sealed in its database.

Decided here and only here: that a credential is sealed as a whole for its user and name, that there is one for each
profile of a user, and how long a process that has only its database to ask waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import msgspec
from sqlalchemy import Connection, Row, Select, delete, select
from sqlalchemy.exc import OperationalError

from casstore.errors import FormatError, NotFoundError, TransientError
from casstore.structs import from_json
from casstore.wire.credentials import Credential
from casstore_server.db import schema, sealed
from casstore_server.db.store import Database
from casstore_server.db.transactions import upsert
from casstore_server.secrets import SecretBox

__all__ = ["SealedVault"]

T = TypeVar("T")
_PAUSE: Final = 1.0
_TABLE: Final = schema.credential


class SealedVault:
    """Credentials by user and name; nothing is held in memory between calls, so that changes by others are seen.

    Thread-safe. Errors: ``AccessError`` and ``IntegrityError`` when something can't be opened, ``TransientError`` when
    the database can't be reached for ``patience`` seconds (0: what it raises is raised).
    """

    def __init__(self, database: Callable[[], Database | None], box: SecretBox, *, patience: float = 0.0) -> None:
        """``database`` gives None where there is none: nobody has credentials then, and none can be kept."""
        self._database = database
        self._box = box
        self._patience = patience

    def names(self, user: str) -> dict[str, Credential]:
        """All credentials of a user, by name."""
        rows = self._read(select(_TABLE).where(_TABLE.c.user == user).order_by(_TABLE.c.name))
        return {row.name: self._opened(row) for row in rows}

    def get(self, user: str, name: str) -> Credential | None:
        """One credential; None when the user has none of this name."""
        rows = self._read(select(_TABLE).where(_TABLE.c.user == user, _TABLE.c.name == name))
        return self._opened(rows[0]) if rows else None

    def by_profile(self, user: str, kind: str, profile: str) -> Credential | None:
        """The credential of this type for a profile, None when the user has none."""
        query = select(_TABLE).where(_TABLE.c.user == user, _TABLE.c.type == kind, _TABLE.c.profile == profile)
        rows = self._read(query)
        return self._opened(rows[0]) if rows else None

    def put(self, user: str, name: str, credential: Credential) -> list[str]:
        """Keep a credential under a name, in place of what was there.

        There is one for each profile: returns the other names that had the same one and are gone.
        """
        with self._writing() as connection:
            sealed.hold(connection)
            gone = self._make_room(connection, user, name, credential)
            context = sealed.context_of(_TABLE, user, name)
            values = {
                "type": credential.type,
                "profile": credential.profile,
                "sealed": self._box.seal(msgspec.json.encode(credential.payload), *context),
                "changed": time.time(),
            }
            statement = upsert(connection, _TABLE).values(user=user, name=name, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["user", "name"], set_=values))
        return gone

    def remove(self, user: str, name: str) -> Credential:
        """Forget a credential and return it without its payload. ``NotFoundError``."""
        with self._writing() as connection:
            where = (_TABLE.c.user == user, _TABLE.c.name == name)
            row = connection.execute(delete(_TABLE).where(*where).returning(_TABLE.c.type, _TABLE.c.profile)).first()
        if row is None:
            raise NotFoundError(f"there is no credential {name!r}", hint="see: osmo credential list")
        return Credential(type=row.type, profile=row.profile, payload={})

    def _make_room(self, connection: Connection, user: str, name: str, credential: Credential) -> list[str]:
        if credential.profile is None:
            return []
        same = (_TABLE.c.type == credential.type, _TABLE.c.profile == credential.profile)
        where = (_TABLE.c.user == user, _TABLE.c.name != name, *same)
        return sorted(connection.execute(delete(_TABLE).where(*where).returning(_TABLE.c.name)).scalars())

    def _opened(self, row: Row[tuple[object, ...]]) -> Credential:
        payload = self._box.open(row.sealed, *sealed.context_of(_TABLE, row.user, row.name))
        try:
            return Credential(type=row.type, profile=row.profile, payload=from_json(payload, dict[str, str]))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise FormatError(f"the credential {row.name} of {row.user} is damaged") from None

    def _writing(self) -> AbstractContextManager[Connection]:
        database = self._database()
        if database is None:
            raise NotFoundError("There is no database to keep a credential in")
        return database.writing()

    def _read(self, query: Select[tuple[object, ...]]) -> list[Row[tuple[object, ...]]]:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                database = self._database()
                if database is None:
                    return []
                with database.reading() as connection:
                    return list(connection.execute(query))
            except OperationalError:
                if not self._patience:
                    raise
                if time.monotonic() > deadline:
                    raise TransientError("the server's database, which has the credentials, can't be reached") from None
            time.sleep(_PAUSE)
