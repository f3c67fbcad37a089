"""``osmo config``: what administrators of a server set while it runs, with its history.

Decided here and only here: what is sent of a text that somebody edited (what is different, and the revision that it was
made from, so that nobody's change is lost); how a change is described; and where a text is left that was refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from casstore.errors import CasstoreError, NotFoundError, UsageError
from casstore.wire.config import (
    NAMED,
    TYPES,
    ConfigChange,
    ConfigHistory,
    DiffReply,
    Rollback,
    TagsChange,
    parse_revision,
)
from casstore_cli import editing, output
from casstore_cli.client import Client, quoted
from casstore_cli.lazy import LazyGroup
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption

_INNER = {"POOL": "pools", "DATASET": "buckets", "BACKEND": "backends"}
_MERGED = frozenset({"SERVICE", "WORKFLOW", "DATASET"})
_MERGED_ONE = frozenset({"DATASET", "POOL", "BACKEND_TEST"})
_NEWEST = "9999-01-01T00:00:00"
"""Whatever the clocks say."""
_IN_DICT = frozenset({"RESOURCE_VALIDATION"})
_TYPE = click.Choice(TYPES, case_sensitive=False)
_description = click.option("-d", "--description", help="Why it is changed; else an editor asks for it.")
_tags = click.option("-t", "--tags", cls=ManyOption, metavar="TAG...", help="Tags of the new revision.")
_only_tags = click.option("--tags", cls=ManyOption, metavar="TAG...", help="Tags of the new revision.")
_why = click.option("--description", help="Why it is changed; else an editor asks for it.")
_fit = click.option("--fit-width", is_flag=True, help="Cut long texts, so that the table is as wide as the terminal.")


@click.group("config", cls=LazyGroup)
def cli() -> None:
    """Set pools, buckets, limits, checks and roles of a server while it runs.

    TYPE is one of BACKEND, BACKEND_TEST, DATASET, GROUP_TEMPLATE, POD_TEMPLATE, POOL, RESOURCE_VALIDATION, ROLE,
    SERVICE and WORKFLOW. Every change makes a revision of all configs of its type, such as POOL:3.
    """


@cli.command("list", cls=Command)
@output.format_option("text", "json")
@_fit
def list_(fit_width: bool, format_type: str) -> None:
    """List the revision of each type that is in force."""
    query: dict[str, Any] = {"omit_data": True, "at_timestamp": _NEWEST, "limit": 1000}
    found = connect().get("api/configs/history", ConfigHistory, query)
    if format_type == "json":
        output.document(_plain(found), indent=2)
        return
    rows = [
        [one.config_type, str(one.revision), output.escape(one.username), output.date(one.created_at)]
        for one in sorted(found.configs, key=lambda one: one.config_type)
    ]
    _table(["Config Type", "Revision", "Username", "Created At"], rows, fit=fit_width)


@cli.command("show", cls=Command)
@click.argument("config", metavar="TYPE[:REVISION]")
@click.argument("names", nargs=-1)
def show(config: str, names: Sequence[str]) -> None:
    """Show the configs of a type, or of an old revision; NAMES lead into them. Secrets are masked."""
    kind, revision = parse_revision(config)
    client = connect()
    data = _current(client, kind) if revision is None else _old(client, kind, revision)
    for at, name in enumerate(names):
        data = _into(_by_name(kind, data) if at == 0 else data, name, " ".join([config, *names[:at]]))
    output.document(data, indent=2)


@cli.command("update", cls=Command)
@click.argument("config", type=_TYPE, metavar="TYPE")
@click.argument("name", required=False)
@click.option("-f", "--file", "path", help="A file with the new configs as JSON ('-': standard input); else an editor.")
@_description
@_tags
def update(config: str, name: str | None, path: str | None, description: str | None, tags: Sequence[str]) -> None:
    """Change the configs of a type, or the one that has NAME; with --file it may be a new one.

    In an editor, what is taken out of a config goes back to its default. Whole configs are taken away with 'osmo config
    delete' only. If somebody else changes them meanwhile, nothing is stored.
    """
    kind = config.upper()
    if name is None and kind == "BACKEND":
        raise UsageError("Backends are changed one by one: osmo config update BACKEND NAME")
    if name is not None and kind not in NAMED:
        raise UsageError(f"{kind} has no configs with names")
    if name is not None and "/" in name:
        raise UsageError(f"'{name}' is no name for a config")
    client = connect()
    revision = _revision(client, kind)
    before = _before(client, kind, name, new=path is not None)
    text = editing.edited(before) if path is None else editing.read(path)
    after = editing.parsed(text, keep=path is None)
    if after == before:
        output.text("No changes were made to the config.")
        return
    try:
        route, method, change = _request(kind, name, before, after)
        change.description = description or editing.described(before, after)
        change.tags, change.revision = list(tags) or None, revision
        _send(client, method, route, change)
    except CasstoreError as error:
        if path is None:
            raise type(error)(error.message, hint=f"{error.hint or ''} {editing.kept(text)}".strip()) from None
        raise
    output.text(f"Successfully updated {kind} config")


@cli.command("delete", cls=Command)
@click.argument("config", metavar="TYPE[:REVISION]")
@click.argument("name", required=False)
@_description
@_tags
def delete(config: str, name: str | None, description: str | None, tags: Sequence[str]) -> None:
    """Take the config NAME away, or an old revision out of the history."""
    kind, revision = parse_revision(config)
    client = connect()
    if revision is not None:
        if name is not None:
            raise UsageError("Either a config is deleted or a revision: give a name, or TYPE:REVISION")
        client.delete(f"api/configs/history/{kind.lower()}/revision/{revision}", object)
        output.text(f"Successfully deleted revision {revision} of {kind} config")
        return
    if name is None:
        raise UsageError("Name is required when deleting a config")
    change = ConfigChange(description=description or editing.described(None, None), tags=list(tags) or None)
    _send(client, "DELETE", f"api/configs/{kind.lower()}/{quoted(name)}", change)
    output.text(f'Successfully deleted {kind} config "{output.escape(name)}"')


@cli.command("history", cls=Command)
@click.argument("config", type=_TYPE, metavar="TYPE", required=False)
@click.option("-o", "--offset", type=click.IntRange(0), default=0, help="How many to pass over.")
@click.option("-c", "--count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.option("--order", type=click.Choice(["asc", "desc"]), default="asc", help="By age: asc ends with the newest.")
@click.option("-n", "--name", help="Changes of this config.")
@click.option("-r", "--revision", type=click.IntRange(1), help="This revision.")
@click.option("--tags", cls=ManyOption, metavar="TAG...", help="Those that have all of these tags.")
@click.option("--at-timestamp", metavar="TIME", help="What was in force then (YYYY-MM-DD[THH:MM:SS], local time).")
@click.option("--created-before", metavar="TIME", help="Those that were made earlier.")
@click.option("--created-after", metavar="TIME", help="Those that were made later.")
@output.format_option("text", "json")
@_fit
def history(
    *,
    config: str | None,
    offset: int,
    count: int,
    order: str,
    name: str | None,
    revision: int | None,
    tags: Sequence[str],
    at_timestamp: str | None,
    created_before: str | None,
    created_after: str | None,
    format_type: str,
    fit_width: bool,
) -> None:
    """List changes: the newest ones, in the order of their age."""
    if at_timestamp and (created_before or created_after):
        raise UsageError("--at-timestamp can't be given with --created-before or --created-after")
    query: dict[str, Any] = {
        "omit_data": True,
        "offset": offset,
        "limit": count,
        "order": order.upper(),
        "config_types": [config.upper()] if config else [],
        "name": name,
        "revision": revision,
        "tags": list(tags),
        "at_timestamp": _utc(at_timestamp),
        "created_before": _utc(created_before),
        "created_after": _utc(created_after),
    }
    found = connect().get("api/configs/history", ConfigHistory, query)
    if format_type == "json":
        output.document(_plain(found), indent=2)
        return
    rows = [
        [
            one.config_type,
            output.escape(one.name) or "-",
            str(one.revision),
            output.escape(one.username),
            output.date(one.created_at),
            output.escape(one.description),
            output.escape(", ".join(sorted(one.tags))) if one.tags else "-",
        ]
        for one in found.configs
    ]
    heads = ["Config Type", "Name", "Revision", "Username", "Created At", "Description", "Tags"]
    _table(heads, rows, fit=fit_width)


@cli.command("rollback", cls=Command)
@click.argument("revision", metavar="TYPE:REVISION")
@_why
@_only_tags
def rollback(revision: str, description: str | None, tags: Sequence[str]) -> None:
    """Make all configs of a type as they were in an old revision. That is a new revision, too."""
    kind, number = parse_revision(revision)
    if number is None:
        raise UsageError(f"To which revision? Such as {kind}:3", hint=f"See: osmo config history {kind}")
    why = description or editing.described(None, None)
    body = Rollback(config_type=kind, revision=number, description=why, tags=list(tags) or None)
    connect().post("api/configs/history/rollback", object, None, body)
    output.text(f"Successfully rolled back {kind} to revision {number}.")


@cli.command("set", cls=Command)
@click.argument("config", type=click.Choice(["ROLE"], case_sensitive=False), metavar="ROLE")
@click.argument("name")
@click.argument("type_", metavar="TYPE", type=click.Choice(["pool", "backend"], case_sensitive=False))
@click.option("--field", help="The pool, if it is not in the name of the role (osmo-POOL).")
@_why
@_only_tags
def set_(config: str, name: str, type_: str, field: str | None, description: str | None, tags: Sequence[str]) -> None:
    """Make the role NAME, for users of a pool: 'osmo config set ROLE osmo-robots pool'."""
    if type_.lower() == "backend":
        raise UsageError("Backends of this server need no roles: they are processes of its own")
    pool = field or (name.removeprefix("osmo-") if name.startswith("osmo-") else "")
    if not pool:
        raise UsageError('Pool role name must start with "osmo-", or --field name the pool')
    in_pool = ["pool:Read", "workflow:Read", "workflow:Create", "workflow:Change", "workflow:Exec"]
    own = ["profile:Own", "credential:Own", "token:Own", "app:Read", "app:Write", "server:Read"]
    role = {
        "name": name,
        "description": f"Generated Role for pool {pool}",
        "policies": [{"actions": in_pool, "resources": [f"pool/{pool}"]}, {"actions": own, "resources": ["*"]}],
    }
    change = ConfigChange(
        configs=role, description=description or editing.described(None, role), tags=list(tags) or None
    )
    _send(connect(), "PUT", f"api/configs/role/{quoted(name)}", change)
    output.text(f'Successfully set {config.upper()} config "{output.escape(name)}"')


@cli.command("tag", cls=Command)
@click.argument("config", metavar="TYPE[:REVISION]")
@click.option("-s", "--set", "add", cls=ManyOption, metavar="TAG...", help="Tags that the revision gets.")
@click.option("-d", "--delete", "remove", cls=ManyOption, metavar="TAG...", help="Tags that it loses.")
def tag(config: str, add: Sequence[str], remove: Sequence[str]) -> None:
    """Change the tags of a revision, by default of the one in force. They change no config."""
    kind, revision = parse_revision(config)
    client = connect()
    number = _revision(client, kind) if revision is None else revision
    body = TagsChange(set_tags=list(add) or None, delete_tags=list(remove) or None)
    client.post(f"api/configs/history/{kind.lower()}/revision/{number}/tags", object, None, body)
    output.text(f"Successfully updated tags for {config}")


@cli.command("diff", cls=Command)
@click.argument("first", metavar="TYPE[:REVISION]")
@click.argument("second", metavar="TYPE[:REVISION]", required=False)
def diff(first: str, second: str | None) -> None:
    """Show what is different between two revisions; without a number the one in force."""
    kind, one = parse_revision(first)
    other_kind, other = parse_revision(second or kind)
    if other_kind != kind:
        raise UsageError(f"Config type mismatch: {other_kind} != {kind}. Must diff the same config type.")
    client = connect()
    one, other = one or _revision(client, kind), other or _revision(client, kind)
    query: dict[str, Any] = {"config_type": kind, "first_revision": one, "second_revision": other}
    found = client.get("api/configs/diff", DiffReply, query)
    lines = editing.difference(found.first_data, found.second_data, f"{kind}:{one}", f"{kind}:{other}")
    for line in lines:
        output.text(editing.colored(output.escape(line)))
    if not lines:
        output.text("No differences were found between the two revisions")


# --- the server


def _current(client: Client, kind: str) -> Any:
    return client.get(f"api/configs/{kind.lower()}", object)


def _old(client: Client, kind: str, revision: int) -> Any:
    query: dict[str, Any] = {"config_types": [kind], "revision": revision, "omit_data": False}
    found = client.get("api/configs/history", ConfigHistory, query)
    if not found.configs:
        raise NotFoundError("No config found matching the specified criteria", hint=f"See: osmo config history {kind}")
    return found.configs[0].data


def _revision(client: Client, kind: str) -> int:
    """The revision in force."""
    query: dict[str, Any] = {"config_types": [kind], "order": "DESC", "limit": 1, "omit_data": True}
    found = client.get("api/configs/history", ConfigHistory, query)
    if not found.configs:
        raise NotFoundError(f"No config history entries found for type {kind}")
    return found.configs[0].revision


def _before(client: Client, kind: str, name: str | None, *, new: bool) -> Any:
    """What is there now; None for a config that is new."""
    data = _current(client, kind)
    if name is None:
        return data
    found = _by_name(kind, data)
    if name not in found and not new:
        raise NotFoundError(
            f'Config name "{name}" not found in {kind}', hint="To make a new one, give its text: --file FILE"
        )
    return found.get(name)


def _request(kind: str, name: str | None, before: Any, after: Any) -> tuple[str, str, ConfigChange]:
    """The route, the method and the body of a change."""
    route = f"api/configs/{kind.lower()}" + (f"/{quoted(name)}" if name else "")
    if name is None and kind in _MERGED:
        _nothing_gone(kind, before, after)
        return route, "PATCH", ConfigChange(configs_dict=_patch(before, after))
    if name is None:
        _nothing_gone(kind, before, after)
        old, new = _by_name(kind, before), _by_name(kind, after)
        changed = {key: value for key, value in new.items() if old.get(key) != value}
        body: Any = list(changed.values()) if isinstance(after, list) else changed
        whole = ConfigChange(configs_dict=body) if kind in _IN_DICT else ConfigChange(configs=body)
        return route, "PUT", whole
    if kind == "BACKEND":
        return route, "POST", ConfigChange(configs=_patch(before or {}, after))
    if kind == "DATASET" or (kind in _MERGED_ONE and before is not None):
        return route, "PATCH", ConfigChange(configs_dict=_patch(before or {}, after))
    return route, "PUT", ConfigChange(configs=after)


def _nothing_gone(kind: str, before: Any, after: Any) -> None:
    if kind in NAMED:
        gone = sorted(_by_name(kind, before).keys() - _by_name(kind, after).keys())
        if gone:
            raise UsageError(f"{gone[0]} is missing in the new text", hint=f"Use: osmo config delete {kind} {gone[0]}")


def _patch(before: Any, after: Any) -> Any:
    """A JSON merge patch (RFC 7396): what is different, and null for what is gone."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return after
    changed = {key: _patch(before.get(key), value) for key, value in after.items() if before.get(key) != value}
    return changed | dict.fromkeys(before.keys() - after.keys())


