"""Frames of packs that were read from far away.

Decided here and only here: how single frames are kept. A pack has a sparse file, in which every frame is at the place
that it has in the pack; nothing else says which frames are there. What reads as zeros is not there, and whoever gets
a frame verifies it: a hole that was filled half-way, a disk that lost power and one that tells lies cost another fetch,
whose frame is then written over what was wrong. Nothing is held open, so that what is evicted is gone at once.

    frames/<2 hex>/<pack id>    the frames, at their places

What a frame refers to, somewhere else, is kept in a file of its own kind: see ``referred``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from casstore import hashing
from casstore.cache.space import STALE, Space
from casstore.compression import RAW
from casstore.format.index import Location
from casstore.model import Buffer

__all__ = ["FrameCache", "referred"]

GAP = 16 << 10
"""Bytes between two frames that are rather read than skipped."""
READ = 8 << 20
"""Bytes that one read covers at most, unless one frame is longer."""
_SPREAD = 1 << 17
"""How much further apart than references are the bytes that they lead to. Were some longer, they would write over each
other, and be fetched again.
"""
_VECTORS = 512
_HEAD = bytes(64)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class FrameCache:
    """Frames by their place in a pack. Thread-safe, and safe among processes and across forks.

    What can't be read or written is as if it were not there: this raises nothing.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._root = os.path.join(space.root, "frames")

    def get(self, place: Location) -> memoryview | None:
        """Return the bytes of a frame if they are there. They are not verified."""
        return self.get_many([place])[0]

    def get_many(self, places: Sequence[Location]) -> list[memoryview | None]:
        """The same for many, which are best sorted: neighbours are read together."""
        found: list[memoryview | None] = []
        for pack_id, of_pack in groupby(places, key=lambda place: place[0]):
            found += self._get(pack_id, list(of_pack))
        return found

    def _get(self, pack_id: bytes, places: Sequence[Location]) -> list[memoryview | None]:
        path = self._path(pack_id)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return [None] * len(places)
        found: list[memoryview | None] = []
        try:
            status = os.fstat(descriptor)
            if time.time() - status.st_mtime > STALE:
                os.utime(descriptor)
            for run in _runs(places):
                begin, end = run[0][1], max(place[1] + place[2] for place in run)
                length = max(0, min(end, status.st_size) - begin)
                data = os.pread(descriptor, length, begin) if length else b""
                view = memoryview(data)
                for _, offset, stored, _, _ in run:
                    start = offset - begin
                    there = start + stored <= len(data) and not _is_hole(data, start, stored)
                    found.append(view[start : start + stored] if there else None)
        except OSError:
            found += [None] * (len(places) - len(found))
        finally:
            os.close(descriptor)
        return found

    def put(self, place: Location, payload: Buffer) -> None:
        """Keep a verified frame."""
        self.put_many([(place, payload)])

    def put_many(self, frames: Sequence[tuple[Location, Buffer]]) -> None:
        """Keep verified frames: neighbours are written together, and each pack is opened once."""
        if not self._space.limit:
            return
        written = 0
        for pack_id, of_pack in groupby(sorted(frames, key=lambda frame: frame[0][:2]), key=lambda frame: frame[0][0]):
            written += self._put(pack_id, list(of_pack))
        if written:
            self._space.added(written)

    def _put(self, pack_id: bytes, frames: Sequence[tuple[Location, Buffer]]) -> int:
        path = self._path(pack_id)
        written = 0
        try:
            try:
                descriptor = os.open(path, _WRITE, 0o600)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                descriptor = os.open(path, _WRITE, 0o600)
        except OSError:
            return 0
        try:
            for offset, size, parts in _joined(frames):
                done = os.pwritev(descriptor, parts, offset)
                written += done
                if done < size:
                    break  # no room
        except OSError:
            pass  # the same: others may have more luck
        finally:
            os.close(descriptor)
        return written

    def _path(self, pack_id: bytes) -> str:
        name = pack_id.hex()
        return os.path.join(self._root, name[:2], name)


def referred(place: Location) -> Location:
    """Return where the bytes are kept that the frame at this place refers to."""
    return Location(hashing.digest(b"referred " + place.pack_id), place.offset * _SPREAD, place.raw, place.raw, RAW)


def _runs(places: Sequence[Location]) -> Iterator[list[Location]]:
    run: list[Location] = []
    begin = end = 0
    for place in places:
        offset, stop = place[1], place[1] + place[2]
        if run and not (end <= offset <= end + GAP and stop - begin <= READ):
            yield run
            run = []
        if not run:
            begin = offset
        run.append(place)
        end = stop
    if run:
        yield run


def _joined(frames: Sequence[tuple[Location, Buffer]]) -> Iterator[tuple[int, int, list[Buffer]]]:
    """Yield offset, size and parts of what is written with one call. Frames are sorted by their places."""
    parts: list[Buffer] = []
    begin = end = 0
    for (_, offset, stored, _, _), payload in frames:
        if parts and (offset != end or len(parts) >= _VECTORS):
            yield begin, end - begin, parts
            parts = []
        if not parts:
            begin = offset
        parts.append(payload)
        end = offset + stored
    if parts:
        yield begin, end - begin, parts


def _is_hole(data: bytes, start: int, length: int) -> bool:
    """Whether there are zeros only. Most frames are told from a hole by their first bytes."""
    head = min(length, len(_HEAD))
    return data.startswith(_HEAD[:head], start) and (length == head or data[start : start + length] == bytes(length))
