"""Fetching files before anybody asks for them.

Decided here and only here: which files, how many at once, and what becomes of those that can't be read: a line in the
log, and nothing else. What was fetched is where reading finds it; a file that is there already is not read again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from casstore.dataset.sources import matcher
from casstore.errors import CasstoreError
from casstore_fuse.contents import AHEAD, Contents
from casstore_fuse.members import Members
from casstore_fuse.passthrough import LEAST
from casstore_fuse.vfs import Vfs, shown

__all__ = ["Ahead"]

_log = logging.getLogger("casstore.fuse")

AT_ONCE = 8
"""Files that are fetched at once."""
_BATCH = 32 * AT_ONCE


class Ahead:
    """Fetches the files whose path matches ``pattern``, or all; at most ``limit`` bytes of one."""

    def __init__(self, vfs: Vfs | Members, contents: Contents, pattern: str, limit: int) -> None:
        self._vfs = vfs
        self._contents = contents
        self._select = matcher(pattern)
        self._limit = limit
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin, in threads that end with the process."""
        threading.Thread(target=self.run, name="casstore-ahead", daemon=True).start()

    def stop(self) -> None:
        """Begin no other file. What is being read may fail from now on, and nothing is said about it."""
        self._stopped.set()

    def run(self) -> None:
        """Fetch, and return when it is done."""
        done = failed = 0
        wanted = self._wanted()
        try:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="casstore-ahead") as pool:
                while batch := list(islice(wanted, _BATCH)):
                    results = list(pool.map(self._fetch, batch))
                    done, failed = done + sum(results), failed + results.count(False)
        except Exception as error:  # noqa: BLE001 - what it reads with may be closed under it
            if not self._stopped.is_set():
                _log.exception("fetching ahead ended: %s", error)
            return
        _log.info("%d files were fetched ahead, %d could not be", done, failed)

    def _wanted(self) -> Iterator[tuple[int, bytes, int]]:
        for node, path, size in self._vfs.files():
            if self._stopped.is_set():
                return
            if 0 < size <= self._limit and (self._select is None or self._select(path)):
                yield node, path, size

    def _fetch(self, file: tuple[int, bytes, int]) -> bool:
        node, path, size = file
        try:
            length, content = self._vfs.content(node)
            layout = self._contents.layout(node, length, content)
            if size >= LEAST and self._contents.files is not None:
                self._contents.keep(length, content, layout)
            else:
                for offset in range(0, size, AHEAD):
                    self._contents.fetch(node, layout, offset, min(AHEAD, size - offset))
        except CasstoreError as error:
            if not self._stopped.is_set():
                _log.error("%s was not fetched ahead: %s", shown(path), error.message)
            return False
        return True
