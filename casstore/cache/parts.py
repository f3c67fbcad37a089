"""Files on their way into the cache.

Decided here and only here: how a file that comes in pieces, in any order, becomes one that is whole, without being
written twice. It is written at once where it will be read, and gets the name of a whole file when every chunk of it was
verified and is on the disk. What is there of a file that nobody finishes is not lost: the next one who reads it finds
it, and, as nothing says which chunks are there, verifies each. Removing it, as the cache may at any time, leaves those
who have it open with what they have.

    parts/<2 hex>/<content id>    the chunks, at their places in the file
"""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from threading import Lock

from casstore.cache.files import FileCache
from casstore.model import Buffer

__all__ = ["Part", "open_any"]

_VECTORS = 512
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_OPENED = "/proc/self/fd"


class Part:
    """One such file. Thread-safe; others may write the same file. Raises nothing for a disk that fails or is full:
    what can't be kept is not there.
    """

    def __init__(self, files: FileCache, identity: bytes, begins: Sequence[int], path: str, descriptor: int) -> None:
        self.identity = identity
        self.descriptor = descriptor
        self.size = begins[-1]
        self._files = files
        self._path = path
        self.begins = begins
        self._there = bytearray(len(begins) - 1)
        self._missing = len(self._there)
        self._old = os.fstat(descriptor).st_blocks > 0
        self._broken = False
        self._lock = Lock()

    @classmethod
    def open(cls, files: FileCache, identity: bytes, begins: Sequence[int]) -> Part | None:
        """The file with this content, whose chunks begin at these places; there is one more begin than chunks. None
        where it can't be kept.
        """
        if not files.admits(begins[-1]) or not os.path.isdir(_OPENED):
            return None
        path = _path(files, identity)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return cls(files, identity, begins, path, os.open(path, _FLAGS, 0o600))
        except OSError:
            return None

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return not self._missing

    @property
    def share(self) -> float:
        """How much of it is there, in chunks."""
        return 1.0 - self._missing / max(1, len(self._there))

    def missing(self) -> list[int]:
        """Return the numbers of the chunks that are not there."""
        return [number for number, there in enumerate(self._there) if not there]

    def has(self, offset: int, size: int) -> bool:
        """Whether a range of it, cut at its end, is there."""
        if not self._missing:
            return True
        first = bisect_right(self.begins, offset) - 1
        last = bisect_left(self.begins, min(offset + size, self.size), lo=first)
        return self._there.find(0, first, last) < 0

    def get(self, number: int) -> tuple[bytes, bool] | None:
        """Return what is at the place of a chunk, and whether it was verified; None where there is nothing."""
        sure = bool(self._there[number])
        if not sure and not self._old:
            return None
        begin, end = self.begins[number], self.begins[number + 1]
        with contextlib.suppress(OSError):
            data = os.pread(self.descriptor, end - begin, begin)
            if len(data) == end - begin:
                return data, sure
        return None

    def found(self, number: int) -> None:
        """Note that what is at the place of a chunk was verified."""
        with self._lock:
            if not self._there[number]:
                self._there[number] = 1
                self._missing -= 1

    def put(self, chunks: Sequence[tuple[int, Buffer]]) -> bool:
        """Keep verified chunks, by number in ascending order; whether that was possible."""
        written = at = 0
        while at < len(chunks) and not self._broken:
            end = at + 1
            while end < len(chunks) and end - at < _VECTORS and chunks[end][0] == chunks[end - 1][0] + 1:
                end += 1
            run = chunks[at:end]
            begin, stop = self.begins[run[0][0]], self.begins[run[-1][0] + 1]
            try:
                done = os.pwritev(self.descriptor, [data for _, data in run], begin)
            except OSError:
                done = 0
            if done != stop - begin:
                self._broken = True  # no room: what was cut is not there
                break
            for number, _ in run:
                self.found(number)
            written += done
            at = end
        if written:
            self._files.space.added(written)
        return not self._broken

    def finish(self) -> bool:
        """Have it found under the name of a whole file, if all of it is there; whether it is now."""
        with self._lock:
            if self._missing or not self._path:
                return False
            path, self._path = self._path, ""
        target = self._files.path(self.identity)
        try:
            os.fdatasync(self.descriptor)  # a name that says more than is on the disk must not outlive a power loss
            os.fchmod(self.descriptor, 0o400)
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            # What is open gets the name: under the old one there may be another file by now.
            with contextlib.suppress(FileExistsError):
                os.link(f"{_OPENED}/{self.descriptor}", target, src_dir_fd=self.descriptor)
            os.unlink(path)
        except OSError:
            return False
        return True

    def __del__(self) -> None:
        os.close(self.descriptor)


def open_any(files: FileCache, identity: bytes, size: int) -> int | None:
    """Return a descriptor for reading what is there of a file, whole or not; None where there is nothing. Whoever takes
    something from it verifies it.
    """
    descriptor = files.open(identity, size)
    if descriptor is None:
        with contextlib.suppress(OSError):
            return os.open(_path(files, identity), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    return descriptor


def _path(files: FileCache, identity: bytes) -> str:
    name = identity.hex()
    return os.path.join(files.space.root, "parts", name[:2], name)
