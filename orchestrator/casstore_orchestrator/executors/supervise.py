"""The supervisor of one group's sandboxes: a small process that owns the group's namespaces and its bubblewraps.

Decided here and only here: who is whose parent, and so what ends with what. The supervisor holds the user and network
namespaces of the group. Each sandbox is a child of it that gets a fresh copy of the machine's mount table (so that
mounts made for a later attempt are seen), lays its overlays, and becomes ``bwrap``. When the process that asked for the
group ends, however it ends, the supervisor reads the end of its socket and ends everything; when the supervisor itself
is killed the kernel does it (parent-death signals down to process 1 of each sandbox, whose end takes the rest). No
interface, mount or process outlives them.

Single-threaded and with the standard library alone, because namespaces belong to threads. Messages are JSON in packets
on descriptor 3: ``setup``, ``way_out``, ``start``, ``kill``, ``socket`` in; ``ready``, ``broken``, ``gone``,
``failed``, ``socket`` out, the last with a socket that was made in the network of a task: what is sent over it never
passes through here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import socket
from dataclasses import dataclass, field

from casstore_orchestrator.executors import syscalls
from casstore_orchestrator.executors.cgroups import MAX_PROCESSES, Bases, Group, make_group, remove_group
from casstore_orchestrator.executors.network import GroupNetwork

__all__ = ["CONTROL_FD", "GROUP_PREFIX", "enter_user_namespace", "lay_folders", "lay_inputs", "main"]

CONTROL_FD = 3
GROUP_PREFIX = "casstore-"
_FIRST_FREE_FD = 20


def enter_user_namespace() -> None:
    """Become root of a new user namespace in which only this user exists; needs no privilege where it is allowed."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)


def lay_folders(folders: list[str], layers: str, *, user: bool) -> list[str]:
    """The top-level folders of the machine for a sandbox, as arguments of bubblewrap.

    A writable layer (kept in ``layers``) is put over each one where the kernel can; else it is read-only. Must run in
    a mount namespace of its own. Relative names, so that no character of ``layers`` can be taken for an option.
    """
    arguments: list[str] = []
    os.chdir(layers)
    extra = ",userxattr" if user else ""
    for folder in folders:
        name = folder.strip("/")
        options = f"lowerdir=/{name},upperdir={name}.upper,workdir={name}.work{extra}"
        try:
            if any(character in name for character in ",:\\"):
                raise OSError("the name can't be a mount option")
            for part in (name, f"{name}.upper", f"{name}.work"):
                os.makedirs(part, mode=0o755, exist_ok=True)
            os.chmod(f"{name}.upper", os.stat(folder).st_mode & 0o7777)  # of both layers, this one's mode is seen
            syscalls.mount("overlay", name, "overlay", 0, options)
            arguments += ["--bind", os.path.join(layers, name), folder]
        except OSError:
            arguments += ["--ro-bind", folder, folder]
    return arguments


def lay_inputs(inputs: list[list[str]], layers: str, *, user: bool) -> None:
    """Put a writable layer (kept in ``layers``) over each (name, folder below it); ``OSError`` where that can't be.

    The folders are relative to ``layers``. Must run in a mount namespace of its own.
    """
    os.chdir(layers)
    # Folders of a version can be renamed, as those of a download can; without privilege the kernel allows no such.
    extra = ",userxattr" if user else ",redirect_dir=on"
    for name, source in inputs:
        if any(character in source for character in ",:\\"):
            raise OSError("its name can't be a mount option")
        for part in (name, f"{name}.upper", f"{name}.work"):
            os.makedirs(part, mode=0o755, exist_ok=True)
        os.chmod(f"{name}.upper", os.stat(source).st_mode & 0o777)
        options = f"lowerdir={source},upperdir={name}.upper,workdir={name}.work,index=off,metacopy=off{extra}"
        syscalls.mount("overlay", name, "overlay", 0, options)


