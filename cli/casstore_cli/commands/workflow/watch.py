"""``osmo workflow logs``, ``events`` and ``spec``: text of a workflow.

Decided here and only here: the header lines, and which options need each other.
"""

from __future__ import annotations

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.client import quoted
from casstore_cli.following import follow
from casstore_cli.login import connect
from casstore_cli.multi import Command
from casstore_cli.terminal import copy_lines

_task_option = click.option("-t", "--task", help="Of this task only.")
_retry_option = click.option("-r", "--retry-id", type=click.IntRange(min=0), help="Of this attempt of the task only.")


@click.command("logs", cls=Command)
@click.argument("workflow_id")
@_task_option
@_retry_option
@click.option("--error", is_flag=True, help="Only the kept ends of the logs of failed attempts.")
@click.option("-n", "last", type=click.IntRange(min=0), help="Only the last lines, and what follows.")
def logs(workflow_id: str, task: str | None, retry_id: int | None, error: bool, last: int | None) -> None:
    """Print the log of WORKFLOW_ID and follow it until the workflow ends."""
    if task is None and (retry_id is not None or error):
        raise UsageError("--retry-id and --error need --task")
    query = {"task_name": task, "retry_id": retry_id, "last_n_lines": last}
    pieces = follow(connect(), workflow_id, "error_logs" if error else "logs", query)
    output.text(f"Workflow {output.escape(workflow_id)} has {'error logs' if error else 'logs'}:")
    copy_lines(pieces)


@click.command("events", cls=Command)
@click.argument("workflow_id")
@_task_option
@_retry_option
def events(workflow_id: str, task: str | None, retry_id: int | None) -> None:
    """Print what happened to the tasks of WORKFLOW_ID and follow it until the workflow ends."""
    if task is None and retry_id is not None:
        raise UsageError("--retry-id needs --task")
    query = {"task_name": task, "retry_id": retry_id}
    pieces = follow(connect(), workflow_id, "events", query)
    output.text(f"Workflow {output.escape(workflow_id)} has events:")
    copy_lines(pieces)


@click.command("spec", cls=Command)
@click.argument("workflow_id")
@click.option("--template", is_flag=True, help="As it was submitted, with its templates.")
def spec(workflow_id: str, template: bool) -> None:
    """Print the specification of WORKFLOW_ID."""
    text = connect().text(f"api/workflow/{quoted(workflow_id)}/spec", {"use_template": template})
    copy_lines([text.encode() if text.endswith("\n") else f"{text}\n".encode()])
