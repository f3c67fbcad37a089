"""What a check found, in the words of a user.

Decided here and only here: which kinds of findings there are, and how many of each are kept. What is wrong is a
*problem*; which files of which versions it costs is a *loss*; what is merely there is a *note*. Counts are exact,
lists are cut, so that a store that is wrong all over takes no more memory than one that is wrong here and there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["MAX_PATHS", "MAX_PROBLEMS", "About", "Note", "Problem", "Report", "VersionLoss", "Watcher", "show"]

MAX_PROBLEMS = 10_000
"""Problems that a report lists; more are counted."""
MAX_PATHS = 1000
"""Damaged files of one version that a report lists; more are counted."""


class About(StrEnum):
    """What a problem is about; append-only, they appear in JSON output."""

    STORE = "store"
    PACK = "pack"
    INDEX = "index"
    MANIFEST = "manifest"
    NAME = "name"
    HEAD = "head"
    VERSION = "version"
    FILE = "file"
    LEASE = "lease"
    TRASH = "trash"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the object or path it is about, one clear line, and what it is about."""

    where: str
    message: str
    about: About = About.FILE


@dataclass(frozen=True, slots=True)
class Note:
    """Something that is no damage: how many objects, of how many bytes."""

    what: str
    message: str
    count: int
    size: int


@dataclass(slots=True)
class VersionLoss:
    """What a version lost: ``files`` of them, the first in ``paths``; ``entries`` more of which nothing is known.

    ``reason`` is given when nothing of the version can be read.
    """

    dataset: str
    dataset_id: str
    number: int
    files: int = 0
    paths: list[bytes] = field(default_factory=list)
    entries: int = 0
    reason: str | None = None

    @property
    def name(self) -> str:
        """``dataset:number``."""
        return f"{self.dataset}:{self.number}"

    def __str__(self) -> str:
        if self.reason is not None:
            return f"{self.name}: nothing of it can be read: {self.reason}"
        parts = []
        if self.files:
            parts.append(f"{self.files} file{'' if self.files == 1 else 's'} damaged")
        if self.entries:
            parts.append(f"{self.entries} entries unknown, since a part of the tree is lost")
        shown = ", ".join(show(path) for path in self.paths[:20])
        return f"{self.name}: {'; '.join(parts)}" + (f": {shown}{', ...' if self.files > 20 else ''}" if shown else "")


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found. ``objects`` and ``size`` (bytes) count what was looked at.

    ``packs_size`` are the bytes of all packs, ``packs_read`` those of the packs that were read to their last bit.
    """

    objects: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)
    losses: list[VersionLoss] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    more: int = 0
    packs_size: int = 0
    packs_read: int = 0
    seed: int | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def share(self) -> float:
        """Which share of the packs' bytes was read, from 0 to 1."""
        return self.packs_read / self.packs_size if self.packs_size else 1.0

    def add(self, problems: Sequence[Problem]) -> None:
        """Add problems, as many as are kept."""
        room = MAX_PROBLEMS - len(self.problems)
        self.problems += problems[:room]
        self.more += max(0, len(problems) - room)

    @property
    def count(self) -> int:
        """How many problems there are, those that are not listed included."""
        return len(self.problems) + self.more


class Watcher:
    """Told how far a check is; the base class tells nobody. Called from several threads."""

    def found(self, size: int) -> None:
        """Another object, of ``size`` bytes, is going to be looked at."""

    def checked(self, size: int) -> None:
        """Another ``size`` bytes were looked at."""


def show(path: bytes) -> str:
    """Return a path as text."""
    return path[:1000].decode("utf-8", "backslashreplace")
