"""Waiting between two attempts.

Decided here and only here: that nobody goes on waiting once the user has interrupted. An interrupt reaches the main
thread alone, which then waits for the others to end: they must not sit out the minute that a busy service asked for.
"""

from __future__ import annotations

import threading
import time

from casstore.errors import CancelledError

__all__ = ["interrupt", "pause"]

_SLICE = 0.2
_interrupted = False


def interrupt() -> None:
    """End all pauses of this process, now and later: they raise ``CancelledError``. For a handler of signals."""
    global _interrupted  # noqa: PLW0603 - it is one process that is interrupted; a lock could be held by whom it stops
    _interrupted = True


def pause(seconds: float, ended: threading.Event | None = None) -> bool:
    """Wait; returns whether ``ended`` was set meanwhile. ``CancelledError`` after an interrupt."""
    ended = ended or threading.Event()
    end = time.monotonic() + seconds
    while True:
        if _interrupted:
            raise CancelledError("interrupted")
        left = end - time.monotonic()
        if left <= 0:
            return ended.is_set()
        if ended.wait(min(left, _SLICE)):
            return True
