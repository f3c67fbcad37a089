"""The sizes that a store's chunks are cut to.

Decided here and only here: the parameters of the chunker, their bounds, and how they look in ``store.json``.
All writers of a store must cut alike, or nothing deduplicates; so the parameters are fixed when a store is
created.
"""

from __future__ import annotations

import msgspec

from casstore.errors import FormatError, UsageError

__all__ = ["ALGORITHM", "ChunkerParams"]

ALGORITHM = "fastcdc-2020-nc1"
"""FastCDC as published in 2020 (two bytes a step), normalisation level 1, the gear table of its authors."""

_MIN = (64, 1024 * 1024)
_AVG = (256, 4 * 1024 * 1024)
_MAX = (1024, 16 * 1024 * 1024)


class ChunkerParams(msgspec.Struct, frozen=True):
    """Smallest, aimed-at and largest length of a chunk, in bytes. Only the last chunk of a file may be
    shorter.

    ``avg`` steers the cut masks: random data comes out at roughly ``avg`` on average. Raises ``UsageError``
    unless ``min <= avg <= max`` within the bounds of the algorithm and ``min`` is even (it works on pairs of
    bytes).
    """

    min: int = 16384
    avg: int = 65536
    max: int = 262144

    def __post_init__(self) -> None:
        for name, value, (low, high) in (
            ("min", self.min, _MIN),
            ("avg", self.avg, _AVG),
            ("max", self.max, _MAX),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"chunk size {name} must be a whole number from {low} to {high}, not {value!r}")
        if not self.min <= self.avg <= self.max:
            raise UsageError(f"chunk sizes must be min <= avg <= max, not {self.min}, {self.avg}, {self.max}")
        if self.min % 2:
            raise UsageError(f"chunk size min must be even, not {self.min}")

    def to_dict(self) -> dict[str, str | int]:
        """Return the form kept in ``store.json``."""
        return {"algorithm": ALGORITHM, "min": self.min, "avg": self.avg, "max": self.max}

    @classmethod
    def from_dict(cls, value: object) -> ChunkerParams:
        """Read what ``to_dict`` wrote. Raises ``FormatError`` for anything else."""
        if not isinstance(value, dict) or value.keys() != {"algorithm", "min", "avg", "max"}:
            raise FormatError("the chunker parameters must be algorithm, min, avg and max")
        if value["algorithm"] != ALGORITHM:
            raise FormatError(
                f"the store cuts its chunks by {value['algorithm']!r}, which is unknown here",
                hint="a newer casstore may have created it: upgrade",
            )
        try:
            return cls(min=value["min"], avg=value["avg"], max=value["max"])
        except UsageError as error:
            raise FormatError(f"chunker parameters: {error.message}") from error
