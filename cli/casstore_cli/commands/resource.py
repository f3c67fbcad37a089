"""``osmo resource``: the nodes of pools.

Decided here and only here: how amounts are shown: memory and storage in whole GiB, used/total or what is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click
import msgspec

from casstore.errors import NotFoundError
from casstore.wire.cluster import NodeReply, ProfileReply, ResourcesReply
from casstore_cli import output
from casstore_cli.client import Value, quoted
from casstore_cli.lazy import LazyGroup
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption

_COLUMNS = (("storage", "Storage [Gi]"), ("cpu", "CPU [#]"), ("memory", "Memory [Gi]"), ("gpu", "GPU [#]"))
_KIB_IN_GIB = 1 << 20


@click.group("resource", cls=LazyGroup)
def cli() -> None:
    """Show the nodes that tasks are placed on."""


@cli.command("list", cls=Command)
@click.option("-p", "--pool", "pools", cls=ManyOption, help="Only of these pools, instead of your default one.")
@click.option("--platform", "platforms", cls=ManyOption, help="Only of these platforms.")
@click.option("-a", "--all", "all_pools", is_flag=True, help="Of every pool.")
@click.option("-m", "--mode", type=click.Choice(("used", "free")), default="used", show_default=True)
@output.format_option("text", "json")
def list_(pools: Sequence[str], platforms: Sequence[str], all_pools: bool, mode: str, format_type: str) -> None:
    """List nodes with what is in use."""
    client = connect()
    wanted = list(pools)
    if not wanted and not all_pools:
        default = client.get("api/profile/settings", ProfileReply).profile.pool
        wanted = [default] if default else []
    query: dict[str, Value] = {"platforms": list(platforms)}
    query |= {"pools": wanted} if wanted else {"all_pools": True}
    found = client.get("api/resources", ResourcesReply, query)
    if format_type == "json":
        output.document(msgspec.to_builtins(found))
        return
    if not found.resources:
        output.text("There are no resources to view.")
        return
    rows, used, total = [], [0.0] * len(_COLUMNS), [0.0] * len(_COLUMNS)
    counted: set[str] = set()
    for node in found.resources:
        amounts = [(_number(node.usage_fields, key), _number(node.allocatable_fields, key)) for key, _ in _COLUMNS]
        # A node that several pools share is listed for each of them, and is in the sum once.
        if node.resource_type != "SHARED" or node.hostname not in counted:
            counted.add(node.hostname)
            used = [before + amount[0] for before, amount in zip(used, amounts, strict=True)]
            total = [before + amount[1] for before, amount in zip(total, amounts, strict=True)]
        for pool, names in node.pool_platform_labels.items():
            for platform in names:
                cells = (_cell(mode, *amount) for amount in amounts)
                rows.append((node.hostname, pool, platform, node.resource_type, *cells))
    headers = ("Node", "Pool", "Platform", "Type", *(title for _, title in _COLUMNS))
    sums = (_cell(mode, *pair) for pair in zip(used, total, strict=True))
    output.text(output.table(headers, rows, total=("", "", "", "", *sums)))


@cli.command("info", cls=Command)
@click.argument("node")
@click.option("-p", "--pool", help="As a node of this pool.")
@click.option("--platform", "-pl", help="As a node of this platform.")
@output.format_option("text", "json")
def info(node: str, pool: str | None, platform: str | None, format_type: str) -> None:
    """Show one node: its pools, its size, and what tasks may do on it."""
    found = connect().get(f"api/resources/{quoted(node)}", ResourcesReply)
    nodes = [entry for entry in found.resources if _matches(entry, pool, platform)]
    if not nodes:
        raise NotFoundError(f"Node {node} is not in this pool and platform", hint="See: osmo resource list --all")
    if format_type == "json":
        output.document(msgspec.to_builtins(ResourcesReply(resources=nodes)))
        return
    for index, entry in enumerate(nodes):
        if index:
            output.text()
        _show(entry)


def _show(node: NodeReply) -> None:
    output.text(f"Node        : {output.escape(node.hostname)}")
    for pool, names in node.pool_platform_labels.items():
        output.text(f"Pool        : {output.escape(pool)}")
        output.text(f"Platforms   : {output.escape(', '.join(names))}")
    for key, title in _COLUMNS:
        used, total = _number(node.usage_fields, key), _number(node.allocatable_fields, key)
        output.text(f"{title:<12}: {_cell('used', used, total)}")
    for pool, platforms in node.config_fields.items():
        for name, config in platforms.items():
            for key, value in config.items():
                shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
                output.text(f"{pool}/{name} {key.replace('_', ' ')}: {output.escape(shown)}")


def _matches(node: NodeReply, pool: str | None, platform: str | None) -> bool:
    return any(
        pool in {None, name} and (platform is None or platform in platforms)
        for name, platforms in node.pool_platform_labels.items()
    )


def _number(fields: Mapping[str, str], key: str) -> float:
    text = fields.get(key, "0")
    return int(text.removesuffix("Ki")) / _KIB_IN_GIB if text.endswith("Ki") else float(text)


def _cell(mode: str, used: float, total: float) -> str:
    if mode == "free":
        return f"{max(0.0, total - used):.0f}"
    return f"{used:.3g}/{total:.0f}"
