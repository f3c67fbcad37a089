"""Users, their roles and their tokens: what is managed of them. What every request needs to know is in ``db.callers``.

Decided here and only here: that a deleted user's row stays, disabled, so that the identity provider lets nobody in
again who was put out here; that there always is an administrator, once there was one; and the order of lists.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from casstore.errors import ConflictError, NotFoundError
from casstore.wire.auth import ADMIN_ROLE
from casstore_server.db.callers import OWNER, PROVIDER
from casstore_server.db.schema import access_token, identity_user, profile, user_role
from casstore_server.db.store import Database
from casstore_server.db.transactions import upsert

__all__ = ["Given", "People", "Token", "User"]


class User(NamedTuple):
    """Somebody whom the server was told of; ``created`` in seconds since the epoch."""

    name: str
    created: float
    created_by: str


class Given(NamedTuple):
    """A role that a user has, from whom and since when."""

    role: str
    by: str
    at: float


class Token(NamedTuple):
    """A personal token; times in seconds since the epoch."""

    user: str
    name: str
    description: str
    created: float
    expires_at: float
    last_used: float | None
    roles: tuple[str, ...]


class People:
    """Safe to use from any thread; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, *, start: int, count: int, prefix: str = "", roles: Sequence[str] = ()) -> tuple[int, list[User]]:
        """How many users there are, and those from ``start`` (0 is the first), the newest first."""
        table = identity_user
        which = table.c.disabled == 0
        if prefix:
            which &= table.c.name.startswith(prefix, autoescape=True)
        if roles:
            which &= table.c.name.in_(select(user_role.c.user).where(user_role.c.role.in_(roles)))
        order = (table.c.created.desc(), table.c.name)
        with self._database.reading() as connection:
            total = connection.execute(select(func.count()).select_from(table).where(which)).scalar_one()
            rows = connection.execute(select(table).where(which).order_by(*order).limit(count).offset(start))
            return total, [_user(row) for row in rows]

    def get(self, name: str) -> tuple[User, list[Given]]:
        """A user with roles, by their names. ``NotFoundError``."""
        with self._database.reading() as connection:
            return _found(connection, name), _roles(connection, name)

    def create(self, name: str, *, by: str, roles: Sequence[str]) -> User:
        """Make a user, or let a deleted one in again. ``ConflictError`` when there is one."""
        user = User(name, time.time(), by)
        with self._database.writing() as connection:
            again = update(identity_user).where(identity_user.c.name == name, identity_user.c.disabled == 1)
            values = {"created": user.created, "created_by": by, "disabled": 0}
            if not connection.execute(again.values(values)).rowcount and not _new(connection, name, values):
                raise ConflictError(f"There is a user {name} already", hint=f"See: osmo user get {name}")
            for role in sorted(set(roles)):
                _give(connection, name, Given(role, by, user.created))
        return user

    def remember(self, name: str, *, own: Collection[str], others: Collection[str], by: str) -> None:
        """Write down somebody who came in without being known, with the roles that they have of their ``own``; and
        ``others``, which they have by ``PROVIDER`` or ``OWNER``, each time. Whoever is deleted stays so.
        """
        now = time.time()
        with self._database.writing() as connection:
            if _new(connection, name, {"created": now, "created_by": name, "disabled": 0}):
                for role in sorted(own):
                    _give(connection, name, Given(role, name, now))
            else:
                _found(connection, name)
            for role in sorted(others):
                _give(connection, name, Given(role, by, now))

    def delete(self, name: str) -> None:
        """Delete a user with tokens, roles and settings. ``ConflictError`` for the last administrator."""
        with self._database.writing() as connection:
            _found(connection, name)
            _check_last_admin(connection, name)
            connection.execute(delete(access_token).where(access_token.c.user == name))
            connection.execute(delete(user_role).where(user_role.c.user == name))
            connection.execute(delete(profile).where(profile.c.user == name))
            connection.execute(update(identity_user).where(identity_user.c.name == name).values(disabled=1))

    def give(self, name: str, role: str, *, by: str) -> Given:
        """Give a user a role; one that they have stays as it is, unless it was theirs only for a while."""
        with self._database.writing() as connection:
            _found(connection, name)
            passing = user_role.c.assigned_by.in_((PROVIDER, OWNER))
            which = (user_role.c.user == name) & (user_role.c.role == role) & passing
            connection.execute(delete(user_role).where(which))
            _give(connection, name, Given(role, by, time.time()))
            return next(given for given in _roles(connection, name) if given.role == role)

    def take(self, name: str, role: str) -> None:
        """Take a role from a user. ``NotFoundError`` when they don't have it."""
        with self._database.writing() as connection:
            _found(connection, name)
            if role == ADMIN_ROLE:
                _check_last_admin(connection, name)
            gone = delete(user_role).where(user_role.c.user == name, user_role.c.role == role)
            if not connection.execute(gone).rowcount:
                raise NotFoundError(f"{name} does not have the role {role}", hint=f"See: osmo user get {name}")

    def tokens(self, user: str) -> list[Token]:
        """The tokens of a user, by their names."""
        query = select(access_token).where(access_token.c.user == user).order_by(access_token.c.name)
        with self._database.reading() as connection:
            return [_token(row) for row in connection.execute(query)]

    def token(self, user: str, name: str) -> Token:
        """One token. ``NotFoundError``."""
        query = select(access_token).where(access_token.c.user == user, access_token.c.name == name)
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise _no_token(user, name)
        return _token(row)

    def add_token(self, token: Token, digest: str) -> None:
        """Keep a token. ``ConflictError`` when its user has one of this name."""
        values = token._asdict() | {"id": uuid.uuid4().hex, "hash": digest, "roles": _dump(token.roles)}
        try:
            with self._database.writing() as connection:
                _found(connection, token.user)
                connection.execute(insert(access_token).values(values))
        except IntegrityError:
            raise ConflictError(
                f"{token.user} has a token {token.name} already", hint="Choose another name, or delete that one first."
            ) from None

    def delete_token(self, user: str, name: str) -> None:
        """Delete a token. ``NotFoundError``."""
        gone = delete(access_token).where(access_token.c.user == user, access_token.c.name == name)
        with self._database.writing() as connection:
            if not connection.execute(gone).rowcount:
                raise _no_token(user, name)


