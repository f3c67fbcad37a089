"""The executor for images: each task is a container of podman or docker.

Decided here and only here: how a task becomes a container (mounts, names, addresses, limits), how its environment
reaches it without showing in any command line, and how containers are found again that nobody follows any more.

A group has a network of the engine's own, on which every task has an address that it keeps over its attempts; peers are
in ``/etc/hosts``. Files and gate are put in place before the command starts, which is when the gate opens.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from casstore.errors import CasstoreError, ServiceError, UsageError
from casstore_orchestrator.executors import syscalls
from casstore_orchestrator.executors.companion import start_companion
from casstore_orchestrator.executors.engine import Engine, find_engine
from casstore_orchestrator.executors.launch import check_launches, open_document
from casstore_orchestrator.executors.network import host_names
from casstore_orchestrator.executors.places import container_place
from casstore_orchestrator.executors.running import Attempt, ProcessGang
from casstore_orchestrator.ports import Executor, Isolation, Layout, LogSink, TaskLaunch

__all__ = ["ContainerExecutor", "ContainerGang"]

LAYOUT = Layout(data="/osmo/data", input="/osmo/data/input", output="/osmo/data/output")
MAX_TASKS = 200
_GATE = "/osmo/run/start/gate"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,500}")
_PIDS = 32768
_UNUSUAL = ":,\n"
"""Characters that the options of the engines for mounts have no words for."""
LoginFor = Callable[[str], str | None]


class ContainerExecutor(Executor):
    """Runs groups in containers of this machine; implements ``ports.Executor``.

    ``scope`` tells the containers of one server from another's: a folder of its own. ``egress``: whether tasks reach
    what is beyond their group. ``login_for`` gives the login for an image's registry, as the text of a
    ``config.json`` of docker's, or None. ``hold``: see ``ProcessExecutor``.
    """

    def __init__(
        self,
        scope: Path,
        *,
        engine: str | None = None,
        egress: bool = True,
        login_for: LoginFor | None = None,
        hold: int | None = None,
    ) -> None:
        self._scope = hashlib.sha256(os.fsencode(scope.resolve())).hexdigest()[:16]
        self._name = engine
        self._egress = egress
        self._login_for = login_for
        self._hold = () if hold is None else (hold,)

    def describe(self) -> Isolation:
        """The isolation that tasks get here, and why."""
        engine = find_engine(self._name)
        reasons = [f"containers by {engine.name} {engine.version}" + (" without root" if engine.rootless else "")]
        lacks = () if self._egress else ("tasks reach only the tasks of their group: the pool allows no way out",)
        return Isolation(mode="container", network=True, reasons=(*reasons, *lacks), lacks=lacks)

    def layout(self, launch_home: Path) -> Layout:
        """The paths of every task."""
        return LAYOUT

    def host(self, group_key: str, task: str) -> str:
        """A name that resolves to the task inside its group."""
        return task

    def place_of(self, launch_home: Path, path: str) -> tuple[Path, str]:
        """Where on the host what the task sees at a path lies; the folders of its data alone have such a place."""
        return container_place(launch_home, path)

    def why_no_layer(self, launch_home: Path, source: Path) -> str:
        """Why inputs can't be laid over ``source``; empty when they can."""
        try:
            engine = find_engine(self._name)
        except CasstoreError as error:
            return error.message
        if engine.name == "docker":
            return "docker has no writable view of a folder"
        if engine.rootless:
            return "podman without root can't read what this user has mounted"
        return "the path of the mounted input has a ':' or ','" if set(str(source)) & set(_UNUSUAL) else ""

    def prepare(self, group_key: str, launches: Sequence[TaskLaunch], log: LogSink) -> ContainerGang:
        """Prepare all tasks or none."""
        check_launches(launches, MAX_TASKS)
        for launch in launches:
            _check(launch)
        gang = ContainerGang(
            group_key,
            launches,
            log,
            engine=find_engine(self._name),
            label=self._label(group_key),
            isolation=self.describe(),
            egress=self._egress,
            login_for=self._login_for,
            hold=self._hold,
        )
        gang.prepare(launches)
        return gang

    def sweep(self, group_key: str) -> None:
        """End and remove whatever is left of a group that nobody follows any more."""
        find_engine(self._name).remove(self._label(group_key))

    def _label(self, group_key: str) -> str:
        return f"osmo.group={self._scope}/{group_key}"


