"""What servers and agents say to each other over the socket of a run.

Decided here and only here: the first line of a connection, and the frames after it. The first line is JSON, in every
version of the protocol, and one of

    {"follow": {"version": 1, "seen": n}}   the events after number n, and orders; answered by a line ``Hello``
    {"end": "why"}                          end everything at once; answered by the end of the connection
    {"attach": ...}                         see ``attach``

After ``follow`` come frames: a length (4 bytes, big-endian) and as many bytes of msgpack: ``Order`` from the server,
``Noted`` and ``Kept`` from the agent. All of it is untrusted: a length is checked before memory is taken.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from casstore.errors import AccessError, FormatError
from casstore_orchestrator.agent.folder import VERSION
from casstore_orchestrator.events import Effect, Event

__all__ = ["Frames", "Hello", "Kept", "Noted", "Order", "check_peer", "decode_line", "encode", "read_line", "send_line"]

MAX_LINE = 64 << 10
MAX_FRAME = 16 << 20
_LENGTH = struct.Struct(">I")
_PEER = struct.Struct("3i")
_READ = 64 << 10


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of an agent: the number of the last order that it took, and its process."""

    version: int = VERSION
    taken: int = 0
    pid: int = 0


class Order(msgspec.Struct, frozen=True, tag="order", array_like=True):
    """Carry this out."""

    number: int
    effect: Effect


class Noted(msgspec.Struct, frozen=True, tag="noted", array_like=True):
    """Something happened, and is in the journal."""

    number: int
    event: Event


class Kept(msgspec.Struct, frozen=True, tag="kept", array_like=True):
    """All orders up to this number are in the journal."""

    number: int


Message = Order | Noted | Kept
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """One frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts together what arrives in pieces; holds at most one frame that is not whole."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now. ``FormatError`` for what is none."""
        self._data += data
        found: list[Message] = []
        start = 0
        while len(self._data) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, start)
            if length > MAX_FRAME:
                raise FormatError(f"a frame of {length} bytes is longer than {MAX_FRAME}")
            begin, end = start + _LENGTH.size, start + _LENGTH.size + length
            if end > len(self._data):
                break
            try:
                found.append(_decoder.decode(memoryview(self._data)[begin:end]))
            except msgspec.MsgspecError as error:
                raise FormatError(f"a frame can't be understood: {error}") from None
            start = end
        del self._data[:start]
        return found


def send_line(connection: socket.socket, line: Mapping[str, object]) -> None:
    """Send a line of JSON."""
    connection.sendall(json.dumps(line).encode() + b"\n")


def read_line(connection: socket.socket) -> bytes:
    """The first line, without its newline, and nothing behind it. Empty when the connection ended before."""
    line = bytearray()
    while len(line) <= MAX_LINE:
        seen = connection.recv(min(_READ, MAX_LINE + 1 - len(line)), socket.MSG_PEEK)
        if not seen:
            return b""
        end = seen.find(b"\n")
        taken = connection.recv(len(seen) if end < 0 else end + 1)
        line += taken
        if line.endswith(b"\n"):
            return bytes(line[:-1])
    raise FormatError(f"the first line is longer than {MAX_LINE} bytes")


def decode_line(line: bytes) -> dict[str, Any]:
    """A line of JSON that is an object. ``FormatError``."""
    try:
        value = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"the first line is not understood: {error}") from None
    return value


def check_peer(connection: socket.socket) -> int:
    """The process at the other end, which must be of this user, or root; 0 where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid not in {0, os.geteuid()}:
        raise AccessError("only the owner of a run may speak to its agent")
    return int(pid)
