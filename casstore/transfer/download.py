"""Downloading a version: from its manifest to a folder.

Decided here and only here: in which order the entries of a version appear on disk, what of an existing folder is kept,
and what of an entry is restored. Directories come first, then files, then further names of files, then symbolic links,
so that nothing is ever written through a link; last the times and modes of the directories, the deepest first.

Whatever can't be restored faithfully fails the whole download, with the path in the message: there are no gaps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from casstore.errors import CasstoreError, ConflictError, FormatError, UsageError
from casstore.model import Entry, Kind
from casstore.repo.store import Store, workers
from casstore.repo.tree import Tree
from casstore.transfer.links import leads_out
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.restore import Restorer
from casstore.transfer.safefs import local_error, show
from casstore.transfer.stage import Landing

if TYPE_CHECKING:
    from casstore.cache.files import FileCache
    from casstore.transfer.place import Placer

__all__ = ["MEMORY", "Cached", "DownloadStats", "Select", "download_tree", "refuse_links_out", "write_entries"]

MEMORY = 128 << 20
"""Bytes in flight, by default; for an object store ``MEMORY_REMOTE``: a request should be worth its round trip."""
MEMORY_REMOTE = 256 << 20
THREADS_LOCAL, THREADS_REMOTE = 8, 5
_FILE, _DIRECTORY = int(Kind.FILE), int(Kind.DIRECTORY)  # plain numbers compare faster, once for each entry
_SPECIAL = stat.S_ISUID | stat.S_ISGID
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})

Select = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class DownloadStats:
    """What a download did. ``files`` and ``bytes`` are all that is there now; ``reused`` files were there before.

    ``written`` are the bytes that were written to disk, ``cached`` the files that this machine's cache had.
    ``finished_ns``: when all was written and right, by the clock of the file system; 0 where that is not known.
    """

    files: int = 0
    bytes: int = 0
    reused: int = 0
    written: int = 0
    directories: int = 0
    symlinks: int = 0
    cached: int = 0
    finished_ns: int = dataclasses.field(default=0, compare=False)


class Cached(NamedTuple):
    """The cache that files may come from. ``fill``: what is missing is put into it. ``link``: see ``Placer``."""

    files: FileCache
    fill: bool = False
    link: bool = False


def download_tree(
    store: Store,
    tree: Tree,
    dest: str | bytes,
    *,
    select: Select | None = None,
    resume: bool = False,
    unsafe_links: bool = False,
    special_bits: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    memory: int | None = None,
    cached: Cached | None = None,
) -> DownloadStats:
    """Write the version ``tree`` to the folder ``dest``, whose parent must exist.

    A folder that is missing or empty appears whole or not at all; what an interrupted download left beside it is
    continued with ``resume`` and thrown away without. A folder with content needs ``resume``: files with the size and
    the modification time of the version are kept, others are compared chunk by chunk and replaced where they differ,
    and files that the version does not know stay.

    ``select(path)`` false leaves a file or link out, and directories that hold none then. ``unsafe_links`` creates
    symbolic links that lead out of the folder too. ``special_bits`` restores setuid and setgid, which are dropped
    otherwise. ``memory`` bounds the bytes in flight: ``MEMORY`` or ``MEMORY_REMOTE`` of them, by default.

    Raises ``ConflictError`` when something is in the way, ``UsageError`` for links that lead out, ``IntegrityError``
    with the path of a file whose stored bytes are missing or damaged, ``OutOfSpaceError``, ``AccessError`` and
    ``StorageError``.
    """
    progress = progress or Silent()
    if not unsafe_links:
        refuse_links_out(tree, select)
    with Landing(dest, tree.id, resume=resume) as landing:
        _warn_of_space(tree, landing, progress, select)
        try:
            stats = write_entries(
                store,
                tree,
                landing,
                select=select,
                unsafe_links=unsafe_links,
                special_bits=special_bits,
                progress=progress,
                threads=threads,
                memory=memory,
                cached=cached,
            )
        except CasstoreError as error:
            if error.hint is None:
                error.hint = "what is complete is kept: run the same command again with --resume"
            raise
        if landing.in_place and not landing.fresh:
            # What was kept for its size and time was not compared: nobody knows when it was made.
            stats = dataclasses.replace(stats, finished_ns=0)
        landing.finish()
    return stats


def write_entries(
    store: Store,
    tree: Tree,
    landing: Landing,
    *,
    entries: Iterable[Entry] | None = None,
    right: Container[bytes] = (),
    select: Select | None = None,
    unsafe_links: bool = False,
    special_bits: bool = False,
    progress: Progress,
    threads: int | None = None,
    memory: int | None = None,
    cached: Cached | None = None,
) -> DownloadStats:
    """Write ``entries`` of a version (all of them by default), in the order of its manifest, to where it lands.

    ``right``: files that are known to have the right content, and get their attributes only. The rest is as with
    ``download_tree``; putting the result into its place is left to the caller.
    """
    local = store.backend.capabilities.local
    memory = memory or (MEMORY if local else MEMORY_REMOTE)
    threads = threads or (min(THREADS_LOCAL, workers()) if local else THREADS_REMOTE)
    mask = 0o7777 if special_bits else 0o7777 & ~_SPECIAL
    with contextlib.ExitStack() as stack:
        restorer = Restorer(store, tree, landing, progress, threads=threads, memory=memory, mode_mask=mask)
        stack.callback(restorer.close)
        placer = None
        if cached is not None:
            from casstore.transfer.place import Placer  # noqa: PLC0415 - most downloads do without

            placer = Placer(cached.files, tree, landing, restorer, fill=cached.fill, link=cached.link, threads=threads)
            stack.callback(placer.close)
        download = _Download(tree, landing, restorer, progress, select, unsafe_links=unsafe_links)
        download.placer, download.right = placer, right
        stats = download.run(tree.entries() if entries is None else entries)
        return dataclasses.replace(
            stats, cached=placer.placed if placer is not None else 0, finished_ns=landing.clock()
        )


def refuse_links_out(tree: Tree, select: Select | None) -> None:
    """Look at all links before anything is written."""
    if not tree.totals.symlinks:
        return
    links = {entry.path: entry.target for entry in tree.entries() if entry.kind == Kind.SYMLINK}
    wanted = links if select is None else {path for path in links if select(path)}
    _raise_links_out([path for path in wanted if leads_out(path, links)], links)


def _raise_links_out(found: list[bytes], links: dict[bytes, bytes]) -> None:
    if found:
        some = ", ".join(f"{show(path)} -> {show(links[path])}" for path in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UsageError(
            f"symbolic links lead out of the dataset: {some}{more}",
            hint="allow them with --unsafe-links, or leave them out with --regex; nothing was written",
        )


def _warn_of_space(tree: Tree, landing: Landing, progress: Progress, select: Select | None) -> None:
    if select is None and landing.fresh:
        room = os.fstatvfs(landing.root.descriptor)
        free = room.f_bavail * room.f_frsize
        if tree.totals.size > free:
            progress.warn(f"the version has {tree.totals.size} bytes, and only {free} are free at the destination")


class _Download:
    """One pass over a version. All paths that were seen are checked against each other as they come."""

    def __init__(
        self,
        tree: Tree,
        landing: Landing,
        restorer: Restorer,
        progress: Progress,
        select: Select | None,
        *,
        unsafe_links: bool,
    ) -> None:
        self._tree = tree
        self._landing = landing
        self._root = landing.root
        self._restorer = restorer
        self._fresh = landing.fresh
        self._folds = landing.folds
        self._progress = progress
        self._select = select
        self._unsafe_links = unsafe_links
        self._directories: dict[bytes, Entry] = {}
        self._made: set[bytes] = {b""}
        self._symlinks: dict[bytes, Entry] = {}
        self._first: dict[int, Entry] = {}
        self._further: list[tuple[Entry, Entry]] = []
        self._parent: bytes | None = None
        self._now = b""
        self._folded: dict[str, bytes] = {}
        self._files = self._size = self._kept = self._kept_size = 0
        self.placer: Placer | None = None
        self.right: Container[bytes] = ()

    def run(self, entries: Iterable[Entry]) -> DownloadStats:
        try:
            for entry in entries:
                self._take(entry)
            self._tell()
            self._progress.listed()
            if self.placer is not None:
                self.placer.drain()
            self._restorer.drain()
            self._write_deferred()
            self._link()
            self._restorer.drain()
            self._make_symlinks()
            self._finish_directories()
        except OSError as error:
            raise local_error(error, self._now) from None
        counts = self._restorer.counts
        return DownloadStats(
            counts.files,
            counts.size,
            counts.reused,
            counts.written,
            len(self._made) - 1,
            len(self._symlinks),
        )

    # --- the entries, in the order of the manifest

    def _take(self, entry: Entry) -> None:
        path = self._now = entry.path
        kind = entry.kind
        if kind == _DIRECTORY:
            self._directories[path] = entry
            if self._select is not None:
                return  # made when something in it is wanted
        elif self._select is not None and not self._select(path):
            return
        parent = path.rpartition(b"/")[0]
        if parent != self._parent:
            self._enter(parent)
        if self._folds:
            self._check_folded(entry)
        if kind == _FILE:
            self._take_file(entry)
        elif kind == _DIRECTORY:
            self._make_directory(path)
        else:
            self._symlinks[path] = entry

    def _enter(self, parent: bytes) -> None:
        """Make sure that a directory is there before something is put into it."""
        self._parent = parent
        self._folded = {}
        missing = []
        while parent not in self._made:
            if parent in self._symlinks:
                raise FormatError(f"{show(self._now)} is inside of {show(parent)}, which is a symbolic link")
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for path in reversed(missing):
            self._make_directory(path)

    def _make_directory(self, path: bytes) -> None:
        entry = self._directories.get(path)
        mode = self._restorer.mode_of(entry) if entry is not None else 0o777
        made = self._root.mkdir(path, mode | 0o700)
        if not made:
            if self._landing.fresh:
                raise self._collision(path)
            status = self._root.stat(path)
            if status is not None and status.st_mode & 0o700 != 0o700:
                self._root.set_mode(path, stat.S_IMODE(status.st_mode) | 0o700)
        self._made.add(path)

    def _check_folded(self, entry: Entry) -> None:
        name = os.fsdecode(entry.name)
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        other = self._folded.setdefault(folded, entry.path)
        if other != entry.path:
            raise self._collision(entry.path, other)

    def _collision(self, path: bytes, other: bytes | None = None) -> ConflictError:
        with_what = f"{show(other)} are" if other is not None else "another name of the version are"
        return ConflictError(
            f"{show(path)} and {with_what} the same to the file system of the destination",
            hint="download to a file system that tells them apart, or select one of them with --regex",
        )

    def _take_file(self, entry: Entry) -> None:
        if entry.link:
            first = self._first.setdefault(entry.link, entry)
            if first is not entry:
                if (first.content, first.size) != (entry.content, entry.size):
                    raise FormatError(f"{show(entry.path)} and {show(first.path)} can't be one file: they differ")
                self._further.append((first, entry))
                return
        self._files += 1
        self._size += entry.size
        if self._files >= 1000:
            self._tell()
        if self._fresh:
            if self.placer is None or not self.placer.take(entry):
                self._restorer.add((entry, False))
            return
        status = self._root.stat(entry.path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise ConflictError(f"{show(entry.path)} is a folder here, and a file in the version")
        right = status is not None and stat.S_ISREG(status.st_mode) and entry.path in self.right
        if status is not None and right and (status.st_nlink == 1 or not entry.link):
            if status.st_nlink == 1:  # other names may be elsewhere: then they are not ours to change
                self._root.set_mode(entry.path, self._restorer.mode_of(entry))
                self._root.set_times(entry.path, entry.mtime_ns)
            self._restorer.keep(entry)
        elif status is not None and self._landing.trusted and self._is_complete(status, entry):
            self._restorer.keep(entry)
        elif self.placer is None or not self.placer.take(entry):
            self._restorer.add((entry, status is not None))

    def _is_complete(self, status: os.stat_result, entry: Entry) -> bool:
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
            return False
        mode = self._restorer.mode_of(entry)
        if stat.S_IMODE(status.st_mode) != mode:
            if status.st_nlink > 1:
                return False  # another name of it may be elsewhere: its mode is not ours to change
            self._root.set_mode(entry.path, mode)
        return True

    def _tell(self) -> None:
        self._progress.expect(self._files, self._size)
        self._files = self._size = 0

    # --- what waits until all files are there

    def _write_deferred(self) -> None:
        while self._restorer.deferred:
            self._restorer.add_large(self._restorer.deferred.pop(), exists=True)
        self._restorer.drain()

    def _link(self) -> None:
        copied = 0
        for first, entry in self._further:
            self._now = entry.path
            if not self._make_link(first, entry):
                copied += 1
                self._restorer.add((entry, False))
        if copied:
            self._progress.warn(f"{copied} further names of files became copies: hard links are not possible here")

    def _make_link(self, first: Entry, entry: Entry) -> bool:
        if not self._landing.fresh:
            status, original = self._root.stat(entry.path), self._root.stat(first.path)
            if status is not None and original is not None and os.path.samestat(status, original):
                self._restorer.keep(entry)
                return True
            self._root.remove(entry.path)
        self._progress.expect(1, entry.size)
        try:
            self._root.link(first.path, entry.path)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        self._restorer.keep(entry, reused=False)
        return True

    def _make_symlinks(self) -> None:
        links = {path: entry.target for path, entry in self._symlinks.items()}
        for path, entry in self._symlinks.items():
            self._now = path
            # Seen before anything was written, if the totals of the manifest tell the truth.
            if not self._unsafe_links and self._select is None and leads_out(path, links):
                _raise_links_out([path], links)
            if not entry.target or b"\0" in entry.target:
                raise FormatError(f"{show(path)}: a symbolic link with an illegal target")
            if self._landing.fresh or not self._is_link_to(path, entry.target):
                if not self._landing.fresh:
                    self._root.remove(path)
                self._root.symlink(entry.target, path)
            self._root.set_times(path, entry.mtime_ns)

    def _is_link_to(self, path: bytes, target: bytes) -> bool:
        status = self._root.stat(path)
        if status is None or not stat.S_ISLNK(status.st_mode):
            return False
        return self._root.readlink(path) == target

    def _finish_directories(self) -> None:
        for path in self._deepest_first():
            entry = self._directories[path]
            self._now = path
            mode = self._restorer.mode_of(entry)
            if not self._landing.fresh or mode & self._landing.lost or mode & 0o700 != 0o700 or mode & _SPECIAL:
                # setgid that was inherited from the folder above is how groups share folders: it stays.
                self._root.set_mode(path, mode, keep=stat.S_ISGID)
            self._root.set_times(path, entry.mtime_ns)

    def _deepest_first(self) -> Iterator[bytes]:
        """Yield the directories that were made, those inside of others first: a mode may close the way to them."""
        return (path for path in reversed(self._directories) if path in self._made)
