"""A network that fails on demand: a proxy between a client and a real HTTP server, on the loopback interface.

Decided here and only here: what a bad network does to a connection, and how a test says when. Requests are told apart,
so that a fault hits the second download of a pack and nothing else; what is not hit passes byte for byte. Threads and
sockets alone; what stands still is let go by ``release``, by other rules, or by the end.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

__all__ = ["NetFault", "NetProxy", "NetRule", "Passed"]

_HEAD = 64 << 10
_BLOCK = 64 << 10
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect: *100-continue", re.IGNORECASE)
_CONDITION = re.compile(rb"\r\nif-(?:none-)?match:[^\r]*", re.IGNORECASE)
_RANGE = re.compile(rb"(\r\ncontent-range: *bytes )(\d+)-(\d+)", re.IGNORECASE)
_RESET = struct.pack("ii", 1, 0)


class NetFault(StrEnum):
    """What happens to a request."""

    CUT = "cut"
    """The connection is reset after ``NetRule.after`` bytes of the request's body; the server sees none of it."""
    LOST = "lost"
    """The server does what it is asked to, and its answer never arrives: a reset instead."""
    RESET = "reset"
    """The connection is reset after ``after`` bytes of the answer's body."""
    TRUNCATE = "truncate"
    """The connection is closed in good order after ``after`` bytes of the answer's body."""
    STALL = "stall"
    """Nothing comes after ``after`` bytes of the answer's body (negative: nothing at all), until it is let go."""
    STALL_SEND = "stall_send"
    """Nothing is taken from the client after ``after`` bytes of the request's body, until it is let go; the server sees
    none of it.
    """
    THROTTLE = "throttle"
    """The answer's body comes in pieces of ``after`` bytes (at least one), ``seconds`` apart."""
    ANSWER = "answer"
    """The proxy answers with ``status``, ``headers`` and ``body``; the server sees nothing."""
    RANGE = "range"
    """The answer's ``Content-Range`` names bytes that lie one later."""
    STRIP = "strip"
    """The request's conditions do not reach the server: as a service behaves that knows none."""
    FLIP = "flip"
    """One bit of the answer's body, at byte ``after`` (modulo its length), is another."""


