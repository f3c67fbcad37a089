"""Reading the nodes of trees from an object store, many with one request.

Decided here and only here: how much around a node is read with it, and how much of that is kept. Nodes are a few KiB
each, lie side by side in metadata packs in the order in which a tree is read, and every request costs a round trip.
What is kept are bytes as they came, not verified yet: whoever takes a node from here checks it against its id.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from casstore.backend.base import Backend
from casstore.errors import IntegrityError
from casstore.format.index import Location
from casstore.repo import layout

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Windows"]

WINDOW = 512 << 10
"""Bytes of a pack that are read together."""
KEPT = 16
"""Windows that are kept, the last ones used."""
SIZES = 4096
"""Packs whose sizes are remembered."""


class Windows:
    """Parts of packs. Thread-safe: what several threads want is read once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}
        self._kept: OrderedDict[tuple[bytes, int], Future[bytes]] = OrderedDict()

    def read(self, place: Location) -> memoryview:
        """Return the frame at this place, as it came. Errors as of ``Backend.read``."""
        number = place.offset // WINDOW
        if (place.offset + place.stored - 1) // WINDOW != number:
            return memoryview(self._backend.read(layout.pack_key(place.pack_id), place.offset, place.stored))
        key = place.pack_id, number
        with self._lock:
            found = self._kept.get(key)
            mine = found is None
            if found is None:
                from concurrent.futures import Future  # noqa: PLC0415 - slow to load, and local stores never need it

                found = self._kept[key] = Future()
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
        if mine:
            try:
                found.set_result(self._fetch(place.pack_id, number))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                found.set_exception(error)
                raise
        start = place.offset - number * WINDOW
        window = memoryview(found.result())
        if start + place.stored > len(window):
            raise IntegrityError(f"{layout.pack_key(place.pack_id)} is shorter than the index says")
        return window[start : start + place.stored]

    def _fetch(self, pack_id: bytes, number: int) -> bytes:
        key = layout.pack_key(pack_id)
        size = self._sizes.get(pack_id)
        if size is None:
            size = self._backend.stat(key).size
            with self._lock:
                if len(self._sizes) >= SIZES:
                    self._sizes.clear()
                self._sizes[pack_id] = size
        start = number * WINDOW
        if start >= size:
            raise IntegrityError(f"{key} is shorter than the index says")
        return self._backend.read(key, start, min(WINDOW, size - start))

    def forget(self, place: Location) -> None:
        """Drop what holds this frame: it is not what it should be."""
        with self._lock:
            self._kept.pop((place.pack_id, place.offset // WINDOW), None)
            self._sizes.pop(place.pack_id, None)
