"""The first process of a task: puts its files in place, waits for the start, runs the command, ends its whole tree.

Decided here and only here: what happens inside a task before and after the command, and the exit codes. This file is
run as a script, by a bare interpreter inside the sandbox: standard library only, and no imports of ours.

Arguments: the descriptor of the control socket and that of the launch. The launch is an 8-byte length, that many bytes
of JSON (``argv``, ``environment``, ``cwd``, ``files``: path, mode, size) and the bodies of the files. On the socket,
commands are single bytes: ``g`` go, ``t`` terminate, ``k`` kill; its end means kill. Replies are lines of JSON:
``ready``, ``error``, ``started`` (monotonic ns), ``note`` (a line for the log), ``exit``.

``e`` comes with descriptors: a request in the form of a launch (``op``: ``enter`` or ``hangup``, ``id``), and for a
program without a terminal its three streams. The program runs beside the command, as a child of this process: so it
has the same namespaces, user, limits, environment and folder, and ends with the task. Replies name it as ``entered``:
``running`` (with the terminal's other side as a descriptor), ``error``, ``exit``.

As process 1 of its namespace its own end takes every other process with it. Without a namespace it is a subreaper and
hunts its descendants down.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time

_DEFAULTED = ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD")
_CLONE_NEWUSER = 0x10000000


class _Refused(Exception):  # noqa: N818  the message is for the user; nothing here is an error of ours
    """The task can't be prepared."""


def _read_launch(fd: int) -> tuple[dict[str, object], memoryview]:
    with open(fd, "rb", buffering=0) as stream:
        stream.seek(0)
        data = stream.readall()
    length = int.from_bytes(data[:8], "big")
    return json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]


def _place(path: str, mode: int, body: memoryview) -> None:
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as stream:
            stream.write(body)
            os.fchmod(fd, mode)
    except OSError as error:
        raise _Refused(f"can't put the file {path} in place: {error.strerror}") from error


def _search(command: str, path: str) -> list[str]:
    if "/" in command:
        return [command]
    return [os.path.join(folder or ".", command) for folder in path.split(":")]


