"""Fetching files before anybody asks for them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.cache.files import FileCache, content_id
from casstore.cache.space import Space
from casstore.dataset import Bucket
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore_fuse.ahead import Ahead
from casstore_fuse.contents import Contents
from casstore_fuse.state import State
from casstore_fuse.vfs import Vfs

SIZES = {"a/small": 1000, "a/large": 3 << 20, "b/large": 1 << 20, "b/empty": 0, "huge": 9 << 20}


@pytest.fixture
def faults() -> FaultBackend:
    return FaultBackend(MemoryBackend())


@pytest.fixture
def bucket(tmp_path: Path, faults: FaultBackend) -> Iterator[Bucket]:
    for name, size in SIZES.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name).randbytes(size))
    with Store.open(faults, create=True) as store:
        found = Bucket(store, name="b", user="u")
        found.upload("ds", [f"{tmp_path}/in/*"])
        yield found


class Mount:
    """What a mount reads with, without a kernel."""

    def __init__(self, bucket: Bucket, cache: Path | None) -> None:
        tree = bucket.tree(bucket.resolve("ds"))
        self.files = FileCache(Space(str(cache), 1 << 30)) if cache else None
        self.state = State.anonymous()
        self.vfs = Vfs(tree, uid=0, gid=0)
        self.contents = Contents(bucket.store, tree, files=self.files, state=self.state)

    def cached(self) -> set[str]:
        assert self.files is not None
        identities = {path.decode(): content_id(*self.vfs.content(node)) for node, path, _ in self.vfs.files()}
        return {path for path, identity in identities.items() if Path(self.files.path(identity)).exists()}


@pytest.fixture
def mounted(bucket: Bucket, tmp_path: Path) -> Iterator[Mount]:
    found = Mount(bucket, tmp_path / "cache")
    yield found
    found.contents.close()
    found.state.close()


@pytest.mark.parametrize(
    ("pattern", "limit", "expected"),
    [
        ("", 1 << 30, {"a/large", "b/large", "huge"}),
        ("a/", 1 << 30, {"a/large"}),
        (".*large", 2 << 20, {"b/large"}),
        ("none", 1 << 30, set()),
    ],
)
def test_what_is_fetched(mounted: Mount, pattern: str, limit: int, expected: set[str]) -> None:
    Ahead(mounted.vfs, mounted.contents, pattern, limit).run()
    assert mounted.cached() == expected


def test_small_files_are_read_too(mounted: Mount) -> None:
    Ahead(mounted.vfs, mounted.contents, "a/small", 1 << 30).run()
    assert mounted.state.get("fetched") == 1000


def test_without_a_cache_all_of_a_file_is_read(bucket: Bucket) -> None:
    found = Mount(bucket, None)
    Ahead(found.vfs, found.contents, "huge", 1 << 30).run()
    assert found.state.get("fetched") == SIZES["huge"]
    found.contents.close()
    found.state.close()


def test_what_can_not_be_read_is_a_line_and_the_rest_goes_on(
    mounted: Mount, faults: FaultBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = FaultPlan(at=1, times=10**6, fault=Fault.ERROR_BEFORE, operations=frozenset({"read"}), prefix="packs/")
    list(mounted.vfs.files())  # the manifest is in the same packs
    for node, _, _ in mounted.vfs.files():
        mounted.contents.layout(node, *mounted.vfs.content(node))
    monkeypatch.setattr(faults, "_plan", plan)
    with caplog.at_level(logging.INFO, "casstore.fuse"):
        Ahead(mounted.vfs, mounted.contents, "", 1 << 30).run()
    assert mounted.cached() == set()
    assert "a/large was not fetched ahead" in caplog.text
    assert "0 files were fetched ahead, 4 could not be" in caplog.text


def test_it_stops_when_told(mounted: Mount, caplog: pytest.LogCaptureFixture) -> None:
    ahead = Ahead(mounted.vfs, mounted.contents, "", 1 << 30)
    ahead.stop()
    ahead.run()
    assert mounted.cached() == set() and mounted.state.get("fetched") == 0
