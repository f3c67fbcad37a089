"""The seam behind which files are cut into chunks.

Decided here and only here: what a chunker promises. The caller owns the buffers and the reading; a chunker
only says where to cut, so that one large buffer serves reading, cutting, hashing and compressing without a
copy.
"""

from __future__ import annotations

from typing import Protocol

from casstore.chunking.params import ChunkerParams
from casstore.model import Buffer

__all__ = ["Chunker"]


class Chunker(Protocol):
    """Finds boundaries by content. Thread-safe; keeps nothing from one call to the next."""

    @property
    def params(self) -> ChunkerParams:
        """The sizes it cuts to."""
        ...

    def cut(self, buffer: Buffer, *, final: bool) -> list[int]:
        """Return the lengths of the chunks at the start of ``buffer``, which starts at a boundary.

        With ``final`` the buffer ends where the file ends, and the lengths add up to its size. Otherwise more
        bytes follow: only cuts that no further byte can change are returned, and the rest, always less than
        ``params.max`` bytes, goes to the start of the caller's next buffer. So the boundaries do not depend
        on how a file was split into buffers. A buffer of at least ``params.max`` bytes yields at least one
        chunk.
        """
        ...
