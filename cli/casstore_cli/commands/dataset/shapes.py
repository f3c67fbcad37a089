"""The JSON of datasets, as OSMO 6.2's server gives it.

Decided here and only here: which field of the store becomes which key. Locations are the bucket's URL and the path of
the object in it; data is shared by all datasets of a bucket, so that a dataset has no folder of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from casstore.model import Entry, Kind

if TYPE_CHECKING:
    from casstore.dataset import DatasetInfo, DatasetSummary, MemberInfo, Version, VersionInfo

_TYPES = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "symlink"}


def location(url: str, version: Version) -> str:
    """Where the manifest of a version is."""
    name = version.record.manifest
    return f"{url}/manifests/{name[:2]}/{name}"


def summary(found: DatasetSummary, url: str) -> dict[str, Any]:
    """One element of ``list``."""
    return {
        "name": found.name,
        "id": found.id,
        "bucket": found.bucket,
        "create_time": found.created_at,
        "last_created": found.last_created_at,
        "hash_location": url,
        "hash_location_size": found.stored_size,
        "version_id": None if found.last_version is None else str(found.last_version),
        "type": found.type.value,
    }


def version(found: Version, url: str, collections: tuple[str, ...] = ()) -> dict[str, Any]:
    """One version, as in ``info`` and ``query``."""
    record, where = found.record, location(url, found)
    return {
        "name": found.dataset,
        "version": str(record.number),
        "status": found.status.value,
        "created_by": record.created_by,
        "created_date": record.created_at,
        "last_used": found.state.last_used or record.created_at,
        "size": record.totals.size,
        "checksum": record.checksum,
        "location": where,
        "uri": where,
        "metadata": found.metadata,
        "tags": list(found.tags),
        "collections": list(collections),
        "files": record.totals.files,
        "provenance": record.provenance,
    }


def member(found: MemberInfo, url: str) -> dict[str, Any]:
    """One member of a collection."""
    where = None if found.version is None else location(url, found.version)
    return {
        "name": found.name,
        "version": str(found.number),
        "location": where,
        "uri": where,
        "hash_location": url,
        "size": 0 if found.version is None else found.version.record.totals.size,
    }


def info(found: DatasetInfo, url: str) -> dict[str, Any]:
    """The whole of ``info``."""
    head = found.summary
    return {
        "name": head.name,
        "id": head.id,
        "bucket": head.bucket,
        "created_by": head.created_by,
        "created_date": head.created_at,
        "hash_location": url,
        "hash_location_size": head.stored_size,
        "labels": head.labels,
        "type": head.type.value,
        "versions": [member(m, url) for m in found.members] + [_version_info(v, url) for v in found.versions],
    }


def _version_info(found: VersionInfo, url: str) -> dict[str, Any]:
    return version(found.version, url, found.collections)


def entry(found: Entry, url: str) -> dict[str, Any]:
    """One file, link or folder, as in ``inspect``. The etag names the content; it is no MD5."""
    shown: dict[str, Any] = {
        "relative_path": os.fsdecode(found.path),
        "storage_path": url,
        "url": None,
        "size": found.size,
        "etag": etag(found),
        "type": _TYPES.get(Kind(found.kind), "file"),
        "mode": f"{found.mode:04o}",
        "mtime": found.mtime_ns / 1e9,
    }
    if found.kind == Kind.SYMLINK:
        shown["target"] = os.fsdecode(found.target)
    return shown


def etag(found: Entry) -> str | None:
    """A digest of a file's content; None for what is no file. Equal contents have equal etags."""
    if found.kind != Kind.FILE:
        return None
    from casstore import hashing

    return hashing.digest(bytes([found.content.depth]) + found.content.refs).hex()
