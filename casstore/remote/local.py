"""A local folder in the manner of an object storage service.

Decided here and only here: how the objects of ``file:`` URLs are read and written by transfers. They are plain files
that belong to the user: there is no folder of the client's own among them. A put writes a hidden temporary file next to
its target, syncs it, and renames or links it; ``confined`` keeps every access below the root, and a symbolic link below
the root is not an object. Conditions hold among all who use this module: they look and rename under a lock on the
target's folder. Everything else may change the files, too; the tag of a state is made of inode, size and time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO
from urllib.parse import quote

from casstore.errors import (
    AccessError,
    CasstoreError,
    IntegrityError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    SourceError,
    StorageError,
    UsageError,
)
from casstore.model import Buffer
from casstore.remote.base import Absent, Advance, Condition, Matches, Object, RemoteInfo, check_limit
from casstore.remote.confined import Confined, read_at, write_all

__all__ = ["LocalClient"]

_TEMP = ".casstore-part-"
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_KEY = 4000
_MAX_NAME = 255
_BLOCK = 1 << 20
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class LocalClient:
    """An ``ObjectClient`` over an existing folder, which is the bucket.

    Keys are legal relative paths: no component is empty, ``.`` or ``..``. No other has an object, and a put under one
    is a ``UsageError``. Names that are not UTF-8 are decoded as ``os.fsdecode`` does.
    """

    def __init__(self, root: str, *, durable: bool = True) -> None:
        self._path = os.path.realpath(root)
        self._durable = durable
        self._close_lock = threading.Lock()
        try:
            self._root = Confined(self._path, durable=durable)
        except OSError as error:
            raise self._error(error, "") from error

    @property
    def url(self) -> str:
        """``file://<absolute path>``, percent-encoded."""
        return "file://" + quote(os.fsencode(self._path)).rstrip("/")

    # --- reading

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient.head``."""
        self._find(key)
        try:
            info = self._root.lstat(key)
        except OSError as error:
            raise self._error(error, key) from error
        return _info(key, info)

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient.read``."""
        self._find(key)
        try:
            fd, info = self._root.open(key)
            try:
                size = info.st_size
                start = offset if offset >= 0 else size + offset
                wanted = size - start if length is None else length
                if if_match is not None and if_match != _tag(info):
                    raise PreconditionError(f"{self._name(key)} was changed meanwhile")
                if start < 0 or wanted < 0 or start + wanted > size:
                    raise IntegrityError(f"{self._name(key)} has {size} bytes; {wanted} from {offset} were asked for")
                data = read_at(fd, start, check_limit(self._name(key), wanted, limit))
            finally:
                os.close(fd)
        except OSError as error:
            raise self._error(error, key) from error
        if len(data) != wanted:
            raise IntegrityError(f"{self._name(key)} became shorter while it was read")
        return Object(data, _tag(info))

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient.list``. Each folder is read when the listing comes to it."""
        folder = prefix.rpartition("/")[0]
        if folder and not _is_legal(folder):
            return iter(())
        return self._list(folder + "/" if folder else "", prefix, after, recursive)

    def _list(self, below: str, prefix: str, after: str, recursive: bool) -> Iterator[RemoteInfo]:
        try:
            found = self._scan(below, prefix, os.fsencode(after))
        except OSError as error:
            if error.errno in _MISSING:
                return
            raise self._error(error, below) from error
        # A folder takes its place by its name with the slash, where everything below it sorts.
        for key in sorted(found, key=os.fsencode):
            info = found[key]
            if info is not None:
                if os.fsencode(key) > os.fsencode(after):
                    yield _info(key, info)
            elif recursive:
                yield from self._list(key, prefix, after, recursive)
            elif os.fsencode(key) > os.fsencode(after):
                yield RemoteInfo(key, 0, 0.0, "")

    def _scan(self, below: str, prefix: str, after: bytes) -> dict[str, os.stat_result | None]:
        """The names in one folder: key -> stat of a file, or key with a slash -> None for a folder."""
        found: dict[str, os.stat_result | None] = {}
        with self._root.folder(below) as fd, os.scandir(fd) as entries:
            for entry in entries:
                key = below + entry.name
                if entry.name.startswith(_TEMP):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    key += "/"
                    start = os.fsencode(key)
                    if (key.startswith(prefix) or prefix.startswith(key)) and (
                        start > after or after.startswith(start)
                    ):
                        found[key] = None
                elif key.startswith(prefix) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed since
                        found[key] = entry.stat(follow_symlinks=False)
        return found

    # --- writing

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient.put``."""
        parts = [memoryview(part).cast("B") for part in data]
        return self._write(key, lambda fd: write_all(fd, parts), condition)

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient.upload``."""

        def copy(fd: int) -> None:
            total = 0
            while block := source.read(_BLOCK):
                write_all(fd, [memoryview(block)])
                total += len(block)
                if advance is not None:
                    advance(len(block))
            if size is not None and total != size:
                raise SourceError(f"{self._name(key)}: {total} bytes came where {size} were announced")

        return self._write(key, copy, None)

    def _write(self, key: str, fill: Callable[[int], None], condition: Condition) -> str:
        if not _is_legal(key):
            raise UsageError(f"not a path of a file below a folder: {key[:80]!r}")
        folder, _, name = key.rpartition("/")
        begun = False

        def begin(fd: int) -> None:
            nonlocal begun
            begun = True
            fill(fd)

        while True:
            try:
                with self._root.made_folder(folder) as fd:
                    return self._write_in(fd, name, key, begin, condition)
            except FileNotFoundError as error:
                # The folder was empty, and somebody's delete removed it under our hands: make it again.
                if begun or self._root.closed or not os.fstat(self._root.fd).st_nlink:
                    raise self._error(error, key, writing=True) from error
            except OSError as error:
                raise self._error(error, key, writing=True) from error

    def _write_in(self, folder: int, name: str, key: str, fill: Callable[[int], None], condition: Condition) -> str:
        temp = _TEMP + os.urandom(8).hex()
        fd = os.open(temp, _CREATE, 0o666, dir_fd=folder)
        try:
            fill(fd)
            # Clocks of file systems are coarse, and inodes are used again: a time of our own tells two states apart.
            now = time.time_ns()
            os.utime(fd, ns=(now, now))
            if self._durable:
                os.fsync(fd)
            info = os.fstat(fd)
            with self._locked(folder):
                self._expect(folder, name, key, condition)
                os.rename(temp, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temp, dir_fd=folder)
            raise
        finally:
            os.close(fd)
        self._root.sync(folder)
        return _tag(info)

    def _expect(self, folder: int, name: str, key: str, condition: Condition) -> None:
        if condition is None:
            return
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            if isinstance(condition, Matches):
                raise PreconditionError(f"{self._name(key)} does not exist") from None
            return
        if isinstance(condition, Absent):
            raise PreconditionError(f"{self._name(key)} exists already")
        if not stat.S_ISREG(info.st_mode) or _tag(info) != condition.etag:
            raise PreconditionError(f"{self._name(key)} was changed meanwhile")

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient.delete``. Folders that this leaves empty are removed, up to the root."""
        touched: set[str] = set()
        for key in filter(_is_legal, keys):
            folder, _, name = key.rpartition("/")
            try:
                with self._root.folder(folder) as fd, self._locked(fd):
                    os.unlink(name, dir_fd=fd)
                    self._root.sync(fd)
                touched.add(folder)
            except OSError as error:
                if error.errno not in _MISSING and error.errno != errno.EISDIR:
                    raise self._error(error, key, writing=True) from error
        for folder in touched:
            self._prune(folder)

    def _prune(self, folder: str) -> None:
        while folder:
            parent, _, name = folder.rpartition("/")
            try:
                with self._root.folder(parent) as fd:
                    os.rmdir(name, dir_fd=fd)
            except FileNotFoundError:
                pass
            except OSError:  # not empty, or not ours to remove: an empty folder is no object
                return
            folder = parent

    def close(self) -> None:
        """See ``ObjectClient.close``."""
        with self._close_lock:
            self._root.close()

    @contextlib.contextmanager
    def _locked(self, folder: int) -> Iterator[None]:
        """Keep others who use this module, in this process or not, from replacing or removing what is in a folder."""
        # A lock belongs to an open file: a descriptor of its own for each thread.
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _find(self, key: str) -> None:
        if not _is_legal(key):
            raise NotFoundError(f"{self.url} can hold no file {key[:80]!r}")

    def _name(self, key: str) -> str:
        return os.fsencode(os.path.join(self._path, key)).decode("utf-8", "backslashreplace")

    def _error(self, error: OSError, key: str, *, writing: bool = False) -> CasstoreError:
        """Translate an error of the operating system."""
        name = self._name(key)
        reason = error.strerror or "input or output error"
        if self._root_closed(error):
            return StorageError(f"{self.url} was closed")
        if error.errno in _MISSING and not writing:
            return NotFoundError(f"{name} does not exist")
        if error.errno in _FULL:
            return OutOfSpaceError(f"{name} can't be written: {reason}", hint="free space on this disk")
        if error.errno in _DENIED:
            verb = "written" if writing else "read"
            return AccessError(f"{name} can't be {verb}: {reason}", hint="check owner and permissions")
        return StorageError(f"{name}: {reason}")

    def _root_closed(self, error: OSError) -> bool:
        return error.errno == errno.EBADF and hasattr(self, "_root") and self._root.closed


def _is_legal(key: str) -> bool:
    """Whether this is a relative path without ``.`` and ``..`` that no temporary file has."""
    parts = key.split("/")
    try:
        names = [os.fsencode(part) for part in parts]
    except UnicodeEncodeError:
        return False
    return (
        sum(map(len, names)) + len(names) <= _MAX_KEY
        and "\0" not in key
        and all(name not in {b"", b".", b".."} and len(name) <= _MAX_NAME for name in names)
        and not any(part.startswith(_TEMP) for part in parts)
    )


def _tag(info: os.stat_result) -> str:
    return f"{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}"


def _info(key: str, info: os.stat_result) -> RemoteInfo:
    return RemoteInfo(key, info.st_size, info.st_mtime, _tag(info))
