"""Texts of a workflow that grow while they are read: its log and its events.

Decided here and only here: how a client learns how far it has read, and goes on from there, with another server too. A
request with the header ``PLACES_HEADER`` gets the text with marks between its lines, and the same header in the reply.
A mark is a line that begins with ``MARK``, as no line of a text does, and holds a JSON object: the places that have
changed since the last mark. The text before a mark was read up to these places; what came behind the last mark may come
again. While the text does not grow there are empty marks now and then, so that a silent server is one that is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from casstore.errors import ServiceError
from casstore.structs import from_json

__all__ = ["MARK", "PLACES_HEADER", "QUIET_S", "Marked", "Resume", "mark"]

PLACES_HEADER = "x-casstore-places"
MARK = b"\x1e"
QUIET_S = 15.0
"""Seconds between two marks while nothing comes."""
_MAX_HELD = 64 << 20

Place = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Resume(msgspec.Struct, kw_only=True):
    """The body of a request for what comes behind ``places``: the sum of the marks that came."""

    places: dict[str, Place]


def mark(moved: Mapping[str, int]) -> bytes:
    """The line of a mark."""
    return MARK + msgspec.json.encode(moved) + b"\n"


class Marked:
    """The reading end of a text with marks. ``places`` is how far the text that was given goes."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self._held = bytearray()
        self._looked = 0

    def feed(self, piece: bytes) -> bytes:
        """What can be given, now that this piece came: whole lines. ``ServiceError`` for what is no such text."""
        self._held += piece
        given = bytearray()
        while (start := self._next_mark()) >= 0 and (end := self._held.find(b"\n", start)) >= 0:
            self.places.update(_moved(self._held[start + 1 : end]))
            given += self._held[:start]
            del self._held[: end + 1]
            self._looked = 0
        if len(self._held) > _MAX_HELD:
            raise ServiceError("The server's text can't be understood: it has no marks")
        return bytes(given)

    def _next_mark(self) -> int:
        if self._held[:1] == MARK:
            return 0
        found = self._held.find(b"\n" + MARK, self._looked)
        if found < 0:
            self._looked = max(0, len(self._held) - 1)
            return -1
        self._looked = found
        return found + 1

    def rest(self) -> bytes:
        """What came behind the last mark, of a text that is whole."""
        return bytes(self._held)

    def cut(self) -> None:
        """The text broke off: what came behind the last mark will come again."""
        self._held.clear()
        self._looked = 0


def _moved(data: Any) -> dict[str, int]:
    try:
        return from_json(bytes(data), dict[str, Place])
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ServiceError(f"The server's text can't be understood: {exc}") from exc
