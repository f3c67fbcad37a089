"""Reading everything, and saying what is not what it should be.

Decided here and only here: what makes a store whole. Every object is read to its last bit: packs against their ids,
checks and chunk ids; index segments and manifests against their names; records against their checksums; and then every
reference is followed: what the index says must be what the packs say, and a version's nodes and chunks must be where
the index says. Nothing is changed. The store may be written to meanwhile: what is looked at later is what leads to
what was looked at before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import msgspec

from casstore import hashing
from casstore.backend.base import ObjectInfo
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.format.index import Segment
from casstore.format.manifest import MAX_NODE, list_records
from casstore.format.pack import Footer, Record, verify_frames
from casstore.model import Entry, Head, Kind, VersionRecord
from casstore.repo import layout
from casstore.repo.limits import check_size
from casstore.repo.packs import read_footer
from casstore.repo.records import NameRecord, head_problem, is_active, version_problem
from casstore.repo.segments import MAX_SEGMENT
from casstore.repo.store import MAX_CONFIG, Store, StoreConfig, workers
from casstore.repo.tree import ChecksumBuilder, Tree

_BATCH = 256
_PART = 8 << 20
"""Bytes of frames that are read at once."""

_T = TypeVar("_T", bound=msgspec.Struct)


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


class _Folders:
    """Whether each entry's folder is a folder of the same tree, told from their order with little memory."""

    def __init__(self) -> None:
        self._above: list[tuple[bytes, set[bytes]]] = [(b"", set())]

    def check(self, entry: Entry) -> None:
        parent, _, name = entry.path.rpartition(b"/")
        above = self._above
        if above[-1][0] != parent:
            upper, _, folder = parent.rpartition(b"/")
            while len(above) > 1 and above[-1][0] != upper:
                above.pop()
            if above[-1][0] != upper or folder not in above[-1][1]:
                raise FormatError(f"{_show(parent)} holds entries, but is no folder")
            above.append((parent, set()))
        if entry.kind == Kind.DIRECTORY:
            above[-1][1].add(name)


