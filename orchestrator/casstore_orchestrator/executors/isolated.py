"""Groups of sandboxed tasks: bubblewrap below one supervisor a group.

Decided here and only here: how the server talks to a group's supervisor, and the order in which a sandbox comes up.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from casstore.errors import ServiceError
from casstore_orchestrator.executors import sandbox
from casstore_orchestrator.executors.cgroups import remove_group
from casstore_orchestrator.executors.launch import open_launch, task_environment, write_commands
from casstore_orchestrator.executors.network import RESOLVER, address_of, hosts_file
from casstore_orchestrator.executors.probe import Machine, bare_python
from casstore_orchestrator.executors.running import Attempt, ProcessGang, close_all, open_channel
from casstore_orchestrator.executors.supervise import CONTROL_FD, GROUP_PREFIX
from casstore_orchestrator.executors.uplink import Uplink
from casstore_orchestrator.ports import Isolation, LogSink, TaskLaunch

__all__ = ["SandboxGang"]

_SETUP_SECONDS = 60.0
_SOCKET_SECONDS = 10.0
_PACKET = 1 << 20


@dataclass(slots=True)
class _Asked:
    """A socket that the supervisor was asked for."""

    done: threading.Event = field(default_factory=threading.Event)
    fd: int = -1
    error: str = ""


class SandboxGang(ProcessGang):
    """One group; its namespaces and sandboxes hang on one supervisor process."""

    def __init__(
        self,
        group_key: str,
        launches: Sequence[TaskLaunch],
        log: LogSink,
        *,
        machine: Machine,
        view: sandbox.View,
        isolation: Isolation,
        strict_cpu: bool,
        egress: bool = True,
        hold: Sequence[int] = (),
    ) -> None:
        super().__init__(group_key, log)
        self._egress = egress
        self._uplink: Uplink | None = None
        self._no_way_out = ""
        self._hold = tuple(hold)
        self._machine = machine
        self._view = view
        self._isolation = isolation
        self._strict_cpu = strict_cpu
        self._slots = {launch.name: slot for slot, launch in enumerate(launches)}
        self._numbers: dict[int, Attempt] = {}
        self._asked: dict[int, _Asked] = {}
        self._asks = itertools.count(1)
        self._counter = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answered = threading.Event()
        self._ended = threading.Event()
        self._broken: str | None = None

    def _open(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET)
        try:
            self._process = subprocess.Popen(
                _with_control_fd(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *self._hold],
                cwd="/",
                env={},
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ServiceError(f"the supervisor of a group can't be started: {error}") from error
        finally:
            theirs.close()
        self._socket = ours
        self._loop.call(lambda: self._loop.watch(ours.fileno(), self._listen))
        bases = self._machine.bases
        self._tell(
            {
                "op": "setup",
                "user": self._machine.user,
                "bridged": self._machine.bridged,
                "bwrap": self._machine.bwrap,
                "quota": self._strict_cpu,
                "bases": [bases.version, bases.memory, bases.cpu, bases.pids],
            }
        )
        self._await_answer()
        if self._egress and self._machine.way_out and self._machine.bridged:
            self._open_way_out()

    def _await_answer(self) -> None:
        if not self._answered.wait(_SETUP_SECONDS):
            raise ServiceError(f"the supervisor of a group did not answer within {_SETUP_SECONDS:.0f} seconds")
        if self._broken is not None:
            raise ServiceError(f"the network of a group can't be made: {self._broken}")

    def _open_way_out(self) -> None:
        """Give the group a way out; without one it runs all the same, and its tasks' logs say why."""
        if self._process is None:
            return
        try:
            self._uplink = Uplink(self._process.pid, self._hold)
        except ServiceError as error:
            self._no_way_out = error.message
            return
        self._answered.clear()
        self._tell({"op": "way_out"})
        self._await_answer()

    def _tell(self, order: dict[str, object], fds: Sequence[int] = ()) -> None:
        if self._socket is None:
            raise ServiceError("the supervisor of the group is not running")
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], list(fds))
        except OSError as error:
            raise ServiceError(f"the supervisor of the group has ended: {error.strerror}") from error

    def _listen(self) -> None:
        if self._socket is None:
            return
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, _PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            packet, fds = b"", []
        if not packet:
            self._loop.unwatch(self._socket.fileno())
            self._supervisor_ended()
            return
        message = json.loads(packet)
        if "gone" in message:
            attempt = self._numbers.pop(message["gone"], None)
            if attempt is not None:
                attempt.mark_gone(oom=bool(message["oom"]))
        elif "failed" in message:
            attempt = self._numbers.pop(message["failed"], None)
            if attempt is not None:
                attempt.fail(str(message["error"]))
                attempt.mark_gone()
        elif "socket" in message:
            self._answer(message, fds)
        elif "broken" in message:
            self._broken = str(message["broken"])
            self._answered.set()
        elif "ready" in message:
            self._answered.set()

    def _answer(self, message: dict[str, object], fds: list[int]) -> None:
        asked = self._asked.pop(int(str(message["socket"])), None)
        if asked is None:
            close_all(*fds)
            return
        asked.fd = fds[0] if fds else -1
        asked.error = str(message.get("error", ""))
        asked.done.set()

    def _open_socket(self, number: int, family: int, kind: int) -> socket.socket:
        ask, asked = next(self._asks), _Asked()
        self._asked[ask] = asked
        self._tell({"op": "socket", "ask": ask, "id": number, "family": family, "kind": kind})
        if not asked.done.wait(_SOCKET_SECONDS):
            self._asked.pop(ask, None)
            if not asked.done.is_set():
                raise ServiceError("the supervisor of the group does not answer")
        if asked.fd < 0:
            raise ServiceError(f"the network of the task can't be reached: {asked.error}")
        return socket.socket(fileno=asked.fd)

    def _supervisor_ended(self) -> None:
        """Regular, or killed: the kernel then ends the sandboxes, and what it can't remove is removed here."""
        if self._process is not None:
            self._process.wait()
            for number in self._numbers:
                remove_group(self._machine.bases, f"{GROUP_PREFIX}{self._process.pid}-{number}")
        if not self._answered.is_set():
            self._broken = "the supervisor ended"
            self._answered.set()
        for attempt in self._numbers.values():
            attempt.fail("the supervisor of the group ended")
            attempt.mark_gone()
        self._numbers.clear()
        for ask in list(self._asked):
            self._answer({"socket": ask, "error": "the supervisor of the group ended"}, [])
        self._ended.set()

    def _hosts(self, folder: Path) -> Path:
        names = list(self._slots)
        if self._machine.bridged:
            addresses = [address_of(slot) for slot in self._slots.values()]
        else:
            addresses = ["127.0.0.1"] * len(names)
        path = folder / "hosts"
        path.write_bytes(hosts_file(names, addresses))
        path.chmod(0o644)
        return path

    def _resolver(self, folder: Path) -> Path | None:
        """The file that names the way out's resolver; None without one."""
        if self._uplink is None:
            return None
        path = folder / "resolv.conf"
        path.write_text(f"nameserver {RESOLVER}\n", encoding="ascii")
        path.chmod(0o644)
        return path

    def _spawn(self, launch: TaskLaunch) -> Attempt:
        sandbox.make_home(launch.home)
        run = launch.home.resolve() / "run"
        write_commands(run / "bin")
        plan = sandbox.plan_mounts(
            launch,
            self._view,
            self._hosts(run),
            self._resolver(run),
            Path(__file__).resolve().with_name("task_init.py"),
            os.path.realpath(sys.executable),
        )
        # Only one user exists in a user namespace: an archive's owners can't be restored there.
        extra = {"TAR_OPTIONS": "--no-same-owner"} if self._machine.user else {}
        extra |= {"USER": "root", "LOGNAME": "root", "OSMO_CONFIG_FILE_DIR": "/osmo/login/config"}
        environment = task_environment(
            launch, path=sandbox.PATH, home=sandbox.HOME, commands=sandbox.COMMANDS, extra=extra
        )
        handed_over = open_launch(launch.argv, environment, sandbox.WORKSPACE, launch.files, run)
        (log_read, log_write), (ours, theirs) = open_channel()
        self._counter += 1
        number = self._counter
        attempt = Attempt(self._loop, launch, self._log, log_read, ours)
        attempt.attach(
            kill_hard=lambda: self._kill(number),
            on_control_end=lambda: None,
            open_socket=lambda family, kind: self._open_socket(number, family, kind),
        )
        self._numbers[number] = attempt
        order: dict[str, object] = {
            "op": "start",
            "id": number,
            "slot": self._slots[launch.name],
            "host_network": launch.host_network and not self._machine.user,
            "memory": launch.memory,
            "cpu": launch.cpu,
            "layers": plan.layers,
            "before": plan.before,
            "folders": plan.folders,
            "after": plan.after,
            "inputs": plan.inputs,
        }
        refused: ServiceError | None = None
        try:
            self._tell(order, [log_write, theirs.fileno(), handed_over.fileno()])
        except ServiceError as error:
            refused = error
        finally:
            close_all(log_write, theirs, handed_over)
        if refused is not None:
            self._loop.call(attempt.mark_gone)
            attempt.wait()
            raise refused
        return attempt

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ServiceError):  # it has ended, and the sandboxes with it
            self._tell({"op": "kill", "id": number})

    def _introduce(self, attempt: Attempt) -> None:
        if attempt.launch.host_network and self._machine.user:
            attempt.note("hostNetwork has no effect: only root can give a task this machine's network")
        network = "own network" if self._isolation.network else "shared network"
        network += " with a way out" if self._uplink is not None else ""
        attempt.note(f"isolation: {self._isolation.mode}, {network}; details: osmo doctor")
        for lack in (*self._isolation.lacks, *((self._no_way_out,) if self._no_way_out else ())):
            attempt.note(f"  {lack}")

    def _tear_down(self) -> None:
        if self._uplink is not None:
            self._uplink.close()
        if self._socket is None or self._process is None:
            return
        self._socket.shutdown(socket.SHUT_WR)  # the end of its socket tells the supervisor to end everything
        self._ended.wait()
        self._socket.close()


def _with_control_fd(fd: int) -> list[str]:
    """The supervisor's command line; it finds its socket on a fixed descriptor."""
    command = bare_python("casstore_orchestrator.executors.supervise:main")
    if fd != CONTROL_FD:
        command[-1] = f"import os; os.dup2({fd}, {CONTROL_FD}); os.close({fd}); {command[-1]}"
    return command
