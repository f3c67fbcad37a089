"""Waiting between two attempts.

Decided here and only here: how long a service may have us wait, and that nobody goes on waiting once the user has
interrupted. An interrupt reaches the main thread alone, which then waits for the others to end: they must not sit out
the minute that a busy service asked for.
"""

from __future__ import annotations

import math
import threading
import time

from casstore.errors import CancelledError

__all__ = ["LONGEST_ASKED", "asked", "interrupt", "pause"]

LONGEST_ASKED = 300.0
"""Seconds that a service may ask for at most."""

_SLICE = 0.2
_interrupted = False


def interrupt() -> None:
    """End all pauses of this process, now and later: they raise ``CancelledError``. For a handler of signals."""
    global _interrupted  # noqa: PLW0603 - it is one process that is interrupted; a lock could be held by whom it stops
    _interrupted = True


def asked(text: str, *, unit: float = 1.0) -> float | None:
    """Return the seconds that a service asks to wait, in ``text`` as a number of which ``unit`` are a second.

    None for what is no number, a date among it.
    """
    try:
        seconds = float(text) / unit
    except ValueError:
        return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_ASKED)


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
