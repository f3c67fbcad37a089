"""Index segments: where each chunk is.

Decided here and only here: the bytes of a segment and how one is searched. See ``docs/format/index.md``. The index
is a cache of the packs' footers: losing it loses nothing.

    header   32 bytes   magic "CASIDX01", fan-out bits (u8), 7 zero bytes, packs (u32), records (u32), nonce (8)
    packs    32 each    ids of the packs that the records speak of
    fan-out  u32 each   2**bits + 1 numbers: how many records have an id that starts below each value of the first bits
    records  52 each    sorted by id: chunk id (32), pack, offset, stored, raw (u32 each), codec (u8), 3 zero

A chunk that several packs hold has a record for each; of references (codec 2) there is one for each frame, since they
lead to different objects. A segment's id is the BLAKE3 of all of it; its nonce is random,
so that no two segments that were ever written have one id. With about eight records a slot, a look-up is one comparison
of a few hundred bytes in C, and needs no part of the segment in Python's memory. All integers are little endian.
"""

from __future__ import annotations

import heapq
import mmap
import struct
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from casstore.compression import MAX_RAW, RAW, REFERENCE, ZSTD
from casstore.errors import FormatError
from casstore.format.reference import is_possible
from casstore.model import DIGEST_SIZE

RECORD_SIZE = 52
HEADER_SIZE = 32
MAX_BITS = 16

_MAGIC = b"CASIDX01"
_HEADER = struct.Struct("<8sB7xII8s")
_PLACE = struct.Struct("<IIIIB3x")
_RAW = struct.Struct("<32sI16s")
_OFFSET = 4
CODEC_AT = 12
"""Where the codec stands in what follows the number of the pack in a record."""
_PER_SLOT = 8
NONCE_SIZE = 8
_NO_NONCE = bytes(NONCE_SIZE)


class Location(NamedTuple):
    """Where the stored bytes of a chunk are: a range of a pack. Lengths in bytes."""

    pack_id: bytes
    offset: int
    stored: int
    raw: int
    codec: int


