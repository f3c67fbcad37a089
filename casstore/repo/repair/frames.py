"""The whole chunks of a damaged pack.

Decided here and only here: where they are looked for. By the table of contents when it is whole. When it is not, by
what is left of it, read from its end, and by what the index says of the pack: each is a guess until the bytes there
have the chunk's id. Nothing is taken over that was not verified.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from casstore.backend.base import Backend
from casstore.compression import MAX_RAW, RAW, REFERENCE, ZSTD
from casstore.errors import IntegrityError, NotFoundError
from casstore.format.index import Location, Segment
from casstore.format.pack import (
    HEADER_SIZE,
    MAX_CHUNKS,
    RECORD_SIZE,
    TRAILER_SIZE,
    PackKind,
    header,
    verify_frame,
)
from casstore.repo import layout
from casstore.repo.packs import PackBuilder, read_footer

__all__ = ["salvage"]

_RECORD = struct.Struct("<32sIIB3x8s")
_WINDOW = 8 << 20
"""Bytes that are read at once."""

Guess = tuple[int, int, int, int, bytes]
"""Offset, stored and raw length, codec, chunk id."""


def salvage(
    backend: Backend, pack_id: bytes, segments: Iterable[Segment], *, backwards: bool = False
) -> tuple[PackBuilder, int]:
    """Return a pack of the whole chunks of a damaged one, and how many chunks it is known to have had.

    ``backwards`` turns the order of the chunks round, which makes another pack of the same chunks.
    """
    key = layout.pack_key(pack_id)
    size = backend.stat(key).size
    try:
        footer = read_footer(backend, pack_id, size)
        kind = footer.kind
        guesses = {(r.offset, r.stored, r.raw, r.codec, r.chunk_id) for r in footer.records}
    except IntegrityError:
        kind = _kind(backend, key, size)
        guesses = {*_rest_of_footer(backend, key, size), *_by_index(pack_id, segments)}
    known = len({(guess[4], guess[0] if guess[3] == REFERENCE else 0) for guess in guesses})
    builder = PackBuilder(kind, max(size, 1))
    taken: set[tuple[bytes, bytes]] = set()
    for (_, stored, raw, codec, chunk_id), payload in _payloads(backend, key, size, sorted(guesses, reverse=backwards)):
        key_of_chunk = chunk_id, payload if codec == REFERENCE else b""
        if key_of_chunk in taken or len(payload) != stored:
            continue
        try:
            verify_frame(chunk_id, codec, payload, raw)
        except IntegrityError:
            continue
        taken.add(key_of_chunk)
        builder.append(chunk_id, raw, codec, payload)
    return builder, known


def _kind(backend: Backend, key: str, size: int) -> PackKind:
    head = backend.read(key, 0, min(HEADER_SIZE, size))
    return PackKind.META if head == header(PackKind.META) else PackKind.DATA


def _rest_of_footer(backend: Backend, key: str, size: int) -> Iterator[Guess]:
    """Yield the records at the end of a pack whose table of contents is not what it was.

    Read backwards, records and frames fill the pack exactly at one length of the table; the offsets follow from that.
    """
    length = min(size - HEADER_SIZE, MAX_CHUNKS * RECORD_SIZE + TRAILER_SIZE)
    if length < TRAILER_SIZE + RECORD_SIZE:
        return
    tail = backend.read(key, -length, length)
    records: list[tuple[bytes, int, int, int]] = []
    total = HEADER_SIZE + TRAILER_SIZE
    for start in range(length - TRAILER_SIZE - RECORD_SIZE, -1, -RECORD_SIZE):
        chunk_id, stored, raw, codec, _ = _RECORD.unpack_from(tail, start)
        total += RECORD_SIZE + stored
        records.append((chunk_id, stored, raw, codec))
        if total >= size:
            break
    if total != size:
        return
    offset = HEADER_SIZE
    for chunk_id, stored, raw, codec in reversed(records):
        if codec in (RAW, ZSTD, REFERENCE) and stored <= raw <= MAX_RAW:
            yield offset, stored, raw, codec, chunk_id
        offset += stored


def _by_index(pack_id: bytes, segments: Iterable[Segment]) -> Iterator[Guess]:
    for segment in segments:
        if pack_id not in segment.pack_ids():
            continue
        for chunk_id, place in _items(segment):
            if place.pack_id == pack_id:
                yield place.offset, place.stored, place.raw, place.codec, chunk_id


def _items(segment: Segment) -> Iterator[tuple[bytes, Location]]:
    try:
        yield from segment.items()
    except IntegrityError:
        return  # what is behind an impossible record is not believed


def _payloads(backend: Backend, key: str, size: int, guesses: list[Guess]) -> Iterator[tuple[Guess, bytes]]:
    """Yield the bytes at each place that is inside the pack, reading neighbours together."""
    start, data = 0, b""
    for guess in guesses:
        offset, stored = guess[0], guess[1]
        if offset < HEADER_SIZE or offset + stored > size or stored > MAX_RAW:
            continue
        if not start <= offset <= offset + stored <= start + len(data):
            start = offset
            try:
                data = backend.read(key, start, max(stored, min(_WINDOW, size - start)))
            except (NotFoundError, IntegrityError):
                return  # gone, or shorter, meanwhile
        yield guess, data[offset - start : offset - start + stored]