class ContainerGang(ProcessGang):
    """One group of tasks in containers."""

    def __init__(
        self,
        group_key: str,
        launches: Sequence[TaskLaunch],
        log: LogSink,
        *,
        engine: Engine,
        label: str,
        isolation: Isolation,
        egress: bool,
        login_for: LoginFor | None,
        hold: Sequence[int] = (),
    ) -> None:
        super().__init__(group_key, log)
        self._hold = tuple(hold)
        self._engine = engine
        self._label = label
        self._isolation = isolation
        self._egress = egress
        self._login_for = login_for
        self._id = f"osmo-{os.urandom(6).hex()}"
        self._slots = {launch.name: slot for slot, launch in enumerate(launches)}
        self._homes: dict[str, Path] = {}
        self._images: dict[str, bool] = {}
        self._hosts: list[str] = []
        self._addresses: list[str] = []

    def _open(self) -> None:
        engine = self._engine
        engine.remove(self._label)
        options = ["--label", self._label, *(() if self._egress else ("--internal",))]
        engine.ask("network", "create", *options, self._id, doing="make a network for the group")
        network = ipaddress.ip_network(engine.subnet(self._id))
        if network.num_addresses < len(self._slots) + 4:
            raise ServiceError(f"{engine.name} gives networks of {network.num_addresses} addresses: too few")
        # The first address is the network's, the second the engine's own.
        self._addresses = [str(network[slot + 2]) for slot in self._slots.values()]
        taken = set(self._slots)
        for name, address in zip(self._slots, self._addresses, strict=True):
            variants = [other for other in host_names(name)[1:] if other not in taken]
            taken.update(variants)
            self._hosts += [f"--add-host={host}:{address}" for host in (name, *variants)]

    def _spawn(self, launch: TaskLaunch) -> Attempt:
        home = launch.home.resolve()
        if set(str(home)) & set(_UNUSUAL):
            raise ServiceError(f"the folder of a task can't be mounted: {str(home)!r} has a ':' or ','")
        _make_home(home)
        fresh = self._homes.get(launch.name) != home
        if fresh:
            self._ensure_image(launch)
        name = f"{self._id}-{self._slots[launch.name]}"
        if fresh and launch.name in self._homes:
            self._engine.ask("rm", "--force", "--volumes", name, doing="remove the last attempt")
        handed_over = open_document(self._header(launch, home, name, fresh=fresh), launch.files, home / "run")
        self._homes[launch.name] = home
        attempt, ended = start_companion(
            self._loop,
            launch,
            self._log,
            script="container_task.py",
            told=handed_over,
            cwd=home / "run",  # podman's monitor leaves a file where it is started when memory runs out
            hold=self._hold,
        )
        attempt.attach(
            kill_hard=attempt.order_kill,
            on_control_end=ended,
            open_socket=partial(self._open_socket, name),
        )
        return attempt

    def _open_socket(self, name: str, family: int, kind: int) -> socket.socket:
        """A socket in the network of a container. ``ServiceError``."""
        form = "{{.State.Pid}}"
        pid = self._engine.ask("inspect", "--type", "container", "--format", form, name, doing="find the task").strip()
        made: list[socket.socket | OSError] = []

        def enter() -> None:
            try:
                with open(f"/proc/{pid}/ns/net", "rb") as namespace:
                    syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNET)
                made.append(socket.socket(family, kind))
            except OSError as error:
                made.append(error)

        # A thread of its own, because a network namespace belongs to a thread: it ends with this one.
        thread = threading.Thread(target=enter, name=f"network of {name}")
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise ServiceError(f"the network of the task can't be reached: {made[0].strerror}")
        return made[0]

    def _header(self, launch: TaskLaunch, home: Path, name: str, *, fresh: bool) -> dict[str, object]:
        script, variables = _environment(launch)
        return {
            "engine": self._engine.path,
            "environment": self._engine.environment,
            "name": name,
            "fresh": fresh,
            "create": self._options(launch, home, name),
            "image": launch.image,
            "gated": ["-c", script, "osmo", *launch.argv],
            "direct_entry": launch.argv[0],
            "direct": list(launch.argv[1:]),
            "limited": launch.memory > 0,
            "variables": variables,
            "gate": str(home / "run/start/gate"),
            "remove": [["rm", "--force", "--volumes", name], ["network", "rm", self._id]],
        }

    def _options(self, launch: TaskLaunch, home: Path, name: str) -> list[str]:
        options = [
            f"--name={name}",
            f"--label={self._label}",
            f"--hostname={host_names(launch.name)[-1]}",
            "--log-driver=none",
            "--env-file=/dev/stdin",
            f"--pids-limit={_PIDS}",
            f"--volume={home}/data/input:{LAYOUT.input}" + (":ro" if launch.read_only_inputs else ""),
            f"--volume={home}/data/output:{LAYOUT.output}",
            f"--volume={home}/run/workspace:/osmo/run/workspace",
            f"--volume={home}/run/start:{os.path.dirname(_GATE)}:ro",
            *self._engine.init(),
            *self._engine.limits(),
            *self._engine.gpus(launch.gpu),
        ]
        if launch.host_network:
            options.append("--network=host")
        else:
            address = self._addresses[self._slots[launch.name]]
            options += [f"--network={self._id}", f"--ip={address}", *self._hosts]
        if launch.memory:
            # Swap beside it would let a task go beyond its memory.
            options += [f"--memory={launch.memory}", f"--memory-swap={launch.memory}"]
        if launch.cpu:
            options.append(f"--cpus={launch.cpu:g}")
        if launch.privileged:
            options.append("--privileged")
        else:
            options.append("--security-opt=no-new-privileges")
        options += [f"--volume={layer.source}:{LAYOUT.input}/{layer.at}:O" for layer in launch.layers]
        options += [f"--volume={source}:{target}" for source, target in launch.volumes]
        return options

    def _ensure_image(self, launch: TaskLaunch) -> None:
        if launch.image in self._images:
            return
        login = self._login_for(launch.image) if self._login_for is not None else None
        with tempfile.TemporaryDirectory(prefix="osmo-login-") as folder:  # for this user alone
            path = os.path.join(folder, "config.json")
            if login is not None:
                with open(path, "x", encoding="utf-8") as file:
                    file.write(login)
            auth_file = None if login is None else path
            self._images[launch.image] = self._engine.ensure_image(launch.image, auth_file=auth_file)

    def _introduce(self, attempt: Attempt) -> None:
        pulled = " (pulled now)" if self._images.get(attempt.launch.image) else ""
        attempt.note(f"isolation: container, {self._isolation.reasons[0]}; image {attempt.launch.image}{pulled}")
        for lack in self._isolation.lacks:
            attempt.note(f"  {lack}")

    def _tear_down(self) -> None:
        for attempt in self.tasks.values():
            attempt.wait()
        self._engine.remove(self._label)


