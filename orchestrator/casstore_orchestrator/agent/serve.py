"""The agent of a run: the process that runs one placed group, whatever becomes of the servers.

Decided here and only here: when an agent begins and when it ends, that every event and every order is in its journal
before anybody acts on it, and that it obeys every server that can reach it (who may give orders is the servers' affair:
an order counts by its number).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from casstore.errors import CasstoreError, ConflictError, FormatError
from casstore_orchestrator.agent import attach, protocol
from casstore_orchestrator.agent.folder import VERSION, RunFolder, Start
from casstore_orchestrator.agent.journal import Happened, Journal, Over, Taken
from casstore_orchestrator.agent.protocol import Frames, Hello, Kept, Noted, Order
from casstore_orchestrator.agent.runner import GroupRunner, Services
from casstore_orchestrator.credentials import secret_values
from casstore_orchestrator.events import CloseGroup, Effect, Event, GroupFailed
from casstore_orchestrator.ports import RunningTask
from casstore_orchestrator.status import TaskStatus

__all__ = ["OpenServices", "serve"]

_log = logging.getLogger(__name__)

OpenServices = Callable[[Start, int], AbstractContextManager[Services]]
"""Makes what a group needs. The number is a descriptor that everything that the group starts should keep open: who
finds it closed everywhere knows that nothing is left.
"""
MAX_ATTACHED = 256
"""Interactive connections at a time."""
_MAX_CONNECTIONS = MAX_ATTACHED + 64
_HEADER_SECONDS = 30.0
_DISK_PAUSE = 1.0
_LOOK_SECONDS = 5.0
_TOLD = "the agent of the group was told to end"
_REMOVED = "the folder of the run was removed"


def serve(folder: RunFolder, open_services: OpenServices) -> int:
    """Run a group to its end; gives the exit code of the process. To be called by the main thread.

    Does nothing when the run has begun before, or is over.
    """
    lock = folder.lock(make=False)
    if lock is None:
        return 0
    try:
        if folder.closed or folder.begun:
            return 0
        start = folder.start()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(folder.listen())
            agent = _Agent(folder, start)
            stack.callback(agent.close)
            _obey_signals(lambda: agent.end(_TOLD))
            agent.open(stack, open_services, lock.descriptor)
            threading.Thread(target=agent.listen, args=(listener,), name="listener", daemon=True).start()
            while not agent.over.wait(_LOOK_SECONDS):
                if not folder.has(lock):
                    agent.end(_REMOVED)  # nobody can ever reach us again
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        agent.finish()
    finally:
        lock.release()
    return 0


def _obey_signals(end: Callable[[], None]) -> None:
    """Call ``end`` when the process is told to end; what a terminal sends is not meant for us.

    By a descriptor: the signal may come to any thread, and the main one would not notice while it waits.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        os.read(reading, 1)
        end()

    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()


