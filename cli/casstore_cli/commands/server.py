"""``osmo server``: the workflow server of your own, or of a team.

Decided here and only here: what is said about it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from casstore import __version__
from casstore.config import Config, load_config
from casstore.errors import ConflictError
from casstore.wire.cluster import ServerReply
from casstore_cli import background, output
from casstore_cli.commands.audit import audit
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command

EXIT_NOT_RUNNING = 1
_F = TypeVar("_F", bound=Callable[..., Any])
_FOLDERS = (
    ("state_dir", ("XDG_STATE_HOME",)),
    ("config_file", ("OSMO_CONFIG_FILE_DIR", "OSMO_CONFIG_DIR", "XDG_CONFIG_HOME")),
    ("data_dir", ("XDG_DATA_HOME",)),
    ("cache_dir", ("XDG_CACHE_HOME",)),
    ("socket", ("XDG_RUNTIME_DIR",)),
)
_instance_option = click.option(
    "--instance", default="", metavar="NAME", help="The server of this name, of several that share a state folder."
)


def _settings(function: _F) -> _F:
    """The settings that can be given on the command line."""
    for option in reversed(
        (
            click.option("--host", help="Listen there instead of on 127.0.0.1; others have to log in there."),
            click.option(
                "--port", type=click.IntRange(0, 65535), help="Listen on this port too (0: any that is free)."
            ),
            click.option("--log-format", type=click.Choice(["text", "json"]), help="How a line of the log looks."),
            click.option(
                "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What is in the log."
            ),
            click.option("--log-requests/--no-log-requests", default=None, help="Log every request, or none."),
            click.option("--metrics/--no-metrics", default=None, help="Have figures for Prometheus at /metrics."),
            click.option(
                "--secret-key-file", type=click.Path(), metavar="FILE", help="The key of the secrets in the database."
            ),
            click.option("--drain", type=float, metavar="SECONDS", help="How long open replies may take to end."),
        )
    ):
        function = option(function)
    return function


@click.group("server", cls=LazyGroup)
def cli() -> None:
    """Start, stop and look at the server that runs your workflows on this machine.

    Workflow commands start it in the background by themselves when it is needed.
    """


@cli.command("start", cls=Command)
@_settings
@click.option("--foreground/--background", default=False, help="Stay, and print the log here.")
@_instance_option
def start(foreground: bool, instance: str, **options: Any) -> None:
    """Start the server, and bring its database up to date.

    Settings that are not given here are taken from the environment and the configuration: osmo server config. With
    --port alone everybody who can log in to this machine can run workflows as you: it is meant for machines that are
    yours alone. The setting dev_login, and a way to log in, keep others out.
    """
    config = load_config()
    place = background.find_place(config, instance)
    if foreground:
        if background.running_pid(place) is not None:
            raise ConflictError("A server of yours is running already", hint="osmo server stop")
        background.check_installed()
        sys.stdout.flush()
        line = background.command_line(config, options, instance=instance)
        os.execv(line[0], line)  # noqa: S606  # our own interpreter with our own arguments
    if not background.start(config, options, instance=instance):
        if any(value is not None for value in options.values()):
            raise ConflictError("A server of yours is running already", hint="To change its settings: osmo server stop")
        output.text("The server is running already.")
        return
    found = background.connect(place).get("api/v1/server", ServerReply)
    output.text(f"The server is running (process {found.pid}){f' and listens on {found.url}' if found.url else ''}.")


@cli.command("stop", cls=Command)
@click.option(
    "-f", "--force", "--tasks", "tasks", is_flag=True, help="End the tasks too; they begin again with the next server."
)
@_instance_option
def stop(tasks: bool, instance: str) -> None:
    """Stop the server.

    Tasks that run go on without it, and the next one takes them up: no task is lost or run again. Until then nothing
    new is started.
    """
    stopped = background.stop(load_config(), tasks=tasks, instance=instance)
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
@_instance_option
@output.format_option("text", "json")
def status(instance: str, format_type: str) -> int:
    """Show whether the server runs, and how; fails with 1 when it does not."""
    config = load_config()
    place = background.find_place(config, instance)
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


@cli.command("config", cls=Command)
@output.format_option("text", "json")
def show_config(format_type: str) -> None:
    """Print the settings of a server that is started now: what each is, and where it comes from. Secrets are masked."""
    config = load_config()
    rows = _folders(config) | background.ask(config, "config")
    if format_type == "json":
        output.document({"settings": rows}, indent=2)
        return
    cells = [[name, output.escape(_shown(name, row["value"])), row["source"]] for name, row in rows.items()]
    output.text(output.table(["Setting", "Value", "From"], cells))


@cli.command("openapi", cls=Command)
def show_openapi() -> None:
    """Print the OpenAPI document of the server's routes. No server has to run."""
    output.document(background.ask(load_config(), "openapi"), indent=2)


def _folders(config: Config) -> dict[str, dict[str, str]]:
    place = background.find_place(config)
    paths = config.paths
    values = {
        "state_dir": paths.state,
        "config_file": paths.config_file,
        "data_dir": paths.data,
        "cache_dir": paths.cache,
        "socket": place.socket_path,
    }
    found = {}
    for name, variables in _FOLDERS:
        given = next((variable for variable in variables if os.environ.get(variable)), None)
        found[name] = {
            "value": values[name],
            "source": f"environment ({given})" if given else "default",
            "option": variables[0],
        }
    return found


