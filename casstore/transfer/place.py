"""Files of a download that are on this machine's disk already, in the cache of whole files.

Decided here and only here: how a cached file comes to its place. As a clone that shares its blocks (FICLONE), where the
file system can do that; else as a copy that the kernel makes (copy_file_range); else as a plain copy. On request as a
hard link, read-only: then it *is* the file of the cache, with the times of that one. Executable files, and those with
extended attributes, are copied all the same, because a link has no attributes of its own.

What is not cached is put into the cache first, when that is asked for: verified on the way, as always.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from casstore.cache.files import FileCache, content_id
from casstore.errors import CasstoreError, UsageError
from casstore.model import Buffer, Entry, Flag
from casstore.repo.tree import Tree
from casstore.transfer.fetch import Fetcher
from casstore.transfer.openfile import at
from casstore.transfer.restore import Counts, Restorer
from casstore.transfer.safefs import Confined, local_error
from casstore.transfer.stage import Landing

__all__ = ["LINK_MODE", "Placer", "clone"]

LINK_MODE = 0o444
"""Permission bits of a file that is a hard link into the cache."""
_FICLONE = 0x40049409
_AT_ONCE = 1 << 30
"""Bytes that the kernel copies in one call, which can't be interrupted."""
_BATCH = 8 << 20
_EXECUTABLE = 0o111
_NOT_HERE = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF})
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOENT})