class _Verification:
    def __init__(self, store: Store, watcher: Watcher) -> None:
        self.store = store
        self.watcher = watcher
        self.report = Report()
        self.damaged: set[bytes] = set()
        self.packs: dict[bytes, bool] = {}
        self.segments: list[Segment] = []
        self.readable = False
        self.found: list[int] = []
        self._lists: set[tuple[int, bytes, int]] = set()
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
        """Yield the objects below a prefix, and count them."""
        for info in self.store.backend.list(prefix):
            self.checked(info.size)
            yield info

    # ---- index and packs

    def index(self) -> None:
        """Read the segments; those that are there now are compared with the packs as these are read."""
        sound = True
        for info in self.each(layout.INDEX):
            try:
                data = self._get(info, MAX_SEGMENT)
                if hashing.digest(data) != layout.id_of(info.key):
                    raise IntegrityError("its bytes are not those that its name stands for")
                Segment(data)
            except NotFoundError:
                continue  # merged into a larger one meanwhile
            except CasstoreError as error:
                sound = False
                self.problem(info.key, f"the index segment is damaged: {error.message}")
        if sound:
            try:
                self.segments = self.store.index.segments()
                self.readable = True
            except CasstoreError as error:
                self.problem(layout.INDEX, f"the index can't be read: {error.message}")
        self.found = [0] * len(self.segments)

    def pack(self, info: ObjectInfo) -> None:
        try:
            pack_id = layout.id_of(info.key)
            if layout.pack_key(pack_id) != info.key:
                raise FormatError("it is in the wrong folder")
            footer = read_footer(self.store.backend, pack_id)
            damaged = self._frames(info.key, footer)
            found = self._indexed(pack_id, footer)
        except CasstoreError as error:
            self.problem(info.key, f"the pack is damaged: {error.message}")
            return
        with self._lock:
            self.packs[pack_id] = True
            self.damaged.update(damaged)
            self.found = [before + more for before, more in zip(self.found, found, strict=True)]
        for chunk_id in damaged:
            self.problem(info.key, f"chunk {chunk_id.hex()} is damaged")

    def _frames(self, key: str, footer: Footer) -> list[bytes]:
        damaged: list[bytes] = []
        part: list[Record] = []
        for number, frame in enumerate(footer.records, 1):
            part.append(frame)
            start, end = part[0].offset, frame.offset + frame.stored
            if end - start >= _PART or number == len(footer.records):
                damaged += verify_frames(part, self.store.backend.read(key, start, end - start), start=start)
                part = []
        return damaged

    def _indexed(self, pack_id: bytes, footer: Footer) -> list[int]:
        """Return how many of a pack's records each segment has, exactly as they are."""
        found = [0] * len(self.segments)
        for frame in footer.records:
            here = (pack_id, frame.offset, frame.stored, frame.raw, frame.codec)
            for number, segment in enumerate(self.segments):
                found[number] += segment.locate(frame.chunk_id) == here
        return found

    def _is_sound(self, pack_id: bytes) -> bool:
        """Whether a pack was found sound; one that was written since the packs were listed is read now."""
        if pack_id not in self.packs:
            self.packs[pack_id] = False
            try:
                info = self.store.backend.stat(layout.pack_key(pack_id))
            except NotFoundError:
                return False
            if not any(problem.where == info.key for problem in self.report.problems):
                self.pack(info)
        return self.packs[pack_id]

    def compare(self) -> None:
        for segment, found in zip(self.segments, self.found, strict=True):
            if found != segment.records:
                lost = segment.records - found
                self.problem(layout.INDEX, f"{lost} of {segment.records} records of a segment fit no sound pack")

    # ---- manifests

    def manifest(self, info: ObjectInfo) -> None:
        try:
            manifest_id = layout.id_of(info.key)
            if layout.manifest_key(manifest_id) != info.key:
                raise FormatError("it is in the wrong folder")
            check_size(info.key, info.size, MAX_NODE)
            tree = self.store.tree(manifest_id)
        except CasstoreError as error:
            self.problem(info.key, f"the manifest is damaged: {error.message}")
            return
        self.tree(tree, info.key, read=False)

    def tree(self, tree: Tree, where: str, *, read: bool) -> None:
        """Follow every reference of a tree; with ``read`` also read every chunk."""
        sums, folders = ChecksumBuilder(), _Folders()
        batch: list[Entry] = []
        try:
            for entry in tree.entries():
                folders.check(entry)
                batch.append(entry)
                if len(batch) == _BATCH:
                    sums.add(batch)
                    batch = []
                if entry.kind == Kind.FILE:
                    self._file(tree, entry, where, read=read)
            sums.add(batch)
            if (sums.checksum(), sums.totals()) != (tree.checksum, tree.totals):
                raise FormatError("its checksum or its totals are not those of its entries")
        except CasstoreError as error:
            self.problem(where, f"the tree can't be right: {error.message}")

    def _file(self, tree: Tree, entry: Entry, where: str, *, read: bool) -> None:
        try:
            pending = [(entry.content.depth, entry.content.refs)]
            while pending:
                depth, refs = pending.pop()
                records = list(list_records(depth, refs))
                if depth == 0:
                    self._chunks(records, read=read)
                for node_id, length in records if depth else ():
                    # A node is looked at once, however often it is part of a list: a file may be long and all zeros.
                    if (depth, node_id, length) not in self._lists:
                        pending.append((depth - 1, tree.list_node(depth - 1, node_id, length)))
                        self._lists.add((depth, node_id, length))
        except CasstoreError as error:
            path = _show(entry.path)
            self.problem(f"{where}: {path}" if where else path, error.message)
        if read:
            self.checked(entry.size)

    def _chunks(self, refs: Sequence[tuple[bytes, int]], *, read: bool) -> None:
        for chunk_id, length in refs:
            if chunk_id in self.damaged:
                raise IntegrityError(f"chunk {chunk_id.hex()} is damaged")
            if not read:
                place = self.store.locate(chunk_id)
                if place.raw != length:
                    raise IntegrityError(f"chunk {chunk_id.hex()} has another length than its reference says")
                if not self._is_sound(place.pack_id):
                    raise IntegrityError(f"{layout.pack_key(place.pack_id)} is missing or damaged")
        if read:
            for start in range(0, len(refs), _BATCH):
                for _ in self.store.read_chunks(refs[start : start + _BATCH]):
                    pass

    # ---- records

    def records(self) -> None:
        names: dict[str, str | None] = {}
        for info in self.each(layout.NAMES):
            try:
                name = self._record(info, "name", NameRecord)
                if layout.name_of(info.key) != name.name:
                    raise FormatError("it is the record of another name")
                names[info.key] = name.id
            except CasstoreError as error:
                self.problem(info.key, f"the name is damaged: {error.message}")
        heads: dict[str, Head] = {}
        versions: dict[str, set[int]] = {}
        for info in self.each(layout.DATASETS):
            dataset_id, _, rest = info.key.removeprefix(layout.DATASETS).partition("/")
            try:
                if rest == "head":
                    heads[dataset_id] = self._head(info, dataset_id)
                else:
                    versions.setdefault(dataset_id, set()).add(self._version(info, dataset_id))
            except CasstoreError as error:
                self.problem(info.key, f"the record is damaged: {error.message}")
        self._relations(names, heads, versions)

    def _relations(self, names: dict[str, str | None], heads: dict[str, Head], versions: dict[str, set[int]]) -> None:
        """Follow names to heads, and heads to versions."""
        for key, target in names.items():
            if target is not None and target not in heads:
                self.problem(key, f"it leads to dataset {target[:40]}, which is missing or damaged")
        for dataset_id in versions.keys() - heads.keys():
            self.problem(layout.DATASETS + dataset_id, "it has versions, but its head is missing or damaged")
        for dataset_id, head in heads.items():
            known = versions.get(dataset_id, set())
            numbers = range(1, head.last_version + 1)
            # Only as many as anyone reads: the head may say anything.
            for number in islice((n for n in numbers if n not in known and is_active(head, n)), _BATCH):
                if not self._is_there(dataset_id, number):
                    self.problem(layout.version_key(dataset_id, number), f"version {number} of {head.name} is missing")
            for tag, number in head.tags.items():
                if number not in known and not self._is_there(dataset_id, number):
                    self.problem(layout.head_key(dataset_id), f"its tag {tag!r} leads to no sound version")

    def _is_there(self, dataset_id: str, number: int) -> bool:
        """Whether a version is there that was not when the versions were listed: the head was read after that."""
        try:
            self._version(self.store.backend.stat(layout.version_key(dataset_id, number)), dataset_id)
        except CasstoreError:
            return False
        return True

    def _head(self, info: ObjectInfo, dataset_id: str) -> Head:
        head = self._record(info, "head", Head)
        problem = head_problem(head)
        if head.id != dataset_id or problem or layout.head_key(dataset_id) != info.key:
            raise FormatError(problem or "it is the head of another dataset")
        return head

    def _version(self, info: ObjectInfo, dataset_id: str) -> int:
        number = layout.version_number(info.key)
        version = self._record(info, "version", VersionRecord)
        problem = version_problem(version)
        if version.number != number or problem or layout.version_key(dataset_id, number) != info.key:
            raise FormatError(problem or "it is the record of another version")
        tree = self.store.tree(bytes.fromhex(version.manifest))
        if (tree.checksum.hex(), tree.totals) != (version.checksum, version.totals):
            raise FormatError("it does not fit its manifest")
        return number

    def _record(self, info: ObjectInfo, kind: str, cls: type[_T]) -> _T:
        return record.decode(kind, self._get(info, record.MAX_RECORD), cls)

    def _get(self, info: ObjectInfo, limit: int) -> bytes:
        check_size(info.key, info.size, limit)
        return self.store.backend.get(info.key).data

    def rest(self) -> None:
        """Look at ``store.json``, and at whatever belongs to no part of a store."""
        known = (layout.PACKS, layout.INDEX, layout.MANIFESTS, layout.NAMES, layout.DATASETS)
        for info in self.store.backend.list(""):
            if info.key == layout.STORE:
                try:
                    check_size(info.key, info.size, MAX_CONFIG)
                    self._record(info, "store", StoreConfig)
                except CasstoreError as error:
                    self.problem(layout.STORE, error.message)
            elif not info.key.startswith(known):
                self.problem(info.key, "the object does not belong to a store")


def _show(path: bytes) -> str:
    return path[:1000].decode("utf-8", "backslashreplace")


def verify_store(store: Store, watcher: Watcher | None = None) -> Report:
    """Read every object of a store to its last bit, and follow every reference. Raises nothing for damage."""
    check = _Verification(store, watcher or Watcher())
    check.index()
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
    check.compare()
    if check.readable:
        for info in check.each(layout.MANIFESTS):
            check.manifest(info)
    check.records()
    check.rest()
    return check.report


def verify_tree(store: Store, tree: Tree, watcher: Watcher | None = None) -> Report:
    """Read every chunk of one version. Raises nothing for damage."""
    check = _Verification(store, watcher or Watcher())
    check.tree(tree, "", read=True)
    return check.report