def _bits_for(count: int) -> int:
    return min(MAX_BITS, max(0, (count // _PER_SLOT).bit_length()))


def encode(records: Iterable[tuple[bytes, Location]], *, nonce: bytes = _NO_NONCE) -> bytes:
    """Return the segment that holds these chunks; of several locations of one chunk in one pack the first is kept, and
    every reference.
    """
    packs: dict[bytes, int] = {}
    rows: dict[tuple[bytes, int, int], bytes] = {}
    for chunk_id, place in records:
        number = packs.setdefault(place.pack_id, len(packs))
        key = chunk_id, number, place.offset if place.codec == REFERENCE else 0
        if key not in rows:
            rows[key] = _PLACE.pack(number, place.offset, place.stored, place.raw, place.codec)
    body = bytearray()
    for key in sorted(rows):
        body += key[0]
        body += rows[key]
    return _assemble(packs, body, nonce)


def merge(segments: Sequence[Segment], *, without: Collection[bytes] = (), nonce: bytes = _NO_NONCE) -> bytes:
    """Return the segment that holds the chunks of all of these, each once for every pack that holds it, references all.

    What is in the packs of ``without`` is left out. Takes memory for the result, and little more.
    """
    packs: dict[bytes, int] = {}
    body = bytearray()
    last, held = b"", set[tuple[int, bytes]]()
    rows = heapq.merge(*(segment.rows(number) for number, segment in enumerate(segments)))
    numbers = [
        [-1 if pack_id in without else packs.setdefault(pack_id, len(packs)) for pack_id in segment.pack_ids()]
        for segment in segments
    ]
    for chunk_id, origin, pack, rest in rows:
        if chunk_id != last:
            last, held = chunk_id, set()
        known = numbers[origin]
        if pack >= len(known):
            raise FormatError("an index segment names a pack that it does not list")
        place = known[pack], rest[:_OFFSET] if rest[CODEC_AT] == REFERENCE else b""
        if place[0] < 0 or place in held:
            continue
        held.add(place)
        body += chunk_id
        body += known[pack].to_bytes(4, "little")
        body += rest
    return _assemble(packs, body, nonce)


def with_nonce(data: bytes, nonce: bytes) -> bytes:
    """Return the same segment with another nonce, and so with another id."""
    start = HEADER_SIZE - NONCE_SIZE
    return data[:start] + nonce + data[HEADER_SIZE:]


def _assemble(packs: Iterable[bytes], body: bytearray, nonce: bytes) -> bytes:
    """Return a segment from its packs, in order, and its sorted records."""
    count = len(body) // RECORD_SIZE
    bits = _bits_for(count)
    counts = array("I", bytes(4 * ((1 << bits) + 1)))
    shift = MAX_BITS - bits
    for start in range(0, len(body), RECORD_SIZE):
        counts[(((body[start] << 8) | body[start + 1]) >> shift) + 1] += 1
    total = 0
    for slot, number in enumerate(counts):
        total += number
        counts[slot] = total
    listed = b"".join(packs)
    head = _HEADER.pack(_MAGIC, bits, len(listed) // DIGEST_SIZE, count, nonce)
    return b"".join((head, listed, _little(counts).tobytes(), body))


def _little(values: array[int]) -> array[int]:
    if values.itemsize != 4:  # pragma: no cover - no supported platform has another size
        raise FormatError("this platform has no 32-bit array")
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        values = array("I", values)
        values.byteswap()
    return values


class Segment:
    """A parsed segment over ``bytes`` or a memory map; cheap to open, safe for concurrent look-ups."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        if len(data) < HEADER_SIZE:
            raise FormatError("an index segment is too short")
        magic, bits, packs, records, _ = _HEADER.unpack(data[:HEADER_SIZE])
        fanout = HEADER_SIZE + packs * DIGEST_SIZE
        base = fanout + 4 * ((1 << bits) + 1) if bits <= MAX_BITS else 0
        if magic != _MAGIC or bits > MAX_BITS or base + records * RECORD_SIZE != len(data):
            raise FormatError("an index segment is damaged")
        self._data = data
        self._base = base
        self._shift = MAX_BITS - bits
        self._fanout = _little(array("I", data[fanout:base]))
        if self._fanout[0] != 0 or self._fanout[-1] != records:
            raise FormatError("an index segment is damaged")
        self._packs = packs
        self.records = records

    def pack_ids(self) -> list[bytes]:
        """Return the ids of the packs that this segment speaks of."""
        return [self._pack(number) for number in range(self._packs)]

    def _pack(self, number: int) -> bytes:
        if number >= self._packs:
            raise FormatError("an index segment names a pack that it does not list")
        start = HEADER_SIZE + number * DIGEST_SIZE
        return bytes(self._data[start : start + DIGEST_SIZE])

    def _position(self, chunk_id: bytes) -> int:
        slot = (chunk_id[0] << 8 | chunk_id[1]) >> self._shift
        base, fanout = self._base, self._fanout
        start = base + fanout[slot] * RECORD_SIZE
        end = base + fanout[slot + 1] * RECORD_SIZE
        while True:
            found = self._data.find(chunk_id, start, end)
            if found < 0 or (found - base) % RECORD_SIZE == 0:
                return found
            start = found + 1

    def contains(self, chunk_id: bytes) -> bool:
        """Whether the segment has this chunk."""
        return self._position(chunk_id) >= 0

    def locate(self, chunk_id: bytes) -> Location | None:
        """Return one place where the chunk is, or None."""
        found = self._position(chunk_id)
        return None if found < 0 else self._location(found)

    def places(self, chunk_id: bytes) -> Sequence[Location]:
        """Return all places where the chunk is."""
        found = self._position(chunk_id)
        if found < 0:
            return ()
        places = [self._location(found)]
        end = self._base + self.records * RECORD_SIZE
        found += RECORD_SIZE
        while found < end and self._data[found : found + DIGEST_SIZE] == chunk_id:
            places.append(self._location(found))
            found += RECORD_SIZE
        return places

    def _location(self, found: int) -> Location:
        pack, offset, stored, raw, codec = _PLACE.unpack(self._data[found + DIGEST_SIZE : found + RECORD_SIZE])
        if codec not in (RAW, ZSTD, REFERENCE):
            raise FormatError(f"an index segment speaks of codec {codec}", hint="a newer casstore may have written it")
        if raw > MAX_RAW or stored > raw or (codec == REFERENCE and not is_possible(stored, raw)):
            raise FormatError("an index segment holds an impossible record")
        return Location(self._pack(pack), offset, stored, raw, codec)

    def items(self) -> Iterator[tuple[bytes, Location]]:
        """Yield every chunk with its location, sorted by id."""
        for number in range(self.records):
            start = self._base + number * RECORD_SIZE
            yield bytes(self._data[start : start + DIGEST_SIZE]), self._location(start)

    def rows(self, origin: int) -> Iterator[tuple[bytes, int, int, bytes]]:
        """Yield ``(chunk id, origin, number of the pack, the rest of the record)``, sorted by id, for ``merge``."""
        block = RECORD_SIZE * 4096
        end = self._base + self.records * RECORD_SIZE
        last = b""
        for start in range(self._base, end, block):
            for chunk_id, pack, rest in _RAW.iter_unpack(self._data[start : min(start + block, end)]):
                if chunk_id < last:
                    raise FormatError("the records of an index segment are out of order")
                last = chunk_id
                yield chunk_id, origin, pack, rest

    def close(self) -> None:
        """Release the memory map, if it is one."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()
