"""Writing chunks: deduplication, packs, and making them known.

Decided here and only here: the order packs -> index, and who may skip a chunk. A ``Writer`` belongs to one upload; each
of its threads works in a ``Lane`` of its own (a compressor and a pack under construction), so that threads meet only in
a dictionary look-up. Full packs are written by a few background threads; the number of packs in memory is bounded.

A chunk that is only referred to (``format.reference``) may be lost any time, by somebody who knows nothing of this
store: what is uploaded never relies on it. A version that refers to objects gets a reference of its own to each of
them, also where an equal chunk of another object is referred to already.

A chunk that this writer has taken but not yet stored counts as known to its own lanes: the version that refers to it
is committed after ``flush``, which waits for all of them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from casstore import hashing
from casstore.backend.base import Absent, Backend, Buffer
from casstore.compression import REFERENCE, Compressor
from casstore.errors import PreconditionError
from casstore.format.index import Location
from casstore.format.pack import PackKind
from casstore.format.reference import LEAST, Pointer, encode_pointer
from casstore.repo import layout, packs
from casstore.repo.index import Index
from casstore.repo.live import NOTHING, LivePacks
from casstore.repo.packs import PackBuilder, Sealed, put_pack
from casstore.repo.trash import DyingSet
from casstore.repo.tree import living_root

PUBLISH_EVERY = 1 << 18
"""New chunks after which the index gets a segment, so that memory stays bounded however large the upload."""
WRITERS = 2
"""Background threads that write packs to local files."""
SENDERS = 4
"""The same for an object store: each waits for the line most of its time."""

OnPack = Callable[[bytes], None]


class Lane:
    """The part of a writer that one thread works in. ``new_bytes`` and ``new_chunks`` count what it stored."""

    def __init__(self, writer: Writer, kind: PackKind) -> None:
        self._writer = writer
        self._kind = kind
        self._compressor = Compressor()
        self._builder: PackBuilder | None = None
        self.new_bytes = 0
        self.new_chunks = 0

    def add(self, data: Buffer) -> bytes:
        """Store one chunk unless it is known; returns its id. The buffer may be reused at once."""
        chunk_id = hashing.digest(data)
        if self._writer.claim(chunk_id):
            codec, payload = self._compressor.encode(data)
            self._append(chunk_id, len(data), codec, payload)
        return chunk_id

    def add_encoded(self, chunk_id: bytes, raw: int, codec: int, payload: Buffer) -> None:
        """Store one chunk that was hashed and encoded elsewhere, unless it is known."""
        if self._writer.claim(chunk_id):
            self._append(chunk_id, raw, codec, payload)

    def refer(self, data: Buffer, pointer: Pointer) -> bytes:
        """Store where one chunk is instead of its bytes, unless it is stored already; returns its id.

        ``ValueError`` for one of less than ``LEAST`` bytes.
        """
        if len(data) < LEAST:
            raise ValueError(f"a chunk that is referred to has at least {LEAST} bytes, not {len(data)}")
        chunk_id = hashing.digest(data)
        if self._writer.claim_reference(chunk_id, pointer):
            self._append(chunk_id, len(data), REFERENCE, encode_pointer(pointer))
        return chunk_id

    def _append(self, chunk_id: bytes, raw: int, codec: int, payload: Buffer) -> None:
        builder = self._builder
        if builder is None:
            builder = self._builder = self._writer.take_builder(self._kind)
        builder.append(chunk_id, raw, codec, payload)
        self.new_bytes += len(payload)
        self.new_chunks += 1
        if builder.full:
            self._builder = None
            self._writer.submit(builder)

    def release(self) -> PackBuilder | None:
        """Give up the pack under construction, for the writer to finish."""
        builder, self._builder = self._builder, None
        return builder


class Writer:
    """Adds chunks to a store. Use as a context manager: leaving it with an error drops what was not stored."""

    def __init__(
        self, backend: Backend, index: Index, *, lanes: int, on_pack: OnPack | None = None, dying: DyingSet = NOTHING
    ) -> None:
        """``dying`` is not relied on, and nothing is stored under an id that is in it."""
        self._backend = backend
        self._index = index
        self._on_pack = on_pack
        self._dying = dying
        self.packs = LivePacks(backend, dying.packs)
        index.load()
        self._new: dict[bytes, object] = {}
        self._referred: dict[bytes, None] = {}
        self._pointers: dict[tuple[bytes, str, str, str], object] = {}
        self._places: list[tuple[bytes, Location]] = []
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._free: dict[PackKind, queue.SimpleQueue[PackBuilder]] = {k: queue.SimpleQueue() for k in PackKind}
        local = backend.capabilities.local
        # Where writing waits, every lane has a pack to fill while all that can be are on their way.
        count = lanes + 1 if local else lanes + SENDERS
        target = min(packs.PACK_TARGET, max(packs.PACK_LEAST, packs.PACK_MEMORY // count))
        for _ in range(count):
            self._free[PackKind.DATA].put(PackBuilder(PackKind.DATA, target))
        for _ in range(2):
            self._free[PackKind.META].put(PackBuilder(PackKind.META))
        self._full: queue.SimpleQueue[PackBuilder | None] = queue.SimpleQueue()
        self._pending = 0
        self._idle = threading.Condition(self._lock)
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._write_packs, name=f"casstore-pack-{n}", daemon=True)
            for n in range(WRITERS if local else SENDERS)
        ]
        for thread in self._threads:
            thread.start()
        self._meta = self.lane(PackKind.META)
        self._meta_lock = threading.Lock()

    @property
    def dying(self) -> frozenset[bytes]:
        """The packs that this writer does not rely on."""
        return self._dying.packs

    def lane(self, kind: PackKind = PackKind.DATA) -> Lane:
        """Return a new lane for the calling thread."""
        lane = Lane(self, kind)
        with self._lock:
            self._lanes.append(lane)
        return lane

    def known(self, chunk_id: bytes) -> bool:
        """Whether a version may rely on this chunk without it being added again."""
        return chunk_id in self._new or self._is_stored(chunk_id)

    def present(self, chunk_id: bytes) -> bool:
        """The same for a version that takes what another one refers to as it is: a chunk may be only referred to."""
        if self.known(chunk_id) or chunk_id in self._referred:
            return True
        return any(place.codec == REFERENCE and self.packs.holds(place) for place in self._index.places(chunk_id))

    def _is_stored(self, chunk_id: bytes) -> bool:
        return any(place.codec != REFERENCE and self.packs.holds(place) for place in self._index.places(chunk_id))

    def claim(self, chunk_id: bytes) -> bool:
        """Whether the caller has to store this chunk: True for exactly one of the lanes that ask."""
        if self._is_stored(chunk_id):
            return False
        # One atomic operation instead of a lock: threads meet here for every chunk.
        token = object()
        return self._new.setdefault(chunk_id, token) is token

    def claim_reference(self, chunk_id: bytes, pointer: Pointer) -> bool:
        """Whether the caller has to refer to this chunk of this object."""
        if self.known(chunk_id):
            return False
        token = object()
        if self._pointers.setdefault((chunk_id, *pointer[:3]), token) is not token:
            return False
        self._referred[chunk_id] = None
        return True

    def put_node(self, data: bytes) -> bytes:
        """Store a node of a manifest; returns its id. For any thread."""
        with self._meta_lock:
            return self._meta.add(data)

    @property
    def new_bytes(self) -> int:
        """Bytes of frames stored so far, metadata included."""
        return sum(lane.new_bytes for lane in self._lanes)

    @property
    def new_chunks(self) -> int:
        """Data chunks stored so far."""
        return sum(lane.new_chunks for lane in self._lanes if lane is not self._meta)

    def take_builder(self, kind: PackKind) -> PackBuilder:
        """Return an empty pack; waits until one is free, which bounds the memory."""
        while True:
            self._raise_error()
            try:
                builder = self._free[kind].get(timeout=0.5)
            except queue.Empty:
                continue
            self._raise_error()  # it may be free because it could not be written
            return builder

    def submit(self, builder: PackBuilder) -> None:
        """Have a pack written in the background."""
        self._raise_error()
        with self._lock:
            self._pending += 1
        self._full.put(builder)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _write_packs(self) -> None:
        while (builder := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._store(self._sealed(builder))
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for this pack
                self._error = self._error or error
            builder.reset()
            self._free[builder.kind].put(builder)
            with self._idle:
                self._pending -= 1
                self._idle.notify_all()

    def _sealed(self, builder: PackBuilder) -> Sealed:
        sealed = builder.seal()
        if sealed.pack_id in self._dying.packs:
            builder.salt()
            sealed = builder.seal()
        return sealed

    def _store(self, sealed: Sealed) -> None:
        put_pack(self._backend, sealed)
        self.packs.stored(sealed.pack_id, sealed.size)
        if self._on_pack is not None:
            self._on_pack(sealed.pack_id)
        with self._lock:
            self._places.extend(sealed.places)
            due = len(self._places) >= PUBLISH_EVERY
        if due:
            self._publish()

    def _publish(self) -> None:
        with self._lock:
            places, self._places = self._places, []
        self._index.publish(places, lost=self.packs.lost)
        with self._lock:
            for chunk_id, _ in places:
                self._new.pop(chunk_id, None)
                self._referred.pop(chunk_id, None)
            self._pointers.clear()  # a chunk that an object has twice may be referred to once more

    def adopt(self, places: list[tuple[bytes, Location]]) -> None:
        """Take the chunks of a pack that an interrupted upload left behind as known."""
        with self._lock:
            for chunk_id, place in places:
                if place.codec == REFERENCE:
                    self._referred[chunk_id] = None
                    self._places.append((chunk_id, place))
                elif chunk_id not in self._new and not self._is_stored(chunk_id):
                    self._new[chunk_id] = None
                    self._places.append((chunk_id, place))

    def flush(self) -> None:
        """Write all packs and make their chunks known. The lanes may go on afterwards, with new packs."""
        with self._lock:
            rest = [builder for lane in self._lanes if (builder := lane.release()) is not None]
        for builder in rest:
            self.submit(builder)
        with self._idle:
            while self._pending:
                self._idle.wait()
        self._raise_error()
        self._publish()

    def put_manifest(self, data: bytes) -> bytes:
        """Write the root of a manifest, after everything it refers to; returns its id."""
        manifest_id, data = living_root(self, data, self._dying.manifests)
        self.flush()
        with contextlib.suppress(PreconditionError):
            self._backend.put(layout.manifest_key(manifest_id), [data], condition=Absent())
        return manifest_id

    def close(self) -> None:
        """Stop the background threads and give the buffers back. What was not flushed is dropped."""
        for _ in self._threads:
            self._full.put(None)
        for thread in self._threads:
            thread.join()
        self._free.clear()
        for lane in self._lanes:
            lane.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._error = self._error or error
        self.close()