class NetRule(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests are hit: of those with this method (any when empty) and with ``part`` in their target or in
    a header, number ``at`` (from 1) and the ``times - 1`` after it.
    """

    fault: NetFault
    method: str = ""
    part: str = ""
    at: int = 1
    times: int = 1
    after: int = 0
    seconds: float = 0.001
    status: int = 503
    headers: dict[str, str] = {}
    body: bytes = b""


class Passed(msgspec.Struct, frozen=True):
    """A request that came by, and the fault that hit it."""

    method: str
    target: str
    fault: NetFault | None


class _EndError(Exception):
    """The connection is over."""


class NetProxy:
    """Listens on ``endpoint``, and passes to the server at ``upstream`` (``http://host:port``). A context manager."""

    def __init__(self, upstream: str, *rules: NetRule) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._lock = threading.Lock()
        self._rules = rules
        self._counts = [0] * len(rules)
        self._passed: list[Passed] = []
        self._released = threading.Event()
        self._stalled = threading.Event()
        self._closed = False
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    @property
    def endpoint(self) -> str:
        """Where to connect: ``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def passed(self) -> list[Passed]:
        """The requests so far."""
        with self._lock:
            return list(self._passed)

    @property
    def hits(self) -> int:
        """How many requests were hit. A test that expects a fault checks it."""
        return sum(passed.fault is not None for passed in self.passed)

    def follow(self, *rules: NetRule) -> None:
        """Use these rules from now on, and count anew. What stands still by the rules before is let go."""
        self._released.set()
        with self._lock:
            self._released = threading.Event()
            self._stalled = threading.Event()
            if self._closed:
                self._released.set()
            self._rules = rules
            self._counts = [0] * len(rules)
            self._passed.clear()

    def wait_stalled(self, timeout: float) -> bool:
        """Wait until something stands still; whether it does."""
        return self._stalled.wait(timeout)

    def release(self) -> None:
        """Let go what stands still, and what would until ``follow``."""
        self._released.set()

    def close(self) -> None:
        """End all connections and threads."""
        with self._lock:
            self._closed = True
            ending = [self._listener, *self._sockets]
        self._released.set()
        for sock in ending:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- one connection

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    client.close()
                    return
                self._sockets.add(client)
                thread = threading.Thread(target=self._serve, args=(client,), name="proxy-connection", daemon=True)
                self._threads = [old for old in self._threads if old.is_alive()]
                self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(_EndError, OSError), self._owned(client):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pending = bytearray()
            while True:
                self._exchange(client, pending)

    def _exchange(self, client: socket.socket, pending: bytearray) -> None:
        """Serve one request."""
        head = _read_head(client, pending)
        rule = self._hit(head)
        fault = rule.fault if rule else None
        length = _length(head) or 0
        if _EXPECT.search(head) and fault is not NetFault.ANSWER:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rule and fault is NetFault.ANSWER:
            self._answer(client, pending, rule, 0 if _EXPECT.search(head) else length)
        if rule and fault in {NetFault.CUT, NetFault.STALL_SEND}:
            _read_exactly(client, pending, min(rule.after, length))
            self._break(client, rule)
        if fault is NetFault.STRIP:
            head = _CONDITION.sub(b"", head)
        with self._owned(socket.create_connection(self._upstream, timeout=60)) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # One exchange for each connection: how the server frames its last answer does not matter then.
            server.sendall(_EXPECT.sub(b"", head).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            while length:
                block = _read_some(client, pending, min(length, _BLOCK))
                server.sendall(block)
                length -= len(block)
            self._return(client, server, head, rule)

    def _return(self, client: socket.socket, server: socket.socket, request: bytes, rule: NetRule | None) -> None:
        """Pass the server's answer on."""
        rest = bytearray()
        head = _read_head(server, rest)
        body = b"" if request.startswith(b"HEAD ") or b" 304 " in head[:20] else _read_body(server, rest, head)
        if rule and rule.fault is NetFault.LOST:
            self._break(client, rule)
        if rule and rule.fault is NetFault.RANGE:
            head = _RANGE.sub(lambda m: b"%s%d-%d" % (m[1], int(m[2]) + 1, int(m[3]) + 1), head)
        if rule and rule.fault is NetFault.FLIP and body:
            place = rule.after % len(body)
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        if rule and rule.fault is NetFault.STALL and rule.after < 0:
            self._break(client, rule)
        client.sendall(head)
        if rule and rule.fault is NetFault.THROTTLE:
            step = max(1, rule.after)
            for start in range(0, len(body), step):
                client.sendall(body[start : start + step])
                self._released.wait(rule.seconds)
        elif rule and rule.fault in {NetFault.RESET, NetFault.TRUNCATE, NetFault.STALL} and rule.after >= 0:
            client.sendall(body[: rule.after])
            self._break(client, rule)
            client.sendall(body[rule.after :])  # released
        else:
            client.sendall(body)
        if _length(head) is None or re.search(rb"\r\nconnection: *close", head, re.IGNORECASE):
            raise _EndError

    def _answer(self, client: socket.socket, pending: bytearray, rule: NetRule, length: int) -> None:
        _read_exactly(client, pending, length)
        headers = {"Content-Length": str(len(rule.body)), "Connection": "close"} | rule.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        client.sendall(f"HTTP/1.1 {rule.status} Injected\r\n{lines}\r\n".encode() + rule.body)
        raise _EndError

    def _break(self, client: socket.socket, rule: NetRule) -> None:
        """Do to the connection what the rule says."""
        if rule.fault in {NetFault.STALL, NetFault.STALL_SEND}:
            with self._lock:
                stalled, released = self._stalled, self._released
            stalled.set()
            released.wait()
            if rule.fault is NetFault.STALL:
                return
        if rule.fault is not NetFault.TRUNCATE:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise _EndError

    def _hit(self, head: bytes) -> NetRule | None:
        """Count a request; the rule that hits it, if one does."""
        method, target = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2]
        with self._lock:
            found = None
            for number, rule in enumerate(self._rules):
                if rule.method not in {"", method} or rule.part.encode() not in head:
                    continue
                self._counts[number] += 1
                if found is None and rule.at <= self._counts[number] < rule.at + rule.times:
                    found = rule
            self._passed.append(Passed(method, target, found.fault if found else None))
            return found

    @contextlib.contextmanager
    def _owned(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Close the socket at the end, and let ``close`` end it before."""
        with self._lock:
            self._sockets.add(sock)
            closed = self._closed
        try:
            if closed:
                raise _EndError
            yield sock
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()


def _read_head(sock: socket.socket, pending: bytearray) -> bytes:
    while (end := pending.find(b"\r\n\r\n")) < 0:
        block = sock.recv(_BLOCK)
        if not block or len(pending) > _HEAD:
            raise _EndError
        pending += block
    head = bytes(pending[: end + 4])
    del pending[: end + 4]
    return head


def _read_some(sock: socket.socket, pending: bytearray, most: int) -> bytes:
    """At most so many bytes, at least one."""
    if not pending:
        block = sock.recv(most)
        if not block:
            raise _EndError
        return block
    block = bytes(pending[:most])
    del pending[:most]
    return block


def _read_exactly(sock: socket.socket, pending: bytearray, length: int) -> bytes:
    parts = []
    while length:
        parts.append(_read_some(sock, pending, min(length, _BLOCK)))
        length -= len(parts[-1])
    return b"".join(parts)


def _read_body(sock: socket.socket, pending: bytearray, head: bytes) -> bytes:
    """The whole body of an answer, as it is framed; the server closes the connection after it."""
    length = _length(head)
    if length is not None:
        return _read_exactly(sock, pending, length)
    body = bytearray(pending)
    while block := sock.recv(_BLOCK):
        body += block
    return bytes(body)


def _length(head: bytes) -> int | None:
    """What ``Content-Length`` says; None when the message is framed otherwise."""
    found = _LENGTH.search(head)
    return int(found[1]) if found and not _CHUNKED.search(head) else None
