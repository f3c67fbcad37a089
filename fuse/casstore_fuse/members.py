"""A collection as a file system: each member below a folder of its own name.

Decided here and only here: which numbers the inodes of the members have. The root is 1, the members' folders follow,
and then the entries of each of them, member by member.
"""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate

from casstore.errors import NotFoundError
from casstore.model import Content, Totals
from casstore_fuse.abi import Attributes
from casstore_fuse.vfs import FIRST, ROOT, Vfs

__all__ = ["Members"]


class Members:
    """The trees of several versions. Thread-safe. What it offers is what a ``Vfs`` does."""

    def __init__(self, members: Sequence[tuple[bytes, Vfs]], *, uid: int, gid: int) -> None:
        """``members``: names, all different, and what is below them."""
        members = sorted(members, key=lambda member: member[0])
        self._names = [name for name, _ in members]
        self._trees = [vfs for _, vfs in members]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._begins = [*accumulate((vfs.total for vfs in self._trees), initial=FIRST + len(members))]
        self._root = Attributes(ROOT, ROOT, stat.S_IFDIR | 0o555, 0, 0, 2, uid, gid)

    @property
    def totals(self) -> Totals:
        """Sums over all members; the folders of the members count."""
        found = [vfs.totals for vfs in self._trees]
        return Totals(
            sum(one.files for one in found),
            sum(one.directories + 1 for one in found),
            sum(one.symlinks for one in found),
            sum(one.size for one in found),
        )

    def on_wait(self, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """Have what may take long happen within ``waiting()``."""
        for vfs in self._trees:
            vfs.on_wait(waiting)

    def attributes(self, node: int) -> Attributes:
        """Return what ``stat`` shows of an inode."""
        if node == ROOT:
            return self._root
        number, own = self._split(node)
        return self._shift(number, self._trees[number].attributes(own))

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Return an entry of a folder, or None."""
        if parent == ROOT:
            number = self._numbers.get(name)
            return None if number is None else self._shift(number, self._trees[number].attributes(ROOT))
        number, own = self._split(parent)
        found = self._trees[number].lookup(own, name)
        return None if found is None else self._shift(number, found)

    def listing(self, node: int, offset: int) -> Iterator[tuple[bytes, int, Attributes]]:
        """Yield ``(name, offset of the next one, attributes)`` of a folder's entries, from an offset on."""
        if node == ROOT:
            for number in range(offset, len(self._names)):
                attributes = self._trees[number].attributes(ROOT)
                yield self._names[number], number + 1, self._shift(number, attributes)
            return
        number, own = self._split(node)
        for name, after, attributes in self._trees[number].listing(own, offset):
            yield name, after, self._shift(number, attributes)

    def path(self, node: int) -> bytes:
        """Return the path of an inode; empty for the root."""
        if node == ROOT:
            return b""
        number, own = self._split(node)
        below = self._trees[number].path(own)
        return self._names[number] + b"/" + below if below else self._names[number]

    def files(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield inode, path and size of every file."""
        for number, (name, vfs) in enumerate(zip(self._names, self._trees, strict=True)):
            for node, path, size in vfs.files():
                yield self._begins[number] + node - FIRST, name + b"/" + path, size

    def sample(self) -> Iterator[int]:
        """Yield the sizes of some of the files."""
        for vfs in self._trees:
            yield from vfs.sample()

    def target(self, node: int) -> bytes:
        """Return what a symbolic link points to."""
        number, own = self._split(node)
        return self._trees[number].target(own)

    def content(self, node: int) -> tuple[int, Content]:
        """Return size and chunk list of a file."""
        number, own = self._split(node)
        return self._trees[number].content(own)

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode."""
        if node == ROOT:
            return {}
        number, own = self._split(node)
        return self._trees[number].xattrs(own)

    def _split(self, node: int) -> tuple[int, int]:
        """Return the number of a member, and the number that an inode has there."""
        if FIRST <= node < self._begins[0]:
            return node - FIRST, ROOT
        number = bisect_right(self._begins, node) - 1
        if not 0 <= number < len(self._trees):
            raise NotFoundError(f"there is no inode {node}")
        return number, node - self._begins[number] + FIRST

    def _shift(self, number: int, found: Attributes) -> Attributes:
        if found.node == ROOT:
            node = FIRST + number
            return found._replace(node=node, ino=node)
        shift = self._begins[number] - FIRST
        # The numbers of files with several names are at most as many as the entries, so that these don't meet either.
        return found._replace(node=found.node + shift, ino=found.ino + shift)
