"""How the transfers of a task are tried again, interrupted and reported.

Decided here and only here: which failures are worth another try, how often and after how long, and how the work
for a task is told to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from casstore.errors import CancelledError, IntegrityError, ServiceError, StorageError

__all__ = ["ATTEMPTS", "Say", "Stop", "repeat"]

ATTEMPTS = 5
FIRST_PAUSE = 1.0
"""Seconds before the second try; doubled for each further one."""

Say = Callable[[str], None]
"""Takes one line of our own for a task's log."""

_T = TypeVar("_T")


class Stop:
    """Tells work that runs in a thread to end; once set it stays set."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """End the work; the first reason is kept."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    def __call__(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, unless told to stop; whether it was."""
        return self._event.wait(seconds)

    def check(self) -> None:
        """Raise ``CancelledError`` once told to stop."""
        if self._event.is_set():
            msg = self.reason or "the task was stopped"
            raise CancelledError(msg)


def repeat(work: Callable[[], _T], what: str, *, say: Say, stop: Stop) -> _T:
    """Do ``work``; where the storage fails do it again, up to ``ATTEMPTS`` times with growing pauses.

    What a new try can't change (a wrong name, missing access) is raised at once, and so is ``CancelledError``.
    """
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        stop.check()
        try:
            return work()
        except (StorageError, ServiceError, IntegrityError, OSError) as error:
            message = str(error) or type(error).__name__
            if attempt == ATTEMPTS:
                raise
            say(f"{what} failed (attempt {attempt} of {ATTEMPTS}): {message}. Trying again in {pause:g} s")
            stop.wait(pause)
            pause *= 2
    raise AssertionError  # the last attempt returned or raised
