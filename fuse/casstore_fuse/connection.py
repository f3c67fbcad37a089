"""A conversation with the kernel about one mount.

Decided here and only here: which requests are answered and how, what the kernel is allowed to keep, and what is done
by whom. A few threads take requests and answer what they took. The last of them that is free reads no file from the
store: it gives that to a pool; and where it must read the manifest, it calls another thread to take requests. So what
is slow holds up nobody else. (A pool for every read would cost a third of the speed of small files.) A failed read is
``EIO`` with a line in the log, never short or wrong data; the next one tries again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from casstore.errors import CasstoreError, NotFoundError
from casstore.model import Content
from casstore_fuse import abi
from casstore_fuse.abi import InitFlag, Op, OpenFlag
from casstore_fuse.contents import Contents, Layout
from casstore_fuse.habits import Habits
from casstore_fuse.members import Members
from casstore_fuse.passthrough import LEAST, Passthrough
from casstore_fuse.state import State
from casstore_fuse.vfs import Vfs, shown

__all__ = ["Connection"]

_log = logging.getLogger("casstore.fuse")

BUFFER = 1 << 17
"""Bytes of the longest request: nothing is written, so that names and headers are all there is."""
LISTING = 1 << 20
"""Bytes of the longest part of a folder that is handed out at once."""
MAX_PAGES = 256
READ_AHEAD = 1 << 20
TAKERS = 2
"""Threads that take requests: more of them only wait for each other, as one of them can compute at a time."""
POOL = 16
"""Reads that are under way at once, besides."""
MOST = 32
"""Threads that take requests, at most, while others of them wait for the manifest."""
KEEPERS = 2
"""Files that are put into the cache at once: nobody waits for that."""
_WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.EXPORT_SUPPORT
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.INIT_EXT
    | InitFlag.HAS_RESEND
    | InitFlag.DIRECT_IO_ALLOW_MMAP
)
_READ_ONLY = frozenset(
    {
        Op.SETATTR,
        Op.SYMLINK,
        Op.MKNOD,
        Op.MKDIR,
        Op.UNLINK,
        Op.RMDIR,
        Op.RENAME,
        Op.LINK,
        Op.WRITE,
        Op.SETXATTR,
        Op.REMOVEXATTR,
        Op.CREATE,
        Op.FALLOCATE,
        Op.RENAME2,
        Op.TMPFILE,
    }
)
"""Requests that would change something."""
_UNANSWERED = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})
_COUNTED, _DIRECT, _WATCHED = 1, 2, 4
"""Bits of the handle of an open file: its closing matters, its readers bypass the kernel's cache, or might have."""
_CACHED_OPEN = abi.open_out(OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH)
_FOLDER_OPEN = abi.open_out(OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR)


