"""The seam between the store and the place where its objects are kept.

Decided here and only here: what a back end promises. Every back end and every wrapper passes the contract
suite in ``casstore.testing.backend_contract``.

A back end maps *keys* to immutable or conditionally replaced *objects*. It knows nothing of packs or
versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from casstore.errors import UsageError
from casstore.model import Buffer
from casstore.remote.base import Absent, Condition, Matches, Object, check_limit

__all__ = [
    "MAX_KEY_LENGTH",
    "Absent",
    "Backend",
    "Buffer",
    "Capabilities",
    "Condition",
    "Matches",
    "Object",
    "ObjectInfo",
    "Registers",
    "check_limit",
    "validate_key",
    "validate_prefix",
]

MAX_KEY_LENGTH = 512
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*\Z", re.ASCII)


class Capabilities(msgspec.Struct, frozen=True):
    """What a back end really supports; asked once, never guessed."""

    conditional_put: bool
    """``put`` with a condition is atomic among all writers of this back end."""
    local: bool
    """Objects are files that this machine can open (``local_path`` returns them)."""
    probe: bool = False
    """What is said here is the client's knowledge; whether the service keeps to it, ``probe`` has to find out."""
    registers: bool = False
    """The index is not for us to write: the back end is a ``Registers``."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """One object, as ``stat`` and ``list`` see it. ``size`` in bytes, ``mtime`` in seconds since the
    epoch. ``state`` is another one for another state of the object, and compares with nothing but other such
    ``state``s of it; empty where that is not known.
    """

    key: str
    size: int
    mtime: float
    state: str = ""


def validate_key(key: str) -> str:
    """Return ``key`` if it is legal, in both directions: what is written and what a listing brings back.

    Components are ASCII letters, digits, ``_``, ``.`` and ``-``, do not start with ``.`` or ``-``, and are
    separated by single slashes; at most 512 characters in all. Raises ``UsageError`` otherwise.
    """
    if len(key) > MAX_KEY_LENGTH or not _KEY.match(key):
        raise UsageError(f"illegal object key {key[:80]!r}")
    return key


def validate_prefix(prefix: str) -> str:
    """Return ``prefix`` if a listing may start with it: empty, or a legal key and a slash. ``UsageError``
    otherwise.
    """
    if prefix and not (prefix.endswith("/") and len(prefix) <= MAX_KEY_LENGTH and _KEY.match(prefix[:-1])):
        raise UsageError(f"illegal prefix of object keys {prefix[:80]!r}")
    return prefix


class Registers(Protocol):
    """A back end behind which somebody else keeps the index."""

    def register(self, packs: Iterable[bytes]) -> None:
        """Have the chunks of packs, by their ids, put into the index. They are stored. ``NotFoundError``."""
        ...


class Backend(Protocol):
    """A place that keeps objects. Thread-safe: every method may be called from several threads at once.

    Errors: ``NotFoundError`` for a key without an object, ``PreconditionError`` for a condition that does not
    hold, ``AccessError``, ``OutOfSpaceError``, and ``StorageError`` for everything else that went wrong
    outside.
    """

    @property
    def url(self) -> str:
        """Where this is, as a URL without secrets."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this back end supports."""
        ...

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """Return the whole object with its tag, in one request. For small objects: it is held in memory.

        ``FormatError`` when it has more than ``limit`` bytes, before they are taken into memory.
        """
        ...

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``.

        A negative ``offset`` counts from the end, as in ``seek``. ``IntegrityError`` when the object is too
        short.
        """
        ...

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """Store the concatenation of ``data`` and return the tag of the new state.

        Atomic: a reader sees the old object, the new one, or (before) none, never a part. Durable when it
        returns. With a condition, ``PreconditionError`` when it does not hold. The buffers may be reused
        after the return.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Return size and time of an object."""
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key starts with ``prefix`` (``""`` or ending in ``/``), in the order of
        their keys.

        Only keys greater than ``after``. Sees every object whose put returned before the call.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are passed over."""
        ...

    def local_path(self, key: str) -> str | None:
        """Path of the object as a local file, for reading through the page cache; None when there is none."""
        ...

    def close(self) -> None:
        """Release connections and descriptors. The back end can't be used afterwards."""
        ...
