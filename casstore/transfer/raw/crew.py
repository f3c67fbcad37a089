"""Threads that move files.

Decided here and only here: how many there are, how far the listing may run ahead of them, and what ends them: an error
that all further files would meet, a stop, an interrupt. The failure of one file does not.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from casstore.errors import CancelledError, OutOfSpaceError

__all__ = ["DEFAULT_THREADS", "Crew", "Stop", "ends_all"]

DEFAULT_THREADS = 16
_AHEAD = 2
_TURN = 0.2
"""Seconds between two looks at whether the work was stopped."""
_LAST_WAIT = 10.0
"""Seconds that an interrupted transfer waits for requests under way."""

Stop = Callable[[], bool]
T = TypeVar("T")
Job = Callable[[T], None]


def ends_all(error: BaseException) -> bool:
    """Whether further files need not be tried after this."""
    return isinstance(error, (CancelledError, OutOfSpaceError)) or not isinstance(error, Exception)


class Crew(Generic[T]):
    """Runs jobs in threads, each with a tool of its own made by ``make`` and put away by ``put_away``.

    A job calls ``check`` before it begins, and between its steps. Used as a context manager: at the end of the block
    all jobs are done, or the first error that ends all is raised.
    """

    def __init__(
        self, threads: int, make: Callable[[], T], *, put_away: Callable[[T], None], stop: Stop | None = None
    ) -> None:
        self._stop = stop or (lambda: False)
        self._jobs: queue.Queue[Job[T] | None] = queue.Queue(maxsize=_AHEAD * threads)
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._put_away = put_away
        self._threads = [
            threading.Thread(target=self._run, args=(make(),), name=f"casstore-raw-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise what ends the work, if anything does."""
        if self._error is not None:
            raise self._error
        if self._ended.is_set() or self._stop():
            raise CancelledError("the transfer was stopped")

    def submit(self, job: Job[T]) -> None:
        """Have a job done; waits while enough others are waiting."""
        while True:
            self.check()
            try:
                self._jobs.put(job, timeout=_TURN)
            except queue.Full:
                continue
            return

    def _run(self, tool: T) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                try:
                    job(tool)
                except BaseException as error:  # noqa: BLE001 - raised where the transfer was called
                    self._error = self._error or error
        finally:
            self._put_away(tool)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._ended.set()  # what waits in the queue now ends as soon as it begins
        try:
            self._finish(_LAST_WAIT if error is not None else math.inf)
        except BaseException:
            self._ended.set()
            self._finish(_LAST_WAIT)
            raise
        if error is None:
            self.check()

    def _finish(self, seconds: float) -> None:
        """Let the threads end, and wait for them."""
        deadline = time.monotonic() + seconds
        for _ in self._threads:
            while time.monotonic() < deadline:
                with contextlib.suppress(queue.Full):
                    self._jobs.put(None, timeout=_TURN)
                    break
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < deadline:
                thread.join(_TURN)
