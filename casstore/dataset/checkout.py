"""Downloads, and the folders that they leave: what is in them, and how they become another version.

Decided here and only here: when a folder with content is one that a version was downloaded to, so that downloading
again touches only what differs; and what is remembered of a download. See ``casstore.transfer.checkouts``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from casstore.dataset.sources import matcher
from casstore.dataset.summary import DownloadResult, Version
from casstore.errors import CasstoreError, ConflictError, NotFoundError, UsageError
from casstore.model import Kind
from casstore.repo.refs import now
from casstore.repo.tree import Tree
from casstore.transfer.checkouts import SAMPLES, Checkout, Checkouts, Sample
from casstore.transfer.progress import Progress
from casstore.transfer.safefs import Confined, local_error, show

if TYPE_CHECKING:
    from casstore.cache.files import FileCache
    from casstore.dataset.bucket import Bucket
    from casstore.transfer.download import Cached, DownloadStats, Select
    from casstore.transfer.survey import LocalChange, Looker

__all__ = ["FolderStatus", "download", "find", "status"]


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """How a folder differs from ``version``. ``newest``: the latest version of its dataset, None when all are gone.

    ``unfinished``: an update of the folder was stopped. ``regexes``: the parts of the version that it holds; None for
    all of it.
    """

    version: Version
    changes: tuple[LocalChange, ...]
    newest: Version | None
    unfinished: bool = False
    regexes: tuple[str, ...] | None = None
    made_at: str | None = None


def find(state_dir: str | None, folder: str) -> Checkout | None:
    """Return what a folder is known to hold."""
    with Checkouts(state_dir) as known:
        return known.find(folder)


def status(
    bucket: Bucket,
    folder: str,
    *,
    against: Version | None = None,
    verify: bool = False,
    files: FileCache | None = None,
    progress: Progress | None = None,
) -> FolderStatus:
    """Compare a folder with the version that was downloaded to it, or with ``against``.

    Only files are read that were touched since, or all with ``verify``. ``files``: the cache that links may lead into.
    ``NotFoundError`` for a folder that is not known; ``ConflictError`` where the bucket has another store now.
    """
    from casstore.transfer.survey import Looker, survey  # noqa: PLC0415 - downloads to new folders do without

    with Checkouts(bucket.state_dir) as known:
        found = known.find(folder)
        select: Select | None = None
        others: list[Tree] = []
        if against is not None:
            version = against
            look = Looker(linked=files is not None, files=files)
            if found is not None and found.manifest == against.record.manifest:
                look = _look(known, found, files)
        elif found is None:
            raise NotFoundError(
                f"{show(folder)} is not known: nothing was downloaded to it from here",
                hint="compare it with a version by --against NAME[:TAG]",
            )
        else:
            version = _version_in(bucket, found)
            look = _look(known, found, files)
            select = _select(found.regexes)
            others = _pending(bucket, found)
        try:
            root = Confined.open(folder)
        except OSError as error:
            raise local_error(error, folder) from None
        with root:
            if verify:
                look = look._replace(since=None)
            changes = survey(root, bucket.tree(version), others=others, look=look, select=select, progress=progress)
    mine = found if against is None else None
    return FolderStatus(
        version,
        tuple(changes),
        _newest(bucket, version),
        bool(mine and mine.pending),
        mine.regexes if mine else None,
        mine.made_at if mine else None,
    )


def download(
    bucket: Bucket,
    name: str,
    dest: str,
    *,
    tag: str | None = None,
    regex: str | None = None,
    resume: bool = False,
    force: bool = False,
    unsafe_links: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    cached: Cached | None = None,
    remember: bool = True,
) -> DownloadResult:
    """Download a version to the folder ``dest``/``name``, or each member of a collection to one of its own.

    ``dest`` must exist. A folder that a version of the dataset was downloaded to before becomes the version that is
    asked for, and only what differs is touched: ``ConflictError`` for local changes that would be lost, unless
    ``force`` gives them up. What was selected then stays selected. Any other folder with content needs ``resume``. See
    ``update_tree`` and ``download_tree``.

    ``regex`` is matched at the start of paths. ``remember`` false leaves no trace of the download on this machine.
    """
    matcher(regex)  # refuses a wrong one
    versions = bucket.resolve_all(name, tag)
    if not os.path.isdir(dest):
        raise UsageError(f"{dest} is not a folder", hint="make it first, or choose another")
    folders = [os.path.join(dest, version.dataset) for version in versions]
    run = functools.partial(
        _Run, bucket, regex, resume, force, remember, cached, unsafe_links=unsafe_links, threads=threads,
        progress=progress,
    )  # fmt: skip
    with Checkouts(bucket.state_dir if remember else None) as known:
        runs = [run(known, version, folder) for version, folder in zip(versions, folders, strict=True)]
        done = [one.run() for one in runs]
    stats = [one for one, _ in done]
    return DownloadResult(
        tuple(versions),
        tuple(folders),
        sum(one.files for one in stats),
        sum(one.bytes for one in stats),
        sum(one.reused for one in stats),
        sum(one.written for one in stats),
        sum(one.cached for one in stats),
        sum(removed for _, removed in done),
    )


class _Run:
    """The download of one version to one folder. Making it refuses what can't be done."""

    def __init__(
        self,
        bucket: Bucket,
        regex: str | None,
        resume: bool,
        force: bool,
        remember: bool,
        cached: Cached | None,
        known: Checkouts,
        version: Version,
        folder: str,
        **options: Any,
    ) -> None:
        self._bucket = bucket
        self._known = known
        self._remember = remember
        self._version = version
        self._folder = folder
        self._cached = cached
        self._force = force
        self._options = options
        taken = os.path.lexists(folder) and not _is_empty(folder)
        found = known.find(folder) if taken else None
        ours = found is not None and (found.store, found.dataset_id) == (bucket.store.id, version.dataset_id)
        if taken and not resume and not ours:
            holds = f" and holds {found.dataset}:{found.version} of bucket {found.bucket}" if found is not None else ""
            raise ConflictError(
                f"{folder} is not empty{holds}",
                hint="use --resume to complete it, or download to another folder",
            )
        self._found = found if ours else None
        self._resume = resume
        self._update = taken and not resume
        regexes: tuple[str, ...] | None = None if regex is None else (regex,)
        if regexes is not None and self._found is not None:
            before = self._found.regexes
            regexes = None if before is None else tuple(dict.fromkeys((*before, *regexes)))
        self._regexes = regexes

    def run(self) -> tuple[DownloadStats, int]:
        """Do it; returns what was done, and how many files were removed."""
        removed = 0
        if self._update and self._found is not None:
            stats, removed = self._run_update(self._found)
        else:
            from casstore.transfer.download import download_tree  # noqa: PLC0415 - slow to load, as all that moves data

            if self._found is not None:
                self._begin(self._found)
            stats = download_tree(
                self._bucket.store,
                self._bucket.tree(self._version),
                self._folder,
                select=_select(self._regexes),
                resume=self._resume,
                cached=self._cached,
                **self._options,
            )
        self._bucket.stamp_use(self._version)
        self._put(stats)
        return stats, removed

    def _run_update(self, found: Checkout) -> tuple[DownloadStats, int]:
        from casstore.transfer.update import update_tree  # noqa: PLC0415 - slow to load, and few need it

        bucket = self._bucket
        try:
            bases = [bucket.store.tree(bytes.fromhex(found.manifest)), *_pending(bucket, found)]
        except NotFoundError:
            raise ConflictError(
                f"{found.dataset}:{found.version}, which is in {self._folder}, was deleted: nobody can tell what was "
                "changed there",
                hint="--resume makes the folder what is asked for, and overwrites what was changed",
            ) from None
        return update_tree(
            bucket.store,
            bases,
            bucket.tree(self._version),
            self._folder,
            look=_look(self._known, found, self._cached.files if self._cached is not None else None),
            begin=functools.partial(self._begin, found),
            before=_select(found.regexes),
            select=_select(self._regexes),
            force=self._force,
            cached=self._cached,
            **self._options,
        )

    def _begin(self, found: Checkout) -> None:
        """Note what the folder is going to be, in case that it does not come to that."""
        if self._known.find(self._folder) != found:
            raise ConflictError(f"another download to {self._folder} came between", hint="run the same command again")
        pending = tuple(dict.fromkeys((*found.pending, self._version.record.manifest)))
        self._known.put(self._folder, msgspec.structs.replace(found, pending=pending))
        self._known.flush()

    def _put(self, stats: DownloadStats) -> None:
        if not self._remember:
            return
        linked = self._cached is not None and self._cached.link
        if self._found is not None:
            linked = linked or self._found.linked
        version = self._version
        self._known.put(
            self._folder,
            Checkout(
                id=self._found.id if self._found is not None else os.urandom(8).hex(),
                store=self._bucket.store.id,
                bucket=self._bucket.name,
                dataset=version.dataset,
                dataset_id=version.dataset_id,
                version=version.number,
                manifest=version.record.manifest,
                made_at=now(),
                finished_ns=stats.finished_ns,
                regexes=self._regexes,
                linked=linked,
                samples=_samples(self._bucket.tree(version), _select(self._regexes), linked=linked),
            ),
        )
        self._known.flush()


