"""A collection that is interrupted at any call of the back end: versions stay whole, and the next run does the rest."""

from __future__ import annotations

import contextlib
import os
from collections import Counter

import pytest

from casstore.backend.base import Backend
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError
from casstore.repo import layout
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector, Outcome
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan, InjectedCrash

NOW = Rules(grace=0, margin=0)
DATA = {name: os.urandom(size) for name, size in {"shared": 90_000, "only": 200_000, "other": 150_000}.items()}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A store with something to delete, something to copy, and something to leave alone."""
    folder = tmp_path_factory.mktemp("sources")
    for name, data in DATA.items():
        (folder / name).write_bytes(data)
    backend = MemoryBackend()
    bucket = Bucket(Store.open(backend, create=True), name="b", user="u")
    bucket.upload("d", [str(folder / "shared"), str(folder / "only")])
    bucket.upload("d", [str(folder / "shared")])
    bucket.upload("e", [str(folder / "other")])
    bucket.upload("gone", [str(folder / "other"), str(folder / "only")])
    bucket.delete("d", tag="1")
    bucket.delete("gone", all_versions=True)
    return {info.key: backend.get(info.key).data for info in backend.list("")}


def copy(objects: dict[str, bytes]) -> MemoryBackend:
    backend = MemoryBackend()
    for key, data in objects.items():
        backend.put(key, [data])
    return backend


def collect(backend: Backend) -> Outcome:
    with Collector(Store.open(backend), rules=NOW) as collector:
        return collector.run(collector.plan())


def assert_versions_whole(backend: Backend) -> None:
    bucket = Bucket(Store.open(backend), name="b", user="u")
    for name, files in {"d": ["shared"], "e": ["other"]}.items():
        tree = bucket.tree(bucket.resolve(name))
        found = {
            os.fsdecode(entry.path): b"".join(map(bytes, bucket.store.read_chunks([*tree.chunks(entry)])))
            for entry in tree.entries()
        }
        assert found == {file: DATA[file] for file in files}


def stored(backend: Backend) -> dict[str, int]:
    """What takes space: everything but the records of collections."""
    return {
        info.key: info.size
        for prefix in (layout.PACKS, layout.MANIFESTS, layout.INDEX, layout.DATASETS)
        for info in backend.list(prefix)
    }


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER])
def test_at_every_call(fault: Fault, objects: dict[str, bytes]) -> None:
    whole = FaultBackend(copy(objects))
    outcome = collect(whole)
    calls = whole.calls
    assert outcome.swept.moved > 0
    assert outcome.swept.versions == outcome.swept.datasets == 1
    expected = stored(whole)
    assert sum(expected.values()) < sum(map(len, DATA.values())) < sum(map(len, objects.values()))
    ended = 0
    for at in range(1, calls + 1):
        backend = copy(objects)
        faulty = FaultBackend(backend, FaultPlan(at, fault))
        with contextlib.suppress(InjectedCrash, CasstoreError):
            collect(faulty)
            ended += 1
        assert faulty.hits == 1
        assert_versions_whole(backend)
        collect(backend)
        after = stored(backend)
        # A pack gets a new id when its own is being deleted; heads count how often they were fenced.
        assert Counter(key.partition("/")[0] for key in after) == Counter(key.partition("/")[0] for key in expected)
        assert abs(sum(after.values()) - sum(expected.values())) < 200
        assert_versions_whole(backend)
        assert verify_store(Store.open(backend)).problems == []
        assert not list(backend.list(layout.LEASES))
    if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
        assert not ended


def test_a_full_disk_costs_nothing(objects: dict[str, bytes]) -> None:
    whole = FaultBackend(copy(objects), FaultPlan(operations=frozenset({"put"})))
    collect(whole)
    for at in range(1, whole.calls + 1):
        backend = copy(objects)
        faulty = FaultBackend(backend, FaultPlan(at, Fault.NO_SPACE, times=1000, operations=frozenset({"put"})))
        with pytest.raises(CasstoreError):
            collect(faulty)
        assert_versions_whole(backend)
        collect(backend)
        assert_versions_whole(backend)
        assert verify_store(Store.open(backend)).problems == []


@pytest.mark.parametrize("fault", [Fault.FLIP, Fault.TRUNCATE])
def test_what_arrives_wrong_is_never_concluded_from(fault: Fault, objects: dict[str, bytes]) -> None:
    """Bytes that a read turns over lead to an error or to more being kept, not to a version that lost something."""
    reads = frozenset({"get", "read"})
    whole = FaultBackend(copy(objects), FaultPlan(operations=reads))
    collect(whole)
    for at in range(1, whole.calls + 1):
        backend = copy(objects)
        with contextlib.suppress(CasstoreError):
            collect(FaultBackend(backend, FaultPlan(at, fault, operations=reads, bit=777)))
        assert_versions_whole(backend)