def clone(source: int, target: int, size: int) -> bool:
    """Give an empty file the first ``size`` bytes of another; True when both share their blocks. ``OSError``."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        if os.fstat(target).st_size == size:
            return True
        os.ftruncate(target, 0)
    _copy(source, target, size)
    return False


def _copy(source: int, target: int, size: int) -> None:
    offset = 0
    by_kernel = hasattr(os, "copy_file_range")
    while offset < size:
        if by_kernel:
            try:
                done = os.copy_file_range(source, target, min(size - offset, _AT_ONCE), offset, offset)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                by_kernel = False
                continue
        else:
            data = os.pread(source, min(size - offset, _BATCH), offset)
            done = os.pwrite(target, data, offset) if data else 0
        if not done:
            raise OSError(errno.EIO, "the cached file is too short")
        offset += done


class _Kit:
    """What one thread works with."""

    def __init__(self, placer: Placer) -> None:
        landing = placer.landing
        self.root = landing.root.clone()
        self.temporary = landing.temporary.clone() if landing.temporary is not None else None
        self.fetcher = Fetcher(placer.restorer.store, placer.restorer.readers)

    def close(self) -> None:
        self.fetcher.close()
        self.root.close()
        if self.temporary is not None:
            self.temporary.close()


class Placer:
    """Threads that place cached files. ``take`` hands over work, ``drain`` waits, ``close`` ends it.

    ``placed``: files that came from the cache. What can't be placed goes to the restorer.
    """

    def __init__(
        self,
        files: FileCache,
        tree: Tree,
        landing: Landing,
        restorer: Restorer,
        *,
        fill: bool = False,
        link: bool = False,
        threads: int,
    ) -> None:
        """``fill``: put what is missing into the cache first. ``link``: hard links; ``UsageError`` where there can be
        none.
        """
        self.landing = landing
        self.restorer = restorer
        self.placed = 0
        self._files = files
        self._tree = tree
        self._fill = fill or link
        self._link = link
        if link:
            self._probe()
        self._most = 4 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="casstore-place")
        self._running: set[Future[None]] = set()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._kits: list[_Kit] = []
        self._failed: list[Entry] = []

    def _probe(self) -> None:
        name = f".tmp-{os.getpid()}-{os.urandom(6).hex()}"
        path = os.path.join(self._files.folder, name)
        folder = self.landing.temporary or self.landing.root
        try:
            os.makedirs(self._files.folder, mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400))
            os.link(path, name, dst_dir_fd=folder.descriptor, follow_symlinks=False)
            folder.remove(name.encode())
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise local_error(error, self._files.folder) from None
            raise UsageError(
                f"no hard links are possible from the cache {self._files.folder} to the destination: {error.strerror}",
                hint="both must be on one file system: set XDG_CACHE_HOME, or leave out --link",
            ) from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def take(self, entry: Entry) -> bool:
        """Place a file, if it is cached or is to be; False when it is to be written as any other."""
        if not entry.size or entry.flags & Flag.SPARSE:
            return False
        identity = content_id(entry.size, entry.content)
        source = self._files.open(identity, entry.size)
        if source is None and not self._fill:
            return False
        try:
            self._wait(self._most)
        except BaseException:
            if source is not None:
                os.close(source)
            raise
        self._running.add(self._pool.submit(self._place, entry, identity, source))
        return True

    def _wait(self, most: int) -> None:
        """Wait until fewer are at work; raises what went wrong."""
        while len(self._running) >= most:
            done, self._running = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
            for one in done:
                one.result()

    def drain(self) -> None:
        """Wait for all; what could not be placed is handed to the restorer."""
        self._wait(1)
        failed, self._failed = self._failed, []
        for entry in failed:
            self.restorer.add((entry, False))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        for kit in self._kits:
            kit.close()
        self._kits.clear()

    # --- for the threads

    def _kit(self) -> _Kit:
        kit: _Kit | None = getattr(self._local, "kit", None)
        if kit is None:
            kit = self._local.kit = _Kit(self)
            with self._lock:
                self._kits.append(kit)
        return kit

    def _place(self, entry: Entry, identity: bytes, source: int | None) -> None:
        known = source is not None
        try:
            kit = self._kit()
            if source is None:
                self._files.add(identity, entry.size, self._pieces(kit.fetcher, entry))
                source = self._files.open(identity, entry.size)
            if source is None or not self._put(kit, entry, identity, source):
                with self._lock:
                    self._failed.append(entry)
                return
        except OSError as error:
            raise local_error(error, entry.path) from None
        except CasstoreError as error:
            raise at(entry, error) from None
        finally:
            if source is not None:
                os.close(source)
        with self._lock:
            self.placed += known
        self.restorer.count(Counts(files=1, size=entry.size, written=entry.size))
        self.restorer.progress.file_done(entry.path)

    def _pieces(self, fetcher: Fetcher, entry: Entry) -> Iterator[Buffer]:
        batch: list[tuple[bytes, int]] = []
        size = 0
        for ref in self._tree.chunks(entry):
            batch.append(ref)
            size += ref[1]
            if size >= _BATCH:
                yield from _taken(fetcher, batch)
                batch, size = [], 0
        yield from _taken(fetcher, batch)

    def _put(self, kit: _Kit, entry: Entry, identity: bytes, source: int) -> bool:
        if self._link and not entry.mode & _EXECUTABLE and not entry.xattrs:
            os.fchmod(source, LINK_MODE)
            if self._hard_link(kit, entry.path, identity):
                return True
        if kit.temporary is not None:
            descriptor, name = kit.temporary.create_temporary()
        else:
            kit.root.remove(entry.path)
            descriptor, name = kit.root.create(entry.path), b""
        try:
            clone(source, descriptor, entry.size)
            self.restorer.complete(descriptor, entry)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            _remove(kit, name or entry.path)
            return False  # the disk can't read it: the store can
        finally:
            os.close(descriptor)
        if kit.temporary is not None:
            kit.temporary.rename(name, kit.root, entry.path)
        return True

    def _hard_link(self, kit: _Kit, path: bytes, identity: bytes) -> bool:
        folder, name = kit.root, path
        if kit.temporary is not None:
            folder, name = kit.temporary, b".casstore-" + os.urandom(8).hex().encode()
        else:
            kit.root.remove(path)
        parent, last = folder.split(name)
        try:
            os.link(os.fsencode(self._files.path(identity)), last, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False  # it has as many links as it can have, or was evicted: a copy, then
            raise
        if kit.temporary is not None:
            kit.temporary.rename(name, kit.root, path)
            kit.temporary.remove(name)  # a rename over another name of the same file does nothing
        return True


def _remove(kit: _Kit, path: bytes) -> None:
    folder: Confined = kit.temporary or kit.root
    folder.remove(path)


def _taken(fetcher: Fetcher, batch: list[tuple[bytes, int]]) -> Iterator[Buffer]:
    fetcher.load(batch)
    for chunk_id, raw in batch:
        yield fetcher.take(chunk_id, raw)
