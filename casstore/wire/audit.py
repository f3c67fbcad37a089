"""The audit log, as ``GET api/v1/audit`` shows it.

Decided here and only here: its field names.
"""

from __future__ import annotations

import msgspec

__all__ = ["AUDIT_PATH", "AuditEntry", "AuditReply"]

AUDIT_PATH = "api/v1/audit"


class AuditEntry(msgspec.Struct, kw_only=True):
    """Somebody changed something (``outcome`` is ``done``, or ``failed`` when it may be half done), or was ``refused``.

    ``user`` is empty where nobody said who they are; ``action`` is the right that it takes, or ``login``,
    ``resource`` what it was about, as a path.
    """

    id: int
    at: str
    user: str
    token: str | None
    action: str
    resource: str
    outcome: str
    address: str
    request_id: str
    detail: dict[str, str] = {}


class AuditReply(msgspec.Struct, kw_only=True):
    """A page, the newest entry first; ``older_than`` asks for the next one, and is null when there is none."""

    entries: list[AuditEntry]
    older_than: int | None = None
