"""Files below one folder, and never outside of it.

Decided here and only here: how a path below a folder is opened. Every component is opened relative to the
folder above it, following no symbolic link, so that a folder that somebody else prepared can't make anybody
read, list, write or delete anything outside of it. Errors are those of the operating system; whoever calls
translates them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

__all__ = ["Confined", "read_at", "write_all"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK a named pipe that somebody put into a store would block the reader for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_NO_SYNC = {errno.EINVAL, errno.EOPNOTSUPP}


class Confined:
    """An open folder. Paths are relative to it, slash-separated and checked before (``validate_key``)."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self._durable = durable
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called; every other method then fails with ``EBADF``."""
        return self.fd < 0

    def close(self) -> None:
        """Close the folder."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """Open the folder with this slash-separated path below the root, following no symbolic link."""
        fd = os.open(".", _FOLDER, dir_fd=self.fd)
        try:
            for name in filter(None, path.split("/")):
                above, fd = fd, os.open(name, _FOLDER, dir_fd=fd)
                os.close(above)
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def made_folder(self, path: str) -> Iterator[int]:
        """Like ``folder``, but make what is missing, durably."""
        fd = os.open(".", _FOLDER, dir_fd=self.fd)
        try:
            for name in filter(None, path.split("/")):
                try:
                    below = os.open(name, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                    self.sync(fd)
                    below = os.open(name, _FOLDER, dir_fd=fd)
                above, fd = fd, below
                os.close(above)
            yield fd
        finally:
            os.close(fd)

    def open(self, key: str) -> tuple[int, os.stat_result]:
        """Open an object for reading: a descriptor, which the caller closes, and its stat."""
        folder, _, name = key.rpartition("/")
        with self.folder(folder) as parent:
            fd = os.open(name, _READ, dir_fd=parent)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        return fd, info

    def lstat(self, key: str) -> os.stat_result:
        """The stat of an object."""
        folder, _, name = key.rpartition("/")
        with self.folder(folder) as fd:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        return info

    def sync(self, fd: int) -> None:
        """Make the names in an open folder durable, where the file system can."""
        if not self._durable:
            return
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Read ``length`` bytes, or up to the end of the file if it comes before."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    got = len(data)
    while got < length:
        data = os.pread(fd, length - got, offset + got)
        if not data:
            break
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def write_all(fd: int, parts: Sequence[memoryview]) -> None:
    """Write the concatenation of ``parts``, with few system calls and no copy."""
    pending = [part for part in parts if part.nbytes]
    first = 0
    while first < len(pending):
        written = os.writev(fd, pending[first : first + _IOV_MAX])
        while written:
            part = pending[first]
            if written < part.nbytes:
                pending[first] = part[written:]
                break
            written -= part.nbytes
            first += 1
