"""Packs that come from clients: looked at before anybody may rely on them.

Decided here and only here: that nothing gets a pack's name that is not that pack. Its id covers its table of contents,
not its frames: one whose frames are something else would have everybody who stores the same chunks later rely on
garbage. So a client puts a pack where nobody looks (``incoming/<random>``), the server reads it, checks every frame
against its chunk's id, and stores under the pack's name the very bytes that it has checked. References to objects
elsewhere are refused: whoever reads the version later would fetch them with the server's credentials.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from casstore.backend.base import Absent, Backend
from casstore.compression import REFERENCE
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError, PreconditionError, UsageError
from casstore.format.index import Location
from casstore.format.pack import (
    HEADER_SIZE,
    MAX_CHUNKS,
    RECORD_SIZE,
    TRAILER_SIZE,
    Footer,
    parse_footer,
    tail_size,
    verify_frames,
)
from casstore.repo import layout
from casstore.repo.packs import places_of, read_footer
from casstore.repo.store import Store
from casstore.repo.trash import dying
from casstore.wire.v1 import MAX_BLOB

__all__ = ["check_pack", "promote", "publish", "store_pack"]


def check_pack(pack_id: bytes, data: bytes) -> Footer:
    """Return the table of contents of a pack every bit of which is right. ``IntegrityError`` otherwise; ``UsageError``
    for one that refers to objects elsewhere.
    """
    if len(data) < HEADER_SIZE + TRAILER_SIZE:
        raise FormatError("a pack is too short to hold a trailer")
    length = tail_size(data[-TRAILER_SIZE:])
    if length + HEADER_SIZE > len(data) or length > MAX_CHUNKS * RECORD_SIZE + TRAILER_SIZE:
        raise FormatError("the footer of a pack has the wrong length")
    footer = parse_footer(pack_id, data[:HEADER_SIZE], data[-length:], len(data))
    if any(one.codec == REFERENCE for one in footer.records):
        raise UsageError(
            "data that stays in another bucket can't be referred to through a server",
            hint="upload it without --reference, or with credentials of the bucket itself",
        )
    damaged = verify_frames(footer.records, data)
    if damaged:
        raise IntegrityError(f"pack {pack_id.hex()}: {len(damaged)} chunks are damaged, {damaged[0].hex()} among them")
    return footer


def promote(store: Store, pack_id: bytes, incoming_id: str, *, fresh: bool) -> str:
    """Give a pack that a client has put into the bucket its name, if that is what it is; returns its tag.

    Done again, with what was promoted before, it says the same. ``NotFoundError`` where nothing was put;
    ``PreconditionError`` when ``fresh`` and the pack is there.
    """
    backend, key = store.backend, layout.incoming_key(incoming_id)
    try:
        data = backend.get(key, limit=MAX_BLOB).data
    except NotFoundError:
        # Its reply was lost, and it is asked for again: there is nothing else that removes it while it is wanted.
        backend.stat(layout.pack_key(pack_id))
        return pack_id.hex()
    try:
        return store_pack(store, pack_id, data, fresh=fresh)
    finally:
        with contextlib.suppress(CasstoreError):  # it is collected with the leftovers
            backend.delete([key])


def store_pack(store: Store, pack_id: bytes, data: bytes, *, fresh: bool) -> str:
    """Store a pack, checked. Not ``fresh``: also over one that is there, which is the same or damaged."""
    check_pack(pack_id, data)
    return store.backend.put(layout.pack_key(pack_id), [data], condition=Absent() if fresh else None)


def publish(store: Store, pack_ids: Sequence[bytes]) -> int:
    """Make the chunks of packs that are there known to everybody; returns of how many packs they were not yet.

    ``NotFoundError`` when one is not there.
    """
    store.index.load(again=True)
    known = store.index.pack_ids()
    going = dying(store.backend).packs
    fresh = [pack_id for pack_id in dict.fromkeys(pack_ids) if pack_id not in known]
    places: list[tuple[bytes, Location]] = []
    for pack_id in fresh:
        if pack_id in going:
            raise PreconditionError(f"pack {pack_id.hex()} is being deleted")
        places += places_of(pack_id, _footer(store.backend, pack_id))
    store.index.publish(places)
    return len(fresh)


def _footer(backend: Backend, pack_id: bytes) -> Footer:
    try:
        return read_footer(backend, pack_id)
    except NotFoundError:
        raise NotFoundError(f"pack {pack_id.hex()} is not in the store") from None
