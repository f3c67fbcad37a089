"""Which changes of a store's records a client may make that has no credentials of the bucket.

Decided here and only here: the rules, as functions of what was there, what is to be there, and the rights. A client
runs the store's own code and could as well run another: whatever it sends is compared with what was there, and only
what that code could have done to this state passes. Each function returns what is wrong, or None. Whether what a record
points to exists is for the caller to find out: these functions look at nothing. What an honest client runs into when
somebody else was faster must be told apart from what it never does: the former is a condition that does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from casstore.model import Head, VersionRecord, VersionState, VersionStatus
from casstore.repo.leases import MAX_TERM, LeaseInfo, LeaseRecord
from casstore.repo.records import NameRecord, is_active

__all__ = ["Rights", "head_problem", "lease_problem", "name_problem", "version_problem"]

AHEAD_S = 3600.0
"""How far the clock of a client may be ahead of the server's: times decide what rules of retention keep."""
_CLOCK = "clock"
_COLLECTORS = frozenset({"gc", "repair"})
_NEEDS_WRITE = "it takes the right dataset:Write"
_NEEDS_DELETE = "it takes the right dataset:Delete"


@dataclass(frozen=True, slots=True)
class Rights:
    """Who asks, and what they may do in this bucket beyond reading. Where it is not ``writable``: nothing, not even say
    that they read.
    """

    user: str
    writable: bool
    write: bool
    delete: bool
    manage: bool


def version_problem(version: VersionRecord, head: Head, rights: Rights, now: float) -> str | None:
    """Why this record may not become a version of the dataset; ``now`` in seconds since the epoch."""
    if not rights.write:
        return _NEEDS_WRITE
    if version.created_by != rights.user:
        return f"it says that {version.created_by[:100]!r} makes it"
    if _is_ahead(version.created_at, now):
        return "it says that it is from the future"
    if version.epoch > head.epoch:
        return "its epoch has not begun"
    return None


def head_problem(
    old: Head | None, new: Head, rights: Rights, now: float, *, is_void: Callable[[int], bool], numbers: Collection[int]
) -> str | None:
    """Why a head may not become this. ``numbers`` are those that have a version record, ``is_void`` whether nobody
    reads the record of such a number.
    """
    if old is None:
        return _first_head_problem(new, rights, now)
    if not rights.write:
        return None if _only_used(old, new, now) else _NEEDS_WRITE
    for name in ("id", "type", "created_at", "created_by", "epoch"):
        if getattr(old, name) != getattr(new, name):
            return f"its {name} can't change"
    if old.deleted:
        return "the dataset was deleted"
    if new.last_version < old.last_version or (new.last_version > old.last_version and new.last_version not in numbers):
        return f"there is no version {new.last_version}"
    if old.retention != new.retention and not rights.delete:
        return f"a rule of retention deletes versions: {_NEEDS_DELETE}"
    if new.deleted and not rights.delete and (old.last_version or numbers or old.created_by != rights.user):
        return _NEEDS_DELETE
    return _states_problem(old, new, rights, is_void, numbers) or _tags_problem(old, new, numbers)


def _first_head_problem(new: Head, rights: Rights, now: float) -> str | None:
    if not rights.write:
        return _NEEDS_WRITE
    if new.created_by != rights.user:
        return f"it says that {new.created_by[:100]!r} makes it"
    if new.last_version or new.epoch or new.versions or new.tags or new.deleted or new.retention is not None:
        return "a new dataset has no versions yet"
    return "it says that it is from the future" if _is_ahead(new.created_at, now) else None


def _only_used(old: Head, new: Head, now: float) -> bool:
    """Whether nothing differs but when versions were last used, which is now: whoever reads one may say so."""
    if msgspec.structs.replace(new, versions=old.versions, write_id=old.write_id) != old:
        return False
    for number in old.versions.keys() | new.versions.keys():
        before = old.versions.get(number, VersionState())
        after = new.versions.get(number)
        if after is None or msgspec.structs.replace(after, last_used=before.last_used) != before:
            return False
        moment = after.last_used
        if moment != before.last_used and (moment is None or not _is_about(moment, now)):
            return False
    return True


def _states_problem(
    old: Head, new: Head, rights: Rights, is_void: Callable[[int], bool], numbers: Container[int]
) -> str | None:
    for number, before in old.versions.items():
        after = new.versions.get(number)
        if after is None:
            return f"what is known of version {number} can't be forgotten"
        if after.status not in {before.status, VersionStatus.PENDING_DELETE}:
            return f"version {number} can't come back"
    for number, state in new.versions.items():
        if number not in old.versions and number not in numbers:
            return f"there is no version {number}"
        gone = state.status == VersionStatus.PENDING_DELETE and is_active(old, number)
        if gone and not rights.delete and not (number > old.last_version and is_void(number)):
            return f"to delete version {number}, {_NEEDS_DELETE}"
        if state.status == VersionStatus.PENDING:
            return f"version {number} is there already"
    return None


def _tags_problem(old: Head, new: Head, numbers: Container[int]) -> str | None:
    for tag, number in new.tags.items():
        if old.tags.get(tag) != number and (number not in numbers or not is_active(new, number)):
            return f"the tag {tag} is for version {number}, which is not there"
    return None


def name_problem(old: NameRecord | None, new: NameRecord, *, live: Callable[[str], Head | None]) -> str | None:
    """Why a name can't come to mean this now. ``live`` returns the head of a dataset that is there."""
    holder = None if old is None or old.id is None else live(old.id)
    if new.id is None:
        return f"{new.name!r} is in use" if holder is not None and holder.name == new.name else None
    if live(new.id) is None:
        return "the dataset is not there"
    if holder is not None and holder.id != new.id:
        return f"the name {new.name!r} is taken"
    return None


def lease_problem(old: LeaseInfo | None, new: LeaseRecord, rights: Rights, now: float) -> str | None:
    """Why somebody may not hold this lease. ``old`` is what is there under its id, ``now`` the clock of the bucket."""
    if new.user != rights.user:
        return f"it says that {new.user[:100]!r} holds it"
    if new.kind in _COLLECTORS and not rights.manage:
        return f"{new.kind} takes the right bucket:Manage"
    if new.reads is msgspec.UNSET and new.kind != _CLOCK and not rights.write:
        return _NEEDS_WRITE
    if old is None:
        # It keeps what was stored since from being collected.
        return None if new.begun is None or new.begun >= now - MAX_TERM else "it began too long ago"
    if old.record is None or old.record.user != rights.user:
        return "it is somebody else's"
    if new.begun is None or new.begun < old.begun - 1:
        return "it begins before it was taken"
    return None


def _is_ahead(moment: str, now: float) -> bool:
    seconds = _seconds(moment)
    return seconds is None or seconds > now + AHEAD_S


def _is_about(moment: str, now: float) -> bool:
    seconds = _seconds(moment)
    return seconds is not None and abs(seconds - now) <= AHEAD_S


def _seconds(moment: str) -> float | None:
    try:
        found = datetime.fromisoformat(moment)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
