"""The envelope of small JSON objects: ``store.json``, names, heads and versions.

Decided here and only here: a record is one header line, then compact JSON.

    casstore-record 1 <type> <64 lower-case hexadecimal digits: BLAKE3 of the body> LF
    <body>

The reader computes the header from the body and compares every byte of it, so that any flipped bit is found.
Objects in the body keep the order of their fields, dictionaries are sorted by key: equal values give equal
bytes. The type in the header keeps a record of one sort from being taken for another.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from casstore.errors import FormatError, UsageError
from casstore.hashing import digest, to_hex
from casstore.model import Buffer
from casstore.structs import from_json

__all__ = ["MAX_BODY", "MAX_RECORD", "check", "decode", "encode"]

MAX_BODY = 16 * 1024 * 1024
"""Bytes of JSON in one record, at most."""

_MAGIC = b"casstore-record "
_VERSION = b"1 "
_TYPE = re.compile(r"[a-z][a-z0-9-]{0,31}\Z", re.ASCII)
_MAX_HEADER = len(_MAGIC) + len(_VERSION) + 32 + 1 + 64 + 1

MAX_RECORD = MAX_BODY + _MAX_HEADER
"""Bytes of one whole record, at most: what a reader needs to take."""

T = TypeVar("T", bound=msgspec.Struct)

_encoder = msgspec.json.Encoder()


def encode(type: str, value: msgspec.Struct) -> bytes:  # noqa: A002 - the word of the format
    """Return the record of this type that holds ``value``.

    Raises ``UsageError`` when the value can't be stored as JSON (a lone surrogate, an object without a JSON
    form) or is larger than ``MAX_BODY``.
    """
    try:
        # The JSON encoder can't sort dictionaries with integer keys; this can.
        body = _encoder.encode(msgspec.to_builtins(value, str_keys=True, order="deterministic"))
    except (msgspec.EncodeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"the {type} record can't be stored as JSON: {error}") from error
    if len(body) > MAX_BODY:
        raise UsageError(
            f"the {type} record has {len(body)} bytes; the limit is {MAX_BODY}",
            hint="keep large metadata in a file of the dataset",
        )
    return _header(type, body) + body


def decode(type: str, data: Buffer, cls: type[T]) -> T:  # noqa: A002 - the word of the format
    """Return the value of a record of this type.

    Raises ``FormatError``, which names the type, unless ``data`` is byte for byte a record of this type whose
    body fits ``cls``.
    """
    body = check(type, data)
    try:
        return from_json(body, cls)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"the {type} record can't be understood: {error}") from error


def check(type: str, data: Buffer) -> bytes:  # noqa: A002 - the word of the format
    """Return the body of a record of this type; ``FormatError`` unless its checksum fits."""
    if len(data) > MAX_RECORD:
        raise _too_large(type, len(data))
    head, newline, body = bytes(data).partition(b"\n")
    if len(body) > MAX_BODY:
        raise _too_large(type, len(data))
    if not newline or head + newline != _header(type, body):
        raise _mismatch(type, head)
    return body


def _header(type: str, body: bytes) -> bytes:  # noqa: A002 - the word of the format
    if not _TYPE.match(type):
        raise ValueError(f"illegal record type {type!r}")
    return _MAGIC + _VERSION + f"{type} {to_hex(digest(body))}\n".encode("ascii")


def _too_large(type: str, size: int) -> FormatError:  # noqa: A002 - the word of the format
    return FormatError(f"the {type} record has {size} bytes; the limit is {MAX_BODY} after its header")


def _mismatch(type: str, head: bytes) -> FormatError:  # noqa: A002 - the word of the format
    """Say what is wrong with a header, as far as a header that may be damaged can tell."""
    if not head.startswith(_MAGIC):
        return FormatError(f"not a {type} record: it does not start with 'casstore-record'")
    if not head.startswith(_MAGIC + _VERSION):
        return FormatError(
            f"the {type} record is of a format version that is unknown here",
            hint="a newer casstore may have written it: upgrade; otherwise it is damaged",
        )
    if not head.startswith(_MAGIC + _VERSION + f"{type} ".encode("ascii")):
        return FormatError(f"not a {type} record but one of another type, or damaged")
    return FormatError(f"the {type} record is damaged: its checksum does not fit")
