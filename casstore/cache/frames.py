"""Frames of packs that were read from far away.

Decided here and only here: how single frames are kept. A pack has a sparse file, in which every frame is at the place
that it has in the pack, and beside it a list of the frames that are there, which only grows. Only frames that were
verified are written, and whoever reads one verifies it again: a disk that lost power, or another process that was
killed half-way, costs a second fetch and nothing else.

    frames/<2 hex>/<pack id>        the frames, at their places
    frames/<2 hex>/<pack id>.map    records of eight bytes: offset and stored length of a frame that is there
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections import OrderedDict

from casstore.cache.space import Space
from casstore.format.index import Location
from casstore.model import Buffer

__all__ = ["FrameCache"]

OPEN_PACKS = 256
"""Packs whose descriptors and lists are kept."""
_RECORD = struct.Struct("<II")


class _Pack:
    """An open pack of the cache: its two descriptors, and the frames that are known to be there."""

    __slots__ = ("data", "frames", "gone", "list", "read", "users")

    def __init__(self, path: str, flags: int) -> None:
        self.frames: dict[int, int] = {}
        self.read = 0
        self.users = 0
        self.gone = False
        self.data = os.open(path, flags, 0o600)
        try:
            self.list = os.open(path + ".map", flags | os.O_APPEND, 0o600)
        except OSError:
            os.close(self.data)
            raise

    def refresh(self) -> None:
        """Read what was added to the list, by this process or others."""
        size = os.fstat(self.list).st_size
        size -= size % _RECORD.size
        if size > self.read:
            self.frames.update(_RECORD.iter_unpack(os.pread(self.list, size - self.read, self.read)))
            self.read = size

    def close(self) -> None:
        os.close(self.data)
        os.close(self.list)


class FrameCache:
    """Frames by their place in a pack. Thread-safe, and safe among processes."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._root = os.path.join(space.root, "frames")
        self._lock = threading.Lock()
        self._packs: OrderedDict[bytes, _Pack] = OrderedDict()

    def get(self, place: Location) -> bytes | None:
        """Return the bytes of a frame if they are there. They are not verified: see ``drop``."""
        pack = self._take(place.pack_id, create=False)
        if pack is None:
            return None
        try:
            if pack.frames.get(place.offset) != place.stored:
                pack.refresh()
                if pack.frames.get(place.offset) != place.stored:
                    return None
            data = os.pread(pack.data, place.stored, place.offset)
            return data if len(data) == place.stored else None
        except OSError:
            return None
        finally:
            self._give(pack)

    def put(self, place: Location, payload: Buffer) -> None:
        """Keep a verified frame. Where it can't be kept, it is not."""
        pack = self._take(place.pack_id, create=True)
        if pack is None:
            return
        try:
            if place.offset in pack.frames:
                return
            if os.pwrite(pack.data, payload, place.offset) == place.stored:
                # The list comes after the bytes: a frame that is on it was written.
                os.write(pack.list, _RECORD.pack(place.offset, place.stored))
                pack.frames[place.offset] = place.stored
        except OSError:
            return  # no room: others may have more luck
        finally:
            self._give(pack)
        self._space.added(place.stored)

    def drop(self, pack_id: bytes) -> None:
        """Forget a pack: a frame of it was not what it should be."""
        with self._lock:
            pack = self._packs.pop(pack_id, None)
            if pack is not None:
                self._let_go(pack)
        path = self._path(pack_id)
        for name in (path + ".map", path):
            with contextlib.suppress(OSError):
                os.unlink(name)

    def close(self) -> None:
        """Release descriptors."""
        with self._lock:
            while self._packs:
                self._let_go(self._packs.popitem()[1])

    def _path(self, pack_id: bytes) -> str:
        name = pack_id.hex()
        return os.path.join(self._root, name[:2], name)

    def _take(self, pack_id: bytes, *, create: bool) -> _Pack | None:
        with self._lock:
            pack = self._packs.get(pack_id)
            if pack is None:
                pack = self._open(pack_id, create=create)
                if pack is None:
                    return None
                self._packs[pack_id] = pack
                self._trim()
            else:
                self._packs.move_to_end(pack_id)
            pack.users += 1
            return pack

    def _open(self, pack_id: bytes, *, create: bool) -> _Pack | None:
        path = self._path(pack_id)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        try:
            if create:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            pack = _Pack(path, flags)
        except OSError:
            return None
        self._space.used(path)
        pack.refresh()
        return pack

    def _give(self, pack: _Pack) -> None:
        with self._lock:
            pack.users -= 1
            if pack.gone and not pack.users:
                pack.close()

    @staticmethod
    def _let_go(pack: _Pack) -> None:
        pack.gone = True
        if not pack.users:
            pack.close()

    def _trim(self) -> None:
        while len(self._packs) > OPEN_PACKS:
            self._let_go(self._packs.popitem(last=False)[1])
