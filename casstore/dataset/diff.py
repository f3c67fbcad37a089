"""What changed from one version to another.

Decided here and only here: what counts as a change, and when a file was moved rather than removed and added.
Times are no change. Both trees are read in step, in the order of ``casstore.model.sort_key``; the nodes that
they share are not read at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from casstore import hashing
from casstore.model import Entry, Kind, sort_key
from casstore.repo.tree import Tree

__all__ = ["Change", "Diff", "diff_trees"]


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs.

    ``status`` is ``added``, ``removed``, ``modified`` or ``renamed``; ``what`` tells of the last two which of
    ``type``, ``content``, ``target``, ``mode`` and ``xattrs`` differ too. ``path`` is the new one except of
    what was removed; ``old_path`` is where a renamed file was. Sizes in logical bytes, 0 for what is no file
    or not there.
    """

    status: str
    path: bytes
    kind: Kind
    old_path: bytes | None = None
    what: tuple[str, ...] = ()
    old_size: int = 0
    new_size: int = 0


@dataclass(frozen=True, slots=True)
class Diff:
    """All changes, sorted by path, and sums over them.

    ``shared_bytes`` are the bytes of the new version that it has in common with the old one: everything
    unchanged, and of added and modified files the chunks that removed or modified files had. ``new_bytes``
    are the others.
    """

    changes: tuple[Change, ...]
    added: int
    removed: int
    modified: int
    renamed: int
    shared_bytes: int
    new_bytes: int

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not self.changes


def diff_trees(old: Tree, new: Tree) -> Diff:
    """Compare two trees. Memory grows with what differs, not with the trees."""
    differ = _Differ(old, new)
    if old.id != new.id:
        common = set(old.nodes()).intersection(new.nodes())
        differ.walk(old.entries(skip=common), new.entries(skip=common))
    return differ.result()


class _Differ:
    def __init__(self, old: Tree, new: Tree) -> None:
        self._old = old
        self._new = new
        self._changes: list[Change] = []
        self._removed: dict[bytes, list[tuple[bytes, int, int]]] = defaultdict(list)
        self._added: list[tuple[bytes, Entry]] = []
        self._gone_chunks: set[bytes] = set()
        self._fresh: list[Entry] = []

    def walk(self, old: Iterator[Entry], new: Iterator[Entry]) -> None:
        before, after = next(old, None), next(new, None)
        while before is not None or after is not None:
            if after is None or (before is not None and sort_key(before.path) < sort_key(after.path)):
                if before is not None:
                    self._remove(before)
                before = next(old, None)
            elif before is None or sort_key(after.path) < sort_key(before.path):
                self._add(after)
                after = next(new, None)
            else:
                self._compare(before, after)
                before, after = next(old, None), next(new, None)

    def _remove(self, entry: Entry) -> None:
        if entry.kind == Kind.FILE:
            self._gone_chunks.update(chunk_id for chunk_id, _ in self._old.chunks(entry))
            self._removed[_identity(entry)].append((entry.path, entry.mode, entry.size))
        else:
            self._changes.append(Change("removed", entry.path, Kind(entry.kind)))

    def _add(self, entry: Entry) -> None:
        if entry.kind == Kind.FILE:
            self._added.append((_identity(entry), entry))
        else:
            self._changes.append(Change("added", entry.path, Kind(entry.kind)))

    def _compare(self, before: Entry, after: Entry) -> None:
        what = _differences(before, after)
        if not what:
            return
        if "content" in what or "type" in what:
            if before.kind == Kind.FILE:
                self._gone_chunks.update(chunk_id for chunk_id, _ in self._old.chunks(before))
            if after.kind == Kind.FILE:
                self._fresh.append(after)
        self._changes.append(Change("modified", after.path, Kind(after.kind), None, what, before.size, after.size))

    def result(self) -> Diff:
        """Pair what went with what came, and sum up."""
        for identity, entry in self._added:
            moved = self._removed.get(identity) if entry.size else None
            if moved:
                path, mode, size = moved.pop(0)
                what = ("mode",) if mode != entry.mode else ()
                self._changes.append(Change("renamed", entry.path, Kind.FILE, path, what, size, entry.size))
            else:
                self._fresh.append(entry)
                self._changes.append(Change("added", entry.path, Kind.FILE, new_size=entry.size))
        for left in self._removed.values():
            for path, _, size in left:
                self._changes.append(Change("removed", path, Kind.FILE, old_size=size))
        self._changes.sort(key=lambda change: sort_key(change.path))
        new_bytes = self._new_bytes()
        counts = dict.fromkeys(("added", "removed", "modified", "renamed"), 0)
        for change in self._changes:
            counts[change.status] += 1
        return Diff(
            tuple(self._changes),
            counts["added"],
            counts["removed"],
            counts["modified"],
            counts["renamed"],
            self._new.totals.size - new_bytes,
            new_bytes,
        )

    def _new_bytes(self) -> int:
        total, seen = 0, self._gone_chunks
        for entry in self._fresh:
            for chunk_id, length in self._new.chunks(entry):
                if chunk_id not in seen:
                    seen.add(chunk_id)  # the same chunk a second time is shared within the new version
                    total += length
        return total


def _identity(entry: Entry) -> bytes:
    return hashing.digest(b"%d:%d:" % (entry.size, entry.content.depth) + entry.content.refs)


def _differences(before: Entry, after: Entry) -> tuple[str, ...]:
    if before.kind != after.kind:
        return ("type",)
    found = []
    if before.kind == Kind.FILE and (before.size != after.size or before.content != after.content):
        found.append("content")
    if before.kind == Kind.SYMLINK and before.target != after.target:
        found.append("target")
    if before.mode != after.mode and before.kind != Kind.SYMLINK:
        found.append("mode")
    if (before.xattrs or {}) != (after.xattrs or {}):
        found.append("xattrs")
    return tuple(found)
