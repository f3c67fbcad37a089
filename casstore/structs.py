"""Types that are decoded, made ready before threads need them.

Decided here and only here: how a fault of msgspec (0.19 to 0.22) is kept away. It works out what a type looks like when
the type is first used, and runs Python code while it does; a second thread that uses the type meanwhile, or one that
has it for a field, reads memory that is not filled yet, and the process dies. So whatever is not decoded by a decoder
that its module made when it was imported is decoded by the functions here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeVar

import msgspec

__all__ = ["convert", "from_json", "from_msgpack", "ready", "settle"]

T = TypeVar("T")
_lock = threading.Lock()
_ready: set[object] = set()


def ready(kind: object) -> None:
    """Make a type ready; to be called before the type is used for decoding, where threads may be first to use it."""
    if kind in _ready:
        return
    with _lock:
        msgspec.json.Decoder(kind)
        _ready.add(kind)


def from_json(data: bytes | bytearray | memoryview | str, kind: type[T]) -> T:
    """Return what a JSON document says; the errors are msgspec's."""
    ready(kind)
    return msgspec.json.decode(data, type=kind)


def from_msgpack(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Return what a MessagePack document says; the errors are msgspec's."""
    ready(kind)
    return msgspec.msgpack.decode(data, type=kind)


def convert(value: object, kind: type[T]) -> T:
    """Return a decoded document as a type; the errors are msgspec's."""
    ready(kind)
    return msgspec.convert(value, kind)


def settle() -> None:
    """Make every type ready that is defined so far; to be called before there are threads."""
    for kind in _subclasses(msgspec.Struct):
        try:
            ready(kind)
        except (TypeError, NameError, ValueError):  # one that is only encoded, or of another library
            continue


def _subclasses(kind: type) -> Iterator[type]:
    found: type
    for found in kind.__subclasses__():
        yield found
        yield from _subclasses(found)
