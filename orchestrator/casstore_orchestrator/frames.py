"""The frames of an interactive connection between a server and the agent of a group.

Decided here and only here: their form and kinds. After the line that asks for something and the line that grants it,
both sides send frames: one byte for the kind, four for the length (big-endian), and as many bytes. ``DATA`` is what a
program reads or writes (or, for UDP, an address and a datagram: see ``agent.attach``), ``ERRORS`` what it writes to its
standard error, ``EOF`` the end of one direction, ``RESIZE`` the new size of its terminal, ``EXIT`` how it ended. All of
it is untrusted: a length is checked before memory is taken.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from casstore.errors import FormatError

__all__ = [
    "HEADER_BYTES",
    "MAX_DATA",
    "MAX_PAYLOAD",
    "Frame",
    "Frames",
    "Kind",
    "encode",
    "exit_status",
    "exited",
    "parse_header",
    "resize",
    "size_of",
]

MAX_DATA = 64 << 10
"""As much as one frame of a stream carries."""
MAX_PAYLOAD = MAX_DATA + 64
"""A datagram can be this long, with its address."""
_HEADER = struct.Struct(">BI")
_SIZE = struct.Struct(">HH")
_EXIT = struct.Struct(">BB")
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """What a frame carries."""

    DATA = 0
    ERRORS = 1
    EOF = 2
    RESIZE = 3
    EXIT = 4


Frame = tuple[Kind, bytes]


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def resize(rows: int, columns: int) -> bytes:
    """The frame for a terminal of this size."""
    return encode(Kind.RESIZE, _SIZE.pack(rows, columns))


def size_of(payload: bytes) -> tuple[int, int]:
    """Rows and columns of a ``RESIZE``. ``FormatError``."""
    try:
        rows, columns = _SIZE.unpack(payload)
    except struct.error:
        raise FormatError("the size of a terminal is damaged") from None
    return rows, columns


def exited(code: int, *, with_the_task: bool) -> bytes:
    """The frame for the end of a program; ``with_the_task``: it was ended because the task did."""
    return encode(Kind.EXIT, _EXIT.pack(code & 255, with_the_task))


def exit_status(payload: bytes) -> tuple[int, bool]:
    """What ``exited`` was given. ``FormatError``."""
    try:
        code, with_the_task = _EXIT.unpack(payload)
    except struct.error:
        raise FormatError("the end of a program is damaged") from None
    return code, bool(with_the_task)


def parse_header(data: bytes | bytearray, start: int = 0) -> tuple[Kind, int]:
    """Kind and length of the frame that begins there. ``FormatError``."""
    kind, length = _HEADER.unpack_from(data, start)
    if length > MAX_PAYLOAD or kind > max(Kind):
        raise FormatError(f"a frame of kind {kind} with {length} bytes is not allowed")
    return Kind(kind), length


class Frames:
    """Puts together what arrives in pieces; holds at most one frame that is not whole."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. ``FormatError``."""
        self._data += data
        found: list[Frame] = []
        start = 0
        while len(self._data) - start >= HEADER_BYTES:
            kind, length = parse_header(self._data, start)
            end = start + HEADER_BYTES + length
            if end > len(self._data):
                break
            found.append((kind, bytes(memoryview(self._data)[start + HEADER_BYTES : end])))
            start = end
        del self._data[:start]
        return found
