"""The identity provider: what it says of itself, its keys, and whether a token is one of its.

Decided here and only here: which signatures are accepted (asymmetric ones, of keys that are long enough, and only with
the algorithm that the key is for), what a token must say, and when the provider is asked: for its description once an
hour, for its keys once an hour and when a token names one that is not known, at most every 30 seconds; while it does
not answer, what was known stays in force for a day.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casstore.errors import CasstoreError, ServiceError
from casstore_server.identity.bearer import AGAIN, SKEW_SECONDS, Unverified
from casstore_server.identity.failures import EndedError, LoginError
from casstore_server.identity.fetching import fetch_json
from casstore_server.identity.urls import check_url

if TYPE_CHECKING:
    from jwt import PyJWK

__all__ = ["ALGORITHMS", "Provider", "Said"]

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_EVERY: Final = 3600.0
_AGAIN_AFTER: Final = 30.0
_KEEP: Final = 24 * 3600.0
_MAX_KEYS: Final = 100
_MAX_GROUPS: Final = 1000
_MIN_RSA: Final = 2048
_WHAT: Final = "The identity provider"


class Said(NamedTuple):
    """What a token of the provider says of its user."""

    user: str
    groups: frozenset[str]


class _Cached:
    """An answer of the provider."""

    def __init__(self, fetch: Callable[[], Any], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._value: Any = None
        self._got = float("-inf")
        self._tried = float("-inf")
        self._error: CasstoreError | None = None

    def get(self, *, anew: bool = False) -> Any:
        """The answer, asked for again when it is old, or ``anew`` unless that was just done. While somebody asks,
        others get what is known.
        """
        if not self._lock.acquire(blocking=anew or self._clock() - self._got >= _KEEP):
            return self._value
        try:
            now = self._clock()
            old = now - self._got >= _EVERY
            if (old or anew) and now - self._tried >= _AGAIN_AFTER:
                self._tried = now
                try:
                    self._value, self._got, self._error = self._fetch(), now, None
                except CasstoreError as error:
                    self._error = error
            if now - self._got >= _KEEP:
                problem = self._error or ServiceError(f"{_WHAT} can't be reached")
                raise ServiceError(problem.message, hint="Try again in a minute.")
            return self._value
        finally:
            self._lock.release()


class Provider:
    """One issuer; safe to use from any thread. Whoever asks when something has to be fetched waits for it."""

    def __init__(
        self,
        issuer: str,
        audiences: Collection[str],
        *,
        user_claim: str,
        groups_claim: str,
        fetch: Callable[[str, str], dict[str, Any]] = fetch_json,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._audiences = frozenset(audiences)
        self._user_claim = user_claim
        self._groups_claim = groups_claim
        self._fetch = fetch
        self._described = _Cached(self._describe, clock)
        self._keys = _Cached(self._fetch_keys, clock)

    def described(self) -> Mapping[str, Any]:
        """Its description (OpenID Connect Discovery 1.0). Raises ``ServiceError``."""
        found: Mapping[str, Any] = self._described.get()
        return found

    def check(self, token: str, says: Unverified) -> Said:
        """What a token says, if it is one of this issuer for us. Raises ``LoginError``, or ``ServiceError`` when the
        provider can't be asked.
        """
        import jwt  # noqa: PLC0415  # only where there is a provider

        if says.algorithm not in ALGORITHMS:
            raise LoginError(f"The id token is signed with {says.algorithm[:20]!r}, which is not accepted")
        key = self._key(says)
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[says.algorithm],
                audience=list(self._audiences),
                issuer=self.issuer,
                leeway=SKEW_SECONDS,
                options={"require": ["exp", "iat", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise EndedError("The id token has ended", hint=AGAIN) from None
        except (jwt.PyJWTError, ValueError) as error:
            raise LoginError(f"The id token is not good: {error}", hint=AGAIN) from None
        self._check_party(claims)
        return Said(self._user(claims), self._groups(claims))

    def _check_party(self, claims: Mapping[str, Any]) -> None:
        """A token for several audiences was asked for by one of ours, or it may be somebody else's to use."""
        party, audience = claims.get("azp"), claims.get("aud")
        several = isinstance(audience, list) and len(audience) > 1
        if several and party not in self._audiences:
            raise LoginError("The id token was issued to another application")

    def _user(self, claims: Mapping[str, Any]) -> str:
        name = claims.get(self._user_claim)
        if not isinstance(name, str) or not name:
            raise LoginError(f"The id token has no claim {self._user_claim}, which is to be the user's name")
        if self._user_claim == "email" and claims.get("email_verified") is False:
            raise LoginError("The identity provider has not verified this user's address")
        return name

    def _groups(self, claims: Mapping[str, Any]) -> frozenset[str]:
        found: Any = claims
        for part in self._groups_claim.split("."):  # realm_access.roles and the like
            found = found.get(part) if isinstance(found, Mapping) else None
        if isinstance(found, str):
            found = [found]
        return frozenset(one for one in found[:_MAX_GROUPS] if isinstance(one, str)) if isinstance(found, list) else _NO

    def _key(self, says: Unverified) -> PyJWK:
        for anew in (False, True):
            keys: list[PyJWK] = self._keys.get(anew=anew)
            fitting = [key for key in keys if _fits(key, says)]
            if len(fitting) == 1 or (fitting and says.kid):
                return fitting[0]
        raise LoginError("The id token was signed with a key that the identity provider does not have", hint=AGAIN)

    def _describe(self) -> dict[str, Any]:
        found = self._fetch(self.issuer.rstrip("/") + "/.well-known/openid-configuration", _WHAT)
        if found.get("issuer") != self.issuer:
            said = str(found.get("issuer"))[:200]
            raise ServiceError(f"{_WHAT} at {self.issuer} says that it is {said}: the setting must be that, exactly")
        for name, url in found.items():
            if url and name in {
                "jwks_uri",
                "token_endpoint",
                "device_authorization_endpoint",
                "authorization_endpoint",
            }:
                check_url(url, f"{name} of the identity provider")
        if not found.get("jwks_uri"):
            raise ServiceError(f"{_WHAT} at {self.issuer} does not say where its keys are")
        return found

    def _fetch_keys(self) -> list[PyJWK]:
        import jwt  # noqa: PLC0415  # only where there is a provider

        listed = self._fetch(self.described()["jwks_uri"], f"{_WHAT}'s list of keys").get("keys")
        if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
            raise ServiceError(f"{_WHAT}'s list of keys is none")
        keys = []
        for raw in listed:
            if (
                not isinstance(raw, dict)
                or raw.get("kty") not in {"RSA", "EC", "OKP"}
                or raw.get("use", "sig") != "sig"
            ):
                continue
            for algorithm in [raw["alg"]] if raw.get("alg") else _ALGORITHMS_OF[raw["kty"]]:
                try:
                    key = jwt.PyJWK(raw, algorithm)
                except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                    continue
                if algorithm in ALGORITHMS and getattr(key.key, "key_size", _MIN_RSA) >= (
                    _MIN_RSA if raw["kty"] == "RSA" else 0
                ):
                    keys.append(key)
        return keys


_NO: Final[frozenset[str]] = frozenset()
_ALGORITHMS_OF: Final = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}


def _fits(key: PyJWK, says: Unverified) -> bool:
    return key.algorithm_name == says.algorithm and (not says.kid or key.key_id == says.kid)
