"""Writing a tree of files without ever leaving its folder.

Decided here and only here: how a path from a manifest becomes system calls. A path is walked one component at a time
from the descriptor of the folder, never following a symbolic link, so that neither a crafted manifest nor links that
are already there can redirect a write; and as no call ever sees more than one component, paths may be longer than
PATH_MAX. What is in the way is refused, not followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from types import TracebackType
from typing import Self

from casstore.errors import AccessError, CasstoreError, ConflictError, FormatError, OutOfSpaceError, StorageError

__all__ = ["NAME_MAX", "Confined", "check_name", "local_error", "show"]

NAME_MAX = 255
"""Bytes in one component of a path."""
CACHED = 32
"""Open directories that one ``Confined`` keeps."""

_WALK = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_IN_THE_WAY = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY})


def show(path: bytes | str) -> str:
    """Return a path for a message: one line, with everything that a terminal might act on escaped."""
    text = path if isinstance(path, str) else path.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def local_error(error: OSError, path: bytes | str) -> CasstoreError:
    """Return the error to raise when writing ``path`` failed with ``error``."""
    what, reason = show(path), error.strerror or str(error)
    if error.errno in _FULL:
        return OutOfSpaceError(f"{what}: {reason}", hint="free some space and run the same command again with --resume")
    if error.errno in _FORBIDDEN:
        return AccessError(f"{what}: {reason}", hint="choose a folder that you may write to")
    if error.errno in _IN_THE_WAY:
        return ConflictError(
            f"{what}: something else is in the way ({reason})",
            hint="a link or file in the way is never written through: remove it, or choose another folder",
        )
    return StorageError(f"{what}: {reason}")


def check_name(name: bytes) -> bytes:
    """Return ``name`` if it is one legal component of a path; ``FormatError`` otherwise."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FormatError(f"illegal file name {show(name)!r}", hint="nothing was written for it")
    if len(name) > NAME_MAX:
        raise FormatError(f"the file name {show(name)!r} is longer than {NAME_MAX} bytes")
    return name


