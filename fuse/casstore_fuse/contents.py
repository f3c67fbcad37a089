"""The bytes of the files of a version.

Decided here and only here: how a range of a file becomes chunks, what is kept of them in memory, and who reads what
is not there. Everything was checked against its chunk's id before it is handed out. Neighbouring chunks are read
together, and a file that is read from front to back is read ahead.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from threading import Event, Lock
from typing import NamedTuple

from casstore.cache.files import FileCache, content_id
from casstore.model import Buffer, Content
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.fetch import Fetcher
from casstore_fuse.state import State

__all__ = ["Contents", "Layout"]

MEMORY = 64 << 20
"""Bytes of chunks that are kept in memory."""
LAYOUTS = 4096
"""Files whose list of chunks is kept."""
AHEAD = 4 << 20
"""Bytes that are fetched together when a file is read from front to back."""

_MOST = 0.9
"""The share of a file by which it counts as read as a whole."""


class Layout(NamedTuple):
    """The chunks of a file: ids, and where each begins; one more begin than there are chunks, the file's size."""

    ids: Sequence[bytes]
    begins: array[int]


class Contents:
    """Reads files of one tree. Thread-safe."""

    def __init__(self, store: Store, tree: Tree, *, files: FileCache | None = None, state: State | None = None) -> None:
        """``files``: where files that were read as a whole are kept whole, for the kernel to read them by itself.
        ``state`` counts what is read from the store.
        """
        self.files = files
        self._state = state or State.anonymous()
        self._store = store
        self._tree = tree
        self._lock = Lock()
        self._layouts: OrderedDict[int, Layout] = OrderedDict()
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._held = 0
        self._spare: list[Fetcher] = []
        self._next: dict[int, int] = {}
        self._read: dict[int, int] = {}
        self._reading: dict[bytes, Event] = {}

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
        pieces = _cut(layout, offset, size)
        with self._lock:
            sequential = self._next.get(node, 0) == offset
            self._next[node] = offset + size
            if len(self._next) > LAYOUTS:
                self._next.clear()
        wanted = _cut(layout, offset, max(size, AHEAD)) if sequential else pieces
        found = self._load(layout, {number for number, _, _ in wanted})
        for number, _, _ in pieces:
            if number not in found:  # another thread was reading it
                found |= self._await(layout, number)
        return [memoryview(found[number])[begin:end] for number, begin, end in pieces]

    def _load(self, layout: Layout, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return these chunks, but those that another thread is reading just now."""
        found: dict[int, bytes] = {}
        mine: dict[bytes, int] = {}
        with self._lock:
            for number in numbers:
                chunk_id = layout.ids[number]
                chunk = self._chunks.get(chunk_id)
                if chunk is not None:
                    found[number] = chunk
                elif chunk_id not in self._reading:
                    mine[chunk_id] = number
                    self._reading[chunk_id] = Event()
        if not mine:
            return found
        try:
            wanted = {chunk_id: layout.begins[n + 1] - layout.begins[n] for chunk_id, n in mine.items()}
            with self._fetcher() as fetcher:
                fetcher.load(wanted.items())
                read = {chunk_id: bytes(fetcher.take(chunk_id, raw)) for chunk_id, raw in wanted.items()}
            self._state.count("fetched", sum(wanted.values()))
            self._keep(read)
            return found | {mine[chunk_id]: chunk for chunk_id, chunk in read.items()}
        finally:
            with self._lock:
                events = [self._reading.pop(chunk_id) for chunk_id in mine]
            for event in events:
                event.set()

    def _await(self, layout: Layout, number: int) -> dict[int, bytes]:
        while True:
            with self._lock:
                event = self._reading.get(layout.ids[number])
            if event is not None:
                event.wait()
            found = self._load(layout, [number])
            if found:
                return found

    def is_worth_keeping(self, node: int, layout: Layout, read: int) -> bool:
        """Count what was read of a file; True once, when it is about all of it: it will be read again."""
        if self.files is None:
            return False
        with self._lock:
            before = self._read.get(node, 0)
            if before < 0:
                return False
            self._read[node] = before + read
            if before + read < layout.begins[-1] * _MOST:
                return False
            self._read[node] = -1
            return True

    def keep(self, size: int, content: Content, layout: Layout) -> None:
        """Put a whole file into the cache. Raises what reading the store raises."""
        if self.files is None:
            return
        identity = content_id(size, content)
        descriptor = self.files.open(identity, size)
        if descriptor is not None:
            os.close(descriptor)
            return
        self.files.add(identity, size, self._pieces(layout))

    def _pieces(self, layout: Layout) -> Iterator[Buffer]:
        offset = 0
        while offset < layout.begins[-1]:
            pieces = _cut(layout, offset, AHEAD)
            wanted = {layout.ids[n]: layout.begins[n + 1] - layout.begins[n] for n, _, _ in pieces}
            with self._fetcher() as fetcher:
                fetcher.load(wanted.items())
                for number, _, _ in pieces:
                    yield fetcher.take(layout.ids[number], wanted[layout.ids[number]])
            offset = layout.begins[pieces[-1][0] + 1]

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

    @contextmanager
    def _fetcher(self) -> Iterator[Fetcher]:
        with self._lock:
            fetcher = self._spare.pop() if self._spare else None
        fetcher = fetcher or Fetcher(self._store)
        try:
            yield fetcher
        finally:
            with self._lock:
                self._spare.append(fetcher)

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
