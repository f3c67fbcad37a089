"""``osmo token``: what programs log in with.

Decided here and only here: what these print, which is what OSMO prints.
"""

from __future__ import annotations

from datetime import UTC, datetime

import click
import msgspec

from casstore.errors import UsageError
from casstore.wire.auth import (
    TOKEN_NAME,
    TOKEN_NAME_HINT,
    TOKENS_PATH,
    USERS_PATH,
    AccessTokenReply,
    AccessTokenRoles,
)
from casstore_cli import login, output
from casstore_cli.client import quoted
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command, ManyOption

_user = click.option("-u", "--user", help="Whose tokens, if not yours; for administrators.")


@click.group("token", cls=LazyGroup)
def cli() -> None:
    """Make tokens that programs log in with, and take them back."""


@cli.command("set", cls=Command)
@click.argument("name")
@click.option("-e", "--expires-at", metavar="YYYY-MM-DD", help="The day (UTC) it ends; by default in 31 days.")
@click.option("-d", "--description", help="What it is for.")
@_user
@click.option("-r", "--roles", cls=ManyOption, help="The roles it has, of its user's; by default all of them.")
@output.format_option("text", "json")
def set_token(
    name: str,
    expires_at: str | None,
    description: str | None,
    user: str | None,
    roles: tuple[str, ...],
    format_type: str,
) -> None:
    """Make the token NAME and show it, this once. 'osmo login URL --token-file FILE' logs in with it."""
    query = {"expires_at": expires_at, "description": description, "roles": list(roles)}
    token = login.connect().post(_path(user, name), str, query)
    if format_type == "json":
        output.document({"token": token}, indent=2)
        return
    output.text("Note: Save the token in a secure location as it will not be shown again")
    output.text(f"Access token: {output.escape(token)}")
    if user:
        output.text(f"Created for user: {output.escape(user)}")
    if roles:
        output.text(f"Roles: {output.escape(', '.join(roles))}")


@cli.command("delete", cls=Command)
@click.argument("name")
@_user
def delete_token(name: str, user: str | None) -> None:
    """Delete the token NAME; whoever uses it can't any more."""
    login.connect().delete(_path(user, name), object)
    output.text(f"Access token {output.escape(name)} deleted" + (f" for user {output.escape(user)}" if user else ""))


@cli.command("list", cls=Command)
@_user
@output.format_option("text", "json")
def list_tokens(user: str | None, format_type: str) -> None:
    """List tokens, without what they are."""
    found = login.connect().get(_path(user), list[AccessTokenReply])
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    if not found:
        output.text(f"No tokens found for user {output.escape(user)}" if user else "No tokens found")
        return
    if user:
        output.text(f"Tokens for user: {output.escape(user)}\n")
    today = datetime.now(UTC).date().isoformat()
    rows = []
    for token in found:
        day = token.expires_at.partition("T")[0]
        active = "Expired" if day <= today else "Active"
        rows.append((token.token_name, token.description, active, day, ", ".join(token.roles) or "-"))
    output.text(output.table(("Name", "Description", "Active", "Expires At (UTC)", "Roles"), rows))


@cli.command("roles", cls=Command)
@click.argument("name")
@output.format_option("text", "json")
def token_roles(name: str, format_type: str) -> None:
    """List the roles of your token NAME."""
    found = login.connect().get(f"{_path(None, name)}/roles", AccessTokenRoles)
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    output.text(f"Token: {output.escape(found.token_name)}")
    output.text(f"Owner: {output.escape(found.user_name)}")
    output.text("\nRoles:" if found.roles else "\nRoles: None")
    for role in found.roles:
        output.text(output.escape(f"  - {role.role_name} (assigned by {role.assigned_by} on {_day(role.assigned_at)})"))


def _day(moment: str | None) -> str:
    return (moment or "-").partition("T")[0]


def _path(user: str | None, name: str | None = None) -> str:
    base = f"{USERS_PATH}/{quoted(login.check_user(user))}/access_token" if user else TOKENS_PATH
    if name is not None and not TOKEN_NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not the name of a token", hint=TOKEN_NAME_HINT)
    return base if name is None else f"{base}/{quoted(name)}"
