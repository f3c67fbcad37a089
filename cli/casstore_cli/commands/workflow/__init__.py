"""``osmo workflow``: run workflows and watch them.

Decided here and only here: which commands there are. Each family has a module of its own, imported when it is used.
"""

from __future__ import annotations

import click

from casstore_cli.lazy import LazyGroup, Table

_HERE = "casstore_cli.commands.workflow"

COMMANDS: Table = {
    "submit": (f"{_HERE}.submit", "submit", "Run a workflow."),
    "validate": (f"{_HERE}.submit", "validate", "Check a workflow without running it."),
    "restart": (f"{_HERE}.submit", "restart", "Run what failed of a workflow again."),
    "list": (f"{_HERE}.show", "list_", "List workflows."),
    "query": (f"{_HERE}.show", "query", "Show a workflow and its tasks."),
    "logs": (f"{_HERE}.watch", "logs", "Follow the log of a workflow."),
    "events": (f"{_HERE}.watch", "events", "Follow what happens to the tasks of a workflow."),
    "exec": (f"{_HERE}.execute", "exec_", "Run a program in a running task."),
    "port-forward": (f"{_HERE}.forward", "port_forward", "Reach ports of a running task."),
    "rsync": (f"{_HERE}.sync", "rsync", "Copy files to and from a running task."),
    "spec": (f"{_HERE}.watch", "spec", "Print the specification of a workflow."),
    "cancel": (f"{_HERE}.change", "cancel", "End workflows."),
    "tag": (f"{_HERE}.change", "tag", "Tag workflows, or list the tags in use."),
}


@click.group("workflow", cls=LazyGroup, table=COMMANDS)
def cli() -> None:
    """Run workflows written in YAML, and watch them.

    The first command that needs it starts a server of your own in the background (see: osmo server).
    """
