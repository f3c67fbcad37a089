"""Listing what an upload is made of.

Decided here and only here: how several sources, and the version that an update starts from, become one tree, and in
which order it is walked. The walk goes directory by directory in the order of ``casstore.model.sort_key``, keeps the
names of one directory at a time, and never follows a symbolic link (except one that is named as a source itself).

A *virtual directory* has any number of real directories behind it, in order of priority, names of single files put
into it, and perhaps a directory of the base version. Directories of the same name merge; of anything else the first
wins.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Source:
    """Something local to upload. ``path`` is absolute; ``dest`` is where its root lands, ``b""`` for the top.

    ``contents``: only the children of the directory ``path`` are taken, into the directory ``dest``. Otherwise ``dest``
    is the whole path of the source itself inside the version.
    """

    path: bytes
    dest: bytes
    contents: bool = False


class Item(NamedTuple):
    """A child of a virtual directory: from disk (``real`` and ``status``) or from the base version (``base``)."""

    path: bytes
    real: bytes
    status: os.stat_result | None
    base: Entry | None


@dataclass(slots=True)
class Listing:
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


@dataclass(slots=True)
class _Virtual:
    path: bytes
    reals: list[bytes] = field(default_factory=list)
    named: dict[bytes, bytes] = field(default_factory=dict)
    below: dict[bytes, _Virtual] = field(default_factory=dict)
    base: bool = False


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
        self.skipped: list[str] = []
        for source in sources:
            self._place(source)
        if select is not None or (base is not None and keep is not None):
            self._wanted = self._directories_with_content()

    def _place(self, source: Source) -> None:
        node = self._root
        components = [part for part in source.dest.split(b"/") if part]
        for part in components if source.contents else components[:-1]:
            child = node.path + b"/" + part if node.path else part
            node = node.below.setdefault(part, _Virtual(child))
        if source.contents:
            node.reals.append(source.path)
        else:
            # A source that is a link itself is meant for what it points to.
            node.named.setdefault(components[-1], os.path.realpath(source.path))

    def walk(self) -> Iterator[Listing]:
        """Yield every directory, parents before children, in the order of the manifest."""
        pending = [self._root]
        while pending:
            virtual = pending.pop()
            below: list[_Virtual] = []
            if self._is_pure(virtual):
                yield Listing(virtual.path, self._list_real(virtual, below), virtual.reals[0])
            else:
                items, below = self._merge(virtual)
                yield Listing(virtual.path, items, None)
            below.reverse()
            pending += below

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
        pending = [self._root]
        while pending:
            virtual = pending.pop()
            below: list[_Virtual] = []
            if self._is_pure(virtual):
                self._sign_real(virtual, below, signature)
            else:
                items, below = self._merge(virtual)
                signature.begin(virtual.path)
                for item in items:
                    if item.status is not None:
                        signature.add(item.path.rpartition(b"/")[2], item.status)
            below.reverse()
            pending += below
        return signature.digest()

    def _sign_real(self, virtual: _Virtual, below: list[_Virtual], signature: Signature) -> None:
        path, real = virtual.path, virtual.reals[0]
        prefix = path + b"/" if path else b""
        signature.begin(path)
        add = signature.add
        for name, status in _scan(real):
            kind = status.st_mode & 0o170000
            if kind == stat.S_IFDIR:
                below.append(_Virtual(prefix + name, [real + b"/" + name]))
            elif kind not in _TAKEN:
                self._skip(real + b"/" + name)
                continue
            add(name, status)

    def _merge(self, virtual: _Virtual) -> tuple[list[Item], list[_Virtual]]:
        prefix = virtual.path + b"/" if virtual.path else b""
        found: dict[bytes, Item] = {}
        merged: dict[bytes, _Virtual] = {}
        for name, deeper in virtual.below.items():
            merged[name] = deeper
            found[name] = Item(prefix + name, b"", None, None)
        for name, real in virtual.named.items():
            self._offer(found, merged, prefix, name, real, _stat(real, follow=True))
        for real in virtual.reals:
            for name, status in _scan(real):
                self._offer(found, merged, prefix, name, real + b"/" + name, status)
        if virtual.base and self._base is not None:
            self._offer_base(self._base, virtual.path, found, merged)
        items = [found[name] for name in sorted(found)]
        return items, [merged[name] for name in sorted(merged)]

    def _list_real(self, virtual: _Virtual, below: list[_Virtual]) -> Iterator[Item]:
        real = virtual.reals[0]
        prefix = virtual.path + b"/" if virtual.path else b""
        for name, status in _scan(real):
            path, child = prefix + name, real + b"/" + name
            kind = status.st_mode & 0o170000
            if kind == stat.S_IFDIR:
                below.append(_Virtual(path, [child]))
            elif kind not in _TAKEN:
                self._skip(child)
                continue
            yield Item(path, child, status, None)

    def _skip(self, real: bytes) -> None:
        self.skipped.append(f"{show(real)} is neither a file, a folder nor a link: left out")

    def _offer(
        self,
        found: dict[bytes, Item],
        merged: dict[bytes, _Virtual],
        prefix: bytes,
        name: bytes,
        real: bytes,
        status: os.stat_result,
    ) -> None:
        path = prefix + name
        if stat.S_ISDIR(status.st_mode):
            if self._wanted is not None and path not in self._wanted:
                return
            if name not in found or (name in merged and found[name].status is None):
                found[name] = Item(path, real, status, None)
            if name in merged or found[name].real == real:
                merged.setdefault(name, _Virtual(path)).reals.append(real)
            return
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            self._skip(real)
        elif name not in found and (self._select is None or self._select(path)):
            found[name] = Item(path, real, status, None)

    def _offer_base(
        self, base: Tree, path: bytes, found: dict[bytes, Item], merged: dict[bytes, _Virtual]
    ) -> None:
        for entry in base.listdir(path):
            name = entry.name
            if entry.kind == Kind.DIRECTORY:
                if self._wanted is not None and entry.path not in self._wanted:
                    continue
                if name not in found or (name in merged and found[name].status is None):
                    found[name] = Item(entry.path, b"", None, entry)
                if name in merged or found[name].base is entry:
                    merged.setdefault(name, _Virtual(entry.path)).base = True
            elif name not in found and (self._keep is None or self._keep(entry.path)):
                found[name] = Item(entry.path, b"", None, entry)

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
            for name, real in virtual.named.items():
                self._want(wanted, virtual.path + b"/" + name if virtual.path else name, real)
            for real in virtual.reals:
                self._want(wanted, virtual.path, real)
        return wanted

    def _want(self, wanted: set[bytes], path: bytes, real: bytes) -> None:
        pending = [(path, real, _stat(real, follow=True))]
        while pending:
            path, real, status = pending.pop()
            if stat.S_ISDIR(status.st_mode):
                if self._select is None and path:
                    _add_parents(wanted, path, own=True)
                for name, child in _scan(real):
                    pending.append((path + b"/" + name if path else name, real + b"/" + name, child))
            elif self._select is None or self._select(path):
                _add_parents(wanted, path, own=False)


def _add_parents(wanted: set[bytes], path: bytes, *, own: bool) -> None:
    if own:
        wanted.add(path)
    parent = path.rpartition(b"/")[0]
    while parent and parent not in wanted:
        wanted.add(parent)
        parent = parent.rpartition(b"/")[0]


def _scan(real: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield names and states of the children of a directory, sorted by name; holds the names alone."""
    try:
        descriptor = open_deep(real, os.O_RDONLY | os.O_DIRECTORY, follow=True)
    except OSError as error:
        raise describe(error, real) from None
    try:
        names = (
            os.listdir(real)
            if len(real) < PATH_LIMIT
            else [os.fsencode(name) for name in os.listdir(descriptor)]
        )
        names.sort()
        status = os.stat
        for name in names:
            try:
                yield name, status(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed: as if it had been deleted before
    except OSError as error:
        raise describe(error, real) from None
    finally:
        os.close(descriptor)


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
