"""Making a folder with one version into another one, by touching only what differs.

Decided here and only here: what of a folder is written, what is removed, and what stands against it. Files that are the
same in both versions are neither read nor written. What somebody changed in the folder is not overwritten without
``force``; what the versions do not know stays, and what is missing is written again. Removing comes before writing,
because a folder may be in the place of a file. Every file appears whole.

A run that was stopped left files of both versions: the next one is told of both, and takes each for what it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from casstore.errors import CasstoreError, ConflictError, OutOfSpaceError
from casstore.model import Entry, Kind, sort_key
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.download import Cached, DownloadStats, Select, refuse_links_out, write_entries
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.safefs import Confined, local_error, show
from casstore.transfer.stage import Landing
from casstore.transfer.survey import LocalChange, Looker, survey

__all__ = ["differing", "update_tree"]

SHOWN = 10
"""Local changes that a message names."""
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def update_tree(
    store: Store,
    bases: Sequence[Tree],
    target: Tree,
    dest: str | bytes,
    *,
    look: Looker,
    begin: Callable[[], None],
    before: Select | None = None,
    select: Select | None = None,
    force: bool = False,
    unsafe_links: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    cached: Cached | None = None,
) -> tuple[DownloadStats, int]:
    """Make the folder ``dest`` into ``target``; returns what was done, and how many files and links were removed.

    ``bases``: the version that it holds, and those that it was to become when earlier runs were stopped. ``before`` is
    what was selected of them, ``select`` (which takes no less) what is to be there. ``begin`` is called when no other
    download can come between any more; it may raise. ``force`` gives up local changes.

    Raises ``ConflictError`` for local changes that would be lost, before anything is changed, and what
    ``download_tree`` raises.
    """
    progress = progress or Silent()
    if not unsafe_links:
        refuse_links_out(target, select)
    with Landing(dest, target.id, resume=True) as landing:
        try:
            plan = _Plan(bases, target, before, select)
            if landing.in_place:
                plan.compare(landing.root, look, show(os.fsencode(dest)), force=force)
            else:
                plan.everything = True  # it was emptied
            landing.trusted = False  # what is to be written may have the size and time that the other version had
            begin()
            removed = plan.remove(landing.root)
            stats = write_entries(
                store,
                target,
                landing,
                entries=plan.entries(),
                right=plan.right,
                select=select,
                unsafe_links=unsafe_links,
                progress=progress,
                threads=threads,
                cached=cached,
            )
        except CasstoreError as error:
            if error.hint is None or isinstance(error, OutOfSpaceError):
                error.hint = "what is complete is kept: run the same command again"
            raise
        landing.finish()
    files, size = _sums(target, select)
    written = stats.files - stats.reused
    return dataclasses.replace(stats, files=files, bytes=size, reused=max(0, files - written)), removed


def differing(old: Tree, new: Tree) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Yield what is not the same in two trees, times included, in order; nodes that both have are not read."""
    if old.id == new.id:
        return
    common = set(old.nodes()).intersection(new.nodes())
    first, second = old.entries(skip=common), new.entries(skip=common)
    before, after = next(first, None), next(second, None)
    while before is not None or after is not None:
        if after is None or (before is not None and sort_key(before.path) < sort_key(after.path)):
            yield before, None
            before = next(first, None)
        elif before is None or sort_key(after.path) < sort_key(before.path):
            yield None, after
            after = next(second, None)
        else:
            if not _is_same(before, after):
                yield before, after
            before, after = next(first, None), next(second, None)


def _is_same(one: Entry, other: Entry) -> bool:
    return (
        (one.kind, one.mode, one.mtime_ns, one.target, bool(one.link))
        == (other.kind, other.mode, other.mtime_ns, other.target, bool(other.link))
    ) and _has_same_content(one, other)


def _has_same_content(one: Entry, other: Entry) -> bool:
    return (one.kind, one.size, one.content, one.xattrs or None) == (
        other.kind,
        other.size,
        other.content,
        other.xattrs or None,
    )


