"""Chunks that are missing, from files that still have them.

Decided here and only here: that a folder's files are cut as the store cuts, and that of them only those chunks are
stored that are missing. Whatever the files are called and wherever they were: a chunk is known by its id.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from casstore import hashing
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.chunking.params import ChunkerParams
from casstore.errors import SourceError
from casstore.format.pack import PackKind
from casstore.repo.repair.storing import Storing

__all__ = ["restore_chunks"]

_BUFFER = 4 << 20


def restore_chunks(folder: str, wanted: dict[bytes, int], params: ChunkerParams, storing: Storing) -> int:
    """Store the chunks of ``wanted`` that files below ``folder`` have, and return how many those were.

    They are taken out of ``wanted``. ``SourceError`` when there is no such folder; files that can't be read are
    passed over.
    """
    if not os.path.isdir(folder):
        raise SourceError(f"{folder} is not a folder")
    before = len(wanted)
    chunker = FastCDCChunker(params)
    buffer = bytearray(max(_BUFFER, 2 * params.max))
    for path in _files(os.fsencode(folder)):
        if not wanted:
            break
        for chunk in _chunks(path, chunker, buffer):
            if hashing.digest(chunk) in wanted:
                del wanted[storing.add(PackKind.DATA, bytes(chunk))]
    storing.flush()
    return before - len(wanted)


def _files(folder: bytes) -> Iterator[bytes]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path
            except OSError:
                continue  # removed meanwhile


def _chunks(path: bytes, chunker: FastCDCChunker, buffer: bytearray) -> Iterator[memoryview]:
    """Yield the chunks of a file; each is valid until the next one is asked for."""
    view = memoryview(buffer)
    try:
        with open(path, "rb", buffering=0, opener=_opener) as file:
            filled, final = 0, False
            while not final or filled:
                while not final and filled < len(buffer):
                    count = file.readinto(view[filled:])
                    final = not count
                    filled += count or 0
                at = 0
                for length in chunker.cut(view[:filled], final=final) if filled else ():
                    yield view[at : at + length]
                    at += length
                view[: filled - at] = bytes(view[at:filled])
                filled -= at
    except OSError:
        return


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
