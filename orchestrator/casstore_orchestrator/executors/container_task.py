"""The companion of one attempt in a container: prepares it, starts it when told, and sees it end.

Decided here and only here: the calls to the engine in the life of an attempt, and that a container never outlives its
companion's order: when the control socket ends, so does the container. This file is run as a script, by a bare
interpreter: standard library only, and no imports of ours.

Arguments: the descriptors of the control socket and of the launch. The launch is an 8-byte length, that many bytes of
JSON (``engine``, ``environment`` of the engine's client, ``name``, ``fresh``, ``create``: options, ``image``,
``gated`` and ``direct``: what follows it, ``direct_entry``, ``limited``: whether its memory is, ``variables``: the
container's environment in the form of an env-file, ``gate``, ``remove``: commands that leave nothing behind,
``files``: path, mode, size) and the bodies of the files. The talk on the socket is that of ``task_init``.

A container is started before its command: a shell in it waits at a gate (a FIFO), so that a whole group starts within
milliseconds although an engine takes a second to start one. In an image without a shell the command starts when it is
told to, and the log says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import time

_POLL = 0.02
_GATE_SECONDS = 60.0
_OOM_FILE = "oom"
_MAX_HANDED = 8


class _Refused(Exception):  # noqa: N818  the message is for the user; nothing here is an error of ours
    """The task can't be prepared."""


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return (lines[-1] if lines else "it did not say why")[-400:]


