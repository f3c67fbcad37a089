"""From an uploaded tree to a version.

Decided here and only here: when an upload makes no new version, and what is checked before its data is moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from casstore.dataset import attributes
from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.ref import check_name, check_tag
from casstore.dataset.summary import UploadResult, Version
from casstore.errors import ConflictError, NotFoundError
from casstore.model import Head, VersionRecord
from casstore.repo.refs import Refs, now

if TYPE_CHECKING:  # loading the upload for its result's type would slow every other command down
    from casstore.transfer.upload import TreeResult

__all__ = ["Commit"]


class Commit:
    """What an upload is going to commit, and how."""

    def __init__(
        self,
        refs: Refs,
        catalog: Catalog,
        name: str,
        user: str,
        *,
        description: str | None,
        metadata: dict[str, Any] | None,
        labels: dict[str, Any] | None,
        tag: str | None,
        provenance: dict[str, Any] | None,
        force: bool,
        origin: dict[str, Any] | None = None,
        created_at: str | None = None,
    ) -> None:
        """Refuse what could not be committed, before any data is moved.

        ``origin`` is metadata that a version gets when it is made, but that is no reason to make one. ``created_at`` is
        the time of a version that was made elsewhere before; None for now.
        """
        check_name(name)
        if tag is not None:
            check_tag(tag)
        self._refs = refs
        self._catalog = catalog
        self._user = user
        self._name = name
        self._metadata = attributes.check(metadata or {}, "the metadata")
        if description:
            self._metadata = attributes.check({**self._metadata, "description": description}, "the metadata")
        self._origin = attributes.check(attributes.merge(origin or {}, self._metadata), "the metadata")
        self._labels = attributes.check(labels or {}, "the labels")
        self._tag = tag
        self._provenance = provenance or {}
        self._force = force
        self._created_at = created_at
        self._head()

    def _head(self) -> Head | None:
        """Return the head of the dataset if it exists; refuse a name that can't be uploaded to."""
        try:
            return self._check(self._refs.find(self._name))
        except NotFoundError:
            return None

    def _check(self, head: Head) -> Head:
        require_dataset(head, to="upload")
        if head.name != self._name:
            raise ConflictError(
                f"{self._name!r} belongs to an unfinished rename of {head.name!r}",
                hint=f"finish it with `osmo dataset rename {head.name} {self._name}`, or try again when it is done",
            )
        return head

    def finish(self, result: TreeResult) -> UploadResult:
        """Make the version, unless the latest one is like it."""
        head = self._head()
        same = self._same(head, result) if head is not None and not self._force else None
        created = same is None
        if head is not None and same is not None:
            number = same.number
            head = self._refs.update_head(head.id, lambda head: self._attributes(head, number))
        else:
            head = head or self._check(self._refs.create_dataset(self._name, created_by=self._user))
            number = self._refs.commit_version(head.id, self._record(result), also=self._attributes).number
        version = self._catalog.resolve(self._refs.read_head(head.id)[0], str(number))
        totals = result.totals
        return UploadResult(
            version, created, result.new_bytes, totals.size, totals.files, result.reused, [*result.skipped]
        )

    def _same(self, head: Head, result: TreeResult) -> Version | None:
        try:
            latest = self._catalog.resolve(head, None)
        except NotFoundError:
            return None
        if latest.record.checksum != result.checksum.hex():
            return None
        return latest if attributes.merge(latest.metadata, self._metadata) == latest.metadata else None

    def _attributes(self, head: Head, number: int) -> Head:
        labels = attributes.check(attributes.merge(head.labels, self._labels), "the labels")
        tags = {**head.tags, self._tag: number} if self._tag else head.tags
        if labels == head.labels and tags == head.tags:
            return head
        return msgspec.structs.replace(head, labels=labels, tags=tags)

    def _record(self, result: TreeResult) -> Callable[[int, str], VersionRecord]:
        def build(number: int, write_id: str) -> VersionRecord:
            return VersionRecord(
                number=number,
                manifest=result.manifest.hex(),
                checksum=result.checksum.hex(),
                totals=result.totals,
                created_at=self._created_at or now(),
                created_by=self._user,
                write_id=write_id,
                new_bytes=result.new_bytes,
                metadata=self._origin,
                provenance=self._provenance,
            )

        return build