class Confined:
    """One folder to write in. Paths are relative ``bytes``; the folder itself is ``b""``.

    Not thread-safe, because it closes directories that it has not used for a while: each thread takes a ``clone``.
    Methods raise ``FormatError`` for an illegal path and ``OSError`` for what the system refuses; ``local_error``
    turns the latter into an error for the user.
    """

    def __init__(self, descriptor: int, *, cached: int = CACHED) -> None:
        """Take over ``descriptor``, an open directory."""
        self._root = descriptor
        self._cached = cached
        self._open: OrderedDict[bytes, int] = OrderedDict()
        # The directory of the last call is asked for again and again: files come directory by directory.
        self._last_path = b""
        self._last = descriptor

    @classmethod
    def open(cls, folder: str | bytes) -> Confined:
        """Open an existing folder, which must not be a symbolic link itself."""
        return cls(os.open(folder, _WALK))

    def clone(self) -> Confined:
        """Return another one on the same folder, for another thread."""
        return type(self)(os.dup(self._root), cached=self._cached)

    @property
    def descriptor(self) -> int:
        """Descriptor of the folder itself; it lives as long as this object."""
        return self._root

    def component(self, name: bytes) -> bytes:
        """Check one component. Tests override it to play a file system that folds names."""
        if name in (b"", b".", b"..") or len(name) > NAME_MAX or b"\0" in name:
            check_name(name)
        return name

    def directory(self, path: bytes) -> int:
        """Return a descriptor of this directory; it stays open until further calls push it out of the cache."""
        if path == self._last_path:
            return self._last
        found = self._open.get(path)
        if found is None:
            found = self._walk(path) if path else self._root
        else:
            self._open.move_to_end(path)
        self._last_path, self._last = path, found
        return found

    def _walk(self, path: bytes) -> int:
        # The deepest open ancestor, then down; directories that would be pushed out at once are not kept.
        if path.startswith(b"/"):
            raise FormatError(f"{show(path)!r} is an absolute path", hint="nothing was written for it")
        pending: list[bytes] = []
        above, current = path, self._root
        while above:
            known = self._open.get(above)
            if known is not None:
                self._open.move_to_end(above)
                current = known
                break
            above, _, name = above.rpartition(b"/")
            pending.append(self.component(name))
        borrowed = True
        prefix = [above] if above else []
        while pending:
            name = pending.pop()
            prefix.append(name)
            try:
                below = os.open(name, _WALK, dir_fd=current)
            finally:
                if not borrowed:
                    os.close(current)
            current = below
            borrowed = len(pending) < self._cached
            if borrowed:
                self._keep(b"/".join(prefix), current)
        return current

    def _keep(self, path: bytes, descriptor: int) -> None:
        self._open[path] = descriptor
        while len(self._open) > self._cached:
            old, stale = self._open.popitem(last=False)
            if old == self._last_path:
                self._last_path, self._last = b"", self._root
            os.close(stale)

    def split(self, path: bytes) -> tuple[int, bytes]:
        """Return the descriptor of the directory that holds ``path``, and its checked last component."""
        parent, slash, name = path.rpartition(b"/")
        if slash and not parent:
            raise FormatError(f"{show(path)!r} is an absolute path", hint="nothing was written for it")
        name = self.component(name)
        return (self._last if parent == self._last_path else self.directory(parent)), name

    def mkdir(self, path: bytes, mode: int = 0o777) -> bool:
        """Make a directory below an existing one; returns False when a directory is there already."""
        parent, name = self.split(path)
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return False
            raise
        return True

    def makedirs(self, path: bytes, mode: int = 0o777) -> None:
        """Make a directory and what is missing above it."""
        pending: list[bytes] = []
        while path:
            try:
                self.mkdir(path, mode)
                break
            except FileNotFoundError:
                pending.append(path)
                path = path.rpartition(b"/")[0]
        for below in reversed(pending):
            self.mkdir(below, mode)

    def create(self, path: bytes, mode: int = 0o600) -> int:
        """Create a file that must not exist under any spelling, and return its descriptor for writing."""
        parent, name = self.split(path)
        return os.open(name, _CREATE, mode, dir_fd=parent)

    def create_temporary(self, directory: bytes = b"", mode: int = 0o600) -> tuple[int, bytes]:
        """Create a file of a name of its own, and return its descriptor and its path, for ``rename``."""
        name = b".casstore-" + os.urandom(8).hex().encode()
        path = directory + b"/" + name if directory else name
        return self.create(path, mode), path

    def open_file(self, path: bytes, *, write: bool = False) -> int:
        """Open an existing regular file; whatever else is there is refused with ``ENOTDIR`` or ``ELOOP``."""
        parent, name = self.split(path)
        access = os.O_RDWR if write else os.O_RDONLY
        # A FIFO would block the call until somebody opens the other end.
        descriptor = os.open(name, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ENOTDIR, "not a regular file")
        return descriptor

    def stat(self, path: bytes) -> os.stat_result | None:
        """Return the status of what is there, links not followed; None when nothing is."""
        parent, name = self.split(path)
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def readlink(self, path: bytes) -> bytes:
        """Return the target of a symbolic link."""
        parent, name = self.split(path)
        return os.readlink(name, dir_fd=parent)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Create a symbolic link where nothing is."""
        parent, name = self.split(path)
        os.symlink(target, name, dir_fd=parent)

    def link(self, existing: bytes, path: bytes) -> None:
        """Give a file a second name where nothing is."""
        # Copied, for the second look-up may push the first directory out of the cache.
        first, first_name = self.split(existing)
        source = os.dup(first)
        try:
            parent, name = self.split(path)
            os.link(first_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def rename(self, path: bytes, into: Confined, new: bytes) -> None:
        """Move a file to ``new`` in another ``Confined`` (or this one), replacing a file or link that is there."""
        first, first_name = self.split(path)
        source = os.dup(first)
        try:
            parent, name = into.split(new)
            os.rename(first_name, name, src_dir_fd=source, dst_dir_fd=parent)
        finally:
            os.close(source)

    def remove(self, path: bytes) -> None:
        """Remove a file or link; nothing there is no error."""
        parent, name = self.split(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)

    def set_times(self, path: bytes, mtime_ns: int) -> None:
        """Set the modification time of what is there, of a link itself and not of its target."""
        parent, name = self.split(path)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def set_mode(self, path: bytes, mode: int, *, keep: int = 0) -> None:
        """Set the permission bits of a file or directory; bits of ``keep`` that are set stay. Links are refused."""
        parent, name = self.split(path)
        # O_PATH needs no permission on the file itself; chmod(2) through it can't be led elsewhere.
        flags = (os.O_PATH if hasattr(os, "O_PATH") else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISLNK(status.st_mode):
                raise OSError(errno.ELOOP, "a symbolic link is in the way")
            mode |= status.st_mode & keep
            if stat.S_IMODE(status.st_mode) != mode:
                if hasattr(os, "O_PATH"):
                    os.chmod(f"/proc/self/fd/{descriptor}", mode)
                else:
                    os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)

    def forget(self, path: bytes) -> None:
        """Close the directory ``path`` if it is open, before it is removed or renamed."""
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            if self._last_path == path:
                self._last_path, self._last = b"", self._root
            os.close(descriptor)

    def close(self) -> None:
        """Close all directories."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._root >= 0:
            os.close(self._root)
        self._root = self._last = -1
        self._last_path = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
