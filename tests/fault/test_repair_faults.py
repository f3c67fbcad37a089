"""A repair that ends at any back end call: nothing that was whole is lost, and the next one finishes."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.backend.base import Capabilities
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, IntegrityError, NotFoundError, StorageError
from casstore.format.index import Segment
from casstore.format.pack import PackKind
from casstore.repo import layout
from casstore.repo.check import check_store
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.packs import read_footer
from casstore.repo.repair import Repair
from casstore.repo.store import Store
from casstore.testing.faults import ALL_OPERATIONS, Fault, FaultBackend, FaultPlan, InjectedCrash

CHANGES = frozenset({"put", "delete"})


class Memory(MemoryBackend):
    """Stays open when a store on it is closed."""

    def close(self) -> None:
        pass


def copy(objects: dict[str, bytes]) -> Memory:
    backend = Memory()
    for key, data in objects.items():
        backend.put(key, [data])
    return backend


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    rng = random.Random(7)
    for name, content in {
        "one/a.bin": rng.randbytes(90_000),
        "one/b.txt": b"text " * 700,
        "two/c.bin": rng.randbytes(60_000),
        "two/b.txt": b"text " * 700,
        "three/d.bin": rng.randbytes(50_000),
        "three/b.txt": b"text " * 700,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def objects(sources: Path) -> dict[str, bytes]:
    """A small store with damage of every kind: two chunks, a table of contents, the index, a head, and two names."""
    backend = Memory()
    store = Store.open(backend, create=True)
    bucket = Bucket(store, name="b", user="u")
    bucket.upload("ds", [f"{sources}/one/*"])
    bucket.upload("ds", [f"{sources}/two/*"])
    bucket.upload("headless", [f"{sources}/two/c.bin"])
    bucket.upload("nameless", [f"{sources}/one/b.txt"])
    bucket.upload("whole", [f"{sources}/one/b.txt"], force_new_version=True)
    found = {info.key: backend.get(info.key).data for info in backend.list("")}
    head = layout.head_key(bucket.refs.resolve_name("headless"))
    found[head] = found[head].replace(b'"headless"', b'"otherless"')
    found[layout.NAMES + "nameless"] = b"casstore-record 1 name nothing"
    found[layout.NAMES + "dangling"] = found[layout.NAMES + "whole"].replace(b"whole", b"dangling")
    packs = {key: read_footer(backend, layout.id_of(key)) for key in found if key.startswith(layout.PACKS)}
    data = sorted(key for key, footer in packs.items() if footer.kind is PackKind.DATA)
    meta = sorted(key for key, footer in packs.items() if footer.kind is PackKind.META)
    (largest, *_) = sorted(data, key=lambda key: -len(packs[key].records))
    damaged = bytearray(found[largest])
    damaged[packs[largest].records[0].offset + 9] ^= 1
    found[largest] = bytes(damaged)
    damaged = bytearray(found[meta[0]])
    damaged[-30] ^= 1
    found[meta[0]] = bytes(damaged)
    # Not the segment that speaks of that very pack: where both are damaged, what is in it is lost.
    only = layout.id_of(meta[0])
    segment = next(
        key for key in sorted(found) if key.startswith(layout.INDEX) and only not in Segment(found[key]).pack_ids()
    )
    found[segment] = found[segment][:-1]
    return found


def readable(backend: MemoryBackend) -> dict[str, dict[str, bytes]]:
    """What of every version record can be read by whoever knows its id: manifest -> path -> bytes."""
    found: dict[str, dict[str, bytes]] = {}
    store = Store.open(backend)
    for info in list(backend.list(layout.DATASETS)):
        if "/versions/" not in info.key:
            continue
        dataset_id = info.key.split("/")[1]
        bucket = Bucket(store, name="b", user="u")
        with contextlib.suppress(IntegrityError, NotFoundError):
            record = bucket.refs.read_version(dataset_id, layout.version_number(info.key))
            tree = store.tree(bytes.fromhex(record.manifest))
            for entry in tree.entries():
                with contextlib.suppress(IntegrityError, NotFoundError):
                    content = b"".join(bytes(c) for c in store.read_chunks(list(tree.chunks(entry))))
                    found.setdefault(info.key, {})[os.fsdecode(entry.path)] = content
    return found


def repair(backend: MemoryBackend | FaultBackend, folder: Path) -> list[str]:
    work = Repair(Store.open(backend), user="u", salvage=True, folder=str(folder))
    return work.execute(work.plan()).failed


def settled(backend: MemoryBackend) -> tuple[set[str], dict[str, int]]:
    """The losses that are left, and how many versions each dataset has."""
    report = check_store(Store.open(backend), read=1.0)
    versions: dict[str, int] = {}
    for info in backend.list(layout.DATASETS):
        if "/versions/" in info.key:
            versions[info.key.split("/")[1]] = versions.get(info.key.split("/")[1], 0) + 1
    return {loss.name for loss in report.losses}, versions


@pytest.fixture(scope="module")
def expected(objects: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    backend = copy(objects)
    assert repair(backend, tmp_path_factory.mktemp("empty")) == []
    losses, versions = settled(backend)
    assert losses
    return losses, versions


def same_or_better(before: dict[str, dict[str, bytes]], after: dict[str, dict[str, bytes]]) -> bool:
    return all(files.items() <= after.get(key, {}).items() for key, files in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER])
def test_every_change(fault: Fault, objects: dict[str, bytes], expected: tuple[object, object], tmp_path: Path) -> None:
    before = readable(copy(objects))
    counter = FaultBackend(copy(objects), FaultPlan(operations=CHANGES))
    repair(counter, tmp_path)
    assert counter.calls >= 15
    for at in range(1, counter.calls + 1):
        backend = copy(objects)
        faulty = FaultBackend(backend, FaultPlan(at, fault, operations=CHANGES))
        with contextlib.suppress(InjectedCrash, StorageError, CasstoreError):
            repair(faulty, tmp_path)
        assert faulty.hits == 1
        assert same_or_better(before, readable(backend)), at
        assert repair(backend, tmp_path) == [], at
        assert same_or_better(before, readable(backend)), at
        assert settled(backend) == expected, at
        work = Repair(Store.open(backend), user="u", salvage=True)
        assert work.plan().empty, at


@pytest.mark.slow
def test_every_look(objects: dict[str, bytes], expected: tuple[object, object], tmp_path: Path) -> None:
    """Calls that change nothing. What is left is known by the number of changes before: each state is looked
    at once."""
    looks = ALL_OPERATIONS - CHANGES
    before = readable(copy(objects))
    counter = FaultBackend(copy(objects), FaultPlan(operations=looks))
    repair(counter, tmp_path)
    states: set[int] = set()
    for at in range(1, counter.calls + 1):
        backend = copy(objects)
        changes = FaultBackend(backend, FaultPlan(operations=CHANGES))
        fault = (Fault.CRASH_BEFORE, Fault.ERROR_BEFORE)[at % 2]
        with contextlib.suppress(InjectedCrash, CasstoreError):
            repair(FaultBackend(changes, FaultPlan(at, fault, operations=looks)), tmp_path)
        if changes.calls not in states:
            assert same_or_better(before, readable(backend)), at
            assert repair(backend, tmp_path) == [], at
            assert settled(backend) == expected, at
            states.add(changes.calls)
    assert len(states) > 10


def test_a_repair_on_a_store_that_is_full_leaves_it_as_it_was(objects: dict[str, bytes], tmp_path: Path) -> None:
    backend = copy(objects)
    before = readable(backend)
    faulty = FaultBackend(backend, FaultPlan(1, Fault.NO_SPACE, times=10_000, operations=frozenset({"put"})))
    with pytest.raises(StorageError):
        repair(faulty, tmp_path)
    assert {info.key: backend.get(info.key).data for info in backend.list("")} == objects
    assert same_or_better(before, readable(backend))


class Busy(Memory):
    """Does something else at the n-th call, as another process would."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__()
        self.calls, self.at = 0, -1
        self.action: Callable[[MemoryBackend], None] = lambda _: None
        for key, data in objects.items():
            super().put(key, [data])
        self.calls = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True, local=True)  # without threads: the calls have one order

    def _check_open(self) -> None:
        super()._check_open()
        self.calls += 1
        if self.calls == self.at:
            self.action(self)


