"""T8: writers, readers, a deleter and two collections on one store, in chosen interleavings: nothing that counts is
lost.

Every actor may stand still at any of its calls while the others go on, for as long as these have anything to do: a
writer between its last look and its commit, a collection between two deletions. Leases are of no help in most of the
schedules: the collections believe that they have all run out.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, ConflictError, NotFoundError
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.refs import is_active
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.schedule import Schedule, run_actors

NOW = Rules(grace=0, margin=0)
FAR = 1e6
"""Seconds by which a collection may be ahead: every lease has run out, and was removed."""
SCHEDULES, NIGHTLY = 100, 10_000
NAMES = ("a", "b")

Files = dict[str, bytes]


class World:
    """One store, and what its users believe to be in it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.inner = MemoryBackend()
        self.schedule = Schedule(seed, stops=4, reach=self.rng.choice([20, 80, 300]))
        self.ahead = self.rng.choice([0.0, 1000.0, FAR])
        self.blocks = [random.Random(number).randbytes(40_000) for number in range(6)]
        self.committed: dict[tuple[str, int], Files] = {}
        """By the dataset's id: a name that was free again leads to another one, whose numbers begin anew."""
        self.deleted = 0
        self.read = 0
        Store.open(self.inner, create=True)

    def open(self, actor: str) -> Bucket:
        return Bucket(Store.open(self.schedule.backend(actor, self.inner)), name="b", user=actor)

    def writer(self, actor: str) -> Callable[[], None]:
        rng = random.Random(self.rng.random())

        def work() -> None:
            bucket = self.open(actor)
            for round_ in range(3):
                name = rng.choice(NAMES)
                source = self.folder / f"{actor}{round_}"
                source.mkdir()
                files = {f"f{number}": rng.choice(self.blocks) for number in range(rng.randrange(1, 4))}
                for path, data in files.items():
                    (source / path).write_bytes(data)
                try:
                    result = bucket.upload(name, [f"{source}/*"], force_new_version=rng.random() < 0.7, threads=1)
                except (ConflictError, NotFoundError):
                    continue  # the dataset, or this very version, was deleted meanwhile: that is said
                self.committed[result.version.dataset_id, result.version.record.number] = files
            bucket.store.close()

        return work

    def deleter(self, actor: str) -> Callable[[], None]:
        rng = random.Random(self.rng.random())

        def work() -> None:
            bucket = self.open(actor)
            done = 0
            for _ in range(100):
                name = rng.choice(NAMES)
                if done == 4:
                    break
                try:
                    if rng.random() < 0.3:
                        gone = bucket.delete(name, all_versions=True)
                    else:
                        numbers = bucket.refs.versions(bucket.refs.resolve_name(name))
                        gone = bucket.delete(name, tag=str(rng.choice(numbers)) if numbers else None)
                except (NotFoundError, ConflictError):
                    continue
                done += 1
                self.deleted += len(gone.versions)
            bucket.store.close()

        return work

    def reader(self, actor: str) -> Callable[[], None]:
        rng = random.Random(self.rng.random())

        def work() -> None:
            bucket = self.open(actor)
            read = 0
            for _ in range(200):
                try:
                    version = bucket.resolve(rng.choice(NAMES))
                except NotFoundError:
                    continue
                read += 1
                if read > 6:
                    break
                try:
                    content_of(bucket, version.dataset, str(version.number))
                    self.read += 1
                except CasstoreError:
                    # Only what was deleted meanwhile may be gone.
                    assert was_deleted(bucket, version.dataset_id, version.number)
            bucket.store.close()

        return work

    def collector(self, actor: str) -> Callable[[], None]:
        def work() -> None:
            bucket = self.open(actor)
            for _ in range(3):
                try:
                    collect(bucket.store, self.ahead)
                except ConflictError:
                    continue  # the other one is at it
            bucket.store.close()

        return work


def collect(store: Store, ahead: float = 0.0) -> int:
    with Collector(store, rules=NOW, clock=lambda: time.time() + ahead) as collector:
        return collector.run(collector.plan()).swept.size


def content_of(bucket: Bucket, name: str, tag: str) -> Files:
    tree = bucket.tree(bucket.resolve(name, tag))
    return {
        os.fsdecode(entry.path): b"".join(bytes(part) for part in bucket.store.read_chunks([*tree.chunks(entry)]))
        for entry in tree.entries()
    }


def was_deleted(bucket: Bucket, dataset_id: str, number: int) -> bool:
    try:
        head, _ = bucket.refs.read_head(dataset_id)
    except NotFoundError:
        return True  # and collected
    return head.deleted or not is_active(head, number)


def run(seed: int, folder: Path) -> World:
    folder.mkdir()
    world = World(seed, folder)
    raised = run_actors(
        world.schedule,
        {
            "w1": world.writer("w1"),
            "w2": world.writer("w2"),
            "deleter": world.deleter("deleter"),
            "reader": world.reader("reader"),
            "gc1": world.collector("gc1"),
            "gc2": world.collector("gc2"),
        },
    )
    try:
        for name, error in raised.items():
            raise AssertionError(f"seed {seed}: {name} ended with {error!r}") from error
        check(world)
    except BaseException:
        print(f"deleted: {world.deleted}, committed: {sorted(world.committed)}")
        with Store.open(world.schedule.backend("post", world.inner)) as store:
            world.schedule.end("post")
            print("afterwards:", [f"{problem.where}: {problem.message}" for problem in verify_store(store).problems])
        for name, lines in world.schedule.trace().items():
            print(f"--- seed {seed}, {name}", *lines, sep="\n")
        raise
    return world


def check(world: World) -> None:
    with Store.open(world.schedule.backend("check", world.inner)) as store:
        world.schedule.end("check")
        bucket = Bucket(store, name="b", user="check")
        assert [f"{problem.where}: {problem.message}" for problem in verify_store(store).problems] == []
        there = {
            (found.version.dataset_id, found.version.record.number): (head.name, str(found.version.record.number))
            for head in bucket.refs.heads()
            for found in bucket.info(head.name, count=1000).versions
        }

        def compare() -> None:
            for key, (name, tag) in there.items():
                if key in world.committed:
                    assert content_of(bucket, name, tag) == world.committed[key]

        compare()
        assert all(was_deleted(bucket, *key) for key in world.committed.keys() - there.keys())
        collect(store, FAR)
        assert [problem.message for problem in verify_store(store).problems] == []
        # What two packs hold is freed in one, and may leave the other with little: that is for the next one.
        assert 0 in [collect(store, FAR) for _ in range(4)], "collections come to an end"
        compare()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(4))
def test_schedules(part: int, tmp_path: Path) -> None:
    worlds = [run(seed, tmp_path / str(seed)) for seed in range(part * SCHEDULES // 4, (part + 1) * SCHEDULES // 4)]
    # The schedules do what they are for.
    assert sum(len(world.committed) for world in worlds) > len(worlds)
    assert sum(world.deleted for world in worlds) > len(worlds) // 4
    assert sum(world.read for world in worlds) > len(worlds) // 4


@pytest.mark.nightly
@pytest.mark.timeout(6 * 3600)
def test_many_schedules(tmp_path: Path) -> None:
    for seed in range(SCHEDULES, NIGHTLY):
        run(seed, tmp_path / str(seed))
