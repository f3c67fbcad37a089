"""Requests and replies about datasets, versions and collections.

Decided here and only here: the field names of these shapes, which are OSMO 6.2's, and how a time is written in them:
whole seconds of UTC, without a zone. Sizes are in bytes; versions are strings of digits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

__all__ = [
    "AttributeBody",
    "AttributeReply",
    "CollectBody",
    "CollectionMember",
    "DatasetList",
    "DatasetName",
    "DatasetReply",
    "DatasetRow",
    "DeleteReply",
    "DownloadReply",
    "LocationReply",
    "MemberVersion",
    "QueryReply",
    "RecollectBody",
    "RecollectReply",
    "TagReply",
    "TreeReply",
    "UploadBody",
    "UploadReply",
    "VersionReply",
    "whole_seconds",
]


class LocationReply(msgspec.Struct, kw_only=True):
    """Where a bucket is: a URL, and the region of its service."""

    path: str
    region: str


class UploadBody(msgspec.Struct, kw_only=True):
    """Body of the two requests of an upload: the beginning has metadata of the version, the end labels."""

    metadata: dict[str, Any] = {}
    labels: dict[str, Any] = {}


class UploadReply(msgspec.Struct, kw_only=True):
    """``storage_path`` is where files go, named by their ETags, and ``manifest_path`` where the list of them goes. The
    end of an upload has ``version_id`` alone.
    """

    version_id: str
    region: str = ""
    storage_path: str = ""
    manifest_path: str = ""


class DownloadReply(msgspec.Struct, kw_only=True):
    """Side by side: datasets, their versions, and where their manifests are. ``new_locations`` are empty: nothing here
    is of the time before manifests.
    """

    dataset_names: list[str]
    dataset_versions: list[str]
    locations: list[str]
    new_locations: list[str]
    is_collection: bool


class VersionReply(msgspec.Struct, kw_only=True):
    """One version. ``location`` is ``uri`` as a link of HTTP, where the service has one."""

    name: str
    version: str
    status: str
    created_by: str
    created_date: str
    last_used: str
    size: int
    checksum: str
    location: str
    uri: str
    metadata: dict[str, Any]
    tags: list[str]
    collections: list[str]


class CollectionMember(msgspec.Struct, kw_only=True):
    """One member of a collection."""

    name: str
    version: str
    location: str
    uri: str
    hash_location: str | None
    size: int


class DatasetReply(msgspec.Struct, kw_only=True):
    """One dataset with its versions, or one collection with its members."""

    name: str
    id: str
    bucket: str
    created_by: str | None
    created_date: str | None
    hash_location: str | None
    hash_location_size: int | None
    labels: dict[str, Any]
    type: str
    versions: list[VersionReply] | list[CollectionMember]


class QueryReply(msgspec.Struct, kw_only=True):
    """What fits a query; ``type`` says of which kind all of it is."""

    type: str
    datasets: list[DatasetReply] | list[VersionReply]


class DatasetRow(msgspec.Struct, kw_only=True):
    """One row of a list. ``version_id`` is that of the latest version."""

    name: str
    id: str
    bucket: str
    create_time: str
    last_created: str | None
    hash_location: str | None
    hash_location_size: int | None
    version_id: str | None
    type: str


class DatasetList(msgspec.Struct, kw_only=True):
    """Datasets and collections."""

    datasets: list[DatasetRow]


class DeleteReply(msgspec.Struct, kw_only=True):
    """What was deleted. There is never a place that the client should delete: that is up to garbage collection."""

    versions: list[str] = []
    delete_locations: list[str] = []
    cleaned_size: int = 0


class AttributeBody(msgspec.Struct, kw_only=True):
    """Trees that are merged into the labels of a dataset and the metadata of a version."""

    set_label: dict[str, Any] = {}
    set_metadata: dict[str, Any] = {}


class TagReply(msgspec.Struct, kw_only=True):
    """The tags that a version has now."""

    version_id: str
    tags: list[str]


class TreeReply(msgspec.Struct, kw_only=True):
    """Labels or metadata as they are now."""

    metadata: dict[str, Any]


class AttributeReply(msgspec.Struct, kw_only=True):
    """None for what the request did not speak of."""

    tag_response: TagReply | None = None
    label_response: TreeReply | None = None
    metadata_response: TreeReply | None = None


class DatasetName(msgspec.Struct, kw_only=True):
    """A dataset or collection of the same bucket; an empty ``tag`` is none."""

    name: str
    tag: str | None = ""


class CollectBody(msgspec.Struct, kw_only=True):
    """Body of a request that makes a collection."""

    datasets: list[DatasetName]


class RecollectBody(msgspec.Struct, kw_only=True):
    """Body of a request that changes one: what is removed is removed first."""

    add_datasets: list[DatasetName] = []
    remove_datasets: list[DatasetName] = []


class MemberVersion(msgspec.Struct, kw_only=True):
    """A member by its name."""

    dataset_name: str
    version: str


class RecollectReply(msgspec.Struct, kw_only=True):
    """The members that there are now; the collection is gone when there are none."""

    versions: list[MemberVersion]


def whole_seconds(moment: str | None) -> str | None:
    """A time of a record (ISO 8601 with a zone) as these replies have it."""
    if moment is None:
        return None
    found = datetime.fromisoformat(moment)
    return (found if found.tzinfo is None else found.astimezone(UTC)).strftime("%Y-%m-%dT%H:%M:%S")
