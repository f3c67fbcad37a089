"""Parts of something that has a length, in HTTP's words.

Decided here and only here: which ranges are served. One range is; of several, and of what is no range, HTTP lets a
server send the whole, and so does this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from starlette.responses import Response

from casstore.wire.protocol import ErrorBody
from casstore_server.api.edge import reply

__all__ = ["Span", "Unsatisfiable", "span_of", "unsatisfiable"]

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*\Z", re.ASCII)


class Span(NamedTuple):
    """From ``start`` on, ``length`` bytes of ``size``. ``partial``: a part was asked for."""

    start: int
    length: int
    size: int
    partial: bool

    def headers(self) -> dict[str, str]:
        """What a reply says of its length."""
        said = {"Accept-Ranges": "bytes", "Content-Length": str(self.length)}
        if self.partial:
            said["Content-Range"] = f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"
        return said


class Unsatisfiable(Exception):  # noqa: N818  # a reply, never an error of ours
    """Nothing of the range is there."""


def span_of(asked: str | None, size: int) -> Span:
    """What a ``Range`` header asks for, of ``size`` bytes. Raises ``Unsatisfiable``."""
    whole = Span(0, size, size, False)
    found = _RANGE.match(asked or "")
    if found is None or not (found[1] or found[2]):
        return whole
    if not found[1]:
        length = min(int(found[2]), size)
        if not length:
            raise Unsatisfiable
        return Span(size - length, length, size, True)
    start = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < start:
        return whole  # no range at all
    if start >= size:
        raise Unsatisfiable
    return Span(start, last - start + 1, size, True)


def unsatisfiable(size: int, headers: Mapping[str, str]) -> Response:
    """The reply (416) to whoever asks for what is behind the end of ``size`` bytes."""
    body = ErrorBody(message=f"There is nothing in this range: it has {size} bytes", error_code="USER", kind="usage")
    found = reply(body, status=416)
    found.headers.update({name: value for name, value in headers.items() if name.lower() != "content-type"})
    found.headers["Content-Range"] = f"bytes */{size}"
    return found
