"""Files kept open between reads.

Decided here and only here: how many, and when an open file no longer stands for its name. A pack is read many
times, and opening a file costs more than reading a chunk from it; on a network file system far more.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Descriptors", "OpenFile"]


class OpenFile:
    """A file on loan: its descriptor and its size in bytes."""

    __slots__ = ("fd", "size", "stale", "users")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self.users = 1
        self.stale = False


class Descriptors:
    """A bounded cache of descriptors, the least recently used goes first. Thread-safe.

    A descriptor is closed only when nobody is reading through it. A file whose last name is gone (it was
    replaced or removed, here or by another process) is never handed out again.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._closed = False

    def borrow(self, key: str, opener: Callable[[str], tuple[int, os.stat_result]]) -> OpenFile:
        """Lend an open file, until ``give_back``; ``opener`` is called when it is not open yet."""
        entry = self._take(key)
        if entry is None:
            fd, info = opener(key)
            entry = OpenFile(fd, info.st_size)
            self._keep(key, entry)
        return entry

    def give_back(self, entry: OpenFile) -> None:
        """End a loan."""
        with self._lock:
            entry.users -= 1
            if entry.stale and not entry.users:
                os.close(entry.fd)

    def forget(self, key: str) -> None:
        """Do not use what is open under this key any more."""
        with self._lock:
            entry = self._open.pop(key, None)
            if entry is not None:
                self._retire(entry)

    def close(self) -> None:
        """Close everything that nobody is reading; the rest when it is given back."""
        with self._lock:
            self._closed = True
            for entry in self._open.values():
                self._retire(entry)
            self._open.clear()

    def _take(self, key: str) -> OpenFile | None:
        with self._lock:
            entry = self._open.get(key)
            if entry is None:
                return None
            self._open.move_to_end(key)
            entry.users += 1
        try:
            if os.fstat(entry.fd).st_nlink:
                return entry
        except OSError:  # a stale handle of a network file system
            pass
        with self._lock:
            if self._open.get(key) is entry:
                del self._open[key]
                self._retire(entry)
        self.give_back(entry)
        return None

    def _keep(self, key: str, entry: OpenFile) -> None:
        with self._lock:
            if self._closed:
                entry.stale = True
                return
            other = self._open.pop(key, None)
            if other is not None:
                self._retire(other)
            self._open[key] = entry
            while len(self._open) > self._limit:
                self._retire(self._open.popitem(last=False)[1])

    def _retire(self, entry: OpenFile) -> None:
        """Close now, or when the last reader is done. The lock is held."""
        entry.stale = True
        if not entry.users:
            os.close(entry.fd)
