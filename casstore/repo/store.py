"""An open store: one bucket, its parameters, and verified reads.

Decided here and only here: what ``store.json`` says, how a store comes to be, and how chunks are read. Every chunk that
leaves this module was checked against its id.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from casstore import hashing
from casstore.backend.base import Absent, Backend, Buffer
from casstore.backend.probe import PROBES, ProbeReport, probe, refusal
from casstore.chunking.params import ChunkerParams
from casstore.compression import REFERENCE
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError, PreconditionError
from casstore.format import record
from casstore.format.index import Location
from casstore.format.manifest import MAX_NODE, decode_root
from casstore.format.pack import decode_frame
from casstore.repo import layout, single
from casstore.repo.index import Index
from casstore.repo.limits import bounded_get
from casstore.repo.live import NOTHING
from casstore.repo.nodes import Windows
from casstore.repo.references import References, follow
from casstore.repo.trash import DyingSet
from casstore.repo.tree import Tree
from casstore.repo.writer import OnPack, Writer

if TYPE_CHECKING:
    from casstore.cache.remote import RemoteCache

FORMAT = 1
FEATURES: frozenset[str] = frozenset({single.FEATURE})
"""Features beyond format 1 that this version understands; a store that needs others is refused."""
MAX_CONFIG = 64 << 10
"""Bytes of ``store.json``, at most."""
COALESCE_GAP = 64 << 10
"""Bytes between two wanted frames that are rather read than skipped."""
COALESCE_MAX = 8 << 20
"""Bytes that one read covers at most."""

_STORE_ID = re.compile(r"[0-9a-f]{32}\Z", re.ASCII)


class StoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``store.json``. ``id`` is random: local state is kept per store, not per URL. ``writer`` goes with the feature
    ``single-writer``.
    """

    format: int
    id: str
    chunker: dict[str, Any]
    features: list[str] = []
    writer: str | msgspec.UnsetType = msgspec.UNSET


