"""How far ahead of its readers a mount reads.

Decided here and only here: what counts as reading on, in one file from front to back and in small files one after the
other, and how much is fetched together then: twice as much each time, so that who stops has not been sent much in
vain, and who goes on makes few requests. Who jumps about gets what they ask for.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

__all__ = ["FIRST", "NEAR", "Streams"]

FIRST = 4 << 20
"""Bytes that are fetched together at the begin of a file."""
SLACK = 1 << 20
"""Bytes that a read may lie behind what was fetched: the kernel asks for several parts at once, in any order."""
LEAD = 2
"""Times what was fetched last that are fetched ahead of who reads on."""
NEAR = 64
"""Inodes between two files that count as neighbours: folders and empty files lie between them."""
FIRST_FILES = 256 << 10
"""Bytes of small files that are fetched with the second one."""
_FILES, _FRONTS = 4096, 16


class Streams:
    """Who reads on where. Thread-safe."""

    def __init__(self, *, most: int, most_files: int) -> None:
        """``most`` and ``most_files``: bytes that are fetched together, at most, of a file and of small files."""
        self._most = most
        self._most_files = most_files
        self._lock = Lock()
        self._files: OrderedDict[int, tuple[int, int, int]] = OrderedDict()
        self._fronts: list[tuple[int, int, int]] = []

    def of_file(self, node: int, offset: int, size: int) -> int:
        """Return how many bytes from ``offset`` on are best read for a read that is not answered by memory."""
        with self._lock:
            begin, reach, window = self._files.pop(node, (0, -SLACK, 0))
            wanted = 0
            if not begin <= offset <= reach + SLACK:
                begin, reach, window = offset, offset + size, 0
            elif not window or offset + size > reach:  # else it is on its way, or was evicted: read as it is asked for
                wanted = window = min(self._most, 2 * window or FIRST)
                reach = offset + max(size, window)
            self._files[node] = begin, reach, window
            if len(self._files) > _FILES:
                self._files.popitem(last=False)
            return wanted

    def beyond(self, node: int, offset: int, size: int) -> tuple[int, int]:
        """Return what is best fetched now, offset and bytes, for a read that is answered at once: who reads on never
        waits, as long as ``LEAD`` windows are on their way. Who has read less than half a window may not read on.
        """
        with self._lock:
            begin, reach, window = self._files.get(node, (0, 0, 0))
            end = offset + size
            if not window or not begin <= offset <= reach or end < max(begin + window // 2, reach - LEAD * window):
                return reach, 0
            window = min(self._most, 2 * window)
            self._files[node] = begin, reach + window, window
            return reach, window

    def forget(self, node: int) -> None:
        """Note that what was to be fetched of a file is not on its way."""
        with self._lock:
            self._files.pop(node, None)

    def of_small(self, node: int) -> int:
        """Return how many bytes of the files after a small one are best read with it. See ``reached``."""
        with self._lock:
            for number, (begin, last, window) in enumerate(self._fronts):
                if begin < node <= last + NEAR:
                    wanted = min(self._most_files, 2 * window or FIRST_FILES) if node > last else 0
                    del self._fronts[number]
                    self._fronts.append((begin, max(last, node), wanted or window))
                    return wanted
            self._fronts.append((node, node, 0))
            if len(self._fronts) > _FRONTS:
                del self._fronts[0]
            return 0

    def reached(self, node: int, last: int) -> None:
        """Note up to which inode was read ahead from one."""
        with self._lock:
            for number, (begin, before, window) in enumerate(self._fronts):
                if begin < node <= before:
                    self._fronts[number] = begin, max(before, last), window
                    return
