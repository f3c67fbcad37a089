"""The id tokens that this server gives for personal tokens.

Decided here and only here: what is in one and how long it is good; and that it only stands for the personal token that
it was given for: that one is looked at again at every request, so that one which is deleted, has ended or lost a role
opens nothing from then on, however long the id token says it is good.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casstore_server.identity.failures import EndedError, LoginError
from casstore_server.identity.keys import ALGORITHM, Keys

if TYPE_CHECKING:
    from casstore_server.db.callers import KnownToken

__all__ = ["AUDIENCE", "MAX_TOKEN", "SKEW_SECONDS", "Bearers", "Issued", "unverified"]

AUDIENCE: Final = "casstore"
MAX_TOKEN: Final = 16 << 10
"""How long an id token may be, in characters."""
SKEW_SECONDS: Final = 60.0
"""How far clocks may be apart."""


class Issued(NamedTuple):
    """An id token; ``expires_at`` in seconds since the epoch."""

    token: str
    expires_at: int


class Bearers:
    """Makes id tokens and checks them. ``issuer`` names the server (all of them that share a database)."""

    def __init__(self, keys: Keys, issuer: str, life: float, *, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self.issuer = issuer
        self._life = life
        self._clock = clock

    def public(self) -> dict[str, Any]:
        """The public keys, as a JSON Web Key Set."""
        return self._keys.public()

    def issue(self, known: KnownToken) -> Issued:
        """One for a personal token, at most as long as that is good."""
        import jwt  # noqa: PLC0415  # only where there are id tokens

        now = int(self._clock())
        until = int(min(now + self._life, known.expires_at))
        key = self._keys.signing()
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": known.user.name,
            "name": known.user.name,
            "iat": now,
            "exp": until,
            "jti": known.id,
            "osmo_token_name": known.name,
            "osmo_roles": sorted(known.roles & known.user.roles),
        }
        made = jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})
        return Issued(made, until)

    def check(self, token: str) -> str:
        """The id of the personal token that an id token of ours stands for. Raises ``LoginError``."""
        import jwt  # noqa: PLC0415  # only where there are id tokens

        key = self._keys.find(unverified(token).kid)
        if key is None:
            raise LoginError("The id token was signed with a key that is not this server's", hint=AGAIN)
        try:
            claims = jwt.decode(
                token,
                key.private.public_key(),
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=self.issuer,
                leeway=SKEW_SECONDS,
                options={"require": ["exp", "iat", "sub", "jti"]},
            )
        except jwt.ExpiredSignatureError:
            raise EndedError("The id token has ended", hint=AGAIN) from None
        except jwt.PyJWTError as error:
            raise LoginError(f"The id token is not good: {error}", hint=AGAIN) from None
        return str(claims["jti"])


AGAIN: Final = "Log in again: osmo login"


class Unverified(NamedTuple):
    """What a token says of itself: enough to know whose keys it has to be checked with, and nothing else."""

    kid: str
    algorithm: str
    issuer: str


def unverified(token: str) -> Unverified:
    """What a token says of itself. Raises ``LoginError`` when it is none."""
    import jwt  # noqa: PLC0415  # only where there are id tokens

    if len(token) > MAX_TOKEN or token.count(".") != 2:
        raise LoginError("That is neither a personal token nor an id token", hint=AGAIN)
    try:
        found: dict[str, Any] = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, RecursionError, ValueError):
        raise LoginError("That is neither a personal token nor an id token", hint=AGAIN) from None
    header, payload = found["header"], found["payload"]
    kid, issuer = header.get("kid", ""), payload.get("iss", "")
    if not isinstance(kid, str) or not isinstance(issuer, str):
        raise LoginError("The id token does not say who issued it", hint=AGAIN)
    return Unverified(kid, str(header.get("alg", "")), issuer)
