"""Cutting at the speed of C: FastCDC by ``pyfastcdc``.

Decided here and only here: which library cuts, and which of its cuts are certain. ``reference`` is the same
algorithm in plain Python; tests hold both to the same vectors, so that the library can be replaced.
"""

from __future__ import annotations

from casstore.chunking.params import ChunkerParams
from casstore.model import Buffer

__all__ = ["FastCDCChunker"]


class FastCDCChunker:
    """A ``Chunker``. The global interpreter lock is free while a boundary is searched."""

    def __init__(self, params: ChunkerParams | None = None) -> None:
        # Loaded by the first who cuts: it is slow, and most commands never cut.
        from pyfastcdc import FastCDC  # noqa: PLC0415

        self._params = params or ChunkerParams()
        # Shared by threads: the object holds only the parameters, every call scans with a cursor of its own.
        self._fastcdc = FastCDC(
            self._params.avg,
            min_size=self._params.min,
            max_size=self._params.max,
            normalized_chunking=1,
        )

    @property
    def params(self) -> ChunkerParams:
        """The sizes it cuts to."""
        return self._params

    def cut(self, buffer: Buffer, *, final: bool) -> list[int]:
        """See ``Chunker.cut``."""
        lengths = [chunk.length for chunk in self._fastcdc.cut_buf(buffer)]
        # A cut inside the buffer was decided by the bytes before it and the one right behind it, and those
        # are here. The last chunk merely ends where the buffer does, unless it is as long as a chunk may be.
        if not final and lengths and lengths[-1] != self._params.max:
            lengths.pop()
        return lengths
