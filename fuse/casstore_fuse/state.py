"""What is known of a running mount, for its next server and for those who look.

Decided here and only here: the page of memory that the servers of a mount share, one after the other, and that
commands read: what was agreed on with the kernel, and counters. Written by one process at a time; a torn read shows a
count that is a little off.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import Self

from casstore.errors import FormatError

__all__ = ["COUNTERS", "State"]

_MAGIC = b"CASMNT01"
_SIZE = mmap.PAGESIZE
_U64 = struct.Struct("<Q")
COUNTERS = ("reads", "hits", "fetched", "errors", "restarts")
"""Reads, those that memory answered, bytes that were read from the store, failed requests, servers that died."""
_PLACES = {name: len(_MAGIC) + 8 * number for number, name in enumerate(("flags", *COUNTERS))}


class State:
    """The shared page of one mount."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def anonymous(cls) -> Self:
        """A page that nobody else sees, other than children of this process."""
        memory = mmap.mmap(-1, _SIZE)
        memory[: len(_MAGIC)] = _MAGIC
        return cls(memory)

    @classmethod
    def create(cls, path: str) -> Self:
        """A new page in a file that does not exist yet."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, _SIZE)
            memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        memory[: len(_MAGIC)] = _MAGIC
        return cls(memory)

    @classmethod
    def open(cls, path: str) -> Self:
        """The page of another process, for looking. ``FormatError`` when it is none, ``OSError`` without a file."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                raise FormatError(f"{path} does not describe a mount")
            memory = mmap.mmap(descriptor, _SIZE, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        if memory[: len(_MAGIC)] != _MAGIC:
            raise FormatError(f"{path} does not describe a mount")
        return cls(memory)

    @property
    def flags(self) -> int:
        """What was agreed on with the kernel, once for the life of the mount."""
        return self.get("flags")

    @flags.setter
    def flags(self, value: int) -> None:
        _U64.pack_into(self._memory, _PLACES["flags"], value)

    def get(self, name: str) -> int:
        """Return a counter."""
        return int(_U64.unpack_from(self._memory, _PLACES[name])[0])

    def count(self, name: str, more: int = 1) -> None:
        """Add to a counter."""
        place = _PLACES[name]
        _U64.pack_into(self._memory, place, _U64.unpack_from(self._memory, place)[0] + more)

    def counters(self) -> dict[str, int]:
        """Return all counters by name."""
        return {name: self.get(name) for name in COUNTERS}

    def close(self) -> None:
        """Let go of the page."""
        self._memory.close()
