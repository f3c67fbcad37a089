"""Which packs are really there.

Decided here and only here: when a chunk that the index knows may be relied on. An index is a cache, and a pack can be
lost behind its back: a version must not be committed over one that is missing or cut short. Each pack is looked at once
for an upload, by its size and its end; whether its bytes are whole is for ``verify``, which reads them.
"""

from __future__ import annotations

from casstore.backend.base import Backend
from casstore.errors import IntegrityError, NotFoundError
from casstore.format.index import Location
from casstore.format.pack import TRAILER_SIZE, tail_size
from casstore.repo import layout


class LivePacks:
    """What an upload knows of the packs it relies on: ``used`` with their sizes, and ``dead``.

    Thread-safe: at worst a pack is looked at twice.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sizes: dict[bytes, int] = {}
        self.used: dict[bytes, int] = {}
        self.dead: set[bytes] = set()

    def holds(self, place: Location) -> bool:
        """Whether the pack of this chunk is there, and long enough to hold it; notes that it is used, or dead."""
        pack_id = place.pack_id
        size = self._sizes.get(pack_id)
        if size is None:
            size = self._sizes[pack_id] = self._look(pack_id)
        if place.offset + place.stored < size:
            self.used[pack_id] = size
            return True
        self.dead.add(pack_id)
        return False

    def all_there(self, used: list[tuple[bytes, int]]) -> bool:
        """Whether all of these packs are there, with these sizes."""
        return all(self._size(pack_id) == size for pack_id, size in used)

    def stored(self, pack_id: bytes, size: int) -> None:
        """A pack was written."""
        self._sizes[pack_id] = size
        self.used[pack_id] = size
        self.dead.discard(pack_id)

    def _look(self, pack_id: bytes) -> int:
        """Return the size of a pack whose end is that of a pack, else 0."""
        size = self._size(pack_id)
        try:
            if size and tail_size(self._backend.read(layout.pack_key(pack_id), -TRAILER_SIZE, TRAILER_SIZE)) < size:
                return size
        except (NotFoundError, IntegrityError):
            pass  # gone meanwhile, or cut short
        return 0

    def _size(self, pack_id: bytes) -> int:
        try:
            return self._backend.stat(layout.pack_key(pack_id)).size
        except NotFoundError:
            return 0
