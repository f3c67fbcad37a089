"""Interactive connections to the tasks of a running group.

Decided here and only here: what can be asked for by the first line of a connection, what is answered, and which folders
of a task the ``rsync`` program serves. The line is a JSON object: ``attach`` is

* ``exec``: run ``argv`` beside the task's command, with a terminal of ``terminal`` (rows, columns) and kind ``term``,
  or with three pipes;
* ``tcp``: connect to ``port`` of the task;
* ``udp``: send datagrams to ``port`` of the task; a ``DATA`` frame is the sender's IPv4 address and port (6 bytes) and
  the datagram;
* ``rsync``: speak to an rsync daemon in the task;
* ``watch``: nothing, until the task ends, which ends the connection.

``task`` names the task, ``retry_id`` its attempt (the newest when it is missing). The answer is a line too, ``{"ok":
true}`` or ``{"error": ..., "hint": ..., "kind": ...}``; frames follow (see ``frames``).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import msgspec

from casstore.errors import CasstoreError, ServiceError, UsageError
from casstore.structs import convert
from casstore_orchestrator.agent.pump import Program, exchange_datagrams, exchange_program, exchange_stream, watch
from casstore_orchestrator.ports import RunningTask

__all__ = ["MODULES", "Access", "Enterable", "Request", "serve"]

MODULES: Mapping[str, tuple[str, bool]] = {
    "osmo": ("/osmo/run/workspace", True),
    "output": ("/osmo/data/output", True),
    "input": ("/osmo/data/input", False),
}
"""The rsync modules of a task: (folder, whether it can be written). The first is OSMO's."""

_Number = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    attach: Literal["exec", "tcp", "udp", "rsync", "watch"]
    task: str
    retry_id: int | None = None
    argv: tuple[str, ...] = ()
    terminal: tuple[_Number, _Number] | None = None
    term: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.+_-]{1,64}$")] = "xterm"
    port: _Number = 0


class Access(Protocol):
    """What an interactive connection may reach; safe to use from any thread."""

    def task(self, name: str, retry_id: int | None = None) -> RunningTask:
        """The newest run of a task of this group.

        ``NotFoundError`` for a task of another group, ``ConflictError`` when it does not run now, or that attempt is
        over.
        """

    def note(self, task: str, text: str) -> None:
        """A line of our own in the log of the task's newest attempt (``[task][osmo] text``)."""


class Entered(Program, Protocol):
    """A program in a task: ``executors.entering.Entered``."""

    def close(self) -> None: ...


@runtime_checkable
class Enterable(Protocol):
    """A running task that can be entered: ``executors.running.Attempt``, which says what these mean."""

    def enter(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        as_user: bool = False,
    ) -> Entered: ...

    def hang_up(self, entered: Entered) -> None: ...

    def connect(self, port: int, *, udp: bool = False) -> socket.socket: ...

    def seen_path(self, path: str) -> str: ...

    def check_running(self) -> None: ...

    def poll(self) -> int | None: ...


def serve(connection: socket.socket, header: Mapping[str, object], access: Access) -> None:
    """Serve one connection, in a thread of its own, until it is over. The caller closes the connection.

    ``header`` is the JSON object of the first line, with ``attach`` in it: untrusted. No byte after that line has been
    read.
    """
    try:
        request = _parse(header)
        task = access.task(request.task, request.retry_id)
        if not isinstance(task, Enterable):
            raise ServiceError(f"task {request.task} runs where it can't be entered")
        if request.attach == "tcp":
            with task.connect(request.port) as made:
                _say(connection, {"ok": True})
                exchange_stream(connection, made)
        elif request.attach == "udp":
            with task.connect(request.port, udp=True):
                _say(connection, {"ok": True})
            exchange_datagrams(connection, lambda: task.connect(request.port, udp=True), lambda: task.poll() is None)
        elif request.attach == "watch":
            task.check_running()
            _say(connection, {"ok": True})
            watch(connection, lambda: task.poll() is None)
        else:
            _run(connection, request, task)
    except CasstoreError as error:
        _say(connection, {"error": error.message, "hint": error.hint, "kind": str(error.kind)})


def _parse(header: Mapping[str, object]) -> Request:
    try:
        request = convert(header, Request)
    except msgspec.ValidationError as error:
        raise UsageError(f"the request can't be understood: {error}") from None
    if request.attach == "exec" and (not request.argv or not request.argv[0] or any("\0" in a for a in request.argv)):
        raise UsageError("there is no program to run")
    if request.attach in {"tcp", "udp"} and request.port == 0:
        raise UsageError("0 is not a port")
    return request


def _say(connection: socket.socket, line: Mapping[str, object]) -> None:
    connection.setblocking(True)
    connection.sendall(json.dumps(line).encode() + b"\n")


def _run(connection: socket.socket, request: Request, task: Enterable) -> None:
    if request.attach == "rsync":
        entered = task.enter(_rsync(task), as_user=True)
    elif request.terminal is None:
        entered = task.enter(request.argv)
    else:
        entered = task.enter(request.argv, environment={"TERM": request.term}, terminal=request.terminal)
    try:
        _say(connection, {"ok": True})
        if not exchange_program(connection, entered):
            task.hang_up(entered)
    finally:
        entered.close()


def _rsync(task: Enterable) -> list[str]:
    """The command line of an rsync daemon that speaks to its standard input and output, for one connection.

    It serves the task's folders with the task's rights, so it changes nothing about users or roots. Links are kept as
    links (rsync itself takes the first slash off absolute ones).
    """
    lines = ["use chroot = no", "munge symlinks = no", "numeric ids = yes", "reverse lookup = no", "max verbosity = 4"]
    for name, (folder, writable) in MODULES.items():
        lines += [f"[{name}]", f"path = {task.seen_path(folder)}", f"read only = {'no' if writable else 'yes'}"]
        lines += [f"comment = {folder}", "list = yes"]
    config = "\n".join(lines)
    # With root's number, rsync becomes another user, unless it is told to stay; where it is told, it sets its groups.
    script = """
      if [ "$(id -u)" = 0 ]; then own="uid = 0
gid = 0"; else own=; fi
      command -v rsync > /dev/null || { echo "@ERROR: rsync is not installed where the task runs"; exit 127; }
      exec rsync --server --daemon --config=/dev/fd/9 . 9<<END
$own
$1
END
"""
    return ["sh", "-c", script, "rsync", config]
