"""The packs of a store: which are whole, and which of their chunks.

Decided here and only here: what is read of a pack. Its header and footer always; all of its frames when it holds nodes
of manifests, or when it is one of those whose data is read. Then what it refers to is read, too. Which those are is
decided by the pack's id and a seed, so that the same seed reads the same packs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from casstore import hashing
from casstore.backend.base import ObjectInfo
from casstore.compression import REFERENCE
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format.index import Location
from casstore.format.pack import Footer, PackKind, Record, verify_frames
from casstore.repo import layout
from casstore.repo.check.referred import Lost, Referred
from casstore.repo.check.report import About
from casstore.repo.check.session import Session
from casstore.repo.packs import read_footer

__all__ = ["Pack", "Packs"]

_PART = 8 << 20
"""Bytes of frames that are read at once."""

_TURNS = 64

OnFooter = Callable[[bytes, Footer], None]


@dataclass(slots=True)
class Pack:
    """What is known of one pack. ``problem`` is None when header and footer are whole; ``read`` that frames were."""

    size: int
    records: int = 0
    kind: PackKind | None = None
    problem: str | None = None
    damaged: frozenset[bytes] = frozenset()
    lost: Lost = field(default_factory=dict)
    """References that lead to nothing any more: no damage of the pack."""
    read: bool = False
    used: bool = False

    @property
    def sound(self) -> bool:
        """Whether its table of contents can be believed."""
        return self.problem is None


class Packs:
    """All packs that were looked at, by id. Thread-safe."""

    def __init__(
        self, session: Session, on_footer: OnFooter, *, share: float | None, seed: int, follow: bool = True
    ) -> None:
        """``share``, from 0 to 1, is how many of the data packs are read; None: no pack's frames are, of any kind.

        ``on_footer`` is told each footer once. Without ``follow`` what packs refer to is never read, only asked for.
        """
        self._session = session
        self._backend = session.backend
        self._referred = Referred(session)
        self._on_footer = on_footer
        self._share = share
        self._follow = follow
        self._seed = seed.to_bytes(16, "little", signed=True)
        self._first: tuple[bytes, ObjectInfo] | None = None
        self.known: dict[bytes, Pack] = {}
        self.missing: set[bytes] = set()
        self.foreign: dict[str, str] = {}
        self._turns = [threading.Lock() for _ in range(_TURNS)]

    def scan(self) -> None:
        """Look at every pack that is there."""
        session = self._session
        session.spread(self._look, session.each(layout.PACKS))
        any_read = any(pack.read and pack.kind is PackKind.DATA for pack in self.known.values())
        if self._share and not any_read and self._first is not None:
            pack_id = layout.id_of(self._first[1].key)
            self.read(pack_id)  # a sample of a small store is one pack, not none

    def _look(self, info: ObjectInfo) -> None:
        try:
            pack_id = layout.id_of(info.key)
            if layout.pack_key(pack_id) != info.key:
                raise FormatError("it is in the wrong folder")
        except FormatError as error:
            self.foreign[info.key] = error.message
        else:
            self._learn(pack_id, info)
        self._session.checked(info.size)

    def _learn(self, pack_id: bytes, info: ObjectInfo, *, told: bool = False) -> Pack | None:
        """Look at a pack; None when it is gone. ``told`` says that its footer was handed on before."""
        chance = self._chance(pack_id)
        try:
            footer = read_footer(self._backend, pack_id, info.size)
            pack = Pack(info.size, len(footer.records), footer.kind)
            if self._share is not None and (footer.kind is PackKind.META or chance < self._share):
                self._frames(info.key, footer, pack)
            if self._share is not None and any(frame.codec == REFERENCE for frame in footer.records):
                pack.lost = self._referred.lost(pack_id, info.key, footer, read=pack.read and self._follow)
        except NotFoundError:
            return None
        except IntegrityError as error:
            pack = Pack(info.size, problem=error.message, read=True)
        else:
            with self._session.lock:
                known = pack_id in self.known
                self.known[pack_id] = pack
                if footer.kind is PackKind.DATA and (self._first is None or pack_id < self._first[0]):
                    self._first = pack_id, info
            if not known and not told:
                self._on_footer(pack_id, footer)
            return pack
        with self._session.lock:
            self.known[pack_id] = pack
        return pack

    def _chance(self, pack_id: bytes) -> float:
        return int.from_bytes(hashing.digest(self._seed + pack_id)[:6], "big") / (1 << 48)

    def _frames(self, key: str, footer: Footer, pack: Pack) -> None:
        damaged: list[bytes] = []
        part: list[Record] = []
        for number, frame in enumerate(footer.records, 1):
            part.append(frame)
            start, end = part[0].offset, frame.offset + frame.stored
            if end - start >= _PART or number == len(footer.records):
                damaged += verify_frames(part, self._backend.read(key, start, end - start), start=start)
                part = []
        pack.damaged = frozenset(damaged)
        pack.read = True

    def get(self, pack_id: bytes) -> Pack | None:
        """Return what is known of a pack, after looking at it if that was not done yet; None when there is none."""
        pack = self.known.get(pack_id)
        if pack is not None:
            return pack
        with self._turns[pack_id[0] % _TURNS]:  # it may be read whole: by one of those who ask
            pack = self.known.get(pack_id)
            if pack is not None or pack_id in self.missing:
                return pack
            try:
                info = self._backend.stat(layout.pack_key(pack_id))
            except NotFoundError:
                self.missing.add(pack_id)
                return None
            self._session.found(info.size)
            pack = self._learn(pack_id, info)
            self._session.checked(info.size)
            return pack

    def read(self, pack_id: bytes) -> None:
        """Read all frames of a pack, if that was not done yet."""
        pack = self.get(pack_id)
        if pack is None or pack.read:
            return
        try:
            key, footer = layout.pack_key(pack_id), read_footer(self._backend, pack_id, pack.size)
            self._frames(key, footer, pack)
            pack.lost = self._referred.lost(pack_id, key, footer, read=self._follow)
        except NotFoundError:
            self.known.pop(pack_id, None)
        except IntegrityError as error:
            pack.problem = error.message

    def holds(self, place: Location, chunk_id: bytes) -> bool:
        """Whether the pack of this chunk is there and, as far as it was read, the chunk in it whole."""
        pack = self.get(place.pack_id)
        if pack is None or not pack.sound or chunk_id in pack.damaged:
            return False
        return (chunk_id, place.offset) not in pack.lost

    def look_again(self) -> None:
        """Look once more at what was not as it should be: it may be gone, or there, or it was a hiccup."""
        self.missing.clear()
        self._referred.forget()
        for pack_id, pack in list(self.known.items()):
            if pack.problem is None and not pack.damaged and not pack.lost:
                continue
            with self._session.lock:
                used = self.known.pop(pack_id).used
            try:
                info = self._backend.stat(layout.pack_key(pack_id))
            except NotFoundError:
                continue
            found = self._learn(pack_id, info, told=pack.sound)
            if found is not None:
                found.used = used
                if pack.read and found.sound:
                    self.read(pack_id)
        for key in list(self.foreign):
            try:
                self._backend.stat(key)
            except CasstoreError:
                del self.foreign[key]

    def tell(self, *, problems: bool = True) -> None:
        """Report how much was read and, with ``problems``, what is wrong."""
        session, report = self._session, self._session.report
        self._referred.tell()
        for key, message in sorted(self.foreign.items()):
            session.problem(key, f"the pack is damaged: {message}", About.FOREIGN)
        for pack_id, pack in sorted(self.known.items()):
            key = layout.pack_key(pack_id)
            report.packs_size += pack.size
            report.packs_read += pack.size if pack.read else 0
            if not problems:
                continue
            if pack.problem is not None:
                session.problem(key, f"the pack is damaged: {pack.problem}", About.PACK)
            for chunk_id in sorted(pack.damaged):
                session.problem(key, f"chunk {chunk_id.hex()} is damaged", About.PACK)
