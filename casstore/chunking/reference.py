"""The chunking algorithm in plain Python, to check the fast one against.

Decided here and only here: what "fastcdc-2020-nc1" means, independently of any library. Slow; for tests and
for whoever implements the format elsewhere. ``docs/format/`` says the same in prose.

The algorithm (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems", IEEE TPDS 2020): the first ``min`` bytes of a chunk are skipped. From there a *gear* hash (64 bits:
shift left by one, add the table's word for the byte) rolls on, and the chunk ends *before* the byte after
which the masked bits of the hash are all zero. Up to ``avg`` a mask with one bit more than log2(avg) is used,
after it one with one bit less; at ``max`` the chunk ends anyway. The paper's step of two bytes gives the same
cuts as one byte at a time, but for its rounding: an odd last byte before ``avg`` falls under the later mask,
and an odd last byte of the input is not looked at.
"""

from __future__ import annotations

import hashlib
import math

from casstore.chunking.params import ChunkerParams
from casstore.model import Buffer

__all__ = ["ReferenceChunker", "gear_table"]

_WORD = (1 << 64) - 1

# The masks of the algorithm's authors and of fastcdc-rs, by number of bits (27 known bits spread over 48
# positions).
_MASKS = {
    7: 0x000018035100,
    8: 0x001800035300,
    9: 0x019000353000,
    10: 0x590003530000,
    11: 0xD90003530000,
    12: 0xD90103530000,
    13: 0xD90303530000,
    14: 0xD90313530000,
    15: 0xD90F03530000,
    16: 0xD90303537000,
    17: 0xD90703537000,
    18: 0xD90707537000,
    19: 0xD91707537000,
    20: 0xD91747537000,
    21: 0xD91767537000,
    22: 0xD93767537000,
    23: 0xD93777537000,
}


def gear_table() -> tuple[int, ...]:
    """Return the 256 words of the gear: the first 8 bytes, big endian, of the MD5 of the byte repeated 64
    times.
    """
    return tuple(
        int.from_bytes(hashlib.md5(bytes([byte]) * 64, usedforsecurity=False).digest()[:8], "big")
        for byte in range(256)
    )


class ReferenceChunker:
    """A ``Chunker`` that takes its time."""

    def __init__(self, params: ChunkerParams | None = None) -> None:
        self._params = params or ChunkerParams()
        bits = math.floor(math.log2(self._params.avg) + 0.5)
        self._early, self._late = _MASKS[bits + 1], _MASKS[bits - 1]
        self._gear = gear_table()

    @property
    def params(self) -> ChunkerParams:
        """The sizes it cuts to."""
        return self._params

    def cut(self, buffer: Buffer, *, final: bool) -> list[int]:
        """See ``Chunker.cut``."""
        lengths: list[int] = []
        start = 0
        while start < len(buffer):
            found = self._search(buffer, start)
            if found is not None:
                length = found
            elif len(buffer) - start >= self._params.max:
                length = self._params.max
            elif final:
                length = len(buffer) - start
            else:
                break
            lengths.append(length)
            start += length
        return lengths

    def _search(self, buffer: Buffer, start: int) -> int | None:
        """Length of the chunk at ``start`` if its content ends it, else None."""
        params = self._params
        reach = min(len(buffer) - start, params.max)
        if reach <= params.min:
            return None
        turn = params.avg // 2 * 2
        value = 0
        for position in range(params.min, reach // 2 * 2):
            value = ((value << 1) + self._gear[buffer[start + position]]) & _WORD
            if not value & (self._early if position < turn else self._late):
                return position
        return None
