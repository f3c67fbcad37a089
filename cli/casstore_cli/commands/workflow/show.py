"""``osmo workflow list`` and ``query``.

Decided here and only here: the columns, and how a day on the command line becomes a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click
import msgspec

from casstore.errors import UsageError
from casstore.wire.workflow import WorkflowList, WorkflowReply
from casstore_cli import output
from casstore_cli.client import Value, quoted
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption
from casstore_cli.paging import collect


def day(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A day in the local zone as the ISO moment of its beginning."""
    del ctx
    if value is None:
        return None
    try:
        return datetime.strptime(value, "%Y-%m-%d").astimezone().isoformat()  # local, as typed
    except ValueError:
        raise UsageError(
            f"--{(param.name or '').replace('_', '-')}: '{value}' is not a day", hint="YYYY-MM-DD"
        ) from None


@click.command("list", cls=Command)
@click.option("-c", "--count", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
@click.option("-f", "--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Newer ones to skip.")
@click.option("-n", "--name", help="Only ids that contain this.")
@click.option(
    "-o", "--order", type=click.Choice(("asc", "desc")), default="asc", show_default=True, help="asc: newest last."
)
@click.option("-s", "--status", "statuses", cls=ManyOption, help="Only with these statuses.")
@click.option("--submitted-after", callback=day, metavar="YYYY-MM-DD", help="Only submitted on this day or later.")
@click.option("--submitted-before", callback=day, metavar="YYYY-MM-DD", help="Only submitted before this day.")
@click.option("--tags", cls=ManyOption, help="Only with any of these tags.")
@click.option("--priority", "priorities", cls=ManyOption, help="Only with these priorities.")
@click.option("-u", "--user", "users", cls=ManyOption, help="Of these users instead of your own.")
@click.option("-a", "--all-users", is_flag=True, help="Of every user.")
@click.option("-p", "--pool", "pools", cls=ManyOption, help="Only in these pools.")
@click.option("-P", "--app", help="Only submitted by this app.")
@output.format_option("text", "json")
def list_(
    *,
    count: int,
    offset: int,
    name: str | None,
    order: str,
    statuses: Sequence[str],
    submitted_after: str | None,
    submitted_before: str | None,
    tags: Sequence[str],
    priorities: Sequence[str],
    users: Sequence[str],
    all_users: bool,
    pools: Sequence[str],
    app: str | None,
    format_type: str,
) -> None:
    """List the newest workflows."""
    if users and all_users:
        raise UsageError("--user and --all-users exclude each other")
    query: dict[str, Value] = {
        "order": "DESC",
        "users": list(users),
        "statuses": list(statuses),
        "name": name,
        "all_users": all_users,
        "tags": list(tags),
        "pools": list(pools),
        "all_pools": None if pools else True,
        "app": app,
        "priority": list(priorities),
        "submitted_after": submitted_after,
        "submitted_before": submitted_before,
    }
    client = connect()

    def ask(limit: int, offset: int) -> WorkflowList:
        return client.get("api/workflow", WorkflowList, query | {"limit": limit, "offset": offset})

    found = collect(ask, lambda page: page.workflows, count, offset)
    if order == "asc":
        found.workflows.reverse()
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    if not found.workflows:
        output.text("There are no workflows to view.")
        return
    rows = [
        (flow.user, flow.name, output.date(flow.submit_time), flow.status, flow.priority, flow.overview)
        for flow in found.workflows
    ]
    output.text(output.table(("User", "Workflow ID", "Submit Time", "Status", "Priority", "Overview"), rows))


@click.command("query", cls=Command)
@click.argument("workflow_id")
@click.option("-v", "--verbose", is_flag=True, help="Every attempt of every task.")
@output.format_option("text", "json")
def query(workflow_id: str, verbose: bool, format_type: str) -> None:
    """Show WORKFLOW_ID, and where each of its tasks stands."""
    found = connect().get(f"api/workflow/{quoted(workflow_id)}", WorkflowReply, {"verbose": verbose})
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    facts = [
        ("Workflow ID", found.name),
        ("Status", found.status),
        ("User", found.submitted_by),
        ("Submit Time", output.date(found.submit_time) or ""),
        ("Overview", found.overview),
        ("Pending", found.pending_reason),
        ("Failure", found.failure_message),
        ("Tags", ", ".join(found.tags)),
    ]
    for label, value in facts:
        if value:
            output.text(f"{label:<11} : {output.escape(value)}")
    output.text()
    tasks = [task for group in found.groups for task in group.tasks]
    headers = ("Task Name", "Retry ID", "Start Time", "Status") if verbose else ("Task Name", "Start Time", "Status")
    rows = [
        (task.name, *((task.retry_id,) if verbose else ()), output.date(task.start_time) or "-", task.status)
        for task in tasks
    ]
    output.text(output.table(headers, rows))
    for task in tasks:
        if task.failure_message and task.status not in {"COMPLETED", "FAILED_UPSTREAM"}:
            code = "" if task.exit_code is None else f" (exit code {task.exit_code})"
            attempt = f" retry-{task.retry_id}" if task.retry_id else ""
            output.text(output.escape(f"{task.name}{attempt}{code}: {task.failure_message}"))
        elif task.exit_code and task.status == "FAILED":
            output.text(output.escape(f"{task.name}: exit code {task.exit_code}"))
