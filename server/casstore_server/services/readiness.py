"""Whether the server can do its work.

Decided here and only here: what must be right for that: the database answers, the scheduler goes on, and the server was
not told to end. Being alive (``/health``) is less: that it answers at all.
"""

from __future__ import annotations

import logging

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from casstore_server.services.context import Services

__all__ = ["Readiness", "check"]

STUCK_S = 60.0
"""Seconds without a step after which the scheduler counts as stuck; it makes one at least every five."""
_log = logging.getLogger(__name__)


class Readiness(msgspec.Struct, frozen=True):
    """``status`` is ``OK`` when every check is; a check is ``OK`` or says what is wrong."""

    status: str
    checks: dict[str, str]


def check(services: Services) -> Readiness:
    """Look now."""
    figures = services.scheduler.figures()
    stuck = figures.seconds_since_step > max(STUCK_S, 2 * services.settings.lease)
    checks = {
        "database": _database(services),
        "scheduler": "not running" if not figures.alive else "makes no steps" if stuck else "OK",
        "server": "ending" if services.ending.is_set() else "OK",
    }
    return Readiness("OK" if set(checks.values()) == {"OK"} else "NOT READY", checks)


def _database(services: Services) -> str:
    try:
        with services.database.reading() as connection:
            connection.execute(text("SELECT 1 FROM alembic_version"))
    except SQLAlchemyError as exc:
        _log.warning("the database does not answer: %s", exc)
        return "does not answer"
    return "OK"
