"""Packs: many chunks in one object.

Decided here and only here: the bytes of a pack, and what its id covers. See ``docs/format/pack.md``.

    header   16 bytes   magic "CASPACK1", kind (1 data, 2 metadata), 7 zero bytes
    frames              the stored bytes of the chunks, one after the other, nothing between them
    footer   52 n       a record for each chunk, in the order of the frames
    trailer  16 bytes   length of the footer (u32), number of chunks (u32), magic "CASPEND1"

A record: chunk id (32), stored length (u32), raw length (u32), codec (u8), 3 zero bytes, check (8). ``check`` is the
start of the BLAKE3 of the stored bytes of a compressed frame, and zero for a raw one, whose chunk id covers them
already. A frame of codec 2 holds a pointer to the bytes of its chunk (``format.reference``). The pack's id is the
BLAKE3 of header, footer and trailer: with the checks and the chunk ids it covers every bit of the pack, and no byte of
data is hashed twice to get it. All integers are little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

import msgspec

from casstore import hashing
from casstore.compression import MAX_RAW, RAW, REFERENCE, ZSTD, decode
from casstore.errors import FormatError, IntegrityError
from casstore.format.reference import is_possible, parse_pointer

HEADER_SIZE = 16
RECORD_SIZE = 52
TRAILER_SIZE = 16
CHECK_SIZE = 8
MAX_CHUNKS = 1 << 17
MAX_PACK_SIZE = (1 << 32) - 1

_MAGIC = b"CASPACK1"
_END = b"CASPEND1"
_RECORD = struct.Struct("<32sIIB3x8s")
_TRAILER = struct.Struct("<II8s")
_NO_CHECK = bytes(CHECK_SIZE)
_NEWER = "a newer casstore may have written it"


class PackKind(IntEnum):
    """What the chunks of a pack are: file data, or nodes of manifests. Kept apart so that trees are read together."""

    DATA = 1
    META = 2


class Record(NamedTuple):
    """One chunk of a pack. ``offset`` is that of its frame from the start of the pack; lengths in bytes."""

    chunk_id: bytes
    offset: int
    stored: int
    raw: int
    codec: int
    check: bytes


class Footer(msgspec.Struct, frozen=True):
    """The table of contents of one pack."""

    kind: PackKind
    records: tuple[Record, ...]

    @property
    def size(self) -> int:
        """Length of the whole pack in bytes."""
        last = self.records[-1]
        return last.offset + last.stored + RECORD_SIZE * len(self.records) + TRAILER_SIZE


def header(kind: PackKind) -> bytes:
    """Return the first bytes of a pack of this kind."""
    return _MAGIC + bytes([kind]) + bytes(7)


def check_of(codec: int, payload: bytes | bytearray | memoryview) -> bytes:
    """Return the check of a frame: zero for a raw one, the start of the digest of its stored bytes otherwise."""
    return _NO_CHECK if codec == RAW else hashing.digest(payload)[:CHECK_SIZE]


def encode_record(chunk_id: bytes, stored: int, raw: int, codec: int, check: bytes) -> bytes:
    """Return the footer record of one chunk."""
    return _RECORD.pack(chunk_id, stored, raw, codec, check)


def encode_tail(kind: PackKind, records: bytes | bytearray) -> tuple[bytes, bytes]:
    """Return ``(pack id, footer and trailer)`` for records in the order of the frames."""
    tail = bytes(records) + _TRAILER.pack(len(records), len(records) // RECORD_SIZE, _END)
    return hashing.digest_parts((header(kind), tail)), tail


def tail_size(trailer: bytes) -> int:
    """Return how many bytes at the end of a pack hold footer and trailer, from its last ``TRAILER_SIZE`` bytes."""
    if len(trailer) != TRAILER_SIZE:
        raise FormatError("a pack is too short to hold a trailer")
    length, count, magic = _TRAILER.unpack(trailer)
    if magic != _END or length != count * RECORD_SIZE or not 0 < count <= MAX_CHUNKS:
        raise FormatError("the trailer of a pack is damaged")
    return int(length) + TRAILER_SIZE


def parse_footer(pack_id: bytes, head: bytes, tail: bytes, pack_size: int) -> Footer:
    """Return the table of contents of a pack from its header, its tail and its length, all verified against its id."""
    if tail_size(tail[-TRAILER_SIZE:]) != len(tail):
        raise FormatError("the footer of a pack has the wrong length")
    if hashing.digest_parts((head, tail)) != pack_id:
        raise IntegrityError(f"pack {pack_id.hex()}: header or footer are damaged")
    if len(head) != HEADER_SIZE or not head.startswith(_MAGIC) or head[8] not in (1, 2) or any(head[9:]):
        raise FormatError(f"pack {pack_id.hex()}: unknown header")
    records: list[Record] = []
    offset = HEADER_SIZE
    for chunk_id, stored, raw, codec, check in _RECORD.iter_unpack(tail[:-TRAILER_SIZE]):
        if codec not in (RAW, ZSTD, REFERENCE):
            raise FormatError(f"pack {pack_id.hex()}: unknown codec {codec}", hint=_NEWER)
        if raw > MAX_RAW or stored > raw or (codec == RAW and stored != raw):
            raise FormatError(f"pack {pack_id.hex()}: impossible record")
        if codec == REFERENCE and (head[8] != PackKind.DATA or not is_possible(stored, raw)):
            raise FormatError(f"pack {pack_id.hex()}: impossible reference")
        records.append(Record(chunk_id, offset, stored, raw, codec, check))
        offset += stored
    if offset + len(tail) != pack_size:
        raise FormatError(f"pack {pack_id.hex()}: frames and footer do not fill the object")
    return Footer(PackKind(head[8]), tuple(records))


def decode_frame(
    chunk_id: bytes, codec: int, payload: bytes | bytearray | memoryview, raw: int
) -> bytes | bytearray | memoryview:
    """Return the raw bytes of a chunk from its frame, verified against its id.

    A raw frame is returned as the buffer that came in. ``IntegrityError`` names the chunk when it is damaged.
    """
    data = payload if codec == RAW else decode(codec, payload, raw)
    if len(data) != raw or hashing.digest(data) != chunk_id:
        raise IntegrityError(f"chunk {chunk_id.hex()} is damaged")
    return data


def verify_frame(chunk_id: bytes, codec: int, payload: bytes | bytearray | memoryview, raw: int) -> None:
    """Raise ``IntegrityError`` unless a frame holds its chunk; of a reference, unless it can be followed."""
    if codec == REFERENCE:
        parse_pointer(payload, raw)
    else:
        decode_frame(chunk_id, codec, payload, raw)


def verify_frames(records: Iterable[Record], part: bytes | memoryview, *, start: int = 0) -> list[bytes]:
    """Return the ids of the chunks whose frames are damaged, every stored bit considered; not what references lead to.

    ``part`` holds the frames of these records; ``start`` is where in the pack it begins.
    """
    damaged: list[bytes] = []
    view = memoryview(part)
    for record in records:
        at = record.offset - start
        payload = view[at : at + record.stored]
        try:
            if check_of(record.codec, payload) != record.check:
                raise IntegrityError("stored bytes")
            verify_frame(record.chunk_id, record.codec, payload, record.raw)
        except IntegrityError:
            damaged.append(record.chunk_id)
    return damaged
