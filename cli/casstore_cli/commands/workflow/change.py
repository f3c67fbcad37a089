"""``osmo workflow cancel`` and ``tag``.

Decided here and only here: that each workflow named is tried, each failure is told, and the command fails when any
did (OSMO's own ends with 0 then, and a script can't notice).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from casstore.errors import CasstoreError, ServiceError, UsageError
from casstore.wire.workflow import CancelReply, TagsReply
from casstore_cli import errors, output
from casstore_cli.client import Client, quoted
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption

_EXIT_SOME_FAILED = 2


@click.command("cancel", cls=Command)
@click.argument("workflow_ids", nargs=-1, required=True)
@click.option("-m", "--message", help="Why; kept with the workflow.")
@click.option("-f", "--force", is_flag=True, help="At once, in whatever state it is.")
@output.format_option("text", "json")
def cancel(workflow_ids: Sequence[str], message: str | None, force: bool, format_type: str) -> int:
    """End the workflows WORKFLOW_IDS."""

    def one(client: Client, workflow_id: str) -> str:
        query = {"force": force, "message": message}
        reply = client.post(f"api/workflow/{quoted(workflow_id)}/cancel", CancelReply, query)
        return f"Cancel job for workflow {output.escape(reply.name)} is submitted!"

    return _each(workflow_ids, one, as_json=format_type == "json")


@click.command("tag", cls=Command)
@click.option("-w", "--workflow", "workflow_ids", cls=ManyOption, help="Workflows to change.")
@click.option("-a", "--add", cls=ManyOption, help="Tags to set.")
@click.option("-r", "--remove", cls=ManyOption, help="Tags to remove.")
def tag(workflow_ids: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> int:
    """Set and remove tags of workflows; without options list the tags in use."""
    if not workflow_ids:
        if add or remove:
            raise UsageError("Which workflow?", hint="Name it with --workflow.")
        for name in connect().get("api/tag", TagsReply).tags:
            output.text(output.escape(name))
        return 0
    if not add and not remove:
        raise UsageError("Nothing to change", hint="Give --add or --remove.")

    def one(client: Client, workflow_id: str) -> str:
        query = {"add": list(add), "remove": list(remove)}
        client.post(f"api/workflow/{quoted(workflow_id)}/tag", object, query)
        return f"Tags of workflow {output.escape(workflow_id)} were changed."

    return _each(workflow_ids, one, as_json=False)


def _each(workflow_ids: Sequence[str], work: Callable[[Client, str], str], *, as_json: bool) -> int:
    client = connect()
    results: list[dict[str, Any]] = []
    failed = False
    for workflow_id in dict.fromkeys(workflow_ids):
        try:
            line = work(client, workflow_id)
        except ServiceError:
            raise
        except CasstoreError as exc:
            failed = True
            name = f"Workflow {workflow_id}"
            line = output.escape(exc.message if exc.message.startswith(f"{name} ") else f"{name}: {exc.message}")
            results.append({"name": workflow_id, "error": errors.as_object(exc)})
        else:
            results.append({"name": workflow_id, "error": None})
        if not as_json:
            output.text(line)
    if as_json:
        output.document(results, indent=2)
    return _EXIT_SOME_FAILED if failed else 0
