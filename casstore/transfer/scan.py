"""Listing what an upload is made of.

Decided here and only here: how several sources, and the version that an update starts from, become one tree, and in
which order it is walked. The walk goes directory by directory in the order of ``casstore.model.sort_key``, keeps the
names of one directory at a time, and never follows a symbolic link (except one that is named as a source itself).

A *virtual directory* has any number of real directories behind it, names of single files and folders put into it, and
perhaps a directory of the base version. Directories of the same name merge; of anything else that of the earlier source
wins, and the base comes last. Whatever they are made of, the names of one directory are all that is kept in memory.
"""

from __future__ import annotations

import heapq
import itertools
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import msgspec

from casstore import hashing
from casstore.errors import SourceError
from casstore.model import Entry, Kind
from casstore.repo.tree import Tree

Select = Callable[[bytes], bool]

State: TypeAlias = tuple[int, int, int, int, int]

RACY_NS = 500_000_000
"""A file that changed less than this before it was looked at may change again within one tick of its clock."""

PATH_LIMIT = 3500
"""Bytes of a path that is still handed to the kernel whole; a longer one is opened step by step."""


class Source(msgspec.Struct, frozen=True):
    """Something local to upload. ``path`` is absolute; ``dest`` is where its root lands, ``b""`` for the top.

    ``contents``: only the children of the directory ``path`` are taken, into the directory ``dest``. Otherwise ``dest``
    is the whole path of the source itself inside the version. What ``hides(name, status)`` says is not there.
    """

    path: bytes
    dest: bytes
    contents: bool = False
    hides: Callable[[bytes, os.stat_result], bool] | None = None


class Item(NamedTuple):
    """A child of a virtual directory: from disk (``real`` and ``status``) or from the base version (``base``)."""

    path: bytes
    real: bytes
    status: os.stat_result | None
    base: Entry | None


class Listing(msgspec.Struct):
    """One virtual directory, its children sorted by name; they are to be consumed before the next listing.

    ``pure`` is the only real directory behind it, if there is just one.
    """

    path: bytes
    items: Iterable[Item]
    pure: bytes | None


class Signature:
    """A digest over the names and states of all files of a walk, directory by directory.

    ``spoilt`` once the walk can't be told from a later one: a file changed just before it was looked at, or while it
    was read, or something else than files was part of the tree.
    """

    def __init__(self, *, usable: bool) -> None:
        self._hasher = hashing.Hasher()
        self._encode = msgspec.msgpack.Encoder().encode
        self._states: list[object] = []
        self.now = time.time_ns()
        self._horizon = self.now - RACY_NS
        self.spoilt = not usable

    def begin(self, path: bytes) -> None:
        """A directory begins."""
        self._states.append(path)

    def add(self, name: bytes, status: os.stat_result) -> None:
        """Count in one child of it."""
        changed = status.st_ctime_ns
        if changed > self._horizon:
            self.spoilt = True
        states = self._states
        states.append((name, status.st_mode, status.st_size, status.st_mtime_ns, changed, status.st_ino))
        if len(states) >= 4096:
            self._hasher.update(self._encode(states))
            states.clear()

    def digest(self) -> bytes | None:
        """Return the digest, or None when it is spoilt."""
        self._hasher.update(self._encode(self._states))
        self._states.clear()
        return None if self.spoilt else self._hasher.digest()


_TAKEN = (stat.S_IFREG, stat.S_IFLNK)


class _Candidate(NamedTuple):
    """What one source, or the base, has under a name. ``rank`` is the place of the source in their order."""

    name: bytes
    rank: int
    real: bytes = b""
    status: os.stat_result | None = None
    base: Entry | None = None
    virtual: _Virtual | None = None

    @property
    def is_directory(self) -> bool:
        if self.status is not None:
            return stat.S_ISDIR(self.status.st_mode)
        return self.base is None or self.base.kind == Kind.DIRECTORY


class _Virtual(msgspec.Struct):
    """A directory of the tree. ``reals`` and ``named`` come with the rank of their source."""

    path: bytes
    reals: list[tuple[int, bytes]] = []
    named: list[tuple[bytes, int, bytes]] = []
    below: dict[bytes, _Virtual] = {}
    base: bool = False


