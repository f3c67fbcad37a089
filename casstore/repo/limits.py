"""How much of a bucket is taken into memory.

Decided here and only here: that no object is read whole without a bound, and what the user is told about a longer one.
A bucket is not trusted.
"""

from __future__ import annotations

from casstore.backend.base import Backend, Object, check_limit
from casstore.errors import FormatError

__all__ = ["bounded_get", "bounded_object", "check_size"]

_HINT = "the store is damaged, or was written by something else: run `osmo dataset verify`"


def bounded_get(backend: Backend, key: str, limit: int) -> bytes:
    """Return the whole object, at most ``limit`` bytes long; ``FormatError`` for a longer one, before it is read."""
    return bounded_object(backend, key, limit).data


def bounded_object(backend: Backend, key: str, limit: int) -> Object:
    """The same with the tag of the object's state. One request."""
    try:
        return backend.get(key, limit=limit)
    except FormatError as error:
        raise FormatError(error.message, hint=_HINT) from None


def check_size(key: str, size: int, limit: int) -> int:
    """Return ``size`` if an object may be so long; ``FormatError`` otherwise."""
    try:
        return check_limit(key, size, limit)
    except FormatError as error:
        raise FormatError(error.message, hint=_HINT) from None
