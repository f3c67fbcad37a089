"""Operations of the facade, ended at every back end call: the store stays whole, and a second run finishes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, ConflictError, NotFoundError, StorageError
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan, InjectedCrash

Operation = Callable[[Bucket, Path], object]
OPERATIONS: dict[str, Operation] = {
    "upload": lambda bucket, src: bucket.upload("fresh", [f"{src}/*"], tag="t", labels={"l": 1}),
    "upload more": lambda bucket, src: bucket.upload("ds", [f"{src}/*"], tag="t"),
    "update": lambda bucket, src: bucket.update("ds", add=[f"{src}/new"], remove="old"),
    "tag": lambda bucket, _: bucket.set_tags("ds", ["t"], tag="1"),
    "label": lambda bucket, _: bucket.update_labels("ds", set={"l": 1}),
    "metadata": lambda bucket, _: bucket.update_metadata("ds", "1", set={"m": 1}),
    "rename": lambda bucket, _: bucket.rename("ds", "other"),
    "delete": lambda bucket, _: bucket.delete("ds", tag="1", force=True),
    "delete all": lambda bucket, _: bucket.delete("ds", all_versions=True, force=True),
    "collect": lambda bucket, _: bucket.collect("more", ["ds:2", "member"]),
    "recollect": lambda bucket, _: bucket.recollect("coll", remove=["ds"], add=["ds:2"]),
    "dissolve": lambda bucket, _: bucket.recollect("coll", remove=["ds", "member"]),
}


def open_bucket(backend: MemoryBackend | FaultBackend) -> Bucket:
    return Bucket(Store.open(backend), name="default", user="ann")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name, text in {"src/new": "new " * 100, "src/sub/x": "x " * 100, "before/old": "old " * 100}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def objects(folder: Path) -> dict[str, bytes]:
    """The objects of the store before."""
    backend = MemoryBackend()
    Store.open(backend, create=True).index.close()
    bucket = open_bucket(backend)
    for _ in range(2):
        bucket.upload("ds", [f"{folder}/before/*"], force_new_version=True)
    bucket.upload("member", [f"{folder}/before/*"])
    bucket.collect("coll", ["ds:1", "member"])
    return {info.key: backend.get(info.key).data for info in backend.list("")}


def prepared(objects: dict[str, bytes]) -> MemoryBackend:
    backend = MemoryBackend()
    for key, data in objects.items():
        backend.put(key, [data])
    return backend


def seen(backend: MemoryBackend) -> dict[str, object]:
    """Everything a user can see of a store that must be whole."""
    bucket = open_bucket(backend)
    report = bucket.verify()
    assert report.clean, report.problems
    found: dict[str, object] = {}
    for summary in bucket.list():
        info = bucket.info(summary.name)
        versions = {
            item.version.number: (
                [tag for tag in item.version.tags if tag != "latest"],
                item.version.metadata,
                item.collections,
                [entry.path for entry in bucket.entries(summary.name, tag=str(item.version.number))],
            )
            for item in info.versions
        }
        found[summary.name] = (summary.labels, versions, [(m.name, m.number) for m in info.members])
    return found


pytestmark = pytest.mark.slow

CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


def attempt(operation: Operation, backend: FaultBackend, sources: Path, expected: type[BaseException]) -> bool:
    """Whether the operation got through; anything but ``expected`` is an error."""
    try:
        operation(open_bucket(backend), sources)
    except expected:
        return False
    return True


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("fault", [*CRASHES, Fault.ERROR_BEFORE, Fault.ERROR_AFTER])
def test_every_call(name: str, fault: Fault, folder: Path, objects: dict[str, bytes]) -> None:
    operation, sources = OPERATIONS[name], folder / "src"
    done = prepared(objects)
    before = seen(done)
    counter = FaultBackend(done)
    operation(open_bucket(counter), sources)
    after = seen(done)
    assert before != after
    for at in range(1, counter.calls + 1):
        backend = prepared(objects)
        faulty = FaultBackend(backend, FaultPlan(at, fault))
        through = attempt(operation, faulty, sources, InjectedCrash if fault in CRASHES else CasstoreError)
        assert faulty.hits == 1
        state = seen(backend)
        if through:
            assert state == after
        elif name not in ("upload", "upload more", "delete", "delete all"):  # these have steps that can be seen
            assert state in (before, after)
        try:
            operation(open_bucket(backend), sources)
        except (NotFoundError, ConflictError):
            assert state == after
        assert seen(backend) == after


def test_an_upload_whose_replies_are_lost_is_one_version(folder: Path, objects: dict[str, bytes]) -> None:
    """Each put takes effect and fails; whatever the upload says, there is one new version in the end."""
    backend = prepared(objects)
    plan = FaultPlan(at=1, fault=Fault.ERROR_AFTER, times=10**6, operations=frozenset({"put"}))
    for _ in range(20):
        with contextlib.suppress(StorageError):
            open_bucket(FaultBackend(backend, plan)).upload("ds", [f"{folder}/src/*"])
            break
    open_bucket(backend).upload("ds", [f"{folder}/src/*"])
    assert open_bucket(backend).resolve("ds").number == 3
