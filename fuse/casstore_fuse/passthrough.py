"""Files that the kernel reads by itself.

Decided here and only here: which open files are handed to the kernel whole (``FUSE_PASSTHROUGH``, Linux 6.9, for
those who may mount), and the bookkeeping that this asks for: as long as an inode is open in one of the two ways, the
kernel refuses the other, and a second backing file. What is open that way is written down in the mount's shared page,
for the next server.
"""

from __future__ import annotations

import fcntl
import os
import struct
from threading import Lock

from casstore.cache.files import FileCache, content_id
from casstore.model import Content
from casstore_fuse import abi
from casstore_fuse.state import State

__all__ = ["LEAST", "Passthrough"]

LEAST = 128 << 10
"""Bytes of a file from which on it is worth the two calls at each open."""
_ID = struct.Struct("=I")


class Passthrough:
    """The open files of one mount that have at least ``LEAST`` bytes. Thread-safe."""

    def __init__(self, descriptor: int, files: FileCache | None, state: State, *, first: bool) -> None:
        """``first``: nothing is open yet. A later server can't know what is open the other way, and begins nothing."""
        self._fd = descriptor
        self._files = files
        self._state = state
        self._lock = Lock()
        self._cached: dict[int, int] = {}
        self._may = first and files is not None

    def open(self, node: int, size: int, content: Content) -> int:
        """Note that an inode was opened, and return the id of its backing file; 0: it is read through us."""
        with self._lock:
            backing = self._state.reopen(node)
            if not backing and self._may and node not in self._cached:
                backing = self._hand_over(node, content_id(size, content), size)
            if not backing:
                self._cached[node] = self._cached.get(node, 0) + 1
            return backing

    def release(self, node: int) -> None:
        """Note that an inode was closed once."""
        with self._lock:
            opens = self._cached.pop(node, 0)
            if opens > 1:
                self._cached[node] = opens - 1
            if opens:
                return
            backing = self._state.release(node)
            if backing:
                self._close(backing)

    def _hand_over(self, node: int, identity: bytes, size: int) -> int:
        if self._files is None:
            return 0
        descriptor = self._files.open(identity, size)
        if descriptor is None:
            return 0
        try:
            backing = int(fcntl.ioctl(self._fd, abi.BACKING_OPEN, abi.backing_map(descriptor)))
        except OSError:
            self._may = False  # not granted to this process, or not for this kind of file system
            return 0
        finally:
            os.close(descriptor)
        if not self._state.keep_open(node, backing):
            self._close(backing)
            return 0
        return backing

    def _close(self, backing: int) -> None:
        fcntl.ioctl(self._fd, abi.BACKING_CLOSE, bytearray(_ID.pack(backing)))
