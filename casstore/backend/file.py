"""A back end in a folder: on a local disk, or on a network file system with ``flock`` and hard links.

Decided here and only here: how an object becomes a file, and how a put is atomic and durable.

    <root>/<key>            one object, one regular file
    <root>/.tmp/            files being written; leftovers older than a day are removed
    <root>/.lock/<00..0f>   locks (flock) under which a file is replaced or removed, chosen by key

Names that start with a dot are no legal keys, so that neither can be mistaken for an object. A put writes a
temporary file, syncs it, and then links it (only where none is) or renames it. ``confined`` keeps every
access below the root; a symbolic link inside a store is not an object.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from casstore.backend.base import (
    Absent,
    Buffer,
    Capabilities,
    Condition,
    Matches,
    Object,
    ObjectInfo,
    check_limit,
    validate_key,
    validate_prefix,
)
from casstore.backend.descriptors import Descriptors
from casstore.errors import (
    AccessError,
    CasstoreError,
    IntegrityError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    StorageError,
)
from casstore.hashing import digest, digest_parts
from casstore.remote.confined import Confined, read_at, write_all

__all__ = ["FileBackend"]

_TEMP = ".tmp"
_LOCK = ".lock"
_LOCKS = 16
_TEMP_AGE = 24 * 3600.0

_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

# Objects that are replaced by compare-and-swap are small. Larger ones get a tag that costs no second pass
# over the bytes; every put makes a new inode, so that inode, size and time of change tell two states apart.
_HASHED_TAG = 16 * 1024 * 1024 + 4096

_SETTLED_S = 2.0

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class FileBackend:
    """A ``Backend`` over an existing folder; safe among all threads, processes and hosts that share it.

    With ``durable=False`` nothing is synced: for stores that need not survive a power failure. ``immutable``
    are the prefixes of keys that are never replaced: files under them are kept open between reads.
    """

    def __init__(
        self,
        root: str,
        *,
        durable: bool = True,
        immutable: tuple[str, ...] = ("packs/", "index/", "manifests/"),
    ) -> None:
        self._path = os.path.realpath(root)
        self._durable = durable
        self._immutable = immutable
        self._swept = False
        self._cache = Descriptors()
        try:
            self._root = Confined(self._path, durable=durable)
        except OSError as error:
            raise self._error(error, "") from error

    @property
    def url(self) -> str:
        """``file://<absolute path>``, percent-encoded."""
        return "file://" + quote(os.fsencode(self._path))

    @property
    def capabilities(self) -> Capabilities:
        """Conditional writes and local files."""
        return Capabilities(conditional_put=True, local=True)

    # --- reading

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """See ``Backend.get``."""
        try:
            with self._opened(key) as (fd, info):
                data = read_at(fd, 0, check_limit(self._name(key), info.st_size, limit))
        except OSError as error:
            raise self._error(error, key) from error
        if len(data) != info.st_size:
            raise IntegrityError(f"{self._name(key)} became shorter while it was read")
        return Object(data, _tag_of(info, data))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        validate_key(key)
        try:
            if not key.startswith(self._immutable):
                with self._opened(key) as (fd, info):
                    return self._slice(key, fd, info.st_size, offset, length)
            entry = self._cache.borrow(key, self._root.open)
            try:
                return self._slice(key, entry.fd, entry.size, offset, length)
            finally:
                self._cache.give_back(entry)
        except OSError as error:
            raise self._error(error, key) from error

    def _slice(self, key: str, fd: int, size: int, offset: int, length: int) -> bytes:
        start = offset if offset >= 0 else size + offset
        if length >= 0 and 0 <= start <= size - length:
            data = read_at(fd, start, length)
            if len(data) == length:
                return data
        raise IntegrityError(f"{self._name(key)} has {size} bytes; {length} from {offset} were asked for")

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        try:
            info = self._root.lstat(validate_key(key))
        except OSError as error:
            raise self._error(error, key) from error
        return _info(key, info)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``. Each folder is read when the listing comes to it."""
        validate_prefix(prefix)
        return self._list(prefix, after)

    def _list(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        try:
            found = self._scan(prefix, after)
        except OSError as error:
            if error.errno in _MISSING:
                return
            raise self._error(error, prefix) from error
        # Keys are ordered as strings, where everything below ``a/`` comes after ``a-b`` and ``a.b``: a folder
        # takes its place by its name with the slash.
        for key, info in sorted(found.items()):
            if info is None:
                yield from self._list(key, after)
            else:
                yield _info(key, info)

    def _scan(self, prefix: str, after: str) -> dict[str, os.stat_result | None]:
        """The legal names in one folder: key -> stat of a file, or key with a slash -> None for a folder."""
        found: dict[str, os.stat_result | None] = {}
        with self._root.folder(prefix) as fd, os.scandir(fd) as entries:
            for entry in entries:
                key = prefix + entry.name
                if not _legal(key):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below = key + "/"
                    if below > after or after.startswith(below):
                        found[below] = None
                elif key > after and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed since
                        found[key] = entry.stat(follow_symlinks=False)
        return found

    def local_path(self, key: str) -> str | None:
        """See ``Backend.local_path``."""
        try:
            self._root.lstat(validate_key(key))
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise self._error(error, key) from error
        return os.path.join(self._path, key)

    # --- writing

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``."""
        validate_key(key)
        parts = [memoryview(part).cast("B") for part in data]
        try:
            if condition is not None:
                self._expect_early(key, condition)
            info = self._put_file(key, parts, condition)
        except OSError as error:
            raise self._error(error, key, writing=True) from error
        self._cache.forget(key)
        if info.st_size > _HASHED_TAG:
            return _stat_tag(info)
        return digest_parts(parts).hex()

    def _put_file(self, key: str, parts: Sequence[memoryview], condition: Condition) -> os.stat_result:
        self._sweep()
        with self._root.made_folder(_TEMP) as folder:
            temp = _Temp(folder, f"{os.getpid():x}-{os.urandom(8).hex()}")
            try:
                info = self._write(temp, parts)
                self._publish(temp, key, condition)
            finally:
                temp.unlink()
        return info

    def _write(self, temp: _Temp, parts: Sequence[memoryview]) -> os.stat_result:
        fd = os.open(temp.name, _CREATE | os.O_EXCL, 0o666, dir_fd=temp.folder)
        try:
            write_all(fd, parts)
            if self._durable:
                os.fsync(fd)
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _publish(self, temp: _Temp, key: str, condition: Condition) -> None:
        """Give a written file the name of its key, if the condition holds."""
        while True:
            try:
                self._publish_once(temp, key, condition)
            except FileNotFoundError:
                # The folder was empty, and somebody's delete removed it under our hands: make it again.
                # Unless it is the temporary file that is gone.
                temp.stat()
            else:
                return

    def _publish_once(self, temp: _Temp, key: str, condition: Condition) -> None:
        folder, _, name = key.rpartition("/")
        with self._root.made_folder(folder) as fd:
            if isinstance(condition, Absent):
                self._link(temp, fd, name, key)
            else:
                with self._locked(key):
                    self._expect(key, condition)
                    os.rename(temp.name, name, src_dir_fd=temp.folder, dst_dir_fd=fd)
            self._root.sync(fd)

    def _link(self, temp: _Temp, folder: int, name: str, key: str) -> None:
        try:
            os.link(temp.name, name, src_dir_fd=temp.folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as error:
            # On a network file system the reply to a link that succeeded may get lost.
            if not os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), temp.stat()):
                raise PreconditionError(f"{self._name(key)} exists already") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here: among those who keep the lock, looking and renaming is as good.
            with self._locked(key):
                if self._exists(key):
                    raise PreconditionError(f"{self._name(key)} exists already") from error
                os.rename(temp.name, name, src_dir_fd=temp.folder, dst_dir_fd=folder)

    def _expect_early(self, key: str, condition: Condition) -> None:
        """Look before anything is written; what decides is the look under the lock, or the link."""
        there = self._exists(key)
        if isinstance(condition, Absent) and there:
            raise PreconditionError(f"{self._name(key)} exists already")
        if isinstance(condition, Matches) and not there:
            raise PreconditionError(f"{self._name(key)} does not exist")

    def _expect(self, key: str, condition: Condition) -> None:
        if not isinstance(condition, Matches):
            return
        try:
            with self._opened(key) as (fd, info):
                data = read_at(fd, 0, info.st_size) if info.st_size <= _HASHED_TAG else b""
        except FileNotFoundError as error:
            raise PreconditionError(f"{self._name(key)} was removed meanwhile") from error
        if _tag_of(info, data) != condition.etag:
            raise PreconditionError(f"{self._name(key)} was changed meanwhile")

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``."""
        touched: set[str] = set()
        for key in keys:
            validate_key(key)
            folder, _, name = key.rpartition("/")
            try:
                with self._root.folder(folder) as fd, self._locked(key):
                    os.unlink(name, dir_fd=fd)
                touched.add(folder)
            except OSError as error:
                if error.errno not in _MISSING and error.errno != errno.EISDIR:
                    raise self._error(error, key, writing=True) from error
            self._cache.forget(key)
        for folder in touched:
            try:
                self._prune(folder)
            except OSError as error:
                raise self._error(error, folder, writing=True) from error

    def _prune(self, folder: str) -> None:
        """Make removals durable, and remove folders that they left empty."""
        while True:
            try:
                with self._root.folder(folder) as fd:
                    self._root.sync(fd)
            except FileNotFoundError:
                pass
            if not folder:
                return
            parent, _, name = folder.rpartition("/")
            try:
                with self._root.folder(parent) as fd:
                    os.rmdir(name, dir_fd=fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, *_DENIED}:
                    return
                raise
            folder = parent

    def close(self) -> None:
        """See ``Backend.close``."""
        self._cache.close()
        self._root.close()

    # --- locks and leftovers

    def _sweep(self) -> None:
        """Remove what crashed writers left. Once, before the first put, as far as it goes."""
        if self._swept:
            return
        self._swept = True
        oldest = time.time() - _TEMP_AGE
        with contextlib.suppress(OSError), self._root.folder(_TEMP) as fd, os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.name, dir_fd=fd)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        validate_key(key)
        fd, info = self._root.open(key)
        try:
            yield fd, info
        finally:
            os.close(fd)

    def _exists(self, key: str) -> bool:
        try:
            self._root.lstat(key)
        except OSError as error:
            if error.errno in _MISSING:
                return False
            raise
        return True

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Keep others, in this process or not, from replacing or removing this key."""
        number = zlib.crc32(key.encode("ascii")) % _LOCKS
        with self._root.made_folder(_LOCK) as folder:
            fd = os.open(f"{number:02x}", _CREATE, 0o666, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _name(self, key: str) -> str:
        return os.fsencode(os.path.join(self._path, key)).decode("utf-8", "backslashreplace")

    def _error(self, error: OSError, key: str, *, writing: bool = False) -> CasstoreError:
        """Translate an error of the operating system."""
        name = self._name(key)
        reason = error.strerror or "input or output error"
        if error.errno in _MISSING and not writing:
            return NotFoundError(f"{name} does not exist")
        if error.errno in _FULL:
            return OutOfSpaceError(f"{name} can't be written: {reason}", hint="free space on this disk")
        if error.errno in _DENIED:
            verb = "written" if writing else "read"
            return AccessError(f"{name} can't be {verb}: {reason}", hint="check owner and permissions")
        if error.errno == errno.EBADF and self._root.closed:
            return StorageError(f"{self.url} was closed")
        return StorageError(f"{name}: {reason}")


class _Temp:
    """The file that a put is writing, by its name in the open folder for such files."""

    __slots__ = ("folder", "name")

    def __init__(self, folder: int, name: str) -> None:
        self.folder = folder
        self.name = name

    def stat(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)

    def unlink(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.name, dir_fd=self.folder)


def _legal(key: str) -> bool:
    try:
        validate_key(key)
    except CasstoreError:
        return False
    return True


def _info(key: str, info: os.stat_result) -> ObjectInfo:
    # A file that is this new may be replaced by one that has its inode, size and time: the clock of files is coarse.
    settled = time.time() - info.st_mtime > _SETTLED_S
    return ObjectInfo(key, info.st_size, info.st_mtime, _stat_tag(info) if settled else "")


def _stat_tag(info: os.stat_result) -> str:
    return f"stat-{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}"


def _tag_of(info: os.stat_result, data: bytes) -> str:
    return _stat_tag(info) if info.st_size > _HASHED_TAG else digest(data).hex()
