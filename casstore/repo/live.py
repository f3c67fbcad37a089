"""Which packs are really there.

Decided here and only here: when a chunk that the index knows may be relied on. An index is a cache, and a pack can be
lost behind its back: a version must not be committed over one that is missing or cut short. Each pack is looked at once
for an upload; whether its bytes are whole is for ``verify``, which reads them. One that is being deleted counts as
gone, though what is known of it stays: it may be kept after all.

In a local folder a pack is looked at by its size and its end: a disk that lost power may have kept a part of it. An
object store keeps whole objects or none, so that the size is enough, and a listing has the sizes of a thousand packs
for the price of a look at one. A listing is as current as a look: it shows every object whose put returned before. What
is deleted later is deleted behind the back of either, and the commit looks at ``trash/`` for that.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Container, Mapping
from itertools import islice

from casstore.backend.base import Backend
from casstore.errors import IntegrityError, NotFoundError
from casstore.format.index import Location
from casstore.format.pack import RECORD_SIZE, TRAILER_SIZE, tail_size
from casstore.repo import layout
from casstore.repo.records import PARALLEL
from casstore.repo.trash import DyingSet

__all__ = ["NOTHING", "LivePacks"]

NOTHING = DyingSet(frozenset(), frozenset())
"""Where nothing is being deleted."""
LISTED_WHOLE = 4000
"""Packs up to which all of them are listed. In a larger store only the 256th part is, in which a pack is."""
_LEAST_END = RECORD_SIZE + TRAILER_SIZE  # what follows the last frame of any pack, at least
FEW = 8
"""Packs up to which ``missing`` looks at each of them."""


class LivePacks:
    """What an upload knows of the packs it relies on: ``used`` with their sizes, and ``dead``, which are gone.

    Those in ``dying`` are not relied on. Thread-safe: at worst a pack is looked at twice.
    """

    def __init__(self, backend: Backend, dying: Container[bytes] = ()) -> None:
        self._backend = backend
        self._local = backend.capabilities.local
        self._dying = dying
        self._sizes: dict[bytes, int] = {}
        self._listing = _Listing(backend)
        self.used: dict[bytes, int] = {}
        self.dead: set[bytes] = set()

    def holds(self, place: Location) -> bool:
        """Whether the pack of this chunk is there, and long enough to hold it; notes that it is used, or dead."""
        pack_id = place.pack_id
        if pack_id in self._dying:
            return False
        size = self._sizes.get(pack_id)
        if size is None:
            # One that is not listed may be newer than the listing: what the index says of it must not be dropped.
            listed = 0 if self._local else self._listing.size(pack_id)
            size = self._sizes[pack_id] = listed or self._look(pack_id)
        if place.offset + place.stored + _LEAST_END <= size:
            self.used[pack_id] = size
            return True
        self.dead.add(pack_id)
        return False

    @property
    def lost(self) -> frozenset[bytes]:
        """The packs of which nothing is relied on: what the index says of them may be dropped."""
        return frozenset(self.dead.difference(self.used))

    def missing(self, used: Mapping[bytes, int]) -> frozenset[bytes]:
        """Return those of these packs that are not there with these sizes. To be asked of a new ``LivePacks``, which
        looks now.
        """
        if self._local or len(used) <= FEW:
            return frozenset(pack_id for pack_id, size in used.items() if self._size(pack_id) != size)
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load, and local stores never need it

        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="casstore-look") as pool:
            sizes = pool.map(self._listing.size, used)
            return frozenset(item[0] for item, size in zip(used.items(), sizes, strict=True) if size != item[1])

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


class _Listing:
    """The sizes of packs as listings have them, each part listed once and when it is first asked for."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._begun = False
        self._until: str | None = ""
        """The first part that the first listing has not got whole; None when it has all."""
        self._parts: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._done: set[str] = set()

    def size(self, pack_id: bytes) -> int:
        """Return the size of a pack, 0 when it is not listed."""
        key = layout.pack_key(pack_id)
        part = key.rpartition("/")[0] + "/"
        with self._lock:
            if not self._begun:
                self._begin()
            lock = self._parts[part]
        if self._until is not None and part >= self._until:
            with lock:
                if part not in self._done:
                    self._sizes.update({info.key: info.size for info in self._backend.list(part)})
                    self._done.add(part)
        return self._sizes.get(key, 0)

    def _begin(self) -> None:
        found = list(islice(self._backend.list(layout.PACKS), LISTED_WHOLE))
        self._sizes = {info.key: info.size for info in found}
        self._until = None if len(found) < LISTED_WHOLE else found[-1].key.rpartition("/")[0] + "/"
        self._begun = True
