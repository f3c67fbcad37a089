"""The audit log in the database.

Decided here and only here: that entries are only ever added, and deleted when they are old; and that a page is of the
newest entries, and goes on behind the last one by its id, whatever is added meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, insert, select

from casstore_server.db.schema import audit
from casstore_server.db.store import Database

__all__ = ["AuditLog", "AuditRow", "AuditWish", "NewAudit"]

_LENGTHS = {
    name: getattr(audit.c[name].type, "length", None)
    for name in ("user", "token", "action", "resource", "address", "request_id")
}


class NewAudit(NamedTuple):
    """What is written down; ``at`` in seconds since the epoch, ``detail`` is JSON."""

    at: float
    user: str
    token: str | None
    action: str
    resource: str
    outcome: str
    address: str
    request_id: str
    detail: str


class AuditRow(NamedTuple):
    """An entry."""

    id: int
    entry: NewAudit


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditWish:
    """Which entries; empty and None do not restrict. ``resource`` is the beginning of one; times as in ``NewAudit``."""

    user: str | None = None
    action: str | None = None
    outcome: str | None = None
    resource: str | None = None
    after: float | None = None
    before: float | None = None
    older_than: int | None = None


class AuditLog:
    """Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, entry: NewAudit) -> None:
        """Write an entry; what is too long for a column is cut."""
        values = {
            name: value[: _LENGTHS.get(name)] if isinstance(value, str) else value
            for name, value in entry._asdict().items()
        }
        with self._database.writing() as connection:
            connection.execute(insert(audit).values(values))

    def forget(self, before: float) -> int:
        """Delete what is older; how many entries that were."""
        with self._database.writing() as connection:
            return connection.execute(delete(audit).where(audit.c.at < before)).rowcount

    def page(self, wish: AuditWish, limit: int) -> list[AuditRow]:
        """The newest entries that fit, at most ``limit``."""
        query = select(audit).where(*_fits(wish)).order_by(audit.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [
                AuditRow(row.id, NewAudit(*(getattr(row, name) for name in NewAudit._fields)))
                for row in connection.execute(query)
            ]


def _fits(wish: AuditWish) -> list[ColumnElement[bool]]:
    table = audit.c
    found: list[ColumnElement[bool]] = []
    for column, value in ((table.user, wish.user), (table.action, wish.action), (table.outcome, wish.outcome)):
        if value is not None:
            found.append(column == value)
    if wish.resource:
        found.append(func.substr(table.resource, 1, len(wish.resource)) == wish.resource)
    if wish.after is not None:
        found.append(table.at >= wish.after)
    if wish.before is not None:
        found.append(table.at < wish.before)
    if wish.older_than is not None:
        found.append(table.id < wish.older_than)
    return found
