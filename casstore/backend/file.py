"""A back end in a folder: on a local disk, or on a network file system with ``flock`` and hard links.

Decided here and only here: how an object becomes a file, and how a put is atomic and durable.

    <root>/<key>            one object, one regular file
    <root>/.tmp/            files being written; leftovers older than a day are removed
    <root>/.lock/<00..0f>   locks (flock) under which a file is replaced or removed, chosen by key

Names that start with a dot are no legal keys, so that neither can be mistaken for an object. A put writes a
temporary file, syncs it, and then links it (only where none is) or renames it. Every component of a key is
opened relative to the folder above it, following no symbolic link: a folder that somebody else prepared can't
make this code read, list, write or delete anything outside of it. A symbolic link inside a store is not an
object.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
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

__all__ = ["FileBackend"]

_TEMP = ".tmp"
_LOCK = ".lock"
_LOCKS = 16
_TEMP_AGE = 24 * 3600.0

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_IOV_MAX = os.sysconf("SC_IOV_MAX")

# Objects that are replaced by compare-and-swap are small. Larger ones get a tag that costs no second pass
# over the bytes; every put makes a new inode, so that inode, size and time of change tell two states apart.
_HASHED_TAG = 16 * 1024 * 1024 + 4096

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP}


class FileBackend:
    """A ``Backend`` over the folder ``root``, which exists. Safe among threads, processes and hosts that
    share it.

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
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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

    def get(self, key: str) -> Object:
        """See ``Backend.get``."""
        try:
            with self._opened(key) as (fd, info):
                data = _read_exactly(fd, 0, info.st_size)
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
            with self._cache.borrow(key, self._open) as (fd, size):
                return self._slice(key, fd, size, offset, length)
        except OSError as error:
            raise self._error(error, key) from error

    def _slice(self, key: str, fd: int, size: int, offset: int, length: int) -> bytes:
        start = offset if offset >= 0 else size + offset
        if length >= 0 and 0 <= start <= size - length:
            data = _read_exactly(fd, start, length)
            if len(data) == length:
                return data
        raise IntegrityError(f"{self._name(key)} has {size} bytes; {length} from {offset} were asked for")

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        try:
            info = self._lstat(key)
        except OSError as error:
            raise self._error(error, key) from error
        return ObjectInfo(key, info.st_size, info.st_mtime)

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
                yield ObjectInfo(key, info.st_size, info.st_mtime)

    def _scan(self, prefix: str, after: str) -> dict[str, os.stat_result | None]:
        """The legal names in one folder: key -> stat of a file, or key with a slash -> None for a folder."""
        found: dict[str, os.stat_result | None] = {}
        with self._folder(prefix) as fd, os.scandir(fd) as entries:
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
            self._lstat(key)
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
            temp, info = self._write_temp(parts)
            try:
                self._publish(temp, key, condition)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temp, dir_fd=self._root)
        except OSError as error:
            raise self._error(error, key, writing=True) from error
        self._cache.forget(key)
        if info.st_size > _HASHED_TAG:
            return _stat_tag(info)
        return digest_parts(parts).hex()

    def _write_temp(self, parts: Sequence[memoryview]) -> tuple[str, os.stat_result]:
        """Write a new file below ``.tmp`` and sync it."""
        if not self._swept:
            # Marked afterwards: several threads may come here at once, and none may pass before the folder is there.
            self._prepare()
            self._swept = True
        temp = f"{_TEMP}/{os.getpid():x}-{secrets.token_hex(8)}"
        fd = os.open(temp, _CREATE | os.O_EXCL, 0o666, dir_fd=self._root)
        try:
            _write_all(fd, parts)
            if self._durable:
                os.fsync(fd)
            info = os.fstat(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temp, dir_fd=self._root)
            raise
        finally:
            os.close(fd)
        return temp, info

    def _publish(self, temp: str, key: str, condition: Condition) -> None:
        """Give a written file the name of its key, if the condition holds."""
        while True:
            try:
                self._publish_once(temp, key, condition)
            except FileNotFoundError:
                # The folder was empty, and somebody's delete removed it under our hands: make it again.
                os.stat(temp, dir_fd=self._root, follow_symlinks=False)
            else:
                return

    def _publish_once(self, temp: str, key: str, condition: Condition) -> None:
        folder, _, name = key.rpartition("/")
        with self._made_folder(folder) as fd:
            if isinstance(condition, Absent):
                self._link(temp, fd, name, key)
            else:
                with self._locked(key):
                    self._expect(key, condition)
                    os.rename(temp, name, src_dir_fd=self._root, dst_dir_fd=fd)
            self._sync_folder(fd)

    def _link(self, temp: str, folder: int, name: str, key: str) -> None:
        try:
            os.link(temp, name, src_dir_fd=self._root, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError as error:
            # On a network file system the reply to a link that succeeded may get lost.
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if os.path.samestat(there, os.stat(temp, dir_fd=self._root, follow_symlinks=False)):
                return
            raise PreconditionError(f"{self._name(key)} exists already") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here: among those who keep the lock, looking and renaming is as good.
            with self._locked(key):
                if self._exists(key):
                    raise PreconditionError(f"{self._name(key)} exists already") from error
                os.rename(temp, name, src_dir_fd=self._root, dst_dir_fd=folder)

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
                data = _read_exactly(fd, 0, info.st_size) if info.st_size <= _HASHED_TAG else b""
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
                with self._folder(folder) as fd, self._locked(key):
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
                with self._folder(folder) as fd:
                    self._sync_folder(fd)
            except FileNotFoundError:
                pass
            if not folder:
                return
            parent, _, name = folder.rpartition("/")
            try:
                with self._folder(parent) as fd:
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
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # --- files and folders

    def _prepare(self) -> None:
        """Make the folders of our own, and remove what crashed writers left. Once, before the first put."""
        for name in (_TEMP, _LOCK):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._root)
        oldest = time.time() - _TEMP_AGE
        with contextlib.suppress(OSError), self._folder(_TEMP) as fd, os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.name, dir_fd=fd)

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[int]:
        """Open the folder with this slash-separated path below the root, following no symbolic link."""
        fd = os.open(".", _FOLDER, dir_fd=self._root)
        try:
            for name in filter(None, path.split("/")):
                above, fd = fd, os.open(name, _FOLDER, dir_fd=fd)
                os.close(above)
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _made_folder(self, path: str) -> Iterator[int]:
        """Like ``_folder``, but make what is missing, durably."""
        fd = os.open(".", _FOLDER, dir_fd=self._root)
        try:
            for name in filter(None, path.split("/")):
                try:
                    below = os.open(name, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=fd)
                    self._sync_folder(fd)
                    below = os.open(name, _FOLDER, dir_fd=fd)
                above, fd = fd, below
                os.close(above)
            yield fd
        finally:
            os.close(fd)

    def _open(self, key: str) -> tuple[int, os.stat_result]:
        """Open an object for reading: a descriptor, which the caller closes, and its stat."""
        folder, _, name = key.rpartition("/")
        with self._folder(folder) as parent:
            fd = os.open(name, _READ, dir_fd=parent)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        return fd, info

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        validate_key(key)
        fd, info = self._open(key)
        try:
            yield fd, info
        finally:
            os.close(fd)

    def _lstat(self, key: str) -> os.stat_result:
        folder, _, name = validate_key(key).rpartition("/")
        with self._folder(folder) as fd:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        return info

    def _exists(self, key: str) -> bool:
        try:
            self._lstat(key)
        except OSError as error:
            if error.errno in _MISSING:
                return False
            raise
        return True

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Keep others, in this process or not, from replacing or removing this key."""
        number = zlib.crc32(key.encode("ascii")) % _LOCKS
        try:
            fd = os.open(f"{_LOCK}/{number:02x}", _CREATE, 0o666, dir_fd=self._root)
        except FileNotFoundError:
            self._prepare()
            fd = os.open(f"{_LOCK}/{number:02x}", _CREATE, 0o666, dir_fd=self._root)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sync_folder(self, fd: int) -> None:
        if not self._durable:
            return
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise

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
        if error.errno == errno.EBADF and self._root < 0:
            return StorageError(f"{self.url} was closed")
        return StorageError(f"{name}: {reason}")


def _legal(key: str) -> bool:
    try:
        validate_key(key)
    except CasstoreError:
        return False
    return True


def _stat_tag(info: os.stat_result) -> str:
    return f"stat-{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}"


def _tag_of(info: os.stat_result, data: bytes) -> str:
    return _stat_tag(info) if info.st_size > _HASHED_TAG else digest(data).hex()


def _read_exactly(fd: int, offset: int, length: int) -> bytes:
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


def _write_all(fd: int, parts: Sequence[memoryview]) -> None:
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