def _shown(name: str, value: object) -> str:
    if value is None or value == "":
        words = {"database": "SQLite, in state_dir", "port": "none, the socket only"}
        return words.get(name, "secret.key, in state_dir" if name == "secret_key_file" else "")
    if isinstance(value, list):
        return ", ".join(f"{one[0]}={'+'.join(one[1])}" if isinstance(one, list) else str(one) for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@cli.command("backup", cls=Command)
@click.argument("file", type=click.Path(dir_okay=False))
@output.format_option("text", "json")
def backup(file: str, format_type: str) -> None:
    """Copy the server's database to FILE, which must not exist. The server may run meanwhile.

    The copy has everything as it was at one moment: workflows, apps, profiles. Datasets are in their buckets, and logs
    of tasks in the folder workflows next to the database. Secrets in it are sealed: the key is not in the copy.
    """
    done = background.ask(load_config(), "backup", {"file": os.path.abspath(file)})
    output.message(f"The secrets in it open with the key in {done['key']} only: keep that as well, and elsewhere.")
    _tell(
        done, format_type, f"Backed up {done['workflows']} workflows to {file} ({output.size(done['size'])}, verified)."
    )


@cli.command("restore", cls=Command)
@click.argument("file", type=click.Path(dir_okay=False))
@output.format_option("text", "json")
def restore(file: str, format_type: str) -> None:
    """Make the server's database from FILE, a backup. No server may run, and no database be there.

    What ran when the backup was made is looked for; what is gone since gets another attempt, or fails. What runs and is
    not in the backup is ended.
    """
    done = background.ask(load_config(), "restore", {"file": os.path.abspath(file)})
    _tell(done, format_type, f"Restored {done['workflows']} workflows to {done['file']} (verified).")


@cli.command("rebuild-index", cls=Command)
@click.option("-b", "--bucket", "buckets", multiple=True, metavar="NAME", help="This bucket alone; may be repeated.")
@click.option("--anew", is_flag=True, help="Begin anew, instead of going on with one that was interrupted.")
@output.format_option("text", "json")
def rebuild_index(buckets: tuple[str, ...], anew: bool, format_type: str) -> int:
    """Read the index of datasets, versions and tags again from the buckets.

    The buckets decide what there is; the server's database has an index of them, which follows by itself. Use this when
    the database was lost or restored, or when lists are wrong. The server may run meanwhile, and lists go on. It can be
    interrupted: the next one goes on with what is left.
    """
    flags = [word for name in buckets for word in ("--bucket", name)] + ["--new"] * anew
    draws = sys.stderr.isatty()

    def tell(state: dict[str, Any]) -> None:
        if draws:
            line = f"{output.escape(state['bucket'])}: {_so_far(state)}"
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()

    try:
        done = background.follow(load_config(), "rebuild-index", tell, flags=flags)["buckets"]
    finally:
        if draws:
            sys.stderr.write("\r\x1b[K")
    if format_type == "json":
        output.document({"buckets": done}, indent=2)
    else:
        for state in done:
            name = output.escape(state["bucket"])
            if state["error"] is not None:
                output.text(f"{name}: not rebuilt: {output.escape(state['error'])}")
                continue
            output.text(f"{name}: {_so_far(state)}, in {state['seconds']:.1f} s.")
            for dataset, problem in state["problems"].items():
                output.warn(f"{name}/{output.escape(dataset)} can't be read whole: {output.escape(problem)}")
        if not done:
            output.text("There is no bucket yet.")
    return 1 if any(state["error"] is not None or state["problems"] for state in done) else 0


def _so_far(state: dict[str, Any]) -> str:
    if state["waiting"]:
        return "waiting for a server that is indexing it"
    before = f" ({state['before']:,} of them before it was interrupted)" if state["before"] else ""
    names = f"{state['done']:,} of {state['datasets']:,} names{before}"
    return f"{names}, {state['versions']:,} versions read"


@cli.command("new-key", cls=Command)
def new_key() -> None:
    """Print a new key for the secrets in a server's database.

    For servers that share a PostgreSQL: put it into a file that only the server can read (secret_key_file), or into
    CASSTORE_SECRET_KEY, the same for all of them. A server with a database of its own makes its key by itself.
    """
    output.text(background.ask(load_config(), "new-key")["key"])


@cli.command("rekey", cls=Command)
@click.option("--new", is_flag=True, help="Make a new key first, in the file that has the key; the old one goes.")
@click.option("--discard", is_flag=True, help="Give up what no key opens, such as when the key is lost.")
@output.format_option("text", "json")
def rekey(new: bool, discard: bool, format_type: str) -> None:
    """Seal all secrets in the server's database again, with the first of the keys that it has. It may run meanwhile.

    To change the key of several servers: give each of them the new one after the old one, then before it, restart
    those that have it from the environment, and run this once. The old one is needed no more.
    """
    words = {"--new": new, "--discard": discard}
    done = background.ask(load_config(), "rekey", flags=[word for word, given in words.items() if given])
    lost = f", {done['lost']} given up" if done["lost"] else ""
    text = f"{done['secrets']} secrets are sealed with the key {done['key']} ({done['changed']} were not{lost})."
    _tell(done, format_type, text)


cli.add_command(audit)


def _tell(done: dict[str, Any], format_type: str, text: str) -> None:
    if format_type == "json":
        output.document(done, indent=2)
    else:
        output.text(output.escape(text))
