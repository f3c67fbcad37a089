"""The checksum of local files, without a store.

Decided here and only here: that it is what an upload of the same files would find. It is the same walk, the same cuts
and the same sums; only the place where chunks go keeps nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.chunking.params import ChunkerParams
from casstore.format.pack import PackKind
from casstore.model import Buffer
from casstore.repo.live import NOTHING
from casstore.repo.store import FORMAT, Store, StoreConfig
from casstore.repo.trash import DyingSet
from casstore.repo.writer import Lane, OnPack, Writer
from casstore.transfer.progress import Progress
from casstore.transfer.scan import Select, Source, describe
from casstore.transfer.upload import TreeResult, upload_tree

__all__ = ["checksum_path", "checksum_sources"]


class _ForgetfulLane(Lane):
    """Names chunks, and drops them."""

    def add(self, data: Buffer) -> bytes:
        return hashing.digest(data)

    def add_encoded(self, chunk_id: bytes, raw: int, codec: int, payload: Buffer) -> None:
        pass


class _ForgetfulWriter(Writer):
    """A writer that stores nothing; everything is new to it."""

    def lane(self, kind: PackKind = PackKind.DATA) -> Lane:
        return _ForgetfulLane(self, kind)

    def put_node(self, data: bytes) -> bytes:
        return hashing.digest(data)

    def put_manifest(self, data: bytes) -> bytes:
        return hashing.digest(data)


class _ForgetfulStore(Store):
    """A store in which nothing can be found again."""

    def __init__(self, chunker: ChunkerParams) -> None:
        super().__init__(MemoryBackend(), StoreConfig(format=FORMAT, id="0" * 32, chunker=chunker.to_dict()))

    def writer(self, *, lanes: int | None = None, on_pack: OnPack | None = None, dying: DyingSet = NOTHING) -> Writer:
        return _ForgetfulWriter(self.backend, self.index, lanes=1, on_pack=on_pack)


def checksum_sources(
    sources: Sequence[Source],
    *,
    chunker: ChunkerParams | None = None,
    select: Select | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> TreeResult:
    """Return what ``upload_tree`` would return for these sources, without storing anything.

    ``chunker``: the parameters of the store that it is to be compared with; those of a new store by default. The id of
    the manifest covers times too; ``checksum`` covers content alone. Errors as ``upload_tree``.
    """
    with _ForgetfulStore(chunker or ChunkerParams()) as store:
        return upload_tree(store, sources, select=select, progress=progress, threads=threads)


def checksum_path(path: str | bytes, *, chunker: ChunkerParams | None = None) -> str:
    """Return the checksum (64 hexadecimal digits) of a version with the content of the folder ``path``.

    A folder that was downloaded has the checksum of the version that it came from. Of a file: the version that holds
    this one file. How the path is spelled makes no difference. ``SourceError`` when something can't be read.
    """
    real = os.path.realpath(os.fsencode(path))
    try:
        folder = stat.S_ISDIR(os.stat(real).st_mode)
    except OSError as error:
        raise describe(error, os.fsencode(path)) from None
    name = os.path.basename(os.path.abspath(os.fsencode(path)))
    source = Source(real, b"", contents=True) if folder else Source(real, name)
    return checksum_sources([source], chunker=chunker).checksum.hex()