@dataclass(slots=True)
class _Sandbox:
    number: int
    pid: int
    layers: str
    info: int
    group: Group | None
    network: int | None
    told: bytearray = field(default_factory=bytearray)
    inner: int = -1  # pidfd of process 1 of the sandbox

    def read_info(self) -> None:
        """Learn who process 1 is; bubblewrap writes it in pieces."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.info, 4096)
            self.told += data
        if b"}" in self.told or not data:
            os.close(self.info)
            self.info = -1
        if b"}" in self.told:
            with contextlib.suppress(OSError, ValueError, KeyError):
                self.inner = os.pidfd_open(int(json.loads(bytes(self.told))["child-pid"]))

    def kill(self) -> None:
        """End process 1, which ends the rest and lets bubblewrap report; before there is one, end bubblewrap."""
        if self.info >= 0:
            self.read_info()
        with contextlib.suppress(ProcessLookupError):
            if self.inner >= 0:
                signal.pidfd_send_signal(self.inner, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> None:
        """Bubblewrap has ended: see to it that process 1 has too (it lives on when only bubblewrap was killed)."""
        if self.info >= 0:
            self.read_info()
        if self.info >= 0:
            os.close(self.info)
        if self.inner >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.inner, signal.SIGKILL)
            select.select([self.inner], [], [])
            os.close(self.inner)
        if self.network is not None:
            os.close(self.network)


class _Supervisor:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._sandboxes: dict[int, _Sandbox] = {}
        self._user = False
        self._quota = False
        self._bwrap = ""
        self._bases = Bases()
        self._network: GroupNetwork | None = None
        self._machine_network = -1

    def say(self, **what: object) -> None:
        with contextlib.suppress(OSError):
            self._control.send(json.dumps(what).encode())

    def setup(self, order: dict[str, object]) -> None:
        self._user = bool(order["user"])
        self._quota = bool(order["quota"])
        self._bwrap = str(order["bwrap"])
        bases = order["bases"]
        if isinstance(bases, list):
            self._bases = Bases(*bases)
        if self._user:
            enter_user_namespace()
        self._machine_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        self._network = GroupNetwork(bridged=bool(order["bridged"]))
        self.say(ready=True)

    def open_way_out(self) -> None:
        try:
            if self._network is not None:
                self._network.open_way_out()
            self.say(ready=True)
        except OSError as error:
            self.say(broken=str(error))

    def start(self, order: dict[str, object], fds: list[int]) -> None:
        number = int(str(order["id"]))
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        namespace, group = None, None
        try:
            if order["host_network"]:
                namespace = os.dup(self._machine_network)
            elif self._network is not None:
                namespace = self._network.join(int(str(order["slot"])), number)
            if self._bases.version:
                name = f"{GROUP_PREFIX}{os.getpid()}-{number}"
                remove_group(self._bases, name)
                memory, cpu = int(str(order["memory"])), float(str(order["cpu"]))
                try:
                    group = make_group(self._bases, name, memory=memory, cpu=cpu, quota=self._quota)
                except OSError:
                    remove_group(self._bases, name)
                    raise
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become_sandbox(parent, order, group, namespace, [*fds, writing])
            sandbox = _Sandbox(number, pid, str(order["layers"]), reading, group, namespace)
            self._sandboxes[pid] = sandbox
            namespace = None
        except OSError as error:
            os.close(reading)
            self.say(failed=number, error=str(error))
        finally:
            os.close(writing)
            for fd in fds + ([namespace] if namespace is not None else []):
                os.close(fd)

    def _become_sandbox(
        self, parent: int, order: dict[str, object], group: Group | None, namespace: int | None, fds: list[int]
    ) -> None:
        """In the child: take the place of the sandbox and become bubblewrap. Never returns."""
        log = fds[0]
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            syscalls.die_with_parent(parent)
            if group is not None:
                group.add(os.getpid())
            if self._user and not self._bases.pids:
                # Counted in the group's own user namespace, not with what the user runs beside it.
                _, most = resource.getrlimit(resource.RLIMIT_NPROC)
                limit = MAX_PROCESSES if most == resource.RLIM_INFINITY else min(MAX_PROCESSES, most)
                resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
            if namespace is not None:
                syscalls.setns(namespace, syscalls.CLONE_NEWNET)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            # Nothing we mount is seen outside, and what is unmounted outside (an input, later) goes here too.
            syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
            before, folders, after, inputs = order["before"], order["folders"], order["after"], order["inputs"]
            if not (isinstance(before, list) and isinstance(folders, list) and isinstance(after, list)):
                raise OSError("the order is damaged")
            if not isinstance(inputs, list):
                raise OSError("the order is damaged")
            lay_inputs(inputs, str(order["layers"]), user=self._user)
            middle = lay_folders(folders, str(order["layers"]), user=self._user)
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD) for fd in fds]
            null = os.open("/dev/null", os.O_RDONLY)
            for source, target in ((null, 0), (high[0], 1), (high[0], 2)):
                os.dup2(source, target)
            log = 2
            for target, source in enumerate(high[1:], start=3):
                os.dup2(source, target)
            os.closerange(3 + len(high) - 1, os.sysconf("SC_OPEN_MAX"))  # a task must hold nothing of ours
            os.chdir("/")
            os.execve(self._bwrap, [self._bwrap, *before, *middle, *after], {})  # noqa: S606  no shell is wanted
        except Exception as error:  # noqa: BLE001  the reason must reach the log before this child ends
            with contextlib.suppress(OSError):
                os.write(log, f"{error}\n".encode(errors="replace"))
        os._exit(125)

    def reap(self) -> None:
        """Collect ended children, and tell of each sandbox that is completely gone."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (sandbox := self._sandboxes.pop(pid, None)) is None:
                continue
            sandbox.ended()
            kills = 0
            if sandbox.group is not None:
                kills = sandbox.group.oom_kills()
                remove_group(self._bases, sandbox.group.name)
            if self._network is not None:
                self._network.leave(sandbox.number)
            _clear_work_folders(sandbox.layers)
            self.say(gone=sandbox.number, status=os.waitstatus_to_exitcode(status), oom=kills > 0)

    def open_socket(self, order: dict[str, object]) -> None:
        """Answer with a socket in the network of a sandbox, or with why there is none."""
        answer: dict[str, object] = {"socket": order["ask"]}
        try:
            sandbox = next((found for found in self._sandboxes.values() if found.number == order["id"]), None)
            if sandbox is None or self._network is None:
                raise OSError("it has ended")
            made = self._network.open(sandbox.network, int(str(order["family"])), int(str(order["kind"])))
        except OSError as error:
            self.say(**answer, error=str(error))
            return
        with made, contextlib.suppress(OSError):
            socket.send_fds(self._control, [json.dumps(answer).encode()], [made.fileno()])

    def obey(self, packet: bytes, fds: list[int]) -> None:
        order = json.loads(packet)
        kind = order["op"]
        if kind == "start":
            self.start(order, fds)
        elif kind == "kill":
            for sandbox in self._sandboxes.values():
                if sandbox.number == order["id"]:
                    sandbox.kill()
        elif kind == "socket":
            self.open_socket(order)
        elif kind == "setup":
            self.setup(order)
        elif kind == "way_out":
            self.open_way_out()

    def run(self) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        while True:
            infos = {sandbox.info: sandbox for sandbox in self._sandboxes.values() if sandbox.info >= 0}
            watched: list[int | socket.socket] = [self._control, reading, *infos]
            ready, _, _ = select.select(watched, [], [])
            for fd in ready:
                if isinstance(fd, int) and fd in infos:
                    infos[fd].read_info()
            if reading in ready:
                os.read(reading, 4096)
                self.reap()
            if self._control in ready:
                packet, fds, _, _ = socket.recv_fds(self._control, 1 << 20, 8)
                for fd in fds:
                    os.set_inheritable(fd, False)
                if not packet:
                    return
                self.obey(packet, fds)

    def end(self) -> None:
        """End every sandbox and wait until all of them are gone."""
        for sandbox in self._sandboxes.values():
            sandbox.kill()
        signal.set_wakeup_fd(-1)
        while self._sandboxes:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            self.reap()


def _clear_work_folders(layers: str) -> None:
    """Remove the overlays' scratch folders: the kernel makes them with no permissions, in the way of a later rmtree."""
    with contextlib.suppress(OSError):
        for name in os.listdir(layers):
            if name.endswith(".work"):
                for inner in os.listdir(os.path.join(layers, name)):
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.join(layers, name, inner))


def main() -> None:
    """Serve the socket on descriptor 3 until its other end is closed."""
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the socket decides; the terminal's Ctrl-C is the command's
    syscalls.become_subreaper()
    supervisor = _Supervisor(control)
    try:
        supervisor.run()
    except Exception as error:  # noqa: BLE001  the other side must learn why, whatever it is
        supervisor.say(broken=str(error))
    finally:
        supervisor.end()
