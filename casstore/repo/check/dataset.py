"""What a check keeps in mind of one dataset.

Decided here and only here: which of its versions users can see. One that is deleted or void they can't.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from casstore.model import Head, Totals
from casstore.repo.check.report import Problem
from casstore.repo.records import is_active

__all__ = ["Dataset", "Version"]


@dataclass(frozen=True, slots=True)
class Version:
    """What a check keeps of a version record."""

    manifest: bytes
    checksum: str
    totals: Totals
    epoch: int
    created_at: str
    created_by: str
    referred: int = 0
    """Bytes of files that the record says are not in the store."""


@dataclass(slots=True)
class Dataset:
    """What is stored of one dataset: its head, or what is wrong with it; its sound and its damaged versions."""

    id: str
    head: Head | None = None
    head_problem: str | None = None
    versions: dict[int, Version] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    collected: bool = False
    """It was deleted and collected: what is there was put later, by somebody who had stood still."""

    @property
    def name(self) -> str:
        """What users call it, as far as is known."""
        return self.head.name if self.head is not None else self.id

    @property
    def deleted(self) -> bool:
        """Whether it is known to be deleted."""
        return self.collected or (self.head is not None and self.head.deleted)

    def is_void(self, number: int) -> bool:
        """Whether a version was put by a writer that had been fenced off: it was never committed."""
        head, version = self.head, self.versions.get(number)
        if head is None or version is None:
            return False
        return number > head.last_version and version.epoch < head.epoch

    def active(self) -> Iterator[int]:
        """Yield the numbers of the sound records of versions that users can see."""
        if self.collected:
            return
        for number in sorted(self.versions):
            if self.head is None or (
                not self.head.deleted and is_active(self.head, number) and not self.is_void(number)
            ):
                yield number
