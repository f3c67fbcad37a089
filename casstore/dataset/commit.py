"""From an uploaded tree to a version.

Decided here and only here: when an upload makes no new version, what is checked before its data is moved, and what is
done when the ground that it was built on has gone: it is built again, a few times.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from casstore.dataset import attributes
from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.ref import check_name, check_tag
from casstore.dataset.summary import UploadResult, Version
from casstore.errors import CasstoreError, ConflictError, NotFoundError
from casstore.model import Head, VersionRecord
from casstore.repo.hold import GoneError
from casstore.repo.refs import Refs, now
from casstore.repo.versions import DeletedError

if TYPE_CHECKING:  # loading the upload for its result's type would slow every other command down
    from casstore.repo.hold import Hold
    from casstore.repo.store import Store
    from casstore.transfer.progress import Progress
    from casstore.transfer.upload import TreeResult

__all__ = ["REFERENCES", "Commit", "until_made"]

REFERENCES = "references"
"""Key of a version's provenance: which files of it are not in the store, how many bytes, and where they are."""

_REBASES = 64
"""How often an update is done whose base is no longer the latest version: of so many at once, each gets its turn."""
_COLLECTED = "some data that was there already was collected as garbage meanwhile: storing it again"

_T = TypeVar("_T")


class _OutdatedError(ConflictError):
    """Another version came between an update and the one that it started from."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="others make versions faster than this update can: try again")


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

    def derive(self, base: Version) -> None:
        """Note what the version that this one starts from refers to: the files that both have still do."""
        own = {key: value for key, value in self._provenance.items() if key != REFERENCES}
        inherited = base.record.provenance.get(REFERENCES)
        self._provenance = own if inherited is None else {**own, REFERENCES: inherited}

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

    def finish(
        self, result: TreeResult, hold: Hold, *, base: Version | None = None, always: bool = False
    ) -> UploadResult:
        """Make the version, unless the latest one is like it. To be called within ``until_made``.

        ``base``: the version that must still be the latest one. ``always``: make a version all the same.
        """
        head = self._head()
        same = self._same(head, result) if head is not None and not (self._force or always) else None
        created = same is None
        if head is not None and same is not None:
            number = same.number
            head = self._refs.update_head(head.id, lambda head: self._attributes(head, number))
        elif head is not None:
            number = self._make(head, result, hold, base)
        else:
            head = self._check(self._refs.create_dataset(self._name, created_by=self._user))
            try:
                number = self._make(head, result, hold, base)
            except CasstoreError:
                self._take_back(head)
                raise
        version = self._catalog.resolve(self._refs.read_head(head.id)[0], str(number))
        totals = result.totals
        return UploadResult(
            version, created, result.new_bytes, totals.size, totals.files, result.reused, [*result.skipped]
        )

    def _make(self, head: Head, result: TreeResult, hold: Hold, base: Version | None) -> int:
        def build(number: int, write_id: str) -> VersionRecord:
            if base is not None:
                self._require_latest(head.id, base, number)
            return self._record(result, hold, number, write_id)

        try:
            return self._refs.commit_version(
                head.id, build, also=self._attributes, validate=lambda _: hold.check(result.manifest)
            ).number
        except DeletedError:
            if head.last_version:
                raise
            # A dataset that came to be for its first version: one without any is collected as garbage, too.
            raise GoneError(0) from None

    def _require_latest(self, dataset_id: str, base: Version, number: int) -> None:
        """Refuse a number that another version comes before: a record is there for each number below a free one."""
        if dataset_id == base.dataset_id and number == base.number + 1:
            return
        head, _ = self._refs.read_head(dataset_id)
        between = [other for other in self._catalog.ready(head) if base.number < other < number]
        if between or dataset_id != base.dataset_id:
            newer = between[-1] if between else number
            raise _OutdatedError(
                f"version {newer} of {self._name!r} was made while this one was built on {base.number}"
            )

    def _take_back(self, head: Head) -> None:
        """Free the name of a dataset that came to be for a version that can't be made."""

        def choose(_: Head, active: list[int]) -> list[int]:
            if active:
                raise ConflictError(f"{self._name!r} is somebody else's by now")
            return []

        with contextlib.suppress(CasstoreError):
            self._refs.delete_versions(head.id, choose)

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

    def _record(self, result: TreeResult, hold: Hold, number: int, write_id: str) -> VersionRecord:
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
            lease=hold.lease_id,
        )


def until_made(
    store: Store,
    once: Callable[[Hold], _T],
    *,
    kind: str = "upload",
    user: str,
    dataset: str,
    progress: Progress,
    again: Callable[[], None] = lambda: None,
) -> _T:
    """Return what ``once(hold)`` returns, which stores a tree and ends with ``Commit.finish``.

    It is done again when what it relied on was collected as garbage before the commit, and when the version that it
    started from is no longer the latest; ``again`` is called before.
    """
    from casstore.repo.hold import Hold  # noqa: PLC0415 - only commands that store something need it

    def collected() -> None:
        progress.warn(_COLLECTED)
        again()

    with Hold(store, kind=kind, user=user, dataset=dataset) as hold:
        for attempt in range(_REBASES):
            try:
                return hold.until_whole(lambda: once(hold), again=collected)
            except _OutdatedError as error:
                if attempt == _REBASES - 1:
                    raise
                progress.warn(f"{error.message}: starting again from that one")
                again()
    raise AssertionError("unreachable")
