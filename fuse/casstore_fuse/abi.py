"""The kernel's FUSE protocol, as bytes.

Decided here and only here: the layout of every message that is read from and written to ``/dev/fuse``. No I/O.
Source: ``include/uapi/linux/fuse.h`` (protocol 7.45); the kernel promises that these layouts stay, and both sides
agree on the lower minor version when they meet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import NamedTuple

__all__ = [
    "BACKING_CLOSE",
    "BACKING_OPEN",
    "FOREVER",
    "Attributes",
    "InitFlag",
    "InitIn",
    "Op",
    "OpenFlag",
    "attr_out",
    "backing_map",
    "dirent_size",
    "direntplus_size",
    "entry_out",
    "init_out",
    "open_out",
    "pack_dirent",
    "pack_direntplus",
    "parse_init",
    "reply_header",
    "resend",
    "statfs_out",
]

MAJOR, MINOR = 7, 45
FOREVER = (1 << 63) // 10**9 - 1
"""Seconds that stand for ever: a version never changes."""


class Op(IntEnum):
    """Requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    TMPFILE = 51


class InitFlag(IntFlag):
    """Capabilities, as both halves of the flags of ``FUSE_INIT`` together."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    DO_READDIRPLUS = 1 << 13
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class OpenFlag(IntFlag):
    """What a reply to ``FUSE_OPEN`` asks for."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


IN_HEADER = struct.Struct("=IIQQIIIHH")
"""Length, operation, number of the request, inode, user, group, process, extensions, padding."""
OUT_HEADER = struct.Struct("=IiQ")
"""Length, negative error or zero, number of the request."""
READ_IN = struct.Struct("=QQIIQII")
"""File handle, offset, size, flags, owner of the lock, flags of the open file, padding. For folders too."""
OPEN_IN = struct.Struct("=II")
XATTR_IN = struct.Struct("=II")
HANDLE = struct.Struct("=Q")
"""What a request about an open file begins with."""

_INIT_IN = struct.Struct("=IIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
_ATTR = "QQQQQQIIIIIIIIII"
_ATTR_OUT = struct.Struct("=QII" + _ATTR)
_ENTRY_OUT = struct.Struct("=QQQQII" + _ATTR)
_DIRENT = struct.Struct("=QQII")
_OPEN_OUT = struct.Struct("=QIi")
_STATFS_OUT = struct.Struct("=QQQQQIIII24x")
_BACKING_MAP = struct.Struct("=iIQ")
_NEGATIVE = _ENTRY_OUT.pack(0, 0, FOREVER, 0, *[0] * 18)

_NOTIFY_RESEND = 7
_IOC_WRITE, _MAGIC = 1, 229


def _iow(number: int, size: int) -> int:
    return _IOC_WRITE << 30 | size << 16 | _MAGIC << 8 | number


BACKING_OPEN = _iow(1, _BACKING_MAP.size)
BACKING_CLOSE = _iow(2, 4)


class Attributes(NamedTuple):
    """What ``stat`` shows of an inode. ``node`` is the number between us and the kernel, ``ino`` the one that users
    see: names of one file share it. ``mode`` includes the type; ``mtime_ns`` in nanoseconds since 1970.
    """

    node: int
    ino: int
    mode: int
    size: int
    mtime_ns: int
    nlink: int
    uid: int
    gid: int
    block: int = 4096
    """Bytes that are best read at once: a power of two."""


class InitIn(NamedTuple):
    """What the kernel offers."""

    major: int
    minor: int
    max_readahead: int
    flags: int


def parse_init(body: bytes | memoryview) -> InitIn:
    """Parse the body of ``FUSE_INIT``; a kernel before 7.36 sends no second half of the flags."""
    if len(body) >= _INIT_IN.size:
        major, minor, readahead, low, high = _INIT_IN.unpack_from(body)
        flags = low | (high << 32 if low & InitFlag.INIT_EXT else 0)
        return InitIn(major, minor, readahead, flags)
    major, minor, readahead, low = struct.unpack_from("=IIII", body)
    return InitIn(major, minor, readahead, low)


def init_out(minor: int, flags: int, *, max_readahead: int, max_pages: int, stack_depth: int) -> bytes:
    """The reply to ``FUSE_INIT``. Nothing is ever written through it, so that its largest write is one page."""
    return _INIT_OUT.pack(
        MAJOR, minor, max_readahead, flags & 0xFFFFFFFF, 64, 48, 4096, 1, max_pages, 0, flags >> 32, stack_depth
    )


def reply_header(unique: int, size: int, error: int = 0) -> bytes:
    """Header of a reply with a body of ``size`` bytes; ``error`` is a positive errno, and then there is no body."""
    return OUT_HEADER.pack(OUT_HEADER.size + size, -error, unique)


def resend() -> bytes:
    """The notice by which a new server asks for the requests that the one before it had taken and not answered."""
    return OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0)


