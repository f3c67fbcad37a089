"""What is sent of an object: runs of buffers, without copying them.

Decided here and only here: how the buffers of a ``put`` become the body of a request, and how a large one is cut into
parts of an upload.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from casstore.model import Buffer

__all__ = ["Body", "cut", "size_of", "views_of"]

BLOCK = 1 << 20
"""Bytes that go to the socket in one call, at most."""


def views_of(data: Sequence[Buffer]) -> list[memoryview]:
    """Return the buffers as views of bytes, without the empty ones."""
    return [view for buffer in data if (view := memoryview(buffer).cast("B"))]


def size_of(data: Sequence[Buffer]) -> int:
    """Return how many bytes the buffers hold together."""
    return sum([memoryview(buffer).nbytes for buffer in data])


def cut(views: Sequence[memoryview], size: int) -> Iterator[list[memoryview]]:
    """Yield runs of views of ``size`` bytes each; the last may be shorter."""
    run: list[memoryview] = []
    room = size
    for view in views:
        rest = view
        while rest:
            piece, rest = rest[:room], rest[room:]
            run.append(piece)
            room -= len(piece)
            if not room:
                yield run
                run, room = [], size
    if run:
        yield run


class Body:
    """A file to read from, over buffers: what HTTP libraries take for a body. Not thread-safe.

    ``read`` returns views of the buffers, a block at a time however little is asked for: the size that is asked for is
    that of a library's own buffer, and a system call for every 16 KiB costs more than the copy to the socket.

    ``named_by_hash``: whoever reads it back verifies it by itself.
    """

    def __init__(self, views: Sequence[memoryview], *, named_by_hash: bool = False) -> None:
        self.views = list(views)
        self.named_by_hash = named_by_hash
        self._size = sum(len(view) for view in views)
        self._index = 0
        self._offset = 0
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return True

    def readable(self) -> bool:
        """True."""
        return True

    def read(self, size: int | None = -1) -> Buffer:
        """Return the next block, or everything that is left when ``size`` is negative or None; empty at the end."""
        if size is None or size < 0:
            return b"".join(iter(self.read_block, b""))
        return self.read_block() if size else b""

    def read_block(self) -> Buffer:
        """Return the next block, empty at the end."""
        if self._index >= len(self.views):
            return b""
        view = self.views[self._index]
        block = view[self._offset : self._offset + BLOCK]
        self._offset += len(block)
        self._position += len(block)
        if self._offset >= len(view):
            self._index, self._offset = self._index + 1, 0
        return block

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset``, as in a file."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if not 0 <= position <= self._size:
            raise ValueError("a position outside of the body")
        self._index, self._offset, self._position = 0, position, position
        while self._index < len(self.views) and self._offset >= len(self.views[self._index]):
            self._offset -= len(self.views[self._index])
            self._index += 1
        return position
