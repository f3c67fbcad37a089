"""Configs and their history in the database.

Decided here and only here: that the newest revision of a type is what is in force; that one is made at a time, so that
none is made of an older state; that a revision is never changed, only hidden; and that secrets are kept apart, sealed,
so that they are in no revision.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore_server.db import schema, sealed
from casstore_server.db.store import Database
from casstore_server.db.transactions import upsert
from casstore_server.secrets import SecretBox

__all__ = ["ConfigRows", "HistoryFilter", "Note", "Revision"]

_HEAD: Final = schema.config_head
_TABLE: Final = schema.config_revision
_TAG: Final = schema.config_tag
_SECRET: Final = schema.config_secret
MAX_DATA: Final = 8 << 20
"""Bytes of all configs of a type."""


class Note(NamedTuple):
    """What is remembered of a change: who made it, of which config of the type (empty: all), and why."""

    author: str
    name: str
    description: str
    tags: Sequence[str] = ()


class Revision(NamedTuple):
    """A revision; ``data`` is None where it was not asked for, ``created`` in seconds since the epoch."""

    kind: str
    revision: int
    name: str
    author: str
    created: float
    description: str
    tags: tuple[str, ...]
    data: Any


class HistoryFilter(NamedTuple):
    """What is looked for; ``at``: what was in force then. Times in seconds since the epoch."""

    kinds: Sequence[str] = ()
    name: str | None = None
    revision: int | None = None
    tags: Sequence[str] = ()
    before: float | None = None
    after: float | None = None
    at: float | None = None
    limit: int = 20
    offset: int = 0
    descending: bool = False
    data: bool = True


class ConfigRows:
    """Thread-safe; every call is a transaction of its own."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box

    def heads(self) -> dict[str, int]:
        """The newest revision of each type."""
        with self._database.reading() as connection:
            return {row.type: row.revision for row in connection.execute(select(_HEAD))}

    def current(self, kind: str) -> Revision | None:
        """What is in force; None when nothing was ever stored."""
        found = self.history(HistoryFilter(kinds=[kind], limit=1, descending=True))
        return found[0] if found else None

    def change(
        self,
        kind: str,
        note: Note,
        fn: Callable[[Any, Secrets], Any],
        *,
        expected: int | None = None,
        empty: Any = None,
    ) -> int:
        """Store what ``fn`` makes of the configs of a type as its next revision, which is returned; ``fn`` may raise.

        It is given ``empty`` when there are none. ``ConflictError`` when the newest one is not the ``expected``.
        """
        with self._database.writing() as connection:
            sealed.hold(connection)
            head = self._locked(connection, kind)
            if expected is not None and expected != head:
                raise self._changed(connection, kind, head, expected)
            old = empty if head == 0 else json.loads(self._row(connection, kind, head).data)
            new = fn(old, Secrets(connection, self._box))
            text = json.dumps(new, separators=(",", ":"))
            if len(text) > MAX_DATA:
                raise UsageError(f"All configs of type {kind} together are larger than {MAX_DATA >> 20} MiB")
            self._store(connection, kind, head + 1, note, text)
            return head + 1

    def seed(self, kinds: Mapping[str, Any], note: Note) -> None:
        """Store a first revision of each type that has none."""
        missing = sorted(kinds.keys() - self.heads().keys())
        for kind in missing:
            with self._database.writing() as connection:
                if self._locked(connection, kind) == 0:
                    self._store(connection, kind, 1, note, json.dumps(kinds[kind]))

    def history(self, wanted: HistoryFilter) -> list[Revision]:
        """Revisions that were not hidden: of the newest ones that fit, ``limit`` after ``offset``, in their order."""
        query = _filtered(wanted)
        with self._database.reading() as connection:
            rows = list(connection.execute(query))
            tags = _tags_of(connection, rows)
        found = [_revision(row, tags.get((row.type, row.revision), ()), data=wanted.data) for row in rows]
        return found if wanted.descending else found[::-1]

    def get(self, kind: str, revision: int) -> Revision:
        """One revision. ``NotFoundError``."""
        found = self.history(HistoryFilter(kinds=[kind], revision=revision))
        if not found:
            raise _missing(kind, revision)
        return found[0]

    def hide(self, kind: str, revision: int, by: str) -> None:
        """Take a revision out of the history; its number is not given again. ``ConflictError`` for what is in force."""
        with self._database.writing() as connection:
            head = self._locked(connection, kind)
            if revision == head:
                raise ConflictError(f"{kind}:{revision} is in force and can't be deleted", hint="Roll back first.")
            where = (_TABLE.c.type == kind, _TABLE.c.revision == revision, _TABLE.c.deleted.is_(None))
            done = connection.execute(update(_TABLE).where(*where).values(deleted=time.time(), deleted_by=by))
            if not done.rowcount:
                raise _missing(kind, revision)

    def tag(self, kind: str, revision: int, add: Iterable[str], remove: Iterable[str]) -> None:
        """Change the tags of a revision. ``NotFoundError``."""
        with self._database.writing() as connection:
            self._locked(connection, kind)
            row = self._row(connection, kind, revision)
            if row.deleted is not None:
                raise _missing(kind, revision)
            where = (_TAG.c.type == kind, _TAG.c.revision == revision)
            connection.execute(delete(_TAG).where(*where, _TAG.c.tag.in_(list(remove))))
            _add_tags(connection, kind, revision, set(add) - set(remove))

    def opened(self, ids: Iterable[str]) -> dict[str, str]:
        """Secrets, by id."""
        with self._database.reading() as connection:
            rows = connection.execute(select(_SECRET.c.id, _SECRET.c.sealed).where(_SECRET.c.id.in_(list(ids))))
            return {row.id: self._box.open(row.sealed, *sealed.context_of(_SECRET, row.id)).decode() for row in rows}

    def _locked(self, connection: Connection, kind: str) -> int:
        """The newest revision, 0 when there is none. Until the transaction ends nobody else changes any type: configs
        name each other.
        """
        connection.execute(upsert(connection, _HEAD).values(type=kind, revision=0).on_conflict_do_nothing())
        every = connection.execute(select(_HEAD).order_by(_HEAD.c.type).with_for_update())
        return {row.type: int(row.revision) for row in every}[kind]

    def _store(self, connection: Connection, kind: str, revision: int, note: Note, text: str) -> None:
        row = {
            "type": kind,
            "revision": revision,
            "name": note.name,
            "author": note.author,
            "created": round(time.time(), 6),  # as exact as it is written in replies, so that it can be asked for
            "description": note.description,
            "data": text,
        }
        connection.execute(insert(_TABLE).values(**row))
        _add_tags(connection, kind, revision, set(note.tags))
        connection.execute(update(_HEAD).where(_HEAD.c.type == kind).values(revision=revision))

    def _changed(self, connection: Connection, kind: str, head: int, expected: int) -> ConflictError:
        by = ""
        if head:
            row = self._row(connection, kind, head)
            by = f" by {row.author}: {row.description}"
        return ConflictError(
            f"{kind} was changed meanwhile: it is at revision {head}, not {expected}{by}",
            hint=f"Look at it (osmo config diff {kind}:{expected}), and make your change again.",
        )

    def _row(self, connection: Connection, kind: str, revision: int) -> Row[Any]:
        query = select(_TABLE).where(_TABLE.c.type == kind, _TABLE.c.revision == revision)
        row = connection.execute(query).first()
        if row is None:
            raise _missing(kind, revision)
        return row


