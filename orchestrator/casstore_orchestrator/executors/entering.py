"""Programs that run beside a task's command, in its sandbox: what they are told, and how they end.

Decided here and only here: what is believed of a task's first process when it says that such a program runs. It is no
more to be trusted than the task itself: a terminal that it hands over has to be one, or nothing is read from it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from casstore.errors import ConflictError, ServiceError

__all__ = ["Entered", "Programs"]

_ANSWER_SECONDS = 30.0
_PTMX = os.makedev(5, 2)
_KILLED = 128 + signal.SIGKILL
_MAX_HANDED = 8


def _request_file(request: Mapping[str, object]) -> BinaryIO:
    """A request to a task's first process, as an unnamed file in the form of a launch: it may hold secrets."""
    header = json.dumps(request).encode()
    stream: BinaryIO
    if sys.platform == "linux":
        stream = os.fdopen(os.memfd_create("request", os.MFD_CLOEXEC), "w+b")
    else:
        stream = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    stream.write(len(header).to_bytes(8, "big") + header)
    stream.flush()
    return stream


class Entered:
    """One such program. Its descriptors belong to whoever asked for it, until ``close``; none of them blocks.

    ``terminal`` is the near side of its terminal, or -1 when it has three pipes, whose near sides ``stdin``, ``stdout``
    and ``stderr`` are. ``ended`` can be read from (it is at its end) once ``code`` is known.
    """

    def __init__(self, name: str, pipes: Sequence[int] = ()) -> None:
        self.terminal = -1
        self.stdin, self.stdout, self.stderr = pipes or (-1, -1, -1)
        self.code: int | None = None
        self.with_the_task = False
        self._name = name
        self._answered = threading.Event()
        self._error: str | None = None
        self._lock = threading.Lock()
        self.ended, self._alive = os.pipe()
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.set_blocking(fd, False)

    def hear(self, message: Mapping[str, object], fds: list[int]) -> None:
        """Take what the first process says of it; descriptors that are used are taken out of ``fds``."""
        if "running" in message:
            if fds:
                self._take_terminal(fds.pop(0))
            self._answered.set()
        elif "error" in message:
            self._error = str(message["error"])
            self.end(126)
        elif "exit" in message:
            self.end(int(str(message["exit"])))

    def _take_terminal(self, fd: int) -> None:
        found = os.fstat(fd)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _PTMX:
            os.close(fd)
            self._error = "what its first process gave out as a terminal is none"
            return
        os.set_blocking(fd, False)
        self.terminal = fd

    def end(self, code: int = _KILLED, *, with_the_task: bool = False) -> None:
        """It has ended; only the first call counts. ``with_the_task``: because the task did."""
        with self._lock:
            if self.code is None:
                self.code, self.with_the_task = code, with_the_task
                os.close(self._alive)
        self._answered.set()

    def wait_running(self) -> None:
        """Wait until it runs. Raises ``ConflictError`` when the task is not there for it, ``ServiceError``."""
        if not self._answered.wait(_ANSWER_SECONDS):
            raise ServiceError(f"task {self._name} did not answer within {_ANSWER_SECONDS:.0f} seconds")
        if self._error is not None or self.with_the_task:
            raise ConflictError(f"task {self._name} can't be entered: {self._error or 'it has ended'}")

    def close(self) -> None:
        """Let go of it: it reads the end of its input, and a terminal hangs up."""
        for fd in (self.terminal, self.stdin, self.stdout, self.stderr, self.ended):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.terminal = self.stdin = self.stdout = self.stderr = self.ended = -1


class Programs:
    """Those of one attempt. ``hand_over`` sends descriptors to its first process, and raises nothing."""

    def __init__(self, name: str, hand_over: Callable[[Sequence[int]], None]) -> None:
        self._name = name
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._running: dict[int, Entered] | None = {}
        self._numbers = itertools.count(1)
        self._handed: list[int] = []

    def enter(
        self, argv: Sequence[str], environment: Mapping[str, str], terminal: tuple[int, int] | None, *, as_user: bool
    ) -> Entered:
        """Start a program, and wait until it runs; see ``Attempt.enter``."""
        request = {"op": "enter", "argv": list(argv), "environment": dict(environment), "terminal": terminal}
        with contextlib.ExitStack() as stack, contextlib.ExitStack() as kept:
            theirs, ours = [], []
            for reads in () if terminal else (True, False, False):
                mine, its = reversed(os.pipe()) if reads else os.pipe()
                stack.callback(os.close, its)
                kept.callback(os.close, mine)
                theirs.append(its)
                ours.append(mine)
            entered = Entered(self._name, ours)
            kept.pop_all()
            with self._lock:
                number = next(self._numbers)
                if self._running is not None:
                    self._running[number] = entered
                else:
                    entered.end(with_the_task=True)
            file = stack.enter_context(_request_file(request | {"id": number, "as_user": as_user}))
            self._hand_over([file.fileno(), *theirs])
        try:
            entered.wait_running()
        except BaseException:
            entered.close()
            raise
        return entered

    def hang_up(self, entered: Entered) -> None:
        """Tell a program that nobody is at its other side any more."""
        with self._lock:
            numbers = [number for number, found in (self._running or {}).items() if found is entered]
        for number in numbers:
            with _request_file({"op": "hangup", "id": number}) as file:
                self._hand_over([file.fileno()])

    def take(self, fds: Sequence[int]) -> None:
        """Descriptors that came before the message that speaks of them."""
        self._handed += fds
        while len(self._handed) > _MAX_HANDED:
            os.close(self._handed.pop())

    def hear(self, message: Mapping[str, object]) -> None:
        """What the first process says of a program."""
        number = int(str(message["entered"]))
        with self._lock:
            running = self._running or {}
            entered = running.get(number) if "running" in message else running.pop(number, None)
        if entered is not None:
            entered.hear(message, self._handed)

    def end(self) -> None:
        """The task has ended, and they with it; there will be no other."""
        with self._lock:
            entered, self._running = list((self._running or {}).values()), None
        for program in entered:
            program.end(with_the_task=True)
        while self._handed:
            os.close(self._handed.pop())
