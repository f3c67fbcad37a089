"""What is known of a running mount, for its next server and for those who look.

Decided here and only here: the page of memory that the servers of a mount share, one after the other, and that
commands read: what was agreed on with the kernel, and counters. Written by one process at a time; a torn read shows a
count that is a little off.
"""

from __future__ import annotations

import mmap
import os
import struct
from threading import Lock
from typing import Self

from casstore.errors import FormatError

__all__ = ["COUNTERS", "State"]

_MAGIC = b"CASMNT01"
_U64 = struct.Struct("<Q")
COUNTERS = ("opened", "passed", "reads", "hits", "fetched", "errors", "restarts", "cached", "guarded", "direct")
"""Files opened, those that the kernel reads by itself, reads that came to us, those that memory answered, bytes read
from the store, failed requests, servers that died, reads that the cache on the disk answered; 1 once the mount had a
lease; files opened to be read past the kernel's cache."""
_OPEN = struct.Struct("<QII")
"""An inode that the kernel reads by itself: its number, the id of its backing file, and how often it is open."""
_TABLE = 4096
_SLOTS = 1024
_SIZE = _TABLE + _SLOTS * _OPEN.size
_PLACES = {name: len(_MAGIC) + 8 * number for number, name in enumerate(("flags", *COUNTERS))}


class State:
    """The shared page of one mount."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._lock = Lock()
        self._slots: tuple[dict[int, int], list[int]] | None = None

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
        with self._lock:
            _U64.pack_into(self._memory, place, _U64.unpack_from(self._memory, place)[0] + more)

    def counters(self) -> dict[str, int]:
        """Return all counters by name."""
        return {name: self.get(name) for name in COUNTERS}

    def keep_open(self, node: int, backing: int) -> bool:
        """Note the first opening of an inode that the kernel reads by itself; False when there is no room."""
        slots, free = self._table()
        if not free:
            return False
        slots[node] = free.pop()
        _OPEN.pack_into(self._memory, slots[node], node, backing, 1)
        return True

    def reopen(self, node: int) -> int:
        """Count another opening of such an inode; returns the id of its backing file, 0 when it is none."""
        slots, _ = self._table()
        place = slots.get(node)
        if place is None:
            return 0
        _, backing, opens = _OPEN.unpack_from(self._memory, place)
        _OPEN.pack_into(self._memory, place, node, backing, opens + 1)
        return int(backing)

    def release(self, node: int) -> int:
        """Count a closing; returns the id of the backing file when it was the last one, else 0."""
        slots, free = self._table()
        place = slots.get(node)
        if place is None:
            return 0
        _, backing, opens = _OPEN.unpack_from(self._memory, place)
        _OPEN.pack_into(self._memory, place, node, backing, opens - 1)
        if opens > 1:
            return 0
        free.append(slots.pop(node))
        return int(backing)

    def _table(self) -> tuple[dict[int, int], list[int]]:
        """Where in the page each such inode is, and where there is room; read once, by the one server at a time."""
        if self._slots is None:
            slots: dict[int, int] = {}
            free: list[int] = []
            for place in range(_TABLE, _SIZE, _OPEN.size):
                node, _, opens = _OPEN.unpack_from(self._memory, place)
                if opens:
                    slots[node] = place
                else:
                    free.append(place)
            self._slots = slots, free
        return self._slots

    def close(self) -> None:
        """Let go of the page."""
        self._memory.close()
