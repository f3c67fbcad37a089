"""What a repair stores: packs, segments of the index, and roots of manifests.

Decided here and only here: that a repair stores as an upload does, packs before the index and the index before
manifests, and that it never stores a pack under an id that is being deleted.
"""

from __future__ import annotations

import contextlib

from casstore import hashing
from casstore.backend.base import Absent, Backend
from casstore.compression import Compressor
from casstore.errors import ConflictError, PreconditionError
from casstore.format.index import Location, encode
from casstore.format.pack import PackKind
from casstore.repo import layout
from casstore.repo.check.places import Places
from casstore.repo.packs import PackBuilder, put_pack
from casstore.repo.segments import new_nonce
from casstore.repo.trash import DyingSet
from casstore.repo.tree import living_root

__all__ = ["Storing", "put_segment"]


def put_segment(backend: Backend, places: list[tuple[bytes, Location]]) -> str:
    """Write a segment of the index, under a name that none ever had, and return its key."""
    data = encode(places, nonce=new_nonce())
    key = layout.index_key(hashing.digest(data))
    backend.put(key, [data])
    return key


class Storing:
    """Stores chunks that a repair has found or made; a ``NodeSink``. Not thread-safe."""

    def __init__(self, backend: Backend, places: Places, dying: DyingSet) -> None:
        self._backend = backend
        self._places = places
        self._dying = dying
        self._compressor = Compressor()
        self._builders = {kind: PackBuilder(kind) for kind in PackKind}
        self._taken: set[bytes] = set()
        self._stored: list[tuple[bytes, Location]] = []
        self.used: set[bytes] = set()
        self.new_bytes = 0
        self.manifest = b""

    def add(self, kind: PackKind, data: bytes | memoryview) -> bytes:
        """Store a chunk unless it is there; returns its id."""
        chunk_id = hashing.digest(data)
        if chunk_id in self._taken:
            return chunk_id
        self._taken.add(chunk_id)
        place = self._places.find(chunk_id, needed=False)
        if place is not None and place.pack_id not in self._dying.packs:
            self.used.add(place.pack_id)
            return chunk_id
        codec, payload = self._compressor.encode(data)
        builder = self._builders[kind]
        builder.append(chunk_id, len(data), codec, payload)
        self.new_bytes += len(payload)
        if builder.full:
            self._write(builder)
        return chunk_id

    def _write(self, builder: PackBuilder) -> None:
        sealed = builder.seal()
        if sealed.pack_id in self._dying.packs:
            raise ConflictError(
                f"{layout.pack_key(sealed.pack_id)} is being deleted", hint="collect garbage, then repair again"
            )
        put_pack(self._backend, sealed)
        self.used.add(sealed.pack_id)
        self._stored += sealed.places
        del sealed
        builder.reset()

    def flush(self) -> None:
        """Write what is left, and make all of it known."""
        for builder in self._builders.values():
            if len(builder):
                self._write(builder)
        if self._stored:
            put_segment(self._backend, self._stored)
            self._stored = []

    def put_node(self, data: bytes) -> bytes:
        """Store a node of a tree."""
        return self.add(PackKind.META, data)

    def put_manifest(self, data: bytes) -> bytes:
        """Store the root of a tree, after everything that it leads to."""
        manifest_id, data = living_root(self, data, self._dying.manifests)
        self.flush()
        self.manifest = manifest_id
        with contextlib.suppress(PreconditionError):
            self._backend.put(layout.manifest_key(manifest_id), [data], condition=Absent())
        return manifest_id
