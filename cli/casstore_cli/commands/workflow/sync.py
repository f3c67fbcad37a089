"""``osmo workflow rsync``: copy files to and from a running task with the ``rsync`` program.

Decided here and only here: how paths are written, and which of them rsync's modules hold.
Both forms of OSMO are understood: the sub-commands of 6.3, and ``rsync WORKFLOW [TASK] SOURCE:DESTINATION`` of 6.2.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click

from casstore.config import load_config
from casstore.errors import NotFoundError, ServiceError, UsageError
from casstore.wire.router import RouterReply
from casstore.wire.workflow import TaskReply, WorkflowReply
from casstore_cli import login, output
from casstore_cli.client import Client, quoted
from casstore_cli.commands.workflow import syncing
from casstore_cli.patience import persistently

COMPLAINT_FD = "CASSTORE_RSYNC_COMPLAINT_FD"
"""Names the descriptor on which ``rsync_pipe`` passes on what the daemon in the task complained of, or ``LOST``."""
LOST = "\0lost"
"""The server went away."""
_PARTIAL = ".rsync-partial"
"""Where the beginning of a file is kept whose end did not come; rsync takes it away when the file is whole."""
_WORKSPACE = ("osmo", "/osmo/run/workspace", True)
_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--timeout", type=click.FloatRange(min=1), default=10, show_default=True, help="Seconds to connect."),
    click.option("--upload-rate-limit", type=click.IntRange(min=1), help="Bytes per second."),
    click.option("--debounce-delay", type=click.FloatRange(min=0), default=1.0, show_default=True,
                 help="Seconds without changes before an upload."),
    click.option("--poll-interval", type=click.FloatRange(min=1), default=30.0, show_default=True,
                 help="Seconds between looks at the task."),
    click.option("--reconcile-interval", type=click.FloatRange(min=1), default=15.0, show_default=True,
                 help="Seconds between tries after a failure."),
    click.option("--max-log-size", type=click.IntRange(min=1024), default=2 << 20, show_default=True, help="Bytes."),
    click.option("--verbose", is_flag=True, help="Log more."),
    click.option("--no-progress", is_flag=True, help="Show no progress."),
]  # fmt: skip


class _Rsync(click.Group):
    """The group; the first word may be a workflow instead of a sub-command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Turn OSMO 6.2's form into 6.3's."""
        if not args:
            click.echo(ctx.get_help())
            ctx.exit()
        if args[0] in {"-s", "--status"}:
            args = ["status", *args[1:]]
        elif args[0] == "--stop" or "--stop" in args:
            args = ["stop", *_stopped(args)]
        elif args[0] not in self.commands and not {"-h", "--help"} & set(args):
            words = [word for word in args if word != "--once"]
            args = ["upload", *words] if "--once" in args else ["upload", "--daemon", *words]
        return super().parse_args(ctx, args)


def _stopped(args: list[str]) -> list[str]:
    words = [word for word in args if word != "--stop"]
    return [words[0], "--task", words[1], *words[2:]] if len(words) > 1 else words


@click.group("rsync", cls=_Rsync, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def rsync() -> None:
    """Copy files to and from a running task, with the program rsync.

    In a task, /osmo/run/workspace (where its command begins) and /osmo/data/output can be written, and /osmo/data/input
    read. Without TASK, it is the lead task of the first group. As with rsync, a slash at the end of a source means what
    is in the folder and not the folder. The form of OSMO 6.2 works too: osmo workflow rsync WORKFLOW [TASK] SOURCE:PATH
    uploads again and again, in the background; with --once only once.
    """


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@rsync.command("upload")
@click.argument("workflow_id")
@click.argument("words", nargs=-1, required=True, metavar="[TASK] SOURCE:PATH")
@click.option("--daemon", is_flag=True, help="Go on in the background, and upload again what changes.")
@click.option("--watch", is_flag=True, help="As --daemon, but here, until Ctrl-C.")
@click.option("--delete", is_flag=True, help="Remove there what is not here.")
@_with_options
def upload(workflow_id: str, words: tuple[str, ...], daemon: bool, watch: bool, **options: Any) -> None:
    """Copy a file or folder SOURCE to PATH in a running task."""
    client = login.connect()
    given_task, pair = _words(words)
    source, _, target = pair.rpartition(":")
    if not source or not target:
        raise UsageError(f"'{pair}' is not SOURCE:PATH", hint="Such as ./code:/osmo/run/workspace/code")
    if not os.path.exists(source):
        raise NotFoundError(f"{source} does not exist")
    task = given_task or _lead(client, workflow_id)
    place = _module(client, target, write=True)
    state = load_config().paths.state
    if daemon:
        _start_daemon(state, workflow_id, task, source, target, options)
        return

    def once(*, quiet: bool) -> None:
        _run(client, workflow_id, task, [*_flags(options, quiet=quiet), source, place])

    once(quiet=watch)
    if watch:

        def runs() -> bool:
            status = client.get(f"api/workflow/{quoted(workflow_id)}/task/{quoted(task)}", TaskReply).status
            return status == "RUNNING"

        syncing.watch(
            source,
            lambda: once(quiet=True),
            runs,
            debounce=options["debounce_delay"],
            poll=options["poll_interval"],
            again=options["reconcile_interval"],
            tell=output.message,
        )


@rsync.command("download")
@click.argument("workflow_id")
@click.argument("words", nargs=-1, required=True, metavar="[TASK] PATH:TARGET")
@click.option("--timeout", type=click.FloatRange(min=1), default=10, show_default=True, help="Seconds to connect.")
@click.option("--no-progress", is_flag=True, help="Show no progress.")
def download(workflow_id: str, words: tuple[str, ...], timeout: float, no_progress: bool) -> None:
    """Copy PATH of a running task into the folder TARGET, which is made if need be."""
    client = login.connect()
    given_task, pair = _words(words)
    remote, _, target = pair.partition(":")
    if not remote or not target:
        raise UsageError(f"'{pair}' is not PATH:TARGET", hint="Such as /osmo/run/workspace/results:./results")
    if os.path.exists(target) and not os.path.isdir(target):
        raise UsageError(f"{target} is not a folder")
    task = given_task or _lead(client, workflow_id)
    place = _module(client, remote, write=False)
    os.makedirs(target, exist_ok=True)
    flags = _flags({"no_progress": no_progress, "timeout": timeout}, quiet=False)
    _run(client, workflow_id, task, [*flags, place, target])


@rsync.command("status")
@click.argument("workflow_id", required=False)
@click.argument("task", required=False)
def status(workflow_id: str | None, task: str | None) -> None:
    """List the uploads that go on in the background."""
    found = syncing.daemons(load_config().paths.state, workflow_id, task)
    if not found:
        output.text("No upload goes on in the background.")
        return
    for daemon in found:
        where = f"{daemon.workflow_id}/{daemon.task}"
        output.text(output.escape(f"{where}: process {daemon.pid}, {daemon.pair}, log {daemon.log}"))


@rsync.command("stop")
@click.argument("workflow_id", required=False)
@click.option("--task", help="Only those to this task.")
def stop(workflow_id: str | None, task: str | None) -> None:
    """End uploads that go on in the background: those to a workflow, or all."""
    found = syncing.daemons(load_config().paths.state, workflow_id, task)
    for daemon in found:
        syncing.stop(daemon)
        output.text(f"Stopped the upload to {daemon.workflow_id}/{daemon.task}.")
    if not found:
        output.text("No upload goes on in the background.")


def _words(words: tuple[str, ...]) -> tuple[str | None, str]:
    if len(words) > 2:
        raise click.UsageError("Too many words: WORKFLOW_ID [TASK] FROM:TO")
    return (None, words[0]) if len(words) == 1 else (words[0], words[1])


def _lead(client: Client, workflow_id: str) -> str:
    groups = client.get(f"api/workflow/{quoted(workflow_id)}", WorkflowReply).groups
    tasks = groups[0].tasks if groups else []
    for task in tasks:
        if task.lead:
            return task.name
    raise NotFoundError(f"Workflow {workflow_id} has no lead task", hint="Name the task.")


def _module(client: Client, path: str, *, write: bool) -> str:
    """The address of an absolute path of a task, as rsync writes it. Raises ``UsageError``."""
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"'{path}' must be an absolute path in the task", hint="Such as /osmo/run/workspace/code")
    clean = os.path.normpath(path)
    config = client.get("api/plugins/configs", dict[str, Any]).get("rsync", {})
    if not config.get("enabled"):
        raise ServiceError("This server has rsync switched off")
    known = [_WORKSPACE]
    for name, found in (config.get("allowed_paths") or {}).items():
        known.append((str(name), os.path.normpath(str(found["path"])), bool(found["writable"])))
    for name, folder, writable in sorted(known, key=lambda entry: -len(entry[1])):
        if (clean == folder or clean.startswith(f"{folder}/")) and (writable or not write):
            end = "/" if path.endswith("/") or clean == folder else ""
            return f"rsync://task/{name}{clean[len(folder) :]}{end}"
    folders = ", ".join(folder for _, folder, writable in known if writable or not write)
    raise UsageError(f"{path} is not one of the folders that rsync reaches in a task", hint=f"They are: {folders}")


def _flags(options: dict[str, Any], *, quiet: bool) -> list[str]:
    flags = ["-a", f"--partial-dir={_PARTIAL}"]
    if options.get("delete"):
        flags.append("--delete")
    if limit := options.get("upload_rate_limit"):
        flags.append(f"--bwlimit={max(1, limit // 1024)}k")
    if options.get("verbose"):
        flags.append("-v")
    if not quiet:
        flags.append("--info=progress2" if sys.stdout.isatty() and not options.get("no_progress") else "--info=stats1")
    return flags


def _run(client: Client, workflow_id: str, task: str, words: list[str]) -> None:
    program = shutil.which("rsync")
    if program is None:
        raise UsageError("The program rsync is not installed on this machine", hint="Install the package 'rsync'.")

    def check() -> RouterReply:
        """What stands against it is told here, in our words and not in those of rsync's protocol."""
        return client.post(f"api/workflow/{quoted(workflow_id)}/rsync/task/{quoted(task)}", RouterReply)

    check()
    while (done := _run_once([program, *words[:-2], "--", *words[-2:]], workflow_id, task)) is None:
        persistently(client, check, hint="Run the command again: it goes on with what is missing.")
    code, complaint = done
    if complaint:  # rsync calls it a success when a source is missing in the task
        raise ServiceError(f"rsync in the task: {complaint}")
    if code:
        raise ServiceError(f"rsync ended with exit code {code}", hint="What it said is above.")


