"""Originals that a repair replaces or removes.

Decided here and only here: that nothing is replaced or removed before its bytes are kept as
``quarantine/<time>/<original key>``, and that only ``discard`` ever removes those.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from casstore.backend.base import Absent, Backend, ObjectInfo
from casstore.errors import NotFoundError, PreconditionError, StorageError
from casstore.repo.check.rest import QUARANTINE

__all__ = ["LARGEST", "Quarantine", "discard", "kept"]

LARGEST = 512 << 20
"""Bytes of an object that is taken into quarantine, at most: it is held in memory. A larger one stays where it is."""
_PART = 8 << 20
_BATCH = 500
_STAMP = re.compile(r"\d{8}T\d{6}\.\d{6}Z\Z", re.ASCII)


class Quarantine:
    """The folder of one repair."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.count = 0

    @property
    def prefix(self) -> str:
        """Where this repair keeps its originals."""
        return f"{QUARANTINE}{self._stamp}/"

    def keep(self, key: str) -> bool:
        """Copy an object; False when there is none, or it is too large, and so must be left alone."""
        try:
            size = self._backend.stat(key).size
            if size > LARGEST:
                return False
            parts = [self._backend.read(key, at, min(_PART, size - at)) for at in range(0, size, _PART)]
        except NotFoundError:
            return False
        copy = self.prefix + key
        with contextlib.suppress(PreconditionError):  # done before, in this very repair
            self._backend.put(copy, parts, condition=Absent())
        if self._backend.stat(copy).size != size:
            raise StorageError(f"{copy} did not arrive whole", hint="nothing was removed; try again")
        self.count += 1
        return True

    def remove(self, *keys: str) -> list[str]:
        """Copy objects, then remove them; returns the keys of those that are gone."""
        gone = [key for key in keys if self.keep(key)]
        if gone:
            self._backend.delete(gone)
        return gone


def kept(backend: Backend) -> Iterator[ObjectInfo]:
    """Yield what all repairs have kept."""
    for info in backend.list(QUARANTINE):
        if _STAMP.match(info.key.split("/", 2)[1]):
            yield info


def discard(backend: Backend) -> tuple[int, int]:
    """Remove what repairs have kept, for good. Returns how many objects and bytes those were."""
    count = size = 0
    batch: list[str] = []
    for info in [*kept(backend)]:
        count, size = count + 1, size + info.size
        batch.append(info.key)
        if len(batch) == _BATCH:
            backend.delete(batch)
            batch = []
    if batch:
        backend.delete(batch)
    return count, size
