"""Personal tokens: what programs log in with.

Decided here and only here: what a token may be called, how long it lasts (whole days of UTC, 31 unless something else
is asked for, a year at most, and no longer than the token that it was made with), and whose roles it gets.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from casstore.errors import AccessError, NotFoundError, UsageError
from casstore.wire.auth import (
    TOKEN_DAYS,
    TOKEN_NAME,
    TOKEN_NAME_HINT,
    AccessTokenReply,
    AccessTokenRoles,
    UserRole,
    UserTokenReply,
)
from casstore.wire.protocol import to_iso
from casstore_server.db.callers import OWNER, PROVIDER
from casstore_server.db.identity import People, Token
from casstore_server.identity.actions import EVERYTHING
from casstore_server.identity.tokens import digest, new_token
from casstore_server.services import audit
from casstore_server.services.context import Caller, Services
from casstore_server.services.users import check_roles

__all__ = ["create", "create_own", "current", "delete", "listing", "roles"]

MAX_DAYS = 366
MAX_DESCRIPTION = 1000
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def create_own(
    services: Services, caller: Caller, name: str, *, expires_at: str | None, description: str, roles: Sequence[str]
) -> str:
    """Make a token of the caller's, and give it; it is kept nowhere. Without ``roles`` it gets all of theirs."""
    missing = sorted(set(roles) - set(caller.grants.roles))
    if missing:
        raise AccessError(
            f"{caller.user} does not have the role {missing[0][:100]}",
            hint=f"Roles of this login: {', '.join(caller.grants.roles) or 'none'}",
        )
    if caller.grants.pools is not None:
        raise AccessError(f"{caller.user} may work in some pools only, and a token would have the others as well")
    people = People(services.database)
    used = _used(people, caller)
    if used is None:
        _remember(services, people, caller)
    latest = None if used is None else used.expires_at
    return _create(people, caller.user, name, _expiry(expires_at, latest), description, roles or caller.grants.roles)


def create(
    services: Services,
    caller: Caller,
    user: str,
    name: str,
    *,
    expires_at: str | None,
    description: str,
    roles: Sequence[str],
) -> str:
    """Make a token of another user's. Nobody can make one that may do what they may not."""
    people = People(services.database)
    theirs = [given.role for given in people.get(user)[1]]
    missing = sorted(set(roles) - set(theirs))
    if missing:
        raise NotFoundError(f"{user} does not have the role {missing[0][:100]}", hint=f"See: osmo user get {user}")
    chosen = roles or theirs
    check_roles(services, caller, chosen, must_exist=False)
    return _create(people, user, name, _expiry(expires_at, None), description, chosen)


def listing(services: Services, user: str, *, other: bool = False) -> list[AccessTokenReply]:
    """The tokens of a user; ``NotFoundError`` for an ``other`` one that does not exist."""
    people = People(services.database)
    if other:
        people.get(user)
    return [
        AccessTokenReply(
            user_name=token.user,
            token_name=token.name,
            expires_at=to_iso(token.expires_at) or "",
            description=token.description,
            roles=list(token.roles),
            last_used=to_iso(token.last_used),
        )
        for token in people.tokens(user)
    ]


def roles(services: Services, user: str, name: str) -> AccessTokenRoles:
    """The roles of a token."""
    token = People(services.database).token(user, name)
    at = to_iso(token.created) or ""
    given = [UserRole(role_name=role, assigned_by=user, assigned_at=at) for role in token.roles]
    return AccessTokenRoles(user_name=user, token_name=token.name, roles=given)


def delete(services: Services, user: str, name: str) -> None:
    """Delete a token; it works no more at once."""
    People(services.database).delete_token(user, name)


def current(services: Services, caller: Caller) -> UserTokenReply | None:
    """The token that the caller came with, for their profile."""
    if caller.token is None:
        return None
    used = _used(People(services.database), caller)
    return UserTokenReply(name=caller.token, expires_at=None if used is None else to_iso(used.expires_at))


def _used(people: People, caller: Caller) -> Token | None:
    """The token that the caller came with, if it is one of this server's: a gateway has others."""
    if caller.token is None:
        return None
    return next((token for token in people.tokens(caller.user) if token.name == caller.token), None)


def _remember(services: Services, people: People, caller: Caller) -> None:
    """Write down the roles that the caller has, for a token's are always some of its user's. What somebody has by
    default is theirs for good; others last as long as whoever says so goes on saying it; the owner's are for tokens.
    """
    roles = set(caller.grants.roles)
    if caller.grants is EVERYTHING:
        people.remember(caller.user, own=(), others=roles, by=OWNER)
    else:
        own = roles & set(services.settings.identity.default_roles)
        people.remember(caller.user, own=own, others=roles - own, by=PROVIDER)


def _create(people: People, user: str, name: str, expires_at: float, description: str, roles: Sequence[str]) -> str:
    if not TOKEN_NAME.fullmatch(name):
        raise UsageError(f"'{name[:100]}' is not the name of a token", hint=TOKEN_NAME_HINT)
    if len(description) > MAX_DESCRIPTION:
        raise UsageError(f"The description is longer than {MAX_DESCRIPTION} characters")
    if not roles:
        raise UsageError(f"{user} has no role that a token could have", hint="An administrator gives roles.")
    audit.note(subject=user, roles=", ".join(sorted(set(roles))), expires_at=to_iso(expires_at) or "")
    made = new_token()
    kept = Token(user, name, description, time.time(), expires_at, None, tuple(sorted(set(roles))))
    people.add_token(kept, digest(made))
    return made


def _expiry(day: str | None, latest: float | None) -> float:
    """When a token ends: at the beginning of a later day. ``latest``: when the one ends that it is made with."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if not day:
        wanted = (today + timedelta(days=TOKEN_DAYS)).timestamp()
        return wanted if latest is None else min(wanted, latest)
    try:
        moment = datetime.fromisoformat(day).replace(tzinfo=UTC) if _DAY.fullmatch(day) else None
    except ValueError:
        moment = None
    if moment is None:
        raise UsageError(f"'{day[:50]}' is not a date", hint="Write it as YYYY-MM-DD.")
    if moment <= today:
        raise UsageError(f"A token can't end on {day}, which is not after today ({today:%Y-%m-%d}, UTC)")
    if moment > today + timedelta(days=MAX_DAYS):
        raise UsageError(
            f"A token can't last longer than {MAX_DAYS} days", hint=f"{today + timedelta(days=MAX_DAYS):%Y-%m-%d}"
        )
    if latest is not None and moment.timestamp() > latest:
        raise UsageError(
            "A token can't last longer than the one that it is made with",
            hint=f"That ends on {datetime.fromtimestamp(latest, UTC):%Y-%m-%d}.",
        )
    return moment.timestamp()
