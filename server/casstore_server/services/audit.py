"""The audit log: who changed what, and who was refused.

Decided here and only here: what an entry says (never a body, a query or a header), that it is in the log of the server
as well, that refusals of one address do not fill the database, and how long entries are kept. An entry that can't be
written stops nobody: what was asked for is done, and the log of the server has it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

import msgspec

from casstore.errors import UsageError
from casstore.wire.audit import AuditEntry, AuditReply
from casstore.wire.protocol import from_iso, to_iso
from casstore_server.db.audit import AuditLog, AuditRow, AuditWish, NewAudit
from casstore_server.identity.limits import Limit
from casstore_server.services.context import Services

__all__ = ["DONE", "FAILED", "REFUSED", "Trail", "collecting", "note", "page", "unchanged"]

DONE: Final = "done"
REFUSED: Final = "refused"
FAILED: Final = "failed"
MAX_PAGE: Final = 1000
_MAX_NOTE: Final = 500
_REFUSALS: Final = (1.0, 100.0)
"""Refusals of one address that are written down: so many a second, and so many at once."""
_TIDY_SECONDS: Final = 3600.0
_DAY: Final = 86_400.0
_log = logging.getLogger("casstore_server.audit")
_notes: ContextVar[dict[str, str] | None] = ContextVar("casstore_audit", default=None)
_UNCHANGED: Final = ""


def collecting() -> dict[str, str]:
    """Begin to take notes for a request; what is noted while it is answered ends up in this."""
    notes: dict[str, str] = {}
    _notes.set(notes)
    return notes


def note(**facts: str) -> None:
    """Have the entry of this request say more. Nothing secret, and nothing that is not short."""
    notes = _notes.get()
    if notes is not None:
        notes.update({name: value[:_MAX_NOTE] for name, value in facts.items()})


def unchanged() -> None:
    """Say that this request, although it could, changes nothing."""
    notes = _notes.get()
    if notes is not None:
        notes[_UNCHANGED] = "1"


class Trail:
    """Writes entries; safe to use from any thread. ``days``: how long they are kept, 0 for ever."""

    def __init__(self, log: AuditLog, days: float, *, clock: Callable[[], float] = time.time) -> None:
        self._audit = log
        self._days = days
        self._clock = clock
        self._refusals = Limit(*_REFUSALS)
        self._lock = threading.Lock()
        self._tidied = float("-inf")

    def wants(self, outcome: str, address: str, notes: dict[str, str]) -> bool:
        """Whether an entry is to be written."""
        if outcome == REFUSED:
            return not self._refusals.wait(address)
        return _UNCHANGED not in notes

    def write(self, entry: NewAudit) -> None:
        """Write an entry, to the server's log too."""
        fields = {name: value for name, value in entry._asdict().items() if name not in {"at", "detail", "request_id"}}
        fields |= msgspec.json.decode(entry.detail, type=dict[str, object])
        _log.info(
            "%s %s %s by %s from %s", entry.outcome, entry.action, entry.resource, entry.user or "nobody",
            entry.address, extra={"fields": fields},
        )  # fmt: skip
        try:
            self._audit.add(entry)
            self._tidy()
        except Exception:  # noqa: BLE001  # the request itself is answered
            _log.exception("an entry of the audit log could not be written")

    def _tidy(self) -> None:
        now = self._clock()
        with self._lock:
            due = self._days > 0 and now - self._tidied >= _TIDY_SECONDS
            if due:
                self._tidied = now
        if due:
            self._audit.forget(now - self._days * _DAY)


def page(
    services: Services,
    *,
    user: str | None,
    action: str | None,
    outcome: str | None,
    resource: str | None,
    after: str | None,
    before: str | None,
    older_than: int | None,
    limit: int,
) -> AuditReply:
    """The newest entries that fit."""
    wish = AuditWish(
        user=user,
        action=action,
        outcome=outcome,
        resource=resource,
        after=_moment(after),
        before=_moment(before),
        older_than=older_than,
    )
    most = min(max(limit, 1), MAX_PAGE)
    rows = AuditLog(services.database).page(wish, most + 1)
    shown = rows[:most]
    return AuditReply(
        entries=[_entry(row) for row in shown], older_than=shown[-1].id if len(rows) > most and shown else None
    )


def _moment(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return from_iso(text)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"'{text[:40]}' is not a time", hint="Write it as YYYY-MM-DDTHH:MM:SS, in UTC.") from None


def _entry(row: AuditRow) -> AuditEntry:
    entry = row.entry
    return AuditEntry(
        id=row.id,
        at=to_iso(entry.at) or "",
        user=entry.user,
        token=entry.token,
        action=entry.action,
        resource=entry.resource,
        outcome=entry.outcome,
        address=entry.address,
        request_id=entry.request_id,
        detail=msgspec.json.decode(entry.detail, type=dict[str, str]),
    )
