"""Moving bytes between a connection's frames and the descriptors of a task.

Decided here and only here: how much waits in memory for a reader who is slow (a direction whose reader is slow is no
longer read from, so that the writer waits too), and when an exchange is over. Each runs in a thread of its own and
holds at most a few hundred KiB.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from casstore_orchestrator import frames
from casstore_orchestrator.frames import MAX_DATA, Frames, Kind

__all__ = ["MAX_FLOWS", "Program", "exchange_datagrams", "exchange_program", "exchange_stream", "watch"]

MAX_FLOWS = 256
"""Local addresses that one UDP port is forwarded for at a time; the one that was quiet longest makes room."""
ADDRESS_BYTES = 6
_WAITING = 256 << 10
# What a program's descendants still write after it ended is waited for, as long as nobody would take it for a hang.
_LINGER_SECONDS = 2.0
# How often somebody looks whether a task that sends nothing still runs.
_LOOK_SECONDS = 0.5
# Whoever went away may have left data that the task has not read.
_DELIVER_SECONDS = 30.0


class Program(Protocol):
    """A program beside a task's command: ``executors.entering.Entered``."""

    terminal: int
    stdin: int
    stdout: int
    stderr: int
    ended: int
    code: int | None
    with_the_task: bool


class _Peer:
    """The connection: frames that wait to be sent, and those that came."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._frames = Frames()
        self.waiting = bytearray()
        self.gone = False

    @property
    def fd(self) -> int:
        return self._connection.fileno()

    @property
    def full(self) -> bool:
        return len(self.waiting) >= _WAITING

    def put(self, frame: bytes) -> None:
        self.waiting += frame

    def shut(self) -> None:
        """Nothing more is sent."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def events(self, *, reading: bool) -> int:
        return (select.POLLIN if reading else 0) | (select.POLLOUT if self.waiting else 0)

    def handle(self, events: int, *, reading: bool) -> list[frames.Frame]:
        """Send and receive what can be; ``gone`` afterwards says that nobody is there."""
        try:
            if events & select.POLLOUT:
                del self.waiting[: self._connection.send(memoryview(bytes(self.waiting[: 4 * MAX_DATA])))]
            if reading and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = self._connection.recv(MAX_DATA)
                self.gone = self.gone or not data
                return self._frames.feed(data)
            if events & (select.POLLHUP | select.POLLERR):
                self.gone = True
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True
        return []


class _Sink:
    """Bytes that wait for a descriptor of the task."""

    def __init__(self, fd: int, *, end: Callable[[], None]) -> None:
        self.fd = fd
        self._end = end
        self._waiting = bytearray()
        self._ending = False
        self._over = False

    @property
    def full(self) -> bool:
        return len(self._waiting) >= _WAITING

    @property
    def over(self) -> bool:
        """Nothing goes this way any more."""
        return self._over

    @property
    def wants(self) -> int:
        return select.POLLOUT if self._waiting and not self._over else 0

    def put(self, data: bytes) -> None:
        if not self._over and not self._ending:
            self._waiting += data

    def finish(self) -> None:
        """No more will come."""
        self._ending = True
        self.write()

    def write(self) -> None:
        if self._over:
            return
        try:
            while self._waiting:
                del self._waiting[: os.write(self.fd, bytes(self._waiting[:MAX_DATA]))]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self._waiting.clear()
            self._ending = True
        if self._ending:
            self._over = True
            self._end()


def _read(fd: int) -> bytes | None:
    """What is there; empty at the end, None when nothing is there now."""
    try:
        return os.read(fd, MAX_DATA)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in {errno.EIO, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED}:
            return b""  # EIO: nobody has the terminal open any more
        raise


def _poll(wanted: dict[int, int], timeout: float | None) -> dict[int, int]:
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    return dict(poll.poll(None if timeout is None else max(0, round(timeout * 1000))))


def exchange_program(connection: socket.socket, program: Program) -> bool:
    """Connect a program until it has ended (true) or nobody is at the connection any more (false)."""
    peer = _Peer(connection)
    sources = {program.terminal: Kind.DATA}
    if program.terminal < 0:
        sources = {program.stdout: Kind.DATA, program.stderr: Kind.ERRORS}
    sink = _program_sink(program)
    deadline: float | None = None
    while True:
        if program.code is not None and deadline is None:
            deadline = time.monotonic() + _LINGER_SECONDS
        if program.code is not None and not peer.full:
            _drain(program, sources, peer, late=deadline is not None and time.monotonic() > deadline)
            if not sources:
                peer.put(frames.exited(program.code, with_the_task=program.with_the_task))
                return _finish(peer)
        wanted = dict.fromkeys(() if peer.full else sources, select.POLLIN)
        if sink.wants:
            wanted[sink.fd] = wanted.get(sink.fd, 0) | sink.wants
        reading = not sink.full
        wanted[peer.fd] = peer.events(reading=reading)
        if program.code is None:
            wanted[program.ended] = select.POLLIN
        ready = _poll(wanted, None if deadline is None or peer.full else deadline - time.monotonic() + 0.001)
        for frame in peer.handle(ready.get(peer.fd, 0), reading=reading):
            _take(program, sink, frame)
        if peer.gone:
            return False
        sink.write()
        if not peer.full:
            for fd in ready.keys() & sources.keys():
                _forward(fd, sources, peer)


def _program_sink(program: Program) -> _Sink:
    if program.terminal >= 0:
        return _Sink(program.terminal, end=lambda: None)

    def close() -> None:
        os.close(program.stdin)
        program.stdin = -1

    return _Sink(program.stdin, end=close)


