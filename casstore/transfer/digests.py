"""Comparing bytes that come from elsewhere with the digests that are known of them there.

Decided here and only here: which digests of other tools are understood, and what counts as proof. ETags of S3 are the
MD5 of the object, or for an object that was sent in parts the MD5 of the parts' MD5s, ``-``, and their number; the size
of the parts is not recorded, so that all plausible ones are tried at once. Some services' ETags are no digest at all
(and so are those of objects that a service encrypts with keys of its own): then equal ETags prove that the object is
still in the state that was recorded, and nothing about its bytes.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum

import msgspec

from casstore.errors import IntegrityError
from casstore.model import Buffer

__all__ = ["OSMO_PART", "Check", "Checker", "Expected", "OsmoEtag", "plain_etag"]

OSMO_PART = 8 << 20
"""Bytes of a part in the ETags that OSMO's client computes."""
_MIB = 1 << 20
_PARTS = (8, 5, 6, 7, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 500, 512, 1000, 1024, 2048, 5120)
"""Sizes of parts, in MiB, that uploading tools use, the likeliest first."""
_TRIED = 6
_MOST_PARTS = 10_000
_ETAG = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,5}))?\Z", re.ASCII)
_TEXT_BLOCK = 1 << 20
_LOOK = 512
_TEXT = bytes(range(32, 127)) + b"\n\r\t\f\b"


class Check(StrEnum):
    """What was compared for a file. The values are part of the provenance of versions."""

    MD5 = "md5"
    """The MD5 of its bytes."""
    PARTS = "md5-of-parts"
    """The MD5 of its parts' MD5s."""
    TEXT = "md5-of-text"
    """The MD5 of its bytes with line ends of Unix, as old releases of DVC compute it."""
    STATE = "etag"
    """Only the service's own ETag, which is no digest of the bytes: the object was not changed since."""
    NONE = "none"
    """Nothing was known of it but its name and size."""


class Expected(msgspec.Struct, frozen=True, array_like=True):
    """What a source says of a file's bytes: an ETag or MD5.

    ``text``: it may be the MD5 of the text with line ends of Unix. ``state``: it is the service's own ETag of that
    object, which need not be a digest, so that an equal ETag is accepted where it can't be recomputed.
    """

    value: str
    text: bool = False
    state: bool = False


def plain_etag(etag: str) -> str:
    """Return an ETag as tools write it down: without quotes, in lower case where it is hexadecimal."""
    plain = etag.removeprefix("W/").strip('"')
    return plain.lower() if _ETAG.match(plain.lower()) else plain


class Checker:
    """Takes the bytes of one file in order, and says in the end whether they are what was expected."""

    def __init__(self, expected: Expected | None, size: int) -> None:
        self._expected = expected
        self._md5 = self._text = None
        self._parts: list[_Parts] = []
        match = _ETAG.match(expected.value) if expected else None
        if expected is None or match is None:
            return
        if match[2] is None:
            self._md5 = hashlib.md5(usedforsecurity=False)
            self._text = _TextSum() if expected.text else None
        else:
            self._parts = [_Parts(length) for length in _part_sizes(size, int(match[2]))]

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        if self._md5 is not None:
            self._md5.update(data)
        if self._text is not None:
            self._text.update(data)
        for parts in self._parts:
            parts.update(data)

    def verdict(self, etag: str) -> Check:
        """Return what was compared; ``etag`` is the service's own of what was read.

        ``IntegrityError`` when the bytes, or the object's state, are not what was expected.
        """
        if self._expected is None:
            return Check.NONE
        wanted = self._expected.value
        if self._md5 is not None and self._md5.hexdigest() == wanted:
            return Check.MD5
        if self._text is not None and self._text.hexdigest() == wanted:
            return Check.TEXT
        if any(parts.etag() == wanted for parts in self._parts):
            return Check.PARTS
        if self._expected.state and plain_etag(etag) == wanted:
            return Check.STATE
        found = self._md5.hexdigest() if self._md5 else next((parts.etag() for parts in self._parts), plain_etag(etag))
        raise IntegrityError(f"its bytes are not those that were recorded: the digest is {found}, not {wanted[:80]}")


class _Parts:
    """The ETag of an object that was sent in parts of one size."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._sums = hashlib.md5(usedforsecurity=False)
        self._part = hashlib.md5(usedforsecurity=False)
        self._filled = 0
        self._count = 0

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            taken = view[: self._length - self._filled]
            self._part.update(taken)
            self._filled += len(taken)
            if self._filled == self._length:
                self._close()
            view = view[len(taken) :]

    def _close(self) -> None:
        self._sums.update(self._part.digest())
        self._part = hashlib.md5(usedforsecurity=False)
        self._filled = 0
        self._count += 1

    def etag(self) -> str:
        if self._filled:
            self._close()
        return f"{self._sums.hexdigest()}-{self._count}"


class OsmoEtag:
    """The ETag that OSMO's client computes of a file: its MD5, or in parts when it is longer than one."""

    def __init__(self) -> None:
        self._whole = hashlib.md5(usedforsecurity=False)
        self._parts = _Parts(OSMO_PART)
        self._size = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._size += len(data)
        if self._size <= OSMO_PART:
            self._whole.update(data)
        self._parts.update(data)

    def value(self) -> str:
        """Return it, once all bytes were taken."""
        return self._whole.hexdigest() if self._size <= OSMO_PART else self._parts.etag()


class _TextSum:
    """MD5 as DVC computed it before release 3: files that look like text have their line ends turned into Unix's.

    Block by block of 1 MiB: a line end that falls between two blocks is left as it is, there as here.
    """

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._block = bytearray()
        self._is_text: bool | None = None

    def update(self, data: Buffer) -> None:
        if self._is_text is False:
            return
        self._block += data
        while len(self._block) >= _TEXT_BLOCK:
            self._take(bytes(self._block[:_TEXT_BLOCK]))
            del self._block[:_TEXT_BLOCK]

    def _take(self, block: bytes) -> None:
        if self._is_text is None:
            self._is_text = _looks_like_text(block[:_LOOK])
        self._md5.update(block.replace(b"\r\n", b"\n"))

    def hexdigest(self) -> str | None:
        if self._block:
            self._take(bytes(self._block))
            self._block.clear()
        return self._md5.hexdigest() if self._is_text else None


def _looks_like_text(block: bytes) -> bool:
    """DVC's rule: no zero byte, and at most three tenths of anything but printable ASCII."""
    if b"\0" in block:
        return False
    return len(block.translate(None, _TEXT)) <= 0.3 * len(block)


def _part_sizes(size: int, count: int) -> list[int]:
    """Return the plausible sizes of parts of an object of ``size`` bytes that was sent in ``count`` parts."""
    if count > _MOST_PARTS or size <= 0:
        return []
    least = -(-size // count)
    found = [part * _MIB for part in _PARTS if -(-size // (part * _MIB)) == count]
    # What a tool takes that spreads the bytes evenly: exactly, or rounded up.
    for part in (-(-least // _MIB) * _MIB, least, size):
        if part not in found and -(-size // part) == count:
            found.append(part)
    return found[:_TRIED]
