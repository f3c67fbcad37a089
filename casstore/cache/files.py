"""Whole files, as plain files of this machine.

Decided here and only here: what a cached file is called and how it comes to be. Its name is the identity of its
content (the list of its chunks), so that equal files of any version of any store are one. It is written under another
name, every chunk verified on the way, and renamed when it is whole: what has the right name is right. It belongs to
the user and can't be written to. Whole objects of a store are kept in the same way, under the hash that names them.

    files/<2 hex>/<content id>
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from casstore import hashing
from casstore.cache.space import Space
from casstore.model import Buffer, Content

__all__ = ["FileCache", "content_id"]


def content_id(size: int, content: Content) -> bytes:
    """Return the identity of a file's content: equal for equal bytes in stores that cut alike."""
    return hashing.digest(b"%d %d " % (size, content.depth) + content.refs)


STEP = 1 << 20
"""Bytes that are written at once. Written chunk by chunk, a file lies in the kernel's memory in so small pieces that
reading it from there costs half as much again."""


class FileCache:
    """Whole files by the identity of their content. Thread-safe, and safe among processes."""

    def __init__(self, space: Space, kind: str = "files") -> None:
        """``kind``: the folder in the cache."""
        self.space = space
        self._root = os.path.join(space.root, kind)

    @property
    def folder(self) -> str:
        """Where the files are."""
        return self._root

    def path(self, identity: bytes) -> str:
        """Return where a file is, or would be."""
        name = identity.hex()
        return os.path.join(self._root, name[:2], name)

    def admits(self, size: int) -> bool:
        """Whether a file of this size is worth keeping: see ``Space.admits``."""
        return self.space.admits(size)

    def open(self, identity: bytes, size: int | None = None) -> int | None:
        """Return a descriptor for reading, or None when the file is not there, with this size if one is given."""
        path = self.path(identity)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        if size is not None and os.fstat(descriptor).st_size != size:  # cut short by a disk that was full, or by hand
            os.close(descriptor)
            self.drop(identity)
            return None
        self.space.used(path)
        return descriptor

    def drop(self, identity: bytes) -> None:
        """Forget a file: it is not what it should be."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(identity))

    def add(self, identity: bytes, size: int, pieces: Iterable[Buffer]) -> bool:
        """Keep a file whose verified chunks ``pieces`` yields; False where it can't be kept. Raises what they raise."""
        if not self.admits(size):
            return False
        path = self.path(identity)
        temporary = os.path.join(self._root, f".tmp-{os.getpid()}-{os.urandom(6).hex()}")
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
        except OSError:
            return False
        try:
            if _write(descriptor, pieces, max(1, min(STEP, size))) != size:
                return False
            os.rename(temporary, path)
            temporary = ""
        except OSError:
            return False  # no room
        finally:
            os.close(descriptor)
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        self.space.added(size)
        return True


def _write(descriptor: int, pieces: Iterable[Buffer], step: int) -> int:
    """Write all pieces, ``step`` bytes at once, and return how many bytes that were. ``OSError``."""
    buffer = bytearray(step)
    written = filled = 0
    for piece in pieces:
        view = memoryview(piece)
        while view:
            part = view[: step - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            view = view[len(part) :]
            if filled == step:
                written += _write_all(descriptor, memoryview(buffer))
                filled = 0
    return written + _write_all(descriptor, memoryview(buffer)[:filled])


def _write_all(descriptor: int, view: memoryview) -> int:
    size = len(view)
    while view:
        view = view[os.write(descriptor, view) :]
    return size
