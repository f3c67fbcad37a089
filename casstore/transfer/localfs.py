"""Where state may be kept that relies on locks: never on a network file system.

Decided here and only here: which file systems count as that, and what is used instead. SQLite's locks and ``flock`` are
promises of one kernel; on file systems that several machines share they hold now and then, and a database breaks. Such
state is a cache, or of use to this machine alone, so that it goes to a folder of the user's own on the local disk,
``/var/tmp/casstore-<uid>``. Others can write to ``/var/tmp``: a folder that is not the user's own, or open to others,
or a link, is not used. Where nothing is local, nothing is remembered.
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
from collections.abc import Callable

from casstore import hashing

__all__ = ["NETWORK", "local_folder"]

NETWORK = frozenset({
    0x6969,  # NFS
    0x517B, 0xFE534D42, 0xFF534D42,  # SMB, SMB2, CIFS
    0x0BD00BD0,  # Lustre
    0x47504653,  # GPFS
    0x00C36400,  # Ceph
    0x01021997,  # 9p: folders of a host in its guests
    0x65735546,  # FUSE: sshfs, s3fs, virtiofs; some of it is local, and nobody can tell which
    0x19830326,  # BeeGFS
    0x20030528,  # OrangeFS
    0xAAD7AAEA,  # PanFS
    0x5346414F, 0x6B414653,  # AFS
    0x7461636F, 0x01161970,  # OCFS2, GFS2
    0x73757245,  # Coda
    0x786F4256,  # vboxsf
})  # fmt: skip
"""``f_type`` of file systems that other machines may be writing to."""

FALLBACK = "/var/tmp"  # noqa: S108 - checked below
"""Survives a restart, and is local on all that anybody runs."""

_STATFS_SIZE = 256
_PRIVATE = 0o077


def local_folder(folder: str, f_type: Callable[[str], int] | None = None) -> str | None:
    """Return ``folder``, or one in its stead on a local disk (made), or None where there is none.

    ``folder`` need not exist. ``f_type`` returns the type of the file system of an existing folder.
    """
    f_type = f_type or _f_type
    if f_type(_existing(folder)) not in NETWORK:
        return folder
    own = os.path.join(FALLBACK, f"casstore-{os.geteuid()}")
    try:
        os.makedirs(own, mode=0o700, exist_ok=True)
        found = os.lstat(own)
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _PRIVATE:
        return None
    if f_type(own) in NETWORK:
        return None
    return os.path.join(own, hashing.digest(os.fsencode(os.path.abspath(folder))).hex()[:16])


def _existing(folder: str) -> str:
    """Return the nearest folder above that is there."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _f_type(folder: str) -> int:
    """Return the type of a file system as statfs(2) has it, 0 where that can't be asked."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    try:
        if _libc().statfs(os.fsencode(folder), buffer) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    # The first field, a word; the types of some are negative where a word has 32 bits.
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
