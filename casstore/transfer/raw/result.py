"""What a raw transfer did.

Decided here and only here: how failures of single files are kept (each is counted, the first ones are told), and the
digest that stands for what was there.
"""

from __future__ import annotations

import threading

import msgspec
from blake3 import blake3

from casstore.errors import CasstoreError

__all__ = ["Failure", "Result", "Tally"]

KEPT = 1000
"""Failures that are kept in full."""


class Failure(msgspec.Struct, frozen=True):
    """One file that could not be moved; ``name`` is its key or its local path."""

    name: str
    error: CasstoreError


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """``size`` is in bytes and counts every file that is whole now, ``transferred`` those bytes that were moved.

    ``reused`` files were there already. ``left_out`` names what is no file (links to folders, sockets, ...).
    ``digest``, in hex, is over names, sizes and tags of all objects that were downloaded; empty for an upload.
    """

    files: int
    size: int
    transferred: int
    reused: int
    failed: int
    failures: list[Failure]
    left_out: list[str]
    digest: str = ""

    def check(self, what: str) -> None:
        """Raise the first failure, with the number of the others, if there is any."""
        if self.failed:
            first = self.failures[0]
            more = f" (and {self.failed - 1} more failed)" if self.failed > 1 else ""
            raise type(first.error)(f"{what}: {first.error.message}{more}", hint=first.error.hint)


class Tally:
    """Counts what threads do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digest = blake3()
        self._files = self._size = self._transferred = self._reused = self._failed = 0
        self._failures: list[Failure] = []
        self._left_out: list[str] = []

    def done(self, size: int, *, transferred: int, reused: bool = False) -> None:
        """A file is whole."""
        with self._lock:
            self._files += 1
            self._size += size
            self._transferred += transferred
            self._reused += reused

    def failed(self, name: str, error: CasstoreError) -> None:
        """A file could not be moved."""
        with self._lock:
            self._failed += 1
            if len(self._failures) < KEPT:
                self._failures.append(Failure(name, error))

    def left_out(self, line: str) -> None:
        """Something that is no file."""
        with self._lock:
            if len(self._left_out) < KEPT:
                self._left_out.append(line)

    def note(self, *parts: str) -> None:
        """Take an object into the digest; in the order of keys, by one thread."""
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            self._digest.update(len(data).to_bytes(4, "big") + data)

    def result(self, *, digest: bool) -> Result:
        """The sums."""
        with self._lock:
            return Result(
                files=self._files,
                size=self._size,
                transferred=self._transferred,
                reused=self._reused,
                failed=self._failed,
                failures=list(self._failures),
                left_out=list(self._left_out),
                digest=self._digest.hexdigest() if digest else "",
            )
