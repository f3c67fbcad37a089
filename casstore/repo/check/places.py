"""Where chunks are, by the index and by the packs themselves.

Decided here and only here: which record of the index is believed. A segment is compared with the footers of the packs
that it speaks of: a record counts when it is in the footer exactly so. What the packs hold and the index does not say
is kept beside it, so that a lost index is told from lost data. Nothing of the store's own index in memory is used.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence

from casstore.compression import REFERENCE
from casstore.errors import FormatError, IntegrityError, NotFoundError
from casstore.format.index import Location, Segment, encode
from casstore.format.pack import Footer
from casstore.repo import layout, segments, trash
from casstore.repo.check.packs import Packs
from casstore.repo.check.report import About
from casstore.repo.check.session import Session
from casstore.repo.packs import read_footer

__all__ = ["Indexed", "Places"]

_EXTRA = 1 << 18
"""Records beside the index that are collected before they become a segment of their own."""
_FOOTERS = 16
"""Footers that are kept for looking up records that are not believed."""


class Indexed:
    """A segment and how much of it the packs confirm: in all, and by pack."""

    def __init__(self, key: str, segment: Segment, *, counted: bool) -> None:
        self.key = key
        self.segment = segment
        self.counted = counted
        self._numbers = {pack_id: number for number, pack_id in enumerate(segment.pack_ids())}
        self._by_number: Counter[int] | None = None
        self.packs = frozenset(self._numbers)
        self.found = 0
        self.by_pack: dict[bytes, int] = {}

    def expected(self, pack_id: bytes) -> int:
        """Return how many records the segment has of a pack."""
        if self._by_number is None:
            try:
                self._by_number = Counter(number for _, _, number, _ in self.segment.rows(0))
            except FormatError:
                self._by_number = Counter()
        number = self._numbers.get(pack_id)
        return 0 if number is None else self._by_number[number]

    def confirmed(self, pack_id: bytes) -> bool:
        """Whether a pack whose footer was seen confirms every record that the segment has of it."""
        return self.by_pack.get(pack_id, 0) == self.expected(pack_id) > 0

    @property
    def sound(self) -> bool:
        """Whether the packs confirm every record of it."""
        return self.counted and self.found == self.segment.records

    def places(self, chunk_id: bytes) -> Sequence[Location]:
        """Return where the chunk is by this segment."""
        try:
            return self.segment.places(chunk_id)
        except FormatError:
            return ()


class Places:
    """The index as it is stored. Thread-safe after ``open``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.packs: Packs  # set by the run: packs tell their footers to this, and this asks for packs
        self.segments: dict[str, Indexed] = {}
        self.damaged: dict[str, str] = {}
        self.duplicates = [0, 0]
        self.unindexed: dict[bytes, int] = {}
        self.gone: set[bytes] = set()
        """Packs that the index speaks of, and that are gone without having been collected."""
        self.behind: dict[str, int] = {}
        """Segments that speak of packs that were collected: key -> how many records do."""
        self._search: tuple[Indexed, ...] = ()
        self._buffer: list[tuple[bytes, Location]] = []
        self._extra: list[Segment] = []
        self._footers: OrderedDict[bytes, frozenset[tuple[bytes, Location]]] = OrderedDict()

    def open(self, *, counted: bool = True) -> None:
        """Open the segments that are there now; those that are gone since the last time are dropped.

        With ``counted`` the footers of all packs are going to be compared with them.
        """
        infos = list(self._session.each(layout.INDEX))
        listed = {info.key for info in infos}
        for key in (self.segments.keys() | self.damaged.keys()) - listed:
            self.segments.pop(key, None)
            self.damaged.pop(key, None)
        fresh = [info for info in infos if info.key not in self.segments]

        def attempt(key: str) -> Segment | str | None:
            try:
                return segments.open_segment(self._session.backend, key)
            except NotFoundError:
                return None  # merged into a larger one meanwhile
            except IntegrityError as error:
                return error.message

        opened = segments.each(self._session.backend, attempt, [info.key for info in fresh])
        for info, found in zip(fresh, opened, strict=True):
            self.damaged.pop(info.key, None)
            if isinstance(found, str):
                self.damaged[info.key] = found
            elif found is not None:
                self.segments[info.key] = Indexed(info.key, found, counted=counted)
            self._session.checked(info.size)
        self._search = tuple(sorted(self.segments.values(), key=lambda one: -one.segment.records))

    def compare(self, pack_id: bytes, footer: Footer) -> None:
        """Compare the footer of a pack with what the segments say of it."""
        exact: dict[str, int] = {}
        beside: list[tuple[bytes, Location]] = []
        copies = size = 0
        for frame in footer.records:
            here = Location(pack_id, frame.offset, frame.stored, frame.raw, frame.codec)
            confirmed = False
            other: Location | None = None
            for one in self._search:
                for place in one.places(frame.chunk_id):
                    if place == here:
                        exact[one.key] = exact.get(one.key, 0) + 1
                        confirmed = True
                    elif place.codec != REFERENCE and (other is None or place < other):
                        other = place
            if other is not None and frame.codec != REFERENCE and (not confirmed or other < here):
                copies, size = copies + 1, size + frame.stored
            if not confirmed:
                beside.append((frame.chunk_id, here))
        with self._session.lock:
            for key, count in exact.items():
                one_indexed = self.segments.get(key)
                if one_indexed is not None:
                    one_indexed.found += count
                    one_indexed.by_pack[pack_id] = count
            self.duplicates[0] += copies
            self.duplicates[1] += size
            self._buffer += beside
            if len(self._buffer) >= _EXTRA:
                self._extra.append(Segment(encode(self._buffer)))
                self._buffer = []

    def find(self, chunk_id: bytes, *, needed: bool = True) -> Location | None:
        """Return where the chunk really is, as far as packs were read.

        Of a chunk that is ``needed`` it is noted when the index does not know it.
        """
        for one in self._search:
            for place in one.places(chunk_id):
                if self._is_true(one, chunk_id, place) and self.packs.holds(place, chunk_id):
                    return place
        for place in self._beside(chunk_id):
            if self.packs.holds(place, chunk_id):
                if not needed:
                    return place
                with self._session.lock:
                    self.unindexed[place.pack_id] = self.unindexed.get(place.pack_id, 0) + 1
                return place
        return None

    def _beside(self, chunk_id: bytes) -> Iterator[Location]:
        with self._session.lock:
            if self._buffer:
                self._extra.append(Segment(encode(self._buffer)))
                self._buffer = []
            extra = [*self._extra]
        for segment in extra:
            yield from segment.places(chunk_id)

    def why(self, chunk_id: bytes) -> str:
        """Say why a chunk can't be had."""
        for one in self._search:
            for place in one.places(chunk_id):
                pack = self.packs.get(place.pack_id)
                if pack is not None and (chunk_id, place.offset) in pack.lost:
                    return pack.lost[chunk_id, place.offset]
                if pack is not None and pack.sound and chunk_id in pack.damaged:
                    return f"chunk {chunk_id.hex()} is damaged"
                return f"{layout.pack_key(place.pack_id)} is missing or damaged"
        return f"chunk {chunk_id.hex()} is not in the store"

    def _is_true(self, one: Indexed, chunk_id: bytes, place: Location) -> bool:
        """Whether the pack says the same as this record."""
        if one.sound:
            return True
        pack = self.packs.get(place.pack_id)
        if pack is None or not pack.sound:
            return False
        if one.confirmed(place.pack_id):
            return True
        footer = self._footers.get(place.pack_id)
        if footer is None:
            try:
                records = read_footer(self._session.backend, place.pack_id, pack.size).records
            except (IntegrityError, NotFoundError):
                return False
            footer = frozenset(
                (r.chunk_id, Location(place.pack_id, r.offset, r.stored, r.raw, r.codec)) for r in records
            )
            with self._session.lock:
                self._footers[place.pack_id] = footer
                while len(self._footers) > _FOOTERS:
                    self._footers.popitem(last=False)
        return (chunk_id, place) in footer

    def stale(self) -> dict[str, str]:
        """Return the segments that the packs do not confirm: key -> what is wrong.

        One that only speaks of packs that were collected is ``behind``: whoever merges segments late brings such
        records back, everybody passes them over, and the next collection drops them.
        """
        found: dict[str, str] = {}
        dying = self._dying()
        self.behind.clear()
        self.gone.clear()
        for key, one in sorted(self.segments.items()):
            if not one.counted:
                continue
            gone = {pack_id for pack_id in one.packs if self.packs.get(pack_id) is None}
            self.gone |= gone - dying
            behind = sum(one.expected(pack_id) for pack_id in gone & dying)
            wrong = one.segment.records - one.found - behind
            if wrong:
                found[key] = f"{wrong} of {one.segment.records} records of the index segment fit no sound pack"
            elif behind:
                self.behind[key] = behind
        return found

    def _dying(self) -> frozenset[bytes]:
        try:
            return trash.dying(self._session.backend).packs
        except IntegrityError:
            return frozenset()  # a record of what was collected is damaged: it is told by itself

    def tell(self, stale: dict[str, str]) -> None:
        """Report what is wrong with the index."""
        session = self._session
        for key, message in sorted(self.damaged.items()):
            session.problem(key, f"the index segment is damaged: {message}", About.INDEX)
        for key, message in stale.items():
            session.problem(key, message, About.INDEX)
        for pack_id in sorted(self.gone):
            session.problem(layout.pack_key(pack_id), "the pack is missing, and the index speaks of it", About.PACK)
        if self.unindexed:
            chunks, packs = sum(self.unindexed.values()), len(self.unindexed)
            session.problem(
                layout.INDEX,
                f"the index lacks {chunks} chunks that versions use, of {packs} pack{'' if packs == 1 else 's'}; "
                "no data is lost",
                About.INDEX,
            )
