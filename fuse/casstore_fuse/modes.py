"""How a mount is served.

Decided here and only here: by which of the two adapters, and whether the kernel opens files without asking
(``NO_OPEN``), once for the whole life of a mount. Asked, it can read large files by itself, at the speed of the local
disk, or leave them to be read past its cache, and each opening costs two messages; not asked, opening a file costs
nothing, and every byte that the kernel does not have in its cache is copied twice. What a mount is better off with is a
matter of how much of it is in large files: see ADR 11 and 27.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys

from casstore.errors import UsageError
from casstore_fuse import habits
from casstore_fuse.members import Members
from casstore_fuse.passthrough import LEAST
from casstore_fuse.vfs import Vfs

__all__ = ["VARIABLE", "by_library", "opens_unasked"]

VARIABLE = "CASSTORE_MOUNT_ADAPTER"
"""``kernel`` or ``library``; without it the first one, wherever it can run."""
SHARE = 64 << 10
"""Bytes in large files, for each file of a version, below which opening costs more than reading. Measured: opening
costs 12 to 50 us, a MiB that is copied 0.5 ms more than one that is not.
"""
_PROTOCOL = (3, 15)
"""The first Linux that knows the layouts of ``abi``."""
_PASSTHROUGH = (6, 9)
_DIRECT = (6, 6)
"""The first Linux that maps files into memory which are read past its cache."""
_CAP_SYS_ADMIN = 1 << 21


def by_library() -> bool:
    """Whether libfuse is to serve: where that is asked for, or where nothing else can."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in {"", "kernel", "library"}:
        raise UsageError(f"{VARIABLE} is {wanted!r}", hint="it may be kernel or library")
    if wanted:
        return wanted == "library"
    return sys.platform != "linux" or _kernel() < _PROTOCOL


def opens_unasked(vfs: Vfs | Members, *, cached: bool) -> bool:
    """Whether the kernel should open files without asking. ``cached``: there is a cache with whole files.

    Reads a few leaves of the manifest where its sums don't tell. Raises what reading the store raises.
    """
    if not cached:
        return True
    least = LEAST if _may_pass_through() else habits.LEAST
    if least == habits.LEAST and _kernel() < _DIRECT:
        return True
    totals = vfs.totals
    mean = totals.size / max(1, totals.files)
    if not SHARE <= mean < SHARE + least:
        return mean < SHARE
    # Sizes of small files have a bound, so that a sample says enough; what is not in them is in large ones.
    sizes = list(vfs.sample())
    return mean - sum(size for size in sizes if size < least) / max(1, len(sizes)) < SHARE


def _may_pass_through() -> bool:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return _kernel() >= _PASSTHROUGH and bool(int(line.split()[1], 16) & _CAP_SYS_ADMIN)
    return False


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
