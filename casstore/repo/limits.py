"""How much of a bucket is taken into memory.

Decided here and only here: that no object is read whole before its size was looked at. A bucket is not trusted, and
``Backend.get`` has no bound of its own.
"""

from __future__ import annotations

from casstore.backend.base import Backend, Object
from casstore.errors import FormatError

__all__ = ["bounded_get", "bounded_object", "check_size"]


def bounded_get(backend: Backend, key: str, limit: int) -> bytes:
    """Return the whole object, at most ``limit`` bytes long; ``FormatError`` for a longer one, before it is read.

    For what never changes: of an object that is replaced meanwhile it may return a part. ``bounded_object`` does not.
    """
    size = check_size(key, backend.stat(key).size, limit)
    return backend.read(key, 0, size)


def bounded_object(backend: Backend, key: str, limit: int, *, size: int | None = None) -> Object:
    """The same with the tag of the object's state. ``size``, when a listing told it just now, saves a call."""
    check_size(key, backend.stat(key).size if size is None else size, limit)
    return backend.get(key)


def check_size(key: str, size: int, limit: int) -> int:
    """Return ``size`` if an object may be so long; ``FormatError`` otherwise."""
    if size > limit:
        raise FormatError(
            f"{key} has {size} bytes; the limit is {limit}",
            hint="the store is damaged, or was written by something else: run `osmo dataset verify`",
        )
    return size
