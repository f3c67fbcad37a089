"""What is being deleted, as everybody can see it.

Decided here and only here: the records of ``trash/``, and what a writer must not rely on. A record in state ``marked``
changes nothing: what it lists is used as before. From ``deleting`` on, what it lists may be gone at any moment, also
when it seems to be there.

An id that is on such a record is never stored again under the same name: whoever deletes may have been stopped between
its last look and the deletion. See ``docs/adr/0006-leases-epochs-and-gc.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from casstore import hashing
from casstore.backend.base import Absent, Backend, Matches
from casstore.errors import ConflictError, FormatError, NotFoundError, PreconditionError
from casstore.format import record
from casstore.repo import layout
from casstore.repo.limits import bounded_object
from casstore.repo.records import Records, now, write_id

__all__ = [
    "MAX_IDS",
    "NOTHING",
    "DyingSet",
    "Listed",
    "TrashRecord",
    "TrashState",
    "create",
    "dying",
    "list_trash",
    "read_listed",
    "read_trash",
    "replace",
]

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
    """``trash/<id>``: packs and manifests, by the hexadecimal form of their ids.

    ``versions`` (dataset id, number) and ``datasets`` were deleted by their users: their records go with the rest.
    ``sealed``: all of it goes now, and nothing is taken off any more.
    """

    id: str
    state: TrashState
    created_at: str
    write_id: str
    packs: list[str] = []
    manifests: list[str] = []
    versions: list[tuple[str, int]] = []
    datasets: list[str] = []
    sealed: bool = False


class Listed(NamedTuple):
    """A record as it was read: with the tag of that state, and its time by the back end's clock."""

    record: TrashRecord
    etag: str
    mtime: float


class DyingSet(NamedTuple):
    """What may be gone at any moment: the ids of packs and of manifests."""

    packs: frozenset[bytes]
    manifests: frozenset[bytes]


NOTHING = DyingSet(frozenset(), frozenset())


def read_trash(backend: Backend, trash_id: str) -> TrashRecord:
    """Return a record of what is being deleted. ``NotFoundError``; ``FormatError``, which names the key."""
    return _parse(trash_id, bounded_object(backend, layout.trash_key(trash_id), MAX_TRASH).data)


def _parse(trash_id: str, data: bytes) -> TrashRecord:
    key = layout.trash_key(trash_id)
    try:
        found = record.decode("trash", data, TrashRecord)
    except FormatError as error:
        raise FormatError(f"{key}: {error.message}", hint=error.hint or "run `osmo dataset verify`") from None
    ids = [*found.packs, *found.manifests]
    datasets = [*found.datasets, *(dataset_id for dataset_id, _ in found.versions)]
    if (
        found.id != trash_id
        or len(ids) > MAX_IDS
        or not all(map(_is_id, ids))
        or not all(map(layout.is_dataset_id, datasets))
        or any(number < 1 for _, number in found.versions)
    ):
        raise FormatError(f"{key} can't be right", hint="run `osmo dataset verify`")
    return found


def _is_id(text: str) -> bool:
    return len(text) == 64 and not set(text).difference("0123456789abcdef")


def read_listed(backend: Backend, trash_id: str) -> Listed:
    """Return a record with its state, for changing it. Errors as with ``read_trash``."""
    key = layout.trash_key(trash_id)
    info = backend.stat(key)
    found = bounded_object(backend, key, MAX_TRASH)
    return Listed(_parse(trash_id, found.data), found.etag, info.mtime)


def list_trash(backend: Backend) -> list[Listed]:
    """Return all records. One that can't be read is a ``FormatError``: nobody knows what it deletes."""

    def read(key: str) -> Listed | None:
        try:
            return read_listed(backend, layout.random_id(key))
        except NotFoundError:
            return None  # old, and removed just now

    keys = [info.key for info in backend.list(layout.TRASH)]
    return [listed for listed in Records(backend).each(read, keys) if listed is not None]


def create(
    backend: Backend,
    *,
    packs: Sequence[str],
    manifests: Sequence[str],
    versions: Sequence[tuple[str, int]],
    datasets: Sequence[str],
) -> str:
    """Write a new record in state ``marked`` and return its id."""
    marked = TrashRecord(
        id=layout.new_id(),
        state=TrashState.MARKED,
        created_at=now(),
        write_id=write_id(),
        packs=[*packs],
        manifests=[*manifests],
        versions=[*versions],
        datasets=[*datasets],
    )
    Records(backend).put(layout.trash_key(marked.id), "trash", marked, Absent())
    return marked.id


def replace(backend: Backend, listed: Listed, changed: TrashRecord) -> Listed:
    """Replace a record that was read by another state. ``ConflictError`` when somebody else was faster."""
    key = layout.trash_key(changed.id)
    changed = msgspec.structs.replace(changed, write_id=write_id())
    try:
        Records(backend).put(key, "trash", changed, Matches(listed.etag))
    except (NotFoundError, PreconditionError):
        raise ConflictError(
            "another collection has taken over what this one was deleting", hint="let that one finish, and try again"
        ) from None
    after = read_listed(backend, changed.id)
    if after.record.write_id != changed.write_id:
        raise ConflictError(
            "another collection has taken over what this one was deleting", hint="let that one finish, and try again"
        )
    return after


def dying(backend: Backend, final: dict[str, DyingSet] | None = None) -> DyingSet:
    """Return what nobody may rely on any more. Costs a listing, and a read for each record.

    ``final`` keeps what will not change any more, by its key, for whoever asks again.
    """
    kept = {} if final is None else final

    def read(key: str) -> DyingSet:
        found = kept.get(key)
        if found is not None:
            return found
        try:
            listed = read_trash(backend, layout.random_id(key))
        except NotFoundError:
            return NOTHING  # old, and removed just now
        if listed.state == TrashState.MARKED:
            return NOTHING
        found = DyingSet(*(frozenset(map(hashing.from_hex, ids)) for ids in (listed.packs, listed.manifests)))
        if listed.state == TrashState.DELETED:
            kept[key] = found
        return found

    each = Records(backend).each(read, [info.key for info in backend.list(layout.TRASH)])
    return DyingSet(
        frozenset().union(*(one.packs for one in each)), frozenset().union(*(one.manifests for one in each))
    )
