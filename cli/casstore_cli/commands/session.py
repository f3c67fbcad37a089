"""``osmo info``, ``profile``, ``backend`` and ``doctor``: who, where and on what.

Decided here and only here: what these print.
"""

from __future__ import annotations

import click
import msgspec

from casstore import __version__
from casstore.config import load_config
from casstore.errors import CasstoreError, ServiceError, UsageError
from casstore.wire.cluster import (
    BackendsReply,
    BucketsReply,
    ProfileChange,
    ProfileReply,
    ServerReply,
    VersionReply,
)
from casstore_cli import login, output
from casstore_cli.config import change_config
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command


@click.command("info", cls=Command)
@output.format_option("text", "json")
def info(format_type: str) -> None:
    """Show the server in use, who you are there, and your defaults."""
    config = load_config()
    client = login.connect(config)
    version = client.get("api/version", VersionReply)
    profile = client.get("api/profile/settings", ProfileReply).profile
    product = client.probe() or ""
    document = {
        "server": client.target.display,
        "user": profile.username,
        "client_version": __version__,
        "server_version": product,
        "protocol": f"{version.major}.{version.minor}.{version.revision}",
        "default_pool": profile.pool,
        "default_bucket": profile.bucket,
        "status": "ONLINE",
    }
    if format_type == "json":
        output.document(document, indent=2)
        return
    for key, value in document.items():
        label = key.replace("_", " ").capitalize()
        output.text(f"{label:<14} : {output.escape(str(value or '-'))}")


@click.group("backend", cls=LazyGroup)
def backend() -> None:
    """Show where workflows run."""


@backend.command("list", cls=Command)
@output.format_option("text", "json")
def backend_list(format_type: str) -> None:
    """List the backends."""
    found = login.connect().get("api/configs/backend", BackendsReply)
    if format_type == "json":
        output.document(msgspec.to_builtins(found))
        return
    rows = [(b.name, b.description, "ONLINE" if b.online else "OFFLINE") for b in found.backends]
    output.text(output.table(("Name", "Description", "Status"), rows))


@click.group("profile", cls=LazyGroup)
def profile() -> None:
    """Show and change your defaults."""


@profile.command("list", cls=Command)
@output.format_option("text", "json")
def profile_list(format_type: str) -> None:
    """Show your defaults."""
    found = login.connect().get("api/profile/settings", ProfileReply)
    if format_type == "json":
        output.document(msgspec.to_builtins(found), indent=2)
        return
    settings = found.profile
    tree: dict[str, object] = {
        "user": settings.username,
        "notifications": {"email": settings.email_notification, "slack": settings.slack_notification},
        "bucket": {"default": settings.bucket},
        "pool": {"default": settings.pool, "accessible": found.pools},
        "roles": found.roles,
    }
    if found.token is not None:
        tree["token"] = msgspec.to_builtins(found.token)
    for line in output.tree_text(tree):
        output.text(line)


@profile.command("set", cls=Command)
@click.argument("setting", type=click.Choice(("bucket", "pool", "notifications")))
@click.argument("value")
@click.argument("enabled", required=False, type=click.BOOL)
def profile_set(setting: str, value: str, enabled: bool | None) -> None:
    """Set the default bucket or pool, or notifications (email or slack) to true or false."""
    config = load_config()
    if setting == "notifications":
        if value not in {"email", "slack"}:
            raise UsageError(f"'{value}' is not a way to notify", hint="email or slack")
        wanted = True if enabled is None else enabled
        change = (
            ProfileChange(email_notification=wanted) if value == "email" else ProfileChange(slack_notification=wanted)
        )
    elif enabled is not None:
        raise UsageError(f"'{setting}' takes one value")
    elif setting == "bucket" and login.read(config.paths) is None:
        config.bucket(value)  # it must be declared

        def set_default(own: dict[str, object]) -> None:
            own["default_bucket"] = value

        change_config(set_default)
        output.text("Profile Set")
        return
    else:
        change = ProfileChange(bucket=value) if setting == "bucket" else ProfileChange(pool=value)
    login.connect(config).post("api/profile/settings", object, body=change)
    output.text("Profile Set")


def _inputs(folder: str) -> str:
    """Whether the inputs of tasks whose folders are in ``folder`` are mounted, and why not."""
    import os
    import tempfile
    from pathlib import Path

    from casstore_fuse.mounting import why_not
    from casstore_orchestrator.executors.process import ProcessExecutor

    reason = why_not()
    if not reason:
        with tempfile.TemporaryDirectory(dir=folder if os.path.isdir(folder) else None) as trial:
            source = Path(trial) / "source"
            source.mkdir()
            reason = ProcessExecutor().why_no_layer(Path(trial), source)
    return f"downloaded: {reason}" if reason else "mounted"


def _containers() -> str:
    """Which container engine pools can use here, or why there is none."""
    from casstore_orchestrator.executors.engine import find_engine

    try:
        engine = find_engine()
    except CasstoreError as exc:
        return exc.message
    return f"{engine.name} {engine.version}" + (", without root" if engine.rootless else "")


@click.command("doctor", cls=Command)
@output.format_option("text", "json")
def doctor(format_type: str) -> None:
    """Show what this machine gives to tasks: isolation, network, GPUs, and the state of the server and the buckets."""
    from casstore_cli import background

    config = load_config()
    report: dict[str, object] = {"version": __version__}
    try:
        from casstore_orchestrator.executors.process import ProcessExecutor
        from casstore_orchestrator.pools import this_machine

        isolation = ProcessExecutor().describe()
        capacity = this_machine(config.paths.state).capacity
        report["isolation"] = isolation.mode
        report["network"] = "a network of its own for each group" if isolation.network else "the machine's own"
        report["containers"] = _containers()
        report["inputs"] = _inputs(config.paths.state)
        report["reasons"] = list(isolation.reasons)
        report["capacity"] = {
            "cpu": capacity.cpu,
            "memory": output.size(capacity.memory),
            "storage": output.size(capacity.storage),
            "gpu": capacity.gpu,
        }
    except CasstoreError as exc:
        report["isolation"] = f"unavailable: {exc.message}"
    place = background.find_place(config)
    pid = background.running_pid(place)
    report["server"] = "not running (started when needed)" if pid is None else f"running, process {pid}"
    report["buckets"] = {name: bucket.url for name, bucket in config.buckets.items()}
    if pid is not None:
        try:
            state = background.connect(place).get("api/v1/server", ServerReply)
            report["workflows"] = f"{state.running} running, {state.pending} waiting"
            buckets = background.connect(place).get("api/bucket", BucketsReply)
            report["buckets"] = {name: bucket.path for name, bucket in buckets.buckets.items()}
        except ServiceError as exc:
            report["server"] = f"process {pid}, which can't be asked: {exc.message}"
    if format_type == "json":
        output.document(report, indent=2)
        return
    for line in output.tree_text(report):
        output.text(line)
