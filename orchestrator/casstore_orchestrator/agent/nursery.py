"""The process from which agents are forked: everything is imported and tried out before it is needed.

Decided here and only here: how a server asks it for an agent, and that it ends with its server while its agents do not.
It has one thread, so that a fork is safe, and shares what it loaded with all agents: one takes milliseconds to begin,
and little memory of its own. A request is a line with the name of a run, the answer one with the number of the process.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from casstore.errors import CasstoreError, ServiceError
from casstore.structs import settle
from casstore_orchestrator.agent.folder import RunFolder, Runs

__all__ = ["Nursery", "raise_agents"]

_log = logging.getLogger(__name__)
_ANSWER_SECONDS = 60.0
_END_SECONDS = 10.0
_MAX_NAME = 4096


class Nursery:
    """The server's end. ``command`` is completed by the number of the descriptor that it serves, and of one that
    ``shared`` gives it for its start. Thread-safe.
    """

    def __init__(self, command: Sequence[str], shared: Callable[[], AbstractContextManager[int]]) -> None:
        self._command = tuple(command)
        self._shared = shared
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    def warm(self) -> None:
        """Start it, if it does not run; does not wait until it is ready."""
        with self._lock, contextlib.suppress(ServiceError):
            self._begin()

    def begin(self, name: str) -> int:
        """Start the agent of a run; gives its process. ``ServiceError`` when that can't be."""
        with self._lock:
            for _ in range(2):  # the first one may have been killed meanwhile
                found = self._begin()
                try:
                    found.sendall(name.encode() + b"\n")
                    answer = _line(found)
                    if answer:
                        return int(answer)
                except (OSError, ValueError) as error:
                    _log.warning("the process that starts agents failed: %s", error)
                self._end()
        raise ServiceError("the process that starts agents ends at once", hint="See the log of the server.")

    def close(self) -> None:
        """End it; idempotent. Agents go on."""
        self._closed = True
        waited_for = self._socket
        if waited_for is not None:
            with contextlib.suppress(OSError):  # whoever waits for an answer waits no longer
                waited_for.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._end()

    def _begin(self) -> socket.socket:
        if self._closed:
            raise ServiceError("the server is stopping")
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._end()
        ours, theirs = socket.socketpair()
        with theirs, self._shared() as shared:
            try:
                # Not of our session: the terminal's Ctrl-C is for us alone.
                self._process = subprocess.Popen(
                    [*self._command, str(theirs.fileno()), str(shared)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), shared),
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise ServiceError(f"the process that starts agents can't be started: {error.strerror}") from error
        ours.settimeout(_ANSWER_SECONDS)
        self._socket = ours
        return ours

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(_MAX_NAME)
        if not part or len(line) > _MAX_NAME:
            return b""
        line += part
    return line


def raise_agents(descriptor: int, runs: Runs, warm: Callable[[], None], run: Callable[[RunFolder], int]) -> int:
    """Serve the other end until the server is gone. ``run`` is what an agent does, in a process of its own.

    ``warm`` is called before the first request. The process must have no other thread.
    """
    os.umask(0o077)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    warm()
    settle()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets agents that have ended
    gc.collect()
    gc.freeze()  # what all agents share is not written to
    with control, control.makefile("rb") as requests:
        while name := requests.readline(_MAX_NAME):
            folder = runs.named(name.decode("ascii").strip())
            child = os.fork()
            if child == 0:
                os._exit(_become_agent(control, folder, run))
            control.sendall(b"%d\n" % child)
    return 0


def _become_agent(control: socket.socket, folder: RunFolder, run: Callable[[RunFolder], int]) -> int:
    """In the child: let go of everything that is the server's, and run."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(control.detach())
        os.setsid()
        log = folder.open_log()
        os.dup2(log, 2)
        os.close(log)
        handler = _Bounded(folder)
        logging.root.handlers[:] = [handler]
        logging.root.setLevel(logging.WARNING)
        return run(folder)
    except CasstoreError as error:
        _log.error("%s", error.message)
    except Exception:  # noqa: BLE001 - nobody else could tell
        _log.exception("the agent failed")
    return 1


class _Bounded(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error, which is the log of a run, until that is long enough."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self._folder = folder
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless there are enough."""
        if not self._folder.log_full():
            super().emit(record)
