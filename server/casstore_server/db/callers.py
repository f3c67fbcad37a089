"""What the server must know of whoever asks, at every request.

Decided here and only here: that it is read anew each time (one query by a key), so that who is disabled, deleted or has
lost a role or a token is refused at once, by every server of the same database; and that the last use of a token is
written down at most once a minute.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, delete, select, update

from casstore_server.db.schema import access_token, identity_user, user_role
from casstore_server.db.store import Database

__all__ = ["OWNER", "PROVIDER", "Callers", "KnownToken", "KnownUser"]

PROVIDER = ":provider"
"""By whom roles were given that somebody has from a group of the identity provider, or from a gateway. They are written
down for tokens, which nobody asks the provider about; no user can be called so.
"""
OWNER = ":owner"
"""By whom the roles of the server's owner were given, who has them by the unix socket. They are for the owner's tokens:
whoever the identity provider calls by the same name does not have them.
"""
_USED_EVERY = 60.0


class KnownUser(NamedTuple):
    """A user that this server was told of; ``provided`` and ``owned`` are those of the roles by ``PROVIDER`` and
    ``OWNER``.
    """

    name: str
    disabled: bool
    roles: frozenset[str]
    provided: frozenset[str] = frozenset()
    owned: frozenset[str] = frozenset()


class KnownToken(NamedTuple):
    """A personal token and its user; ``roles`` is what it was given, ``expires_at`` in seconds since the epoch."""

    id: str
    name: str
    expires_at: float
    roles: frozenset[str]
    user: KnownUser


class Callers:
    """Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def user(self, name: str) -> KnownUser | None:
        """A user by name."""
        with self._database.reading() as connection:
            row = connection.execute(select(identity_user).where(identity_user.c.name == name)).first()
            return None if row is None else _user(connection, row.name, row.disabled)

    def token(self, *, digest: str | None = None, id: str | None = None) -> KnownToken | None:  # noqa: A002  # its name
        """A personal token by ``identity.tokens.digest`` of it, or by its id."""
        table = access_token
        which = table.c.hash == digest if id is None else table.c.id == id
        query = select(table, identity_user.c.disabled).join(identity_user, identity_user.c.name == table.c.user)
        with self._database.reading() as connection:
            row = connection.execute(query.where(which)).first()
            if row is None:
                return None
            user = _user(connection, row.user, row.disabled)
        self._used(row)
        return KnownToken(row.id, row.name, row.expires_at, frozenset(msgspec.json.decode(row.roles)), user)

    def lose(self, name: str, roles: Collection[str]) -> None:
        """Write down that a user, and their tokens, do not have roles from elsewhere any more."""
        table = user_role
        gone = delete(table).where(table.c.user == name, table.c.role.in_(roles), table.c.assigned_by == PROVIDER)
        with self._database.writing() as connection:
            connection.execute(gone)

    def _used(self, row: Row[Any]) -> None:
        now = time.time()
        if row.expires_at <= now or (row.last_used is not None and now - row.last_used < _USED_EVERY):
            return
        with self._database.writing() as connection:
            connection.execute(update(access_token).where(access_token.c.id == row.id).values(last_used=now))


def _user(connection: Connection, name: str, disabled: int) -> KnownUser:
    table = user_role
    found = connection.execute(select(table.c.role, table.c.assigned_by).where(table.c.user == name)).all()
    provided, owned = (frozenset(row.role for row in found if row.assigned_by == by) for by in (PROVIDER, OWNER))
    return KnownUser(name, bool(disabled), frozenset(row.role for row in found), provided, owned)