def _take(program: Program, sink: _Sink, frame: frames.Frame) -> None:
    kind, payload = frame
    if kind is Kind.DATA:
        sink.put(payload)
    elif kind is Kind.EOF:
        if program.terminal >= 0:
            sink.put(b"\x04")  # what ends the input of a program that reads lines from a terminal
        else:
            sink.finish()
    elif kind is Kind.RESIZE and program.terminal >= 0:
        with contextlib.suppress(OSError):
            fcntl.ioctl(program.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *frames.size_of(payload), 0, 0))


def _forward(fd: int, sources: dict[int, Kind], peer: _Peer) -> bool:
    """Pass on what one source has; whether there was anything."""
    data = _read(fd)
    if data:
        peer.put(frames.encode(sources[fd], data))
    elif data is not None:
        del sources[fd]
    return bool(data)


def _drain(program: Program, sources: dict[int, Kind], peer: _Peer, *, late: bool) -> None:
    """The program has ended: pass on what it wrote. A terminal that has nothing now will have nothing more."""
    for fd in list(sources):
        while fd in sources and not peer.full:
            if not _forward(fd, sources, peer):
                break
        if not peer.full and (late or program.terminal >= 0):
            sources.pop(fd, None)


def _finish(peer: _Peer) -> bool:
    """Send what waits; whether somebody took it. Input that the program left unread is read away until the other side
    closes: a socket that is closed with unread data makes the other side's next write fail, and with that it can lose
    what it has not read yet, the exit code.
    """
    while peer.waiting and not peer.gone:
        ready = _poll({peer.fd: peer.events(reading=True)}, None)
        peer.handle(ready.get(peer.fd, 0), reading=True)
    sent = not peer.gone
    peer.shut()
    deadline = time.monotonic() + _DELIVER_SECONDS
    while not peer.gone and (left := deadline - time.monotonic()) > 0:
        ready = _poll({peer.fd: select.POLLIN}, left)
        peer.handle(ready.get(peer.fd, 0), reading=True)
    return sent


def exchange_stream(connection: socket.socket, task: socket.socket) -> None:
    """Connect a TCP socket of a task, each direction until its end, or until nobody is at the connection any more."""
    task.setblocking(False)
    peer = _Peer(connection)
    fd = task.fileno()

    def shut() -> None:
        with contextlib.suppress(OSError):
            task.shutdown(socket.SHUT_WR)

    sink = _Sink(fd, end=shut)
    sources = {fd: Kind.DATA}
    deadline: float | None = None
    while not (sink.over and (peer.gone or (not sources and not peer.waiting))):
        reading = not sink.full and not peer.gone
        wanted = {} if peer.gone else {peer.fd: peer.events(reading=reading)}
        events = sink.wants | (select.POLLIN if sources and not peer.full and not peer.gone else 0)
        if events:
            wanted[fd] = events
        ready = _poll(wanted, None if deadline is None else deadline - time.monotonic())
        for kind, payload in peer.handle(ready.get(peer.fd, 0), reading=reading):
            if kind is Kind.DATA:
                sink.put(payload)
            elif kind is Kind.EOF:
                sink.finish()
        if peer.gone and deadline is None:
            deadline = time.monotonic() + _DELIVER_SECONDS
            sink.finish()
        sink.write()
        if fd in ready and fd in sources and not peer.full and not peer.gone:
            _forward(fd, sources, peer)
            if not sources:
                peer.put(frames.encode(Kind.EOF))
        if deadline is not None and time.monotonic() > deadline:
            return


def watch(connection: socket.socket, alive: Callable[[], bool]) -> None:
    """Wait until ``alive`` says no, or nobody is at the connection any more."""
    peer = _Peer(connection)
    while alive() and not peer.gone:
        ready = _poll({peer.fd: select.POLLIN}, _LOOK_SECONDS)
        peer.handle(ready.get(peer.fd, 0), reading=True)


def exchange_datagrams(
    connection: socket.socket, open_flow: Callable[[], socket.socket], alive: Callable[[], bool]
) -> None:
    """Forward datagrams, each with the local address (4 bytes and a port) that it is from or for, until ``alive`` says
    no or nobody is at the connection any more. A socket of its own for each address keeps the answers apart. Datagrams
    are dropped where someone is slow, as on any network.
    """
    peer = _Peer(connection)
    flows: OrderedDict[bytes, socket.socket] = OrderedDict()
    try:
        while alive() and not peer.gone:
            by_fd = {flow.fileno(): (address, flow) for address, flow in flows.items()}
            ready = _poll(dict.fromkeys(by_fd, select.POLLIN) | {peer.fd: peer.events(reading=True)}, _LOOK_SECONDS)
            for kind, payload in peer.handle(ready.pop(peer.fd, 0), reading=True):
                if kind is Kind.DATA and len(payload) >= ADDRESS_BYTES:
                    _send_datagram(flows, payload, open_flow)
            for fd in ready.keys() & by_fd.keys():
                address, flow = by_fd[fd]
                if flow.fileno() == fd:  # it was not closed to make room just now
                    _receive_datagrams(address, flow, peer)
    finally:
        for flow in flows.values():
            flow.close()


def _send_datagram(
    flows: OrderedDict[bytes, socket.socket], payload: bytes, open_flow: Callable[[], socket.socket]
) -> None:
    address = payload[:ADDRESS_BYTES]
    flow = flows.pop(address, None)
    if flow is None:
        if len(flows) >= MAX_FLOWS:
            flows.popitem(last=False)[1].close()
        flow = open_flow()
        flow.setblocking(False)
    flows[address] = flow
    with contextlib.suppress(OSError):  # nobody listens, or the network is busy
        flow.send(payload[ADDRESS_BYTES:])


def _receive_datagrams(address: bytes, flow: socket.socket, peer: _Peer) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = flow.recv(MAX_DATA)
            if not peer.full:
                peer.put(frames.encode(Kind.DATA, address + data))
