"""Datasets for workflows: the ``DataStore`` port over ``casstore.dataset``.

Decided here and only here: how a reference in a specification reaches a bucket, and how a transfer is interrupted.
Tasks may add to the newest version of one dataset at the same time: see ``Bucket.update``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from casstore.dataset import Bucket, Ref, UploadResult, Version, parse_ref
from casstore.errors import CancelledError

from .ports import DatasetVersion, Published, Transfer

__all__ = ["BucketData"]


class BucketData:
    """Implements ``ports.DataStore``.

    ``open_bucket(name, user)`` opens a bucket as a user sees it (the default one for None); it raises
    ``NotFoundError`` for a bucket that is not declared and ``AccessError`` for one that the user may not use. Buckets
    are opened once for each user and kept.
    """

    def __init__(self, open_bucket: Callable[[str | None, str], Bucket]) -> None:
        self._open = open_bucket
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str | None, str], Bucket] = {}

    def forget(self) -> None:
        """Open buckets anew from now on: their declarations changed."""
        with self._lock:
            self._buckets.clear()

    def resolve(self, ref: str, user: str) -> tuple[DatasetVersion, ...]:
        """See ``ports.DataStore``."""
        bucket, parsed = self._find(ref, user)
        return tuple(_describe(bucket, version) for version in bucket.resolve_all(parsed.name, parsed.tag or None))

    def download(
        self, version: DatasetVersion, user: str, target: Path, *, regex: str | None, stop: Callable[[], bool]
    ) -> Transfer:
        """See ``ports.DataStore``. Links are made whatever they point to: nothing on this side follows them."""
        bucket = self._bucket(version.bucket, user)
        result = bucket.download(
            version.name,
            str(target),
            tag=str(version.number),
            regex=regex,
            resume=True,
            unsafe_links=True,
            progress=_Watch(stop),
        )
        return Transfer(files=result.files, size=result.size)

    def publish(
        self,
        ref: str,
        user: str,
        sources: Sequence[str],
        *,
        regex: str | None,
        metadata: Mapping[str, Any],
        labels: Mapping[str, Any],
        origin: Mapping[str, Any],
        provenance: Mapping[str, Any],
        stop: Callable[[], bool],
    ) -> Published:
        """See ``ports.DataStore``."""
        bucket, parsed = self._find(ref, user)
        result = bucket.upload(
            parsed.name,
            sources,
            regex=regex,
            metadata=dict(metadata),
            labels=dict(labels),
            tag=parsed.tag or None,
            origin=dict(origin),
            provenance=dict(provenance),
            progress=_Watch(stop),
        )
        return _published(bucket, result)

    def update(
        self,
        ref: str,
        user: str,
        additions: Sequence[str],
        *,
        metadata: Mapping[str, Any],
        labels: Mapping[str, Any],
        origin: Mapping[str, Any],
        provenance: Mapping[str, Any],
        stop: Callable[[], bool],
    ) -> Published:
        """See ``ports.DataStore``."""
        bucket, parsed = self._find(ref, user)
        result = bucket.update(
            parsed.name,
            tag=parsed.tag or None,
            add=additions,
            metadata=dict(metadata),
            labels=dict(labels),
            origin=dict(origin),
            provenance=dict(provenance),
            progress=_Watch(stop),
        )
        return _published(bucket, result)

    def _find(self, ref: str, user: str) -> tuple[Bucket, Ref]:
        parsed = parse_ref(ref)
        return self._bucket(parsed.bucket, user), parsed

    def _bucket(self, name: str | None, user: str) -> Bucket:
        with self._lock:
            found = self._buckets.get((name, user))
        if found is not None:
            return found
        opened = self._open(name, user)
        with self._lock:
            return self._buckets.setdefault((name, user), opened)


def _describe(bucket: Bucket, version: Version) -> DatasetVersion:
    record = version.record
    return DatasetVersion(
        bucket=bucket.name,
        name=version.dataset,
        number=record.number,
        manifest=record.manifest,
        checksum=record.checksum,
        size=record.totals.size,
        files=record.totals.files,
    )


def _published(bucket: Bucket, result: UploadResult) -> Published:
    return Published(
        version=_describe(bucket, result.version),
        created=result.created,
        new_bytes=result.new_bytes,
        skipped=tuple(result.skipped),
    )


class _Watch:
    """Ends a transfer from within: what a ``Progress`` raises comes out of the transfer's call."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def _check(self) -> None:
        if self._stop():
            msg = "the transfer was stopped"
            raise CancelledError(msg)

    def expect(self, files: int, size: int) -> None:
        """More was found."""
        self._check()

    def listed(self) -> None:
        """Nothing more will be found."""
        self._check()

    def advance(self, size: int, *, new: int = 0) -> None:
        """Some bytes were moved."""
        self._check()

    def file_done(self, path: bytes) -> None:
        """A file was moved."""
        self._check()

    def warn(self, message: str) -> None:
        """The result says the same again."""