class Connection:
    """Answers the requests that come from one ``/dev/fuse`` descriptor, until the mount is gone."""

    def __init__(
        self,
        descriptor: int,
        vfs: Vfs | Members,
        contents: Contents,
        *,
        state: State | None = None,
        no_open: bool = False,
        first: bool = True,
        habits: Habits | None = None,
    ) -> None:
        """``state`` is where the mount is counted and described; ``no_open`` spares the kernel two requests for each
        open file, for the whole life of the mount. ``first`` is false for a server that takes over from another.
        ``habits``: what is known of the readers.
        """
        self._fd = descriptor
        self._state = state or State.anonymous()
        self._first = first
        self._no_open = no_open
        self._vfs = vfs
        self._contents = contents
        self._pool = ThreadPoolExecutor(POOL, thread_name_prefix="casstore-fuse")
        self._keepers = ThreadPoolExecutor(KEEPERS, thread_name_prefix="casstore-fuse-keep")
        self._turn = threading.Condition()
        self._free = TAKERS
        self._idle = self._called = 0
        self._over = False
        self._takers: list[threading.Thread] = []
        vfs.on_wait(self._away)
        self.flags = InitFlag(self._state.flags)
        self._habits = habits or Habits()
        self._through = Passthrough(descriptor, contents.files, self._state, first=first)
        self._handlers: dict[int, Callable[[int, int, memoryview], None]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.STATFS: self._statfs,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.RELEASE: self._release,
            Op.OPENDIR: self._open_folder,
            Op.RELEASEDIR: self._release_folder,
            Op.INIT: self._init,
        }

    def serve(self) -> None:
        """Answer requests until the file system is unmounted."""
        if not self._first and InitFlag.HAS_RESEND in self.flags:
            os.write(self._fd, abi.resend())  # what the last server had taken and not answered comes again
        try:
            with self._turn:
                for _ in range(TAKERS - 1):
                    self._another()
            self._serve()
        finally:
            for other in self._takers:
                other.join()
            for pool in (self._pool, self._keepers):
                pool.shutdown(wait=True, cancel_futures=True)

    def _serve(self) -> None:
        try:
            self._take()
        finally:
            with self._turn:
                self._over = True
                self._turn.notify_all()

    def _another(self) -> None:
        other = threading.Thread(target=self._serve, name="casstore-fuse-take")
        self._takers.append(other)
        other.start()

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """What one of the threads that take requests does meanwhile may last."""
        with self._turn:
            self._free -= 1
            if not self._free and not self._over:
                if self._idle > self._called:
                    self._called += 1
                    self._free += 1
                    self._turn.notify()
                elif len(self._takers) < MOST:
                    self._free += 1
                    self._another()
        try:
            yield
        finally:
            with self._turn:
                self._free += 1

    def _stand_by(self) -> bool:
        """Wait to be called, where there are enough that take requests; whether there is more to do."""
        with self._turn:
            if self._free > TAKERS:
                self._free -= 1
                self._idle += 1
                self._turn.wait_for(lambda: self._called or self._over)
                self._idle -= 1
                if self._called:
                    self._called -= 1
            return not self._over

    def _take(self) -> None:
        buffer = memoryview(bytearray(BUFFER))
        into = [buffer]
        header = abi.IN_HEADER
        handlers = self._handlers
        while self._free <= TAKERS or self._stand_by():
            try:
                length = os.readv(self._fd, into)
            except OSError as error:
                # A request that was interrupted before it was taken; the mount is gone.
                if error.errno in {errno.ENOENT, errno.EINTR, errno.EAGAIN}:
                    continue
                if error.errno == errno.ENODEV:
                    return
                raise
            _, op, unique, node, _, _, _, extensions, _ = header.unpack_from(buffer)
            handler = handlers.get(op)
            if handler is not None:
                self._answer(handler, op, unique, node, buffer[header.size : length - 8 * extensions])
            elif op == Op.DESTROY:
                return
            elif op not in _UNANSWERED:
                self._error(unique, errno.EROFS if op in _READ_ONLY else errno.ENOSYS)

    def _answer(
        self, handler: Callable[[int, int, memoryview], None], op: int, unique: int, node: int, body: memoryview
    ) -> None:
        try:
            handler(unique, node, body)
        except NotFoundError:
            self._error(unique, errno.ENOENT)
        except CasstoreError as error:
            _log.error("%s: %s", self._where(node), error.message)
            self._state.count("errors")
            self._error(unique, errno.EIO)
        except Exception:  # noqa: BLE001 - see the next line
            # A mistake of ours ends one request, not everybody's mount.
            _log.exception("request %d about inode %d", op, node)
            self._error(unique, errno.EIO)

    def _where(self, node: int) -> str:
        try:
            return shown(self._vfs.path(node)) or "the top"
        except CasstoreError:
            return f"inode {node}"

    def _reply(self, unique: int, *body: bytes | memoryview) -> None:
        size = 0
        for part in body:
            size += len(part)
        try:  # noqa: SIM105 - once for each request, and half as long
            os.writev(self._fd, (abi.reply_header(unique, size), *body))
        except FileNotFoundError:
            pass  # whoever asked has gone

    def _error(self, unique: int, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.write(self._fd, abi.reply_header(unique, 0, number))

    def _init(self, unique: int, _: int, body: memoryview) -> None:
        offer = abi.parse_init(body)
        wanted = _WANTED | (InitFlag.PASSTHROUGH if self._contents.files is not None else 0)
        self.flags = InitFlag(offer.flags & wanted)
        self._state.flags = int(self.flags)
        reply = abi.init_out(
            min(offer.minor, abi.MINOR),
            int(self.flags),
            max_readahead=min(offer.max_readahead, READ_AHEAD),
            max_pages=MAX_PAGES,
            # The cache may not lie on a file system that reads through another one; an overlay may lie on the mount.
            stack_depth=1 if InitFlag.PASSTHROUGH in self.flags else 0,
        )
        self._reply(unique, reply)

    def _lookup(self, unique: int, node: int, body: memoryview) -> None:
        self._reply(unique, abi.entry_out(self._vfs.lookup(node, bytes(body[:-1]))))

    def _getattr(self, unique: int, node: int, _: memoryview) -> None:
        self._reply(unique, abi.attr_out(self._vfs.attributes(node)))

    def _readlink(self, unique: int, node: int, _: memoryview) -> None:
        self._reply(unique, self._vfs.target(node))

    def _open(self, unique: int, node: int, body: memoryview) -> None:
        flags, _flags = abi.OPEN_IN.unpack_from(body)
        if self._no_open and InitFlag.NO_OPEN_SUPPORT in self.flags:
            self._error(unique, errno.ENOSYS)
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            self._error(unique, errno.EROFS)
        else:
            self._open_file(unique, node)

    def _open_file(self, unique: int, node: int) -> None:
        self._state.count("opened")
        size, content = self._vfs.content(node)
        if size < LEAST:
            self._reply(unique, _CACHED_OPEN)
            return
        counted = 0
        if InitFlag.PASSTHROUGH in self.flags:
            counted = _COUNTED
            backing = self._through.open(node, size, content)
            if backing:
                self._state.count("passed")
                self._reply(unique, abi.open_out(OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH, backing, counted))
                return
        if self._contents.files is not None and InitFlag.DIRECT_IO_ALLOW_MMAP in self.flags:
            if self._habits.direct(size) and self._contents.is_at_hand(node, size, content):
                self._state.count("direct")
                self._reply(unique, abi.open_out(OpenFlag.DIRECT_IO | OpenFlag.NOFLUSH, handle=counted | _DIRECT))
                return
            self._habits.watch(node)
            counted |= _WATCHED
        self._reply(unique, abi.open_out(OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH, handle=counted))

    def _release(self, unique: int, node: int, body: memoryview) -> None:
        if abi.HANDLE.unpack_from(body)[0] & _COUNTED:
            self._through.release(node)
        self._reply(unique)

    def _open_folder(self, unique: int, _: int, __: memoryview) -> None:
        if InitFlag.NO_OPENDIR_SUPPORT in self.flags:
            self._error(unique, errno.ENOSYS)  # from now on they are opened without asking
        else:
            self._reply(unique, _FOLDER_OPEN)

    def _release_folder(self, unique: int, _: int, __: memoryview) -> None:
        self._reply(unique)

    def _read(self, unique: int, node: int, body: memoryview) -> None:
        handle, offset, size, *_rest = abi.READ_IN.unpack_from(body)
        self._state.count("reads")
        if handle & _DIRECT:
            self._habits.piece(size)
        elif handle & _WATCHED:
            self._habits.first(node, size)
        if not self._read_whole(unique, node, offset, size):
            self._read_chunks(unique, node, offset, size)

    def _read_whole(self, unique: int, node: int, offset: int, size: int, *, wait: bool = False) -> bool:
        """Answer from a file that is whole in the cache; False where that is not possible."""
        found = self._contents.whole(node, offset, size, wait=wait)
        if found is not None:
            self._state.count("cached")
            self._reply(unique, found)
        return found is not None

    def _read_chunks(self, unique: int, node: int, offset: int, size: int) -> None:
        length, content = self._vfs.content(node)
        if self._contents.find(node, length, content) and self._read_whole(unique, node, offset, size):
            return
        with self._away() if content.depth else contextlib.nullcontext():  # a long list of chunks may be far away
            layout = self._contents.layout(node, length, content)
        pieces = self._contents.cached(layout, offset, size)

        def worth(node: int) -> None:
            if length >= LEAST and self._contents.is_worth_keeping(node, layout, size):
                self._keepers.submit(self._keep, node, length, content, layout)

        if pieces is not None:
            self._state.count("hits")
            self._reply(unique, *pieces)
            worth(node)
            return

        def work(unique: int, node: int, _: memoryview) -> None:
            if not self._read_whole(unique, node, offset, size, wait=True):
                self._reply(unique, *self._contents.fetch(node, layout, offset, size, content))
                worth(node)

        with self._turn:
            mine = self._free > 1
            self._free -= mine
        if not mine:
            self._pool.submit(self._answer, work, Op.READ, unique, node, memoryview(b""))
            return
        try:
            work(unique, node, memoryview(b""))
        finally:
            with self._turn:
                self._free += 1

    def _keep(self, node: int, size: int, content: Content, layout: Layout) -> None:
        try:
            self._contents.keep(node, size, content, layout)
        except CasstoreError as error:
            _log.warning("a file was not kept: %s", error.message)

    def _readdirplus(self, unique: int, node: int, body: memoryview) -> None:
        self._list(unique, node, body, abi.direntplus_size, abi.pack_direntplus)

    def _readdir(self, unique: int, node: int, body: memoryview) -> None:
        self._list(unique, node, body, abi.dirent_size, abi.pack_dirent)

    def _list(
        self, unique: int, node: int, body: memoryview, size_of: Callable[[bytes], int], pack: abi.Packer
    ) -> None:
        _, offset, size, *_rest = abi.READ_IN.unpack_from(body)
        size = min(size, LISTING)
        buffer, at = bytearray(size), 0
        for name, after, attributes in self._vfs.listing(node, offset):
            if at + size_of(name) > size:
                break
            at = pack(buffer, at, name, after, attributes)
        self._reply(unique, memoryview(buffer)[:at])

    def _statfs(self, unique: int, _: int, __: memoryview) -> None:
        totals = self._vfs.totals
        self._reply(unique, abi.statfs_out(totals.files + totals.directories + totals.symlinks, totals.size))

    def _getxattr(self, unique: int, node: int, body: memoryview) -> None:
        size, _ = abi.XATTR_IN.unpack_from(body)
        value = self._vfs.xattrs(node).get(bytes(body[abi.XATTR_IN.size : -1]))
        if value is None:
            self._error(unique, errno.ENODATA)
        else:
            self._sized(unique, size, value)

    def _listxattr(self, unique: int, node: int, body: memoryview) -> None:
        size, _ = abi.XATTR_IN.unpack_from(body)
        self._sized(unique, size, b"".join(name + b"\0" for name in sorted(self._vfs.xattrs(node))))

    def _sized(self, unique: int, size: int, value: bytes) -> None:
        """Answer with a value, or with its length when that is what was asked for."""
        if not size:
            self._reply(unique, abi.XATTR_IN.pack(len(value), 0))
        elif len(value) > size:
            self._error(unique, errno.ERANGE)
        else:
            self._reply(unique, value)
