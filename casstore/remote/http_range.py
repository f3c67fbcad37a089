"""Ranges of objects, in HTTP's words.

Decided here and only here: how an offset and a length become a ``Range`` header, and what is done about the ranges that
HTTP has no words for: an empty one, and one from the end that asks for more than there is behind its offset.
"""

from __future__ import annotations

from casstore.errors import IntegrityError
from casstore.remote.base import Object, RemoteInfo

__all__ = ["empty_range", "has_words", "range_header"]


def has_words(offset: int, length: int | None) -> bool:
    """Whether HTTP can ask for this range; where it can't, ``empty_range`` tells from the object's size what it is."""
    return length is None or (length > 0 and (offset >= 0 or length <= -offset))


def range_header(offset: int, length: int | None) -> str | None:
    """Return the value of ``Range``, or None for a whole object. From the end all that follows is asked for."""
    if offset < 0:
        return f"bytes={offset}"
    if length is not None:
        return f"bytes={offset}-{offset + length - 1}"
    return f"bytes={offset}-" if offset else None


def empty_range(what: str, info: RemoteInfo, offset: int, length: int | None) -> Object:
    """Return the empty range of an object of which only this is known; ``IntegrityError`` when it is too short."""
    inside = -info.size <= offset <= info.size
    if length or not inside or (length is None and offset != info.size):
        raise IntegrityError(f"{what} is too short: {info.size} bytes")
    return Object(b"", info.etag)
