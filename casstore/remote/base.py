"""The seam to an object storage service.

Decided here and only here: what the store, `osmo data` and `url:` transfers ask of a service. A client is about one
bucket (container) and takes any key that the service takes: keys come from outside and are checked by whoever makes
paths of them. It knows nothing of stores; `casstore.backend.objects` makes a back end of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol, TypeAlias

import msgspec

from casstore.errors import FormatError
from casstore.model import Buffer

__all__ = ["Absent", "Advance", "Condition", "Matches", "Object", "ObjectClient", "RemoteInfo", "check_limit"]

Advance: TypeAlias = Callable[[int], None]
"""Told how many more bytes have gone over the line."""


class Object(msgspec.Struct, frozen=True):
    """Bytes of an object and the tag of the state they were read in, for a later compare-and-swap."""

    data: bytes
    etag: str


class Absent(msgspec.Struct, frozen=True):
    """Condition of ``put``: only where no object is."""


class Matches(msgspec.Struct, frozen=True):
    """Condition of ``put``: only over the object in the state that this tag names."""

    etag: str


Condition: TypeAlias = Absent | Matches | None


class RemoteInfo(msgspec.Struct, frozen=True):
    """One object, as ``head`` and ``list`` see it. ``size`` in bytes, ``mtime`` in seconds since the epoch by the
    clock of the service. A folder in a listing that is not recursive has a key that ends in ``/`` and an empty
    ``etag``.
    """

    key: str
    size: int
    mtime: float
    etag: str


def check_limit(what: str, size: int, limit: int | None) -> int:
    """Return ``size`` if so many bytes may be read; ``FormatError`` when they are more than ``limit``."""
    if limit is not None and size > limit:
        raise FormatError(f"{what} has {size} bytes; the limit is {limit}")
    return size


class ObjectClient(Protocol):
    """One bucket of one service. Thread-safe; picklable by its URL alone.

    Errors: ``NotFoundError`` for a missing key or bucket, ``PreconditionError`` for a condition that does not hold,
    ``AccessError`` for credentials that are missing or do not suffice, ``OutOfSpaceError``, ``TransientError`` for what
    may pass when it is tried again (connections, timeouts, throttling, 5xx), ``StorageError`` for the rest. No message
    holds a secret. Nothing waits for longer than the client's deadlines. A client tries each request once: ``retry``
    wraps it.
    """

    @property
    def url(self) -> str:
        """The bucket as a URL without secrets and without a slash at its end: ``s3://bucket``."""
        ...

    def head(self, key: str) -> RemoteInfo:
        """Return what is known of an object without its bytes."""
        ...

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """Return exactly ``length`` bytes from ``offset`` (all that follow when None), with the tag of the state.

        ``FormatError`` when more than ``limit`` bytes would come, before they are taken into memory.

        A negative ``offset`` counts from the end, as in ``seek``. ``IntegrityError`` when the object is too short, or
        the service sends another number of bytes than it announced; ``PreconditionError`` when ``if_match`` is another
        state.
        """
        ...

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """Store the concatenation of ``data`` and return the tag of the new state. Atomic and durable.

        Large bodies go in parts, side by side. The buffers may be reused after the return.
        """
        ...

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """Store what can be read from ``source``, in bounded memory; return the tag. Nothing is left on failure."""
        ...

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """Yield the objects whose key starts with ``prefix``, in the order of their keys' UTF-8 bytes, after ``after``.

        Not ``recursive``: what is below the next ``/`` is one folder.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, in batches where the service has them; those that do not exist are passed over."""
        ...

    def close(self) -> None:
        """Release connections. The client can't be used afterwards."""
        ...
