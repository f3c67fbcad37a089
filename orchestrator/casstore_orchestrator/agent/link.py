"""A server's side of one run: from the wish that it be run to the news that it is over.

Decided here and only here: when an agent is started, adopted, given up, and how the end of a run is told. One thread a
run does it all, so that nothing is told out of order. What it relies on is in the run's folder and survives it: another
server, or this one after a new start, goes on wherever it was left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from casstore.errors import CasstoreError, FormatError, ServiceError
from casstore.structs import convert
from casstore_orchestrator.agent import journal, protocol
from casstore_orchestrator.agent.fence import Cleaner
from casstore_orchestrator.agent.folder import VERSION, Lock, RunFolder, Start
from casstore_orchestrator.agent.journal import Past
from casstore_orchestrator.agent.nursery import Nursery
from casstore_orchestrator.agent.protocol import Frames, Hello, Kept, Noted, Order
from casstore_orchestrator.events import CloseGroup, Effect
from casstore_orchestrator.ports import AgentEvents, RunKey

__all__ = ["PATIENCE", "Host", "Link"]

_log = logging.getLogger(__name__)
_FIRST_LOOK = 0.004
_LOOK = 0.1
"""Seconds between two looks for an agent that begins or ends: the first, and the longest."""
_BEGIN = 30.0
"""Seconds after which an agent that was started and shows no sign of life is started again."""
_TRIES = 3
_RETRY = 0.1
_LONGEST_RETRY = 5.0
PATIENCE = 60.0
"""Seconds for an agent to take the order to end; then it is killed."""
_GONE = "The agent of the group ended unexpectedly."
_SILENT = "The agent of the group did not answer when it was told to end, and was killed."


@dataclass(frozen=True, slots=True)
class Host:
    """What all links of a server share."""

    listener: AgentEvents
    nursery: Nursery
    cleaner: Cleaner
    forget: Callable[[Link], None]


class _Left(Exception):  # noqa: N818 - not an error: nobody follows the run any more
    pass


class Link:
    """Follows one run, in a thread of its own, until it is over or left."""

    def __init__(
        self, host: Host, folder: RunFolder, start: Start | None, seen: int, before: Sequence[Link] = ()
    ) -> None:
        """``before``: those that follow the same run and are about to leave it."""
        self.run: RunKey = folder.run
        self._before = tuple(before)
        self._host = host
        self._folder = folder
        self._start = start
        self._lock = threading.Lock()
        self._seen = seen
        self._pending: dict[int, Effect] = {}
        self._taken = 0
        self._close: tuple[int, float] | None = None
        self._told_taken = 0
        self._left = False
        self._discarded = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._inbox: list[Noted] = []
        self._retry_at = 0.0
        self._retry = _RETRY
        self._thread = threading.Thread(target=self._main, name=f"agent {folder.name}", daemon=True)

    def begin(self) -> None:
        """Start to follow."""
        self._thread.start()

    # From any thread.

    def order(self, number: int, effect: Effect) -> None:
        """Have an order delivered."""
        with self._lock:
            if number > self._taken:
                self._pending[number] = effect
                if isinstance(effect, CloseGroup) and self._close is None:
                    self._close = number, time.monotonic()
        self._wake()

    def seen(self, number: int) -> None:
        """The events up to this one need not be told again."""
        with self._lock:
            self._seen = max(self._seen, number)

    def discard(self) -> None:
        """End the run and remove its traces; nobody is told."""
        self._discarded = True
        self._wake()

    def leave(self) -> None:
        """Follow no longer; does not wait."""
        self._left = True
        self._wake()

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: it is over
            self._wake_write.send(b"w")

    # The thread.

    def _main(self) -> None:
        pause = _RETRY
        for link in self._before:
            link.join(None)
        self._before = ()
        try:
            while True:
                try:
                    self._conclude(self._live())
                    return
                except _Left:
                    return
                except Exception:  # noqa: BLE001 - whatever it is, the run must not be forgotten
                    _log.exception("%s can't be followed; trying again", self.run)
                    self._pause(pause)
                    pause = min(2 * pause, _LONGEST_RETRY)
        except _Left:
            pass
        finally:
            self._wake_read.close()
            self._wake_write.close()
            self._host.forget(self)

    def _check(self) -> None:
        if self._left:
            raise _Left

    def _pause(self, seconds: float) -> None:
        """Wait, unless something is wanted of us."""
        self._check()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            if selector.select(seconds):
                self._drain()
        self._check()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass

    def _live(self) -> tuple[Lock, str]:
        """Be with the agent while there is one; gives the lock once nothing is alive, and what is known of why."""
        why = ""
        while True:
            found = self._reach()
            if isinstance(found, socket.socket):
                with found:
                    why = self._converse(found) or why
            else:
                lock, reason = found
                return lock, reason or why

    def _reach(self) -> socket.socket | tuple[Lock, str]:
        """A connection to the agent, which is started if need be, or the lock when there is none and won't be."""
        folder, look = self._folder, _FIRST_LOOK
        tries, process, since = 0, 0, time.monotonic()
        if self._start is not None and not folder.closed:
            if self._seen and not folder.path.exists():
                self._start = None  # it was there, and must not begin again
            else:
                folder.put(self._start)
        while True:
            self._check()
            if not folder.closed:
                with contextlib.suppress(OSError):
                    return folder.connect()
            lock = folder.lock()
            if lock is not None:
                try:
                    over = folder.closed or folder.begun or self._start is None or self._discarded
                    if over or (tries >= _TRIES and not _alive(process)):
                        kept, lock = lock, None
                        return kept, "" if over else self._stillborn()
                finally:
                    if lock is not None:
                        lock.release()
                if not _alive(process) or time.monotonic() - since > _BEGIN:
                    self._pause(0 if tries == 0 else _LOOK)
                    tries, since = tries + 1, time.monotonic()
                    try:
                        process = self._host.nursery.begin(folder.name)
                    except ServiceError as error:
                        _log.warning("the agent of %s can't be started: %s", self.run, error.message)
                        process = 0
            elif time.monotonic() - since > PATIENCE:
                since = time.monotonic()
                _log.warning("%s is alive, and does not answer", self.run)
            self._pause(look)
            look = min(2 * look, _LOOK)

    def _stillborn(self) -> str:
        words = self._folder.last_words()
        return "The agent of the group can't be started" + (f": {words}" if words else ".")

    def _converse(self, connection: socket.socket) -> str:
        """Speak with the agent until the connection ends. Gives why it was sent away, if it was."""
        pid = self._peer(connection)
        if self._unwanted():
            return self._send_away(connection, "nobody knows of the run any more", pid)
        with self._lock:
            seen = self._seen
        self._inbox.clear()
        try:
            hello = self._greet(connection, seen)
            if hello is None:
                return self._end_silent(pid)
        except FormatError as error:
            with self._folder.connect() as other:
                return self._send_away(other, error.message, pid)
        except OSError:
            return ""
        self._took(hello.taken)
        frames = Frames()
        sent = hello.taken
        connection.settimeout(PATIENCE)
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while True:
                self._check()
                if self._unwanted():
                    return ""
                self._deliver()
                try:
                    sent = self._send_orders(connection, sent)
                    ready = selector.select(self._until_due())
                    if self._silent():
                        return self._end_silent(pid)
                    if any(key.fileobj is self._wake_read for key, _ in ready):
                        self._drain()
                    if any(key.fileobj is connection for key, _ in ready):
                        data = connection.recv(1 << 16)
                        if not data:
                            return ""
                        self._hear(frames.feed(data))
                except OSError:
                    return ""

    def _unwanted(self) -> bool:
        return self._discarded

    @staticmethod
    def _peer(connection: socket.socket) -> int:
        try:
            return protocol.check_peer(connection)
        except OSError:
            return 0

    def _silent(self) -> bool:
        """Whether the agent was told to end, and has not even taken the order for too long.

        Whatever holds it up (it was stopped, or a pattern that never ends holds its interpreter): nobody wants it now.
        """
        with self._lock:
            close = self._close
            return close is not None and close[0] > self._taken and time.monotonic() - close[1] > PATIENCE

    def _end_silent(self, pid: int) -> str:
        if pid > 0 and self._silent():
            _log.warning("%s does not answer: its agent, process %d, is killed", self.run, pid)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return _SILENT

    def _greet(self, connection: socket.socket, seen: int) -> Hello | None:
        """Say who we are; the answer may take as long as the agent is stopped. None: see ``_silent``."""
        connection.settimeout(PATIENCE)
        protocol.send_line(connection, {"follow": {"version": VERSION, "seen": seen}})
        since = time.monotonic()
        while not select.select([connection], [], [], _LOOK)[0]:
            self._check()
            if self._silent():
                return None
            if time.monotonic() - since > PATIENCE:
                since = time.monotonic()
                _log.warning("%s does not answer", self.run)
        line = protocol.read_line(connection)
        if not line:
            raise ConnectionResetError
        answer = protocol.decode_line(line)
        if "error" in answer or answer.get("version") != VERSION:
            told = answer.get("error") or f"it speaks version {answer.get('version')} of the protocol"
            raise FormatError(f"The agent of the group does not fit this server: {str(told)[:1000]}")
        return convert(answer, Hello)

    def _send_away(self, connection: socket.socket, why: str, pid: int) -> str:
        """Have an agent end everything, whatever its version; kill it if it does not."""
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(OSError):
            connection.settimeout(_LOOK)
            protocol.send_line(connection, {"end": why})
            while time.monotonic() < deadline:
                self._check()
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        break
        while (lock := self._folder.lock()) is None and time.monotonic() < deadline:
            self._pause(_LOOK)
        if lock is not None:
            lock.release()
        elif pid > 0 and _alive(pid):
            _log.warning("%s does not end: its agent, process %d, is killed", self.run, pid)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return why

    def _send_orders(self, connection: socket.socket, sent: int) -> int:
        while True:
            with self._lock:
                effect = self._pending.get(sent + 1)
            if effect is None:
                return sent
            connection.sendall(protocol.encode(Order(sent + 1, effect)))
            sent += 1

    def _hear(self, messages: list[protocol.Message]) -> None:
        for message in messages:
            if isinstance(message, Kept):
                self._took(message.number)
            elif isinstance(message, Noted):
                self._inbox.append(message)
            else:
                raise FormatError("an agent gives no orders")

    def _took(self, number: int) -> None:
        with self._lock:
            self._taken = max(self._taken, number)
            for old in [known for known in self._pending if known <= self._taken]:
                del self._pending[old]

    # Telling.

    def _until_due(self) -> float | None:
        """Seconds until something is to be looked after though nothing happens."""
        retry = self._until_retry()
        with self._lock:
            if self._close is None or self._close[0] <= self._taken:
                return retry
            silent = max(0.0, self._close[1] + PATIENCE - time.monotonic()) + _LOOK
        return silent if retry is None else min(retry, silent)

    def _until_retry(self) -> float | None:
        if not self._inbox and self._told_taken >= self._taken:
            return None
        return max(0.0, self._retry_at - time.monotonic())

    def _deliver(self) -> None:
        """Tell what there is to tell; what the listener does not take comes again later."""
        if time.monotonic() < self._retry_at:
            return
        listener, run = self._host.listener, self.run
        try:
            if self._told_taken < self._taken:
                taken = self._taken
                listener.taken(run, taken)
                self._told_taken = taken
            while self._inbox:
                self._check()
                first = self._inbox[0]
                listener.event(run, first.number, first.event)
                self._inbox.pop(0)
                self._retry = _RETRY
        except _Left:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told again
            _log.warning("news of %s could not be told, and will be again: %s", run, error)
            self._retry_at = time.monotonic() + self._retry
            self._retry = min(2 * self._retry, _LONGEST_RETRY)

    def _insist(self, tell: Callable[[], None]) -> None:
        """Tell something until it is heard."""
        pause = _RETRY
        while True:
            self._check()
            try:
                tell()
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told again
                _log.warning("news of %s could not be told, and will be again: %s", self.run, error)
            deadline = time.monotonic() + pause
            while time.monotonic() < deadline:
                self._pause(max(0.0, deadline - time.monotonic()))
            pause = min(2 * pause, _LONGEST_RETRY)

    def _conclude(self, found: tuple[Lock, str]) -> None:
        """Nothing is alive: see to it that nothing ever will be, clean up, and tell how it ended."""
        lock, why = found
        folder, run = self._folder, self.run
        try:
            try:
                past = journal.read(folder.journal)
            except (FormatError, OSError) as error:
                past, why = Past(), error.message if isinstance(error, CasstoreError) else str(error)
            folder.close()
            if past is None:
                past, why = Past(), why or "No trace of the group's agent is left."
            self._host.cleaner.clean(run, past)
            if not self._discarded:
                self._tell_end(past, why)
            with contextlib.suppress(OSError):  # another server may do the same; it is told no second time
                folder.remove()
        finally:
            lock.release()

    def _tell_end(self, past: Past, why: str) -> None:
        listener, run = self._host.listener, self.run
        last = past.orders[-1].number if past.orders else 0
        if last > self._told_taken:
            self._insist(lambda: listener.taken(run, last))
        for happened in past.events:
            if happened.number > self._seen:
                self._insist(lambda: listener.event(run, happened.number, happened.event))  # noqa: B023 - used at once
        over = past.over
        if over is not None and not over.why:
            self._insist(lambda: listener.ended(run))
            return
        told = (over.why if over is not None else "") or why or self._last_words()
        self._insist(lambda: listener.lost(run, told))

    def _last_words(self) -> str:
        words = self._folder.last_words()
        return f"{_GONE} Its last words: {words}" if words else _GONE


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid > 0
