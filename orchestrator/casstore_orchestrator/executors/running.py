"""Running attempts: their logs, their control sockets, their ends; one thread for a whole group.

Decided here and only here: when an attempt counts as ended (every process gone, every line logged), how output
becomes lines, and how a group is prepared all or nothing, whatever isolates its tasks.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import logging
import os
import selectors
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from casstore.errors import ConflictError, NotFoundError, ServiceError, UsageError
from casstore_orchestrator.ports import Gang, LogSink, RunningTask, TaskLaunch

__all__ = ["Attempt", "Loop", "ProcessGang", "close_all", "open_channel"]

MAX_LINE = 64 * 1024
_READ_SIZE = 64 * 1024
_KILLED = 128 + signal.SIGKILL
# An orphan that escaped from an unsandboxed task can keep its output open for ever; nobody waits longer than this.
_LOG_LINGER_SECONDS = 5.0
_PREPARE_SECONDS = 120.0
_log = logging.getLogger(__name__)


class Loop(threading.Thread):
    """Callbacks for descriptors and times, all run in this one thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._selector = selectors.DefaultSelector()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain)
        self._stopped = False
        self._closed = threading.Lock()

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the loop's thread, soon; dropped when the loop has stopped."""
        self._calls.append(function)
        with self._closed, contextlib.suppress(BlockingIOError):
            if self._wake_write >= 0:
                os.write(self._wake_write, b"w")

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Only from the loop's thread."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), function))

    def watch(self, fd: int, function: Callable[[], None]) -> None:
        """Only from the loop's thread: call ``function`` whenever ``fd`` can be read."""
        self._selector.register(fd, selectors.EVENT_READ, function)

    def unwatch(self, fd: int) -> None:
        """Only from the loop's thread."""
        self._selector.unregister(fd)

    def stop(self) -> None:
        """End the loop and wait for it."""

        def halt() -> None:
            self._stopped = True

        self.call(halt)
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def run(self) -> None:
        try:
            while not self._stopped:
                timeout = None
                if self._timers:
                    timeout = max(0.0, self._timers[0][0] - time.monotonic())
                for key, _ in self._selector.select(timeout):
                    self._guard(key.data)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._guard(heapq.heappop(self._timers)[2])
                while self._calls:
                    self._guard(self._calls.popleft())
        finally:
            self._selector.close()
            with self._closed:
                os.close(self._wake_read)
                os.close(self._wake_write)
                self._wake_write = -1

    @staticmethod
    def _guard(function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:  # noqa: BLE001  one damaged event must not stop the logs of a whole group
            _log.exception("an event of a running group could not be handled")


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
        self._oom = False
        self._kill_hard: Callable[[], None] = self.order_kill
        self._on_control_end: Callable[[], None] = lambda: None
        os.set_blocking(output, False)

    def attach(self, *, kill_hard: Callable[[], None], on_control_end: Callable[[], None]) -> None:
        """Say how its whole tree is ended, and what to do when its first process lets go of the control socket."""
        self._kill_hard = kill_hard
        self._on_control_end = on_control_end
        self._loop.call(self._begin)

    def _begin(self) -> None:
        self._loop.watch(self._output, self._read_output)
        self._loop.watch(self._control.fileno(), self._read_control)

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def oom(self) -> bool:
        return self._oom

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

    def mark_gone(self, *, oom: bool = False) -> None:
        """In the loop: every process of the attempt has ended."""
        self._gone = True
        self._oom = oom
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
        lines = (bytes(self._partial) + data).split(b"\n")
        self._partial = bytearray(lines.pop())
        for line in lines:
            self._emit(line)
        while len(self._partial) >= MAX_LINE:
            self._emit(bytes(self._partial[:MAX_LINE]))
            del self._partial[:MAX_LINE]

    def _emit(self, line: bytes) -> None:
        if not self._prepared:
            self._setup_lines.append(line)  # before the command runs only the isolation itself can complain
            return
        for start in range(0, max(1, len(line)), MAX_LINE):
            self._to_sink(line[start : start + MAX_LINE])

    def _to_sink(self, line: bytes, source: str = "") -> None:
        try:
            self._log.line(self.name, line, source=source)
        except Exception:  # noqa: BLE001  a sink must not raise; if it does, the task goes on
            _log.exception("a log line of task %s was lost", self.name)

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
            data = self._control.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.unwatch(self._control.fileno())
            with self._control_lock:
                self._control.close()
            self._on_control_end()
            self._finish_if_over()
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, message: Mapping[str, object]) -> None:
        if "ready" in message:
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

    def _finish_if_over(self) -> None:
        if self._done.is_set() or not self._gone or self._output >= 0 or self._control.fileno() >= 0:
            return
        said = b"; ".join(self._setup_lines).decode(errors="replace")
        self.fail(said or "it ended before it was ready")
        self._code = _KILLED if self._reported is None else self._reported
        if self._oom and self._code == 0:
            self.note("A process of the task was ended at the memory limit; the command went on without it")
        self._oom = self._oom and self._code != 0
        self._done.set()


class ProcessGang(Gang, ABC):
    """The tasks of one group, prepared all or none. Subclasses say how one attempt comes into being."""

    def __init__(self, group_key: str, log: LogSink) -> None:
        self._loop = Loop(f"group {group_key}")
        self._log = log
        self._tasks: dict[str, Attempt] = {}
        self._lock = threading.Lock()
        self._closed = False

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
        for attempt in self._tasks.values():
            attempt.kill()
        self._tear_down()
        for attempt in self._tasks.values():
            attempt.wait()
        self._loop.stop()


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
