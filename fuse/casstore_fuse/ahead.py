"""Fetching files before anybody asks for them.

Decided here and only here: which files, how many at once, how much of the cache they may take, and what becomes of
those that can't be read: a line in the log, and nothing else. What was fetched is where reading finds it; a file that
is there already is not read again. Small files are fetched together: they are neighbours in the store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from casstore.cache.space import KEEP
from casstore.dataset.sources import matcher
from casstore.errors import CasstoreError
from casstore_fuse.contents import Contents
from casstore_fuse.members import Members
from casstore_fuse.vfs import Vfs, shown

__all__ = ["Ahead"]

_log = logging.getLogger("casstore.fuse")

AT_ONCE = 8
"""Files, or groups of small ones, that are fetched at once."""
GROUP_SIZE, GROUP_FILES = 16 << 20, 1024
"""Bytes and number of the small files that are fetched together, at most."""
_BATCH = 4 * AT_ONCE


class _File(NamedTuple):
    node: int
    path: bytes
    size: int


class Ahead:
    """Fetches the files whose path matches ``pattern``, or all; at most ``limit`` bytes of one, and no more than what
    a cache of that size keeps.
    """

    def __init__(self, vfs: Vfs | Members, contents: Contents, pattern: str, limit: int) -> None:
        self._vfs = vfs
        self._contents = contents
        self._select = matcher(pattern)
        self._limit = limit
        self._stopped = threading.Event()
        self._full = False
        self._left_out = 0

    def start(self) -> None:
        """Begin, in threads that end with the process."""
        threading.Thread(target=self.run, name="casstore-ahead", daemon=True).start()

    def stop(self) -> None:
        """Begin no other file. What is being read may fail from now on, and nothing is said about it."""
        self._stopped.set()

    def run(self) -> None:
        """Fetch, and return when it is done."""
        done = failed = 0
        groups = self._groups()
        try:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="casstore-ahead") as pool:
                while batch := list(islice(groups, _BATCH)):
                    for fetched, lost in pool.map(self._fetch, batch):
                        done, failed = done + fetched, failed + lost
        except Exception as error:  # noqa: BLE001 - what it reads with may be closed under it
            if not self._stopped.is_set():
                _log.exception("fetching ahead ended: %s", error)
            return
        _log.info("%d files were fetched ahead, %d could not be", done, failed)
        if self._left_out:
            _log.warning("%d files are larger than the cache, and were not fetched ahead", self._left_out)
        if self._full:
            _log.warning("no more was fetched ahead: the cache may get %d MiB large, and is full", self._limit >> 20)

    def _groups(self) -> Iterator[list[_File]]:
        """Yield what is fetched at once: one file, or some small ones."""
        group: list[_File] = []
        size = total = 0
        for file in self._wanted():
            total += file.size
            if total > KEEP * self._limit and self._contents.files is not None:
                self._full = True
                break
            if self._contents.keeps(file.size):
                yield [file]
                continue
            group.append(file)
            size += file.size
            if size >= GROUP_SIZE or len(group) >= GROUP_FILES:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _wanted(self) -> Iterator[_File]:
        for node, path, size in self._vfs.files():
            if self._stopped.is_set():
                return
            if size and (self._select is None or self._select(path)):
                if size <= self._limit:
                    yield _File(node, path, size)
                else:
                    self._left_out += 1

    def _fetch(self, group: list[_File]) -> tuple[int, int]:
        """Fetch some files; returns how many of them, and how many could not be."""
        first = group[0]
        try:
            if self._contents.keeps(first.size):
                length, content = self._vfs.content(first.node)
                self._contents.keep(first.node, length, content, self._contents.layout(first.node, length, content))
                return 1, 0
            layouts = [self._contents.layout(file.node, *self._vfs.content(file.node)) for file in group]
            errors = self._contents.fill(layouts)
        except CasstoreError as error:
            errors = [error] * len(group)
        if not self._stopped.is_set():
            for file, failure in zip(group, errors, strict=True):
                if failure is not None:
                    _log.error("%s was not fetched ahead: %s", shown(file.path), failure.message)
        failed = len(errors) - errors.count(None)
        return len(group) - failed, failed
