"""How much disk the tasks of a group use, and the end of those that use more than they asked for.

Decided here and only here: what counts (all that lies in the home of an attempt: inputs, outputs, its own /tmp, its
layers over the machine's folders), and how often it is counted. A limit is noticed at
the next count, as it is on Kubernetes; counting is stretched so that it takes a small part of one core however many
files there are.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Limit", "StorageWatch", "disk_use"]

INTERVAL = 2.0
"""Seconds between two counts of small homes."""
_SHARE = 20
_BLOCK = 512


class Limit(NamedTuple):
    """The home of an attempt, the bytes it may take, and what is called, once, with the bytes when it takes more."""

    home: Path
    most: int
    reached: Callable[[int], None]


def disk_use(home: Path, *, most: int | None = None) -> int:
    """The bytes on disk below a folder, on its file system; counting ends beyond ``most``. Follows no links.

    What can't be looked at counts nothing. A file with several names counts once.
    """
    total = 0
    seen: set[int] = set()
    try:
        device = os.lstat(home).st_dev
    except OSError:
        return 0
    pending = [str(home)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                        if found.st_dev != device:
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                    except OSError:
                        continue
                    if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        if found.st_ino in seen:
                            continue
                        seen.add(found.st_ino)
                    total += found.st_blocks * _BLOCK
        except OSError:
            continue
        if most is not None and total > most:
            break
    return total


class StorageWatch:
    """One thread that counts for a group. ``limits`` is asked before each count for what runs now, by any key."""

    def __init__(self, name: str, limits: Callable[[], Mapping[object, Limit]]) -> None:
        self._limits = limits
        self._stopping = threading.Event()
        self._told: set[object] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the end of a count that goes on; harmless before ``start``."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = INTERVAL
        while not self._stopping.wait(pause):
            began = time.monotonic()
            for key, limit in self._limits().items():
                if self._stopping.is_set():
                    return
                used = disk_use(limit.home, most=limit.most)
                if used > limit.most and key not in self._told:
                    self._told.add(key)
                    limit.reached(used)
            pause = max(INTERVAL, (time.monotonic() - began) * _SHARE)
