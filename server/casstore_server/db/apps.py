"""Apps in the database.

Decided here and only here: that an app's name belongs to one app at a time, that a version never changes and its number
is never given twice, and that a deleted version keeps its row and loses its text, so that it can still be told what ran
by it. An app all of whose versions are deleted can't be found any more, and its name is free again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Subquery, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from casstore.errors import AccessError, ConflictError, NotFoundError
from casstore_server.db import schema
from casstore_server.db.store import Database

__all__ = ["App", "Apps", "Version"]

DELETED, READY = "DELETED", "READY"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an app; ``at`` in seconds since the epoch."""

    number: int
    user: str
    at: float
    status: str


@dataclass(frozen=True, slots=True)
class App:
    """An app; ``latest`` is the number of its newest version that is not deleted."""

    uuid: str
    name: str
    owner: str
    description: str
    at: float
    latest: int


class Apps:
    """Safe to use from any thread; every method is one transaction. ``manages``: apps of others may be changed too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, *, owner: str, description: str, text: str) -> tuple[App, Version]:
        """Make an app with its first version. ``ConflictError`` when the name is taken."""
        now = time.time()
        with _one_name(name), self._database.writing() as connection:
            other = _row(connection, name)
            if other is not None:
                raise ConflictError(
                    f"There is an app {name} already, of {other.owner}",
                    hint=f"Choose another name, or add a version to it: osmo app update {name}",
                )
            made = uuid.uuid4().hex
            connection.execute(
                insert(schema.app).values(
                    uuid=made, name=name, taken=name, owner=owner, description=description, created_time=now
                )
            )
            version = _add(connection, made, 1, owner, now, text)
        return App(made, name, owner, description, now, 1), version

    def update(
        self, name: str, *, user: str, text: str, base: int | None = None, manages: bool = False
    ) -> tuple[App, Version, bool]:
        """Add a version, unless the text is that of ``base`` (without it: the newest); whether one was added."""
        with self._database.writing() as connection:
            app = _mine(connection, name, user, manages)
            before = _version(connection, app, base)
            if before.text == text and before.number == app.latest:
                return app, _as_version(before), False
            last = connection.execute(
                select(func.max(schema.app_version.c.number)).where(schema.app_version.c.app_uuid == app.uuid)
            ).scalar_one()
            version = _add(connection, app.uuid, last + 1, user, time.time(), text)
        return App(app.uuid, app.name, app.owner, app.description, app.at, version.number), version, True

    def find(self, name: str, *, number: int | None, limit: int, oldest_first: bool) -> tuple[App, list[Version]]:
        """An app and a page of its versions, the newest first, or the one of this number. ``NotFoundError``."""
        table = schema.app_version
        with self._database.reading() as connection:
            app = _app(connection, name)
            query = select(table).where(table.c.app_uuid == app.uuid)
            if number is not None:
                query = query.where(table.c.number == number)
            order = table.c.number if oldest_first else table.c.number.desc()
            found = [_as_version(row) for row in connection.execute(query.order_by(order).limit(limit))]
        if number is not None and not found:
            raise _no_version(app, number)
        return app, found

    def text(self, name: str, number: int | None) -> str:
        """The workflow file of a version, the newest by default. ``NotFoundError``."""
        with self._database.reading() as connection:
            found: str = _version(connection, _app(connection, name), number).text
        return found

    def check(self, identity: str, number: int) -> None:
        """Raise ``NotFoundError`` unless the app of this uuid has this version."""
        table = schema.app_version
        with self._database.reading() as connection:
            row = connection.execute(
                select(table.c.number).where(table.c.app_uuid == identity, table.c.number == number)
            ).first()
        if row is None:
            raise NotFoundError(f"There is no version {number} of the app with the uuid {identity[:40]}")

    def page(
        self, *, owners: Sequence[str], name: str | None, limit: int, offset: int, oldest_first: bool
    ) -> list[App]:
        """Apps by the time they were made, the newest first."""
        table = schema.app
        latest = _latest()
        query = select(table, latest.c.latest).join(latest, latest.c.app_uuid == table.c.uuid)
        if owners:
            query = query.where(table.c.owner.in_(owners))
        if name:
            query = query.where(table.c.name.contains(name, autoescape=True))
        order = (table.c.created_time, table.c.name)
        query = query.order_by(*(order if oldest_first else (column.desc() for column in order)))
        with self._database.reading() as connection:
            return [_as_app(row) for row in connection.execute(query.limit(limit).offset(offset))]

    def delete(self, name: str, *, user: str, number: int | None, manages: bool = False) -> list[int]:
        """Delete a version, or all (None); gives the numbers. An app without versions is gone."""
        table = schema.app_version
        with self._database.writing() as connection:
            app = _mine(connection, name, user, manages)
            query = select(table.c.number).where(table.c.app_uuid == app.uuid, table.c.status == READY)
            if number is not None:
                query = query.where(table.c.number == number)
            gone = list(connection.execute(query.order_by(table.c.number)).scalars())
            if not gone:
                raise _no_version(app, number or app.latest)
            connection.execute(
                update(table)
                .where(table.c.app_uuid == app.uuid, table.c.number.in_(gone))
                .values(status=DELETED, text="")
            )
            left = connection.execute(
                select(func.count()).select_from(table).where(table.c.app_uuid == app.uuid, table.c.status == READY)
            ).scalar_one()
            if not left:
                connection.execute(update(schema.app).where(schema.app.c.uuid == app.uuid).values(taken=None))
        return gone

    def rename(self, name: str, new: str, *, user: str, manages: bool = False) -> None:
        """Give an app another name. ``ConflictError`` when that is taken."""
        with _one_name(new), self._database.writing() as connection:
            app = _mine(connection, name, user, manages)
            if _row(connection, new) is not None:
                raise ConflictError(f"There is an app {new} already", hint="Choose another name.")
            connection.execute(update(schema.app).where(schema.app.c.uuid == app.uuid).values(name=new, taken=new))


@contextmanager
def _one_name(name: str) -> Iterator[None]:
    """Two servers may give one name away at the same moment: the database takes one of them."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(f"There is an app {name} already", hint="Choose another name.") from error


