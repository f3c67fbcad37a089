"""Objects elsewhere that a store refers to: whether they are what they were.

Decided here and only here: what is asked of them. Each is asked once for its ETag, or its chunks are read where the
data of the pack that refers to them is. What was changed or removed is lost. What can't be asked (this user may not, or
the service fails) is not known: a check of the store notes it, a check of one version takes it for lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from casstore.compression import REFERENCE
from casstore.errors import CasstoreError, IntegrityError
from casstore.format.index import Location
from casstore.format.pack import Footer, Record
from casstore.format.reference import Pointer, parse_pointer
from casstore.repo.check.report import Note
from casstore.repo.check.session import Session
from casstore.repo.references import Part

__all__ = ["Lost", "Referred"]

Lost = dict[tuple[bytes, int], str]
"""Chunk id and offset of the frame -> why what it refers to can't be had."""

_PART = 8 << 20
"""Bytes of pointers that are read at once."""
_NAMED = 20
"""Lost objects that are named."""
_AT_ONCE = 64 << 20
"""Bytes of objects that are read at once."""


class Referred:
    """All objects that were asked for. Thread-safe: at worst one is asked for twice."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._asked: dict[Pointer, CasstoreError | None] = {}

    def lost(self, pack_id: bytes, key: str, footer: Footer, *, read: bool) -> Lost:
        """Return which references of a pack lead to nothing any more. With ``read`` all of them are followed."""
        found: Lost = {}
        for parts in self._parts(pack_id, key, [one for one in footer.records if one.codec == REFERENCE]):
            states = self._followed(parts) if read else self._confirmed(parts)
            for part, error in states:
                if isinstance(error, IntegrityError) or (error is not None and self._session.by_file):
                    found[part.chunk_id, part.place.offset] = error.message
        return found

    def _parts(self, pack_id: bytes, key: str, frames: Sequence[Record]) -> Iterator[list[Part]]:
        """Yield the references of a pack that can be parsed, as many as are looked at at once."""
        start, data, parts, size = 0, b"", list[Part](), 0
        for number, frame in enumerate(frames):
            if frame.offset + frame.stored > start + len(data):
                start = frame.offset
                end = max(one.offset + one.stored for one in frames[number:] if one.offset - start < _PART)
                data = self._session.backend.read(key, start, end - start)
            at = frame.offset - start
            try:
                pointer = parse_pointer(data[at : at + frame.stored], frame.raw)
            except IntegrityError:
                continue  # a damaged frame: told with the pack
            place = Location(pack_id, frame.offset, frame.stored, frame.raw, frame.codec)
            parts.append(Part(frame.chunk_id, frame.raw, pointer, place))
            size += frame.raw
            if size >= _AT_ONCE:
                yield parts
                parts, size = [], 0
        yield parts

    def _confirmed(self, parts: Sequence[Part]) -> list[tuple[Part, CasstoreError | None]]:
        states = {part: part.pointer._replace(offset=0) for part in parts}
        fresh = [state for state in dict.fromkeys(states.values()) if state not in self._asked]
        self._note(dict(zip(fresh, self._session.store.references.confirm_all(fresh), strict=True)))
        return [(part, self._asked[state]) for part, state in states.items()]

    def _followed(self, parts: Sequence[Part]) -> list[tuple[Part, CasstoreError | None]]:
        found = self._session.store.references.fetch(parts)
        errors = {part: data if isinstance(data, CasstoreError) else None for part, data in found.items()}
        worst: dict[Pointer, CasstoreError | None] = {}
        for part, error in errors.items():
            state = part.pointer._replace(offset=0)
            worst[state] = worst.get(state) or error
        self._note(worst)
        return list(errors.items())

    def _note(self, states: dict[Pointer, CasstoreError | None]) -> None:
        with self._lock:
            for state, error in states.items():
                self._asked[state] = self._asked.get(state) or error

    def forget(self) -> None:
        """Ask once more for what is lost, when its pack is looked at again."""
        with self._lock:
            kept = {state: error for state, error in self._asked.items() if not isinstance(error, IntegrityError)}
            self._asked = kept

    def tell(self) -> None:
        """Note how many objects are lost, and of how many that is not known."""
        errors = [error for error in self._asked.values() if error is not None]
        gone = sorted(error.message for error in errors if isinstance(error, IntegrityError))
        lost = len(gone)
        notes = self._session.report.notes
        if lost:
            notes.append(Note("references", f"objects elsewhere are lost: {'; '.join(gone[:_NAMED])}", lost, 0))
        if lost < len(errors):
            first = next(error for error in errors if not isinstance(error, IntegrityError))
            message = f"objects elsewhere could not be looked at: {first.message}"
            notes.append(Note("references", message, len(errors) - lost, 0))
