"""What long work tells whoever watches it.

Decided here and only here: the events of a transfer. Amounts are bytes and files; totals grow while a tree is being
listed, so that a display must not promise a share before ``listed`` was called.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives events from several threads; must be cheap and never raise."""

    def expect(self, files: int, size: int) -> None:
        """More was found: add to the totals."""
        ...

    def listed(self) -> None:
        """The totals are final."""
        ...

    def advance(self, size: int, *, new: int = 0) -> None:
        """``size`` logical bytes were handled, of which ``new`` bytes went to the store (or disk)."""
        ...

    def file_done(self, path: bytes) -> None:
        """One file is complete."""
        ...

    def warn(self, message: str) -> None:
        """Something the user should know that does not stop the work."""
        ...


class Silent:
    """A ``Progress`` that shows nothing."""

    def expect(self, files: int, size: int) -> None:
        """Ignore."""

    def listed(self) -> None:
        """Ignore."""

    def advance(self, size: int, *, new: int = 0) -> None:
        """Ignore."""

    def file_done(self, path: bytes) -> None:
        """Ignore."""

    def warn(self, message: str) -> None:
        """Ignore."""
