"""What the versions of a store refer to.

Decided here and only here: how needed chunks are found, and kept in mind. Each version's manifest is walked node by
node, a node that versions share once. Of each chunk the first eight bytes of its id are kept, two of them by their
place, so that a hundred million chunks take about 0.7 GB: two that begin alike keep each other, which costs a little
space and loses nothing. What can't be read is never guessed: the walk ends with an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from casstore.errors import FormatError
from casstore.format.manifest import (
    CHUNK_REF,
    MAX_NODE,
    NodeRef,
    Root,
    check_list,
    decode_inner,
    decode_leaf,
    list_records,
)
from casstore.repo.store import Store

__all__ = ["LiveChunks", "Walker"]

_KEPT = 6
_SLOTS = 1 << 16
_COMPACT_FROM = 1 << 20
_NODES_AT_ONCE = 256


class LiveChunks:
    """A set of chunks: whatever was added is in it; of 2**64 others perhaps one. Seven bytes each. Not thread-safe."""

    def __init__(self) -> None:
        self._slots = [bytearray() for _ in range(_SLOTS)]
        self._added = 0
        self._compact_at = _COMPACT_FROM

    def add(self, chunk_id: bytes) -> None:
        """Add one chunk."""
        self._slots[chunk_id[0] << 8 | chunk_id[1]] += chunk_id[2:8]
        self._added += 1

    def add_refs(self, refs: bytes) -> None:
        """Add the chunks of a chunk list of depth 0."""
        slots = self._slots
        for start in range(0, len(refs), CHUNK_REF.size):
            slots[refs[start] << 8 | refs[start + 1]] += refs[start + 2 : start + 8]
        self._added += len(refs) // CHUNK_REF.size
        if self._added >= self._compact_at:
            self._compact()

    def _compact(self) -> None:
        """Drop what was added several times; paid for by what was added since the last time."""
        for number, slot in enumerate(self._slots):
            if len(slot) > _KEPT:
                kept = {bytes(slot[start : start + _KEPT]) for start in range(0, len(slot), _KEPT)}
                self._slots[number] = bytearray(b"".join(kept))
        self._added = sum(map(len, self._slots)) // _KEPT
        self._compact_at = max(_COMPACT_FROM, 2 * self._added)

    def __contains__(self, chunk_id: bytes) -> bool:
        slot, tail = self._slots[chunk_id[0] << 8 | chunk_id[1]], chunk_id[2:8]
        found = slot.find(tail)
        while found >= 0 and found % _KEPT:
            found = slot.find(tail, found + 1)
        return found >= 0

    def slot(self, number: int) -> set[bytes]:
        """Return the bytes 2 to 8 of the chunks whose ids begin with this number of two bytes."""
        slot = self._slots[number]
        return {bytes(slot[start : start + _KEPT]) for start in range(0, len(slot), _KEPT)}

    def filled(self) -> Iterator[int]:
        """Yield the numbers of the slots that hold anything, ascending."""
        return (number for number, slot in enumerate(self._slots) if slot)


class Walker:
    """Collects the chunks of versions: nodes, chunk lists and data. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: set[bytes] = set()
        self.chunks = LiveChunks()
        self.manifests: set[bytes] = set()

    def manifest(self, manifest_id: bytes, root: Root) -> None:
        """Walk a manifest. ``NotFoundError`` and ``IntegrityError`` for what is gone or damaged of it."""
        if manifest_id in self.manifests:
            return
        try:
            self._children(root.depth, root.children)
        except BaseException:
            # Of the nodes that were met not all were read: another version may share them.
            self._seen.clear()
            raise
        self.manifests.add(manifest_id)

    def _children(self, depth: int, children: Sequence[NodeRef]) -> None:
        fresh = [child for child in children if self._is_new(b"t", depth, child.chunk_id)]
        for start in range(0, len(fresh), _NODES_AT_ONCE):
            part = fresh[start : start + _NODES_AT_ONCE]
            for data in self._store.read_chunks([(child.chunk_id, child.length) for child in part]):
                if depth:
                    self._children(depth - 1, decode_inner(bytes(data)))
                else:
                    self._leaf(bytes(data))

    def _leaf(self, data: bytes) -> None:
        add_refs = self.chunks.add_refs
        for group in decode_leaf(data):
            for row in group.rows:
                if row.refs and not row.depth:
                    add_refs(row.refs)
                elif row.refs:
                    self._lists(row.depth, row.refs)

    def _lists(self, depth: int, refs: bytes) -> None:
        """Walk the nodes of a chunk list."""
        pending = [(depth, refs)]
        while pending:
            depth, refs = pending.pop()
            if not depth:
                self.chunks.add_refs(refs)
                continue
            fresh = {node: length for node, length in list_records(depth, refs) if self._is_new(b"l", depth, node)}
            for (_, length), data in zip(fresh.items(), self._nodes(fresh), strict=True):
                check_list(depth - 1, data, length)
                pending.append((depth - 1, data))

    def _nodes(self, ids: Iterable[bytes]) -> Iterator[bytes]:
        places = [(node_id, self._store.locate(node_id).raw) for node_id in ids]
        if any(raw > MAX_NODE for _, raw in places):
            raise FormatError("a node of a chunk list is too large")
        for data in self._store.read_chunks(places):
            yield bytes(data)

    def _is_new(self, kind: bytes, depth: int, node_id: bytes) -> bool:
        """Note that a node is needed; whether it is read for the first time. One id may stand in several places."""
        key = b"%b%d%b" % (kind, depth, node_id)
        if key in self._seen:
            return False
        self._seen.add(key)
        self.chunks.add(node_id)
        return True