@dataclass
class _Plan:
    """What is to be done. ``wanted``: paths to write; ``whole``: folders to write with all that is in them."""

    bases: Sequence[Tree]
    target: Tree
    before: Select | None
    select: Select | None
    everything: bool = False
    wanted: set[bytes] = field(default_factory=set)
    whole: set[bytes] = field(default_factory=set)
    gone: dict[bytes, bool] = field(default_factory=dict)
    right: set[bytes] = field(default_factory=set)
    obstacles: list[bytes] = field(default_factory=list)

    def compare(self, root: Confined, look: Looker, shown: str, *, force: bool) -> None:
        """Find out what differs. ``ConflictError`` for what stands against it."""
        for base in self.bases:
            for old, new in differing(base, self.target):
                self._note(old, new)
        others = (*self.bases[1:], self.target)
        lost: list[LocalChange] = []
        blocked: list[LocalChange] = []
        for change in survey(root, self.bases[0], others=others, look=look, select=self.before):
            self._weigh(change, lost, blocked)
        if len(self.bases) > 1:
            self.right.clear()  # some may have the content of another one
        if blocked:
            raise ConflictError(
                f"in {shown} there is something in the way of files of the version: {_listed(blocked)}",
                hint="move it out of the folder first; nothing was changed",
            )
        if lost and not force:
            raise ConflictError(
                f"{len(lost)} local change{'s' if len(lost) > 1 else ''} in {shown} would be lost: {_listed(lost)}",
                hint=f"see them with `osmo dataset status {shown}`, or give them up with --force; nothing was changed",
            )

    def _note(self, old: Entry | None, new: Entry | None) -> None:
        if new is not None:
            self.wanted.add(new.path)
            if old is not None and old.kind == Kind.FILE and _has_same_content(old, new):
                self.right.add(new.path)
        if old is not None and (new is None or (old.kind == Kind.DIRECTORY) != (new.kind == Kind.DIRECTORY)):
            self.gone[old.path] = old.kind == Kind.DIRECTORY

    def _weigh(self, change: LocalChange, lost: list[LocalChange], blocked: list[LocalChange]) -> None:
        path, is_folder = change.path, change.kind == Kind.DIRECTORY
        if change.status == "removed":
            self.wanted.add(path)
            if is_folder:
                self.whole.add(path)
            return
        self.right.discard(path)
        found = self._in_target(path)
        if found is None:
            if change.status == "modified":
                lost.append(change)
                return
            self.gone.pop(path, None)
            if self._is_below_file(path):
                blocked.append(change)
            return
        becomes_folder = found.kind == Kind.DIRECTORY
        if is_folder and not becomes_folder:
            blocked.append(change)
            return
        lost.append(change)
        self.wanted.add(path)
        if change.kind is None or becomes_folder != is_folder:
            self.obstacles.append(path)
        if becomes_folder and not is_folder:
            self.whole.add(path)

    def _in_target(self, path: bytes) -> Entry | None:
        entry = self.target.lookup(path)
        if entry is None or entry.kind == Kind.DIRECTORY or self.select is None or self.select(path):
            return entry
        return None

    def _is_below_file(self, path: bytes) -> bool:
        while path := path.rpartition(b"/")[0]:
            entry = self.target.lookup(path)
            if entry is not None:
                return entry.kind != Kind.DIRECTORY
        return False

    def remove(self, root: Confined) -> int:
        """Remove what is not in the version; returns how many files and links."""
        removed = 0
        for path in self.obstacles:
            _unlink(root, path)
        folders: list[bytes] = []
        for path, is_folder in self.gone.items():
            if is_folder:
                folders.append(path)
            elif self.before is None or self.before(path):
                removed += _unlink(root, path)
        for path in sorted(folders, key=lambda path: path.count(b"/"), reverse=True):
            with contextlib.suppress(OSError):  # something of the user's is in it
                root.forget(path)
                _removing(root, path, os.rmdir)
        return removed

    def entries(self) -> Iterator[Entry]:
        """Yield the entries that are to be written, and the folders above them, in order."""
        if self.everything:
            yield from self.target.entries()
            return
        folders: set[bytes] = set()
        for path in {path.rpartition(b"/")[0] for path in (*self.wanted, *self.gone)}:
            above = path
            while above and above not in folders:
                folders.add(above)
                above = above.rpartition(b"/")[0]
        if not self.wanted and not folders and self.before is None:
            return
        groups = self._groups()
        for entry in self.target.entries():
            if (
                entry.path in self.wanted
                or (entry.link and entry.link in groups)
                or (entry.kind == Kind.DIRECTORY and entry.path in folders)
                or (self.before is not None and entry.kind != Kind.DIRECTORY and not self.before(entry.path))
                or (self.before is not None and entry.kind == Kind.DIRECTORY)
                or self._is_in_whole(entry.path)
            ):
                yield entry

    def _is_in_whole(self, path: bytes) -> bool:
        if not self.whole:
            return False
        while path:
            if path in self.whole:
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _groups(self) -> set[int]:
        """The hard-link groups of which a name is written: all their names are looked at."""
        return {
            entry.link
            for entry in self.target.entries()
            if entry.link and (entry.path in self.wanted or self._is_in_whole(entry.path))
        }


def _unlink(root: Confined, path: bytes) -> bool:
    try:
        status = root.stat(path)
        if status is None or stat.S_ISDIR(status.st_mode):
            return False
        _removing(root, path, os.unlink)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False  # a link is where a folder was: what it leads to is not ours
        raise local_error(error, path) from None
    return True


def _removing(root: Confined, path: bytes, how: Callable[..., None]) -> None:
    folder, name = root.split(path)
    try:
        how(name, dir_fd=folder)
    except PermissionError:
        parent = path.rpartition(b"/")[0]
        above = root.stat(parent) if parent else None
        if above is None or above.st_mode & 0o300 == 0o300:
            raise
        root.set_mode(parent, stat.S_IMODE(above.st_mode) | 0o700)  # its own mode comes back at the end
        folder, name = root.split(path)
        how(name, dir_fd=folder)


def _sums(tree: Tree, select: Select | None) -> tuple[int, int]:
    if select is None:
        return tree.totals.files, tree.totals.size
    sizes = [entry.size for entry in tree.entries() if entry.kind == Kind.FILE and select(entry.path)]
    return len(sizes), sum(sizes)


def _listed(changes: Sequence[LocalChange]) -> str:
    some = ", ".join(f"{change.status} {show(change.path)}" for change in changes[:SHOWN])
    return some + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
