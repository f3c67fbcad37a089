"""Who a request is from.

Decided here and only here: what counts, in this order: the unix socket (its owner, who may do everything), the word of
a gateway that the operator trusts, a token (``Authorization: Bearer``: a personal one, an id token of this server or
one of the identity provider), and, where that is allowed, the caller's own word. And which roles somebody has: those in
the database, if the server was told of them; otherwise those that everybody has by default. Groups of the identity
provider add theirs. A personal token has no role that its user has not, too.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from casstore.errors import AccessError, UsageError
from casstore.wire.auth import LoginReply
from casstore.wire.protocol import USER_HEADER
from casstore_server.db.callers import Callers, KnownToken, KnownUser
from casstore_server.identity import tokens
from casstore_server.identity.actions import EVERYTHING, Grants, Policy, Role, grants_of
from casstore_server.identity.bearer import AGAIN, Bearers, unverified
from casstore_server.identity.caller import Caller, Links
from casstore_server.identity.failures import EndedError, LoginError, ShutOutError, TooManyError
from casstore_server.identity.limits import Limit
from casstore_server.identity.oidc import Provider
from casstore_server.identity.settings import IdentitySettings

__all__ = ["POOLS_HEADER", "ROLES_HEADER", "TOKEN_HEADER", "USER", "Asking", "Logins"]

USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}", re.ASCII)
"""What a user may be called."""
ROLES_HEADER, POOLS_HEADER, TOKEN_HEADER = "x-osmo-roles", "x-osmo-allowed-pools", "x-osmo-token-name"
"""What a gateway says besides the name."""
_SCRAPER: Final = Grants(policies=(Policy(("metrics:Read",)),))
_MAX_GOOD: Final = 10_000
_GOOD_SECONDS: Final = 300.0
_FAILURES: Final = (0.2, 20.0)
"""Failed logins of one address: so many a second, and so many at once."""
_T = TypeVar("_T")


class Asking(NamedTuple):
    """A request, as far as it matters here. ``address`` is ``unix`` for the unix socket, ``vouched`` whether it came
    through a gateway whose word counts, ``path`` that of its URL.
    """

    address: str
    headers: Mapping[str, str]
    links: Links = Links()
    vouched: bool = False
    path: str = ""


class Logins:
    """Safe to use from any thread."""

    def __init__(
        self,
        settings: IdentitySettings,
        callers: Callers,
        bearers: Bearers,
        *,
        owner: str,
        dev: bool,
        provider: Provider | None = None,
        roles: Callable[[], Mapping[str, Role]] = dict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``dev``: whether anybody's own word is taken; ``roles`` gives the declared ones."""
        self._settings = settings
        self._callers = callers
        self.bearers = bearers
        self._owner = owner
        self.dev = dev
        self.provider = provider
        self._roles = roles
        self._clock = clock
        self._groups = dict(settings.oidc_roles)
        self._failed = Limit(*_FAILURES)
        self._asked = Limit(0.0 if dev else settings.rate_limit, settings.rate_limit * 10)
        self._unknown = Limit(0.0 if dev else settings.rate_limit_open, settings.rate_limit_open * 5)
        self._proofs = _Proofs()

    def who(self, asking: Asking) -> Caller:
        """Who asks. Raises ``LoginError`` when that is not known, ``AccessError`` when they are not let in,
        ``TooManyError`` when they ask too often.
        """
        if asking.address == "unix":
            return Caller(self._owner, asking.links, EVERYTHING, address="unix")
        caller = replace(self._known(asking), links=asking.links, address=asking.address)
        seconds = self._asked.wait(caller.user)
        if seconds:
            text = f"{caller.user} asks more often than {self._settings.rate_limit:g} times a second"
            raise _too_many(text, seconds, caller.user)
        return caller

    def anybody(self, asking: Asking) -> None:
        """See that an address which does not say who it is does not ask too often. Raises ``TooManyError``. Who comes
        with a token that was good lately is counted as its user elsewhere.
        """
        token = asking.headers.get("authorization", "").partition(" ")[2].strip()
        known = asking.address == "unix" or (token and _mark(token) in self._proofs)
        seconds = 0 if known else self._unknown.wait(asking.address)
        if seconds:
            raise _too_many("This address asks too often without a login", seconds)

    def exchange(self, token: str, asking: Asking) -> KnownToken:
        """The personal token that was given, if it is good. Raises as ``who``."""
        return self._proved(token, asking, self._personal)

    def provider_reply(self) -> LoginReply:
        """Where clients log in. Raises ``ServiceError`` when the identity provider does not say."""
        if self.provider is None:
            return LoginReply()
        said, settings = self.provider.described(), self._settings

        def url(name: str) -> str | None:
            found = said.get(name)
            return found if isinstance(found, str) else None

        return LoginReply(
            token_endpoint=url("token_endpoint"),
            device_endpoint=url("device_authorization_endpoint"),
            device_client_id=settings.oidc_client_id or None,
            browser_endpoint=url("authorization_endpoint"),
            browser_client_id=settings.oidc_browser_client_id or settings.oidc_client_id or None,
            logout_endpoint=url("end_session_endpoint"),
        )

    def lets_in(self, user: str) -> bool:
        """Whether somebody who came in before still may: the owner, and whoever was not deleted."""
        known = self._callers.user(user)
        return user == self._owner or known is None or not known.disabled

    def granted(self, user: str) -> Grants:
        """What somebody may do of whom nothing is known but the name. Raises ``AccessError`` when they are disabled."""
        return self._grants(self._local(user))

    def _known(self, asking: Asking) -> Caller:
        name = asking.headers.get(USER_HEADER, "")
        kind, _, token = asking.headers.get("authorization", "").partition(" ")
        if asking.vouched and name:
            return self._vouched(asking.headers, name)
        if kind:
            if kind.lower() != "bearer" or not token.strip():
                raise LoginError("The header Authorization must be: Bearer TOKEN", hint=AGAIN)
            return self._proved(token.strip(), asking, self._holder)
        if name and self.dev:
            return Caller(_checked(name), grants=EVERYTHING if name == self._owner else self.granted(name))
        if self.dev and asking.path == "/metrics":
            return Caller("", grants=_SCRAPER)
        self.anybody(asking)
        if not name:
            raise LoginError("This server does not know who you are", hint=self._how())
        raise LoginError(f"This server does not take a name ({USER_HEADER}) for who somebody is", hint=self._how())

    def _how(self) -> str:
        if self.dev:
            return "Log in with: osmo login URL --method dev --username NAME"
        if self.provider is not None:
            return "Log in with: osmo login URL"
        return "Log in with: osmo login URL --method token --token-file FILE"

    def _vouched(self, headers: Mapping[str, str], name: str) -> Caller:
        """Somebody of whom the gateway has seen who they are; it may say their roles, and in which pools."""
        self._another(_checked(name))
        roles, pools = headers.get(ROLES_HEADER), headers.get(POOLS_HEADER)
        said = None if roles is None else frozenset(_listed(roles))
        local = self._local(name, said)
        found = local if said is None else said
        grants = self._grants(found)
        if pools is not None:
            grants = replace(grants, pools=frozenset(_listed(pools)))
        return Caller(name, grants=grants, token=headers.get(TOKEN_HEADER) or None)

    def _holder(self, token: str) -> Caller:
        if token.startswith(tokens.PREFIX):
            return self._by_token(self._personal(token))
        says = unverified(token)
        if says.issuer == self.bearers.issuer:
            return self._by_token(self._valid(self._callers.token(id=self.bearers.check(token))))
        if self.provider is None or says.issuer != self.provider.issuer:
            raise LoginError(f"The id token was issued by {says.issuer[:100]!r}, which this server does not trust")
        said = self.provider.check(token, says)
        roles = frozenset(role for group in said.groups for role in self._groups.get(group, ()))
        self._another(_checked(said.user))
        return Caller(said.user, grants=self._grants(self._local(said.user, roles) | roles))

    def _another(self, name: str) -> None:
        """See that somebody whom others vouch for has not just the name of the owner, whose workflows and credentials
        would be theirs, unless an administrator has given that name a role.
        """
        if name != self._owner:
            return
        known = self._callers.user(name)
        if known is None or not known.roles - known.owned - known.provided:
            raise AccessError(
                f"{name} is the name of this server's owner, and nobody has said that you are the same person",
                hint=f"If you are, say so on the server's machine: osmo user update {name} --add-roles osmo-user",
            )

    def _by_token(self, known: KnownToken) -> Caller:
        return Caller(known.user.name, grants=self._grants(known.roles & known.user.roles), token=known.name)

    def _personal(self, token: str) -> KnownToken:
        if not tokens.is_token(token):
            raise LoginError("That is not a personal token: it was mistyped, or cut", hint=_NEW)
        return self._valid(self._callers.token(digest=tokens.digest(token)))

    def _valid(self, known: KnownToken | None) -> KnownToken:
        if known is None:
            raise LoginError("The personal token is not known here: it was deleted, or is another server's", hint=_NEW)
        if known.expires_at <= self._clock():
            text = f"The personal token {known.name} of {known.user.name} has ended"
            raise EndedError(text, hint=_NEW, user=known.user.name)
        _enabled(known.user)
        return known

    def _proved(self, token: str, asking: Asking, check: Callable[[str], _T]) -> _T:
        """What ``check`` makes of a token, unless too many of this address were wrong. One that was right lately is not
        held up by others that are wrong.
        """
        mark = _mark(token)
        if mark not in self._proofs:
            seconds = self._failed.wait(asking.address, take=False)
            if seconds:
                raise _too_many("Too many logins of this address failed", seconds)
        try:
            found = check(token)
        except AccessError as error:
            if not isinstance(error, EndedError | ShutOutError):  # these were no guesses
                self._failed.wait(asking.address)
            self._proofs.forget(mark)
            raise
        self._proofs.add(mark)
        return found

    def _local(self, name: str, provided: frozenset[str] | None = None) -> frozenset[str]:
        """The roles that this server gives a user. ``provided`` are those that they have from elsewhere now: what they
        had from there and have no more, their tokens lose as well.
        """
        known = self._callers.user(name)
        if known is None:
            return frozenset(self._settings.default_roles)
        _enabled(known)
        lost = frozenset() if provided is None else known.provided - provided
        if lost:
            self._callers.lose(name, lost)
        return known.roles - known.owned - lost

    def _grants(self, roles: Iterable[str]) -> Grants:
        return grants_of(roles, self._roles())


_NEW: Final = "Make another one with: osmo token set NAME"


class _Proofs:
    """Tokens that were good lately, by a digest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, mark: bytes) -> bool:
        with self._lock:
            return self._until.get(mark, 0.0) > time.monotonic()

    def add(self, mark: bytes) -> None:
        with self._lock:
            self._until[mark] = time.monotonic() + _GOOD_SECONDS
            self._until.move_to_end(mark)
            if len(self._until) > _MAX_GOOD:
                self._until.popitem(last=False)

    def forget(self, mark: bytes) -> None:
        with self._lock:
            self._until.pop(mark, None)


def _mark(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _enabled(user: KnownUser) -> None:
    if user.disabled:
        raise ShutOutError(f"The user {user.name} is disabled", hint="Ask whoever runs this server.", user=user.name)


def _checked(name: str) -> str:
    if not USER.fullmatch(name):
        raise UsageError("That is not a user name: letters, digits and . _ @ + - only")
    return name


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _too_many(message: str, seconds: int, user: str = "") -> TooManyError:
    return TooManyError(message, hint=f"Try again in {seconds} s.", user=user, seconds=seconds)
