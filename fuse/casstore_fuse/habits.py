"""How the files of a mount are read: in large pieces, or in small ones.

Decided here and only here: which opened files bypass the kernel's cache (``FOPEN_DIRECT_IO``). What is read past it
goes to the reader's memory with one message for each ``read``: for large pieces that is a third of the CPU time of
filling the kernel's cache page by page and copying from there, and nothing is in memory twice. For small pieces the
messages cost several times as much. Nothing can be changed about a file that is open, so that the first ones are read
through the kernel's cache, and show how their readers go about it: the kernel's first request for a file tells the size
of the pieces, as its read-ahead begins with a multiple of it. What was learnt is kept in the cache, for the next mount
of the same dataset: most programs are run more than once. Measured in ADR 27.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["BLOCK", "LEAST", "Habits"]

LEAST = 1 << 20
"""Bytes of a file from which on it may be read past the kernel's cache: what is read again and again from smaller ones
is better off in it.
"""
BLOCK = 128 << 10
"""The size of pieces that ``stat`` recommends for such files; C's and Python's own buffers get this large."""
_PIECE = 48 << 10
"""Mean bytes of a ``read`` from which on the messages cost less than the kernel's cache."""
_SPAN = 64
"""Reads over which the mean is taken, about."""
_WATCHED = 4096
_LARGE, _SMALL = b"large\n", b"small\n"


class Habits:
    """The size of the pieces in which the files of one mount were read lately. Two threads that count at the same time
    may lose a count.
    """

    def __init__(self, path: str | None = None) -> None:
        """``path``: where what was learnt is kept; what can't be read or written there is not known."""
        self._path = path
        self._watched: set[int] = set()
        self._mean = 0.0
        if path is not None:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                self._mean = float(BLOCK) if file.read(len(_LARGE) + 1) == _LARGE else 0.0

    def direct(self, size: int) -> bool:
        """Whether a file of this size that is opened now is best read past the kernel's cache."""
        return size >= LEAST and self._mean >= _PIECE

    def watch(self, node: int) -> None:
        """Note that an inode was opened for reading through the kernel's cache; see ``first``."""
        if len(self._watched) >= _WATCHED:
            self._watched.clear()
        self._watched.add(node)

    def first(self, node: int, size: int) -> None:
        """Count the first request for an inode that is watched: what the kernel reads ahead by itself."""
        if node in self._watched:
            self._watched.discard(node)
            self._set((self._mean + (size if size >= BLOCK else size / 4)) / 2)

    def piece(self, size: int) -> None:
        """Count a request of a reader that bypasses the kernel's cache."""
        self._set(self._mean + (size - self._mean) / _SPAN)

    def _set(self, mean: float) -> None:
        changed = (self._mean >= _PIECE) != (mean >= _PIECE)
        self._mean = mean
        if changed and self._path is not None:
            self._keep(self._path)

    def _keep(self, path: str) -> None:
        temporary = os.path.join(os.path.dirname(path), f".tmp-{os.getpid()}-{os.path.basename(path)}")
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(_LARGE if self._mean >= _PIECE else _SMALL)
            os.replace(temporary, path)
