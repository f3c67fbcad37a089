"""``osmo app``: workflow files that a server keeps under a name, for everybody to run.

Decided here and only here: where the text of an app comes from (a file, standard input, an editor), and what is asked
before something is deleted or renamed. An app is submitted as a file with the same text would be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from casstore.config import load_config
from casstore.errors import CancelledError, NotFoundError, SourceError, UsageError
from casstore.wire.app import AppDeleted, AppEdit, AppList, AppReply, app_and_version
from casstore_cli import output
from casstore_cli.client import Value, quoted
from casstore_cli.commands.workflow.submit import Source, local_base, read_text, submission_options, submit_source
from casstore_cli.lazy import LazyGroup
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption
from casstore_cli.paging import PAGE, collect

_file_option = click.option("-f", "--file", "path", help="The workflow file ('-': standard input); else an editor.")


@click.group("app", cls=LazyGroup)
def cli() -> None:
    """Keep workflow files on the server under a name, and run them."""


@cli.command("create", cls=Command)
@click.argument("name")
@click.option("-d", "--description", required=True, help="What the app is for.")
@_file_option
def create(name: str, description: str, path: str | None) -> None:
    """Make the app NAME from a workflow file."""
    app_and_version(name)
    text = _text(path, before="")
    made = connect().post(_route(name), AppEdit, {"description": description}, text)
    output.text(f"App {output.escape(made.name)} was created, version {made.version}.")


@cli.command("update", cls=Command)
@click.argument("name", metavar="NAME[:VERSION]")
@_file_option
def update(name: str, path: str | None) -> None:
    """Give the app NAME a new version; an editor begins with VERSION, by default the newest."""
    app, version = app_and_version(name)
    client = connect()
    before = client.text(f"{_route(app)}/spec", {"version": version}) if path is None else ""
    made = client.patch(_route(app), AppEdit, None, _text(path, before=before))
    what = "is now" if made.created else "did not change: it is still"
    output.text(f"App {output.escape(made.name)} {what} version {made.version}.")


@cli.command("info", cls=Command)
@click.argument("name", metavar="NAME[:VERSION]")
@click.option("-c", "--count", type=click.IntRange(1, PAGE), default=20, show_default=True, help="Versions to show.")
@click.option(
    "-o", "--order", type=click.Choice(("asc", "desc")), default="asc", show_default=True, help="asc: newest last."
)
@output.format_option("text", "json")
def info(name: str, count: int, order: str, format_type: str) -> None:
    """Show the app NAME and its versions."""
    app, version = app_and_version(name)
    query: dict[str, Value] = {"version": version, "limit": count, "order": "DESC"}
    found = connect().get(_route(app), AppReply, query)
    if order == "asc":
        found.versions.reverse()
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    for label, value in (
        ("Name", found.name),
        ("Owner", found.owner),
        ("Created Date", output.date(found.created_date) or ""),
        ("Description", found.description),
    ):
        output.text(f"{label:<12} : {output.escape(value)}")
    output.text()
    rows = [(item.version, item.created_by, output.date(item.created_date), item.status) for item in found.versions]
    output.text(output.table(("Version", "Created By", "Created Date", "Status"), rows))


@cli.command("show", cls=Command)
@click.argument("name", metavar="NAME[:VERSION]")
def show(name: str) -> None:
    """Show what the app NAME is for, and the values that can be set at a submission."""
    from casstore_orchestrator.loader import split

    app, version = app_and_version(name)
    client = connect()
    found = client.get(_route(app), AppReply, {"version": version, "limit": 1})
    defaults = split(client.text(f"{_route(app)}/spec", {"version": version})).defaults_text or ""
    lines = defaults.rstrip().splitlines()[1:]
    output.text("DESCRIPTION")
    output.text(output.escape(found.description))
    output.text()
    output.text("PARAMETERS")
    for line in lines or ["(none)"]:
        output.text(output.escape(line))


@cli.command("spec", cls=Command)
@click.argument("name", metavar="NAME[:VERSION]")
def spec(name: str) -> None:
    """Print the workflow file of the app NAME."""
    app, version = app_and_version(name)
    sys.stdout.write(connect().text(f"{_route(app)}/spec", {"version": version}))


@cli.command("list", cls=Command)
@click.option("-n", "--name", help="Only apps whose name contains this.")
@click.option("-u", "--user", "users", cls=ManyOption, help="Of these users instead of your own.")
@click.option("-a", "--all-users", is_flag=True, help="Of every user.")
@click.option("-c", "--count", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option(
    "-o", "--order", type=click.Choice(("asc", "desc")), default="asc", show_default=True, help="asc: newest last."
)
@output.format_option("text", "json")
def list_(*, name: str | None, users: Sequence[str], all_users: bool, count: int, order: str, format_type: str) -> None:
    """List the newest apps."""
    if users and all_users:
        raise UsageError("--user and --all-users exclude each other")
    query: dict[str, Value] = {"order": "DESC", "users": list(users), "name": name, "all_users": all_users}
    client = connect()

    def ask(limit: int, offset: int) -> AppList:
        return client.get("api/app", AppList, query | {"limit": limit, "offset": offset})

    found = collect(ask, lambda page: page.apps, count)
    if order == "asc":
        found.apps.reverse()
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    if not found.apps:
        output.text("There are no apps to view.")
        return
    rows = [
        (app.owner, app.name, app.description, output.date(app.created_date), app.latest_version) for app in found.apps
    ]
    output.text(output.table(("Owner", "Name", "Description", "Created Date", "Latest Version"), rows))


@cli.command("delete", cls=Command)
@click.argument("name", metavar="NAME[:VERSION]")
@click.option("-a", "--all", "everything", is_flag=True, help="Every version: the app itself.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def delete(name: str, everything: bool, force: bool) -> None:
    """Delete one version of the app NAME, or all of it."""
    app, version = app_and_version(name)
    if (version is None) != everything:
        raise UsageError("Which version is to be deleted?", hint=f"Name one, as {app}:1, or give --all.")
    what = f"App {app}" if everything else f"Version {version} of app {app}"
    if not force and not output.confirm(f"{what} will be deleted for ever. Go on?"):
        return
    query: dict[str, Value] = {"version": version, "all_versions": everything}
    gone = connect().delete(_route(app), AppDeleted, query)
    numbers = ", ".join(map(str, gone.versions))
    output.text(f"Deleted of app {app}: version{'s' if len(gone.versions) > 1 else ''} {numbers}.")


@cli.command("rename", cls=Command)
@click.argument("old")
@click.argument("new")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def rename(old: str, new: str, force: bool) -> None:
    """Give the app OLD the name NEW."""
    for name in (old, new):
        if app_and_version(name)[1] is not None:
            raise UsageError("An app is renamed with all of its versions: give its name alone")
    if not force and not output.confirm(f"Who submits {old} will not find it any more. Rename it?"):
        return
    connect().post(f"{_route(old)}/rename", str, None, new)
    output.text(f"App {old} is now called {new}.")


@cli.command("submit", cls=Command)
@click.argument("name", metavar="NAME[:VERSION]")
@click.option("-l", "--local-path", help="Folder of the files that a 'localpath' names; without it the current one.")
@submission_options
def submit(*, name: str, local_path: str | None, **options: Any) -> int:
    """Run the app NAME: its newest version, or VERSION."""
    app, version = app_and_version(name)
    base = local_base(local_path)
    config = load_config()
    client = connect(config)
    found = client.get(_route(app), AppReply, {"version": version, "limit": 1})
    if not found.versions or found.versions[0].status != "READY":
        raise NotFoundError(f"App {name} has no such version any more", hint=f"See: osmo app info {app}")
    number = found.versions[0].version
    text = client.text(f"{_route(app)}/spec", {"version": number})
    extra: dict[str, Value] = {"app_uuid": found.uuid, "app_version": number}
    return submit_source(client, config, Source.of(text, base, options), options, extra)


def _route(name: str) -> str:
    return f"api/app/user/{quoted(app_and_version(name)[0])}"


def _text(path: str | None, *, before: str) -> str:
    if path is not None:
        return read_text(path)[0]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("No workflow file was given, and there is no terminal for an editor", hint="Give --file.")
    try:
        text = click.edit(before, extension=".yaml", require_save=False)
    except click.ClickException as exc:
        raise SourceError(f"the editor can't be used: {exc.message}", hint="Set EDITOR, or give --file.") from None
    if not text or not text.strip():
        raise CancelledError("nothing was written: nothing was changed")
    return text
