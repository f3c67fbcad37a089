"""A process that reads, cuts, hashes and compresses small files for an upload.

Decided here and only here: what such a process does, and how it talks. For a small file the interpreter costs more than
the C libraries, and one interpreter runs on one core: an upload of many small files hands them to a few of these
(``docs/adr/0005-reader-processes.md``). It decides nothing: which chunks are new, and where they go, the upload says.

Requests and replies are MessagePack behind a length (u32, little endian), on standard input and output. A request is a
list of ``(path, state)``; a reply has for each file the list of its chunks ``(id, raw, codec, offset, stored)``, or nil
where the upload had better look itself: gone, unreadable, or not in the state it was listed in. The stored bytes are at
those offsets in memory that both share. The process ends with its input.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from typing import BinaryIO, TypeAlias

import msgspec

from casstore import hashing
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.chunking.params import ChunkerParams
from casstore.compression import RAW, Compressor
from casstore.transfer.scan import State, open_deep, state_of

Request: TypeAlias = list[tuple[bytes, State]]
Chunk: TypeAlias = tuple[bytes, int, int, int, int]
Reply: TypeAlias = list[list[Chunk] | None]

LENGTH_SIZE = 4
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def send(pipe: BinaryIO, message: bytes) -> None:
    """Write one message."""
    pipe.write(len(message).to_bytes(LENGTH_SIZE, "little") + message)
    pipe.flush()


def receive(pipe: BinaryIO) -> bytes:
    """Read one message; ``EOFError`` when the other side is gone."""
    head = pipe.read(LENGTH_SIZE)
    length = int.from_bytes(head, "little")
    message = pipe.read(length) if len(head) == LENGTH_SIZE else b""
    if len(head) < LENGTH_SIZE or len(message) < length:
        raise EOFError
    return message


class Worker:
    """Reads files into shared memory, chunk by chunk as they are to be stored."""

    def __init__(self, memory: mmap.mmap, params: ChunkerParams) -> None:
        self._view = memoryview(memory)
        self._params = params
        self._chunker = FastCDCChunker(params)
        self._compressor = Compressor()
        self._used = 0

    def handle(self, request: Request) -> Reply:
        """Return the chunks of these files; their stored bytes are in the shared memory until the next call."""
        self._used = 0
        return [self._read(path, state) for path, state in request]

    def _read(self, path: bytes, state: State) -> list[Chunk] | None:
        size, start = state[1], self._used
        if start + size + 1 > len(self._view):
            return None
        try:
            descriptor = open_deep(path, READ_FLAGS)
        except OSError:
            return None
        try:
            got = os.readv(descriptor, [self._view[start : start + size + 1]])
            steady = got == size and state_of(os.fstat(descriptor)) == state
        except OSError:
            return None
        finally:
            os.close(descriptor)
        if not steady:
            return None
        data = self._view[start : start + size]
        lengths = self._chunker.cut(data, final=True) if size > self._params.min else [size] if size else []
        return [self._chunk(start + sum(lengths[:number]), length) for number, length in enumerate(lengths)]

    def _chunk(self, start: int, length: int) -> Chunk:
        data = self._view[start : start + length]
        chunk_id = hashing.digest(data)
        codec, payload = self._compressor.encode(data)
        # What is stored never goes beyond what was read: the bytes that it replaces are behind us.
        offset, stored = self._used, len(payload)
        if codec != RAW or offset != start:
            self._view[offset : offset + stored] = payload
        self._used = offset + stored
        return chunk_id, length, codec, offset, stored


def main() -> None:
    """Serve the upload that started this process. Arguments: descriptor and size of the memory, chunk sizes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the upload is told, and closes our input
    descriptor, size, low, average, high = (int(argument) for argument in sys.argv[1:])
    worker = Worker(mmap.mmap(descriptor, size), ChunkerParams(low, average, high))
    while True:
        try:
            request = receive(sys.stdin.buffer)
        except EOFError:
            return
        send(sys.stdout.buffer, encode(worker.handle(decode_request(request))))
