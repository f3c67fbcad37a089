"""Reading everything, and saying what is not what it should be.

Decided here and only here: what makes a store whole. Every object is read to its last bit: packs against their ids,
checks and chunk ids; index segments and manifests against their names; records against their checksums; and then every
reference is followed: a version's nodes and chunks must be where the index says. Nothing is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from casstore import hashing
from casstore.backend.base import ObjectInfo
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.format.index import Segment
from casstore.format.pack import HEADER_SIZE, TRAILER_SIZE, parse_footer, tail_size, verify_frames
from casstore.model import DIGEST_SIZE, Head, Kind, VersionRecord
from casstore.repo import layout
from casstore.repo.records import NameRecord
from casstore.repo.store import Store, StoreConfig, workers
from casstore.repo.tree import Tree

_BATCH = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the object or path it is about, and one clear line."""

    where: str
    message: str


@dataclass(slots=True)
class Report:
    """What was read, and what was found. ``objects`` and ``size`` (bytes) count what was looked at."""

    objects: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class Watcher:
    """Told how far a verification is; the base class tells nobody."""

    def checked(self, size: int) -> None:
        """Another ``size`` bytes were read and looked at."""


class _Verification:
    def __init__(self, store: Store, watcher: Watcher) -> None:
        self.store = store
        self.watcher = watcher
        self.report = Report()
        self.damaged: set[bytes] = set()
        self.packs: set[bytes] = set()
        self._lock = threading.Lock()

    def problem(self, where: str, message: str) -> None:
        with self._lock:
            self.report.problems.append(Problem(where, message))

    def checked(self, size: int) -> None:
        with self._lock:
            self.report.objects += 1
            self.report.size += size
        self.watcher.checked(size)

    def each(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix whose names can be names there; report the others."""
        for info in self.store.backend.list(prefix):
            self.checked(info.size)
            yield info

    def pack(self, info: ObjectInfo) -> None:
        try:
            pack_id = layout.id_of(info.key)
            if layout.pack_key(pack_id) != info.key:
                raise FormatError("it is in the wrong folder")
            data = memoryview(self.store.backend.get(info.key).data)
            tail = tail_size(bytes(data[-TRAILER_SIZE:]))
            if tail + HEADER_SIZE > len(data):
                raise FormatError("its footer is longer than the pack")
            footer = parse_footer(pack_id, bytes(data[:HEADER_SIZE]), bytes(data[-tail:]), len(data))
            damaged = verify_frames(footer, data)
        except CasstoreError as error:
            self.problem(info.key, f"the pack is damaged: {error.message}")
            return
        with self._lock:
            self.packs.add(pack_id)
            self.damaged.update(damaged)
        for chunk_id in damaged:
            self.problem(info.key, f"chunk {chunk_id.hex()} is damaged")

    def segment(self, info: ObjectInfo) -> None:
        try:
            data = self.store.backend.get(info.key).data
            if hashing.digest(data) != layout.id_of(info.key):
                raise IntegrityError("its bytes are not those that its name stands for")
            for pack_id in Segment(data).pack_ids():
                if pack_id not in self.packs:
                    self.problem(info.key, f"the index speaks of pack {pack_id.hex()}, which is missing or damaged")
        except CasstoreError as error:
            self.problem(info.key, f"the index segment is damaged: {error.message}")

    def manifest(self, info: ObjectInfo) -> None:
        try:
            manifest_id = layout.id_of(info.key)
            if layout.manifest_key(manifest_id) != info.key:
                raise FormatError("it is in the wrong folder")
            tree = self.store.tree(manifest_id)
        except CasstoreError as error:
            self.problem(info.key, f"the manifest is damaged: {error.message}")
            return
        self.tree(tree, info.key, read=False)

    def tree(self, tree: Tree, where: str, *, read: bool) -> None:
        """Follow every reference of a tree; with ``read`` also read every chunk."""
        try:
            for entry in tree.entries():
                if entry.kind != Kind.FILE:
                    continue
                path = entry.path.decode("utf-8", "backslashreplace")
                try:
                    self._file(tree.chunks(entry), read=read)
                except CasstoreError as error:
                    self.problem(f"{where}: {path}" if where else path, error.message)
                if read:
                    self.checked(entry.size)
        except CasstoreError as error:
            self.problem(where, f"the tree can't be read: {error.message}")

    def _file(self, chunks: Iterable[tuple[bytes, int]], *, read: bool) -> None:
        batch: list[tuple[bytes, int]] = []
        for chunk_id, length in chunks:
            if chunk_id in self.damaged:
                raise IntegrityError(f"chunk {chunk_id.hex()} is damaged")
            if not read:
                if self.store.locate(chunk_id).raw != length:
                    raise IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")
                continue
            batch.append((chunk_id, length))
            if len(batch) == _BATCH:
                self._read(batch)
                batch = []
        if batch:
            self._read(batch)

    def _read(self, batch: list[tuple[bytes, int]]) -> None:
        for _ in self.store.read_chunks(batch):
            pass

    def records(self) -> None:
        backend = self.store.backend
        heads: dict[str, Head] = {}
        for info in self.each(layout.DATASETS):
            dataset_id, _, rest = info.key.removeprefix(layout.DATASETS).partition("/")
            try:
                if rest == "head":
                    head = record.decode("head", backend.get(info.key).data, Head)
                    heads[dataset_id] = head
                    if head.id != dataset_id:
                        raise FormatError("it is the head of another dataset")
                else:
                    number = layout.version_number(info.key)
                    version = record.decode("version", backend.get(info.key).data, VersionRecord)
                    if version.number != number or layout.version_key(dataset_id, number) != info.key:
                        raise FormatError("it is the record of another version")
                    manifest = bytes.fromhex(version.manifest)
                    if len(manifest) != DIGEST_SIZE or not self.store.has_manifest(manifest):
                        raise NotFoundError(f"its manifest {version.manifest} is missing")
            except (CasstoreError, ValueError) as error:
                self.problem(info.key, f"the record is damaged: {error}")
        for info in self.each(layout.NAMES):
            try:
                name = record.decode("name", backend.get(info.key).data, NameRecord)
                if name.id is not None and name.id not in heads:
                    raise NotFoundError(f"it leads to dataset {name.id}, which is missing")
            except CasstoreError as error:
                self.problem(info.key, f"the name is damaged: {error.message}")
        try:
            record.decode("store", backend.get(layout.STORE).data, StoreConfig)
        except CasstoreError as error:
            self.problem(layout.STORE, error.message)

    def strangers(self) -> None:
        known = (layout.PACKS, layout.INDEX, layout.MANIFESTS, layout.NAMES, layout.DATASETS)
        for info in self.store.backend.list(""):
            if info.key != layout.STORE and not info.key.startswith(known):
                self.problem(info.key, "the object does not belong to a store")


def verify_store(store: Store, watcher: Watcher | None = None) -> Report:
    """Read every object of a store to its last bit, and follow every reference. Raises nothing for damage."""
    check = _Verification(store, watcher or Watcher())
    # A listing is not for several threads, and a pack is large: each worker takes the next one when it is ready.
    packs, turn = check.each(layout.PACKS), threading.Lock()

    def work() -> None:
        while True:
            with turn:
                info = next(packs, None)
            if info is None:
                return
            check.pack(info)

    with ThreadPoolExecutor(workers(), thread_name_prefix="casstore-verify") as pool:
        for worker in [pool.submit(work) for _ in range(workers())]:
            worker.result()
    for info in check.each(layout.INDEX):
        check.segment(info)
    if not any(problem.where.startswith(layout.INDEX) for problem in check.report.problems):
        for info in check.each(layout.MANIFESTS):
            check.manifest(info)
    check.records()
    check.strangers()
    return check.report


def verify_tree(store: Store, tree: Tree, watcher: Watcher | None = None) -> Report:
    """Read every chunk of one version. Raises nothing for damage."""
    check = _Verification(store, watcher or Watcher())
    check.tree(tree, "", read=True)
    return check.report
