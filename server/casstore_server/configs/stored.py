"""The configs of the database as a running process has them.

Decided here and only here: how often the database is asked whether there is something new, and that a process goes on
with what it knows while the database can't be reached.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from casstore.errors import CasstoreError
from casstore_server.configs.effect import NONE, Stored
from casstore_server.configs.masking import ids
from casstore_server.db.configs import ConfigRows

__all__ = ["StoredConfigs"]

SECONDS: Final = 2.0
"""How old what is known may be: what another server changed takes effect within this time."""
_PAUSE: Final = 1.0
_log = logging.getLogger(__name__)


class StoredConfigs:
    """Called, it gives what is stored. Thread-safe."""

    def __init__(self, rows: Callable[[], ConfigRows | None], *, patience: float = 0.0) -> None:
        """``rows`` gives None where there is no database. ``patience``: for how many seconds the first answer of one
        that can't be reached is waited for.
        """
        self._rows = rows
        self._patience = patience
        self._asked = False
        self._lock = threading.Lock()
        self._known = NONE
        self._heads: dict[str, int] = {}
        self._until = -1.0
        self._wanted = self._seen = 0

    def __call__(self) -> Stored:
        with self._lock:
            wanted = self._wanted
            if time.monotonic() >= self._until or wanted != self._seen:
                deadline = time.monotonic() + (0.0 if self._asked else self._patience)
                while not self._looked() and time.monotonic() < deadline:
                    time.sleep(_PAUSE)
                self._asked, self._seen = True, wanted
                self._until = time.monotonic() + SECONDS
            return self._known

    def forget(self) -> None:
        """Look again at once: somebody here has changed something."""
        self._wanted += 1

    def _looked(self) -> bool:
        try:
            self._look()
        except (DBAPIError, CasstoreError) as error:
            _log.warning("the configs in the database can't be read: %s", type(error).__name__)
            return False
        return True

    def _look(self) -> None:
        rows = self._rows()
        heads = {} if rows is None else rows.heads()
        if rows is None or heads == self._heads:
            return
        docs: dict[str, Any] = dict(self._known.docs)
        for kind, revision in heads.items():
            if revision != self._heads.get(kind):
                docs[kind] = rows.get(kind, revision).data
        opened = rows.opened(set(ids(docs.get("DATASET"))))
        self._known, self._heads = Stored(tuple(sorted(heads.items())), docs, opened), heads
