"""T11: a migration that ends anywhere leaves whole versions, in order; done again it makes the rest, none twice."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.base import Backend
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.adopt.base import Buckets
from casstore.dataset.adopt.info import load_info
from casstore.dataset.adopt.migrate import Migration, State
from casstore.dataset.adopt.osmo import find_datasets
from casstore.dataset.adopt.take import Taking
from casstore.errors import CasstoreError, NotFoundError, StorageError, TransientError
from casstore.model import Kind
from casstore.remote.base import Object
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan, InjectedCrash
from casstore.testing.foreign import MemoryBuckets, MemoryClient, OsmoFolder
from casstore.transfer.memo import Memo

rng = random.Random(3)
SHARED = rng.randbytes(150_000)
VERSIONS: dict[int, dict[str, bytes]] = {
    1: {"a": SHARED, "sub/b": b"b", "empty": b""},
    2: {"a": SHARED, "sub/b": b"changed"},
    5: {"only": rng.randbytes(70_000)},
}


class Old:
    """A bucket of OSMO with three versions, and what its service knew."""

    def __init__(self) -> None:
        self.services = MemoryBuckets()
        self.osmo = OsmoFolder(self.services.bucket("s3://osmo"), "data", "nQ3sW0kTRb2sQm1xVn9yEA")
        for number, files in VERSIONS.items():
            self.osmo.version(number, files)
        info = self.osmo.info("robots", VERSIONS, labels={"team": "arms"})
        info["versions"][0]["tags"] = ["golden"]
        [self.info] = load_info("info", json.dumps(info).encode(), pytest.fail)

    def migrate(self, backend: Backend, folder: Path, opener: Any = None) -> list[State]:
        store = Store.open(backend)
        bucket = Bucket(store, name="lab", user="kim", state_dir=str(folder / "state"))
        with Buckets(None, opener or self.services) as buckets:
            [dataset] = find_datasets("s3://osmo/data", buckets)
            with dataset, Memo(str(folder / "cache"), dataset.url, store.id) as memo:
                migration = Migration(bucket, dataset, "robots", self.info, warn=lambda line: None)
                taking = Taking(bucket, "robots", buckets, memo, threads=2)
                return [outcome.state for outcome in migration.run(migration.plan(), taking)]


def there(backend: MemoryBackend) -> list[dict[str, bytes]]:
    """The contents of all versions, in order; checked."""
    store = Store.open(backend)
    assert verify_store(store).problems == []
    bucket = Bucket(store, name="lab", user="kim")
    try:
        head = bucket.refs.find("robots")
    except NotFoundError:
        return []
    found: list[dict[str, bytes]] = []
    for number in bucket.refs.versions(head.id):
        tree = bucket.tree(bucket.resolve("robots", str(number)))
        found.append(
            {
                os.fsdecode(entry.path): b"".join(bytes(c) for c in store.read_chunks(list(tree.chunks(entry))))
                for entry in tree.entries()
                if entry.kind == Kind.FILE
            }
        )
    return found


def finished(backend: MemoryBackend) -> None:
    bucket = Bucket(Store.open(backend), name="lab", user="kim")
    assert there(backend) == list(VERSIONS.values())
    assert bucket.resolve("robots", "golden").number == 1
    assert bucket.refs.find("robots").labels == {"team": "arms"}
    assert bucket.resolve("robots").record.created_by == "alex@lab"


def new_store() -> MemoryBackend:
    backend = MemoryBackend()
    Store.open(backend, create=True)
    return backend


FAULTS = {
    Fault.CRASH_BEFORE: InjectedCrash,
    Fault.CRASH_AFTER: InjectedCrash,
    Fault.ERROR_BEFORE: StorageError,
    Fault.ERROR_AFTER: StorageError,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_of_the_store(fault: Fault, tmp_path: Path) -> None:
    old = Old()
    counter = FaultBackend(new_store())
    assert old.migrate(counter, tmp_path / "count") == [State.CREATED] * 3
    assert counter.calls > 60
    stopped = 0
    for at in range(1, counter.calls + 1):
        backend = new_store()
        faulty = FaultBackend(backend, FaultPlan(at, fault))
        try:
            old.migrate(faulty, tmp_path / str(at))
        except (InjectedCrash, CasstoreError) as error:
            assert isinstance(error, FAULTS[fault]), error
            stopped += 1
        before = there(backend)
        assert before == list(VERSIONS.values())[: len(before)]
        states = old.migrate(backend, tmp_path / str(at))
        assert states == [State.PRESENT] * len(before) + [State.CREATED] * (3 - len(before))
        finished(backend)
        assert old.migrate(backend, tmp_path / str(at)) == [State.PRESENT] * 3
    assert stopped > counter.calls // 2 or fault not in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


class Flaky(MemoryClient):
    """The source, with one call that fails, or returns other bytes."""

    def __init__(self, inner: MemoryClient, at: int, how: str) -> None:
        super().__init__(inner.url)
        self._objects = inner._objects
        self.calls = 0
        self.how = how
        self.at = at

    def read(self, key: str, **options: Any) -> Object:
        with self._lock:
            self.calls += 1
            hit = self.calls == self.at
        if hit and self.how == "error":
            raise TransientError("the line went dead")
        found = super().read(key, **options)
        return Object(bytes(len(found.data)), found.etag) if hit else found


@pytest.mark.parametrize("how", ["error", "zeros"])
def test_every_read_of_the_source(how: str, tmp_path: Path) -> None:
    old = Old()
    inner = old.services.bucket("s3://osmo")
    counter = Flaky(inner, 0, how)
    old.migrate(new_store(), tmp_path / "count", lambda url, credentials: (counter, "data"))
    assert counter.calls >= 10
    harmless = 0
    for at in range(1, counter.calls + 1):
        backend = new_store()
        flaky = Flaky(inner, at, how)
        states: list[State] = []
        try:
            states = old.migrate(backend, tmp_path / f"{how}{at}", lambda url, credentials, it=flaky: (it, "data"))
        except TransientError:
            assert how == "error"
        # Versions whose files or manifests were read wrong are not made; those behind them are.
        made = there(backend)
        assert all(files in VERSIONS.values() for files in made)
        harmless += states == [State.CREATED] * 3
        if State.DAMAGED not in states:
            old.migrate(backend, tmp_path / f"{how}{at}")
            finished(backend)
    assert harmless <= len(VERSIONS)  # the plan reads manifests too, and they are read again


def test_interrupted_and_resumed_nothing_is_read_or_stored_twice(tmp_path: Path) -> None:
    old = Old()
    client = old.services.bucket("s3://osmo")
    backend = new_store()
    # The head, the first version, the head, and the second version: all of it is stored, and it is not committed.
    plan = FaultPlan(4, Fault.CRASH_BEFORE, operations=frozenset({"put"}), prefix="datasets/")
    with pytest.raises(InjectedCrash):
        old.migrate(FaultBackend(backend, plan), tmp_path)
    assert len(there(backend)) == 1
    packs = {info.key for info in backend.list("packs/")}
    del client.log[:]
    old.migrate(backend, tmp_path)
    finished(backend)
    read = [key for what, key in client.log if what == "read" and "/hashes/" in key]
    assert len(read) == 1, "only what the third version brings"
    added = {info.key for info in backend.list("packs/")} - packs
    assert len(added) <= 2
