"""The bytes of the files of a version.

Decided here and only here: how a range of a file becomes chunks, what is kept of them in memory, and who reads what is
not there. Everything was checked against its chunk's id before it is handed out. Neighbouring chunks are read together,
and a file that is read from front to back is read ahead.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock
from typing import NamedTuple

from casstore.model import Content
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.fetch import Fetcher

__all__ = ["Contents", "Layout"]

MEMORY = 64 << 20
"""Bytes of chunks that are kept in memory."""
LAYOUTS = 4096
"""Files whose list of chunks is kept."""
AHEAD = 4 << 20
"""Bytes that are fetched together when a file is read from front to back."""


class Layout(NamedTuple):
    """The chunks of a file: ids, and where each begins; one more begin than there are chunks, the file's size."""

    ids: Sequence[bytes]
    begins: array[int]


class Contents:
    """Reads files of one tree. Thread-safe."""

    def __init__(self, store: Store, tree: Tree) -> None:
        self._store = store
        self._tree = tree
        self._lock = Lock()
        self._layouts: OrderedDict[int, Layout] = OrderedDict()
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._held = 0
        self._spare: list[Fetcher] = []
        self._next: dict[int, int] = {}

    def cached(self, layout: Layout, offset: int, size: int) -> list[memoryview] | None:
        """Return a range of a file, cut at its end, if all of it is in memory; else None."""
        pieces: list[memoryview] = []
        for number, begin, end in _cut(layout, offset, size):
            with self._lock:
                chunk = self._chunks.get(layout.ids[number])
                if chunk is None:
                    return None
                self._chunks.move_to_end(layout.ids[number])
            pieces.append(memoryview(chunk)[begin:end])
        return pieces

    def fetch(self, node: int, layout: Layout, offset: int, size: int) -> list[memoryview]:
        """Return a range of a file, reading what is not in memory. Raises what reading the store raises."""
        sequential = self._next.get(node, 0) == offset
        with self._lock:
            self._next[node] = offset + size
            if len(self._next) > LAYOUTS:
                self._next.clear()
        wanted = _cut(layout, offset, max(size, AHEAD) if sequential else size)
        numbers = [number for number, _, _ in wanted]
        found: dict[bytes, bytes] = {}
        missing: dict[bytes, int] = {}
        with self._lock:
            for number in numbers:
                chunk_id = layout.ids[number]
                chunk = self._chunks.get(chunk_id)
                if chunk is None:
                    missing[chunk_id] = layout.begins[number + 1] - layout.begins[number]
                else:
                    found[chunk_id] = chunk
        if missing:
            fetcher = self._borrow()
            try:
                fetcher.load(missing.items())
                for chunk_id, raw in missing.items():
                    found[chunk_id] = bytes(fetcher.take(chunk_id, raw))
            finally:
                with self._lock:
                    self._spare.append(fetcher)
            self._keep({chunk_id: found[chunk_id] for chunk_id in missing})
        return [memoryview(found[layout.ids[number]])[begin:end] for number, begin, end in _cut(layout, offset, size)]

    def layout(self, node: int, size: int, content: Content) -> Layout:
        """Return the chunks of a file; long lists are read from the store."""
        with self._lock:
            known = self._layouts.get(node)
            if known is not None:
                self._layouts.move_to_end(node)
                return known
        records = list(self._tree.records(content.depth, content.refs)) if size else []
        begins = array("Q", accumulate((length for _, length in records), initial=0))
        known = Layout([chunk_id for chunk_id, _ in records], begins)
        with self._lock:
            self._layouts[node] = known
            while len(self._layouts) > LAYOUTS:
                self._layouts.popitem(last=False)
        return known

    def _borrow(self) -> Fetcher:
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return Fetcher(self._store)

    def _keep(self, chunks: dict[bytes, bytes]) -> None:
        with self._lock:
            for chunk_id, chunk in chunks.items():
                if chunk_id not in self._chunks:
                    self._chunks[chunk_id] = chunk
                    self._held += len(chunk)
            while self._held > MEMORY and self._chunks:
                self._held -= len(self._chunks.popitem(last=False)[1])

    def close(self) -> None:
        """Release buffers and descriptors."""
        with self._lock:
            spare, self._spare = self._spare, []
            self._chunks.clear()
            self._layouts.clear()
        for fetcher in spare:
            fetcher.close()


def _cut(layout: Layout, offset: int, size: int) -> list[tuple[int, int, int]]:
    """Return ``(number of the chunk, begin, end)`` within each chunk that a range touches."""
    begins = layout.begins
    end = min(offset + size, begins[-1])
    pieces: list[tuple[int, int, int]] = []
    number = bisect_right(begins, offset) - 1
    while offset < end:
        stop = min(end, begins[number + 1])
        pieces.append((number, offset - begins[number], stop - begins[number]))
        offset = stop
        number += 1
    return pieces
