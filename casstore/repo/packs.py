"""Packs of an open store: filling them and reading their tables of contents.

Decided here and only here: how large packs become, and how a pack under construction uses memory. A builder owns one
buffer for its whole life: fresh large buffers cost more to touch than the work done in them.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from casstore import hashing
from casstore.backend.base import Absent, Backend, Buffer
from casstore.compression import MAX_RAW, RAW
from casstore.errors import PreconditionError
from casstore.format.index import Location
from casstore.format.pack import (
    HEADER_SIZE,
    MAX_CHUNKS,
    MAX_PACK_SIZE,
    RECORD_SIZE,
    TRAILER_SIZE,
    Footer,
    PackKind,
    check_of,
    encode_record,
    encode_tail,
    header,
    parse_footer,
    tail_size,
)
from casstore.repo import layout
from casstore.repo.limits import check_size

PACK_TARGET = 16 << 20
"""Bytes of frames at which a pack is full."""
PACK_MEMORY = 192 << 20
"""Bytes that the data packs under construction take together: with many lanes each becomes smaller."""
PACK_LEAST = 8 << 20
"""No pack is planned smaller than this, however many lanes there are."""
META_TARGET = 8 << 20
"""The same for metadata packs: they are read whole more often, and there is one buffer more for them."""
_TAIL = 16 << 10
"""Bytes that are read from the end of a pack that is far away: enough for 300 chunks."""


class Sealed(NamedTuple):
    """A pack that is ready to be written: its id, its parts in order, and where its chunks are."""

    pack_id: bytes
    parts: tuple[Buffer, ...]
    places: tuple[tuple[bytes, Location], ...]
    size: int


class PackBuilder:
    """Collects frames in one reused buffer. Not thread-safe: each lane of a writer has its own."""

    def __init__(self, kind: PackKind, target: int | None = None) -> None:
        self.kind = kind
        self.target = target or (PACK_TARGET if kind is PackKind.DATA else META_TARGET)
        self._buffer = bytearray(header(kind))
        self._used = HEADER_SIZE
        self._records = bytearray()
        self._chunks: list[tuple[bytes, int, int, int, int]] = []

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def full(self) -> bool:
        """Whether the next chunk belongs into another pack."""
        # One less than there may be: see ``salt``.
        return self._used >= self.target or len(self._chunks) >= MAX_CHUNKS - 1

    def append(self, chunk_id: bytes, raw: int, codec: int, payload: Buffer) -> None:
        """Copy one frame into the pack."""
        start, stored = self._used, len(payload)
        end = start + stored
        if end > len(self._buffer):
            # Grown in few large steps, then kept: a small upload never pays for a large pack.
            room = min(max(2 * len(self._buffer), end, 1 << 16), self.target + MAX_RAW)
            room = max(room, end)
            try:
                self._buffer.extend(bytes(room - len(self._buffer)))
            except BufferError:
                # Somebody still holds a view of the pack before, which was written: an error that was handled, say.
                self._buffer = self._buffer[:start] + bytes(room - start)
        self._buffer[start:end] = payload
        self._used = end
        self._records += encode_record(chunk_id, stored, raw, codec, check_of(codec, payload))
        self._chunks.append((chunk_id, start, stored, raw, codec))

    def salt(self) -> None:
        """Add a chunk of random bytes that nobody refers to, so that the pack gets an id that no other ever had."""
        noise = os.urandom(16)
        self.append(hashing.digest(noise), len(noise), RAW, noise)

    def seal(self) -> Sealed:
        """Return the finished pack. Its parts are views of this builder's buffer: write it before ``reset``."""
        pack_id, tail = encode_tail(self.kind, self._records)
        places = tuple(
            (chunk_id, Location(pack_id, offset, stored, raw, codec))
            for chunk_id, offset, stored, raw, codec in self._chunks
        )
        view = memoryview(self._buffer)[: self._used]
        return Sealed(pack_id, (view, tail), places, self._used + len(tail))

    def reset(self) -> None:
        """Start over with an empty pack in the same buffer."""
        self._used = HEADER_SIZE
        self._records.clear()
        self._chunks.clear()


def read_footer(backend: Backend, pack_id: bytes, size: int | None = None) -> Footer:
    """Read and verify the table of contents of a pack. ``NotFoundError``, ``IntegrityError``, ``StorageError``.

    ``size``, when it is known already, saves a call.
    """
    key = layout.pack_key(pack_id)
    size = check_size(key, backend.stat(key).size if size is None else size, MAX_PACK_SIZE)
    # The footers of packs that are not full of tiny chunks come with the first read.
    guess = min(size, TRAILER_SIZE if backend.capabilities.local else _TAIL)
    tail = backend.read(key, -guess, guess)
    length = tail_size(tail[-TRAILER_SIZE:])
    if length + HEADER_SIZE > size or length > MAX_CHUNKS * RECORD_SIZE + TRAILER_SIZE:
        length = TRAILER_SIZE  # the parser below says what is wrong
    tail = tail[-length:] if length <= guess else backend.read(key, -length, length)
    return parse_footer(pack_id, backend.read(key, 0, min(HEADER_SIZE, size)), tail, size)


def places_of(pack_id: bytes, footer: Footer) -> list[tuple[bytes, Location]]:
    """Return where the chunks of a pack are, as the index wants them."""
    return [(r.chunk_id, Location(pack_id, r.offset, r.stored, r.raw, r.codec)) for r in footer.records]


def put_pack(backend: Backend, sealed: Sealed) -> None:
    """Write a pack, unless it is there whole: the same chunks in the same order have the same name."""
    key = layout.pack_key(sealed.pack_id)
    try:
        backend.put(key, sealed.parts, condition=Absent())
    except PreconditionError:
        if backend.stat(key).size != sealed.size:  # it was cut short
            backend.put(key, sealed.parts)