def _new(connection: Connection, name: str, values: dict[str, Any]) -> bool:
    """Make a row unless there is one; whether it was made."""
    row = upsert(connection, identity_user).values(name=name, **values).on_conflict_do_nothing(index_elements=["name"])
    return connection.execute(row.returning(identity_user.c.name)).first() is not None


def _found(connection: Connection, name: str) -> User:
    row = connection.execute(
        select(identity_user).where(identity_user.c.name == name, identity_user.c.disabled == 0)
    ).first()
    if row is None:
        raise NotFoundError(f"There is no user {name}", hint="See: osmo user list")
    return _user(row)


def _roles(connection: Connection, name: str) -> list[Given]:
    table = user_role
    rows = connection.execute(select(table).where(table.c.user == name).order_by(table.c.role))
    return [Given(row.role, row.assigned_by, row.assigned_at) for row in rows]


def _give(connection: Connection, name: str, given: Given) -> None:
    row = {"user": name, "role": given.role, "assigned_by": given.by, "assigned_at": given.at}
    connection.execute(
        upsert(connection, user_role).values(row).on_conflict_do_nothing(index_elements=["user", "role"])
    )


def _check_last_admin(connection: Connection, name: str) -> None:
    """Raise ``ConflictError`` if nobody else could undo what is about to be done; others wait until it is done."""
    admins = select(user_role.c.user).where(user_role.c.role == ADMIN_ROLE).order_by(user_role.c.user)
    if list(connection.execute(admins.with_for_update()).scalars()) == [name]:
        raise ConflictError(
            f"{name} is the last administrator", hint=f"Give the role {ADMIN_ROLE} to somebody else first."
        )


def _user(row: Row[Any]) -> User:
    return User(row.name, row.created, row.created_by)


def _token(row: Row[Any]) -> Token:
    roles = tuple(msgspec.json.decode(row.roles))
    return Token(row.user, row.name, row.description, row.created, row.expires_at, row.last_used, roles)


def _dump(roles: Sequence[str]) -> str:
    return msgspec.json.encode(sorted(roles)).decode()


def _no_token(user: str, name: str) -> NotFoundError:
    return NotFoundError(f"{user} has no token {name}", hint="See: osmo token list")