_BASE_RANK = sys.maxsize


def describe(error: OSError, path: bytes) -> SourceError:
    """Return a clear error for a local path that can't be read."""
    return SourceError(
        f"can't read {show(path)}: {error.strerror or error}",
        hint="fix its permissions, or leave it out; nothing was committed",
    )


def show(path: bytes) -> str:
    """Return a path for people: UTF-8 where it is, escapes where not."""
    return path.decode("utf-8", "backslashreplace")


class Scanner:
    """Walks the tree that sources and base make together. ``skipped`` names what is no file, directory or link."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        base: Tree | None = None,
        keep: Select | None = None,
        select: Select | None = None,
    ) -> None:
        self._base = base
        self._keep = keep
        self._select = select
        self._root = _Virtual(b"", base=base is not None)
        self._wanted: set[bytes] | None = None
        self._tops: set[bytes] = set()
        self._hiding: list[tuple[bytes, Callable[[bytes, os.stat_result], bool]]] = []
        self.skipped: list[str] = []
        for rank, source in enumerate(sources):
            self._place(rank, source)
        if select is not None or (base is not None and keep is not None):
            self._wanted = self._directories_with_content()

    def _place(self, rank: int, source: Source) -> None:
        node = self._root
        components = [part for part in source.dest.split(b"/") if part]
        for part in components if source.contents else components[:-1]:
            child = node.path + b"/" + part if node.path else part
            node = node.below.setdefault(part, _Virtual(child))
        # A source that is a link itself is meant for what it points to; below it, no link is followed.
        real = os.path.realpath(source.path)
        self._tops.add(real)
        if source.hides is not None:
            self._hiding.append((real, source.hides))
        if source.contents:
            node.reals.append((rank, real))
        else:
            node.named.append((components[-1], rank, real))

    def walk(self) -> Iterator[Listing]:
        """Yield every directory, parents before children, in the order of the manifest."""
        pending = [iter([self._root])]
        while pending:
            virtual = next(pending[-1], None)
            if virtual is None:
                pending.pop()
            elif self._is_pure(virtual):
                names: list[bytes] = []
                yield Listing(virtual.path, self._list_real(virtual, names), virtual.reals[0][1])
                pending.append(_below(virtual, names))
            else:
                merged: list[_Virtual] = []
                yield Listing(virtual.path, self._merge(virtual, merged), None)
                pending.append(iter(merged))

    def _is_pure(self, virtual: _Virtual) -> bool:
        mixed = virtual.named or virtual.below or virtual.base or self._wanted is not None
        return len(virtual.reals) == 1 and not mixed

    def new_signature(self) -> Signature:
        """Return what the signature of this walk is computed with."""
        return Signature(usable=not self._root.base and self._wanted is None)

    def signature(self) -> bytes | None:
        """Return a digest of the names and states of all files, or None when there can be none.

        Equal signatures mean that no file was touched. This is the whole cost of uploading an unchanged tree, so that
        it keeps nothing and looks nothing up.
        """
        signature = self.new_signature()
        if signature.spoilt:
            return None
        pending = [iter([self._root])]
        while pending:
            virtual = next(pending[-1], None)
            if virtual is None:
                pending.pop()
            elif self._is_pure(virtual):
                names: list[bytes] = []
                self._sign_real(virtual, names, signature)
                pending.append(_below(virtual, names))
            else:
                merged: list[_Virtual] = []
                signature.begin(virtual.path)
                for item in self._merge(virtual, merged):
                    if item.status is not None:
                        signature.add(item.path.rpartition(b"/")[2], item.status)
                pending.append(iter(merged))
        return signature.digest()

    def _sign_real(self, virtual: _Virtual, below: list[bytes], signature: Signature) -> None:
        real = virtual.reals[0][1]
        signature.begin(virtual.path)
        add = signature.add
        for name, status in self._scan(real):
            kind = status.st_mode & 0o170000
            if kind == stat.S_IFDIR:
                below.append(name)
            elif kind not in _TAKEN:
                self._skip(real + b"/" + name)
                continue
            add(name, status)

    def _list_real(self, virtual: _Virtual, below: list[bytes]) -> Iterator[Item]:
        """Yield the children of a directory that is one real directory; ``below`` gets the names of its folders."""
        real = virtual.reals[0][1]
        prefix = virtual.path + b"/" if virtual.path else b""
        for name, status in self._scan(real):
            path, child = prefix + name, real + b"/" + name
            kind = status.st_mode & 0o170000
            if kind == stat.S_IFDIR:
                below.append(name)
            elif kind not in _TAKEN:
                self._skip(child)
                continue
            yield Item(path, child, status, None)

    def _merge(self, virtual: _Virtual, below: list[_Virtual]) -> Iterator[Item]:
        """Yield the children of any other directory; ``below`` gets its folders."""
        prefix = virtual.path + b"/" if virtual.path else b""
        placed = [_Candidate(name, -1, virtual=deeper) for name, deeper in virtual.below.items()]
        placed += [_Candidate(name, rank, real, _stat(real, follow=True)) for name, rank, real in sorted(virtual.named)]
        streams = [iter(sorted(placed, key=_order)), *(self._candidates(rank, real) for rank, real in virtual.reals)]
        if virtual.base and self._base is not None:
            streams.append(_Candidate(e.name, _BASE_RANK, base=e) for e in self._base.listdir(virtual.path))
        for name, candidates in itertools.groupby(heapq.merge(*streams, key=_order), key=itemgetter(0)):
            item, folder = self._choose(prefix + name, candidates)
            if item is not None:
                yield item
            if folder is not None:
                below.append(folder)

    def _candidates(self, rank: int, real: bytes) -> Iterator[_Candidate]:
        for name, status in self._scan(real):
            yield _Candidate(name, rank, real + b"/" + name, status)

    def _choose(self, path: bytes, candidates: Iterable[_Candidate]) -> tuple[Item | None, _Virtual | None]:
        """Return what stands under a path, and the directory that it is, from the candidates by their rank."""
        item: Item | None = None
        folder: _Virtual | None = None
        for one in candidates:
            if not self._is_taken(path, one):
                continue
            if item is not None and (folder is None or not one.is_directory):
                if one.status is not None and (folder is not None) != one.is_directory:
                    self.skipped.append(f"{show(one.real)} is left out: an earlier source has something else there")
                continue
            if not one.is_directory:
                item = Item(path, one.real, one.status, one.base)
                continue
            if item is None or (item.status is None and item.base is None):
                item = Item(path, one.real, one.status, one.base)
            folder = folder or one.virtual or _Virtual(path)
            if one.status is not None:
                folder.reals.append((one.rank, one.real))
            folder.base = folder.base or one.base is not None
        return item, folder

    def _is_taken(self, path: bytes, one: _Candidate) -> bool:
        if one.is_directory:
            return one.virtual is not None or self._wanted is None or path in self._wanted
        if one.status is None:
            return self._keep is None or self._keep(path)
        if one.status.st_mode & 0o170000 not in _TAKEN:
            self._skip(one.real)
            return False
        return self._select is None or self._select(path)

    def _skip(self, real: bytes) -> None:
        self.skipped.append(f"{show(real)} is neither a file, a folder nor a link: left out")

    def _scan(self, real: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """Yield names and states of the children of a directory, sorted by name; holds the names alone."""
        try:
            descriptor = open_deep(real, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            if real in self._tops:
                raise describe(error, real) from None
            self.skipped.append(f"{show(real)} was deleted during the upload: what was in it is left out")
            return
        except OSError as error:
            raise describe(error, real) from None
        hidden = next((hides for top, hides in self._hiding if (real + b"/").startswith(top + b"/")), None)
        try:
            if hidden is None:
                yield from _children(descriptor, real)
            else:
                yield from (child for child in _children(descriptor, real) if not hidden(*child))
        finally:
            os.close(descriptor)

    def _directories_with_content(self) -> set[bytes]:
        """Return the directories that stay when files are left out: those that hold a file that stays.

        With no pattern for the sources, all of their directories stay; an empty directory of the base stays unless the
        pattern takes it.
        """
        wanted: set[bytes] = set()
        if self._base is not None:
            for entry in self._base.entries():
                folder = entry.kind == Kind.DIRECTORY
                if self._keep is not None and not self._keep(entry.path):
                    continue
                if not folder or next(self._base.listdir(entry.path), None) is None:
                    _add_parents(wanted, entry.path, own=folder)
        pending = [self._root]
        while pending:
            virtual = pending.pop()
            pending += virtual.below.values()
            if virtual.path and (virtual.below or virtual.reals):
                _add_parents(wanted, virtual.path, own=True)
            for name, _, real in virtual.named:
                self._want(wanted, virtual.path + b"/" + name if virtual.path else name, real)
            for _, real in virtual.reals:
                self._want(wanted, virtual.path, real)
        return wanted

    def _want(self, wanted: set[bytes], path: bytes, real: bytes) -> None:
        status = _stat(real, follow=True)
        if not stat.S_ISDIR(status.st_mode):
            self._want_file(wanted, path, status)
            return
        pending = [(path, real)]
        while pending:
            path, real = pending.pop()
            if self._select is None and path:
                _add_parents(wanted, path, own=True)
            prefix = path + b"/" if path else b""
            for name, status in self._scan(real):
                if stat.S_ISDIR(status.st_mode):
                    pending.append((prefix + name, real + b"/" + name))
                else:
                    self._want_file(wanted, prefix + name, status)

    def _want_file(self, wanted: set[bytes], path: bytes, status: os.stat_result) -> None:
        if status.st_mode & 0o170000 in _TAKEN and (self._select is None or self._select(path)):
            _add_parents(wanted, path, own=False)


def _below(virtual: _Virtual, names: Sequence[bytes]) -> Iterator[_Virtual]:
    """Yield the directories with these names in one that is one real directory, each made when it is its turn."""
    rank, real = virtual.reals[0]
    prefix = virtual.path + b"/" if virtual.path else b""
    for name in names:
        yield _Virtual(prefix + name, [(rank, real + b"/" + name)])


def _order(candidate: _Candidate) -> tuple[bytes, int]:
    return candidate.name, candidate.rank


def _add_parents(wanted: set[bytes], path: bytes, *, own: bool) -> None:
    if own:
        wanted.add(path)
    parent = path.rpartition(b"/")[0]
    while parent and parent not in wanted:
        wanted.add(parent)
        parent = parent.rpartition(b"/")[0]


def _children(descriptor: int, real: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    try:
        names = os.listdir(real) if len(real) < PATH_LIMIT else [os.fsencode(name) for name in os.listdir(descriptor)]
        names.sort()
        status = os.stat
        for name in names:
            try:
                yield name, status(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed: as if it had been deleted before
    except OSError as error:
        raise describe(error, real) from None


def state_of(status: os.stat_result) -> State:
    """Return what tells that a file was not touched: mode, size, times of modification and change, inode."""
    return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _stat(real: bytes, *, follow: bool) -> os.stat_result:
    try:
        return os.stat(real, follow_symlinks=follow)
    except OSError as error:
        raise describe(error, real) from None


def open_deep(path: bytes, flags: int, *, follow: bool = False) -> int:
    """Open an absolute path of any length; ``OSError`` as ``os.open``. The last component is followed if asked for."""
    flags |= os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    if len(path) < PATH_LIMIT:
        return os.open(path, flags)
    descriptor = os.open(b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rest = path.strip(b"/")
        while len(rest) >= PATH_LIMIT:
            cut = rest.rfind(b"/", 0, PATH_LIMIT)
            deeper = os.open(rest[:cut], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor, rest = deeper, rest[cut + 1 :]
        return os.open(rest, flags, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def read_link(path: bytes) -> bytes:
    """Return the target of a symbolic link at a path of any length."""
    if len(path) < PATH_LIMIT:
        return os.readlink(path)
    parent, _, name = path.rpartition(b"/")
    descriptor = open_deep(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.readlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)
