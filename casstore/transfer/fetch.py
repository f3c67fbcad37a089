"""Reading many chunks at once, for those who put them back into files.

Decided here and only here: how the chunks that one piece of work needs become few ranged reads. Chunks of neighbouring
files are neighbours in a pack, so that one read serves many of them. Packs that are local files are read into one
buffer that lives as long as its thread: touching fresh memory costs more than the copy itself. Reads from an object
store go side by side, and a frame that is damaged is read once more, alone: it may have been damaged on its way.
Where the store has a cache on this machine, frames that are there are not asked for, and those that were verified may
be put there.

What can't be read or is damaged is reported when that chunk is taken, so that the caller knows for which file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from casstore import hashing
from casstore.cache.frames import referred
from casstore.compression import REFERENCE
from casstore.errors import CasstoreError, IntegrityError, NotFoundError, StorageError
from casstore.format.index import Location
from casstore.format.pack import decode_frame
from casstore.model import Buffer
from casstore.repo import layout
from casstore.repo.references import Wanted, follow
from casstore.repo.store import Store

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Fetcher"]

GAP_LOCAL = 16 << 10
"""Bytes between two wanted frames of a local pack that are rather read than skipped."""
GAP_REMOTE = 256 << 10
"""The same where every read is a round trip."""
READ_LOCAL, READ_REMOTE = 8 << 20, 16 << 20
"""Bytes that one read covers at most, unless one frame is longer: a whole pack where every read is a request."""
BUFFER = 8 << 20
"""Least size of a buffer: what is never used of it is never touched, and growing it would touch all of it again."""
OPEN_PACKS = 16


class _Extent:
    """One read: a range of a pack, and the frames in it. ``start`` is its place in the buffer."""

    __slots__ = ("end", "frames", "offset", "pack_id", "start")

    def __init__(self, place: Location, start: int) -> None:
        self.pack_id = place.pack_id
        self.offset = place.offset
        self.end = place.offset + place.stored
        self.start = start
        self.frames: list[tuple[Location, bytes]] = []


class Fetcher:
    """Loads sets of chunks and hands them out verified. Not thread-safe: each thread has its own.

    ``pool`` has threads that wait for an object store; without one, reads go one after the other. ``fill``: what is
    read from far away is put into the cache of this machine, if the store has one; see ``keep``.
    """

    def __init__(self, store: Store, pool: Executor | None = None, *, fill: bool = False) -> None:
        self._store = store
        self._pool = pool
        self.fill = fill
        self.fetched = 0
        """Bytes of chunks that came from the store, ..."""
        self.cached = 0
        """... and of those that were in the cache."""
        self._kept: set[bytes] = set()
        self._fresh: list[tuple[Location, Buffer]] = []
        self._local = store.backend.capabilities.local
        self._buffer = bytearray()
        self._packs: dict[bytes, int] = {}
        self._frames: dict[bytes, tuple[Location, Buffer | CasstoreError]] = {}
        self._ready: dict[bytes, Buffer] = {}
        store.index.load()

    def load(self, refs: Iterable[tuple[bytes, int]]) -> None:
        """Read these chunks ``(id, raw length)``. What was loaded before is gone, and buffers taken from it too."""
        self.keep()
        self._ready = {}
        self._frames = {}
        self._kept = set()
        wanted: dict[bytes, Location] = {}
        lengths: dict[bytes, int] = {}
        locate = self._store.index.locate
        for chunk_id, raw in refs:
            if chunk_id not in wanted:
                try:
                    wanted[chunk_id] = place = locate(chunk_id)
                    if place.codec == REFERENCE:
                        lengths[chunk_id] = raw
                except NotFoundError as error:
                    self._frames[chunk_id] = _NOWHERE, _missing(error)
        if lengths:
            self._look_elsewhere(wanted, lengths)
        self._read(self._look(wanted), retry=True)
        if lengths:
            self._follow(lengths)

    def _look_elsewhere(self, wanted: dict[bytes, Location], lengths: dict[bytes, int]) -> None:
        """Take what is in the cache of what is referred to: neither that nor the references need be read then."""
        cache = self._store.elsewhere
        if cache is None:
            return
        rows = sorted((referred(wanted[chunk_id]), chunk_id) for chunk_id in lengths)
        for (place, chunk_id), data in zip(rows, cache.frames.get_many([row[0] for row in rows]), strict=True):
            if data is not None and place.raw == lengths[chunk_id] and hashing.digest(data) == chunk_id:
                self._ready[chunk_id] = data
                self.cached += len(data)
                del wanted[chunk_id], lengths[chunk_id]

    def _look(self, wanted: dict[bytes, Location]) -> dict[bytes, Location]:
        """Take what is in the cache; returns the rest."""
        cache = self._store.cache
        if cache is None or not wanted:
            return wanted
        rows = sorted((place, chunk_id) for chunk_id, place in wanted.items() if place.codec != REFERENCE)
        rest = {chunk_id: place for chunk_id, place in wanted.items() if place.codec == REFERENCE}
        for (place, chunk_id), payload in zip(rows, cache.frames.get_many([row[0] for row in rows]), strict=True):
            if payload is None:
                rest[chunk_id] = place
            else:
                self._frames[chunk_id] = place, payload
                self._kept.add(chunk_id)
        return rest

    def keep(self) -> None:
        """Put what was taken since it was loaded into the cache, if this fetcher is to fill it."""
        fresh, self._fresh = self._fresh, []
        if fresh and self._store.elsewhere is not None:
            self._store.elsewhere.frames.put_many(fresh)

    def _follow(self, lengths: dict[bytes, int]) -> None:
        """Read what is not in the store but elsewhere, if it is as long as whoever wants it says."""
        found: list[Wanted] = []
        for chunk_id, raw in lengths.items():
            place, payload = self._frames[chunk_id]
            if isinstance(payload, CasstoreError) or place.codec != REFERENCE:
                continue  # it was stored meanwhile, and the reference is gone
            if place.raw != raw:
                self._frames[chunk_id] = place, _another_length(chunk_id)
            else:
                found.append((chunk_id, place, payload))
        for chunk_id, data in follow(self._store, found).items():
            if isinstance(data, CasstoreError):
                self._frames[chunk_id] = _NOWHERE, data
            else:
                self._ready[chunk_id] = data
                self.fetched += len(data)
                if self.fill:
                    self._fresh.append((referred(self._frames[chunk_id][0]), data))

    def take(self, chunk_id: bytes, raw: int) -> Buffer:
        """Return a loaded chunk, verified; valid until the next ``load``. It is decoded once.

        ``IntegrityError`` when it is missing, damaged, or of another length than ``raw``.
        """
        data = self._ready.get(chunk_id)
        if data is None:
            place, payload = self._frames[chunk_id]
            if isinstance(payload, CasstoreError):
                raise payload
            if place.codec == REFERENCE:  # it was stored when it was looked for, and is not any more
                self._follow({chunk_id: raw})
                return self.take(chunk_id, raw)
            if chunk_id in self._kept:
                data = self._decode_kept(chunk_id, place, payload)
                if data is None:
                    self._read({chunk_id: place}, retry=True)
                    return self.take(chunk_id, raw)
                self.cached += len(data)
            else:
                data = self._decode(chunk_id, place, payload)
                self.fetched += len(data)
            self._ready[chunk_id] = data
        if len(data) != raw:
            raise _another_length(chunk_id)
        return data

    def _decode_kept(self, chunk_id: bytes, place: Location, payload: Buffer) -> Buffer | None:
        """Return a chunk from the cache; None when it is damaged there, and what is read anew takes its place."""
        try:
            return decode_frame(chunk_id, place.codec, payload, place.raw)
        except IntegrityError:
            self._kept.discard(chunk_id)
            return None

    def _decode(self, chunk_id: bytes, place: Location, payload: Buffer) -> Buffer:
        try:
            data = decode_frame(chunk_id, place.codec, payload, place.raw)
        except IntegrityError:
            if self._local:
                return self._store.decode(chunk_id, place, payload)
            try:
                payload = self._store.backend.read(layout.pack_key(place.pack_id), place.offset, place.stored)
            except NotFoundError as error:
                raise _missing(error) from None
            data = self._store.decode(chunk_id, place, payload)
        if self.fill and self._store.cache is not None:
            self._fresh.append((place, payload))
        return data

    def _read(self, wanted: dict[bytes, Location], *, retry: bool) -> None:
        extents, total = self._plan(wanted)
        if self._local and total > len(self._buffer):
            self._buffer = bytearray(max(total, BUFFER))
        again: list[bytes] = []
        gone: set[bytes] = set()
        each = map if self._pool is None or len(extents) < 2 else self._pool.map
        for extent, data in zip(extents, each(self._try_extent, extents), strict=True):
            if isinstance(data, NotFoundError):
                # A pack may have been rewritten into another since the index was read.
                if retry:
                    again += [chunk_id for _, chunk_id in extent.frames]
                    gone.add(extent.pack_id)
                self._refuse(extent, _missing(data))
            elif isinstance(data, IntegrityError):
                self._refuse(extent, data)
            else:
                base, frames = extent.offset, self._frames
                for place, chunk_id in extent.frames:
                    start = place[1] - base
                    frames[chunk_id] = place, data[start : start + place[2]]
        if again:
            self._read_again(again, gone)

    def _read_again(self, chunk_ids: list[bytes], gone: set[bytes]) -> None:
        self._store.index.load(again=True)
        for pack_id in list(self._packs):
            os.close(self._packs.pop(pack_id))
        # The buffer holds the frames that were found; the few that moved go into memory of their own.
        buffer, self._buffer = self._buffer, bytearray()
        moved: dict[bytes, Location] = {}
        for chunk_id in chunk_ids:
            try:
                moved[chunk_id] = self._store.index.locate(chunk_id, gone=gone)
            except NotFoundError as error:
                self._frames[chunk_id] = _NOWHERE, _missing(error)
        self._read(moved, retry=False)
        self._buffer = max(buffer, self._buffer, key=len)

    def _plan(self, wanted: dict[bytes, Location]) -> tuple[list[_Extent], int]:
        """Return the reads, and the bytes of buffer that they fill; bytes read in vain are at most as many again."""
        rows = sorted(zip(wanted.values(), wanted, strict=True))
        spare = sum([place[2] for place, _ in rows])
        most, longest = (GAP_LOCAL, READ_LOCAL) if self._local else (GAP_REMOTE, READ_REMOTE)
        extents: list[_Extent] = []
        extent: _Extent | None = None
        pack, limit, end = b"", 0, 0  # of the current read: its pack, and where it must end and does end
        total = 0
        for row in rows:
            pack_id, offset, stored, _, _ = row[0]
            gap = offset - end
            if (
                pack_id == pack
                and 0 <= gap <= most
                and gap <= spare
                and offset + stored <= limit
                and extent is not None
            ):
                spare -= gap
                total += gap + stored
                end = extent.end = offset + stored
                extent.frames.append(row)
                continue
            extent = _Extent(row[0], total)
            extent.frames.append(row)
            extents.append(extent)
            pack, limit, end = pack_id, offset + longest, offset + stored
            total += stored
        return extents, total

    def _try_extent(self, extent: _Extent) -> memoryview | NotFoundError | IntegrityError:
        try:
            return self._read_extent(extent)
        except (NotFoundError, IntegrityError) as error:
            return error

    def _read_extent(self, extent: _Extent) -> memoryview:
        length = extent.end - extent.offset
        key = layout.pack_key(extent.pack_id)
        descriptor = self._open(extent.pack_id, key) if self._local else None
        if descriptor is None:
            return memoryview(self._store.backend.read(key, extent.offset, length))
        view = memoryview(self._buffer)[extent.start : extent.start + length]
        got = 0
        try:
            while got < length:
                more = os.preadv(descriptor, [view[got:]], extent.offset + got)
                if not more:
                    raise IntegrityError(f"{key} is shorter than the index says")
                got += more
        except OSError as error:
            raise StorageError(f"{key}: {error.strerror or error}", hint="look at the disk of the store") from None
        return view

    def _open(self, pack_id: bytes, key: str) -> int | None:
        descriptor = self._packs.pop(pack_id, None)
        if descriptor is None:
            path = self._store.backend.local_path(key)
            if path is None:
                return None
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFoundError(f"{key} is gone") from None
            except OSError as error:
                raise StorageError(f"{key}: {error.strerror or error}") from None
            if len(self._packs) >= OPEN_PACKS:
                os.close(self._packs.pop(next(iter(self._packs))))
        self._packs[pack_id] = descriptor  # last in order: the first is the one not used for longest
        return descriptor

    def _refuse(self, extent: _Extent, error: CasstoreError) -> None:
        for place, chunk_id in extent.frames:
            self._frames[chunk_id] = place, error

    def close(self) -> None:
        """Release buffers and descriptors."""
        self.keep()
        self._ready, self._frames, self._kept = {}, {}, set()
        while self._packs:
            os.close(self._packs.popitem()[1])
        self._buffer = bytearray()


_NOWHERE = Location(b"", 0, 0, 0, 0)


def _another_length(chunk_id: bytes) -> IntegrityError:
    return IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")


def _missing(error: NotFoundError) -> IntegrityError:
    return IntegrityError(error.message, hint="run `osmo dataset verify` to see what else is missing")
