"""What differs between a folder and the version that was downloaded to it.

Decided here and only here: when a file counts as changed. It is not read when its size and modification time are those
of the version and it was not touched since the download, nor when it was read in just this state before. Modification
times alone are no change, as between versions. What the version does not know is told, a whole folder of it as one.

Links are never followed, whoever put them there.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

from casstore.cache.files import FileCache, content_id
from casstore.model import Entry, Kind, sort_key
from casstore.repo.store import workers
from casstore.repo.tree import Tree
from casstore.transfer.checkouts import Checkouts
from casstore.transfer.openfile import found
from casstore.transfer.place import LINK_MODE
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.safefs import Confined, local_error
from casstore.transfer.scan import state_of
from casstore.transfer.stage import INSIDE

__all__ = ["LocalChange", "Looker", "survey"]

_BATCH = 1024
_PLAIN = 0o1777
"""Permission bits that downloads restore."""


class LocalChange(NamedTuple):
    """One path that is not as in the version: ``added``, ``modified`` or ``removed``.

    ``what`` tells of a modified one which of ``type``, ``content``, ``target``, ``mode`` differ, or that it is
    ``unreadable``. ``kind`` is that of what is there, else of what was; None for what no version can hold.
    """

    status: str
    path: bytes
    kind: Kind | None
    what: tuple[str, ...] = ()


class Looker(NamedTuple):
    """How files are looked at.

    ``since``: what was touched after this moment (ns, by the clock of the file system) may have been changed; None for
    nothing is known. ``memory`` and ``key``: where it is kept what was read. ``linked``: files may be links into a
    cache, which ``files`` is when it is there.
    """

    since: int | None = None
    memory: Checkouts | None = None
    key: str = ""
    linked: bool = False
    files: FileCache | None = None


def survey(
    root: Confined,
    base: Tree,
    *,
    others: Sequence[Tree] = (),
    look: Looker,
    select: Callable[[bytes], bool] | None = None,
    progress: Progress | None = None,
) -> list[LocalChange]:
    """Compare a folder with ``base``, and return what differs, in order.

    What is as in one of ``others`` is no difference. ``select`` false leaves a file or link of a version out.
    """
    with _Surveyor(root, base, others, look, select, progress or Silent()) as surveyor:
        return surveyor.run()


class _Item(NamedTuple):
    path: bytes
    status: os.stat_result
    entry: Entry | None


class _Surveyor:
    def __init__(
        self,
        root: Confined,
        base: Tree,
        others: Sequence[Tree],
        look: Looker,
        select: Callable[[bytes], bool] | None,
        progress: Progress,
    ) -> None:
        self._root = root
        self._base = base
        self._others = others
        self._look = look
        self._select = select
        self._progress = progress
        self._changes: list[LocalChange] = []
        self._doubtful: list[_Item] = []
        self._pending: list[bytes] = [b""]
        self._pool = ThreadPoolExecutor(workers(), thread_name_prefix="casstore-survey")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._clones: list[Confined] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for clone in self._clones:
            clone.close()

    def run(self) -> list[LocalChange]:
        while self._pending:
            self._folder(self._pending.pop())
            if len(self._doubtful) >= _BATCH:
                self._judge_all()
        self._judge_all()
        self._progress.listed()
        self._changes.sort(key=lambda change: sort_key(change.path))
        return self._changes

    # --- the walk

    def _folder(self, folder: bytes) -> None:
        here = self._scan(folder)
        for entry in self._entries(folder):
            status = here.pop(entry.name, None)
            if entry.kind != Kind.DIRECTORY and self._select is not None and not self._select(entry.path):
                if status is not None:
                    here[entry.name] = status  # the user's own
            elif status is None:
                self._missing(entry)
            elif entry.kind == Kind.DIRECTORY and stat.S_ISDIR(status.st_mode):
                self._pending.append(entry.path)
                if self._select is None and (entry.mode ^ status.st_mode) & 0o777:
                    self._doubtful.append(_Item(entry.path, status, entry))
            elif not self._is_untouched(entry, status):
                self._doubtful.append(_Item(entry.path, status, entry))
        prefix = folder + b"/" if folder else b""
        self._doubtful += [_Item(prefix + name, status, None) for name, status in here.items()]

    def _entries(self, folder: bytes) -> list[Entry]:
        if folder:
            entry = self._base.lookup(folder)
            if entry is None or entry.kind != Kind.DIRECTORY:
                return []
        return list(self._base.listdir(folder))

    def _scan(self, folder: bytes) -> dict[bytes, os.stat_result]:
        found: dict[bytes, os.stat_result] = {}
        try:
            parent = self._root.directory(folder)
            # A descriptor of its own: listing moves the position of an open directory.
            own = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
            try:
                with os.scandir(own) as entries:
                    for entry in entries:
                        try:
                            found[os.fsencode(entry.name)] = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
            finally:
                os.close(own)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise local_error(error, folder or b".") from None
        if not folder:
            found.pop(INSIDE, None)
        return found

    def _missing(self, entry: Entry) -> None:
        if entry.kind == Kind.DIRECTORY and self._select is not None:
            self._pending.append(entry.path)  # it is missing only if something is that was to be in it
        elif all(other.lookup(entry.path) is not None for other in self._others):
            self._changes.append(LocalChange("removed", entry.path, Kind(entry.kind)))
        elif entry.kind == Kind.DIRECTORY:
            self._pending.append(entry.path)

    def _is_untouched(self, entry: Entry, status: os.stat_result) -> bool:
        since = self._look.since
        return (
            since is not None
            and status.st_ctime_ns <= since
            and status.st_size == entry.size
            and status.st_mtime_ns == entry.mtime_ns
            and entry.kind == Kind.FILE
            and stat.S_ISREG(status.st_mode)
            and not (entry.mode ^ status.st_mode) & _PLAIN
        )

    # --- what has to be looked at

    def _judge_all(self) -> None:
        items, self._doubtful = self._doubtful, []
        self._progress.expect(len(items), sum(item.status.st_size for item in items if _is_file(item.status)))
        for item, change in zip(items, self._pool.map(self._judge, items), strict=True):
            self._progress.advance(item.status.st_size if _is_file(item.status) else 0)
            if change is not None:
                self._changes.append(change)
            if change is None and stat.S_ISDIR(item.status.st_mode) and not _is_directory(item.entry):
                self._pending.append(item.path)  # another version knows it
        if self._look.memory is not None:
            self._look.memory.flush()

    def _judge(self, item: _Item) -> LocalChange | None:
        path, status, entry = item
        what: tuple[str, ...] = ()
        if entry is not None:
            what = self._differences(entry, status)
            if not what:
                return None
        for other in self._others:
            candidate = other.lookup(path)
            if candidate is None:
                continue
            if (entry is None and _is_directory(candidate) and stat.S_ISDIR(status.st_mode)) or not self._differences(
                candidate, status
            ):
                return None
        kind = _kind(status)
        return LocalChange("modified" if entry is not None else "added", path, kind, what)

    def _differences(self, entry: Entry, status: os.stat_result) -> tuple[str, ...]:
        if entry.kind != _kind(status):
            return ("type",)
        if entry.kind == Kind.DIRECTORY:
            return ("mode",) if (entry.mode ^ status.st_mode) & 0o777 else ()
        if entry.kind == Kind.SYMLINK:
            try:
                return () if self._clone().readlink(entry.path) == entry.target else ("target",)
            except OSError:
                return ("target",)
        what: list[str] = []
        linked = self._is_link(entry, status)
        if not linked:
            same = status.st_size == entry.size and self._has_content(entry, status)
            if same is None:
                what.append("unreadable")
            elif not same:
                what.append("content")
        if (entry.mode ^ status.st_mode) & _PLAIN and not (
            self._look.linked and stat.S_IMODE(status.st_mode) == LINK_MODE
        ):
            what.append("mode")
        return tuple(what)

    def _is_link(self, entry: Entry, status: os.stat_result) -> bool:
        """Whether this is the very file of the cache."""
        if self._look.files is None or status.st_nlink < 2:
            return False
        try:
            cached = os.lstat(self._look.files.path(content_id(entry.size, entry.content)))
        except OSError:
            return False
        return os.path.samestat(status, cached)

    def _has_content(self, entry: Entry, status: os.stat_result) -> bool | None:
        """Whether a file has the bytes of the version; None when it can't be read."""
        look, identity, state = self._look, content_id(entry.size, entry.content), state_of(status)
        if look.memory is not None and look.since is not None:
            known = look.memory.seen(look.key, entry.path, identity, state)
            if known is not None:
                return known
        try:
            descriptor = self._clone().open_file(entry.path)
        except OSError:
            return None
        try:
            if state_of(os.fstat(descriptor)) != state:
                return False  # changed this very moment
            same = self._compare(descriptor, entry)
            if look.memory is not None and state_of(os.fstat(descriptor)) == state:
                look.memory.saw(look.key, entry.path, identity, state, same=same)
            return same
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _compare(self, descriptor: int, entry: Entry) -> bool:
        offset = 0
        for chunk_id, raw in self._base.chunks(entry):
            if found(descriptor, offset, chunk_id, raw) is None:
                return False
            offset += raw
        return offset == entry.size

    def _clone(self) -> Confined:
        clone: Confined | None = getattr(self._local, "root", None)
        if clone is None:
            clone = self._local.root = self._root.clone()
            with self._lock:
                self._clones.append(clone)
        return clone


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == Kind.DIRECTORY


def _is_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def _kind(status: os.stat_result) -> Kind | None:
    if stat.S_ISREG(status.st_mode):
        return Kind.FILE
    if stat.S_ISDIR(status.st_mode):
        return Kind.DIRECTORY
    return Kind.SYMLINK if stat.S_ISLNK(status.st_mode) else None
