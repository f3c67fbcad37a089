"""The token that goes with every request, kept fresh.

Decided here and only here: when a token is renewed (three seconds before it ends, as OSMO does, or when the server
refuses it), that one process at a time does so, and that a token which has just been issued is used whatever this
machine's clock says of it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from casstore.config import Paths
from casstore.errors import AccessError
from casstore_cli import login as logins
from casstore_cli import oauth, web
from casstore_cli.login import Login
from casstore_cli.oauth import claims_of

__all__ = ["Bearer"]

MARGIN_S = 3.0
"""A token that ends within this time is renewed before it is used."""
_NEVER = float("-inf")


class Bearer:
    """The id token of a login; safe to use from any thread."""

    def __init__(self, paths: Paths, login: Login, *, fresh: bool = False) -> None:
        """``fresh``: the tokens have just been issued."""
        if login.tokens is None:
            raise AssertionError
        web.check_private(login.url, "The server")
        self._paths = paths
        self._login = login
        self._tokens = login.tokens
        self._until = _after(login.tokens.id_token) if fresh else _NEVER
        self._lock = threading.Lock()

    def token(self) -> str:
        """A token that has not ended. ``AccessError`` when the login has to be made anew."""
        with self._lock:
            if not self._good():
                self._renew()
            return self._tokens.id_token

    def renew(self, refused: str) -> bool:
        """Get another token than ``refused``, which the server did not accept; False when that is no use."""
        with self._lock:
            if self._tokens.id_token == refused:
                if self._tokens.refresh_token is None or time.monotonic() < self._until:
                    return False
                self._renew()
            return True

    def _good(self) -> bool:
        if self._until != _NEVER:  # received by this process: how long it lasts counts, not when by whose clock
            return time.monotonic() < self._until
        end = claims_of(self._tokens.id_token).get("exp")
        return not isinstance(end, (int, float)) or time.time() < end - MARGIN_S

    def _renew(self) -> None:
        again = f"Log in again: osmo login {self._login.url}"
        with logins.change(self._paths) as write:
            now = logins.read(self._paths)
            if now is None or now.tokens is None or (now.url, now.user) != (self._login.url, self._login.user):
                who = f" as {self._login.user}" if self._login.user else ""
                raise AccessError(f"You are not logged in to {self._login.url}{who} any more", hint=again)
            before, self._tokens = self._tokens, now.tokens  # a refresh token is good once: only the last one counts
            if now.tokens.id_token != before.id_token:  # another command was first
                self._until = _NEVER
                if self._good():
                    return
            if self._tokens.refresh_token is None or self._tokens.refresh_url is None:
                raise AccessError(f"Your login to {self._login.url} has ended", hint=again)
            self._tokens = oauth.renewed(self._tokens, hint=again)
            write(replace(now, tokens=self._tokens))
        self._until = _after(self._tokens.id_token)


def _after(token: str) -> float:
    """When a token that was issued just now ends, by the clock that only goes on."""
    claims = claims_of(token)
    start, end = claims.get("iat"), claims.get("exp")
    if not isinstance(end, (int, float)):
        return float("inf")
    begun = start if isinstance(start, (int, float)) else time.time()
    return time.monotonic() + max(end - begun - MARGIN_S, 1.0)