def _attr(a: Attributes) -> tuple[int, ...]:
    seconds, nanoseconds = divmod(a.mtime_ns, 10**9)
    seconds &= (1 << 64) - 1  # times before 1970 are negative: two's complement
    blocks = (a.size + 511) // 512
    return (
        a.ino,
        a.size,
        blocks,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        a.mode,
        a.nlink,
        a.uid,
        a.gid,
        0,
        a.block,
        0,
    )


def attr_out(a: Attributes) -> bytes:
    """The reply to ``FUSE_GETATTR``, good for ever."""
    return _ATTR_OUT.pack(FOREVER, 0, 0, *_attr(a))


def entry_out(a: Attributes | None) -> bytes:
    """The reply to ``FUSE_LOOKUP``, good for ever; None: there is no such name, and never will be."""
    return _NEGATIVE if a is None else _ENTRY_OUT.pack(a.node, 0, FOREVER, FOREVER, 0, 0, *_attr(a))


def direntplus_size(name: bytes) -> int:
    """Bytes that an entry of a folder takes in a reply to ``FUSE_READDIRPLUS``."""
    return (_ENTRY_OUT.size + _DIRENT.size + len(name) + 7) & ~7


def pack_direntplus(buffer: bytearray, at: int, name: bytes, next_offset: int, a: Attributes) -> int:
    """Write an entry of a folder into ``buffer`` at ``at``; returns where the next one goes.

    The buffer must have room: see ``direntplus_size``.
    """
    _ENTRY_OUT.pack_into(buffer, at, a.node, 0, FOREVER, FOREVER, 0, 0, *_attr(a))
    return pack_dirent(buffer, at + _ENTRY_OUT.size, name, next_offset, a)


def dirent_size(name: bytes) -> int:
    """Bytes that an entry of a folder takes in a reply to ``FUSE_READDIR``."""
    return (_DIRENT.size + len(name) + 7) & ~7


def pack_dirent(buffer: bytearray, at: int, name: bytes, next_offset: int, a: Attributes) -> int:
    """The same for ``FUSE_READDIR``, for kernels that ask for no attributes."""
    _DIRENT.pack_into(buffer, at, a.ino, next_offset, len(name), a.mode >> 12)
    at += _DIRENT.size
    end = at + len(name)
    buffer[at:end] = name
    padded = (end + 7) & ~7
    buffer[end:padded] = bytes(padded - end)
    return padded


def open_out(flags: int, backing_id: int = 0, handle: int = 0) -> bytes:
    """The reply to ``FUSE_OPEN``; ``backing_id`` names the file that the kernel reads itself, and ``handle`` comes back
    with what is asked about the open file.
    """
    return _OPEN_OUT.pack(handle, flags, backing_id)


def statfs_out(files: int, size: int) -> bytes:
    """The reply to ``FUSE_STATFS``: a full file system of this many files and bytes."""
    return _STATFS_OUT.pack((size + 4095) // 4096, 0, 0, files, 0, 4096, 255, 4096, 0)


def backing_map(descriptor: int) -> bytearray:
    """Argument of ``BACKING_OPEN``; mutable, or the call's result is lost."""
    return bytearray(_BACKING_MAP.pack(descriptor, 0, 0))


Packer = Callable[[bytearray, int, bytes, int, Attributes], int]
