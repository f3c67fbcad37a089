"""Users, their roles and tokens, and what a client needs to log in.

Decided here and only here: the field names of these shapes, which are OSMO 6.2's. Times are ISO 8601, UTC, without a
zone; a token is valid until the day of ``expires_at`` begins.
"""

from __future__ import annotations

import re

import msgspec

__all__ = [
    "ADMIN_ROLE",
    "JWT_PATH",
    "LOGIN_PATH",
    "TOKENS_PATH",
    "TOKEN_DAYS",
    "TOKEN_NAME",
    "TOKEN_NAME_HINT",
    "USERS_PATH",
    "AccessTokenReply",
    "AccessTokenRoles",
    "Assignment",
    "Jwt",
    "LoginReply",
    "NewRole",
    "NewUser",
    "TokenRequest",
    "UserReply",
    "UserRole",
    "UserRoleReply",
    "UserRolesReply",
    "UserTokenReply",
    "UsersReply",
]

JWT_PATH = "api/auth/jwt/access_token"
LOGIN_PATH = "api/auth/login"
TOKENS_PATH = "api/auth/access_token"
USERS_PATH = "api/auth/user"

TOKEN_DAYS = 31
"""How long a token is valid unless something else is asked for."""
ADMIN_ROLE = "osmo-admin"
TOKEN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", re.ASCII)
"""What a token may be called."""
TOKEN_NAME_HINT = "Letters, digits and . _ - only, 64 of them."  # noqa: S105  # no token


class LoginReply(msgspec.Struct, kw_only=True):
    """The identity provider that the server trusts (``GET api/auth/login``); nothing where there is none."""

    token_endpoint: str | None = None
    device_endpoint: str | None = None
    device_client_id: str | None = None
    browser_endpoint: str | None = None
    browser_client_id: str | None = None
    logout_endpoint: str | None = None


class TokenRequest(msgspec.Struct, kw_only=True):
    """Body of ``POST api/auth/jwt/access_token``: a personal token."""

    token: str


class Jwt(msgspec.Struct, kw_only=True):
    """What is given for a personal token; ``expires_at`` in seconds since the epoch."""

    token: str | None
    expires_at: int | None = None
    error: str | None = None


class AccessTokenReply(msgspec.Struct, kw_only=True):
    """A personal token, without what it is. ``last_used``, to the minute, is ours."""

    user_name: str
    token_name: str
    expires_at: str
    description: str = ""
    roles: list[str] = []
    last_used: str | None = None


class UserRole(msgspec.Struct, kw_only=True):
    """A role that somebody was given, or that a token has."""

    role_name: str
    assigned_by: str
    assigned_at: str


class AccessTokenRoles(msgspec.Struct, kw_only=True):
    """The roles of a token."""

    user_name: str
    token_name: str
    roles: list[UserRole] = []


class UserReply(msgspec.Struct, kw_only=True):
    """A user."""

    id: str
    created_at: str | None = None
    created_by: str | None = None


class UserRoleReply(UserReply, kw_only=True):
    """A user with roles."""

    roles: list[UserRole] = []


class UsersReply(msgspec.Struct, kw_only=True):
    """A page of users; ``start_index`` counts from 1."""

    total_results: int
    start_index: int
    items_per_page: int
    users: list[UserReply]


class UserRolesReply(msgspec.Struct, kw_only=True):
    """The roles of a user."""

    user_id: str
    roles: list[UserRole] = []


class Assignment(msgspec.Struct, kw_only=True):
    """A role that a user has now."""

    user_id: str
    role_name: str
    assigned_by: str
    assigned_at: str


class NewUser(msgspec.Struct, kw_only=True):
    """Body of ``POST api/auth/user``."""

    id: str
    roles: list[str] | None = None


class NewRole(msgspec.Struct, kw_only=True):
    """Body of ``POST api/auth/user/U/roles``."""

    role_name: str


class UserTokenReply(msgspec.Struct, kw_only=True):
    """The token that a request was made with, as profiles show it."""

    name: str
    expires_at: str | None = None
