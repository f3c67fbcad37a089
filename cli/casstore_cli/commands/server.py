"""``osmo server``: the workflow server of your own.

Decided here and only here: what is said about it.
"""

from __future__ import annotations

import os
import sys

import click
import msgspec

from casstore import __version__
from casstore.config import load_config
from casstore.errors import ConflictError
from casstore.wire.cluster import ServerReply
from casstore_cli import background, output
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command

EXIT_NOT_RUNNING = 1


@click.group("server", cls=LazyGroup)
def cli() -> None:
    """Start, stop and look at the server that runs your workflows on this machine.

    Workflow commands start it in the background by themselves when it is needed.
    """


@cli.command("start", cls=Command)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Listen on this port of 127.0.0.1 too (0: any that is free)."
)
@click.option("--foreground/--background", default=False, help="Stay, and print the log here.")
def start(port: int | None, foreground: bool) -> None:
    """Start the server.

    With --port everybody who can log in to this machine can run workflows as you: it is meant for machines that are
    yours alone.
    """
    config = load_config()
    place = background.find_place(config)
    if foreground:
        if background.running_pid(place) is not None:
            raise ConflictError("A server of yours is running already", hint="osmo server stop")
        sys.stdout.flush()
        line = background.command_line(config, port=port)
        os.execv(line[0], line)  # noqa: S606  # our own interpreter with our own arguments
    if not background.start(config, port=port):
        if port is not None:
            raise ConflictError("A server of yours is running already", hint="To change its port: osmo server stop")
        output.text("The server is running already.")
        return
    found = background.connect(place).get("api/v1/server", ServerReply)
    output.text(f"The server is running (process {found.pid}){f' and listens on {found.url}' if found.url else ''}.")


@cli.command("stop", cls=Command)
@click.option(
    "-f", "--force", "--tasks", "tasks", is_flag=True, help="End the tasks too; they begin again with the next server."
)
def stop(tasks: bool) -> None:
    """Stop the server.

    Tasks that run go on without it, and the next one takes them up: no task is lost or run again. Until then nothing
    new is started.
    """
    stopped = background.stop(load_config(), tasks=tasks)
    if stopped is None:
        output.text("No server is running.")
        return
    output.text("The server was stopped.")
    if stopped.tasks is None:
        output.warn("it did not answer; what runs goes on, and the next server takes it up")
    elif stopped.ended:
        output.text(f"{_tasks(stopped.tasks)} ended with it, to begin again with the next one.")
        if stopped.left:
            output.warn(f"{stopped.left} groups had not ended yet; they are given up by the next server")
    elif stopped.tasks:
        verb, them = ("goes", "it") if stopped.tasks == 1 else ("go", "them")
        output.text(f"{_tasks(stopped.tasks)} {verb} on; the next osmo command that needs the server takes {them} up.")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


@cli.command("status", cls=Command)
@output.format_option("text", "json")
def status(format_type: str) -> int:
    """Show whether the server runs, and how; fails with 1 when it does not."""
    config = load_config()
    place = background.find_place(config)
    found = None
    if background.running_pid(place) is not None:
        found = background.connect(place).get("api/v1/server", ServerReply)
    if format_type == "json":
        output.document({"running": found is not None, "server": msgspec.to_builtins(found)}, indent=2)
    elif found is None:
        output.text("No server is running.")
    else:
        same = "" if found.version == __version__ else f" (this command is {__version__})"
        facts = [
            ("Process", str(found.pid)),
            ("Version", found.version + same),
            ("Started", output.date(found.started) or ""),
            ("Workflows", f"{found.running} running ({_tasks(found.tasks)}), {found.pending} waiting"),
            ("Isolation", found.isolation + (", own network" if found.network else ", no network of its own")),
            ("URL", found.url or "none, the socket only"),
            ("Socket", place.socket_path),
            ("Log", place.log_file),
        ]
        for label, value in facts:
            output.text(f"{label:<9} : {output.escape(value)}")
    return 0 if found is not None else EXIT_NOT_RUNNING
