"""From the changes of a writable folder to a version.

Decided here and only here: what the upper folder of an overlay says. Files and folders in it are new, or in place of
those of the version below; what is gone is said by a character device 0/0 of its name, a folder that was made anew by
an extended attribute; overlays of users, who may not do either everywhere, use files called ``.wh.NAME``. Only what is
in the upper folder is read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from casstore import hashing
from casstore.dataset import moving
from casstore.dataset.catalog import Catalog
from casstore.dataset.commit import Commit, until_made
from casstore.dataset.summary import UploadResult, Version
from casstore.errors import ConflictError, NotFoundError
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.scan import Source, describe

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket
    from casstore.repo.hold import Hold

__all__ = ["Changes", "commit_layer", "mark_of", "read_changes"]

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
_WHITEOUT, _OPAQUE_FILE = b".wh.", b".wh..wh..opq"


class Changes(NamedTuple):
    """What an upper folder says: paths that are gone, and folders of which nothing is left that was in them before.

    ``named``: names that begin with ``.wh.`` say so, too. ``files`` counts the files and links that are new or in
    another's place.
    """

    gone: frozenset[bytes]
    fresh: frozenset[bytes]
    named: bool
    files: int

    def keep(self, path: bytes) -> bool:
        """Whether this path of the version below still shows."""
        while path:
            if path in self.gone:
                return False
            path = path.rpartition(b"/")[0]
            if path in self.fresh:
                return False
        return True

    def hides(self, name: bytes, status: os.stat_result) -> bool:
        """Whether something in the upper folder only says that something is gone."""
        return _is_whiteout(status) or (self.named and name.startswith(_WHITEOUT))


def read_changes(upper: bytes, *, named: bool = False) -> Changes:
    """Read what an upper folder says. ``named``: it is of a user's overlay. ``SourceError`` when it can't be read."""
    gone: set[bytes] = set()
    fresh: set[bytes] = set()
    files = 0
    for path, status in _walk(upper):
        folder, _, name = path.rpartition(b"/")
        if _is_whiteout(status):
            gone.add(path)
        elif named and name == _OPAQUE_FILE:
            fresh.add(folder)
        elif named and name.startswith(_WHITEOUT):
            whole = name.removeprefix(_WHITEOUT)
            gone.add(folder + b"/" + whole if folder else whole)
        elif not stat.S_ISDIR(status.st_mode):
            files += 1
        elif _is_opaque(upper + b"/" + path):
            fresh.add(path)
    return Changes(frozenset(gone), frozenset(fresh), named, files)


def mark_of(upper: bytes) -> str:
    """Return a digest of the names and states of all that is in an upper folder: another one after any change."""
    hasher = hashing.Hasher()
    for path, status in _walk(upper):
        state = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        hasher.update(b"%d %b %r\n" % (len(path), path, state))
    return hasher.digest().hex()


def commit_layer(
    bucket: Bucket,
    base: Version,
    upper: bytes,
    *,
    named: bool = False,
    name: str | None = None,
    after: int | None = None,
    force: bool = False,
    description: str | None = None,
    metadata: dict[str, Any] | None = None,
    labels: dict[str, Any] | None = None,
    tag: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> UploadResult:
    """Make a version of ``base`` and the changes over it; of its dataset, or of the one called ``name``.

    ``after``: a version that was made of earlier changes over the same base. ``ConflictError`` when there is a version
    of the dataset that is newer than both, unless ``force``: the new version holds nothing of that one. When only times
    of files differ, that makes a version, too. Everything else is as with ``Bucket.upload``.
    """
    target = name or base.dataset
    commit = Commit(
        bucket.refs,
        Catalog(bucket.refs, bucket.name),
        target,
        bucket.user,
        description=description,
        metadata=metadata,
        labels=labels,
        tag=tag,
        provenance={"base": str(base)},
        force=False,
    )
    commit.derive(base)
    changes = read_changes(upper, named=named)
    keep = changes.keep if changes.gone or changes.fresh else None
    shown = progress or Silent()

    def once(hold: Hold) -> UploadResult:
        latest = None if force or target != base.dataset else _latest(bucket, base, after)
        source = Source(os.path.realpath(upper), b"", contents=True, hides=changes.hides)
        result = moving.transfer(
            bucket, target, [source], base=bucket.tree(base), keep=keep, hold=hold, threads=threads, progress=shown
        )
        # A time that was set is a change, too; that of a folder is not: every file that comes and goes sets it.
        touched = latest is not None and changes.files > 0 and result.manifest != latest.manifest
        return commit.finish(result, hold, base=latest, always=touched)

    return until_made(bucket.store, once, user=bucket.user, dataset=target, progress=shown)


def _latest(bucket: Bucket, base: Version, after: int | None) -> Version | None:
    """Return the latest version, which the changes are about; None when all are gone."""
    try:
        latest = bucket.resolve(base.dataset)
    except NotFoundError:
        return None
    if latest.dataset_id != base.dataset_id or latest.number not in {base.number, after}:
        raise ConflictError(
            f"{latest} is newer than {base}, which was changed here",
            hint="--force makes a version without what that one changed, --name one of another dataset",
        )
    return latest


def _walk(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield path and state of everything below a folder, folders before what is in them, names in order."""
    pending = [b""]
    while pending:
        folder = pending.pop()
        real = top + b"/" + folder if folder else top
        try:
            names = sorted(os.listdir(real))
        except FileNotFoundError:
            if not folder:
                raise describe(FileNotFoundError(2, "it is gone"), real) from None
            continue
        except OSError as error:
            raise describe(error, real) from None
        below: list[bytes] = []
        for name in names:
            path = folder + b"/" + name if folder else name
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(top + b"/" + path)
                yield path, status
                if stat.S_ISDIR(status.st_mode):
                    below.append(path)
        pending += reversed(below)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(folder: bytes) -> bool:
    for name in _OPAQUE:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name, follow_symlinks=False) == b"y":
                return True
    return False