def _look(known: Checkouts, found: Checkout, files: FileCache | None) -> Looker:
    from casstore.transfer.survey import Looker  # noqa: PLC0415 - as above

    return Looker(found.finished_ns, known, found.id, found.linked, files if found.linked else None)


def _version_in(bucket: Bucket, found: Checkout) -> Version:
    """Return the version that a folder holds."""
    if found.store != bucket.store.id:
        raise ConflictError(
            f"the folder holds {found.dataset}:{found.version} of bucket {found.bucket!r}, which has another store now",
            hint="compare it with a version by --against NAME[:TAG]",
        )
    try:
        head, _ = bucket.refs.read_head(found.dataset_id)
        return bucket.resolve(head.name, str(found.version))
    except NotFoundError:
        raise NotFoundError(
            f"the folder holds {found.dataset}:{found.version} of bucket {found.bucket!r}, which was deleted",
            hint="compare it with another version by --against NAME[:TAG]",
        ) from None


def _newest(bucket: Bucket, version: Version) -> Version | None:
    try:
        return bucket.resolve(version.dataset)
    except NotFoundError:
        return None


def _pending(bucket: Bucket, found: Checkout) -> list[Tree]:
    trees: list[Tree] = []
    for manifest in found.pending:
        try:
            trees.append(bucket.store.tree(bytes.fromhex(manifest)))
        except (CasstoreError, ValueError):
            continue  # deleted since: its files count as changed
    return trees


def _select(regexes: Sequence[str] | None) -> Select | None:
    if regexes is None:
        return None
    chosen: list[Callable[[bytes], bool]] = [one for one in map(matcher, regexes) if one is not None]
    return lambda path: any(one(path) for one in chosen)


def _samples(tree: Tree, select: Select | None, *, linked: bool) -> tuple[Sample, ...]:
    found: list[Sample] = []
    for entry in tree.entries():
        if entry.kind == Kind.FILE and entry.size and (select is None or select(entry.path)):
            found.append(Sample(entry.path, entry.size, None if linked else entry.mtime_ns))
            if len(found) == SAMPLES:
                break
    return tuple(found)


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False
