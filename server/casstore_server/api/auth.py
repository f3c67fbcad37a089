"""The routes about users and personal tokens, thin over ``services``.

Decided here and only here: paths and parameters, which are OSMO 6.2's.
"""

from __future__ import annotations

from types import NoneType
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from casstore.wire.auth import (
    AccessTokenReply,
    AccessTokenRoles,
    Assignment,
    NewRole,
    NewUser,
    UserReply,
    UserRoleReply,
    UserRolesReply,
    UsersReply,
)
from casstore_server.api.deps import Body, CallerDep, Names, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.rules import rule
from casstore_server.services import tokens, users

router = APIRouter()

User = Annotated[str, Path(min_length=1, max_length=255)]
Name = Annotated[str, Path(min_length=1, max_length=128)]
Day = Annotated[str | None, Query(max_length=50)]
Text = Annotated[str, Query(max_length=4000)]
Count = Annotated[int, Query(ge=-(2**31), le=2**31 - 1)]


@router.get("/api/auth/access_token", **rule("token:Own", reply=list[AccessTokenReply]))
def own_tokens(services: ServicesDep, caller: CallerDep) -> Response:
    """The caller's tokens."""
    return reply(tokens.listing(services, caller.user))


@router.post("/api/auth/access_token/{name}", **rule("token:Own", reply=str, errors=(409,)))
def create_own_token(
    services: ServicesDep,
    caller: CallerDep,
    name: Name,
    expires_at: Day = None,
    description: Text = "",
    roles: Names = [],  # noqa: B006  # FastAPI copies defaults
) -> Response:
    """Make a token; the reply is the only time that it is shown."""
    return reply(tokens.create_own(services, caller, name, expires_at=expires_at, description=description, roles=roles))


@router.delete("/api/auth/access_token/{name}", **rule("token:Own", reply=NoneType))
def delete_own_token(services: ServicesDep, caller: CallerDep, name: Name) -> Response:
    """Delete a token of the caller's."""
    tokens.delete(services, caller.user, name)
    return reply(None)


@router.get("/api/auth/access_token/{name}/roles", **rule("token:Own", reply=AccessTokenRoles))
@router.get(
    "/api/auth/access_tokens/{name}/roles",
    operation_id="auth_own_token_roles_too",
    **rule("token:Own", reply=AccessTokenRoles),
)
def own_token_roles(services: ServicesDep, caller: CallerDep, name: Name) -> Response:
    """The roles of a token of the caller's; OSMO's releases differ in the path."""
    return reply(tokens.roles(services, caller.user, name))


@router.get("/api/auth/user/{user}/access_token", **rule("token:Manage", reply=list[AccessTokenReply]))
def user_tokens(services: ServicesDep, user: User) -> Response:
    """A user's tokens."""
    return reply(tokens.listing(services, user, other=True))


@router.post("/api/auth/user/{user}/access_token/{name}", **rule("token:Manage", reply=str, errors=(409,)))
def create_user_token(
    services: ServicesDep,
    caller: CallerDep,
    user: User,
    name: Name,
    expires_at: Day = None,
    description: Text = "",
    roles: Names = [],  # noqa: B006  # FastAPI copies defaults
) -> Response:
    """Make a token of a user's; the reply is the only time that it is shown."""
    return reply(
        tokens.create(services, caller, user, name, expires_at=expires_at, description=description, roles=roles)
    )


@router.delete("/api/auth/user/{user}/access_token/{name}", **rule("token:Manage", reply=NoneType))
def delete_user_token(services: ServicesDep, user: User, name: Name) -> Response:
    """Delete a token of a user's."""
    tokens.delete(services, user, name)
    return reply(None)


@router.get("/api/auth/user", **rule("user:Read", reply=UsersReply))
def list_users(
    services: ServicesDep,
    start_index: Count = 1,
    count: Count = 100,
    id_prefix: Annotated[str, Query(max_length=255)] = "",
    roles: Names = [],  # noqa: B006  # FastAPI copies defaults
) -> Response:
    """Users, the newest first: those whose names begin with ``id_prefix`` and who have one of ``roles``."""
    return reply(users.page(services, start_index=start_index, count=count, prefix=id_prefix, roles=roles))


@router.post("/api/auth/user", **rule("user:Manage", reply=UserReply, body=NewUser, errors=(404, 409)))
def create_user(services: ServicesDep, caller: CallerDep, body: Body) -> Response:
    """Make a user."""
    return reply(users.create(services, caller, decode(body, NewUser)))


@router.get("/api/auth/user/{user}", **rule("user:Read", reply=UserRoleReply))
def get_user(services: ServicesDep, user: User) -> Response:
    """A user with roles."""
    return reply(users.get(services, user))


@router.delete("/api/auth/user/{user}", **rule("user:Manage", reply=NoneType, errors=(409,)))
def delete_user(services: ServicesDep, caller: CallerDep, user: User) -> Response:
    """Delete a user with tokens, roles and settings; what they submitted stays."""
    users.delete(services, caller, user)
    return reply(None)


@router.get("/api/auth/user/{user}/roles", **rule("user:Read", reply=UserRolesReply))
def user_roles(services: ServicesDep, user: User) -> Response:
    """The roles of a user."""
    return reply(users.roles(services, user))


@router.post("/api/auth/user/{user}/roles", **rule("user:Manage", reply=Assignment, body=NewRole))
def give_role(services: ServicesDep, caller: CallerDep, user: User, body: Body) -> Response:
    """Give a user a role."""
    return reply(users.give(services, caller, user, decode(body, NewRole).role_name))


@router.delete("/api/auth/user/{user}/roles/{role}", **rule("user:Manage", reply=NoneType, errors=(409,)))
def take_role(services: ServicesDep, caller: CallerDep, user: User, role: Name) -> Response:
    """Take a role from a user, and from their tokens."""
    users.take(services, caller, user, role)
    return reply(None)
