"""Reading files that are whole in the cache.

Decided here and only here: which of them are held open for those that the kernel does not read by itself, and how a
range is taken from one: what lies in the kernel's memory at once, by whoever was asked; what has to come from the disk
by somebody who may wait. What is in the cache was verified when it was put there; a file that is shorter than it
should be, or can't be read, is thrown away, and the store is read again.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from threading import Lock, local

from casstore.cache.files import FileCache
from casstore.cache.parts import Part

__all__ = ["Wholes"]

OPEN = 256
"""Files that are held open: the disk keeps what the cache has thrown away as long as it is open."""
_ABSENT = 1 << 16
"""Inodes that are remembered as not being there."""
BUFFER = 1 << 20
"""Bytes of the longest read that the kernel asks for."""
_AT_ONCE = getattr(os, "RWF_NOWAIT", 0)


class _File:
    """A descriptor that is closed when nobody reads from it any more: another file could get its number."""

    __slots__ = ("descriptor", "identity", "size")

    def __init__(self, descriptor: int, identity: bytes, size: int) -> None:
        self.descriptor = descriptor
        self.identity = identity
        self.size = size

    def has(self, _offset: int, _size: int) -> bool:
        return True

    def __del__(self) -> None:
        os.close(self.descriptor)


class Wholes:
    """The files of one mount that are whole in the cache, by inode. Thread-safe."""

    def __init__(self, files: FileCache) -> None:
        self._files = files
        self._lock = Lock()
        self._open: OrderedDict[int, _File | Part] = OrderedDict()
        self._absent: set[int] = set()
        self._mine = local()

    def knows(self, node: int) -> bool:
        """Whether it was looked for already."""
        return node in self._open or node in self._absent

    def holds(self, node: int) -> bool:
        """Whether a file is held open, whole or on its way."""
        return node in self._open

    def look(self, node: int, identity: bytes, size: int) -> bool:
        """Look for a file; whether it is there."""
        descriptor = self._files.open(identity, size)
        with self._lock:
            if descriptor is None:
                if len(self._absent) >= _ABSENT:
                    self._absent.clear()
                self._absent.add(node)
                return False
            self._absent.discard(node)
            self._hold(node, _File(descriptor, identity, size))
            return True

    def add(self, node: int, part: Part) -> None:
        """Answer from a file that is on its way into the cache, as far as it is there."""
        with self._lock:
            self._hold(node, part)

    def _hold(self, node: int, file: _File | Part) -> None:
        self._open[node] = file
        if len(self._open) > OPEN:
            self._open.popitem(last=False)

    def read(self, node: int, offset: int, size: int, *, wait: bool) -> memoryview | None:
        """Return a range of a file, cut at its end and valid until this thread reads again; None where it is not
        there, or not at once and nobody may ``wait``.
        """
        file = self._open.get(node)
        if file is None or not file.has(offset, size):
            return None
        size = max(0, min(size, file.size - offset))
        into = self._buffer(size)
        got = 0
        try:
            if wait:
                while got < size and (more := os.preadv(file.descriptor, [into[got:]], offset + got)):
                    got += more
            else:
                got = os.preadv(file.descriptor, [into], offset, _AT_ONCE) if _AT_ONCE and size else 0
        except OSError:
            got = 0  # of those that wait: a disk that fails; of others: it is not in memory, or such reads are unknown
        if got == size:
            with self._lock, contextlib.suppress(KeyError):
                self._open.move_to_end(node)
            return into
        if wait:
            self._drop(node, file)
        return None

    def _drop(self, node: int, file: _File | Part) -> None:
        self._files.drop(file.identity)
        with self._lock:
            if self._open.get(node) is file:
                del self._open[node]
                self._absent.add(node)

    def _buffer(self, size: int) -> memoryview:
        """Memory of this thread: fresh memory costs more than what is then written into it."""
        if size > BUFFER:
            return memoryview(bytearray(size))
        found: memoryview | None = getattr(self._mine, "buffer", None)
        if found is None:
            found = self._mine.buffer = memoryview(bytearray(BUFFER))
        return found[:size]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._open.clear()