def _latest() -> Subquery:
    """The newest version of each app that is not deleted."""
    table = schema.app_version
    return (
        select(table.c.app_uuid, func.max(table.c.number).label("latest"))
        .where(table.c.status == READY)
        .group_by(table.c.app_uuid)
        .subquery()
    )


def _row(connection: Connection, name: str) -> Row[Any] | None:
    latest = _latest()
    query = select(schema.app, latest.c.latest).join(latest, latest.c.app_uuid == schema.app.c.uuid)
    return connection.execute(query.where(schema.app.c.taken == name)).first()


def _app(connection: Connection, name: str) -> App:
    row = _row(connection, name)
    if row is None:
        raise NotFoundError(f"There is no app {name}", hint="See: osmo app list --all-users")
    return _as_app(row)


def _mine(connection: Connection, name: str, user: str, manages: bool) -> App:
    app = _app(connection, name)
    if app.owner != user and not manages:
        raise AccessError(
            f"App {name} belongs to {app.owner}", hint="Make your own from it: osmo app spec, osmo app create"
        )
    return app


def _version(connection: Connection, app: App, number: int | None) -> Row[Any]:
    table = schema.app_version
    wanted = app.latest if number is None else number
    query = select(table).where(table.c.app_uuid == app.uuid, table.c.number == wanted, table.c.status == READY)
    row = connection.execute(query).first()
    if row is None:
        raise _no_version(app, wanted)
    return row


def _no_version(app: App, number: int) -> NotFoundError:
    return NotFoundError(f"App {app.name} has no version {number}", hint=f"Its newest is {app.latest}.")


def _add(connection: Connection, app_uuid: str, number: int, user: str, now: float, text: str) -> Version:
    connection.execute(
        insert(schema.app_version).values(
            app_uuid=app_uuid, number=number, created_by=user, created_time=now, status=READY, text=text
        )
    )
    return Version(number, user, now, READY)


def _as_version(row: Row[Any]) -> Version:
    return Version(row.number, row.created_by, row.created_time, row.status)


def _as_app(row: Row[Any]) -> App:
    return App(row.uuid, row.name, row.owner, row.description, row.created_time, row.latest)
