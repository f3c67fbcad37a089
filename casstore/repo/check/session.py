"""One run of a check: the store, what it is told, and how work is spread.

Decided here and only here: how many threads look at things, and what is counted as looked at. A listing is not for
several threads, and objects are large: each worker takes the next one when it is ready, so that memory does not
depend on how much there is.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from casstore.backend.base import ObjectInfo
from casstore.repo.check.report import About, Problem, Report, Watcher
from casstore.repo.store import Store, workers

__all__ = ["Session"]

REMOTE_WORKERS = 8
"""Threads that look at a store that is far away."""

_A = TypeVar("_A")


class Session:
    """What all parts of a check share. Thread-safe."""

    def __init__(self, store: Store, watcher: Watcher | None = None, *, by_file: bool = False) -> None:
        """``by_file``: what is counted as looked at are the files of versions instead of the store's objects."""
        self.store = store
        self.by_file = by_file
        self._counts = True
        self.backend = store.backend
        self.watcher = watcher or Watcher()
        self.report = Report()
        self.lock = threading.Lock()
        self.workers = workers() if self.backend.capabilities.local else REMOTE_WORKERS

    def checked(self, size: int) -> None:
        """Another object, of ``size`` bytes, was looked at."""
        if not self.by_file:
            self._count(size)

    def followed(self, size: int) -> None:
        """Another file, of ``size`` bytes, was found whole or not."""
        if self.by_file:
            self._count(size)

    def count_no_more(self) -> None:
        """What is looked at from now on was counted before."""
        self._counts = False

    def _count(self, size: int) -> None:
        if not self._counts:
            return
        with self.lock:
            self.report.objects += 1
            self.report.size += size
        self.watcher.checked(size)

    def problem(self, where: str, message: str, about: About) -> None:
        """Report a problem."""
        with self.lock:
            self.report.add([Problem(where, message, about)])

    def found(self, size: int) -> None:
        """Another object, of ``size`` bytes, is going to be looked at."""
        if not self.by_file and self._counts:
            self.watcher.found(size)

    def each(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix."""
        for info in self.backend.list(prefix):
            self.found(info.size)
            yield info

    def spread(self, work: Callable[[_A], object], items: Iterable[_A]) -> None:
        """Do ``work(item)`` for all items, in several threads. The first error ends it."""
        pending, turn, failed = iter(items), threading.Lock(), threading.Event()

        def take() -> None:
            while not failed.is_set():
                with turn:
                    item = next(pending, turn)
                if item is turn:
                    return
                try:
                    work(item)  # type: ignore[arg-type]  # the lock, which stands for the end, is never handed on
                except BaseException:
                    failed.set()
                    raise

        if self.workers == 1:
            for item in pending:
                work(item)
            return
        first = next(pending, turn)
        second = next(pending, turn)
        if second is turn:  # threads for one thing, or none, cost more than it
            if first is not turn:
                work(first)  # type: ignore[arg-type]  # see above
            return
        pending = itertools.chain((first, second), pending)  # type: ignore[arg-type]  # see above
        with ThreadPoolExecutor(self.workers, thread_name_prefix="casstore-check") as pool:
            for worker in [pool.submit(take) for _ in range(self.workers)]:
                worker.result()
