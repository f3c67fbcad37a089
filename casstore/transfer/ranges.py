"""Ranges of files, for those who read here and there: mounts, and file systems in Python.

Decided here and only here: how a range of a file becomes chunks, what is kept of them in memory, and that several
threads which want the same chunk read it once. Everything was checked against its chunk's id before it is handed out,
and ranges that are wanted together are read together, so that neighbours cost one request. What comes from far away
is put into the cache of this machine, if the store has one.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Lock
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from casstore import hashing
from casstore.cache.files import FileCache, content_id
from casstore.cache.parts import Part, open_any
from casstore.errors import CasstoreError, IntegrityError
from casstore.model import DIGEST_SIZE, Buffer, Content
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.fetch import Fetcher

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Layout", "Ranges", "Wanted"]

MEMORY = 64 << 20
"""Bytes of chunks that are kept in memory."""
LAYOUTS = 4096
"""Files whose list of chunks is kept, ..."""
RECORDS = 1 << 20
"""... as long as all of them together have at most this many chunks, at 40 bytes each."""
MOST_CHUNKS = 1 << 25
"""Chunks of one file, at most: two TiB at the usual size."""
WHOLE = 128 << 10
"""Bytes of a file from which on it may be whole in the cache."""
BATCH_LOCAL, BATCH_REMOTE = 8 << 20, 64 << 20
"""Bytes that are fetched together: what fits into one buffer, or several requests side by side."""


class Layout(NamedTuple):
    """The chunks of a file: their ids one after the other, and where each begins.

    There is one more begin than there are chunks: the file's size. ``identity`` is that of the content of a file that
    may be whole in the cache, else empty.
    """

    ids: bytearray
    begins: array[int]
    identity: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.begins[-1]

    def chunk(self, number: int) -> tuple[bytes, int]:
        """Return id and length of a chunk."""
        start = number * DIGEST_SIZE
        return bytes(self.ids[start : start + DIGEST_SIZE]), self.begins[number + 1] - self.begins[number]

    def cut(self, offset: int, size: int) -> list[tuple[int, int, int]]:
        """Return ``(number of the chunk, begin, end)`` within each chunk that a range touches."""
        begins = self.begins
        end = min(offset + size, begins[-1])
        pieces: list[tuple[int, int, int]] = []
        number = bisect_right(begins, offset) - 1
        while offset < end:
            stop = min(end, begins[number + 1])
            pieces.append((number, offset - begins[number], stop - begins[number]))
            offset = stop
            number += 1
        return pieces


_K = TypeVar("_K")
Wanted: TypeAlias = tuple[Layout, int, int]
"""A file, an offset in it, and a number of bytes."""


class _Tee:
    """Where the chunks of some ranges of one file belong in the cache."""

    def __init__(self, part: Part, ranges: Iterable[Wanted]) -> None:
        self._part = part
        self._numbers: dict[bytes, set[int]] = {}
        for layout, offset, size in ranges:
            if layout.begins is not part.begins and layout.begins != part.begins:
                raise ValueError("ranges of another file")  # they would be written over this one
            for number, _, _ in layout.cut(offset, size):
                self._numbers.setdefault(layout.chunk(number)[0], set()).add(number)

    def look(self, batch: Iterable[tuple[bytes, int]]) -> dict[bytes, bytes]:
        """Return what is there, verified."""
        found: dict[bytes, bytes] = {}
        for chunk_id, raw in batch:
            for number in self._numbers[chunk_id]:
                there = self._part.get(number)
                if there is None or len(there[0]) != raw:
                    continue
                data, sure = there
                if not sure:
                    if hashing.digest(data) != chunk_id:
                        continue
                    self._part.found(number)
                found[chunk_id] = data
        return found

    def put(self, read: Mapping[bytes, Buffer | CasstoreError]) -> bool:
        """Keep what was read; whether that was possible."""
        rows: list[tuple[int, Buffer]] = []
        for chunk_id, data in read.items():
            if not isinstance(data, CasstoreError):
                rows += [(number, data) for number in self._numbers[chunk_id]]
        return self._part.put(sorted(rows, key=_number))


class _Kept:
    """Chunks of some ranges that are in the cache because somebody else read their files as a whole."""

    def __init__(self, files: FileCache, ranges: Iterable[Wanted]) -> None:
        self._files = files
        self._places: dict[bytes, tuple[Layout, int]] = {}
        for layout, offset, size in ranges:
            if layout.identity:
                for number, _, _ in layout.cut(offset, size):
                    self._places[layout.chunk(number)[0]] = layout, number

    def look(self, batch: Iterable[tuple[bytes, int]]) -> dict[bytes, bytes]:
        """Return what is there, verified."""
        found: dict[bytes, bytes] = {}
        opened: dict[bytes, int | None] = {}
        try:
            for chunk_id, raw in batch:
                if chunk_id not in self._places:
                    continue
                layout, number = self._places[chunk_id]
                if layout.identity not in opened:
                    opened[layout.identity] = open_any(self._files, layout.identity, layout.size)
                descriptor = opened[layout.identity]
                if descriptor is not None:
                    with suppress(OSError):
                        data = os.pread(descriptor, raw, layout.begins[number])
                        if hashing.digest(data) == chunk_id:
                            found[chunk_id] = data
        finally:
            for descriptor in opened.values():
                if descriptor is not None:
                    os.close(descriptor)
        return found


def _number(row: tuple[int, Buffer]) -> int:
    return row[0]


class Ranges:
    """Reads files of one store. Thread-safe."""

    def __init__(
        self,
        store: Store,
        *,
        memory: int = MEMORY,
        pool: Executor | None = None,
        on_fetch: Callable[[int, int], None] | None = None,
    ) -> None:
        """``memory``: bytes of chunks that are kept. ``pool`` has threads that wait for an object store.
        ``on_fetch`` is told the bytes that were read from the store, and from the cache on the disk, by the thread that
        reads them; none of both when it had to wait for another thread that reads.
        """
        self._store = store
        self.step = BATCH_LOCAL if store.backend.capabilities.local else BATCH_REMOTE
        """Bytes of a long range that are best asked for at once."""
        self._memory = memory
        self._pool = pool
        self._on_fetch = on_fetch
        self._lock = Lock()
        self._layouts: OrderedDict[Hashable, Layout] = OrderedDict()
        self._records = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._held = 0
        self._spare: list[Fetcher] = []
        self._reading: dict[bytes, Event] = {}

    def layout(self, key: Hashable, tree: Tree, size: int, content: Content) -> Layout:
        """Return the chunks of a file; long lists are read from the store. ``key`` is kept: it names the file.

        ``IntegrityError`` when the list is not as long as the file.
        """
        with self._lock:
            known = self._layouts.get(key)
            if known is not None:
                self._layouts.move_to_end(key)
                return known
        known = _layout(tree, size, content)
        with self._lock:
            if key not in self._layouts:
                self._layouts[key] = known
                self._records += len(known.begins)
            while len(self._layouts) > LAYOUTS or (self._records > RECORDS and len(self._layouts) > 1):
                self._records -= len(self._layouts.popitem(last=False)[1].begins)
        return known

    def cached(self, layout: Layout, offset: int, size: int) -> list[memoryview] | None:
        """Return a range of a file, cut at its end, if all of it is in memory; else None."""
        pieces: list[memoryview] = []
        for number, begin, end in layout.cut(offset, size):
            chunk_id, raw = layout.chunk(number)
            with self._lock:
                chunk = self._chunks.get(chunk_id)
                if chunk is None or len(chunk) != raw:
                    return None
                self._chunks.move_to_end(chunk_id)
            pieces.append(memoryview(chunk)[begin:end])
        return pieces

    def read(self, layout: Layout, offset: int, size: int, *, also: tuple[int, int] = (0, 0)) -> list[memoryview]:
        """Return a range of a file, cut at its end, in pieces. Raises what reading the store raises.

        ``also`` is a range that is fetched with it, for the next read.
        """
        (found,) = self.read_many([(layout, offset, size)], also=[(layout, *also)])
        if isinstance(found, CasstoreError):
            raise found
        return found

    def read_many(
        self, wanted: Sequence[Wanted], *, also: Sequence[Wanted] = (), into: Part | None = None
    ) -> list[list[memoryview] | CasstoreError]:
        """Return ranges of any files, each in pieces, or why it can't be: what is damaged spoils no other range.

        ``into``: what is read is kept in this file, which all of the ranges are of, and neither in memory nor as
        frames. Raises what reaching the store raises.
        """
        cuts = [layout.cut(offset, size) for layout, offset, size in wanted]
        chunks = dict(
            layout.chunk(number) for (layout, _, _), pieces in zip(wanted, cuts, strict=True) for number, _, _ in pieces
        )
        more = dict(layout.chunk(number) for layout, offset, size in also for number, _, _ in layout.cut(offset, size))
        tee = self._beside((*wanted, *also), into)
        found = self._load(more | chunks, tee)
        for chunk_id, raw in chunks.items():
            if chunk_id not in found:  # another thread was reading it
                self._tell(0, 0)
                found |= self._await(chunk_id, raw, tee)
        return [_assemble(layout, pieces, found) for (layout, _, _), pieces in zip(wanted, cuts, strict=True)]

    def _beside(self, ranges: Sequence[Wanted], into: Part | None) -> _Tee | _Kept | None:
        if into is not None:
            return _Tee(into, ranges)
        cache = self._store.cache
        return None if cache is None or not any(one[0].identity for one in ranges) else _Kept(cache.files, ranges)

    def complete(self, layout: Layout, part: Part, step: int) -> None:
        """Read what is missing of a file into it, ``step`` bytes at once. Raises what reading the store raises."""
        missing = {number: layout.chunk(number)[1] for number in part.missing()}
        for batch in _batches(missing, step) if missing else ():
            for found in self.read_many([(layout, layout.begins[number], raw) for number, raw in batch], into=part):
                if isinstance(found, CasstoreError):
                    raise found

    def pieces(self, layout: Layout, step: int) -> Iterator[Buffer]:
        """Yield a whole file, fetching ``step`` bytes at once and keeping none, neither in memory nor on the disk.

        Each piece is valid until the next.
        """
        offset = 0
        while offset < layout.size:
            chunks = [layout.chunk(number) for number, _, _ in layout.cut(offset, step)]
            with self._fetcher(fill=False) as fetcher:
                fetcher.load(chunks)
                for chunk_id, raw in chunks:
                    yield fetcher.take(chunk_id, raw)
            offset += sum(raw for _, raw in chunks)

    def fill(self, layouts: Sequence[Layout]) -> list[CasstoreError | None]:
        """Have these files on the disk, or in memory where there is no cache for them; what is wrong with each.

        Raises what reaching the store raises.
        """
        if self._store.cache is None:
            return [
                found if isinstance(found, CasstoreError) else None
                for found in self.read_many([(layout, 0, layout.size) for layout in layouts])
            ]
        errors: dict[bytes, CasstoreError] = {}
        wanted = dict(layout.chunk(number) for layout in layouts for number, _, _ in layout.cut(0, layout.size))
        for batch in _batches(wanted, self.step) if wanted else ():
            with self._fetcher() as fetcher:
                fetcher.load(batch)
                for chunk_id, raw in batch:
                    try:
                        fetcher.take(chunk_id, raw)
                    except CasstoreError as error:
                        errors[chunk_id] = error
        return [
            next((errors[one] for n in range(len(each.begins) - 1) if (one := each.chunk(n)[0]) in errors), None)
            if errors
            else None
            for each in layouts
        ]

    def _load(
        self, wanted: Mapping[bytes, int], tee: _Tee | _Kept | None = None
    ) -> dict[bytes, Buffer | CasstoreError]:
        """Return these chunks ``{id: length}``, but those that another thread is reading just now."""
        found: dict[bytes, Buffer | CasstoreError] = {}
        mine: dict[bytes, int] = {}
        read = Event()
        with self._lock:
            for chunk_id, raw in wanted.items():
                chunk = self._chunks.get(chunk_id)
                if chunk is not None:
                    found[chunk_id] = chunk
                elif chunk_id not in self._reading:
                    mine[chunk_id] = raw
                    self._reading[chunk_id] = read
        if not mine:
            return found
        try:
            for batch in _batches(mine, self.step):
                found |= self._load_batch(batch, tee)
        finally:
            with self._lock:
                for chunk_id in mine:
                    del self._reading[chunk_id]
            read.set()
        return found

    def _load_batch(
        self, batch: list[tuple[bytes, int]], tee: _Tee | _Kept | None
    ) -> Mapping[bytes, Buffer | CasstoreError]:
        found: dict[bytes, Buffer | CasstoreError] = {}
        if tee is not None and (there := tee.look(batch)):
            found |= there
            self._tell(0, sum(map(len, there.values())))
        rest = [one for one in batch if one[0] not in found]
        if not rest:
            return found
        if not isinstance(tee, _Tee):
            with self._fetcher() as fetcher:
                fetcher.load(rest)
                read = {chunk_id: _take(fetcher, chunk_id, raw) for chunk_id, raw in rest}
                self._keep(read)
            return found | read
        with self._fetcher(fill=False) as fetcher:
            fetcher.load(rest)
            fresh = {chunk_id: _view(fetcher, chunk_id, raw) for chunk_id, raw in rest}
            if not tee.put(fresh):
                self._keep({one: bytes(data) for one, data in fresh.items() if not isinstance(data, CasstoreError)})
        return found | fresh

    def _await(self, chunk_id: bytes, raw: int, tee: _Tee | _Kept | None) -> dict[bytes, Buffer | CasstoreError]:
        while True:
            with self._lock:
                event = self._reading.get(chunk_id)
            if event is not None:
                event.wait()
            found = self._load({chunk_id: raw}, tee)
            if found:
                return found

    @contextmanager
    def _fetcher(self, *, fill: bool = True) -> Iterator[Fetcher]:
        with self._lock:
            fetcher = self._spare.pop() if self._spare else None
        fetcher = fetcher or Fetcher(self._store, self._pool)
        fetcher.fill = fill
        try:
            yield fetcher
        finally:
            fetcher.keep()
            fetched, cached = fetcher.fetched, fetcher.cached
            fetcher.fetched = fetcher.cached = 0
            with self._lock:
                self._spare.append(fetcher)
            if fetched or cached:
                self._tell(fetched, cached)

    def _tell(self, fetched: int, cached: int) -> None:
        if self._on_fetch is not None:
            self._on_fetch(fetched, cached)

    def _keep(self, read: Mapping[bytes, bytes | CasstoreError]) -> None:
        with self._lock:
            for chunk_id, chunk in read.items():
                if not isinstance(chunk, CasstoreError) and chunk_id not in self._chunks:
                    self._chunks[chunk_id] = chunk
                    self._held += len(chunk)
            while self._held > self._memory and self._chunks:
                self._held -= len(self._chunks.popitem(last=False)[1])

    def close(self) -> None:
        """Release buffers and descriptors."""
        with self._lock:
            spare, self._spare = self._spare, []
            self._chunks.clear()
            self._layouts.clear()
            self._held = self._records = 0
        for fetcher in spare:
            fetcher.close()


def _layout(tree: Tree, size: int, content: Content) -> Layout:
    ids = bytearray()
    begins = array("Q", [0])
    total = 0
    for chunk_id, raw in tree.records(content.depth, content.refs) if size else ():
        total += raw
        if total > size or len(begins) > MOST_CHUNKS:
            raise IntegrityError("the list of a file's chunks is longer than the file")
        ids += chunk_id
        begins.append(total)
    if total != size:
        raise IntegrityError("the list of a file's chunks is shorter than the file")
    return Layout(ids, begins, content_id(size, content) if size >= WHOLE else b"")


def _batches(wanted: Mapping[_K, int], most: int) -> Iterator[list[tuple[_K, int]]]:
    batch: list[tuple[_K, int]] = []
    size = 0
    for chunk_id, raw in wanted.items():
        if batch and size + raw > most:
            yield batch
            batch, size = [], 0
        batch.append((chunk_id, raw))
        size += raw
    yield batch


def _take(fetcher: Fetcher, chunk_id: bytes, raw: int) -> bytes | CasstoreError:
    try:
        return bytes(fetcher.take(chunk_id, raw))
    except CasstoreError as error:
        return error


def _view(fetcher: Fetcher, chunk_id: bytes, raw: int) -> Buffer | CasstoreError:
    """The same without a copy, of a store that is far away: what comes from there is nobody's buffer."""
    try:
        return fetcher.take(chunk_id, raw)
    except CasstoreError as error:
        return error


def _assemble(
    layout: Layout, pieces: Iterable[tuple[int, int, int]], found: Mapping[bytes, Buffer | CasstoreError]
) -> list[memoryview] | CasstoreError:
    views: list[memoryview] = []
    for number, begin, end in pieces:
        chunk_id, raw = layout.chunk(number)
        chunk = found[chunk_id]
        if isinstance(chunk, CasstoreError):
            return chunk
        if len(chunk) != raw:
            return IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")
        views.append(memoryview(chunk)[begin:end])
    return views
