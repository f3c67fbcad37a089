"""A mount by libfuse, where the kernel's protocol is not spoken by ourselves.

Decided here and only here: how libfuse's calls, which name files by their paths, become questions to the same ``vfs``
and ``contents``. The library mounts by itself, nobody holds the mount for it, and it lists folders without what
``stat`` shows: it is for where there is nothing better. A failed read is ``EIO`` with a line in the log, never short
or wrong data.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import signal
from collections.abc import Callable
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

from casstore.errors import CasstoreError, NotFoundError, StorageError
from casstore_fuse.abi import FOREVER, Attributes
from casstore_fuse.contents import Contents
from casstore_fuse.members import Members
from casstore_fuse.state import State
from casstore_fuse.vfs import ROOT, Vfs, shown

__all__ = ["Library"]

_log = logging.getLogger("casstore.fuse")
_P = ParamSpec("_P")
_T = TypeVar("_T")
AT_ONCE = 512
"""Entries of a folder that are handed out at once: more than fit into what the kernel asks for."""
_SECONDS = min(FOREVER, 10**9)
"""That stand for ever: libfuse keeps them as a floating-point number, and adds the time of day."""


def _answer(method: Callable[Concatenate[Library, _P], _T]) -> Callable[Concatenate[Library, _P], _T]:
    """Make an error number of whatever a method raises."""

    @functools.wraps(method)
    def answer(self: Library, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except NotFoundError:
            number = errno.ENOENT
        except CasstoreError as error:
            _log.error("%s: %s", self.where(args), error.message)
            self.state.count("errors")
            number = errno.EIO
        except OSError:
            raise
        except Exception:  # noqa: BLE001 - a mistake of ours ends one request, not everybody's mount
            _log.exception("%s of %r", method.__name__, args[:1])
            number = errno.EIO
        raise OSError(number, os.strerror(number))

    return answer


def _ignore_broken_pipes() -> None:
    """Have the process live on when it writes to what was closed, as Python has it: libfuse takes that back at its end.

    By the C library, because Python lets no other thread than the first do it.
    """
    ctypes.CDLL(None).signal(int(signal.SIGPIPE), ctypes.c_void_p(int(signal.SIG_IGN)))


class Library:
    """Answers libfuse. Thread-safe, as libfuse has threads of its own. Its methods are called by ``mfusepy``."""

    use_ns = True

    def __init__(
        self, vfs: Vfs | Members, contents: Contents, *, state: State | None = None, ready: Callable[[], None]
    ) -> None:
        """``ready`` is called when the mount answers."""
        self.state = state or State.anonymous()
        self._vfs = vfs
        self._contents = contents
        self._ready = ready
        self._folders: dict[str, int] = {"/": ROOT}

    def serve(self, path: str, source: str) -> None:
        """Mount at a folder, and answer until the mount is gone. ``StorageError`` where it can't be."""
        mfusepy = _load()
        options: dict[str, Any] = {"ro": True, "nosuid": True, "nodev": True, "default_permissions": True}
        options |= {"subtype": "casstore", "fsname": source.replace(",", "_"), "use_ino": True, "max_read": 1 << 20}
        options |= dict.fromkeys(("entry_timeout", "attr_timeout", "negative_timeout"), _SECONDS)
        if os.geteuid() == 0:
            options["allow_other"] = True
        try:
            mfusepy.FUSE(self, path, raw_fi=True, foreground=True, **options)
        except RuntimeError:
            raise StorageError(f"can't mount at {path}: libfuse refuses") from None
        finally:
            _ignore_broken_pipes()

    def where(self, args: tuple[object, ...]) -> str:
        """What a request is about, for the log."""
        handle = getattr(args[-1], "fh", None) if args else None
        if handle:
            return shown(self._vfs.path(handle))
        return shown(os.fsencode(str(args[0]))) if args else "?"

    def init(self, _: str) -> None:
        """The kernel and libfuse have met."""
        self._ready()

    @_answer
    def getattr(self, path: str, _: object = None) -> dict[str, int]:
        """What ``stat`` shows."""
        found = self._find(path)
        blocks = (found.size + 511) // 512
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), found.mtime_ns)
        return times | {
            "st_ino": found.ino,
            "st_mode": found.mode,
            "st_size": found.size,
            "st_nlink": found.nlink,
            "st_uid": found.uid,
            "st_gid": found.gid,
            "st_blocks": blocks,
            "st_blksize": 4096,
        }

    @_answer
    def readdir_with_offset(self, path: str, offset: int, _: int) -> list[tuple[str, dict[str, int], int]]:
        """Some of the entries of a folder from an offset on, each with the offset of the next one."""
        some = islice(self._vfs.listing(self._find(path).node, offset), AT_ONCE)
        return [(os.fsdecode(name), {"st_mode": found.mode, "st_ino": found.ino}, after) for name, after, found in some]

    @_answer
    def readlink(self, path: str) -> str:
        """What a symbolic link points to."""
        return os.fsdecode(self._vfs.target(self._find(path).node))

    @_answer
    def open(self, path: str, info: Any) -> int:
        """Open a file: its handle is its inode, and what was read of it before is still right."""
        info.fh = self._find(path).node
        info.keep_cache = 1
        self.state.count("opened")
        return 0

    @_answer
    def read(self, _: str | None, size: int, offset: int, info: Any) -> bytes:
        """A range of an open file, cut at its end."""
        node = int(info.fh)
        self.state.count("reads")
        length, content = self._vfs.content(node)
        self._contents.find(node, length, content)
        found = self._contents.whole(node, offset, size, wait=True)
        if found is not None:
            self.state.count("cached")
            return bytes(found)
        layout = self._contents.layout(node, length, content)
        pieces = self._contents.cached(layout, offset, size)
        if pieces is None:
            pieces = self._contents.fetch(node, layout, offset, size, content)
        else:
            self.state.count("hits")
        return b"".join(pieces)

    @_answer
    def statfs(self, _: str) -> dict[str, int]:
        """A full file system."""
        totals = self._vfs.totals
        blocks = (totals.size + 4095) // 4096
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": blocks, "f_files": totals.files, "f_namemax": 255}

    @_answer
    def listxattr(self, path: str) -> list[str]:
        """The names of extended attributes."""
        return [os.fsdecode(name) for name in sorted(self._vfs.xattrs(self._find(path).node))]

    @_answer
    def getxattr(self, path: str, name: str, _: int = 0) -> bytes:
        """The value of an extended attribute."""
        value = self._vfs.xattrs(self._find(path).node).get(os.fsencode(name))
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def _find(self, path: str) -> Attributes:
        if path == "/":
            return self._vfs.attributes(ROOT)
        folder, _, name = path.rpartition("/")
        found = self._vfs.lookup(self._folder(folder or "/"), os.fsencode(name))
        if found is None:
            raise NotFoundError(path)
        return found

    def _folder(self, path: str) -> int:
        known = self._folders.get(path)
        if known is None:
            known = self._folders[path] = self._find(path).node
        return known


def _load() -> Any:
    try:
        import mfusepy  # noqa: PLC0415 - most never need it
    except (ImportError, OSError, AttributeError) as error:
        raise StorageError(
            f"can't mount by libfuse: {error}",
            hint="pip install 'casstore[fuse]', and libfuse from the system (libfuse3-3 on Debian)",
        ) from None
    return mfusepy
