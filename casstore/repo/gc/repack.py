"""Moving what is needed out of packs that go.

Decided here and only here: how frames get from old packs into new ones. They are copied as they are stored, after
they were decoded and compared with their digests, so that a damaged one is never given a new home. New packs keep
data and metadata apart, and the order of the old ones. They are published before anything is deleted. References are
copied as they are, all of them, and not followed.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from casstore.backend.base import Absent
from casstore.compression import REFERENCE
from casstore.errors import IntegrityError, PreconditionError
from casstore.format.index import Location
from casstore.format.pack import PackKind, Record, verify_frames
from casstore.repo import layout
from casstore.repo.packs import PackBuilder
from casstore.repo.store import Store
from casstore.repo.writer import PUBLISH_EVERY

__all__ = ["Mover"]

_GAP = 64 << 10
"""Bytes between two wanted frames that are rather read than skipped."""
_PART = 8 << 20
"""Bytes that are read at once, unless one frame is longer."""


class Mover:
    """Copies frames into new packs. Not thread-safe. What was moved is published by ``finish``, some of it before.

    No pack gets an id that is in ``avoid``: those are being deleted, perhaps by somebody who stands still.
    """

    def __init__(self, store: Store, avoid: Container[bytes]) -> None:
        self._store = store
        self._avoid = avoid
        self._builders: dict[PackKind, PackBuilder] = {}
        self._places: list[tuple[bytes, Location]] = []
        self._fresh: set[bytes] = set()
        self.packs: set[bytes] = set()
        """The packs that were written."""
        self.size = 0
        """Bytes that were copied."""

    def has(self, chunk_id: bytes) -> bool:
        """Whether this chunk was moved, not only a reference to it, and is not published yet."""
        return chunk_id in self._fresh

    def move(self, pack_id: bytes, kind: PackKind, records: Sequence[Record]) -> None:
        """Copy these frames of a pack. ``IntegrityError`` when one is damaged; others may have been copied then."""
        key = layout.pack_key(pack_id)
        for part in _parts(records):
            start, end = part[0].offset, part[-1].offset + part[-1].stored
            view = memoryview(self._store.backend.read(key, start, end - start))
            damaged = verify_frames(part, view, start=start)
            if damaged:
                raise IntegrityError(f"{key}: chunk {damaged[0].hex()} is damaged", hint="run `osmo store repair`")
            for frame in part:
                at = frame.offset - start
                self._append(kind, frame, view[at : at + frame.stored])

    def _append(self, kind: PackKind, frame: Record, payload: memoryview) -> None:
        if frame.chunk_id in self._fresh:
            return
        builder = self._builders.get(kind)
        if builder is None:
            builder = self._builders[kind] = PackBuilder(kind)
        builder.append(frame.chunk_id, frame.raw, frame.codec, payload)
        if frame.codec != REFERENCE:
            self._fresh.add(frame.chunk_id)
        self.size += frame.stored
        if builder.full:
            self._store_pack(builder)
            if len(self._places) >= PUBLISH_EVERY:
                self._publish()

    def _store_pack(self, builder: PackBuilder) -> None:
        sealed = builder.seal()
        if sealed.pack_id in self._avoid:
            builder.salt()
            sealed = builder.seal()
        key, backend = layout.pack_key(sealed.pack_id), self._store.backend
        try:
            backend.put(key, sealed.parts, condition=Absent())
        except PreconditionError:
            # An earlier attempt stored the same, unless it was cut short since.
            if backend.stat(key).size != sealed.size:
                backend.put(key, sealed.parts)
        self.packs.add(sealed.pack_id)
        self._places.extend(sealed.places)
        builder.reset()

    def _publish(self) -> None:
        self._store.index.publish(self._places)
        self._fresh.difference_update([chunk_id for chunk_id, _ in self._places])
        self._places = []

    def finish(self) -> None:
        """Store and publish what is left. Afterwards the moved chunks are found in the new packs."""
        for builder in self._builders.values():
            if len(builder):
                self._store_pack(builder)
        self._publish()


def _parts(records: Sequence[Record]) -> list[list[Record]]:
    """Cut frames, in the order of a pack, into runs that are read at once."""
    parts: list[list[Record]] = []
    for frame in records:
        part = parts[-1] if parts else []
        end = part[-1].offset + part[-1].stored if part else 0
        if part and frame.offset - end <= _GAP and frame.offset + frame.stored - part[0].offset <= _PART:
            part.append(frame)
        else:
            parts.append([frame])
    return parts
