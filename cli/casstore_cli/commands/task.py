"""``osmo task``: the tasks of all workflows.

Decided here and only here: the columns, and that what is waited for follows the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from casstore.errors import UsageError
from casstore.wire.workflow import SummaryList, TaskList
from casstore_cli import output
from casstore_cli.client import Client, Value
from casstore_cli.commands.workflow.show import day
from casstore_cli.lazy import LazyGroup
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption

_AMOUNTS = ("Storage [Gi]", "CPU [#]", "Memory [Gi]", "GPU [#]")
_UNFINISHED = ("PROCESSING", "SCHEDULING", "INITIALIZING", "RUNNING")


@click.group("task", cls=LazyGroup)
def cli() -> None:
    """Show the tasks of workflows."""


@cli.command("list", cls=Command)
@click.option(
    "-s", "--status", "statuses", cls=ManyOption, help="Only with these statuses (default: those being worked on)."
)
@click.option("-w", "--workflow-id", help="Only of this workflow.")
@click.option("-u", "--user", "users", cls=ManyOption, help="Of these users instead of your own.")
@click.option("-a", "--all-users", is_flag=True, help="Of every user.")
@click.option("-p", "--pool", "pools", cls=ManyOption, help="Only in these pools.")
@click.option("-n", "--node", "nodes", cls=ManyOption, help="Only on these nodes.")
@click.option("--started-after", callback=day, metavar="YYYY-MM-DD", help="Only started on this day or later.")
@click.option("--started-before", callback=day, metavar="YYYY-MM-DD", help="Only started before this day.")
@click.option("-c", "--count", type=click.IntRange(min=1, max=1000), default=20, show_default=True, help="How many.")
@click.option("-f", "--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Newer ones to skip.")
@click.option("-o", "--order", type=click.Choice(("asc", "desc")), default="asc", show_default=True)
@click.option("-v", "--verbose", is_flag=True, help="With what each task asks for.")
@click.option("-S", "--summary", is_flag=True, help="Sums of what tasks ask for.")
@click.option("-W", "--aggregate-by-workflow", is_flag=True, help="Sums for each workflow.")
@click.option("--priority", "priorities", cls=ManyOption, help="Only with these priorities.")
@output.format_option("text", "json")
def list_(
    *,
    statuses: Sequence[str],
    workflow_id: str | None,
    users: Sequence[str],
    all_users: bool,
    pools: Sequence[str],
    nodes: Sequence[str],
    started_after: str | None,
    started_before: str | None,
    count: int,
    offset: int,
    order: str,
    verbose: bool,
    summary: bool,
    aggregate_by_workflow: bool,
    priorities: Sequence[str],
    format_type: str,
) -> None:
    """List tasks."""
    for first, second, names in (
        (users, all_users, "--user and --all-users"),
        (pools, nodes, "--pool and --node"),
        (verbose, summary, "--verbose and --summary"),
    ):
        if first and second:
            raise UsageError(f"{names} exclude each other")
    query: dict[str, Value] = {
        "limit": count,
        "offset": offset,
        "order": "DESC",
        "statuses": list(statuses or _UNFINISHED),
        "workflow_id": workflow_id,
        "users": list(users),
        "all_users": all_users,
        "pools": list(pools),
        "all_pools": None if pools else True,
        "nodes": list(nodes),
        "priority": list(priorities),
        "started_after": started_after,
        "started_before": started_before,
    }
    as_json = format_type == "json"
    if summary or aggregate_by_workflow:
        _sums(connect(), query | {"summary": True, "aggregate_by_workflow": aggregate_by_workflow}, as_json=as_json)
    else:
        _rows(connect(), query, newest_last=order == "asc", verbose=verbose, as_json=as_json)


def _rows(client: Client, query: dict[str, Value], *, newest_last: bool, verbose: bool, as_json: bool) -> None:
    found = client.get("api/task", TaskList, query)
    if newest_last:
        found.tasks.reverse()
    if as_json:
        output.document(msgspec.to_builtins(found), indent=2)
        return
    if not found.tasks:
        output.text("There are no tasks to view.")
        return
    headers = ("User", "Workflow ID", "Task", "Status", "Pool", "Priority", "Node", "Start Time")
    rows = [
        (t.user, t.workflow_id, t.task_name, t.status, t.pool, t.priority, t.node, output.date(t.start_time))
        + (_amounts(t.storage, t.cpu, t.memory, t.gpu) if verbose else ())
        for t in found.tasks
    ]
    total = None
    if verbose:
        sums = [sum(getattr(t, key) for t in found.tasks) for key in ("storage", "cpu", "memory", "gpu")]
        total = ("",) * len(headers) + _amounts(*sums)
    output.text(output.table(headers + (_AMOUNTS if verbose else ()), rows, total=total))
    reasons = dict.fromkeys((t.workflow_id, t.pending_reason) for t in found.tasks if t.pending_reason)
    if reasons:
        output.text()
    for workflow_id, reason in reasons:
        output.text(output.escape(f"{workflow_id}: {reason}"))


def _sums(client: Client, query: dict[str, Value], *, as_json: bool) -> None:
    found = client.get("api/task", SummaryList, query)
    if as_json:
        output.document(msgspec.to_builtins(found), indent=2)
        return
    if not found.summaries:
        output.text("There are no tasks to view.")
        return
    by_workflow = any(row.workflow_id for row in found.summaries)
    rows = [
        (
            row.user,
            *((row.workflow_id,) if by_workflow else ()),
            row.pool,
            row.priority,
            *_amounts(row.storage, row.cpu, row.memory, row.gpu),
        )
        for row in found.summaries
    ]
    headers = ("User", *(("Workflow ID",) if by_workflow else ()), "Pool", "Priority", *_AMOUNTS)
    output.text(output.table(headers, rows))


def _amounts(storage: float, cpu: float, memory: float, gpu: float) -> tuple[str, ...]:
    return tuple(f"{amount:g}" for amount in (storage, cpu, memory, gpu))