def _run_once(line: list[str], workflow_id: str, task: str) -> tuple[int, str] | None:
    """The exit code, and what the daemon complained of; None when the server went away."""
    pipe = [sys.executable, "-P", "-m", "casstore_cli.rsync_pipe", workflow_id, task]
    environment = os.environ | {"RSYNC_CONNECT_PROG": shlex.join(pipe).replace("%", "%%"), "RSYNC_SHELL": "/bin/sh"}
    sys.stdout.flush()
    reading, writing = os.pipe()
    with open(reading, "rb") as told:
        try:
            done = subprocess.run(
                line,
                env=environment | {COMPLAINT_FD: str(writing)},
                pass_fds=[writing],
                check=False,
            )
        finally:
            os.close(writing)
        complaint = told.read().decode("utf-8", "replace").strip()
    return None if complaint == LOST else (done.returncode, complaint)


def _start_daemon(state: str, workflow_id: str, task: str, source: str, target: str, options: dict[str, Any]) -> None:
    line = [sys.executable, "-P", "-c", "import sys; sys.argv[0] = 'osmo'; from casstore_cli.start import main; main()"]
    line += ["workflow", "rsync", "upload", workflow_id, task, f"{os.path.abspath(source)}{_slash(source)}:{target}"]
    line += ["--watch", "--no-progress"] + (["--delete"] if options["delete"] else [])
    line += ["--verbose"] if options["verbose"] else []
    for name in ("debounce_delay", "poll_interval", "reconcile_interval", "upload_rate_limit", "timeout"):
        if options[name] is not None:
            line.append(f"--{name.replace('_', '-')}={options[name]}")
    daemon = syncing.start(state, workflow_id, task, f"{source}:{target}", line, max_log=options["max_log_size"])
    output.text(f"Uploading in the background: process {daemon.pid}")
    output.text(f"Its log: {daemon.log}")


def _slash(path: str) -> str:
    return "/" if path.endswith("/") else ""