def _send(client: Client, method: str, route: str, change: ConfigChange) -> None:
    client.change(method, route, change)


# --- texts


def _by_name(kind: str, data: Any) -> dict[str, Any]:
    """The configs of a type by their names, from the shape in which they are shown."""
    inner = data.get(_INNER[kind], data) if kind in _INNER and isinstance(data, Mapping) else data
    if isinstance(inner, list):
        return {str(one["name"]): one for one in inner if isinstance(one, Mapping) and "name" in one}
    if not isinstance(inner, Mapping):
        raise UsageError(f"{kind}: expected an object of names and configs")
    return dict(inner)


def _into(data: Any, name: str, where: str) -> Any:
    if isinstance(data, Mapping) and name in data:
        return data[name]
    if isinstance(data, list):
        if name.isdigit() and int(name) < len(data):
            return data[int(name)]
        raise UsageError(f"{where} is a list of {len(data)}, which has no {name}")
    known = f"It has: {', '.join(sorted(map(str, data)))}" if isinstance(data, Mapping) and data else None
    raise UsageError(f"{where} has no {name}", hint=known)


def _utc(text: str | None) -> str | None:
    """A local time as the server takes it."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None).isoformat()
    except ValueError:
        raise UsageError(f"'{text}' is not a time", hint="Such as 2026-01-31, or 2026-01-31T12:00:00.") from None


def _plain(found: ConfigHistory) -> Any:
    import msgspec

    return msgspec.to_builtins(found)


def _table(heads: list[str], rows: list[list[Any]], *, fit: bool) -> None:
    if fit and rows:
        import shutil

        room = shutil.get_terminal_size().columns - 3 * (len(heads) - 1)
        widths = [max(len(head), *(len(str(row[at])) for row in rows)) for at, head in enumerate(heads)]
        while sum(widths) > room and max(widths) > 8:
            widths[widths.index(max(widths))] -= 1
        rows = [
            [
                cell if len(str(cell)) <= width else f"{str(cell)[: width - 1]}…"
                for cell, width in zip(row, widths, strict=True)
            ]
            for row in rows
        ]
    output.text(output.table(heads, rows))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
