"""Bytes and attributes of one open file.

Decided here and only here: how chunks are compared with what a file holds, how they are written, and which extended
attributes are restored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

from casstore import hashing
from casstore.compression import MAX_RAW
from casstore.errors import CasstoreError
from casstore.model import Buffer, Entry
from casstore.transfer.progress import Progress
from casstore.transfer.safefs import show


class Target:
    """A large file that several workers write to; the last one to finish its part completes it.

    ``old``: descriptor of the content that was there, from which chunks are taken where they are right. It may be
    ``descriptor`` itself.
    """

    __slots__ = ("changed", "descriptor", "entry", "old", "parts", "temporary")

    def __init__(self, entry: Entry, descriptor: int, temporary: bytes | None = None, old: int = -1) -> None:
        self.entry = entry
        self.descriptor = descriptor
        self.temporary = temporary
        self.old = old
        self.parts = 1  # held by whoever submits parts, until all are submitted
        self.changed = old < 0

    def close(self) -> None:
        """Close the descriptors."""
        descriptors = {self.descriptor, self.old} - {-1}
        self.descriptor = self.old = -1
        for descriptor in descriptors:
            os.close(descriptor)


@lru_cache(maxsize=256)
def zeros_id(length: int) -> bytes:
    """Return the id of a chunk of zeros."""
    return hashing.digest(bytes(length))


def at(entry: Entry, error: CasstoreError) -> CasstoreError:
    """Return the error with the path of the file that it is about."""
    return type(error)(f"{show(entry.path)}: {error.message}", hint=error.hint)


def found(descriptor: int, offset: int, chunk_id: bytes, raw: int) -> bytes | None:
    """Return the chunk if it is in this file at this offset."""
    if raw > MAX_RAW:
        return None
    data = os.pread(descriptor, raw, offset)
    return data if len(data) == raw and hashing.digest(data) == chunk_id else None


def write_all(descriptor: int, data: Sequence[Buffer], offset: int) -> None:
    """Write buffers one after the other at an offset. A short write is followed by another, or by its error."""
    pending = [memoryview(part) for part in data if len(part)]
    while pending:
        written = os.pwritev(descriptor, pending, offset)
        offset += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if written:
            pending[0] = pending[0][written:]


def set_attributes(descriptor: int, entry: Entry, progress: Progress) -> None:
    refused: list[bytes] = []
    for name, value in (entry.xattrs or {}).items():
        # Others carry privileges (security.capability) or are the file system's own.
        if not name.startswith(b"user.") or b"\0" in name:
            refused.append(name)
            continue
        try:
            os.setxattr(descriptor, name, value)
        except OSError:
            refused.append(name)
    if refused:
        names = ", ".join(show(name) for name in refused[:5])
        progress.warn(f"{show(entry.path)}: extended attributes were not restored: {names}")
