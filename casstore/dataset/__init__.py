"""Datasets, versions, tags and collections: the facade of the store.

``Bucket`` has all operations; everything else here is what they take and return. ``diff`` has what differences are.
"""

from __future__ import annotations

from casstore.dataset.bucket import Bucket
from casstore.dataset.ref import LATEST, Ref, parse_ref
from casstore.dataset.summary import (
    CollectionChange,
    DatasetInfo,
    DatasetSummary,
    DeleteResult,
    DownloadResult,
    MemberInfo,
    QueryResult,
    UploadResult,
    Version,
    VersionInfo,
)

__all__ = [
    "LATEST",
    "Bucket",
    "CollectionChange",
    "DatasetInfo",
    "DatasetSummary",
    "DeleteResult",
    "DownloadResult",
    "MemberInfo",
    "QueryResult",
    "Ref",
    "UploadResult",
    "Version",
    "VersionInfo",
    "parse_ref",
]