def _check(launch: TaskLaunch) -> None:
    if not _IMAGE.fullmatch(launch.image):
        raise UsageError(f"task {launch.name}: {launch.image[:100]!r} is not the name of an image")
    for name, value in launch.environment.items():
        if "\n" in value and not _NAME.fullmatch(name):
            raise UsageError(f"task {launch.name}: the variable {name} has several lines and no plain name")
    for source, target in launch.volumes:
        if set(source + target) & set(_UNUSUAL):
            raise UsageError(f"task {launch.name}: a volume can't have ':' or ',' in its paths")


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        # An image's user may be anybody; nobody else on this machine gets past the folder above.
        for name in ("data/input", "data/output", "run/workspace", "run/start"):
            (home / name).mkdir(parents=True, exist_ok=True)
            (home / name).chmod(0o777)
        gate = home / "run/start/gate"
        gate.unlink(missing_ok=True)
        os.mkfifo(gate)
        gate.chmod(0o644)
    except OSError as error:
        raise ServiceError(f"the folder of a task can't be made: {error}") from error


def _environment(launch: TaskLaunch) -> tuple[str, str]:
    """The script that waits at the gate, and the variables of the container in the form of an env-file.

    An env-file has no words for a value of several lines: such a one travels escaped, and the script sets it.
    """
    given = {"HOSTNAME": launch.name, **({} if launch.gpu else {"NVIDIA_VISIBLE_DEVICES": ""}), **launch.environment}
    lines, script = [], [f"read -r _ < {_GATE} || exit 125"]
    for number, (name, value) in enumerate(given.items()):
        if "\n" not in value:
            lines.append(f"{name}={value}")
            continue
        escaped = value.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"OSMO_LINES_{number}={escaped}")
        script += [
            f"""{name}=$(printf '%bx' "$OSMO_LINES_{number}")""",
            f"{name}=${{{name}%x}}",
            f"export {name}",
            f"unset OSMO_LINES_{number}",
        ]
    return "\n".join([*script, 'exec "$@"']), "".join(f"{line}\n" for line in lines)