class Secrets:
    """The secrets of configs, within a change."""

    def __init__(self, connection: Connection, box: SecretBox) -> None:
        self._connection = connection
        self._box = box

    def keep(self, value: str, old: str | None) -> str:
        """The id for a secret: that of the one before it, if it is the same."""
        if old is not None and self._opened(old) == value:
            return old
        made = secrets.token_hex(8)
        text = self._box.seal(value.encode(), *sealed.context_of(_SECRET, made))
        self._connection.execute(insert(_SECRET).values(id=made, sealed=text, created=time.time()))
        return made

    def _opened(self, secret: str) -> str | None:
        found = self._connection.execute(select(_SECRET.c.sealed).where(_SECRET.c.id == secret)).scalar_one_or_none()
        return None if found is None else self._box.open(found, *sealed.context_of(_SECRET, secret)).decode()


def _filtered(wanted: HistoryFilter) -> Select[Any]:
    columns = [column for column in _TABLE.columns if wanted.data or column.name != "data"]
    query = select(*columns).where(_TABLE.c.deleted.is_(None))
    if wanted.kinds:
        query = query.where(_TABLE.c.type.in_(list(wanted.kinds)))
    if wanted.name is not None:
        query = query.where(_TABLE.c.name == wanted.name)
    if wanted.revision is not None:
        query = query.where(_TABLE.c.revision == wanted.revision)
    if wanted.before is not None:
        query = query.where(_TABLE.c.created < wanted.before)
    if wanted.after is not None:
        query = query.where(_TABLE.c.created > wanted.after)
    for tag in wanted.tags:
        same = (_TAG.c.type == _TABLE.c.type, _TAG.c.revision == _TABLE.c.revision, _TAG.c.tag == tag)
        query = query.where(select(_TAG.c.tag).where(*same).exists())
    if wanted.at is not None:
        query = query.where(_TABLE.c.created <= wanted.at)
        newest = _TABLE.alias()
        latest = (
            select(func.max(newest.c.revision))
            .where(newest.c.type == _TABLE.c.type, newest.c.created <= wanted.at, newest.c.deleted.is_(None))
            .scalar_subquery()
        )
        query = query.where(_TABLE.c.revision == latest)
    order = (_TABLE.c.created.desc(), _TABLE.c.type, _TABLE.c.revision.desc())
    return query.order_by(*order).limit(wanted.limit).offset(wanted.offset)


def _tags_of(connection: Connection, rows: Sequence[Row[Any]]) -> dict[tuple[str, int], tuple[str, ...]]:
    kinds, revisions = {row.type for row in rows}, {row.revision for row in rows}
    query = select(_TAG).where(_TAG.c.type.in_(kinds), _TAG.c.revision.in_(revisions)).order_by(_TAG.c.tag)
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for row in connection.execute(query):
        key = (row.type, row.revision)
        found[key] = (*found.get(key, ()), row.tag)
    return found


def _revision(row: Row[Any], tags: tuple[str, ...], *, data: bool) -> Revision:
    found = json.loads(row.data) if data else None
    return Revision(row.type, row.revision, row.name, row.author, row.created, row.description, tags, found)


def _add_tags(connection: Connection, kind: str, revision: int, tags: Iterable[str]) -> None:
    for tag in sorted(tags):
        made = upsert(connection, _TAG).values(type=kind, revision=revision, tag=tag)
        connection.execute(made.on_conflict_do_nothing())


def _missing(kind: str, revision: int) -> NotFoundError:
    return NotFoundError(f"There is no {kind}:{revision}", hint=f"See: osmo config history {kind}")
