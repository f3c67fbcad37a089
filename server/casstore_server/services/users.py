"""Users and their roles.

Decided here and only here: what a user may be called, that only roles that exist are given, and that nobody hands out
rights that they don't have themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from casstore.errors import AccessError, NotFoundError, UsageError
from casstore.wire.auth import (
    Assignment,
    NewUser,
    UserReply,
    UserRole,
    UserRoleReply,
    UserRolesReply,
    UsersReply,
)
from casstore.wire.protocol import to_iso
from casstore_server.db.callers import OWNER, PROVIDER
from casstore_server.db.identity import Given, People, User
from casstore_server.identity.actions import BUILT_IN, Grants, Role, Scope, grants_of, parse_role
from casstore_server.services import audit
from casstore_server.services.context import Caller, Services

__all__ = ["check_declared", "check_roles", "create", "delete", "get", "give", "known", "page", "roles", "take"]

_GIVERS = {PROVIDER: "the identity provider", OWNER: "the server's socket"}
MAX_PAGE = 1000
"""The most users in one reply."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}", re.ASCII)


def page(services: Services, *, start_index: int, count: int, prefix: str, roles: Sequence[str]) -> UsersReply:
    """Users from ``start_index`` (1 is the first), the newest first."""
    start, count = max(start_index, 1), min(max(count, 1), MAX_PAGE)
    total, found = People(services.database).page(start=start - 1, count=count, prefix=prefix, roles=roles)
    return UsersReply(
        total_results=total, start_index=start, items_per_page=len(found), users=[_reply(user) for user in found]
    )


def create(services: Services, caller: Caller, wanted: NewUser) -> UserReply:
    """Make a user, with roles."""
    if not _NAME.fullmatch(wanted.id):
        raise UsageError(f"'{wanted.id[:100]}' is not a user name", hint="Letters, digits and . _ @ + - only.")
    wished = sorted(set(wanted.roles or ()))
    audit.note(subject=wanted.id, roles=", ".join(wished))
    check_roles(services, caller, wished)
    return _reply(People(services.database).create(wanted.id, by=caller.user, roles=wished))


def get(services: Services, name: str) -> UserRoleReply:
    """A user with roles."""
    user, given = People(services.database).get(name)
    return UserRoleReply(
        id=user.name, created_at=to_iso(user.created), created_by=user.created_by, roles=[_role(one) for one in given]
    )


def roles(services: Services, name: str) -> UserRolesReply:
    """The roles of a user."""
    user, given = People(services.database).get(name)
    return UserRolesReply(user_id=user.name, roles=[_role(one) for one in given])


def delete(services: Services, caller: Caller, name: str) -> None:
    """Delete a user; what they submitted stays. Whoever could do more than the caller is not theirs to delete."""
    people = People(services.database)
    check_roles(services, caller, [one.role for one in people.get(name)[1]], must_exist=False)
    people.delete(name)
    if name != services.settings.user:  # who still has the server, and what is theirs
        for credential in services.credentials.vault.names(name):
            services.credentials.vault.remove(name, credential)


def give(services: Services, caller: Caller, name: str, role: str) -> Assignment:
    """Give a user a role."""
    audit.note(subject=name, roles=role)
    check_roles(services, caller, [role])
    given = People(services.database).give(name, role, by=caller.user)
    return Assignment(user_id=name, role_name=role, assigned_by=given.by, assigned_at=to_iso(given.at) or "")


def take(services: Services, caller: Caller, name: str, role: str) -> None:
    """Take a role from a user, and from their tokens."""
    audit.note(subject=name, roles=role)
    check_roles(services, caller, [role], must_exist=False)
    People(services.database).take(name, role)


def known(services: Services) -> dict[str, Role]:
    """The roles that there are, by their names."""
    return {**services.roles(), **BUILT_IN}


def check_roles(services: Services, caller: Caller, names: Sequence[str], *, must_exist: bool = True) -> None:
    """Raise ``NotFoundError`` for a role that does not exist, ``AccessError`` for one that allows more than the caller
    may.
    """
    there = known(services)
    for name in names:
        if name not in there:
            if not must_exist:
                continue
            raise NotFoundError(f"There is no role {name[:100]}", hint=f"There are: {', '.join(sorted(there))}")
        wider = _beyond(caller, grants_of([name], there))
        if wider:
            raise AccessError(
                f"The role {name} has rights that {caller.user} has not: {wider}",
                hint="Only who has the same rights can give or take them: ask an administrator.",
            )


def check_declared(caller: Caller, name: str, before: object, after: object) -> None:
    """Raise ``AccessError`` for a role that is declared anew, or otherwise than before, and allows more than the caller
    may, or did: whoever has it gets, or loses, what they do not have to give.
    """
    for raw in () if before == after else (before, after):
        role = None if raw is None else parse_role(name, raw)
        wider = "" if role is None else _beyond(caller, Grants((name,), role.policies))
        if wider:
            raise AccessError(
                f"The role {name} has rights that {caller.user} has not: {wider}",
                hint="Only who has the same rights can declare or change it: ask an administrator.",
            )


def _beyond(caller: Caller, wanted: Grants) -> str:
    """What ``wanted`` allows and the caller may not; empty when there is nothing."""
    return next(
        (action for action in wanted.actions if not _within(wanted.scope(action), caller.grants.scope(action))), ""
    )


def _within(small: Scope, large: Scope) -> bool:
    if large.all:
        return True
    covered = all(name in large for name in small.names)
    return not small.all and covered and all(prefix.startswith(large.prefixes) for prefix in small.prefixes)


def _reply(user: User) -> UserReply:
    return UserReply(id=user.name, created_at=to_iso(user.created), created_by=user.created_by)


def _role(given: Given) -> UserRole:
    return UserRole(
        role_name=given.role, assigned_by=_GIVERS.get(given.by, given.by), assigned_at=to_iso(given.at) or ""
    )
