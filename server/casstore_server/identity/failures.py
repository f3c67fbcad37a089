"""How it is said that somebody is not let in.

Decided here and only here: that 401 is for who does not say who they are, or can't prove it, and 429 for who asks too
often; what is wrong with a login is told as far as it helps its owner and no further.
"""

from __future__ import annotations

from casstore.errors import AccessError

__all__ = ["LoginError", "TooManyError"]


class LoginError(AccessError):
    """Nobody, or nobody who could prove it."""

    @property
    def http_status(self) -> int:
        """401."""
        return 401


class TooManyError(AccessError):
    """Asked too often; ``seconds`` until it makes sense to ask again."""

    def __init__(self, message: str, *, hint: str | None = None, seconds: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds

    @property
    def http_status(self) -> int:
        """429, for which OSMO's clients end with their exit code 75."""
        return 429
