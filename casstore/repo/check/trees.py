"""The trees of versions: what of them can be read.

Decided here and only here: how a tree is followed when parts of it are gone. Nodes are chunks, and versions share most
of them: what was found whole once is not looked at again, so that the work grows with what is stored and not with the
number of versions. What is lost is told file by file; where a node is lost nobody knows what was below it, but how many
entries it had.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from casstore import hashing
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format.manifest import (
    MAX_NODE,
    NodeRef,
    Root,
    Row,
    check_list,
    decode_inner,
    decode_leaf,
    decode_root,
    entry_of,
    list_records,
)
from casstore.format.pack import decode_frame
from casstore.model import Entry, Kind
from casstore.repo import layout
from casstore.repo.check.places import Places
from casstore.repo.check.report import MAX_PATHS
from casstore.repo.check.session import Session
from casstore.repo.check.sums import contradiction
from casstore.repo.limits import bounded_get
from casstore.repo.tree import Tree

__all__ = ["Damage", "Trees"]

MAX_WANTED = 1 << 20
"""Chunks that are missing which are remembered; more are lost all the same."""

_Key: TypeAlias = tuple[bytes, bytes]


@dataclass(slots=True)
class Damage:
    """What is wrong with one tree. ``root``: nothing can be read; ``wrong``: it contradicts itself."""

    root: str | None = None
    wrong: str | None = None
    files: int = 0
    entries: int = 0
    found: list[tuple[bytes, str]] = field(default_factory=list)
    """The first damaged files, and the first entries of parts that are lost, each with what is wrong."""
    paths: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.root or self.wrong or self.files or self.entries)


class _Seen(NamedTuple):
    """A node that is whole, with all below it: its first and last key and how many entries."""

    first: _Key
    last: _Key
    entries: int


class _Unit(NamedTuple):
    """A part of a tree that one thread looks at."""

    damage: Damage
    child: NodeRef
    depth: int
    end: _Key | None


class Trees:
    """Follows trees; a ``NodeSource`` that reads nodes from wherever they are whole. Thread-safe."""

    def __init__(self, session: Session, places: Places, *, needed: bool = True) -> None:
        """``needed`` says that somebody can see these trees, and so needs what they lead to."""
        self._session = session
        self._places = places
        self._needed = needed
        self._nodes: dict[tuple[bytes, bool], _Seen] = {}
        self._lists: set[tuple[int, bytes, int]] = set()
        self._lock = threading.Lock()
        self.wanted: dict[bytes, int] = {}
        self.sums: dict[bytes, tuple[str, tuple[int, ...]]] = {}

    # ---- reading

    def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
        """Return a node, verified; ``IntegrityError`` when there is no whole copy of it."""
        place = self._places.find(chunk_id, needed=self._needed)
        if place is None:
            raise IntegrityError(self._places.why(chunk_id))
        self._use(place.pack_id)
        if place.raw > MAX_NODE or (raw is not None and place.raw != raw):
            raise IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")
        try:
            payload = self._session.backend.read(layout.pack_key(place.pack_id), place.offset, place.stored)
        except NotFoundError:
            raise IntegrityError(f"{layout.pack_key(place.pack_id)} is missing or damaged") from None
        return bytes(decode_frame(chunk_id, place.codec, payload, place.raw))

    def root(self, manifest_id: bytes) -> Root:
        """Return the root of a manifest, verified. ``NotFoundError``, ``IntegrityError``."""
        key = layout.manifest_key(manifest_id)
        data = bounded_get(self._session.backend, key, MAX_NODE)
        if hashing.digest(data) != manifest_id:
            raise IntegrityError(f"{key} is damaged")
        return decode_root(data)

    def _use(self, pack_id: bytes) -> None:
        pack = self._places.packs.known.get(pack_id)
        if pack is not None and self._needed:
            pack.used = True

    # ---- following

    def check(self, manifests: Sequence[bytes], *, whole: bool) -> dict[bytes, Damage]:
        """Return what is wrong with each of these trees. With ``whole`` their checksums are computed, too."""
        found: dict[bytes, Damage] = {}
        roots: dict[bytes, Root] = {}

        def units() -> Iterator[_Unit]:
            for manifest_id in manifests:
                damage = found[manifest_id] = Damage()
                try:
                    root = self.root(manifest_id)
                except NotFoundError:
                    damage.root = f"{layout.manifest_key(manifest_id)} is missing"
                    continue
                except IntegrityError as error:
                    damage.root = error.message
                    continue
                self.sums[manifest_id] = root.checksum.hex(), tuple(root.totals)
                if whole:
                    roots[manifest_id] = root
                for child, before in _bounded(root.children, None):
                    yield _Unit(damage, child, root.depth, before)

        self._session.spread(lambda unit: self._part(*unit), units())
        if whole:
            readable = [one for one in roots if found[one].root is None and not found[one].entries]
            self._session.spread(lambda one: self._sums(one, roots[one], found[one]), readable)
        return found

    def _sums(self, manifest_id: bytes, root: Root, damage: Damage) -> None:
        damage.wrong = contradiction(Tree(self, manifest_id, root))

    def _part(self, damage: Damage, child: NodeRef, depth: int, end: _Key | None) -> _Seen | None:
        """Follow a node; returns what it is when all below it is whole."""
        key = (child.chunk_id, depth == 0)
        seen = self._nodes.get(key)
        try:
            if seen is None:
                data = self.read_chunk(child.chunk_id, child.length)
                seen, whole = self._leaf(data, damage) if depth == 0 else self._inner(data, depth, end, damage)
                if whole:
                    self._nodes[key] = seen
            else:
                whole = True
            if (*seen.first, seen.entries) != (child.directory, child.name, child.count):
                raise FormatError("a node of a manifest is not what its parent says")
            if end is not None and (seen.last[0].replace(b"/", b"\0"), seen.last[1]) >= end:
                raise FormatError("the nodes of a manifest overlap")
        except CasstoreError as error:
            if not isinstance(error, IntegrityError):
                raise
            with self._lock:
                damage.entries += min(child.count, 1 << 50)
                if len(damage.found) < MAX_PATHS:
                    first = child.directory + b"/" + child.name if child.directory else child.name
                    damage.found.append((first, f"{child.count} entries from here on are lost: {error.message}"))
            return None
        return seen if whole else None

    def _inner(self, data: bytes, depth: int, end: _Key | None, damage: Damage) -> tuple[_Seen, bool]:
        below = decode_inner(data)
        whole, last = True, (below[-1].directory, below[-1].name)
        for child, before in _bounded(below, end):
            part = self._part(damage, child, depth - 1, before)
            if part is None:
                whole = False
            else:
                last = part.last
        return _Seen((below[0].directory, below[0].name), last, sum(child.count for child in below)), whole

    def _leaf(self, data: bytes, damage: Damage) -> tuple[_Seen, bool]:
        groups = decode_leaf(data)
        whole = True
        for group in groups:
            for row in group.rows:
                if row.kind != Kind.FILE:
                    continue
                wrong = self._file(row)
                self._session.followed(row.size)
                if wrong is None:
                    continue
                whole = False
                path = group.directory + b"/" + row.name if group.directory else row.name
                with self._lock:
                    damage.files += 1
                    if len(damage.paths) < MAX_PATHS:
                        damage.paths.append(path)
                    if len(damage.found) < MAX_PATHS:
                        damage.found.append((path, wrong))
        first, last = groups[0], groups[-1]
        entries = sum(len(group.rows) for group in groups)
        seen = _Seen((first.directory, first.rows[0].name), (last.directory, last.rows[-1].name), entries)
        return seen, whole

    def _file(self, row: Row) -> str | None:
        """Say what is wrong with the content of a file, or None."""
        wrong: str | None = None
        pending: list[tuple[int, bytes]] = [(row.depth, row.refs)]
        nodes: set[tuple[int, bytes, int]] = set()
        while pending:
            depth, refs = pending.pop()
            try:
                records = list(list_records(depth, refs))
            except FormatError as error:
                return error.message
            if depth == 0:
                wrong = self._chunks(records) or wrong
                continue
            for node_id, length in records:
                # A node is looked at once, however often it is part of a list: a file may be long and all zeros.
                node = (depth, node_id, length)
                if node in nodes or node in self._lists:
                    continue
                nodes.add(node)
                try:
                    below = self.read_chunk(node_id)
                    check_list(depth - 1, below, length)
                    pending.append((depth - 1, below))
                except IntegrityError as error:
                    wrong = error.message
        if wrong is None:
            self._lists |= nodes  # of a damaged file none: which of its nodes it was does not matter
        return wrong

    def _chunks(self, refs: Sequence[tuple[bytes, int]]) -> str | None:
        wrong: str | None = None
        last: bytes | None = None
        for chunk_id, length in refs:
            if chunk_id == last:
                continue
            last = chunk_id
            place = self._places.find(chunk_id, needed=self._needed)
            if place is None:
                wrong = wrong or self._places.why(chunk_id)
                if len(self.wanted) < MAX_WANTED:
                    self.wanted[chunk_id] = length
            elif place.raw != length:
                wrong = wrong or f"chunk {chunk_id.hex()} has another length than its reference says"
            else:
                self._use(place.pack_id)
        return wrong

    def survivors(self, manifest_id: bytes, lost: Callable[[bytes, int], None]) -> Iterator[Entry]:
        """Yield the entries of a tree that are whole, in order.

        ``lost`` is told each damaged file, with 0, and the first entry of each part that can't be read, with the number
        of its entries. ``NotFoundError``, ``IntegrityError`` when the root can't be read.
        """
        root = self.root(manifest_id)
        yield from self._surviving(root.children, root.depth, lost)

    def _surviving(
        self, children: Sequence[NodeRef], depth: int, lost: Callable[[bytes, int], None]
    ) -> Iterator[Entry]:
        for child in children:
            try:
                data = self.read_chunk(child.chunk_id, child.length)
                below = decode_inner(data) if depth else []
                groups = [] if depth else decode_leaf(data)
            except IntegrityError:
                lost(child.directory + b"/" + child.name if child.directory else child.name, child.count)
                continue
            yield from self._surviving(below, depth - 1, lost)
            for group in groups:
                for row in group.rows:
                    entry = entry_of(group.directory, row)
                    if row.kind == Kind.FILE and self._file(row) is not None:
                        lost(entry.path, 0)
                    else:
                        yield entry


def _bounded(children: Sequence[NodeRef], end: _Key | None) -> Iterator[tuple[NodeRef, _Key | None]]:
    """Yield each child with the key that all entries below it come before: that of the next one."""
    for number in range(1, len(children)):
        yield children[number - 1], children[number].key
    if children:
        yield children[-1], end
