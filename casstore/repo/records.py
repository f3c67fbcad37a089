"""Sound names, heads and version records, and how one of them is read and written.

Decided here and only here: which values these records may hold, beyond what their types say, and that a conditional
put whose reply was lost is told from one that failed. A bucket is not trusted: a record is checked when it is read,
its size before that, and before it is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from casstore.backend.base import Backend, Condition
from casstore.errors import CasstoreError, FormatError, PreconditionError, StorageError, UsageError
from casstore.format import record
from casstore.model import DatasetType, Head, Retention, VersionRecord, VersionStatus
from casstore.repo import layout
from casstore.repo.limits import bounded_object

PARALLEL = 16
"""Small objects that are read at once where the back end is far away."""
_MAX_LEASE_ID = 64

_T = TypeVar("_T", bound=msgspec.Struct)
_A = TypeVar("_A")
_B = TypeVar("_B")


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
    if head.epoch < 0 or (head.retention is not None and retention_problem(head.retention)):
        return "its epoch or its rule of retention is illegal"
    return _type_problem(head) or (None if _is_time(head.created_at) else "its time is illegal")


def _type_problem(head: Head) -> str | None:
    if head.type == DatasetType.COLLECTION and (head.tags or head.versions or head.last_version):
        return "it is a collection with versions"
    if head.type == DatasetType.DATASET and head.members:
        return "it is a dataset with members"
    return None


def retention_problem(rule: Retention) -> str | None:
    """Say what no sound rule of retention holds, or None."""
    if rule.keep_last is not None and rule.keep_last < 1:
        return "the number of versions to keep is at least 1"
    if rule.keep_within_s is not None and rule.keep_within_s < 1:
        return "the time to keep versions for is at least a second"
    return None


def version_problem(version: VersionRecord) -> str | None:
    """Say what no sound version record holds, or None."""
    if not _is_hex(version.manifest) or not _is_hex(version.checksum):
        return "it has an illegal digest"
    totals = version.totals
    if min(totals.files, totals.directories, totals.symlinks, totals.size, version.new_bytes) < 0:
        return "its totals are negative"
    if version.epoch < 0 or len(version.lease) > _MAX_LEASE_ID:
        return "its epoch or lease is illegal"
    return None if _is_time(version.created_at) else "its time is illegal"


def _is_hex(text: str) -> bool:
    return len(text) == 64 and not set(text).difference("0123456789abcdef")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def write_id() -> str:
    """Return a fresh random id that makes a write like no other."""
    return os.urandom(16).hex()


class Records:
    """The records of one back end, each by itself. Thread-safe; keeps no state of its own."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def read(self, key: str, kind: str, cls: type[_T]) -> tuple[_T, str]:
        """Return a record and its etag. ``NotFoundError``; ``FormatError``, which names the key."""
        found = bounded_object(self.backend, key, record.MAX_RECORD)
        try:
            return record.decode(kind, found.data, cls), found.etag
        except FormatError as error:
            raise FormatError(f"{key}: {error.message}", hint=error.hint or "run `osmo dataset verify`") from None

    def put(self, key: str, kind: str, value: msgspec.Struct, condition: Condition) -> None:
        """Write a record under a condition. One whose reply was lost counts as done."""
        self.require_conditions()
        data = record.encode(kind, value)
        try:
            self.backend.put(key, [data], condition=condition)
        except (PreconditionError, StorageError):
            # Was it this very write, and only the reply got lost? Its write id makes it like no other.
            with contextlib.suppress(CasstoreError):
                if self.backend.get(key, limit=len(data)).data == data:
                    return
            raise

    def require_conditions(self) -> None:
        """Refuse to write where nothing keeps two writers apart."""
        if not self.backend.capabilities.conditional_put:
            raise UsageError(
                f"{self.backend.url} has no conditional writes, so two writers could overwrite each other",
                hint="use a bucket that supports them; this one can be read",
            )

    def head(self, dataset_id: str) -> tuple[Head, str]:
        """Return a head, deleted or not, and its etag. ``NotFoundError`` when there is no such object."""
        key = layout.head_key(dataset_id)
        head, etag = self.read(key, "head", Head)
        problem = head_problem(head)
        if head.id != dataset_id:
            problem = f"it says that it belongs to dataset {head.id[:40]!r}"
        if problem:
            raise FormatError(f"{key} can't be right: {problem}", hint="run `osmo dataset verify`")
        return head, etag

    def put_head(self, head: Head, condition: Condition) -> None:
        """Write a head; ``ValueError`` for one that could not be read again."""
        problem = head_problem(head)
        if problem:
            raise ValueError(f"illegal head: {problem}")
        self.put(layout.head_key(head.id), "head", head, condition)

    def version(self, dataset_id: str, number: int) -> VersionRecord:
        """Return the record of a version, void or not; ``NotFoundError`` when there is none."""
        key = layout.version_key(dataset_id, number)
        version, _ = self.read(key, "version", VersionRecord)
        problem = version_problem(version)
        if version.number != number:
            problem = f"it says that it is version {version.number}"
        if problem:
            raise FormatError(f"{key} can't be right: {problem}", hint="run `osmo dataset verify`")
        return version

    def put_version(self, dataset_id: str, version: VersionRecord, condition: Condition) -> None:
        """Write the record of a version; ``ValueError`` for one that could not be read again."""
        problem = version_problem(version)
        if problem:
            raise ValueError(f"illegal version record: {problem}")
        self.put(layout.version_key(dataset_id, version.number), "version", version, condition)

    def numbers(self, dataset_id: str) -> list[int]:
        """Return the numbers that have a version record, ascending; void ones included."""
        prefix = layout.versions_prefix(dataset_id)
        return sorted(layout.version_number(info.key) for info in self.backend.list(prefix))

    def each(self, work: Callable[[_A], _B], items: Sequence[_A]) -> list[_B]:
        """Return ``work(item)`` for all items, in parallel where the back end is far away."""
        if self.backend.capabilities.local or len(items) < 2:
            return [work(item) for item in items]
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load, and local stores never need it

        with ThreadPoolExecutor(min(PARALLEL, len(items)), thread_name_prefix="refs") as pool:
            return list(pool.map(work, items))
