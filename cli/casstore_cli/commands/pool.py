"""``osmo pool``: what workflows are submitted to.

Decided here and only here: the command-line form of a platform (``NAME[:key=value,...]``), and what declaring a pool
does to the one that is there already: platforms are added, those with the same name are replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from casstore.config import load_config
from casstore.errors import NotFoundError, UsageError
from casstore.wire.cluster import QuotaReply, ResourceUsage
from casstore_cli import output
from casstore_cli.config import change_config
from casstore_cli.lazy import LazyGroup, Table
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption

_AMOUNTS = ("cpu", "memory", "storage", "gpu")
_DEFAULT = "default"


_LATER: Table = {
    "simulate": (
        "casstore_cli.commands.simulate",
        "simulate",
        "Try a trace of work on pools, without running anything.",
    ),
}


@click.group("pool", cls=LazyGroup, table=_LATER)
def cli() -> None:
    """Declare and list pools: platforms with their nodes, which workflows are placed on."""


@cli.command("list", cls=Command)
@click.option("-p", "--pool", "pools", cls=ManyOption, help="Only these.")
@click.option("-m", "--mode", type=click.Choice(("used", "free")), default="used", show_default=True)
@output.format_option("text", "json")
def list_(pools: Sequence[str], mode: str, format_type: str) -> None:
    """List pools with their use of GPUs."""
    query = {"pools": list(pools)} if pools else {"all_pools": True}
    found = connect().get("api/pool_quota", QuotaReply, query)
    if format_type == "json":
        output.document(msgspec.to_builtins(found))
        return
    names = ("Quota Free", "Quota Limit", "Total Free", "Total Capacity")
    if mode == "used":
        names = ("Quota Used", "Quota Limit", "Total Usage", "Total Capacity")
    rows = []
    for node_set in found.node_sets:
        for index, pool in enumerate(node_set.pools):
            shared = " (shared)" if index else ""
            rows.append((pool.name + shared, pool.description, pool.status, *_numbers(pool.resource_usage, mode)))
    headers = ("Pool", "Description", "Status", *(f"GPU [#] {name}" for name in names))
    output.text(output.table(headers, rows, total=("", "", "", *_numbers(found.resource_sum, mode))))


@cli.command("declare", cls=Command)
@click.argument("name")
@click.option(
    "--platform",
    "platforms",
    cls=ManyOption,
    metavar="NAME[:KEY=VALUE,...]",
    help="A platform; keys are cpu, memory, storage, gpu, nodes (a number, or names joined by +), description.",
)
@click.option("--cpu", help="Cores of each node, where a platform does not say.")
@click.option("--memory", help="Memory of each node, such as 8Gi, where a platform does not say.")
@click.option("--storage", help="Disk of each node, where a platform does not say.")
@click.option("--gpu", help="GPUs of each node, where a platform does not say.")
@click.option("--nodes", help="Nodes of each platform, where it does not say.")
@click.option("-d", "--description", help="What the pool is for.")
@click.option("--default-platform", metavar="PLATFORM", help="For tasks that name none.")
@click.option("--gpu-guarantee", type=click.IntRange(min=0), help="GPUs for HIGH and NORMAL priority.")
@click.option("--gpu-maximum", type=click.IntRange(min=0), help="GPUs for everything together.")
@click.option("--gpu-weight", type=click.IntRange(min=1), help="Share of what pools with the same nodes may borrow.")
@click.option(
    "--executor",
    type=click.Choice(("process", "container", "podman", "docker")),
    help="How tasks run: as processes, or their images as containers.",
)
@click.option("--egress/--no-egress", default=None, help="Whether tasks reach other networks than their group's.")
@click.option(
    "--status", type=click.Choice(("ONLINE", "OFFLINE", "MAINTENANCE"), case_sensitive=False), help="Whether it runs."
)
def declare(
    *,
    name: str,
    platforms: Sequence[str],
    cpu: str | None,
    memory: str | None,
    storage: str | None,
    gpu: str | None,
    nodes: str | None,
    description: str | None,
    default_platform: str | None,
    gpu_guarantee: int | None,
    gpu_maximum: int | None,
    gpu_weight: int | None,
    executor: str | None,
    egress: bool | None,
    status: str | None,
) -> None:
    """Declare the pool NAME, or add platforms to it.

    A platform is a label with capacities. Nothing is compared with the machine, so that a workflow for a cluster can
    be tried on a laptop: what is not said is the machine's own size.
    """
    common = {"cpu": cpu, "memory": memory, "storage": storage, "gpu": gpu, "nodes": nodes}
    parsed = dict(_platform(text, common) for text in platforms)
    settings = {
        "description": description,
        "default_platform": default_platform,
        "gpu_guarantee": gpu_guarantee,
        "gpu_maximum": gpu_maximum,
        "gpu_weight": gpu_weight,
        "executor": executor,
        "egress": egress,
        "status": status,
    }

    def change(own: dict[str, Any]) -> None:
        declared = dict(own.get("pools") or {})
        pool = dict(declared.get(name) or {})
        known = dict(pool.get("platforms") or {})
        if name == _DEFAULT and not known and parsed:
            known[_DEFAULT] = {"description": "this machine"}  # what there was without a declaration stays
        if known or parsed:
            pool["platforms"] = known | parsed
        pool |= {key: value for key, value in settings.items() if value is not None}
        declared[name] = pool
        _check(declared)
        own["pools"] = declared

    config = change_config(change)
    found = sorted((config.pools[name] or {}).get("platforms") or {"default": {}})
    output.text(f"Pool {name} has the platforms: {', '.join(found)}.")


@cli.command("remove", cls=Command)
@click.argument("name")
@click.option("--platform", "platforms", cls=ManyOption, help="Remove these platforms only.")
def remove(name: str, platforms: Sequence[str]) -> None:
    """Forget the pool NAME, or some of its platforms. Workflows that run in it go on."""

    def change(own: dict[str, Any]) -> None:
        declared = dict(own.get("pools") or {})
        if name not in declared:
            raise NotFoundError(f"There is no declared pool {name}", hint="See: osmo pool list")
        if platforms:
            pool = dict(declared[name] or {})
            known = dict(pool.get("platforms") or {})
            for platform in platforms:
                if known.pop(platform, None) is None and platform not in known:
                    raise NotFoundError(f"Pool {name} has no platform {platform}")
            pool["platforms"] = known
            declared[name] = pool
            _check(declared)
        else:
            del declared[name]
        own["pools"] = declared

    change_config(change)
    output.text(f"Pool {name} was {'changed' if platforms else 'removed'}.")


def _platform(text: str, common: Mapping[str, str | None]) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    values = {key: value for key, value in common.items() if value is not None}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in {*_AMOUNTS, "nodes", "description"}:
            raise UsageError(
                f"--platform {text}: '{pair}' is not KEY=VALUE",
                hint=f"Keys: {', '.join(_AMOUNTS)}, nodes, description.",
            )
        values[key] = value
    return name, {key: _value(key, value, text) for key, value in values.items()}


def _value(key: str, value: str, text: str) -> Any:
    if key == "nodes" and not value.isdigit():
        return value.split("+")
    if key in {"gpu", "nodes"}:
        if not value.isdigit():
            raise UsageError(f"--platform {text}: {key}={value} is not a whole number")
        return int(value)
    if key == "cpu":
        try:
            return int(value) if value.isdigit() else float(value)
        except ValueError:
            raise UsageError(f"--platform {text}: cpu={value} is not a number") from None
    return value


def _check(declared: Mapping[str, Any]) -> None:
    """Refuse what the server would refuse, before it is written."""
    from casstore_orchestrator.pools import parse_pools, this_machine

    parse_pools(declared, this_machine(load_config().paths.data))


def _numbers(usage: ResourceUsage, mode: str) -> tuple[str, str, str, str]:
    if mode == "free":
        return usage.quota_free, usage.quota_limit, usage.total_free, usage.total_capacity
    return usage.quota_used, usage.quota_limit, usage.total_usage, usage.total_capacity