class Store:
    """One open store. Thread-safe. Close it, or use it as a context manager."""

    probed: ProbeReport | None = None
    """What was found out about the place when the store was made just now."""

    def __init__(self, backend: Backend, config: StoreConfig, references: References | None = None) -> None:
        """``references`` says where those may lead; without it nowhere. The store closes it."""
        self.backend = backend
        self.references = references or References()
        self.config = config
        self.chunker = ChunkerParams.from_dict(config.chunker)
        self.index = Index(backend, config.id)
        self._windows = Windows(backend)
        self.cache: RemoteCache | None = None
        """Where what is read from far away is kept, where the store itself is; see ``use``."""
        self.elsewhere: RemoteCache | None = None
        """The same for what references lead to, wherever the store is."""

    @property
    def id(self) -> str:
        """The store's random id."""
        return self.config.id

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.backend.url

    @classmethod
    def open(cls, backend: Backend, *, create: bool = False, references: References | None = None) -> Store:
        """Open the store on this back end, or make one there.

        ``NotFoundError`` when there is none and ``create`` is false; ``FormatError`` when it needs a newer version.
        """
        report = None
        try:
            config = read_config(backend)
        except NotFoundError as error:
            if not create:
                if error.hint:  # it is not the object that is missing, but the bucket
                    raise
                raise NotFoundError(
                    f"there is no store at {backend.url}", hint="add it with `osmo bucket add NAME URL`"
                ) from None
            report = cls._create(backend)
            config = read_config(backend)
        guarded = single.guarded(backend, config) if single.FEATURE in config.features else backend
        store = cls(guarded, config, references)
        store.probed = report
        return store

    @staticmethod
    def _create(backend: Backend) -> ProbeReport | None:
        """Put ``store.json``; what a probe of the place said, where one is needed."""
        for info in backend.list(""):
            if info.key.startswith(PROBES):
                continue  # of a probe that was interrupted
            raise FormatError(
                f"{backend.url} holds objects but no store",
                hint="choose an empty folder or prefix for a new store",
            )
        config = StoreConfig(format=FORMAT, id=os.urandom(16).hex(), chunker=ChunkerParams().to_dict())
        report = None
        if backend.capabilities.probe:
            report = probe(backend)
            if not report.usable:
                raise refusal(report, backend.url)
            if not report.conditional:
                config = msgspec.structs.replace(config, features=[single.FEATURE], writer=single.new_token(config.id))
        conditional = single.FEATURE not in config.features
        with contextlib.suppress(PreconditionError):  # somebody else's store, then
            backend.put(layout.STORE, [record.encode("store", config)], condition=Absent() if conditional else None)
        return report

    def use(self, cache: RemoteCache | None, *, recall: bool = False) -> None:
        """Read through the cache of this machine, where the store, or what it refers to, is far away.

        For those who want data, and not for those who look whether a store has it. ``recall``: see ``Index.recall``.
        """
        self.elsewhere = cache
        if cache is None or self.backend.capabilities.local:
            return
        self.cache = self.index.cache = cache
        if recall:
            self.index.recall()

    def writer(self, *, lanes: int | None = None, on_pack: OnPack | None = None, dying: DyingSet = NOTHING) -> Writer:
        """Return a writer of chunks for ``lanes`` threads (all cores by default). What it stores is to be committed
        within a ``Hold``, which makes its writers itself.
        """
        return Writer(self.backend, self.index, lanes=lanes or workers(), on_pack=on_pack, dying=dying)

    def tree(self, manifest_id: bytes) -> Tree:
        """Open the tree of a version by the id of its manifest, reading its root alone."""
        data = None if self.cache is None else self.cache.object(manifest_id, MAX_NODE)
        if data is None:
            data = self._read_root(manifest_id)
            if self.cache is not None:
                self.cache.keep(manifest_id, data)
        return Tree(self, manifest_id, decode_root(data))

    def _read_root(self, manifest_id: bytes) -> bytes:
        key = layout.manifest_key(manifest_id)
        try:
            data = bounded_get(self.backend, key, MAX_NODE)
        except NotFoundError:
            raise NotFoundError(f"manifest {manifest_id.hex()} is gone", hint="run `osmo dataset verify`") from None
        if hashing.digest(data) != manifest_id:
            raise IntegrityError(f"{key} is damaged")
        return data

    def has_manifest(self, manifest_id: bytes) -> bool:
        """Whether the root of this manifest is in the store."""
        try:
            self.backend.stat(layout.manifest_key(manifest_id))
        except NotFoundError:
            return False
        return True

    def locate(self, chunk_id: bytes) -> Location:
        """Return where a chunk is; ``NotFoundError`` when the store has none such."""
        self.index.load()
        return self.index.locate(chunk_id)

    def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
        """Return one verified node of a tree; ``raw``, when given, is the length it must have."""
        place = self.locate(chunk_id)
        if place.codec == REFERENCE:
            raise IntegrityError(f"chunk {chunk_id.hex()}, which is a part of a tree, is not in the store")
        if place.raw > MAX_NODE or (raw is not None and place.raw != raw):
            raise IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")
        if not self.backend.capabilities.local:
            data = self._cached_chunk(chunk_id, place)
            if data is not None:
                return data
            try:
                payload = self._windows.read(place)
                data = bytes(decode_frame(chunk_id, place.codec, payload, place.raw))
            except (IntegrityError, NotFoundError):
                self._windows.forget(place)  # it is read once more below, alone
            else:
                if self.cache is not None:
                    self.cache.frames.put(place, payload)
                return data
        return bytes(next(self.read_chunks([(chunk_id, place.raw)])))

    def _cached_chunk(self, chunk_id: bytes, place: Location) -> bytes | None:
        payload = None if self.cache is None else self.cache.frames.get(place)
        if payload is not None:
            with contextlib.suppress(IntegrityError):  # damaged here: what is read now takes its place
                return bytes(decode_frame(chunk_id, place.codec, payload, place.raw))
        return None

    def read_chunks(self, refs: Sequence[tuple[bytes, int]]) -> Iterator[bytes | bytearray | memoryview]:
        """Yield the verified chunks ``(id, raw length)`` in order, reading neighbours in a pack together.

        A yielded buffer is valid until the next one is asked for.
        """
        places = [self.locate(chunk_id) for chunk_id, _ in refs]
        gone: set[bytes] = set()
        at = 0
        while at < len(refs):
            stop = _run_length(places, at)
            first, last = places[at], places[stop - 1]
            try:
                part = self.backend.read(
                    layout.pack_key(first.pack_id), first.offset, last.offset + last.stored - first.offset
                )
            except NotFoundError:
                # Its chunks were moved to another pack since the index was read, or the index is behind.
                gone.add(first.pack_id)
                self.index.load(again=True)
                places[at:] = [self.index.locate(chunk_id, gone=gone) for chunk_id, _ in refs[at:]]
                continue
            view = memoryview(part)
            referred: dict[bytes, Buffer] = {}
            for number in range(at, stop):
                place, (chunk_id, raw) = places[number], refs[number]
                if place.raw != raw:
                    raise IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")
                if place.codec != REFERENCE:
                    start = place.offset - first.offset
                    yield self._decode(chunk_id, place, view[start : start + place.stored])
                    continue
                if chunk_id not in referred:
                    referred = self._follow(view, first.offset, places[number:stop], refs[number:stop])
                yield referred[chunk_id]
            at = stop

    def _follow(
        self, part: memoryview, begin: int, places: Sequence[Location], refs: Sequence[tuple[bytes, int]]
    ) -> dict[bytes, Buffer]:
        """Return the first chunks of a run that are referred to, as many as are read at once."""
        wanted: list[tuple[bytes, Location, Buffer]] = []
        size = 0
        for place, (chunk_id, raw) in zip(places, refs, strict=True):
            if place.codec != REFERENCE or place.raw != raw or (wanted and size + raw > COALESCE_MAX):
                break
            size += raw
            start = place.offset - begin
            wanted.append((chunk_id, place, part[start : start + place.stored]))
        found: dict[bytes, Buffer] = {}
        for chunk_id, data in follow(self, wanted).items():
            if isinstance(data, CasstoreError):
                if chunk_id == wanted[0][0]:
                    raise data
            else:
                found[chunk_id] = data
        return found

    def _decode(self, chunk_id: bytes, place: Location, payload: bytes | memoryview) -> bytes | bytearray | memoryview:
        try:
            return decode_frame(chunk_id, place.codec, payload, place.raw)
        except IntegrityError:
            if self.backend.capabilities.local:
                return self.decode(chunk_id, place, payload)
        # It may have been damaged on its way.
        return self.decode(
            chunk_id, place, self.backend.read(layout.pack_key(place.pack_id), place.offset, place.stored)
        )

    @staticmethod
    def decode(chunk_id: bytes, place: Location, payload: Buffer) -> bytes | bytearray | memoryview:
        """Return the chunk in a frame, verified; ``IntegrityError`` that says where it is damaged."""
        try:
            return decode_frame(chunk_id, place.codec, payload, place.raw)
        except IntegrityError as error:
            raise IntegrityError(
                f"chunk {chunk_id.hex()} is damaged in {layout.pack_key(place.pack_id)} ({error.message})",
                hint="run `osmo dataset verify` to see what else is",
            ) from None

    def close(self) -> None:
        """Release the index, the back end and what references led to."""
        self.references.close()
        self.index.close()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_config(backend: Backend) -> StoreConfig:
    """Return what ``store.json`` says; ``NotFoundError`` where there is none, ``FormatError`` for a newer version's."""
    config = record.decode("store", bounded_get(backend, layout.STORE, MAX_CONFIG), StoreConfig)
    if config.format != FORMAT or not FEATURES.issuperset(config.features):
        needs = ", ".join(sorted(set(config.features) - FEATURES))[:200] or "no features"
        raise FormatError(
            f"the store at {backend.url} has format {config.format} and needs {needs}",
            hint="upgrade casstore",
        )
    if not _STORE_ID.match(config.id):
        # It becomes part of paths on this machine.
        raise FormatError(f"the store at {backend.url} has an illegal id")
    return config


def _run_length(places: Sequence[Location], at: int) -> int:
    first = before = places[at]
    stop = at + 1
    while stop < len(places):
        place = places[stop]
        gap = place.offset - (before.offset + before.stored)
        if place.pack_id != first.pack_id or not 0 <= gap <= COALESCE_GAP:
            break
        if place.offset + place.stored - first.offset > COALESCE_MAX:
            break
        before = place
        stop += 1
    return stop


def workers() -> int:
    """How many threads do the computing work: the cores that this process may use, at least two, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(16, max(2, cores))
