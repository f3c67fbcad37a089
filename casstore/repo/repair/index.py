"""A new index, from the tables of contents of the packs alone.

Decided here and only here: which segments stay. One of which every record is confirmed by the packs does. The others
are replaced by new ones that hold what the packs have and no segment that stays does; those are written first.
"""

from __future__ import annotations

from casstore.errors import IntegrityError, NotFoundError
from casstore.format.index import Location
from casstore.format.pack import Footer
from casstore.repo.check.packs import Packs
from casstore.repo.check.places import Indexed, Places
from casstore.repo.check.session import Session
from casstore.repo.packs import places_of, read_footer
from casstore.repo.repair.quarantine import Quarantine
from casstore.repo.repair.storing import put_segment

__all__ = ["rebuild_index"]

_RECORDS = 1 << 18
"""Records of a new segment."""


def rebuild_index(session: Session, quarantine: Quarantine, without: frozenset[bytes]) -> tuple[int, int]:
    """Make the index right; packs of ``without`` are taken for gone. Returns how many segments were replaced and made.

    Readers find what they found before at any moment: new segments are written before old ones are removed.
    """
    backend = session.backend
    places = Places(session)

    def compare(pack_id: bytes, footer: Footer) -> None:
        if pack_id not in without:
            places.compare(pack_id, footer)

    packs = places.packs = Packs(session, compare, share=None, seed=0)
    places.open()
    packs.scan()
    old = places.stale().keys() | places.behind.keys() | places.damaged.keys()
    sound = [one for one in places.segments.values() if one.key not in old]
    new = 0
    beside: list[tuple[bytes, Location]] = []
    for pack_id, pack in sorted(packs.known.items()):
        if pack_id in without or not pack.sound:
            continue
        try:
            footer = read_footer(backend, pack_id, pack.size)
        except (NotFoundError, IntegrityError):
            continue  # gone meanwhile
        beside += (item for item in places_of(pack_id, footer) if not _is_known(sound, *item))
        if len(beside) >= _RECORDS:
            put_segment(backend, beside)
            new, beside = new + 1, []
    if beside:
        put_segment(backend, beside)
        new += 1
    quarantine.remove(*sorted(old))
    return len(old), new


def _is_known(sound: list[Indexed], chunk_id: bytes, place: Location) -> bool:
    return any(place in one.places(chunk_id) for one in sound)
