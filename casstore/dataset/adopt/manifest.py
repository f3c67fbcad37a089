"""Lists of files that other tools keep as JSON, read as a stream: OSMO's manifests, DVC's folders.

Decided here and only here: which bytes are such a list: a JSON array of objects, each a file. It can be larger than
memory and it can be hostile: it is read in pieces, from one state of the object, an entry has a largest size, and every
value has the type that it must have.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from casstore.errors import FormatError, IntegrityError, PreconditionError
from casstore.remote.base import ObjectClient, RemoteInfo
from casstore.structs import convert

__all__ = ["DvcEntry", "ManifestEntry", "read_list"]

_T = TypeVar("_T", bound=msgspec.Struct)

MAX_MANIFEST = 8 << 30
MAX_ENTRY = 64 << 10
"""Characters of one entry."""
_PIECE = 1 << 20
_SPACE = " \t\n\r"
_NEITHER = object()


class ManifestEntry(msgspec.Struct, frozen=True):
    """One file, as OSMO's client wrote it down. ``size`` in bytes; ``url`` is not used by anybody."""

    relative_path: str
    storage_path: str
    size: int
    etag: str


class DvcEntry(msgspec.Struct, frozen=True):
    """One file of a folder, as DVC writes it down."""

    relpath: str
    md5: str


def read_list(
    client: ObjectClient, info: RemoteInfo, entry: type[_T], seen: Callable[[bytes], None] | None = None
) -> Iterator[_T]:
    """Yield the entries in order; ``seen`` gets the bytes as they are read.

    ``FormatError`` tells where it stops being a list of files, or that it was changed.
    """
    number = 0
    try:
        for value in _values(_pieces(client, info, seen)):
            number += 1
            yield convert(value, entry)
    except msgspec.ValidationError as error:
        raise FormatError(f"entry {number} is not a file: {error}") from None
    except FormatError as error:
        raise FormatError(f"it is damaged after entry {number}: {error.message}") from None
    except (PreconditionError, IntegrityError):
        raise FormatError("it was changed since it was listed") from None


def _pieces(client: ObjectClient, info: RemoteInfo, seen: Callable[[bytes], None] | None) -> Iterator[str]:
    if info.size > MAX_MANIFEST:
        raise FormatError(f"it has {info.size} bytes; the limit is {MAX_MANIFEST}")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for offset in range(0, info.size, _PIECE):
            length = min(_PIECE, info.size - offset)
            found = client.read(info.key, offset=offset, length=length, if_match=info.etag or None)
            if seen is not None:
                seen(found.data)
            yield decoder.decode(found.data, final=offset + length == info.size)
    except UnicodeDecodeError:
        raise FormatError("it is not UTF-8") from None


def _values(pieces: Iterator[str]) -> Iterator[object]:
    """Yield the values of a JSON array whose text comes in pieces."""
    text = _Text(pieces)
    if text.sign() != "[":
        raise FormatError("it does not begin with '['")
    text.at += 1
    first = True
    while True:
        sign = text.sign()
        if sign == "]":
            text.at += 1
            break
        if not first:
            if sign != ",":
                raise FormatError("a comma is missing" if sign else "it ends in the middle")
            text.at += 1
        yield text.value()
        first = False
    if text.sign():
        raise FormatError("something follows its end")


class _Text:
    """The part of a text that is looked at, from ``at`` on."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self.at = 0

    def _more(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._text = self._text[self.at :] + piece
        self.at = 0
        return True

    def sign(self) -> str:
        """Pass over white space; return the character that follows, ``""`` at the end."""
        while True:
            while self.at < len(self._text) and self._text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def value(self) -> object:
        """Return the object that follows."""
        if self.sign() != "{":
            raise FormatError("something else than an object follows")
        while True:
            found = self._decoded()
            if found is not _NEITHER:
                return found
            if len(self._text) - self.at > MAX_ENTRY:
                raise FormatError(f"an entry is longer than {MAX_ENTRY} characters, or is not JSON")
            if not self._more():
                raise FormatError("it ends in the middle, or an entry is not JSON")

    def _decoded(self) -> object:
        try:
            value, end = _decoder.raw_decode(self._text, self.at)
        except (ValueError, RecursionError):  # not whole yet, or never
            return _NEITHER
        if end - self.at > MAX_ENTRY:
            raise FormatError(f"an entry is longer than {MAX_ENTRY} characters")
        self.at = end
        return value


_decoder = json.JSONDecoder()
