"""Following a collection.

Decided here and only here: what whoever waits for one is told.
"""

from __future__ import annotations

__all__ = ["Watcher"]


class Watcher:
    """Told how far a collection is; the base class tells nobody."""

    def phase(self, what: str, total: int) -> None:
        """Another part begins: in words for people, and how many steps it has (0: nobody knows)."""

    def step(self, size: int = 0) -> None:
        """A step is done; ``size`` bytes were read, written or freed by it."""
