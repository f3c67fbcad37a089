"""References: chunks whose bytes are a range of an object elsewhere.

Decided here and only here: the bytes of a pointer, and what a pointer may say. See ``docs/format/pack.md``. A frame of
codec ``REFERENCE`` holds one; its raw length and chunk id are those of the bytes that it leads to.

    form     u8         1
             u8         zero
    lengths  u16 each   of bucket, key and ETag
    offset   u64        where in the object the chunk begins
    bucket              its URL in the normal form: a scheme of object storage, no path
    key                 UTF-8
    ETag                the state of the object that was read

All integers are little endian. A pointer is input: it says where a reader goes, and what is sent there in a header.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import NamedTuple

from casstore.errors import FormatError, UsageError
from casstore.model import Buffer
from casstore.remote.urls import MAX_PATH, REMOTE_SCHEMES, parse_url

__all__ = ["LEAST", "MAX_POINTER", "Pointer", "encode_pointer", "is_possible", "parse_pointer", "pointer_problem"]

LEAST = 4096
"""Bytes of a chunk that is referred to, at least: so that a pointer is always shorter than its chunk."""

_FORM = 1
_HEAD = struct.Struct("<BBHHHQ")
_MAX_BUCKET = 512
_MAX_ETAG = 256
_END = 1 << 62
MAX_POINTER = _HEAD.size + _MAX_BUCKET + MAX_PATH + _MAX_ETAG
"""Bytes of a pointer, at most."""

_ETAG = re.compile(r"[!-~]{1,256}\Z", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Pointer(NamedTuple):
    """Where the bytes of a chunk are. ``bucket`` is its URL without a slash at the end."""

    bucket: str
    key: str
    etag: str
    offset: int

    @property
    def url(self) -> str:
        """The object, for people and for comparing with what a user has allowed."""
        return f"{self.bucket}/{self.key}"


def pointer_problem(bucket: str, key: str, etag: str) -> str | None:
    """Return why this state of an object can't be referred to, or None."""
    if not _is_bucket(bucket):
        return "it is not in object storage"
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "its key is not valid text"
    if not 0 < length <= MAX_PATH:
        return "its key is empty or too long"
    # Not every service takes a key literally, and what a user allows are prefixes.
    if _CONTROL.search(key) or not {".", ".."}.isdisjoint(key.split("/")):
        return "its key holds a control character, or '.' or '..' as a part"
    if not _ETAG.match(etag):
        return "the service gives it no ETag" if not etag else "its ETag is not printable"
    return None


@lru_cache(256)
def _is_bucket(bucket: str) -> bool:
    if len(bucket) > _MAX_BUCKET:
        return False
    try:
        place = parse_url(bucket)
    except UsageError:
        return False
    return place.scheme in REMOTE_SCHEMES and place.bucket_url == bucket


def is_possible(stored: int, raw: int) -> bool:
    """Whether a frame that is a reference can have these lengths."""
    return _HEAD.size < stored <= MAX_POINTER and raw >= LEAST


def encode_pointer(pointer: Pointer) -> bytes:
    """Return the bytes of a pointer that ``pointer_problem`` has nothing against."""
    parts = pointer.bucket.encode(), pointer.key.encode(), pointer.etag.encode()
    return _HEAD.pack(_FORM, 0, *map(len, parts), pointer.offset) + b"".join(parts)


def parse_pointer(data: Buffer, raw: int) -> Pointer:
    """Return the pointer to ``raw`` bytes; ``FormatError`` for what can't be one."""
    if not is_possible(len(data), raw):
        raise FormatError("a reference has an impossible length")
    data = bytes(data)
    form, zero, bucket_size, key_size, etag_size, offset = _HEAD.unpack_from(data)
    if form != _FORM:
        raise FormatError(f"unknown form {form} of a reference", hint="a newer casstore may have written it")
    if zero or _HEAD.size + bucket_size + key_size + etag_size != len(data) or offset + raw > _END:
        raise FormatError("a reference is damaged")
    key_at = _HEAD.size + bucket_size
    etag_at = key_at + key_size
    try:
        bucket, key, etag = data[_HEAD.size : key_at].decode(), data[key_at:etag_at].decode(), data[etag_at:].decode()
    except UnicodeDecodeError:
        raise FormatError("a reference is not text") from None
    problem = pointer_problem(bucket, key, etag)
    if problem is not None:
        raise FormatError(f"a reference can't be followed: {problem}")
    return Pointer(bucket, key, etag, offset)
