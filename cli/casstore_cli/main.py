"""The ``osmo`` (and ``casstore``) command.

Decided here and only here: which command groups there are, the global options, and how the process starts and
ends. A group costs its one line of help until it is used; keep it so: nothing but click and the standard
library here.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from casstore_cli import errors, output
from casstore_cli.lazy import LazyGroup, Table

COMMANDS: Table = {
    "dataset": ("casstore_cli.commands.dataset", "cli", "Upload, download and manage versioned datasets."),
    "data": ("casstore_cli.commands.data", "cli", "Move plain files to and from object storage."),
    "credential": ("casstore_cli.commands.credential", "cli", "Keep the secrets of your tasks and of object storage."),
    "bucket": ("casstore_cli.commands.bucket", "cli", "Declare and list the places that hold datasets."),
    "store": ("casstore_cli.commands.store", "cli", "Care for the store of a bucket."),
    "cache": ("casstore_cli.commands.cache", "cli", "Show and clear what is kept of what was read."),
    "workflow": ("casstore_cli.commands.workflow", "cli", "Run workflows and watch them."),
    "app": ("casstore_cli.commands.app", "cli", "Keep workflow files on the server under a name, and run them."),
    "task": ("casstore_cli.commands.task", "cli", "Show the tasks of workflows."),
    "pool": ("casstore_cli.commands.pool", "cli", "Declare and list pools of platforms."),
    "resource": ("casstore_cli.commands.resource", "cli", "Show the nodes that tasks are placed on."),
    "backend": ("casstore_cli.commands.session", "backend", "Show where workflows run."),
    "server": ("casstore_cli.commands.server", "cli", "Start, stop and look at your own workflow server."),
    "login": ("casstore_cli.commands.login", "login_command", "Use a server at a URL instead of your own."),
    "logout": ("casstore_cli.commands.login", "logout_command", "Go back to the server of your own."),
    "info": ("casstore_cli.commands.session", "info", "Show the server in use and your defaults."),
    "profile": ("casstore_cli.commands.session", "profile", "Show and change your defaults."),
    "token": ("casstore_cli.commands.token", "cli", "Make tokens that programs log in with."),
    "user": ("casstore_cli.commands.user", "cli", "Manage the users of a server, and their roles."),
    "config": ("casstore_cli.commands.config", "cli", "Set pools, buckets, limits and roles of a server."),
    "doctor": ("casstore_cli.commands.session", "doctor", "Show what this machine gives to workflows."),
    "version": ("casstore_cli.commands.version", "command", "Print the version."),
    "completion": ("casstore_cli.completion", "command", "Print the completion script of a shell."),
}
"""Add a group here: name -> (module, attribute, one-line help)."""


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from casstore import __version__

        output.text(f"{ctx.info_name} {__version__}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    epilog="Run a command with --help to see what it does.",
)
@click.option(
    "--log-level",
    type=click.Choice(output.LEVELS, case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Messages to show on standard error.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def cli(ctx: click.Context, log_level: str) -> None:
    """Versioned datasets and gang-scheduled workflows, the same on a laptop and on a cluster."""
    ctx.meta[output.LEVEL_KEY] = log_level
    if log_level == "DEBUG":
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)


def run(args: Sequence[str], *, program: str = "osmo") -> int:
    """Run one command line and return the exit code; nothing is raised."""
    root: list[click.Context] = []

    def invoke() -> int:
        with cli.make_context(program, list(args)) as ctx:
            root.append(ctx)
            if output.asks_for_json(args):  # a wrong command line must be told in JSON, too
                ctx.meta[output.FORMAT_KEY] = "json"
            result = cli.invoke(ctx)
        return result if isinstance(result, int) and not isinstance(result, bool) else 0

    return errors.guarded(invoke, lambda: root[0] if root else None)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: threads that wait for a busy service to come back end before they are waited for."""
    pauses = sys.modules.get("casstore.remote.pause")
    if pauses is not None:
        pauses.interrupt()
    signal.default_int_handler(number, frame)


def main() -> None:
    """Entry point of the installed commands."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    program = os.path.basename(sys.argv[0]) or "osmo"
    if program not in {"osmo", "casstore"}:  # python -m, a renamed wrapper
        program = "osmo"
    instruction = os.environ.get(f"_{program.upper()}_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, program, f"_{program.upper()}_COMPLETE", instruction))
    # Started with a closed stream (>&-): what would go there goes nowhere.
    sys.stdin = sys.stdin or open(os.devnull, encoding="ascii")  # noqa: SIM115 - for the life of the process
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="ascii")  # noqa: SIM115 - the same
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="ascii")  # noqa: SIM115 - the same
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped instead of ending the command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:], program=program))
