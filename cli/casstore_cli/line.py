"""Progress of work that is counted in steps: one line on a terminal, silence elsewhere.

Decided here and only here: how it looks. All events may come from several threads.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Self

from casstore.repo.gc.watch import Watcher

__all__ = ["Line"]

_REDRAW = 0.1


class Line(Watcher):
    """One line on standard error that says how far it is, when that is a terminal. Use as a context manager."""

    def __init__(self) -> None:
        self._draws = sys.stderr.isatty()
        self._what = ""
        self._total = self._done = 0
        self._drawn_at = 0.0
        self._drawn = False
        self._lock = threading.RLock()

    def phase(self, what: str, total: int) -> None:
        """See ``Watcher``."""
        with self._lock:
            self._what, self._total, self._done = what, total, 0
            self._draw()

    def step(self, size: int = 0) -> None:
        """See ``Watcher``."""
        with self._lock:
            self._done += 1
            self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._draws or now - self._drawn_at < _REDRAW:
            return
        self._drawn_at, self._drawn = now, True
        count = f"{self._done}/{self._total}" if self._total else str(self._done or "")
        sys.stderr.write(f"\r{self._what} {count}\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._drawn:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
                self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        self._draws = False
