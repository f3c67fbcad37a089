"""How much room a cache takes, and what goes first.

Decided here and only here: that a folder of cached files stays below its limit, shared by any number of processes.
Whoever has added a twentieth of the limit since it last looked adds up what is there, and when that is too much
removes what was not used for longest until a tenth is free again; one process at a time does so. A file's time of
modification is when it was last used, to within ``STALE`` seconds. The limit is ``CASSTORE_CACHE_SIZE`` (such as 50G)
where the user has set it, else a tenth of the disk and at most 20 GiB. Whatever is in the cache can be removed at any
moment: whoever has it open goes on. What would take more than half of it is not kept at all: it would drive out what is
used, and be driven out itself before it is used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator

from casstore.errors import StorageError, UsageError

__all__ = ["KEEP", "STALE", "Space", "default_limit", "parse_limit"]

STALE = 600.0
"""Seconds within which a file counts as used just now."""
KEEP = 0.9
"""The share of the limit to which a cache that is too large is brought down."""
_SHARE = 20
_LOCK = ".evict"
_TEMP_AGE = 24 * 3600.0
_VARIABLE = "CASSTORE_CACHE_SIZE"
_MOST, _OF_DISK = 20 << 30, 10


class Space:
    """A folder with a limit in bytes. Thread-safe. ``root`` is made, for this user alone, when it is missing."""

    def __init__(self, root: str, limit: int) -> None:
        self.root = root
        self.limit = limit
        self._lock = threading.Lock()
        self._added = 0
        self._looked = False
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(f"can't make the cache {root}: {error.strerror}", hint="choose another folder") from None

    def added(self, size: int) -> None:
        """Tell of bytes that were written into the cache; may remove others."""
        with self._lock:
            self._added += size
            due = not self._looked or self._added * _SHARE > self.limit
            if due:
                self._added, self._looked = 0, True
        if due:
            self.shrink()

    def admits(self, size: int) -> bool:
        """Whether one thing of this size may be kept."""
        return 2 * size <= self.limit

    def used(self, path: str) -> None:
        """Note that a file of the cache was used now."""
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > STALE:
                os.utime(path)

    def usage(self) -> int:
        """Return the bytes on disk of all that is cached."""
        return sum(size for _, size, _ in self._files())

    def holdings(self) -> dict[str, tuple[int, int]]:
        """Return how many files there are of each kind, and their bytes on disk."""
        found: dict[str, tuple[int, int]] = {}
        for _, size, path in self._files():
            kind = os.path.relpath(path, self.root).partition(os.sep)[0]
            count, total = found.get(kind, (0, 0))
            found[kind] = count + 1, total + size
        return found

    def shrink(self, limit: int | None = None) -> int:
        """Remove what was not used for longest when there is more than the limit; returns the bytes removed."""
        limit = self.limit if limit is None else limit
        with contextlib.suppress(OSError), open(os.path.join(self.root, _LOCK), "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return 0  # another process is at it
            return self._shrink(limit)
        return 0

    def _shrink(self, limit: int) -> int:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= limit:
            return 0
        removed = 0
        for _, size, path in files:
            if total - removed <= limit * KEEP:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed += size
        return removed

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield time of last use, bytes on disk and path of each file; removes what crashed writers left."""
        pending = [self.root]
        while pending:
            with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        elif entry.name != _LOCK and entry.is_file(follow_symlinks=False):
                            info = entry.stat(follow_symlinks=False)
                            if entry.name.startswith(".tmp-") and time.time() - info.st_mtime > _TEMP_AGE:
                                os.unlink(entry.path)
                            else:
                                yield info.st_mtime, info.st_blocks * 512, entry.path


def default_limit(folder: str) -> int:
    """Return how large a cache in this folder (which need not exist) gets when no option says it. ``UsageError``."""
    text = os.environ.get(_VARIABLE, "").strip()
    if text:
        try:
            return parse_limit(text)
        except (ValueError, OverflowError):
            raise UsageError(f"{_VARIABLE} is {text!r}, which is no size", hint="write it like 500M or 50G") from None
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    status = os.statvfs(folder)
    return min(_MOST, status.f_frsize * status.f_blocks // _OF_DISK)


def parse_limit(text: str) -> int:
    """Return the bytes of a size such as ``20G``; ``ValueError`` for anything else. Units are powers of 1024."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    plain = text.strip().upper().removesuffix("B").removesuffix("I")
    number, unit = (plain[:-1], plain[-1]) if plain[-1:] in set("KMGT") else (plain, "")
    size = int(float(number) * units[unit])
    if size < 0:
        raise ValueError(text)
    return size
