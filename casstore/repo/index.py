"""The index of an open store: where every chunk is, and which chunks are known.

Decided here and only here: how segments are opened, searched, written and merged. Segments are found by listing
``index/`` once, when the store is first asked; a reader that misses a chunk lists again before it gives up, because
another writer may have published it meanwhile. Small segments are merged so that their number stays low; each merge
takes segments of about the same size, so that a record is written a few times in all, and makes none larger than
``MERGE_RECORDS``, so that its memory is bounded.

Who only reads may begin with the segments that were there when this machine last looked: see ``recall``.

The index is a cache of the packs' footers. Where segments are damaged or lost, the footers of the packs that no sound
segment speaks of are read instead, and the next writer that publishes makes the repair last.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from casstore import hashing
from casstore.backend.base import Absent, Backend, ObjectInfo
from casstore.compression import REFERENCE
from casstore.errors import IntegrityError, NotFoundError, PreconditionError
from casstore.format.index import Location, Segment, encode, merge, with_nonce
from casstore.repo import layout, segments
from casstore.repo.packs import places_of, read_footer
from casstore.repo.segments import new_nonce

if TYPE_CHECKING:
    from casstore.backend.base import Registers
    from casstore.cache.remote import RemoteCache

MERGE_ABOVE = 12
"""More segments than this are merged, the small ones, when a writer publishes one more."""
MERGE_RECORDS = 1 << 20
"""Records of a merged segment, at most."""
_STEP = 8
"""A segment is merged with smaller ones unless it has more than this many times the records of all of them."""

_LISTINGS = 8
"""How often the segments are listed while others merge them."""
_REBUILT = "rebuilt/"
"""Stands before the keys of what was read from footers, and is not stored."""
_REBUILT_RECORDS = 1 << 18
"""Records that are collected from footers before they become a segment."""


class Index:
    """All segments of a store. Thread-safe."""

    def __init__(self, backend: Backend, store_id: str = "") -> None:
        """``store_id``: under which name a cache knows the store."""
        self._backend = backend
        self._store_id = store_id
        self.cache: RemoteCache | None = None
        """Where segments that are far away are kept."""
        self._lock = threading.Lock()
        self._segments: dict[str, Segment] = {}
        self._search: tuple[Segment, ...] = ()
        self._damaged: set[str] = set()
        self._rebuilt: dict[str, bytes] = {}
        self._loaded = False
        self._complete = False

    def load(self, *, again: bool = False) -> bool:
        """Open the segments that are new since the last call; returns whether there were any."""
        with self._lock:
            if self._loaded and not again:
                return False
            return self._load()

    def recall(self) -> None:
        """Begin with the segments of this machine's last look, as far as all of them are in the cache still.

        For those who only read: what these segments don't know, and packs that are gone by now, lead to another look;
        a writer must not rely on packs that were there once.
        """
        with self._lock:
            if self._loaded or self.cache is None:
                return
            found: dict[str, Segment] = {}
            for segment_id in self.cache.segments(self._store_id):
                segment = segments.cached_segment(segment_id, self.cache)
                if segment is None:
                    return
                found[layout.index_key(segment_id)] = segment
            if found:
                self._segments = found
                self._loaded = True
                self._publish()

    def _load(self) -> bool:
        fresh: set[str] = set()
        for _ in range(_LISTINGS):
            keys = {info.key for info in self._backend.list(layout.INDEX)}
            wanted = sorted(keys - self._segments.keys() - self._damaged)
            fresh.update(wanted)
            opened = dict(zip(wanted, segments.each(self._backend, self._try, wanted), strict=True))
            self._segments.update((key, segment) for key, segment in opened.items() if segment is not None)
            for key in self._segments.keys() - keys - self._rebuilt.keys():
                del self._segments[key]
            if self._segments.keys() | self._damaged >= keys:
                break
            # One was merged into another between the listing and now: that one is listed now.
        if not self._complete and (self._damaged or not self._segments):
            self._rebuild()
        self._publish()
        self._loaded = True
        if self.cache is not None and fresh:
            kept = self._segments.keys() - self._rebuilt.keys()
            self.cache.note_segments(self._store_id, [layout.id_of(key) for key in kept])
        return bool(fresh)

    def _rebuild(self) -> None:
        """Read the footers of the packs that no segment speaks of. Once is enough."""
        self._complete = True
        known = {pack_id for segment in self._segments.values() for pack_id in segment.pack_ids()}
        found: list[tuple[bytes, Location]] = []

        def read(info: ObjectInfo) -> list[tuple[bytes, Location]]:
            try:
                pack_id = layout.id_of(info.key)
                return [] if pack_id in known else places_of(pack_id, read_footer(self._backend, pack_id))
            except (IntegrityError, NotFoundError):
                return []  # a pack that is damaged or gone: a check says so

        for places in segments.each(self._backend, read, self._backend.list(layout.PACKS)):
            found += places
            if len(found) >= _REBUILT_RECORDS:
                self._keep(found)
                found = []
        if found:
            self._keep(found)
        self._publish()

    def _keep(self, found: list[tuple[bytes, Location]]) -> None:
        key = f"{_REBUILT}{len(self._rebuilt)}"
        self._rebuilt[key] = encode(found, nonce=new_nonce())
        self._segments[key] = Segment(self._rebuilt[key])

    def _try(self, key: str) -> Segment | None:
        """Return the segment, or None; notes that it is damaged."""
        try:
            return segments.open_segment(self._backend, key, self.cache)
        except NotFoundError:
            return None  # merged away between the listing and now
        except IntegrityError:
            self._damaged.add(key)
            return None

    def _publish(self) -> None:
        # Large segments first: most hits are there.
        self._search = tuple(sorted(self._segments.values(), key=lambda segment: -segment.records))

    def places(self, chunk_id: bytes) -> Iterator[Location]:
        """Yield where a chunk is by the segments that this process has seen."""
        for segment in self._search:
            yield from segment.places(chunk_id)

    def locate(self, chunk_id: bytes, *, gone: Collection[bytes] = ()) -> Location:
        """Return where a chunk is, but in none of the packs ``gone``; ``NotFoundError`` when no segment knows it.

        A place that only refers to it is returned when there is no other.
        """
        for look_again in (lambda: self.load(again=self._loaded), self._read_footers, None):
            referred: Location | None = None
            for place in self.places(chunk_id):
                if place.pack_id not in gone:
                    if place.codec != REFERENCE:
                        return place
                    referred = referred or place
            if referred is not None:
                return referred
            if look_again is not None:
                look_again()
        raise NotFoundError(f"chunk {chunk_id.hex()} is not in the store", hint="run `osmo dataset verify`")

    def _read_footers(self) -> None:
        with self._lock:
            if not self._complete:
                self._rebuild()

    def pack_ids(self) -> set[bytes]:
        """Return the ids of all packs that the index speaks of."""
        self.load()
        return {pack_id for segment in self._search for pack_id in segment.pack_ids()}

    def segments(self) -> list[Segment]:
        """Return all segments, listed anew."""
        self.load(again=True)
        return list(self._search)

    def everything(self) -> list[Segment]:
        """Return all segments, listed anew, with what no segment says of the packs that are there."""
        with self._lock:
            self._load()
            self._rebuild()
            return list(self._search)

    def publish(self, records: Sequence[tuple[bytes, Location]], *, lost: Collection[bytes] = ()) -> None:
        """Make these chunks known to everybody: write a segment, and merge small ones when there are many.

        What the segments say of the packs in ``lost`` is dropped: those packs are gone, and the chunks are stored anew.

        The packs must be durable. Writing the merged segment comes before deleting what it replaces, so that a
        crash leaves duplicates, never a gap. What was read from footers becomes known as well, even where nothing is
        new: what a version refers to may be nowhere else.
        """
        with self._lock:
            if self._backend.capabilities.registers:
                self._register(records)
                return
            if not records and not self._rebuilt:
                return
            if not self._loaded:
                self._load()
            for data in self._take_rebuilt():
                self._add(data)
            if not records:
                self._publish()
                return
            data = encode(records, nonce=new_nonce())
            merged = self._to_merge(len(records))
            if merged:
                data = merge([Segment(data), *(self._segments[key] for key in merged)], nonce=new_nonce())
            self._add(data)
            if lost:
                merged += self._without(frozenset(lost))
            self._drop(set(merged))

    def _register(self, records: Sequence[tuple[bytes, Location]]) -> None:
        """Have somebody else make these chunks known; what that one writes need not be fetched to know them here."""
        if not records:
            return
        # Not a part of ``Backend``: the one that says that it registers is a ``Registers``.
        cast("Registers", self._backend).register(dict.fromkeys(place.pack_id for _, place in records))
        self._keep([*records])
        self._publish()

    def _drop(self, merged: set[str]) -> None:
        """Delete the segments that others have replaced, and the damaged ones."""
        for key in merged:
            self._segments.pop(key, None)
        self._publish()
        if merged or self._damaged:
            self._backend.delete(sorted(merged | self._damaged))
            self._damaged.clear()

    def tidy(self, gone: Collection[bytes] = ()) -> None:
        """Forget the packs that are ``gone``, and merge the small segments into few.

        What replaces a segment is stored before that is deleted, as in ``publish``. Reads the segments anew.
        """
        lost = frozenset(gone)
        with self._lock:
            self._load()
            for data in self._take_rebuilt():
                self._add(data)
            spoken = {key for key, segment in self._segments.items() if not lost.isdisjoint(segment.pack_ids())}
            merged: set[str] = set()
            for group in [*self._groups(spoken)]:
                if len(group) > 1 or group[0] in spoken:
                    data = merge([self._segments[key] for key in group], without=lost, nonce=new_nonce())
                    if Segment(data).records:
                        self._add(data)
                    merged.update(group)
            self._drop(merged)

    def _groups(self, chosen: set[str]) -> Iterator[list[str]]:
        """Yield the keys of what is to be written as one segment: of the chosen ones and of all that are small."""
        group: list[str] = []
        total = 0
        for key, segment in sorted(self._segments.items(), key=lambda item: (item[1].records, item[0])):
            if key in chosen or segment.records <= MERGE_RECORDS // 2:
                if group and total + segment.records > MERGE_RECORDS:
                    yield group
                    group, total = [], 0
                group.append(key)
                total += segment.records
        if group:
            yield group

    def _take_rebuilt(self) -> list[bytes]:
        """Return what was read from footers, and is going to be stored now."""
        for key in self._rebuilt:
            del self._segments[key]
        found, self._rebuilt = [*self._rebuilt.values()], {}
        return found

    def _without(self, lost: frozenset[bytes]) -> list[str]:
        """Write the segments that speak of lost packs again, without those; returns the keys of the old ones."""
        stale = {key: segment for key, segment in self._segments.items() if not lost.isdisjoint(segment.pack_ids())}
        for segment in stale.values():
            rest = [item for item in segment.items() if item[1].pack_id not in lost]
            if rest:
                self._add(encode(rest, nonce=new_nonce()))
        return list(stale)

    def _to_merge(self, total: int) -> list[str]:
        """Return the keys of the segments to merge with ``total`` new records."""
        if len(self._segments) < MERGE_ABOVE:
            return []
        keys: list[str] = []
        for key, segment in sorted(self._segments.items(), key=lambda item: item[1].records):
            if segment.records > _STEP * total or total + segment.records > MERGE_RECORDS:
                break
            total += segment.records
            keys.append(key)
        return keys

    def _add(self, data: bytes, *, again: bool = True) -> None:
        """Store a segment. Its name is new: see ``new_nonce``. What did not arrive as it was sent is sent once more."""
        key = layout.index_key(hashing.digest(data))
        with contextlib.suppress(PreconditionError):  # the reply to an earlier attempt was lost
            self._backend.put(key, [data], condition=Absent())
        try:
            self._segments[key] = segments.open_segment(self._backend, key)
        except NotFoundError:
            self._segments[key] = Segment(data)  # merged into a larger one already
        except IntegrityError:
            if not again:
                raise
            # Under another name: somebody who saw the damage may be about to delete this one.
            self._damaged.add(key)
            self._add(with_nonce(data, new_nonce()), again=False)

    def close(self) -> None:
        """Forget the segments; their maps go when the last look-up has ended."""
        with self._lock:
            self._segments.clear()
            self._search = ()
            self._damaged.clear()
            self._rebuilt.clear()
            self._loaded = self._complete = False
