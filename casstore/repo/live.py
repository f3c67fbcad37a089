"""Which packs are really there.

Decided here and only here: when a chunk that the index knows may be relied on. An index is a cache, and a pack can be
lost behind its back: a version must not be committed over one that is missing or cut short. Each pack is looked at once
for an upload, by its size and its end; whether its bytes are whole is for ``verify``, which reads them. One that is
being deleted counts as gone, though what is known of it stays: it may be kept after all.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from casstore.backend.base import Backend
from casstore.errors import IntegrityError, NotFoundError
from casstore.format.index import Location
from casstore.format.pack import TRAILER_SIZE, tail_size
from casstore.repo import layout
from casstore.repo.records import PARALLEL
from casstore.repo.trash import DyingSet

__all__ = ["NOTHING", "LivePacks"]

NOTHING = DyingSet(frozenset(), frozenset())
"""Where nothing is being deleted."""


class LivePacks:
    """What an upload knows of the packs it relies on: ``used`` with their sizes, and ``dead``, which are gone.

    Those in ``dying`` are not relied on. Thread-safe: at worst a pack is looked at twice.
    """

    def __init__(self, backend: Backend, dying: Container[bytes] = ()) -> None:
        self._backend = backend
        self._dying = dying
        self._sizes: dict[bytes, int] = {}
        self.used: dict[bytes, int] = {}
        self.dead: set[bytes] = set()

    def holds(self, place: Location) -> bool:
        """Whether the pack of this chunk is there, and long enough to hold it; notes that it is used, or dead."""
        pack_id = place.pack_id
        if pack_id in self._dying:
            return False
        size = self._sizes.get(pack_id)
        if size is None:
            size = self._sizes[pack_id] = self._look(pack_id)
        if place.offset + place.stored < size:
            self.used[pack_id] = size
            return True
        self.dead.add(pack_id)
        return False

    def missing(self, used: Mapping[bytes, int]) -> frozenset[bytes]:
        """Return those of these packs that are not there with these sizes. Looks at each of them now."""

        def is_missing(item: tuple[bytes, int]) -> bool:
            return self._size(item[0]) != item[1]

        items = list(used.items())
        if self._backend.capabilities.local or len(items) < 2:
            return frozenset(item[0] for item in items if is_missing(item))
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load, and local stores never need it

        with ThreadPoolExecutor(min(PARALLEL, len(items)), thread_name_prefix="casstore-look") as pool:
            return frozenset(item[0] for item, gone in zip(items, pool.map(is_missing, items), strict=True) if gone)

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
