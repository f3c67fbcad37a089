"""All operations on the datasets of one store: the facade that commands and servers are written against.

Decided here and only here: which operations there are, what they take, and what each checks before it starts.
Names are plain names in this bucket; ``tag`` is a tag or a version number, None the latest version.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from casstore.dataset import moving
from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.collections import Collections
from casstore.dataset.commit import Commit, until_made
from casstore.dataset.ref import LATEST, check_name, parse_ref
from casstore.dataset.sources import matcher, parse_additions, parse_mixed
from casstore.dataset.summary import (
    DatasetInfo,
    DatasetSummary,
    DeleteResult,
    DownloadResult,
    MemberInfo,
    QueryResult,
    UploadResult,
    Version,
)
from casstore.errors import CasstoreError, SourceError, UsageError
from casstore.model import DatasetType, Entry, Head, VersionState
from casstore.repo.refs import Refs, now
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.progress import Progress, Silent

if TYPE_CHECKING:
    from casstore.dataset.diff import Diff
    from casstore.remote.credentials import CredentialSource
    from casstore.repo.hold import Hold
    from casstore.repo.verify import Report, Watcher
    from casstore.transfer.journal import Unfinished

__all__ = ["Bucket"]

# What one operation alone needs is imported by it: a command runs one of them, and starts as fast as that one loads.

_STAMP_EVERY = timedelta(hours=1)


class Bucket:
    """The datasets and collections of one store, as one user sees and changes them. Thread-safe."""

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        user: str,
        state_dir: str | None = None,
        cache_dir: str | None = None,
        credentials: CredentialSource | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """``name`` is what this user calls the bucket, ``user`` is written into what is created.

        ``state_dir`` is where interrupted uploads leave word for the next one, ``cache_dir`` where it is
        remembered which files were uploaded unchanged before; without them uploads do more work. ``credentials`` are
        for sources in object storage; without them the environment decides. ``warn`` is told what was left out of an
        answer because it can't be read; without it the logger ``casstore`` is.
        """
        self.store = store
        self.name = name
        self.user = user
        self.refs = Refs(store.backend)
        self.state_dir = state_dir
        self.cache_dir = cache_dir
        self.credentials = credentials
        self._catalog = Catalog(self.refs, name, warn)
        self._collections = Collections(self.refs, self._catalog, name)

    # ---- data in and out

    def upload(
        self,
        name: str,
        sources: Sequence[str],
        *,
        regex: str | None = None,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        labels: dict[str, Any] | None = None,
        tag: str | None = None,
        resume: bool = False,
        force_new_version: bool = False,
        provenance: dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> UploadResult:
        """Upload files as a new version; the dataset is created with its first one.

        Of equal paths the earlier source wins. ``regex`` is matched at the start of paths inside the version.
        When the content is that of the latest version, and ``metadata`` and ``description`` say nothing that
        its metadata does not say already, no version is made (``created`` is False) unless
        ``force_new_version``. ``origin`` is more metadata, which is no reason for a new version. ``labels``
        are merged into the dataset's; ``tag`` is set on the version.
        Nothing is changed when this raises.
        """
        parsed = parse_mixed(sources)
        if not parsed:
            raise UsageError("nothing to upload", hint="name a file or a folder")
        commit = Commit(
            self.refs,
            self._catalog,
            name,
            self.user,
            description=description,
            metadata=metadata,
            labels=labels,
            tag=tag,
            provenance=moving.provenance(parsed, provenance),
            force=force_new_version,
            origin=origin,
        )
        select = matcher(regex, named=parsed)
        shown = progress or Silent()
        self._check_resume(shown, resume=resume)

        def once(hold: Hold) -> UploadResult:
            result = moving.transfer(self, name, parsed, select=select, hold=hold, threads=threads, progress=shown)
            if select is not None and not result.totals.files and not result.totals.symlinks:
                raise SourceError(f"the regular expression {regex!r} matches no file", hint="nothing was uploaded")
            return commit.finish(result, hold)

        return until_made(self.store, once, user=self.user, dataset=name, progress=shown)

    def update(
        self,
        name: str,
        *,
        tag: str | None = None,
        add: Sequence[str] = (),
        remove: str | None = None,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        labels: dict[str, Any] | None = None,
        set_tag: str | None = None,
        resume: bool = False,
        force_new_version: bool = False,
        provenance: dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> UploadResult:
        """Make a new version from the one that ``tag`` names, without the paths that match ``remove``, plus
        ``add``.

        ``add`` are ``SOURCE[:DEST]``; they win over what had the same path. ``set_tag`` is set on the new
        version. Where no ``tag`` names the version to start from, it is the latest one to the end: when somebody else
        makes another one meanwhile, the update is done again over that. Everything else is as with ``upload``.
        """
        if not add and not remove:
            raise UsageError("nothing to do", hint="name what to add, what to remove, or both")
        parsed = parse_additions(add)
        commit = Commit(
            self.refs,
            self._catalog,
            name,
            self.user,
            description=description,
            metadata=metadata,
            labels=labels,
            tag=set_tag,
            provenance=moving.provenance(parsed, provenance),
            force=force_new_version,
            origin=origin,
        )
        dropped = matcher(remove)
        keep = None if dropped is None else lambda path: not dropped(path)
        shown = progress or Silent()
        self._check_resume(shown, resume=resume)

        def once(hold: Hold) -> UploadResult:
            base = self.resolve(name, tag)
            commit.derive(base)
            result = moving.transfer(
                self, name, parsed, base=self.tree(base), keep=keep, hold=hold, threads=threads, progress=shown
            )
            return commit.finish(result, hold, base=base if tag in (None, LATEST) else None)

        return until_made(self.store, once, user=self.user, dataset=name, progress=shown)

    def _check_resume(self, progress: Progress, *, resume: bool) -> None:
        if resume and not any(self.unfinished()):
            progress.warn("there is no interrupted upload to continue: uploading from the start")

    def unfinished(self, name: str | None = None) -> list[Unfinished]:
        """Return this machine's interrupted uploads to this store, newest first; to one dataset when named."""
        if self.state_dir is None:
            return []
        from casstore.transfer import journal

        found = journal.unfinished(self.state_dir, self.store.id)
        return [upload for upload in found if name is None or upload.header.dataset == name]

    def download(
        self,
        name: str,
        dest: str,
        *,
        tag: str | None = None,
        regex: str | None = None,
        resume: bool = False,
        unsafe_links: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> DownloadResult:
        """Download a version to the folder ``dest``/``name``, or each member of a collection to one of its
        own.

        ``dest`` must exist. ``regex`` is matched at the start of paths. See ``download_tree`` for what
        happens to a folder that is there already, and ``casstore.dataset.checkout`` for downloads that are
        remembered, so that the next one touches only what differs.
        """
        from casstore.dataset.checkout import download

        return download(
            self,
            name,
            dest,
            tag=tag,
            regex=regex,
            resume=resume,
            unsafe_links=unsafe_links,
            threads=threads,
            progress=progress,
            remember=False,
        )

    def stamp_use(self, version: Version) -> None:
        """Note that a version was used: once an hour at most, and never at the cost of the download."""
        last = version.state.last_used
        try:
            if last is not None and datetime.now(UTC) - datetime.fromisoformat(last) < _STAMP_EVERY:
                return

            def stamp(head: Head) -> Head:
                state = head.versions.get(version.number, VersionState())
                used = msgspec.structs.replace(state, last_used=now())
                return msgspec.structs.replace(head, versions={**head.versions, version.number: used})

            self.refs.try_update_head(version.dataset_id, stamp)
        except (CasstoreError, ValueError, TypeError):
            return  # no right to write, a time that is none: using a version takes neither

    # ---- looking

    def resolve(self, name: str, tag: str | None = None) -> Version:
        """Return the immutable version that a tag or number means: a READY one, or ``NotFoundError``."""
        return self._catalog.resolve(require_dataset(self.refs.find(name), to="choose a version of"), tag)

    def resolve_all(self, name: str, tag: str | None = None) -> builtins.list[Version]:
        """Return the version of a dataset, or those of all members of a collection, sorted by name."""
        return self._catalog.resolve_all(self.refs.find(name), tag)

    def tree(self, version: Version) -> Tree:
        """Open the files of a version."""
        return self.store.tree(version.manifest)

    def list(
        self,
        *,
        name: str | None = None,
        users: Sequence[str] | None = None,
        count: int | None = None,
        order: str = "asc",
        type: DatasetType | None = None,  # noqa: A002 - the word of the format
    ) -> builtins.list[DatasetSummary]:
        """Return datasets with a READY version, and collections, by the time of their last version.

        ``name`` is part of the name. ``users``: only what one of them uploaded a version of, or collected;
        None for everybody's. The newest ``count`` are returned, oldest first unless ``order`` is ``"desc"``.
        """
        return self._catalog.summaries(name=name, users=users, count=count, order=_order(order), type=type)

    def info(
        self, name: str, *, tag: str | None = None, all_states: bool = False, count: int = 100, order: str = "asc"
    ) -> DatasetInfo:
        """Return a dataset with its newest ``count`` READY versions (any, with ``all_states``), or a
        collection.

        With ``tag`` there is that version alone, whatever its state.
        """
        head = self.refs.find(name)
        return self._catalog.info(head, tag=tag, all_states=all_states, count=count, order=_order(order))

    def entries(self, name: str, *, tag: str | None = None, regex: str | None = None) -> Iterator[Entry]:
        """Yield the entries of a version in order; those of a collection with the dataset's name before the path."""
        head = self.refs.find(name)
        select = matcher(regex)
        for version in self._catalog.resolve_all(head, tag):
            prefix = os.fsencode(version.dataset) + b"/" if head.type == DatasetType.COLLECTION else b""
            for entry in self.tree(version).entries():
                if select is None or select(entry.path):
                    yield msgspec.structs.replace(entry, path=prefix + entry.path) if prefix else entry

    def query(self, text: str) -> QueryResult:
        """Return what fits a query; ``NotFoundError`` when nothing does. See ``casstore.dataset.query``."""
        from casstore.dataset import query

        return query.run(query.parse(text), self._catalog)

    def diff(self, old: Version, new: Version) -> Diff:
        """Return what was added, removed, changed and moved from one version to another, of any two datasets."""
        from casstore.dataset.diff import diff_trees

        return diff_trees(self.tree(old), self.tree(new))

    def verify(self, name: str | None = None, *, tag: str | None = None, watcher: Watcher | None = None) -> Report:
        """Read every byte of the store, or of one version (all members of a collection), and report what is wrong."""
        from casstore.repo.verify import Report, verify_store, verify_tree

        if name is None:
            return verify_store(self.store, watcher)
        total = Report()
        for version in self._catalog.resolve_all(self.refs.find(name), tag):
            report = verify_tree(self.store, self.tree(version), watcher)
            total.objects += report.objects
            total.size += report.size
            total.problems += report.problems
        return total

    # ---- changing what is said about data

    def update_tags(
        self,
        name: str,
        *,
        set: Sequence[str] = (),  # noqa: A002 - the word of the command
        delete: Sequence[str] = (),
        tag: str | None = None,
    ) -> Version:
        """Delete tags from a version, then set tags on it, and return it. A tag that is elsewhere moves.

        ``NotFoundError`` for a tag to delete that is not on this version.
        """
        from casstore.dataset.tagging import change_tags

        return change_tags(self.refs, self._catalog, name, set=set, delete=delete, tag=tag)

    def set_tags(self, name: str, tags: Sequence[str], *, tag: str | None = None) -> Version:
        """Set tags on a version and return it."""
        return self.update_tags(name, set=tags, tag=tag)

    def delete_tags(self, name: str, tags: Sequence[str], *, tag: str | None = None) -> Version:
        """Delete tags from a version and return it."""
        return self.update_tags(name, delete=tags, tag=tag)

    def update_labels(
        self,
        name: str,
        *,
        set: dict[str, Any] | None = None,  # noqa: A002 - the word of the command
        delete: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Delete dotted keys from the labels of a dataset or collection, merge ``set`` into them, return them."""
        what = f"the labels of {name!r}"

        from casstore.dataset import attributes

        def change(head: Head) -> Head:
            labels = attributes.change(head.labels, what, delete=delete, set=set)
            return head if labels == head.labels else msgspec.structs.replace(head, labels=labels)

        return self.refs.update_head(self.refs.find(name).id, change).labels

    def update_metadata(
        self,
        name: str,
        tag: str | None,
        *,
        set: dict[str, Any] | None = None,  # noqa: A002 - the word of the command
        delete: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The same for the metadata of a version, which must be named."""
        if tag is None:
            raise UsageError(f"name the version of {name!r} whose metadata is meant", hint=f"write {name}:TAG")
        version = self.resolve(name, tag)
        what = f"the metadata of {version}"
        from casstore.dataset import attributes

        def change(head: Head) -> Head:
            state = head.versions.get(version.number, VersionState())
            before = version.record.metadata if state.metadata is None else state.metadata
            after = attributes.change(before, what, delete=delete, set=set)
            if after == before:
                return head
            changed = msgspec.structs.replace(state, metadata=after)
            return msgspec.structs.replace(head, versions={**head.versions, version.number: changed})

        head = self.refs.update_head(version.dataset_id, change)
        state = head.versions.get(version.number, VersionState())
        return version.record.metadata if state.metadata is None else state.metadata

    def rename(self, name: str, new_name: str) -> None:
        """Give a dataset or collection another name in this bucket."""
        ref = parse_ref(new_name)
        if ref.bucket not in (None, self.name):
            raise UsageError(
                f"{name!r} can't be moved to bucket {ref.bucket!r} by renaming it", hint="download and upload it"
            )
        if ref.tag is not None:
            raise UsageError(f"{new_name!r}: a name has no tag", hint="a rename is about all versions")
        self.refs.rename(check_name(name), ref.name)

    def delete(
        self, name: str, *, tag: str | None = None, all_versions: bool = False, force: bool = False
    ) -> DeleteResult:
        """Delete a version (the latest by default), all of them, or a collection.

        With its last version the dataset goes, and its name is free. A version that a collection contains is
        a ``ConflictError``, unless ``force`` takes it out of the collection first. The space comes back when
        garbage is collected.
        """
        from casstore.dataset.deletion import delete

        return delete(
            self.refs, self._catalog, self._collections, name, tag=tag, all_versions=all_versions, force=force
        )

    def collect(self, name: str, members: Sequence[str]) -> builtins.list[MemberInfo]:
        """Create a collection of versions (``name[:tag]``, or other collections) and return its members."""
        return self._catalog.members(self._collections.create(check_name(name), members, self.user))

    def recollect(self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> builtins.list[MemberInfo]:
        """Remove members, then add members, and return those that there are; without any the collection is gone."""
        return self._catalog.members(self._collections.change(name, add, remove))


def _order(order: str) -> str:
    if order not in ("asc", "desc"):
        raise UsageError(f"the order is asc or desc, not {order[:20]!r}")
    return order
