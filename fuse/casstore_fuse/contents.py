"""The bytes of the files of a mounted version.

Decided here and only here: what is read with what is asked for (see ``streams``), and which files are kept whole, for
the kernel to read them by itself. How ranges are read is ``casstore.transfer.ranges``.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, local
from typing import TypeAlias

from casstore.cache.files import FileCache, content_id
from casstore.cache.parts import Part
from casstore.errors import CasstoreError
from casstore.model import Content
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.ranges import Layout, Ranges, Wanted
from casstore_fuse.passthrough import LEAST
from casstore_fuse.state import State
from casstore_fuse.streams import Streams
from casstore_fuse.wholes import Wholes

Neighbours: TypeAlias = Callable[[int], Iterable[tuple[int, int, Content]]]
"""Inode, size and chunks of what comes after an inode, in the order of the manifest; no chunks for what is no file."""

__all__ = ["AHEAD", "Contents", "Layout", "Neighbours"]

AHEAD, AHEAD_REMOTE = 4 << 20, 16 << 20
"""Bytes that are fetched together when a file is read from front to back, at most."""
AT_ONCE = 6
"""Requests that are under way at once for what comes next in files that are being read."""
PARTS = 64
"""Files that are put together at once."""
SMALL = 1 << 20
"""Bytes of a file up to which it is read together with the files after it, by who reads one after the other."""
GROUP = 1024
"""Small files that are read together, at most."""

_MOST = 0.9
"""The share of a file by which it counts as read as a whole."""


class Contents:
    """Reads files of one tree. Thread-safe."""

    def __init__(
        self,
        store: Store,
        tree: Tree,
        *,
        files: FileCache | None = None,
        state: State | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        """``files``: where files that were read as a whole are kept whole. ``state`` counts what is read from the store
        and from the cache. ``neighbours`` tells what comes after a file; it is asked where the store is far away.
        """
        self.files = files
        self._wholes = None if files is None else Wholes(files)
        self._counts = state or State.anonymous()
        far = self._far = not store.backend.capabilities.local
        self._ahead = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="casstore-ahead") if far else None
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="casstore-finish") if far else None
        self._ranges = Ranges(store, on_fetch=self._count)
        self._tree = tree
        self._lock = Lock()
        self._parts: OrderedDict[int, tuple[Part, Layout]] = OrderedDict()
        self._neighbours = neighbours if far else None
        self._streams = Streams(most=AHEAD_REMOTE if far else AHEAD, most_files=AHEAD)
        self._read: dict[int, int] = {}
        self._mine = local()

    def _count(self, fetched: int, cached: int) -> None:
        if fetched:
            self._counts.count("fetched", fetched)
        if fetched or not cached:
            self._mine.waited = True

    def whole(self, node: int, offset: int, size: int, *, wait: bool = False) -> memoryview | None:
        """Return a range of a file from its place in the cache; see ``Wholes.read``, ``find`` and ``fetch``."""
        if self._wholes is None:
            return None
        found = self._wholes.read(node, offset, size, wait=wait)
        if found is not None and node in self._parts:
            self._go_on(node, offset, size)
        return found

    def _go_on(self, node: int, offset: int, size: int) -> None:
        """Fetch what comes next in a file that is read from front to back."""
        part, layout = self._parts.get(node, (None, None))
        if part is None or layout is None or part.whole or self._ahead is None:
            return
        begin, window = self._streams.beyond(node, offset, size)
        if window and begin < layout.size:
            with contextlib.suppress(RuntimeError):  # it is unmounted just now
                self._ahead.submit(self._fetch_ahead, node, part, layout, begin, window)

    def _fetch_ahead(self, node: int, part: Part, layout: Layout, offset: int, size: int) -> None:
        try:
            self._ranges.read_many([], also=[(layout, offset, size)], into=part)
        except CasstoreError:
            self._streams.forget(node)  # whoever reads it is told, and reads on from there
        self._finish_later(node, part)

    def _part(self, node: int, layout: Layout, content: Content | None) -> Part | None:
        """The file that is put together while it is read, where it comes from far away and is kept whole. Small ones
        come together with their neighbours, as frames.
        """
        if not self._far or content is None or self.files is None or layout.size <= SMALL:
            return None
        if not self.keeps(layout.size):
            return None
        with self._lock:
            if node not in self._parts:
                part = Part.open(self.files, content_id(layout.size, content), layout.begins)
                if part is None:
                    return None
                self._parts[node] = part, layout
                if len(self._parts) > PARTS:
                    self._parts.popitem(last=False)
                if self._wholes is not None:
                    self._wholes.add(node, part)
            self._parts.move_to_end(node)
            return self._parts[node][0]

    def _finish_later(self, node: int, part: Part) -> None:
        """The same by a thread that may wait for the disk, which nobody else is to wait for."""
        if part.whole and self._finisher is not None:
            with contextlib.suppress(RuntimeError):  # it is unmounted just now
                self._finisher.submit(self._finish, node, part)

    def _finish(self, node: int, part: Part) -> None:
        if part.whole:
            part.finish()
            with self._lock:
                self._parts.pop(node, None)

    def find(self, node: int, size: int, content: Content) -> bool:
        """Whether a file is found whole in the cache. It is looked for once, and again when it was kept."""
        wholes = self._wholes
        if wholes is None or size < LEAST or wholes.knows(node):
            return False
        return wholes.look(node, content_id(size, content), size)

    def is_at_hand(self, node: int, size: int, content: Content) -> bool:
        """Whether whoever reads a file again is answered from the cache on the disk, whatever the kernel remembers: it
        is whole there, or is put together there while it is read.
        """
        if self._wholes is None:
            return False
        return self._far or self.find(node, size, content) or self._wholes.holds(node)

    def cached(self, layout: Layout, offset: int, size: int) -> list[memoryview] | None:
        """Return a range of a file, cut at its end, if all of it is in memory; else None."""
        return self._ranges.cached(layout, offset, size)

    def fetch(
        self, node: int, layout: Layout, offset: int, size: int, content: Content | None = None
    ) -> list[memoryview]:
        """Return a range of a file, reading what is not in memory. Raises what reading the store raises.

        With its ``content``, a file that is kept whole is put together in the cache by what is read of it.
        """
        part = self._part(node, layout, content)
        wanted = [(layout, offset, size)]
        ahead = self._streams.of_file(node, offset, size)
        also = [(layout, offset, ahead)]
        if self._neighbours is not None and layout.size <= SMALL:
            also += self._after(node)
        self._mine.waited = False
        try:
            (found,) = self._ranges.read_many(wanted, also=also, into=part)
        except CasstoreError:
            # What is asked for may be on the disk, and what was to be read with it behind a service that is away.
            (found,) = self._ranges.read_many(wanted, into=part)
        if isinstance(found, CasstoreError):
            raise found
        if not self._mine.waited:
            self._counts.count("cached")
        if part is not None:
            self._go_on(node, offset, size)
            self._finish_later(node, part)
        return found

    def _after(self, node: int) -> Sequence[Wanted]:
        """Return the small files after this one that are to be read with it."""
        room = self._streams.of_small(node)
        if not room or self._neighbours is None:
            return ()
        found: list[Wanted] = []
        last = node
        with contextlib.suppress(CasstoreError):  # whoever reads that file is told
            for last, size, content in self._neighbours(node):
                if size > SMALL or room <= 0 or len(found) >= GROUP:
                    break
                if size:
                    found.append((self.layout(last, size, content), 0, size))
                    room -= size
        self._streams.reached(node, last)
        return found

    def fill(self, layouts: Sequence[Layout]) -> list[CasstoreError | None]:
        """Have files where reading finds them: see ``Ranges.fill``."""
        return self._ranges.fill(layouts)

    def keeps(self, size: int) -> bool:
        """Whether a file of this size is kept whole once it was read."""
        return size >= LEAST and self.files is not None and self.files.admits(size)

    def is_worth_keeping(self, node: int, layout: Layout, read: int) -> bool:
        """Count what was read of a file; True once, when it is about all of it: it will be read again."""
        if not self.keeps(layout.size):
            return False
        with self._lock:
            before = self._read.get(node, 0)
            if before < 0:
                return False
            self._read[node] = before + read
            if before + read < layout.size * _MOST:
                return False
            self._read[node] = -1
            return True

    def keep(self, node: int, size: int, content: Content, layout: Layout) -> None:
        """Put a whole file into the cache, if it may be there. Raises what reading the store raises."""
        if self.files is None:
            return
        identity = content_id(size, content)
        descriptor = self.files.open(identity, size)
        if descriptor is not None:
            os.close(descriptor)
            return
        part = self._part(node, layout, content)
        if part is not None:
            self._ranges.complete(layout, part, AHEAD_REMOTE)
            self._finish(node, part)
        elif self.files.add(identity, size, self._ranges.pieces(layout, AHEAD)) and self._wholes is not None:
            self._wholes.look(node, identity, size)

    def layout(self, node: int, size: int, content: Content) -> Layout:
        """Return the chunks of a file; long lists are read from the store."""
        return self._ranges.layout(node, self._tree, size, content)

    def close(self) -> None:
        """Release buffers and descriptors."""
        if self._ahead is not None:
            self._ahead.shutdown(wait=True, cancel_futures=True)
        if self._finisher is not None:
            self._finisher.shutdown(wait=True)
        self._parts.clear()
        if self._wholes is not None:
            self._wholes.close()
        self._ranges.close()