class _Memory:
    """Notices that a container reaches its memory limit, where cgroup v1 rules: not every engine does there.

    The kernel's notice also comes when the group is removed; so the count of killed processes is read at once.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.reached = False
        self._folder = ""

    def watch(self, pid: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            with open(f"/proc/{pid}/cgroup", encoding="utf-8") as lines:
                paths = [line.strip().split(":", 2)[2] for line in lines if ":memory:" in line]
            with open("/proc/self/mounts", encoding="utf-8") as mounts:
                fields = [line.split() for line in mounts]
            roots = [one[1] for one in fields if one[2] == "cgroup" and "memory" in one[3].split(",")]
            if not paths or not roots:
                return
            self._folder = roots[0] + paths[0]
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            with open(f"{self._folder}/memory.oom_control", "rb", buffering=0) as watched:
                order = f"{self.fd} {watched.fileno()}".encode()
                with open(f"{self._folder}/cgroup.event_control", "wb", buffering=0) as control:
                    control.write(order)

    def look(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_read(self.fd)
        with contextlib.suppress(OSError), open(f"{self._folder}/memory.oom_control", encoding="ascii") as lines:
            self.reached = self.reached or any(
                line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in lines
            )


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Companion:
    def __init__(self, control: socket.socket, launch: int) -> None:
        self._control = control
        with open(launch, "rb", buffering=0) as stream:
            stream.seek(0)
            data = stream.readall()
        length = int.from_bytes(data[:8], "big")
        self._header = json.loads(data[8 : 8 + length])
        self._bodies = memoryview(data)[8 + length :]
        self._name: str = self._header["name"]
        self._gate: str = self._header["gate"]
        self._opened = -1
        self._child: subprocess.Popen[bytes] | None = None
        self._deserted = False
        self._memory = _Memory()
        self._entered: dict[int, subprocess.Popen[bytes]] = {}  # id of the request -> client of the engine

    def say(self, **what: object) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(what).encode() + b"\n")

    def _engine(self, *arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._header["engine"], *arguments],
            input=b"" if given is None else given,
            capture_output=True,
            env=self._header["environment"],
            check=False,
        )

    def _must(self, what: str, *arguments: str, given: bytes | None = None) -> None:
        done = self._engine(*arguments, given=given)
        if done.returncode:
            raise _Refused(f"can't {what}: {_last_words(done.stderr)}")

    def prepare(self) -> None:
        """Make the container (again in place: it is there) and bring it to its gate."""
        if not self._header["fresh"]:
            self._start()
            if not self._at_the_gate():
                raise _Refused("its container could not be started again")
            return
        self._make("gated")
        self._start()
        if self._at_the_gate():
            return
        self._child = None
        self._engine("rm", "--force", self._name)
        self._make("direct")
        self.say(
            note="The image has no /bin/sh that runs: the command starts without a barrier, as soon as the engine can"
        )

    def _make(self, form: str) -> None:
        header = self._header
        entry = "/bin/sh" if form == "gated" else header["direct_entry"]
        arguments = [*header["create"], f"--entrypoint={entry}", header["image"], *header[form]]
        self._must("make its container", "create", *arguments, given=header["variables"].encode())
        if header["files"]:
            self._must("put the files in place", "cp", "-", f"{self._name}:/", given=self._archive())

    def _archive(self) -> bytes:
        buffer = io.BytesIO()
        offset = 0
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, mode, size in self._header["files"]:
                entry = tarfile.TarInfo(os.path.normpath(path).lstrip("/"))
                entry.mode, entry.size, entry.mtime = mode, size, int(time.time())
                archive.addfile(entry, io.BytesIO(bytes(self._bodies[offset : offset + size])))
                offset += size
        return buffer.getvalue()

    def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_OOM_FILE)
        self._child = subprocess.Popen(
            [self._header["engine"], "start", "--attach", self._name],
            stdin=subprocess.DEVNULL,
            env=self._header["environment"],
        )

    def _at_the_gate(self) -> bool:
        """Wait until a shell in the container waits at the gate; False when the container ended instead."""
        child = self._child
        end = time.monotonic() + _GATE_SECONDS
        while child is not None and time.monotonic() < end:
            try:
                self._opened = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._watch_memory()
                return True
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise _Refused(f"its gate can't be opened: {error.strerror}") from None
            if child.poll() is not None:
                return False
            time.sleep(_POLL)
        raise _Refused("its container did not come up in time")

    def _watch_memory(self) -> None:
        if self._header["limited"]:
            found = self._engine("inspect", "--type", "container", "--format", "{{.State.Pid}}", self._name)
            if found.stdout.strip().isdigit():
                self._memory.watch(int(found.stdout))

    def follow(self) -> None:
        """Obey the socket until the container has ended."""
        while self._child is None or self._child.poll() is None:
            self._reap()
            watched: list[socket.socket | int] = [] if self._deserted else [self._control]
            if self._memory.fd >= 0:
                watched.append(self._memory.fd)
            pid = -1
            if self._child is not None:
                with contextlib.suppress(OSError):
                    pid = os.pidfd_open(self._child.pid)
            if pid >= 0:
                watched.append(pid)
            try:
                idle = (pid >= 0 or self._child is None) and not self._entered
                ready = select.select(watched, [], [], None if idle else _POLL)[0]
            finally:
                if pid >= 0:
                    os.close(pid)
            if self._memory.fd in ready:
                self._memory.look()
            if self._control in ready and not self._obey():
                break
        if self._child is None:
            self.say(exit=137)
        else:
            self._child.wait()
            self._tell_the_end()

    def _obey(self) -> bool:
        """Take one order; False when the attempt ends without having started."""
        data, fds, _, _ = socket.recv_fds(self._control, 1, _MAX_HANDED)
        if data == b"g":
            self._go()
        elif data == b"e":
            self._take_request(fds)
        elif data == b"t":
            self._engine("kill", "--signal", "TERM", self._name)
        elif data in {b"k", b""}:
            self._deserted = self._deserted or not data
            if self._child is None:
                return False
            self._engine("kill", "--signal", "KILL", self._name)
        return True

    def _take_request(self, fds: list[int]) -> None:
        """Start a program beside the command, or hang up on one; see ``task_init``."""
        number = 0
        try:
            with open(fds.pop(0), "rb", buffering=0) as stream:
                stream.seek(0)
                data = stream.readall()
            request = json.loads(data[8 : 8 + int.from_bytes(data[:8], "big")])
            number = int(request["id"])
            if request["op"] == "enter":
                self._enter(number, request, fds)
            elif number in self._entered:
                self._entered[number].send_signal(signal.SIGHUP)
        except (_Refused, OSError, ValueError, KeyError, IndexError) as error:
            self.say(entered=number, error=str(error))
        finally:
            for fd in fds:
                os.close(fd)

    def _enter(self, number: int, request: dict[str, object], fds: list[int]) -> None:
        size, argv, extra, master = request.get("terminal"), request["argv"], request["environment"], -1
        if not isinstance(argv, list) or not isinstance(extra, dict):
            raise _Refused("the request is damaged")
        command = [self._header["engine"], "exec", "--interactive"]
        if isinstance(size, list):
            master, slave = os.openpty()
            fds.append(slave)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            command.append("--tty")
        command += [f"--env={name}={value}" for name, value in extra.items()]
        streams = fds * 3 if master >= 0 else fds
        try:
            self._entered[number] = subprocess.Popen(
                [*command, self._name, *argv],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                env=self._header["environment"],
                start_new_session=True,
                preexec_fn=_take_terminal if master >= 0 else None,  # noqa: PLW1509  this process has one thread
            )
            said = json.dumps({"entered": number, "running": True}).encode() + b"\n"
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [said], [master] if master >= 0 else [])
        finally:
            if master >= 0:
                os.close(master)

    def _reap(self) -> None:
        for number, client in list(self._entered.items()):
            code = client.poll()
            if code is not None:
                del self._entered[number]
                self.say(entered=number, exit=code if code >= 0 else 128 - code)

    def _go(self) -> None:
        if self._opened >= 0:
            with contextlib.suppress(OSError):  # it has ended
                os.write(self._opened, b"\n")
            os.close(self._opened)
            self._opened = -1
        elif self._child is None:
            self._start()
        else:
            return  # it runs already
        self.say(started=time.monotonic_ns())

    def _tell_the_end(self) -> None:
        form = "{{.State.ExitCode}} {{.State.OOMKilled}}"
        done = self._engine("inspect", "--type", "container", "--format", form, self._name)
        code, _, oom = done.stdout.decode(errors="replace").strip().partition(" ")
        child = self._child
        number = int(code) if code.isdigit() else 137 if child is None else child.returncode
        # Podman's monitor leaves a file of this name where it was started, and does not always tell podman.
        told = oom == "true" or os.path.exists(_OOM_FILE)
        self.say(exit=number, oom=told or self._memory.reached)

    def leave(self) -> None:
        """Leave nothing behind when nobody is there who would."""
        if not self._deserted:
            with contextlib.suppress(OSError):
                self._deserted = select.select([self._control], [], [], 0)[0] != [] and not self._control.recv(1)
        if self._deserted:
            for command in self._header["remove"]:
                self._engine(*command)


def main() -> None:
    """Run one attempt."""
    control, launch = (int(argument) for argument in sys.argv[1:3])
    with socket.socket(fileno=control) as talk:
        companion = _Companion(talk, launch)
        try:
            companion.prepare()
        except (_Refused, OSError, ValueError, KeyError) as error:
            companion.say(error=str(error))
            companion.leave()
            return
        companion.say(ready=True)
        try:
            companion.follow()
        finally:
            companion.leave()


if __name__ == "__main__":
    main()
