"""What a sound name, head and version record is.

Decided here and only here: which values these records may hold, beyond what their types say. A bucket is not
trusted: a record is checked when it is read, and before it is written.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from casstore.model import DatasetType, Head, VersionRecord, VersionStatus
from casstore.repo import layout


class NameRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``names/<name>``: which dataset has this name. ``id`` None: the name is free again."""

    name: str
    id: str | None
    write_id: str


def now() -> str:
    """Return the current time as it is written into records: UTC, to the microsecond, ``...Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_tag(tag: str) -> bool:
    """Whether this may be a tag: a name, but neither a number (those are versions) nor ``latest``."""
    return layout.is_name(tag) and not tag.isdigit() and tag != "latest"


def is_active(head: Head, number: int) -> bool:
    """Whether a committed version is not deleted."""
    state = head.versions.get(number)
    return state is None or state.status != VersionStatus.PENDING_DELETE


def head_problem(head: Head) -> str | None:
    """Say what no sound head holds, or None."""
    if not layout.is_name(head.name):
        return "its name is illegal"
    if head.last_version < 0 or any(number < 1 for number in head.versions):
        return "it has an illegal version number"
    if not all(is_tag(tag) and number >= 1 for tag, number in head.tags.items()):
        return "it has an illegal tag"
    if not all(layout.is_dataset_id(member.dataset_id) and member.version >= 1 for member in head.members):
        return "it has an illegal member"
    if len({member.dataset_id for member in head.members}) != len(head.members):
        return "it has a member twice"
    if head.type == DatasetType.COLLECTION and (head.tags or head.versions or head.last_version):
        return "it is a collection with versions"
    if head.type == DatasetType.DATASET and head.members:
        return "it is a dataset with members"
    return None if _is_time(head.created_at) else "its time is illegal"


def version_problem(version: VersionRecord) -> str | None:
    """Say what no sound version record holds, or None."""
    if not _is_hex(version.manifest) or not _is_hex(version.checksum):
        return "it has an illegal digest"
    totals = version.totals
    if min(totals.files, totals.directories, totals.symlinks, totals.size, version.new_bytes) < 0:
        return "its totals are negative"
    return None if _is_time(version.created_at) else "its time is illegal"


def _is_hex(text: str) -> bool:
    return len(text) == 64 and not set(text).difference("0123456789abcdef")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
