"""The journal of a run: what its agent was ordered and what it observed, in the order in which that became final.

Decided here and only here: the bytes of the file. It begins with a line that names the version; then come records: the
length of the body and its CRC-32 (4 bytes each, big-endian), and the body (msgpack). It is written by the agent alone,
which only ever appends; a write that was cut off, by a full disk or the end of the process, is no record. What follows
damage is not read. Nothing is synced: a journal has to outlive processes and not the machine, with which its run ends.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from casstore.errors import FormatError
from casstore_orchestrator.agent.folder import VERSION
from casstore_orchestrator.events import Attempt, Effect, Event, NewAttempt, RestartInPlace, StartGroup

__all__ = ["Entry", "Happened", "Journal", "Over", "Past", "Taken", "read"]

_HEADER = b"casstore run %d\n" % VERSION
_MAX_HEADER = 64
_PREFIX = struct.Struct(">II")
MAX_BODY = 16 << 20
"""Bytes of one record: no order or event comes near."""


class Happened(msgspec.Struct, frozen=True, tag="event", array_like=True):
    """Something was observed. Numbered 1, 2, 3..."""

    number: int
    event: Event


class Taken(msgspec.Struct, frozen=True, tag="order", array_like=True):
    """An order was taken. Numbered 1, 2, 3..."""

    number: int
    effect: Effect


class Over(msgspec.Struct, frozen=True, tag="over", array_like=True):
    """The last record: nothing of the run is left. ``why`` it ended without having been closed, else empty."""

    why: str = ""


Entry = Happened | Taken | Over
_decoder = msgspec.msgpack.Decoder(Entry)


class Past(msgspec.Struct, kw_only=True):
    """All that a journal holds."""

    events: list[Happened] = []
    orders: list[Taken] = []
    over: Over | None = None

    @property
    def attempts(self) -> set[tuple[str, int]]:
        """Task and number of every attempt that the run was told to prepare."""
        found: set[tuple[str, int]] = set()
        for order in self.orders:
            effect = order.effect
            attempts: tuple[Attempt, ...] = ()
            if isinstance(effect, StartGroup):
                attempts = effect.attempts
            elif isinstance(effect, NewAttempt | RestartInPlace):
                attempts = (effect.attempt,)
            found.update((attempt.task, attempt.retry_id) for attempt in attempts)
        return found


class Journal:
    """The writing end. Thread-safe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = 0
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    def create(cls, path: Path) -> Journal:
        """Begin a journal; ``FileExistsError`` when there is one."""
        made = cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600))
        try:
            made._write(_HEADER)
        except BaseException:
            made.close()
            raise
        return made

    def append(self, entry: Entry) -> None:
        """Add a record; on ``OSError`` none was added, and it may be tried again."""
        body = self._encoder.encode(entry)
        if len(body) > MAX_BODY:
            raise FormatError(f"a record of {len(body)} bytes is too long for the journal of a run")
        with self._lock:
            self._write(_PREFIX.pack(len(body), zlib.crc32(body)) + body)

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:  # a disk that becomes full takes a part
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)


def read(path: Path) -> Past | None:
    """All whole records; None when no agent has begun. ``FormatError`` when another version wrote it."""
    past = Past()
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return None
    with file:
        header = file.readline(_MAX_HEADER)
        if header != _HEADER:
            if _HEADER.startswith(header):  # cut off while it was written
                return past
            raise FormatError("the journal of the run was written by another version")
        for entry in _entries(file):
            if isinstance(entry, Happened):
                past.events.append(entry)
            elif isinstance(entry, Taken):
                past.orders.append(entry)
            else:
                past.over = entry
    return past


def _entries(file: BinaryIO) -> Iterator[Entry]:
    left = os.fstat(file.fileno()).st_size - len(_HEADER)
    while left >= _PREFIX.size:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            return
        length, checksum = _PREFIX.unpack(prefix)
        left -= _PREFIX.size
        if length > min(left, MAX_BODY):
            return
        body = file.read(length)
        if len(body) < length or zlib.crc32(body) != checksum:
            return
        left -= length
        try:
            yield _decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise FormatError(f"the journal of the run holds what this version does not know: {error}") from None
