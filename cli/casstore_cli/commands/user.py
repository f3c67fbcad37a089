"""``osmo user``: who may use a server, and as what.

Decided here and only here: what these print, which is what OSMO prints.
"""

from __future__ import annotations

import click
import msgspec

from casstore.wire.auth import USERS_PATH, Assignment, NewRole, NewUser, UserReply, UserRoleReply, UsersReply
from casstore_cli import login, output
from casstore_cli.client import Client, quoted
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command, ManyOption

_PAGE = 1000
"""The most users that a server tells of at once."""


@click.group("user", cls=LazyGroup)
def cli() -> None:
    """Manage the users of a server, and their roles."""


@cli.command("list", cls=Command)
@click.option("-p", "--id-prefix", help="Those whose names begin so.")
@click.option("-r", "--roles", cls=ManyOption, help="Those who have one of these roles.")
@click.option("-c", "--count", type=click.IntRange(min=1), default=100, show_default=True, help="How many at most.")
@output.format_option("text", "json")
def list_users(id_prefix: str | None, roles: tuple[str, ...], count: int, format_type: str) -> None:
    """List users, the newest first."""
    found = _users(login.connect(), id_prefix, list(roles), count)
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    if not found.users:
        output.text("No users found")
        return
    output.text(f"Total users: {found.total_results}\n")
    output.text(output.table(("User ID", "Created At"), [(user.id, _day(user.created_at)) for user in found.users]))


@cli.command("create", cls=Command)
@click.argument("user_id")
@click.option("-r", "--roles", cls=ManyOption, help="The roles to begin with.")
@output.format_option("text", "json")
def create_user(user_id: str, roles: tuple[str, ...], format_type: str) -> None:
    """Create the user USER_ID. Whoever the identity provider knows need not be created."""
    found = login.connect().post(USERS_PATH, UserReply, body=NewUser(id=user_id, roles=list(roles) or None))
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    output.text(f"User created: {output.escape(found.id)}")
    if roles:
        output.text(f"Roles assigned: {output.escape(', '.join(roles))}")


@cli.command("update", cls=Command)
@click.argument("user_id")
@click.option("-a", "--add-roles", cls=ManyOption, help="Roles to give.")
@click.option("-r", "--remove-roles", cls=ManyOption, help="Roles to take away, of the user's tokens as well.")
@output.format_option("text", "json")
def update_user(user_id: str, add_roles: tuple[str, ...], remove_roles: tuple[str, ...], format_type: str) -> None:
    """Give roles to the user USER_ID, or take them away."""
    client, path, text = login.connect(), _path(user_id), format_type == "text"
    for role in add_roles:
        client.post(f"{path}/roles", Assignment, body=NewRole(role_name=role))
        if text:
            output.text(f"Added role: {output.escape(role)}")
    for role in remove_roles:
        client.delete(f"{path}/roles/{quoted(role)}", object)
        if text:
            output.text(f"Removed role: {output.escape(role)}")
    if not text:
        output.document(msgspec.to_builtins(client.get(path, UserRoleReply)), indent=2)
    elif not add_roles and not remove_roles:
        output.text("No updates specified. Use --add-roles or --remove-roles.")


@cli.command("delete", cls=Command)
@click.argument("user_id")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def delete_user(user_id: str, force: bool) -> None:
    """Delete the user USER_ID with tokens, roles and profile; what they submitted stays."""
    client = login.connect()
    question = (
        f'Are you sure you want to delete user "{output.escape(user_id)}"? '
        "This will delete all associated tokens, roles, and profile."
    )
    if not force and not output.confirm(question):
        output.text("Cancelled")
        return
    client.delete(_path(user_id), object)
    output.text(f"User deleted: {output.escape(user_id)}")


@cli.command("get", cls=Command)
@click.argument("user_id")
@output.format_option("text", "json")
def get_user(user_id: str, format_type: str) -> None:
    """Show the user USER_ID and their roles."""
    found = login.connect().get(_path(user_id), UserRoleReply)
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    output.text(f"User ID: {output.escape(found.id)}")
    output.text(f"Created At: {_day(found.created_at)}")
    output.text(f"Created By: {output.escape(found.created_by or '-')}")
    output.text("\nRoles:" if found.roles else "\nRoles: None")
    for role in found.roles:
        output.text(output.escape(f"  - {role.role_name} (assigned by {role.assigned_by} on {_day(role.assigned_at)})"))


def _path(user: str) -> str:
    return f"{USERS_PATH}/{quoted(login.check_user(user))}"


def _users(client: Client, prefix: str | None, roles: list[str], count: int) -> UsersReply:
    """The first ``count`` users, asked for page by page."""
    found = UsersReply(total_results=0, start_index=1, items_per_page=0, users=[])
    while len(found.users) < count:
        query = {
            "count": min(count - len(found.users), _PAGE),
            "start_index": len(found.users) + 1 if found.users else None,
            "id_prefix": prefix,
            "roles": roles,
        }
        page = client.get(USERS_PATH, UsersReply, query)
        found.total_results = page.total_results
        found.users += page.users
        if not page.users or len(found.users) >= page.total_results:
            break
    found.items_per_page = len(found.users)
    return found


def _day(moment: str | None) -> str:
    return (moment or "-").partition("T")[0]
