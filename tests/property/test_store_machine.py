"""T7: a store and a dictionary go the same way, whatever is uploaded, deleted, collected, interrupted and opened anew.

Time passes by the clock that collections are given. In the end everything is deleted, and nothing may be left.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from casstore.backend.base import Backend
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.garbage import Garbage, GarbageOutcome
from casstore.dataset.retention import change
from casstore.format.manifest import MAX_DEPTH
from casstore.repo import layout
from casstore.repo.gc.plan import Rules
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan, InjectedCrash

NAMES = st.sampled_from(["a", "b"])
TAGS = st.sampled_from(["x", "y"])
CRASHES = st.sampled_from([Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
DAY = 24 * 3600.0

_random = random.Random(7)
_long = _random.randbytes(400_000)
POOL = {
    "empty": b"",
    "small": b"a few bytes",
    "text": b"something that compresses well. " * 900,
    "noise": _random.randbytes(30_000),
    "long": _long,
    "edited": _long[:150_000] + b"!" + _long[150_000:],
    "zeros": bytes(300_000),
}
FILES = st.sets(st.sampled_from(sorted(POOL)), min_size=1, max_size=3)

_folder = tempfile.TemporaryDirectory(prefix="casstore-machine-")


@pytest.fixture(scope="module", autouse=True)
def pool() -> Any:
    for name, data in POOL.items():
        Path(_folder.name, name).write_bytes(data)
    yield
    _folder.cleanup()


@dataclass
class Dataset:
    """What a dataset should be."""

    versions: dict[int, frozenset[str]] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)
    last: int = 0
    keep_last: int | None = None
    keep_tagged: bool = False

    def drop(self, number: int) -> None:
        del self.versions[number]
        self.tags = {tag: tagged for tag, tagged in self.tags.items() if tagged != number}

    def expire(self) -> None:
        if self.keep_last is None:
            return
        kept = set(sorted(self.versions)[-self.keep_last :])
        for number in sorted(self.versions):
            if number not in kept and not (self.keep_tagged and number in self.tags.values()):
                self.drop(number)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.backend = MemoryBackend()
        self.model: dict[str, Dataset] = {}
        self.passed = 0.0

    @initialize()
    def create(self) -> None:
        self.reopen(create=True)

    def reopen(self, *, create: bool = False) -> None:
        self.bucket = Bucket(Store.open(self.backend, create=create), name="b", user="u")

    # ---- what users do

    def _upload(self, backend: Backend, name: str, files: set[str], tag: str | None) -> int:
        bucket = self.bucket if backend is self.backend else Bucket(Store.open(backend), name="b", user="u")
        sources = [os.path.join(_folder.name, file) for file in sorted(files)]
        return bucket.upload(name, sources, tag=tag, force_new_version=True, threads=1).version.number

    @rule(name=NAMES, files=FILES, tag=st.none() | TAGS)
    def upload(self, name: str, files: set[str], tag: str | None) -> None:
        number = self._upload(self.backend, name, files, tag)
        dataset = self.model.setdefault(name, Dataset())
        assert number == dataset.last + 1
        self._add(dataset, number, files, tag)

    def _add(self, dataset: Dataset, number: int, files: set[str], tag: str | None) -> None:
        dataset.versions[number] = frozenset(files)
        dataset.last = number
        if tag:
            dataset.tags[tag] = number

    @rule(name=NAMES, files=FILES, at=st.integers(1, 60), fault=CRASHES)
    def upload_and_crash(self, name: str, files: set[str], at: int, fault: Fault) -> None:
        number = self._crash(at, fault, lambda backend: self._upload(backend, name, files, None))
        there = self._numbers(name)
        before = self.model.get(name, Dataset())
        new = there - before.versions.keys()
        assert new.issubset({before.last + 1})
        assert number is None or new == {number}
        if new:  # it was committed, whether or not anybody was told
            self._add(self.model.setdefault(name, before), before.last + 1, files, None)

    def _crash(self, at: int, fault: Fault, work: Callable[[Backend], Any]) -> Any:
        try:
            return work(FaultBackend(self.backend, FaultPlan(at, fault)))
        except InjectedCrash:
            return None
        finally:
            self.reopen()

    def _numbers(self, name: str) -> set[int]:
        found = [head for head in self.bucket.refs.heads() if head.name == name]
        return {version.version.number for head in found for version in self.bucket.info(head.name).versions}

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tag=TAGS)
    def set_tag(self, data: st.DataObject, tag: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        number = data.draw(st.sampled_from(sorted(self.model[name].versions)))
        self.bucket.set_tags(name, [tag], tag=str(number))
        self.model[name].tags[tag] = number

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        number = data.draw(st.sampled_from(sorted(self.model[name].versions)))
        self.bucket.delete(name, tag=str(number))
        self.model[name].drop(number)
        if not self.model[name].versions:
            del self.model[name]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete_dataset(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.bucket.delete(name, all_versions=True)
        del self.model[name]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), keep_last=st.integers(1, 3), keep_tagged=st.booleans())
    def retain(self, data: st.DataObject, keep_last: int, keep_tagged: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        change(self.bucket.refs, name, keep_last=keep_last, keep_tagged=keep_tagged, clear=True)
        self.model[name].keep_last, self.model[name].keep_tagged = keep_last, keep_tagged

    # ---- what operators do

    def _collect(self, backend: Backend, rules: Rules) -> GarbageOutcome:
        bucket = self.bucket if backend is self.backend else Bucket(Store.open(backend), name="b", user="u")
        with Garbage(bucket, rules=rules, clock=lambda: time.time() + self.passed) as garbage:
            return garbage.run(garbage.plan())

    @rule(grace=st.sampled_from([0.0, DAY]), repack_below=st.sampled_from([0.0, 0.5, 1.0]))
    def collect(self, grace: float, repack_below: float) -> None:
        self._collect(self.backend, Rules(grace=grace, repack_below=repack_below, margin=0))
        for dataset in self.model.values():
            dataset.expire()

    @rule(at=st.integers(1, 120), fault=CRASHES, grace=st.sampled_from([0.0, DAY]))
    def collect_and_crash(self, at: int, fault: Fault, grace: float) -> None:
        self._crash(at, fault, lambda backend: self._collect(backend, Rules(grace=grace, repack_below=0.7, margin=0)))
        for name, dataset in self.model.items():
            there = self._numbers(name)
            expired = Dataset(dict(dataset.versions), dict(dataset.tags), 0, dataset.keep_last, dataset.keep_tagged)
            expired.expire()
            assert there in (dataset.versions.keys(), expired.versions.keys())
            if there == expired.versions.keys():
                dataset.expire()

    @rule(hours=st.sampled_from([1, 30, 24 * 40]))
    def time_passes(self, hours: int) -> None:
        self.passed += hours * 3600

    @rule()
    def open_anew(self) -> None:
        self.reopen()

    @rule()
    def verify(self) -> None:
        assert verify_store(Store.open(self.backend)).problems == []

    @rule()
    def look(self) -> None:
        """Compare everything."""
        bucket = Bucket(Store.open(self.backend), name="b", user="u")
        assert {summary.name for summary in bucket.list()} == self.model.keys()
        for name, dataset in self.model.items():
            assert self._numbers(name) == dataset.versions.keys()
            for tag, number in dataset.tags.items():
                assert bucket.resolve(name, tag).number == number
            for number, files in dataset.versions.items():
                tree = bucket.tree(bucket.resolve(name, str(number)))
                found = {
                    os.fsdecode(entry.path): b"".join(map(bytes, bucket.store.read_chunks([*tree.chunks(entry)])))
                    for entry in tree.entries()
                }
                assert found == {file: POOL[file] for file in files}

    def teardown(self) -> None:
        if not hasattr(self, "bucket"):
            return
        self.look()
        for name in self.model:
            self.bucket.delete(name, all_versions=True)
        self.passed += 100 * DAY
        for _ in range(2):  # records that were in force before may be due, and leave new ones
            self._collect(self.backend, Rules(grace=0, margin=0))
        left = [info.key for info in self.backend.list("")]
        assert [key for key in left if key.startswith((layout.PACKS, layout.DATASETS, layout.INDEX))] == []
        for key in left:
            if key.startswith(layout.MANIFESTS):
                assert self.bucket.store.tree(layout.id_of(key)).root.depth == MAX_DEPTH


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[*HealthCheck],
        ),
    )


@pytest.mark.slow
def test_store_and_dictionary_agree() -> None:
    run(80, 75)


@pytest.mark.nightly
@pytest.mark.timeout(6 * 3600)
def test_store_and_dictionary_agree_for_long() -> None:
    run(1000, 500)
