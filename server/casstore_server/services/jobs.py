"""Work that may take longer than a client waits for its reply.

Decided here and only here: how much of it there is at once, how long a request waits for it, and that it goes on when
the request ends: who asks again finds the same work, or what came of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from casstore.errors import CancelledError, CasstoreError, ServiceError

__all__ = ["Jobs", "Stop"]

Stop = Callable[[], bool]
"""Whether the work is to end."""

PATIENCE_S = 45.0
"""How long a request waits: OSMO's client does for 60 seconds."""
_WORKERS = 4
_MOST = 64
_WAITING = 16
"""Requests that wait at once: each holds one of the threads that answer requests."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Jobs:
    """Runs work by key, each once at a time. Thread-safe. Close it."""

    def __init__(self, patience: float = PATIENCE_S) -> None:
        self._patience = patience
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="job")
        self._lock = threading.Lock()
        self._waiting = threading.Semaphore(_WAITING)
        self._jobs: dict[Hashable, Future[Any]] = {}
        self._stopped = threading.Event()

    def ask(self, key: Hashable, work: Callable[[Stop], _T]) -> _T | None:
        """Return what ``work`` returns (never None), or None when it is not done yet; raises what it raises.

        ``ServiceError`` when there is too much to do already.
        """
        future = self._begin(key, work)
        if self._waiting.acquire(blocking=False):
            try:
                wait([future], self._patience)
            finally:
                self._waiting.release()
        if not future.done():
            return None
        with self._lock:
            if self._jobs.get(key) is future:
                del self._jobs[key]
        found: _T = future.result()
        return found

    def runs(self, key: Hashable) -> bool:
        """Whether this is being done."""
        with self._lock:
            future = self._jobs.get(key)
            return future is not None and not future.done()

    def _begin(self, key: Hashable, work: Callable[[Stop], _T]) -> Future[_T]:
        with self._lock:
            known = self._jobs.get(key)
            if known is not None:
                return known
            if self._stopped.is_set():
                raise ServiceError("The server ends", hint="Try again when it runs.")
            for done in [other for other, future in self._jobs.items() if future.done()]:
                if len(self._jobs) >= _MOST:
                    del self._jobs[done]  # nobody came back for it
            if len(self._jobs) >= _MOST:
                raise ServiceError("Too many uploads and downloads are being prepared", hint="Try again later.")
            future = self._pool.submit(self._run, key, work)
            self._jobs[key] = future
            return future

    def _run(self, key: Hashable, work: Callable[[Stop], _T]) -> _T:
        try:
            if self._stopped.is_set():
                raise CancelledError("the server ended before this was begun")
            return work(self._stopped.is_set)
        except CasstoreError as error:
            _log.warning("%s: %s", key, error.message)
            raise
        except Exception:
            _log.exception("%s failed", key)
            raise

    def close(self) -> None:
        """End what runs."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
