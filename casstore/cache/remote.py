"""What is kept on this machine of stores that are far away.

Decided here and only here: which kinds of things are kept of them, and that nothing of it is trusted: whoever takes
something from here checks it against its id, what is damaged is thrown away, and what can't be kept is not. Nothing
here raises anything for a disk that is full, can't be written to, or fails. Whole files are beside it: see ``files``.

    frames/                         frames of packs, with data of files or with nodes of manifests: see ``frames``
    objects/<2 hex>/<id>            roots of manifests, and segments of indexes: whole objects, named by their hash
    stores/<store id>               the ids of the index segments that a store had when it was last looked at
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable

from casstore import hashing
from casstore.cache.files import FileCache
from casstore.cache.frames import FrameCache
from casstore.cache.space import Space, default_limit
from casstore.errors import StorageError
from casstore.model import DIGEST_SIZE, Buffer

__all__ = ["FOLDER", "RemoteCache"]

FOLDER = "data"
"""The folder of the cache, in that of all that is cached for a user."""
_MOST_SEGMENTS = 1 << 16


class RemoteCache:
    """One folder of cached things. Thread-safe, and safe among processes and across forks. Nothing in it is open."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.files = FileCache(space)
        self.frames = FrameCache(space)
        self._objects = FileCache(space, "objects")
        self._lists = os.path.join(space.root, "stores")

    @classmethod
    def at(cls, folder: str, limit: int) -> RemoteCache | None:
        """The cache in a folder, which is made when it is missing; None where it can't be."""
        try:
            return cls(Space(folder, limit))
        except StorageError:
            return None

    @classmethod
    def default(cls, folder: str) -> RemoteCache | None:
        """The cache of a user whose cached things are in ``folder``, as large as ``default_limit`` says."""
        place = os.path.join(folder, FOLDER)
        return cls.at(place, default_limit(place))

    def object(self, identity: bytes, most: int) -> bytes | None:
        """Return an object of at most ``most`` bytes, verified, if it is there."""
        with contextlib.suppress(OSError):
            descriptor = self._objects.open(identity)
            if descriptor is not None:
                with open(descriptor, "rb") as file:
                    data = file.read(most + 1)
                if hashing.digest(data) == identity:
                    return data
                self._objects.drop(identity)
        return None

    def mapped(self, identity: bytes, most: int) -> mmap.mmap | None:
        """The same for a long one, which is not taken into memory."""
        with contextlib.suppress(OSError, ValueError):
            descriptor = self._objects.open(identity)
            if descriptor is not None:
                try:
                    if not 0 < os.fstat(descriptor).st_size <= most:
                        return None
                    data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
                finally:
                    os.close(descriptor)
                if hashing.digest(memoryview(data)) == identity:
                    return data
                self._objects.drop(identity)
        return None

    def keep(self, identity: bytes, data: Buffer) -> None:
        """Keep an object that was verified."""
        self._objects.add(identity, len(data), [data])

    def segments(self, store_id: str) -> list[bytes]:
        """Return the ids of the index segments that a store had when somebody last looked; empty when nobody knows."""
        most = (_MOST_SEGMENTS + 1) * DIGEST_SIZE
        with contextlib.suppress(OSError), open(os.path.join(self._lists, store_id), "rb") as file:
            data = file.read(most + 1)
            ids, check = data[:-DIGEST_SIZE], data[-DIGEST_SIZE:]
            if len(data) <= most and len(ids) % DIGEST_SIZE == 0 and hashing.digest(ids) == check:
                self.space.used(file.name)
                return [ids[at : at + DIGEST_SIZE] for at in range(0, len(ids), DIGEST_SIZE)]
        return []

    def note_segments(self, store_id: str, ids: Iterable[bytes]) -> None:
        """Write down which index segments a store has now."""
        data = b"".join(sorted(ids))
        if not 0 < len(data) <= _MOST_SEGMENTS * DIGEST_SIZE:
            return
        temporary = os.path.join(self._lists, f".tmp-{os.getpid()}-{os.urandom(6).hex()}")
        with contextlib.suppress(OSError):
            os.makedirs(self._lists, mode=0o700, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(data + hashing.digest(data))
                os.replace(temporary, os.path.join(self._lists, store_id))
            except OSError:
                os.unlink(temporary)
