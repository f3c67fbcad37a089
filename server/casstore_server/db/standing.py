"""How far workflows are, for those who follow them.

Decided here and only here: that many who ask at about the same time, of whatever workflows, share one statement, and
how old an answer may be. A workflow that was over stays over, so that only a late end can be told too late.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from sqlalchemy import Connection, select

from casstore_orchestrator.status import WorkflowStatus
from casstore_server.db import schema

__all__ = ["Standing", "Standings"]

FRESH_S = 0.4
_KEPT_S = 3.0
"""How long a workflow is asked for along with others after somebody asked for it."""


class Standing(NamedTuple):
    """``finished``: it has its last status. ``live``: something of it still is being done."""

    finished: bool
    live: bool


_GONE = Standing(finished=True, live=False)


class Standings:
    """Answers of the database, a moment old at most. Safe to use from any thread."""

    def __init__(self, reading: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._reading = reading
        self._looking = threading.Lock()
        self._asked: dict[str, float] = {}
        self._found: dict[str, Standing] = {}
        self._looked = -math.inf

    def of(self, workflow_id: str) -> Standing:
        """Where the workflow with this id stands; one that is not there has ended."""
        known = self._found.get(workflow_id)
        if known is not None and time.monotonic() - self._looked < FRESH_S:
            self._asked[workflow_id] = time.monotonic()
            return known
        # Whoever comes while somebody looks takes what was there before, as if it had come a little earlier.
        if not self._looking.acquire(blocking=known is None):
            return known  # type: ignore[return-value]  # it was there
        try:
            now = time.monotonic()
            self._asked[workflow_id] = now
            if workflow_id not in self._found or now - self._looked >= FRESH_S:
                self._look(now)
            return self._found[workflow_id]
        finally:
            self._looking.release()

    def _look(self, now: float) -> None:
        self._asked = {name: at for name, at in list(self._asked.items()) if now - at < _KEPT_S}
        table = schema.workflow
        wanted = select(table.c.id, table.c.status, table.c.live).where(table.c.id.in_(list(self._asked)))
        with self._reading() as connection:
            rows = connection.execute(wanted).all()
        found = {row.id: Standing(WorkflowStatus(row.status).finished, bool(row.live)) for row in rows}
        self._found = dict.fromkeys(self._asked, _GONE) | found
        self._looked = now