def upload_new(backend: MemoryBackend, folder: Path) -> None:
    Bucket(Store.open(backend), name="b", user="u").upload("fresh", [f"{folder}/*"])


def delete_and_collect(backend: MemoryBackend, _: Path) -> None:
    rules = Rules(grace=0, margin=0, repack_below=0.9)
    bucket = Bucket(Store.open(backend), name="b", user="u")
    with contextlib.suppress(CasstoreError):
        bucket.delete("ds", all_versions=True, force=True)
    with (
        contextlib.suppress(CasstoreError),  # while a version can't be read nothing is collected
        Collector(Store.open(backend), rules=rules, clock=lambda: time.time() + 3600) as collector,
    ):
        collector.run(collector.plan())


@pytest.mark.slow
@pytest.mark.parametrize("action", [upload_new, delete_and_collect])
@pytest.mark.parametrize("salvage", [False, True])
def test_others_go_on_meanwhile(
    action: Callable[[MemoryBackend, Path], None], salvage: bool, objects: dict[str, bytes], sources: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from casstore.repo.check import session

    monkeypatch.setattr(session, "workers", lambda: 1)
    kept = Bucket(Store.open(copy(objects)), name="b", user="u").refs.resolve_name("ds")
    before = {key: files for key, files in readable(copy(objects)).items() if action is upload_new or kept not in key}
    collected = 0

    def mend(backend: MemoryBackend) -> None:
        work = Repair(Store.open(backend), user="u", salvage=salvage)
        work.execute(work.plan())

    quiet = Busy(objects)
    mend(quiet)
    for at in range(1, quiet.calls + 1, 3):
        backend = Busy(objects)
        backend.at = at
        backend.action = lambda inner: action(inner, sources / "three")
        with contextlib.suppress(CasstoreError):
            mend(backend)
        assert same_or_better(before, readable(backend)), at
        mend(backend)
        assert same_or_better(before, readable(backend)), at
        report = check_store(Store.open(backend), read=1.0)
        assert {loss.name for loss in report.losses} <= {"ds:1", "ds:2"}, (at, report.losses)
        collected += any(info.key.startswith(layout.TRASH) for info in backend.list(""))
        if action is upload_new:
            assert Bucket(Store.open(backend), name="b", user="u").verify("fresh").clean, at
    assert (collected > 10) is (action is delete_and_collect)
