"""Running attempts: their logs, their control sockets, their ends; one thread for a whole group.

Decided here and only here: when an attempt counts as ended (every process gone, every line logged), how output
becomes lines, and how a group is prepared all or nothing, whatever isolates its tasks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import BinaryIO

from casstore.errors import ConflictError, NotFoundError, ServiceError, UsageError
from casstore_orchestrator.executors.entering import Entered, Programs
from casstore_orchestrator.executors.loop import Loop
from casstore_orchestrator.executors.storage import Limit, StorageWatch
from casstore_orchestrator.ports import Gang, LogSink, RunningTask, TaskLaunch
from casstore_orchestrator.units import format_quantity

__all__ = ["Attempt", "Loop", "ProcessGang", "close_all", "open_channel"]

MAX_LINE = 64 * 1024
_READ_SIZE = 64 * 1024
_KILLED = 128 + signal.SIGKILL
# An orphan that escaped from an unsandboxed task can keep its output open for ever; nobody waits longer than this.
_LOG_LINGER_SECONDS = 5.0
_PREPARE_SECONDS = 120.0
_CONNECT_SECONDS = 10.0
OUT_OF_MEMORY = "The task reached its memory limit."
_log = logging.getLogger(__name__)


class Attempt(RunningTask):
    """One attempt of one task. Made with its descriptors; the loop owns them from then on."""

    def __init__(self, loop: Loop, launch: TaskLaunch, log: LogSink, output: int, control: socket.socket) -> None:
        self.launch = launch
        self.started_ns: int | None = None
        self._loop = loop
        self._log = log
        self._output = output
        self._control = control
        self._control_lock = threading.Lock()
        self._heard = b""
        self._partial = bytearray()
        self._setup_lines: deque[bytes] = deque(maxlen=20)
        self._error: str | None = None
        self._ready = threading.Event()
        self._prepared = False
        self._done = threading.Event()
        self._gone = False
        self._reported: int | None = None
        self._code: int | None = None
        self._evicted = ""
        self._kill_hard: Callable[[], None] = self.order_kill
        self._on_control_end: Callable[[], None] = lambda: None
        self._open_socket: Callable[[int, int], socket.socket] = self._no_socket
        self._seen_path: Callable[[str], str] = lambda path: path
        self._programs = Programs(launch.name, self._hand_over)
        os.set_blocking(output, False)

    def attach(
        self,
        *,
        kill_hard: Callable[[], None],
        on_control_end: Callable[[], None],
        open_socket: Callable[[int, int], socket.socket] | None = None,
        seen_path: Callable[[str], str] | None = None,
    ) -> None:
        """Say how its whole tree is ended, what to do when its first process lets go of the control socket, how a
        socket (family, kind) is made in its network, and where it finds what is at a path in a sandbox.
        """
        self._kill_hard = kill_hard
        self._on_control_end = on_control_end
        self._open_socket = open_socket or self._open_socket
        self._seen_path = seen_path or self._seen_path
        self._loop.call(self._begin)

    def _begin(self) -> None:
        self._loop.watch(self._output, self._read_output)
        self._loop.watch(self._control.fileno(), self._read_control)

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def evicted(self) -> str:
        return self._evicted

    def poll(self) -> int | None:
        return self._code if self._done.is_set() else None

    def wait(self, timeout: float | None = None) -> int | None:
        self._done.wait(timeout)
        return self.poll()

    def kill(self, grace: float = 0.0) -> None:
        def begin() -> None:
            if self._done.is_set():
                return
            if grace > 0 and self.started_ns is not None:
                self._order(b"t")
                self._loop.call_later(grace, self._kill_if_running)
            else:
                self._kill_hard()

        self._loop.call(begin)

    def _kill_if_running(self) -> None:
        if not self._done.is_set():
            self._kill_hard()

    def go(self) -> None:
        """Let the command start; from any thread, without waiting for the loop: a group starts as one."""
        self._order(b"g")

    def order_kill(self) -> None:
        """Ask the first process to end the tree."""
        self._order(b"k")

    def _order(self, what: bytes) -> None:
        with self._control_lock, contextlib.suppress(OSError):  # it has ended
            self._control.send(what)

    def _hand_over(self, fds: Sequence[int]) -> None:
        with self._control_lock, contextlib.suppress(OSError):  # it has ended
            socket.send_fds(self._control, [b"e"], fds)

    def enter(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        as_user: bool = False,
    ) -> Entered:
        """Run a program beside the task's command: where it runs, as it runs, until the task ends.

        Its environment is the command's and ``environment``. ``terminal`` (rows, columns) gives it a terminal of its
        own, else it has three pipes. ``as_user``: not as the number 0, where that is possible. Raises ``ConflictError``
        when the command does not run, ``ServiceError``.
        """
        self.check_running()
        return self._programs.enter(argv, environment or {}, terminal, as_user=as_user)

    def hang_up(self, entered: Entered) -> None:
        """Tell a program that nobody is at its other side any more; it may go on, but not beyond its task."""
        self._programs.hang_up(entered)

    def connect(self, port: int, *, udp: bool = False) -> socket.socket:
        """A socket connected to a port of the task's own (loopback) addresses. Raises as ``enter``, and
        ``NotFoundError`` when nothing listens there (which for UDP is not known).
        """
        self.check_running()
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            made = self._open_socket(family, kind)
            try:
                made.settimeout(_CONNECT_SECONDS)
                made.connect((address, port))
            except OSError:
                made.close()
                continue
            return made
        raise NotFoundError(f"nothing listens on port {port} of task {self.name}")

    def seen_path(self, path: str) -> str:
        """Where the task finds what is at ``path`` in a sandbox."""
        return self._seen_path(path)

    def check_running(self) -> None:
        """Raise ``ConflictError`` unless the command runs."""
        if self._gone or self._reported is not None:
            raise ConflictError(f"task {self.name} has ended")
        if self.started_ns is None:
            raise ConflictError(f"the command of task {self.name} has not been started")

    def _no_socket(self, family: int, kind: int) -> socket.socket:
        del family, kind
        raise ServiceError(f"the ports of task {self.name} can't be reached with this executor")

    def wait_ready(self, deadline: float) -> None:
        """Wait until everything is in place; raises ``ServiceError`` when it can't be."""
        if not self._ready.wait(max(0.0, deadline - time.monotonic())):
            raise ServiceError(f"task {self.name} was not prepared within {_PREPARE_SECONDS:.0f} seconds")
        if self._error is not None:
            raise ServiceError(f"task {self.name} can't be prepared: {self._error}")

    def fail(self, reason: str) -> None:
        """In the loop: it can't be prepared."""
        if not self._ready.is_set():
            self._error = reason
            self._ready.set()

    def evict(self, reason: str) -> None:
        """End the attempt because it reached a limit; from any thread."""

        def begin() -> None:
            if not self._done.is_set():
                self._evicted = self._evicted or reason
                self.note(reason)
                self._kill_hard()

        self._loop.call(begin)

    def mark_gone(self, *, oom: bool = False) -> None:
        """In the loop: every process of the attempt has ended."""
        self._gone = True
        if oom:
            self._evicted = self._evicted or OUT_OF_MEMORY
        self._loop.call_later(_LOG_LINGER_SECONDS, self._close_output)
        self._finish_if_over()

    def _read_output(self) -> None:
        try:
            data = os.read(self._output, _READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._close_output()
            return
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            lines = bytes(self._partial) + whole
            while len(lines) > MAX_LINE and lines.find(b"\n", 0, MAX_LINE + 1) < 0:  # only the first can be so long
                self._emit(lines[:MAX_LINE])
                lines = lines[MAX_LINE:]
            self._emit(lines)
            self._partial = bytearray(rest)
        else:
            self._partial += rest
        while len(self._partial) >= MAX_LINE:
            self._emit(bytes(self._partial[:MAX_LINE]))
            del self._partial[:MAX_LINE]

    def _emit(self, lines: bytes) -> None:
        if self._prepared:
            self._to_sink(lines)
        else:  # before the command runs only the isolation itself can complain
            self._setup_lines.extend(lines.split(b"\n"))

    def _to_sink(self, lines: bytes, source: str = "") -> None:
        try:
            self._log.write(self.name, lines, source=source)
        except Exception:  # noqa: BLE001  a sink must not raise; if it does, the task goes on
            _log.exception("log lines of task %s were lost", self.name)

    def note(self, text: str) -> None:
        """A line of our own in the task's log."""
        self._to_sink(text.encode(errors="surrogateescape"), source="osmo")

    def _close_output(self) -> None:
        if self._output < 0:
            return
        if self._partial:
            self._emit(bytes(self._partial))
            self._partial.clear()
        self._loop.unwatch(self._output)
        os.close(self._output)
        self._output = -1
        self._finish_if_over()

    def _read_control(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _READ_SIZE, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._programs.take(fds)
        if not data:
            self._loop.unwatch(self._control.fileno())
            with self._control_lock:
                self._control.close()
            self._programs.end()
            self._on_control_end()
            self._finish_if_over()
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, message: Mapping[str, object]) -> None:
        if "entered" in message:
            self._programs.hear(message)
        elif "ready" in message:
            self._prepared = True
            self._ready.set()
        elif "error" in message:
            self.fail(str(message["error"]))
        elif "started" in message:
            self.started_ns = int(str(message["started"]))
        elif "note" in message:
            self.note(str(message["note"]))
        elif "exit" in message:
            self._reported = int(str(message["exit"]))
            if message.get("oom") is True:
                self._evicted = self._evicted or OUT_OF_MEMORY

    def _finish_if_over(self) -> None:
        if self._done.is_set() or not self._gone or self._output >= 0 or self._control.fileno() >= 0:
            return
        said = b"; ".join(self._setup_lines).decode(errors="replace")
        self.fail(said or "it ended before it was ready")
        self._code = _KILLED if self._reported is None else self._reported
        if self._evicted and self._code == 0:
            self.note("A process of the task was ended at the memory limit; the command went on without it")
            self._evicted = ""
        self._done.set()


class ProcessGang(Gang, ABC):
    """The tasks of one group, prepared all or none. Subclasses say how one attempt comes into being."""

    def __init__(self, group_key: str, log: LogSink) -> None:
        self._loop = Loop(f"group {group_key}")
        self._log = log
        self._tasks: dict[str, Attempt] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._storage = StorageWatch(f"storage {group_key}", self._storage_limits)

    @property
    def tasks(self) -> Mapping[str, Attempt]:
        return dict(self._tasks)

    @abstractmethod
    def _spawn(self, launch: TaskLaunch) -> Attempt:
        """Begin to prepare one attempt; its ``wait_ready`` tells how it went. Raises ``CasstoreError``."""

    @abstractmethod
    def _open(self) -> None:
        """Prepare what the tasks share. Raises ``ServiceError``."""

    @abstractmethod
    def _tear_down(self) -> None:
        """End everything that still runs, and wait until it has ended; the loop still runs."""

    @abstractmethod
    def _introduce(self, attempt: Attempt) -> None:
        """Tell in the task's log which isolation it has."""

    def prepare(self, launches: Sequence[TaskLaunch]) -> None:
        """Prepare all tasks, or none: on an error nothing is left behind."""
        self._loop.start()
        try:
            self._open()
            deadline = time.monotonic() + _PREPARE_SECONDS
            for launch in launches:
                self._tasks[launch.name] = self._spawn(launch)
            for attempt in self._tasks.values():
                attempt.wait_ready(deadline)
        except OSError as error:
            self.close()
            raise ServiceError(f"the group can't be prepared: {error}") from error
        except BaseException:
            self.close()
            raise
        for attempt in self._tasks.values():
            self._introduce(attempt)
        if any(launch.storage for launch in launches):
            self._storage.start()

    def _storage_limits(self) -> dict[object, Limit]:
        limits: dict[object, Limit] = {}
        for attempt in list(self._tasks.values()):
            launch = attempt.launch
            if launch.storage and attempt.poll() is None:
                limits[attempt] = Limit(launch.home, launch.storage, partial(_too_much, attempt))
        return limits

    def release(self) -> None:
        """Start every command that has not been started."""
        for attempt in self._tasks.values():
            attempt.go()

    def release_task(self, name: str) -> None:
        """Start one command."""
        if name not in self._tasks:
            raise NotFoundError(f"there is no task {name} in this group")
        self._tasks[name].go()

    def restart(self, launch: TaskLaunch) -> Attempt:
        """End the task's running attempt and prepare a new one, blocked until released."""
        with self._lock:
            if self._closed:
                raise ConflictError(f"task {launch.name} can't be restarted: its group has ended")
            if launch.name not in self._tasks:
                raise UsageError(f"there is no task {launch.name} in this group to restart")
            old = self._tasks[launch.name]
            old.kill()
            old.wait()
            attempt = self._spawn(launch)
            try:
                attempt.wait_ready(time.monotonic() + _PREPARE_SECONDS)
            except BaseException:
                attempt.kill()
                attempt.wait()
                raise
            self._tasks[launch.name] = attempt
            self._introduce(attempt)
            return attempt

    def close(self) -> None:
        """End everything; idempotent. Every attempt has its exit code afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._storage.stop()
        for attempt in self._tasks.values():
            attempt.kill()
        self._tear_down()
        for attempt in self._tasks.values():
            attempt.wait()
        self._loop.stop()


def _too_much(attempt: Attempt, used: int) -> None:
    most = format_quantity(attempt.launch.storage)
    attempt.evict(f"The task used more storage than its limit of {most}: {format_quantity(used)} or more.")


def open_channel() -> tuple[tuple[int, int], tuple[socket.socket, socket.socket]]:
    """The pipe of an attempt's output (ours, its) and its control sockets (ours, its); none is inheritable."""
    output = os.pipe()
    try:
        control = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        os.close(output[0])
        os.close(output[1])
        raise
    control[0].setblocking(False)
    return output, control


def close_all(*descriptors: int | socket.socket | BinaryIO) -> None:
    """Close our copies of what a child has been given."""
    for descriptor in descriptors:
        if isinstance(descriptor, int):
            os.close(descriptor)
        else:
            descriptor.close()
