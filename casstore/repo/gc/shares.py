"""How much of each pack is needed.

Decided here and only here: which copy of a chunk counts as the needed one. The segments of the index are gone through
side by side, in the order of chunk ids, so that all copies of a chunk meet and nothing but sums is kept. Of several
copies the one counts whose pack is not marked already, and is needed most for other reasons; the others are unneeded,
as concurrent uploads leave them. A reference is unneeded where the chunk is stored. Where it is not, all references to
it are needed: they lead to different objects, and each version was made of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from casstore.compression import REFERENCE
from casstore.errors import FormatError, IntegrityError
from casstore.format.index import CODEC_AT, Segment
from casstore.format.pack import HEADER_SIZE, RECORD_SIZE, TRAILER_SIZE
from casstore.repo.gc.live import LiveChunks

__all__ = ["needed_bytes"]

_STORED = slice(4, 8)
"""Where the stored length stands in what follows the number of the pack in a record of the index."""
_PLACE = slice(0, 4)


class _Copy(NamedTuple):
    pack_id: bytes
    stored: int
    referred: bool


def needed_bytes(
    segments: Sequence[Segment], live: LiveChunks, there: Container[bytes], leaving: Container[bytes] = ()
) -> dict[bytes, int]:
    """Return how many bytes of each pack are needed, of those that are ``there``; of the others nothing is.

    A copy in a pack that is ``leaving`` counts only where there is no other.
    ``IntegrityError`` when a needed chunk is in none of the packs that are there.
    """
    needed: dict[bytes, int] = {}
    several = False
    found = _Found(live)
    for chunk_id, places in _needed(segments, live, there):
        found.add(chunk_id)
        if len(places) == 1 or places[0].referred:
            for place in places:
                _count(needed, place)
        else:
            several = True
    found.check()
    if several:
        for _, places in _needed(segments, live, there):
            if len(places) > 1 and not places[0].referred:
                _count(needed, max(places, key=lambda place: _preference(place.pack_id, needed, leaving)))
    return needed


def _preference(pack_id: bytes, needed: dict[bytes, int], leaving: Container[bytes]) -> tuple[bool, int, bytes]:
    return pack_id not in leaving, needed.get(pack_id, 0), pack_id


def _count(needed: dict[bytes, int], place: _Copy) -> None:
    pack_id = place.pack_id
    needed[pack_id] = needed.get(pack_id, HEADER_SIZE + TRAILER_SIZE) + place.stored + RECORD_SIZE


def _needed(
    segments: Sequence[Segment], live: LiveChunks, there: Container[bytes]
) -> Iterator[tuple[bytes, list[_Copy]]]:
    """Yield each needed chunk with its copies; or, where there is none, with the references to it."""
    packs = [segment.pack_ids() for segment in segments]
    rows = heapq.merge(*(segment.rows(number) for number, segment in enumerate(segments)))
    number, tails = -1, set[bytes]()
    for chunk_id, group in groupby(rows, key=itemgetter(0)):
        here = chunk_id[0] << 8 | chunk_id[1]
        if here != number:
            number, tails = here, live.slot(here)
        if chunk_id[2:8] not in tails:
            continue
        copies: dict[bytes, _Copy] = {}
        referred: dict[tuple[bytes, bytes], _Copy] = {}
        for _, origin, pack, rest in group:
            if pack >= len(packs[origin]):
                raise FormatError("an index segment names a pack that it does not list")
            pack_id = packs[origin][pack]
            if pack_id not in there:
                continue
            stored = int.from_bytes(rest[_STORED], "little")
            if rest[CODEC_AT] == REFERENCE:
                referred[pack_id, rest[_PLACE]] = _Copy(pack_id, stored, referred=True)
            else:
                copies[pack_id] = _Copy(pack_id, stored, referred=False)
        if copies or referred:
            yield chunk_id, list((copies or referred).values())


class _Found:
    """Whether every needed chunk was met; they come in the order of their ids."""

    def __init__(self, live: LiveChunks) -> None:
        self._live = live
        self._slots = live.filled()
        self._slot = next(self._slots, None)
        self._met: set[bytes] = set()
        self._missing = 0
        self._first = b""

    def add(self, chunk_id: bytes) -> None:
        number = chunk_id[0] << 8 | chunk_id[1]
        while self._slot is not None and self._slot < number:
            self._close()
        self._met.add(chunk_id[2:8])

    def _close(self) -> None:
        """Compare what was met of a slot with what is needed of it, and go on to the next."""
        number = self._slot or 0
        missing = self._live.slot(number) - self._met
        if missing and not self._missing:
            self._first = number.to_bytes(2, "big") + min(missing)
        self._missing += len(missing)
        self._met = set()
        self._slot = next(self._slots, None)

    def check(self) -> None:
        while self._slot is not None:
            self._close()
        if self._missing:
            more = f" and {self._missing - 1} more" if self._missing > 1 else ""
            raise IntegrityError(
                f"chunk {self._first.hex()}...{more}, which versions refer to, can't be found in any pack:"
                " nothing is collected from a damaged store",
                hint="`osmo store check` says which versions need them, `osmo store repair` finds what the index lost",
            )
