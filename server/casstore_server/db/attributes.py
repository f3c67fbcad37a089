"""Labels and metadata as keys that an index of a database can hold.

Decided here and only here: that every place in a tree, and every item of a list, is one short string of bytes such that
each test of the query language is a look-up of one of them or of a range. The order of bytes is the order of numbers,
exactly: no number is rounded.

    key  := place kind value                 place := 16 bytes of the digest of the keys that lead there
    kind := t text | n number | b boolean | l list | i item of a list | o anything else
    value of t: 16 bytes of the digest of the text; n: ``number``; b: 0 or 1; l: ``number`` of items;
    i: kind and value of the item, where it is text, a number or a boolean
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = [
    "BOOLEAN", "ITEM", "LIST", "NUMBER", "TEXT", "Scalar", "Span", "anything", "kind", "number", "place", "rows",
    "scalar", "text_bytes",
]  # fmt: skip

Scalar = str | int | float | bool

TEXT, NUMBER, BOOLEAN, LIST, ITEM, _OTHER = b"t", b"n", b"b", b"l", b"i", b"o"
_SIZE = 16
_BIAS = 1 << 27
_MINUS_INFINITY, _NEGATIVE, _ZERO, _POSITIVE, _INFINITY = (bytes([kind]) for kind in range(5))
_LAST = b"\xff"
"""Follows every byte of the digits of a number."""


class Span(NamedTuple):
    """All keys from ``first`` on and before ``after``."""

    first: bytes
    after: bytes


def place(keys: Sequence[str]) -> bytes:
    """Where these keys lead."""
    return hashlib.blake2b(json.dumps(list(keys)).encode("ascii"), digest_size=_SIZE).digest()


def number(value: float) -> bytes:
    """An exact number, so that bytes compare as the numbers do."""
    if value == 0:
        return _ZERO
    if isinstance(value, float) and math.isinf(value):
        return _INFINITY if value > 0 else _MINUS_INFINITY
    # |value| = digits / 2**n with the highest bit of digits set: compare the exponent, then the bits from the left.
    over, under = abs(value).as_integer_ratio()
    bits = over.bit_length()
    exponent = bits - under.bit_length() + _BIAS
    if not 0 <= exponent < 1 << 28:
        raise ValueError("a number beyond all bounds")
    found = [exponent >> shift & 0x7F for shift in (21, 14, 7, 0)]
    over >>= (over & -over).bit_length() - 1
    bits = over.bit_length()
    over <<= -bits % 7
    found += [over >> shift & 0x7F for shift in range(over.bit_length() - 7, -1, -7)]
    if value > 0:
        return _POSITIVE + bytes(found)
    return _NEGATIVE + bytes(0x7F - digit for digit in found) + _LAST


def text_bytes(text: str) -> bytes:
    """A text as it is kept; any text of Python has one."""
    return text.encode("utf-8", "surrogatepass")


def scalar(value: Scalar) -> bytes:
    """Kind and value of a text, a number or a boolean."""
    if isinstance(value, bool):
        return BOOLEAN + bytes([value])
    if isinstance(value, str):
        return TEXT + hashlib.blake2b(text_bytes(value), digest_size=_SIZE).digest()
    return NUMBER + number(value)


def anything(here: bytes) -> Span:
    """All that can be at a place."""
    return Span(here, here + _LAST)


def kind(here: bytes, what: bytes) -> Span:
    """All of one kind that can be at a place."""
    return Span(here + what, here + bytes([what[0] + 1]))


def rows(tree: dict[str, Any]) -> Iterator[tuple[bytes, bytes | None]]:
    """The keys of a tree, each with its text where it is the place of one. Some may come twice."""
    waiting: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), tree)]
    while waiting:
        above, found = waiting.pop()
        for name, value in found.items():
            keys = (*above, name)
            here = place(keys)
            if isinstance(value, dict):
                waiting.append((keys, value))
                yield here + _OTHER, None
            elif isinstance(value, list):
                yield here + LIST + number(len(value)), None
                for item in value:
                    if isinstance(item, Scalar):
                        yield here + ITEM + scalar(item), None
            elif isinstance(value, Scalar):
                yield here + scalar(value), text_bytes(value) if isinstance(value, str) else None
            else:
                yield here + _OTHER, None
