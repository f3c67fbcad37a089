"""One thread that waits for many descriptors and times.

Decided here and only here: in which order callbacks run, and that a failing one stops nothing else.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Loop"]

_log = logging.getLogger(__name__)


class Loop(threading.Thread):
    """Callbacks for descriptors and times, all run in this one thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain)
        self._stopped = False
        self._closed = threading.Lock()

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the loop's thread, soon; dropped when the loop has stopped."""
        self._calls.append(function)
        with self._closed, contextlib.suppress(BlockingIOError):
            if self._wake_write >= 0:
                os.write(self._wake_write, b"w")

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Only from the loop's thread."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), function))

    def watch(self, fd: int, function: Callable[[], None]) -> None:
        """Only from the loop's thread: call ``function`` whenever ``fd`` can be read."""
        self._selector.register(fd, selectors.EVENT_READ, function)

    def unwatch(self, fd: int) -> None:
        """Only from the loop's thread."""
        self._selector.unregister(fd)

    def stop(self) -> None:
        """End the loop and wait for it."""

        def halt() -> None:
            self._stopped = True

        self.call(halt)
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def run(self) -> None:
        try:
            while not self._stopped:
                timeout = None
                if self._timers:
                    timeout = max(0.0, self._timers[0][0] - time.monotonic())
                for key, _ in self._selector.select(timeout):
                    self._guard(key.data)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._guard(heapq.heappop(self._timers)[2])
                while self._calls:
                    self._guard(self._calls.popleft())
        finally:
            self._selector.close()
            with self._closed:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_write = -1

    @staticmethod
    def _guard(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:  # noqa: BLE001  one damaged event must not stop the logs of a whole group
            _log.exception("an event of a running group could not be handled")
