"""How it is said that somebody is not let in.

Decided here and only here: that 401 is for who does not say who they are, or can't prove it, 403 for who was shut out,
and 429 for who asks too often; what is wrong with a login is told as far as it helps its owner and no further. Whose
login it was, where that is certain, is for the audit log.
"""

from __future__ import annotations

from casstore.errors import AccessError

__all__ = ["EndedError", "LoginError", "RefusedError", "ShutOutError", "TooManyError"]


class RefusedError(AccessError):
    """Somebody is not let in; ``user`` is empty where it is not certain who it is."""

    def __init__(self, message: str, *, hint: str | None = None, user: str = "") -> None:
        super().__init__(message, hint=hint)
        self.user = user


class LoginError(RefusedError):
    """Nobody, or nobody who could prove it."""

    @property
    def http_status(self) -> int:
        """401."""
        return 401


class EndedError(LoginError):
    """Somebody whose login was good, and has ended."""


class ShutOutError(RefusedError):
    """Somebody who was deleted here."""


class TooManyError(RefusedError):
    """Asked too often; ``seconds`` until it makes sense to ask again."""

    def __init__(self, message: str, *, hint: str | None = None, user: str = "", seconds: int = 1) -> None:
        super().__init__(message, hint=hint, user=user)
        self.seconds = seconds

    @property
    def http_status(self) -> int:
        """429, for which OSMO's clients end with their exit code 75."""
        return 429