def _execute(argv: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Become the command; returns only on failure, with exit code and reason."""
    code, reason = 127, f"command not found: {argv[0]}"
    for candidate in _search(argv[0], environment.get("PATH", os.defpath)):
        try:
            os.execve(candidate, argv, environment)  # noqa: S606  the user's command, by definition
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                if os.path.exists(candidate):
                    return 127, f"{candidate} can't be run: the interpreter named in its first line does not exist"
            elif error.errno == errno.ENOEXEC:
                with contextlib.suppress(OSError):
                    os.execve("/bin/sh", ["/bin/sh", candidate, *argv[1:]], environment)  # noqa: S606  as a shell would
                return 126, f"{candidate} is not a program for this machine"
            elif error.errno == errno.E2BIG:
                return 126, "arguments and environment are too long for this system: put large data into files"
            else:
                code, reason = 126, f"{candidate} can't be run: {error.strerror}"
    return code, reason


class _Init:
    def __init__(self, control: socket.socket, launch: int) -> None:
        self._control = control
        self._launch = launch
        self._alone = os.getpid() == 1
        self._command = 0
        self._argv: list[str] = []
        self._environment: dict[str, str] = {}
        self._cwd = "/"
        self._entered: dict[int, int] = {}  # process -> id of the request

    def say(self, **what: object) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(what).encode() + b"\n")

    def prepare(self) -> None:
        header, bodies = _read_launch(self._launch)
        argv, environment, files = header["argv"], header["environment"], header["files"]
        if not isinstance(argv, list) or not isinstance(environment, dict) or not isinstance(files, list):
            raise _Refused("the launch is damaged")
        self._argv, self._environment, self._cwd = argv, environment, str(header["cwd"])
        offset = 0
        for path, mode, size in files:
            _place(path, mode, bodies[offset : offset + size])
            offset += size

    def start(self) -> None:
        """Fork the command. A failed exec is reported through a pipe that a successful one closes."""
        reading, writing = os.pipe()
        started = time.monotonic_ns()
        child = os.fork()
        if child == 0:
            self._become_command(writing)
        self._command = child
        os.close(writing)
        self.say(started=started)
        with open(reading, "rb") as stream:
            failure = stream.read()
        if failure:
            self.say(note=failure.decode(errors="replace"))

    def _become_command(self, writing: int) -> None:
        code = 126
        try:
            self._detach()
            os.chdir(self._cwd)
            code, reason = _execute(self._argv, self._environment)
        except Exception as error:  # noqa: BLE001  whatever it is must be told before this child ends
            reason = f"the command can't be started: {error}"
        os.write(writing, reason.encode(errors="replace"))
        os._exit(code)

    @staticmethod
    def _detach() -> None:
        """In a child: a session of its own, and nothing of how this process treats signals."""
        os.setsid()
        for name in _DEFAULTED:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
            stream.write("500")  # when memory runs out the command goes first, not what looks after it

    def obey(self, fds: list[int]) -> None:
        """Carry out a request that came with descriptors; all of them are closed."""
        number = 0
        try:
            header, _ = _read_launch(fds.pop(0))
            number = int(str(header["id"]))
            if header["op"] == "hangup":
                self._hang_up(number)
            else:
                self._enter(number, header, fds)
        except Exception as error:  # noqa: BLE001  whatever it is, only this request fails
            self.say(entered=number, error=str(error))
        finally:
            for fd in fds:
                os.close(fd)

    def _enter(self, number: int, header: dict[str, object], fds: list[int]) -> None:
        if not self._command:
            raise _Refused("its command has not been started")
        size, master = header.get("terminal"), -1
        if isinstance(size, list):
            master, slave = os.openpty()
            fds.append(slave)
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        try:
            child = os.fork()
            if child == 0:
                self._become_entered(header, fds, terminal=master >= 0)
            self._entered[child] = number
            if master >= 0:
                said = json.dumps({"entered": number, "running": True}).encode() + b"\n"
                with contextlib.suppress(OSError):
                    socket.send_fds(self._control, [said], [master])
            else:
                self.say(entered=number, running=True)
        finally:
            if master >= 0:
                os.close(master)

    def _become_entered(self, header: dict[str, object], fds: list[int], *, terminal: bool) -> None:
        code, reason = 126, ""
        try:
            self._detach()
            if terminal:
                fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
            for target, source in enumerate(fds * 3 if terminal else fds):
                os.dup2(source, target)
            argv, extra = header["argv"], header["environment"]
            if not isinstance(argv, list) or not isinstance(extra, dict):
                raise _Refused("the request is damaged")
            if header.get("as_user"):
                _stop_being_root()
            os.chdir(self._cwd)
            code, reason = _execute(argv, {**self._environment, **extra})
        except Exception as error:  # noqa: BLE001  whatever it is must be told before this child ends
            reason = f"it can't be started: {error}"
        with contextlib.suppress(OSError):
            os.write(2, f"{reason}\r\n".encode(errors="replace"))
        os._exit(code)

    def _hang_up(self, number: int) -> None:
        for child, entered in self._entered.items():
            if entered == number:
                for what in (signal.SIGHUP, signal.SIGCONT):
                    with contextlib.suppress(OSError):
                        os.killpg(child, what)

    def reap(self) -> int | None:
        """Collect ended processes; the exit code of the command when it is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            code = os.waitstatus_to_exitcode(status)
            code = code if code >= 0 else 128 - code
            if pid in self._entered:
                self.say(entered=self._entered.pop(pid), exit=code)
            if pid == self._command:
                return code

    def run(self) -> int:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watched: list[int | socket.socket] = [self._control, reading]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if reading in ready:
                os.read(reading, 4096)
                if (code := self.reap()) is not None:
                    return code
            if self._control in ready:
                orders, fds, _, _ = socket.recv_fds(self._control, 64, 4, socket.MSG_CMSG_CLOEXEC)
                if fds:
                    self.obey(fds)
                if not orders or b"k" in orders or (b"t" in orders and not self._command):
                    return 128 + signal.SIGKILL
                if b"g" in orders and not self._command:
                    self.start()
                if b"t" in orders:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._command, signal.SIGTERM)

    def end_tree(self) -> None:
        """Kill every descendant. As process 1 there is nothing to do: the kernel does it when we exit."""
        if self._alone:
            return
        signal.set_wakeup_fd(-1)
        if self._command:
            with contextlib.suppress(OSError):
                os.killpg(self._command, signal.SIGKILL)
        while True:
            for pid in _descendants():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.01)


def _descendants() -> list[int]:
    """Our descendants, by the parents named in /proc; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as stream:
                    parent = int(stream.read().rpartition(b")")[2].split()[1])
                    children.setdefault(parent, []).append(int(name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _stop_being_root() -> None:
    """Have another number than 0 for the same user: programs that give up root's rights can't where root is alone."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        alone = lines.read().split()[2:] == ["1"]
    uid, gid = os.geteuid(), os.getegid()
    if not alone or _call("unshare", _CLONE_NEWUSER) != 0:
        return
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as stream:
            stream.write(text)


def _call(name: str, *numbers: int) -> int:
    import ctypes  # noqa: PLC0415  only needed without a namespace, and by few

    return int(getattr(ctypes.CDLL(None), name)(*numbers))


def _become_subreaper() -> None:
    if sys.platform == "linux" and os.getpid() != 1:
        _call("prctl", 36, 1, 0, 0, 0)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    for held in sys.argv[3:]:  # by the end of which others see that we have ended: not for the command
        os.set_inheritable(int(held), False)
    init = _Init(control, int(sys.argv[2]))
    _become_subreaper()
    os.umask(0o022)
    try:
        init.prepare()
    except Exception as error:  # noqa: BLE001  every reason must reach whoever prepares the task
        init.say(error=str(error))
        return
    init.say(ready=True)
    code = init.run()
    init.end_tree()
    init.say(exit=code)


if __name__ == "__main__":
    main()
