"""What is being deleted, as everybody can see it.

Decided here and only here: the records of ``trash/``, and what a writer must not rely on. A record in state ``marked``
changes nothing: what it lists is used as before. From ``deleting`` on, what it lists may be gone at any moment, also
when it seems to be there.

An id that is on such a record is never stored again under the same name: whoever deletes may have been stopped between
its last look and the deletion. See ``docs/adr/0006-leases-epochs-and-gc.md``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from casstore import hashing
from casstore.backend.base import Backend
from casstore.errors import FormatError, NotFoundError
from casstore.format import record
from casstore.repo import layout
from casstore.repo.limits import bounded_get

__all__ = ["MAX_IDS", "DyingSet", "TrashRecord", "TrashState", "dying", "read_trash"]

MAX_IDS = 50_000
"""Packs and manifests in one record, at most; more go into several."""
MAX_TRASH = 8 << 20
"""Bytes of a record, at most."""


class TrashState(StrEnum):
    """How far a deletion is."""

    MARKED = "marked"
    DELETING = "deleting"
    DELETED = "deleted"


class TrashRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``trash/<id>``: packs and manifests, by the hexadecimal form of their ids."""

    id: str
    state: TrashState
    created_at: str
    write_id: str
    packs: list[str] = []
    manifests: list[str] = []


class DyingSet(NamedTuple):
    """What may be gone at any moment: the ids of packs and of manifests."""

    packs: frozenset[bytes]
    manifests: frozenset[bytes]


def read_trash(backend: Backend, trash_id: str) -> TrashRecord:
    """Return a record of what is being deleted. ``NotFoundError``; ``FormatError``, which names the key."""
    key = layout.trash_key(trash_id)
    data = bounded_get(backend, key, MAX_TRASH)
    try:
        found = record.decode("trash", data, TrashRecord)
    except FormatError as error:
        raise FormatError(f"{key}: {error.message}", hint=error.hint or "run `osmo dataset verify`") from None
    if found.id != trash_id or len(found.packs) + len(found.manifests) > MAX_IDS:
        raise FormatError(f"{key} can't be right", hint="run `osmo dataset verify`")
    return found


def dying(backend: Backend) -> DyingSet:
    """Return what nobody may rely on any more. Costs a listing, and a read for each record."""
    packs: set[bytes] = set()
    manifests: set[bytes] = set()
    for info in backend.list(layout.TRASH):
        try:
            found = read_trash(backend, layout.random_id(info.key))
        except NotFoundError:
            continue  # old, and removed just now
        if found.state != TrashState.MARKED:
            packs.update(map(hashing.from_hex, found.packs))
            manifests.update(map(hashing.from_hex, found.manifests))
    return DyingSet(frozenset(packs), frozenset(manifests))
