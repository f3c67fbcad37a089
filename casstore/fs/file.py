"""One open file of a version.

Decided here and only here: what is fetched with a read, for the next one. A file that is read from front to back is
read ahead, further each time, and in the background where the store is far away. A read near the end fetches all of the
end: what Parquet, zip and MCAP files say of themselves is there, and their readers come for it in several steps. Chunks
that were fetched are in memory, so that fsspec need not cache anything itself; for readers that come for a few bytes at
a time, what follows in the same chunk is at hand.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fsspec.spec import AbstractBufferedFile

from casstore.errors import CasstoreError
from casstore.fs.opened import Source, translated
from casstore.transfer.ranges import Layout

if TYPE_CHECKING:
    from casstore.fs.filesystem import OsmoFileSystem

__all__ = ["OsmoFile"]

FIRST = 256 << 10
"""Bytes that are read ahead when two reads follow each other ..."""
FURTHEST = 8 << 20
"""... and how far that grows."""
TAIL = 256 << 10
"""Bytes at the end that are fetched together."""
LINE = 16 << 10
"""Bytes in which the end of a line is looked for, and what is at hand for the next few of them."""


class OsmoFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file, open for reading. Like any file object, for one thread at a time. It may be used after a fork."""

    loc: int

    def __init__(
        self,
        fs: OsmoFileSystem,
        path: str,
        source: Callable[[], Source],
        layout: Layout,
        *,
        details: dict[str, Any],
        **options: Any,
    ) -> None:
        """``source`` returns the bucket, open in this process."""
        self._source = source
        self._layout = layout
        self._next = 0
        self._ahead = 0
        self._until = 0
        self._fetching: tuple[Source, Future[None]] | None = None
        self._near = b""
        self._near_at = 0
        options["size"] = layout.size
        super().__init__(fs, path, "rb", **options)
        self.details = details

    def _fetch_range(self, start: int, end: int) -> bytes:
        layout = self._layout
        with translated(self.path):
            source = self._source()
            ranges = source.ranges
            sequential, self._next = 0 <= self._next - start < LINE, end
            found = ranges.cached(layout, start, end - start)
            if found is None:
                also = 0, 0
                if layout.size - start <= TAIL:
                    also = max(0, layout.size - TAIL), TAIL
                elif sequential:
                    self._ahead = min(FURTHEST, max(FIRST, 2 * self._ahead))
                    also = start, end - start + self._ahead
                else:
                    self._ahead = 0
                self._until = sum(also)
                found = ranges.read(layout, start, end - start, also=also)
            elif sequential and source.ahead is not None and self._ahead == FURTHEST:
                self._fetch_ahead(source, end)
        return b"".join(found)

    def _fetch_ahead(self, source: Source, end: int) -> None:
        """Fetch what comes after what is in memory, once half of that was read."""
        if self._fetching is not None and self._fetching[0] is source and not self._fetching[1].done():
            return
        if source.ahead is not None and end > self._until - FURTHEST // 2 and self._until < self._layout.size:
            work = source.ahead.submit(_fetch, source, self._layout, self._until)
            self._fetching = source, work
            self._until += FURTHEST

    def read(self, length: int = -1) -> bytes:
        """Return so many bytes, fewer at the end only; all that is left without a number."""
        if length is None or not 0 < length < LINE or self.closed:
            whole: bytes = super().read(-1 if length is None else length)
            return whole
        at = self.loc - self._near_at
        if not 0 <= at <= len(self._near) - length:
            at, self._near_at = 0, self.loc
            self._near = super().read(self._reach(length))
        part = self._near[at : at + length]
        self.loc = self._near_at + at + len(part)
        return part

    def _reach(self, length: int) -> int:
        """How many bytes to read for so many: not beyond the chunk in which those end."""
        begins, end = self._layout.begins, self.loc + length
        after = begins[min(bisect_left(begins, end), len(begins) - 1)]
        return max(length, min(LINE, after - self.loc))

    def readline(self, size: int = -1) -> bytes:
        """Return the next line, or ``size`` bytes of it."""
        at = self.loc - self._near_at
        if 0 <= at < len(self._near) and (end := self._near.find(b"\n", at) + 1) and not self.closed:
            return self.read(end - at if size is None or size < 0 else min(size, end - at))
        if size is None or size < 0:
            line: bytes = self.readuntil(b"\n", blocks=LINE)
            return line
        start = self.tell()
        part: bytes = self.read(min(size, max(LINE, size)))
        line = part[: part.find(b"\n") + 1] or part
        self.seek(start + len(line))
        return line


def _fetch(source: Source, layout: Layout, offset: int) -> None:
    with contextlib.suppress(CasstoreError):  # whoever reads it is told
        source.ranges.read(layout, offset, FURTHEST)
