"""Collections of OSMO, made anew of datasets that were migrated.

Decided here and only here: which version of ours a member becomes, and that a collection is made of all of its members
or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from casstore.dataset.adopt.info import Info, plain
from casstore.dataset.adopt.migrate import Migration
from casstore.dataset.ref import check_name
from casstore.errors import NotFoundError
from casstore.model import DatasetType, Member

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket

__all__ = ["Collected", "CollectionState", "collect"]


class CollectionState(StrEnum):
    """What became of a collection. The values are part of the command's JSON."""

    CREATED = "created"
    PRESENT = "present"
    INCOMPLETE = "incomplete"
    """Some members are not here: it was not made."""
    TAKEN = "taken"
    """Something else has its name."""


class Collected(msgspec.Struct):
    """One collection. ``members`` are ``name:version`` of ours, ``missing`` those of OSMO's that are not here."""

    name: str
    state: CollectionState
    members: list[str]
    missing: list[str]


def collect(bucket: Bucket, info: Info, migrations: Sequence[Migration], warn: Callable[[str], None]) -> Collected:
    """Make a collection of versions that were migrated, unless it is here already."""
    name = check_name(info.name)
    ours = {migration.dataset.id: migration for migration in migrations}
    members: list[str] = []
    missing: list[str] = []
    for one in info.versions:
        migration = ours.get(one.dataset_id or "")
        number = migration.versions.get(one.number) if migration is not None else None
        if migration is None or number is None:
            missing.append(f"{one.name}:{one.version}")
        else:
            members.append(f"{migration.name}:{number}")
    if missing or not members:
        return Collected(name, CollectionState.INCOMPLETE, members, missing)
    try:
        head = bucket.refs.find(name)
    except NotFoundError:
        bucket.collect(name, members)
        labels, _ = plain(info.labels or {}, f"the labels of {name}", warn)
        if labels:
            bucket.update_labels(name, set=labels)
        return Collected(name, CollectionState.CREATED, members, [])
    wanted = {_member(bucket, text) for text in members}
    same = head.type == DatasetType.COLLECTION and set(head.members) == wanted
    return Collected(name, CollectionState.PRESENT if same else CollectionState.TAKEN, members, [])


def _member(bucket: Bucket, text: str) -> Member:
    name, _, number = text.partition(":")
    return Member(bucket.refs.find(name).id, int(number))