class _Agent:
    """What is known of the run, and the connections to it."""

    def __init__(self, folder: RunFolder, start: Start) -> None:
        self._start = start
        self._run = folder.run
        self._journal = Journal.create(folder.journal)
        self._reporting = threading.Lock()
        self._news = threading.Condition()
        self._events: list[Happened] = []
        self._taken = 0
        self._orders = threading.Lock()
        self._runner: GroupRunner | None = None
        self._broken = ""
        self._connections: set[socket.socket] = set()
        self._attached = threading.BoundedSemaphore(MAX_ATTACHED)
        self.over = threading.Event()
        """Set once nothing of the group is left."""

    def open(self, stack: contextlib.ExitStack, open_services: OpenServices, hold: int) -> None:
        """Get ready for orders. What stands against it becomes the end of the group, not of the agent."""
        record = self._start.record
        try:
            services = stack.enter_context(open_services(self._start, hold))
            services.logs.begin(record.id, secret_values(record.spec, record.user, services.credentials))
            stack.callback(services.logs.close)
            self._services: Services | None = services
            self._runner = GroupRunner(
                services,
                record,
                self._start.group,
                dict(self._start.limits),
                report=self._report,
                ended=lambda _: self.over.set(),
                placement=self._run.placement,
            )
        except Exception as error:  # noqa: BLE001 - becomes the end of the group
            self._services = None
            _log.exception("the group can't be run")
            told = error.message if isinstance(error, CasstoreError) else f"{type(error).__name__}: {error}"
            message = f"The group can't be run: {told}"
            self._report(GroupFailed(self._start.group, message, TaskStatus.FAILED_SERVER_ERROR))

    def end(self, why: str) -> None:
        """End everything, though nobody closed the group; does not wait for it."""
        with self._orders:
            self._broken = self._broken or why
            self._carry_out(CloseGroup(self._start.group))

    def finish(self) -> None:
        """Write the last record: everything is gone, and every line is in its log."""
        self._keep(Over(self._broken))
        self._journal.close()

    def close(self) -> None:
        """End the connections; idempotent."""
        with self._news:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # What happens.

    def _report(self, event: Event) -> None:
        if self._services is not None:
            self._services.logs.flush()  # whoever hears of it finds the lines that came before
        with self._reporting:
            happened = Happened(len(self._events) + 1, event)
            self._keep(happened)
            with self._news:
                self._events.append(happened)
                self._news.notify_all()

    def _keep(self, entry: Happened | Over) -> None:
        """Write to the journal, however long the disk is full."""
        while True:
            try:
                self._journal.append(entry)
                return
            except OSError as error:
                _log.error("the journal can't be written: %s", error)
                threading.Event().wait(_DISK_PAUSE)

    def _take(self, number: int, effect: Effect) -> int:
        """Take an order, once; gives the number of the last one. ``FormatError`` when one before it is missing."""
        with self._orders:
            if number > self._taken + 1:
                raise FormatError(f"order {number} came after order {self._taken}")
            if number == self._taken + 1:
                self._journal.append(Taken(number, effect))
                self._taken = number
                self._carry_out(effect)
            return self._taken

    def _carry_out(self, effect: Effect) -> None:
        if self._runner is not None:
            self._runner.order(effect)
        elif isinstance(effect, CloseGroup):
            self.over.set()

    # Interactive use: ``attach.Access``.

    def task(self, name: str, retry_id: int | None = None) -> RunningTask:
        """See ``attach.Access``."""
        if self._runner is None:
            raise ConflictError(f"task {name} does not run now")
        return self._runner.task(name, retry_id)

    def note(self, task: str, text: str) -> None:
        """See ``attach.Access``."""
        if self._runner is not None:
            self._runner.note(task, text)

    # Connections.

    def listen(self, listener: socket.socket) -> None:
        """Accept connections, a thread for each, until the process ends."""
        while not self.over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                if listener.fileno() < 0:
                    return
                threading.Event().wait(0.1)  # no descriptors are left: some connection will end
                continue
            with self._news:
                full = len(self._connections) >= _MAX_CONNECTIONS
                if not full:
                    self._connections.add(connection)
            if full:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="connection", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection)
        except OSError:  # the other side has gone
            pass
        except Exception:  # noqa: BLE001 - one connection must not harm the others
            _log.exception("a connection failed")
        finally:
            with self._news:
                self._connections.discard(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            protocol.check_peer(connection)
            connection.settimeout(_HEADER_SECONDS)
            line = protocol.read_line(connection)
            connection.settimeout(None)
            if not line:
                return
            header = protocol.decode_line(line)
            if "attach" in header:
                self._attach(connection, header)
            elif "follow" in header:
                self._follow(connection, header["follow"])
            elif "end" in header:
                _log.warning("told to end: %s", header["end"])
                self.end(str(header["end"])[:1000])
                connection.recv(1)  # the end of this process answers
            else:
                raise FormatError("the first line asks for nothing that is known")
        except CasstoreError as error:
            with contextlib.suppress(OSError):
                protocol.send_line(connection, {"error": error.message, "hint": error.hint})

    def _attach(self, connection: socket.socket, header: dict[str, object]) -> None:
        if not self._attached.acquire(blocking=False):
            raise ConflictError(f"there are {MAX_ATTACHED} connections to this group already")
        try:
            attach.serve(connection, header, self)
        finally:
            self._attached.release()

    def _follow(self, connection: socket.socket, wish: object) -> None:
        if not isinstance(wish, dict) or wish.get("version") != VERSION or not isinstance(wish.get("seen"), int):
            raise FormatError(f"the agent speaks version {VERSION} of the protocol")
        hello = Hello(taken=self._taken, pid=os.getpid())
        connection.sendall(msgspec.json.encode(hello) + b"\n")
        sending = threading.Lock()
        gone = threading.Event()
        sender = threading.Thread(
            target=self._send_events, args=(connection, max(0, wish["seen"]), sending, gone), name="sender", daemon=True
        )
        sender.start()
        try:
            frames = Frames()
            while data := connection.recv(1 << 16):
                for message in frames.feed(data):
                    if not isinstance(message, Order):
                        raise FormatError("only orders are expected")
                    taken = self._take(message.number, message.effect)
                    with sending:
                        connection.sendall(protocol.encode(Kept(taken)))
        finally:
            gone.set()
            with self._news:
                self._news.notify_all()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            sender.join()

    def _send_events(
        self, connection: socket.socket, seen: int, sending: threading.Lock, gone: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while not gone.is_set():
                with self._news:
                    while not gone.is_set() and len(self._events) <= seen:
                        self._news.wait()
                    news = self._events[seen:]
                for happened in news:
                    with sending:
                        connection.sendall(protocol.encode(Noted(happened.number, happened.event)))
                seen += len(news)
