"""Entries of a version by number.

Decided here and only here: that an entry's number is its place in the order of the manifest. The nodes of a manifest
say how many entries they hold, so that any entry is found by its number, or its number by its path, with one leaf
read: nothing is kept for an entry that nobody asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from threading import Lock
from typing import NamedTuple

from casstore.errors import FormatError
from casstore.format.manifest import Group, NodeRef, Row
from casstore.repo.tree import Tree

__all__ = ["Leaf", "Positions"]

LEAVES = 256
"""Parsed leaves that are kept: about half a KiB for an entry, so some 64 MiB at most."""

SAMPLE = 4
"""Leaves that stand for all of them, or a few more."""


class Leaf(NamedTuple):
    """A parsed leaf: the number of its first entry, and for each of its groups the number of that one's first entry."""

    first: int
    groups: list[Group]
    starts: list[int]


class Positions:
    """Numbers and entries of one tree. Thread-safe."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._refs: list[NodeRef] = tree.leaf_refs()
        self._keys = [ref.key for ref in self._refs]
        self._firsts = [0, *accumulate(ref.count for ref in self._refs)]
        self._leaves: OrderedDict[int, Leaf] = OrderedDict()
        self._lock = Lock()
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        """What a leaf that is not in memory is read in."""

    @property
    def total(self) -> int:
        """How many entries there are."""
        return self._firsts[-1]

    def row(self, number: int) -> tuple[bytes, Row]:
        """Return the folder and the row of an entry."""
        if not 0 <= number < self.total:
            raise FormatError(f"there is no entry {number}")
        leaf = self.leaf(bisect_right(self._firsts, number) - 1)
        at = bisect_right(leaf.starts, number) - 1
        group = leaf.groups[at]
        return group.directory, group.rows[number - leaf.starts[at]]

    def find(self, directory: bytes, name: bytes) -> tuple[int, Row] | None:
        """Return the number and the row of an entry, or None."""
        which = bisect_right(self._keys, (directory.replace(b"/", b"\0"), name)) - 1
        if which < 0:
            return None
        leaf = self.leaf(which)
        for start, group in zip(leaf.starts, leaf.groups, strict=True):
            if group.directory == directory:
                at = _at_least(group.rows, name)
                if at < len(group.rows) and group.rows[at].name == name:
                    return start + at, group.rows[at]
                return None
        return None

    def begin(self, directory: bytes) -> int:
        """Return the number of the first entry of a folder, or of what comes after an empty one."""
        key = directory.replace(b"/", b"\0")
        which = max(0, bisect_right(self._keys, (key, b"")) - 1)
        while which < len(self._refs):
            leaf = self.leaf(which)
            for start, group in zip(leaf.starts, leaf.groups, strict=True):
                if group.directory.replace(b"/", b"\0") >= key:
                    return start
            which += 1
        return self.total

    def run(self, number: int, directory: bytes) -> tuple[int, list[Row]]:
        """Return the rows of a folder from this entry on, as far as its leaf goes; none when the folder has ended."""
        if number >= self.total:
            return number, []
        leaf = self.leaf(bisect_right(self._firsts, number) - 1)
        at = bisect_right(leaf.starts, number) - 1
        group = leaf.groups[at]
        return number, group.rows[number - leaf.starts[at] :] if group.directory == directory else []

    def some_rows(self) -> Iterator[Row]:
        """Yield the rows of a few leaves, taken from all over the version."""
        step = max(1, len(self._refs) // SAMPLE)
        for which in range(step // 2, len(self._refs), step):
            for group in self.leaf(which).groups:
                yield from group.rows

    def leaf(self, which: int) -> Leaf:
        """Return a parsed leaf."""
        with self._lock:
            found = self._leaves.get(which)
            if found is not None:
                self._leaves.move_to_end(which)
                return found
        end = self._keys[which + 1] if which + 1 < len(self._keys) else None
        with self.waiting():
            groups = self._tree.leaf_groups(self._refs[which], end)
        starts = list(accumulate((len(group.rows) for group in groups[:-1]), initial=self._firsts[which]))
        found = Leaf(self._firsts[which], groups, starts)
        with self._lock:
            self._leaves[which] = found
            while len(self._leaves) > LEAVES:
                self._leaves.popitem(last=False)
        return found


def _at_least(rows: list[Row], name: bytes) -> int:
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        if rows[middle].name < name:
            low = middle + 1
        else:
            high = middle
    return low
