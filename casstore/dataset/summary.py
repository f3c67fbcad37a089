"""What the operations on datasets answer.

Decided here and only here: the shape of the answers. Sizes are logical bytes unless they say *stored*: those
are compressed bytes that an upload added to the store, counted for the version that brought them. Times are
UTC in ISO 8601.
"""

from __future__ import annotations

from typing import Any

import msgspec

from casstore.model import DatasetType, VersionRecord, VersionState, VersionStatus

__all__ = [
    "CollectionChange",
    "DatasetInfo",
    "DatasetSummary",
    "DeleteResult",
    "DownloadResult",
    "MemberInfo",
    "QueryResult",
    "UploadResult",
    "Version",
    "VersionInfo",
]


class Version(msgspec.Struct, frozen=True):
    """One version: its immutable record, and what may change about it as of when it was looked up.

    ``tags`` are sorted and include ``latest`` on the highest version that is ready.
    """

    dataset: str
    dataset_id: str
    record: VersionRecord
    state: VersionState
    tags: tuple[str, ...]

    @property
    def number(self) -> int:
        """The number of the version."""
        return self.record.number

    @property
    def status(self) -> VersionStatus:
        """READY or PENDING_DELETE."""
        return self.state.status

    @property
    def manifest(self) -> bytes:
        """The id of the version's tree."""
        return bytes.fromhex(self.record.manifest)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata as last edited."""
        return self.record.metadata if self.state.metadata is None else self.state.metadata

    def __str__(self) -> str:
        return f"{self.dataset}:{self.record.number}"


class UploadResult(msgspec.Struct, frozen=True):
    """What an upload or update did. ``created`` is False when the content was that of the latest version
    already.

    ``new_bytes`` are stored bytes that were added, ``reused`` files that did not have to be read, ``skipped``
    says what was left out and why.
    """

    version: Version
    created: bool
    new_bytes: int
    logical_bytes: int
    files: int
    reused: int = 0
    skipped: list[str] = []


class DownloadResult(msgspec.Struct, frozen=True):
    """What a download did: the versions, the folder of each, and sums over all of them.

    ``files`` and ``size`` are all that is there now, ``reused`` the files that were there before,
    ``new_bytes`` what was written to disk. ``cached`` files came from this machine's cache, ``removed`` ones were not
    in the version any more.
    """

    versions: tuple[Version, ...]
    folders: tuple[str, ...]
    files: int
    size: int
    reused: int
    new_bytes: int
    cached: int = 0
    removed: int = 0


class VersionInfo(msgspec.Struct, frozen=True):
    """A version with the names of the collections that contain it."""

    version: Version
    collections: tuple[str, ...]


class MemberInfo(msgspec.Struct, frozen=True):
    """A member of a collection. ``version`` is None when its dataset was deleted after it was collected."""

    name: str
    dataset_id: str
    number: int
    version: Version | None


class DatasetSummary(msgspec.Struct, frozen=True):
    """A line of a list: a dataset, or a collection.

    ``last_version``, ``last_created_at`` and ``size`` are those of the latest version, of a collection None,
    its own time and the sum over its members. ``created_by`` is who created it, ``users`` everybody who
    uploaded a version that is ready.
    """

    name: str
    id: str
    bucket: str
    type: DatasetType
    created_at: str
    created_by: str
    labels: dict[str, Any]
    last_version: int | None
    last_created_at: str
    size: int
    stored_size: int
    users: tuple[str, ...]


class DatasetInfo(msgspec.Struct, frozen=True):
    """Everything about one dataset or collection. ``versions`` is empty for a collection, ``members`` for a dataset."""

    summary: DatasetSummary
    versions: tuple[VersionInfo, ...]
    members: tuple[MemberInfo, ...]


class CollectionChange(msgspec.Struct, frozen=True):
    """A collection that lost members. ``deleted`` when none was left."""

    name: str
    deleted: bool


class DeleteResult(msgspec.Struct, frozen=True):
    """What was deleted. ``dropped``: the dataset or collection itself is gone and its name is free.

    The space comes back when garbage is collected, as far as no other version uses the same data.
    """

    name: str
    type: DatasetType
    versions: tuple[int, ...]
    dropped: bool
    collections: tuple[CollectionChange, ...]


class QueryResult(msgspec.Struct, frozen=True):
    """What fits a query: versions when it speaks of metadata, else datasets and collections. One of both is empty."""

    type: str
    datasets: tuple[DatasetSummary, ...] = ()
    versions: tuple[Version, ...] = ()
