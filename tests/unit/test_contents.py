"""What a mount reads with what it is asked for, of a store that is far away."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.cache.files import FileCache, content_id
from casstore.cache.remote import RemoteCache
from casstore.cache.space import Space
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, StorageError
from casstore.model import Content
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore_fuse.contents import Contents
from casstore_fuse.state import State
from casstore_fuse.vfs import Vfs

COUNT = 400
BROKEN = FaultPlan(at=1, times=10**6, fault=Fault.ERROR_BEFORE, operations=frozenset({"read"}), prefix="packs/")


class Mount:
    """What a mount reads with, without a kernel."""

    def __init__(self, root: Path) -> None:
        self.data: dict[str, bytes] = {}
        for number in range(COUNT):
            name = f"d{number // 50}/f{number:03d}"
            path = root / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.data[name] = random.Random(number).randbytes(8192)
            path.write_bytes(self.data[name])
        self.log = CallLog()
        self.faults = FaultBackend(MemoryBackend())
        self.healthy = self.faults._plan
        self.store = Store.open(TraceBackend(self.faults, self.log), create=True)
        bucket = Bucket(self.store, name="b", user="u")
        bucket.upload("ds", [f"{root}/in/*"])
        self.store.use(RemoteCache.at(str(root / "cache"), 1 << 30))
        self.tree = bucket.tree(bucket.resolve("ds"))
        self.vfs = Vfs(self.tree, uid=0, gid=0)
        self.files = {path.decode(): node for node, path, _ in self.vfs.files()}
        self.state = State.anonymous()
        self.contents = self.new()
        self.log.clear()

    def new(self) -> Contents:
        return Contents(self.store, self.tree, state=self.state, neighbours=self.after)

    def after(self, node: int) -> Iterator[tuple[int, int, Content]]:
        while node + 1 < self.vfs.total + 2:
            node += 1
            yield node, *self.vfs.content(node)

    def read(self, name: str) -> bytes:
        node = self.files[name]
        size, content = self.vfs.content(node)
        layout = self.contents.layout(node, size, content)
        pieces = self.contents.cached(layout, 0, 1 << 17)
        return b"".join(self.contents.fetch(node, layout, 0, 1 << 17) if pieces is None else pieces)

    @property
    def reads(self) -> int:
        return self.log.count("read", "packs/")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    found = Mount(tmp_path)
    yield found
    found.contents.close()
    found.store.close()


def test_small_files_one_after_the_other_take_few_requests(mount: Mount) -> None:
    for name in sorted(mount.files):
        assert mount.read(name) == mount.data[name]
    assert mount.reads < 20
    assert mount.state.get("fetched") == COUNT * 8192


def test_small_files_at_random_cost_nobody_anything_in_vain(mount: Mount) -> None:
    names = random.Random(3).sample(sorted(mount.files), 8)
    for name in sorted(names, reverse=True):
        assert mount.read(name) == mount.data[name]
    assert mount.state.get("fetched") == 8 * 8192


def test_what_is_on_the_disk_is_read_when_what_comes_after_it_is_not_and_the_service_is_away(mount: Mount) -> None:
    names = sorted(mount.files)
    for name in names[:3]:
        mount.read(name)
    mount.contents.close()
    kept = mount.state.get("fetched") // 8192
    assert 3 <= kept < COUNT
    mount.contents = mount.new()
    mount.faults._plan = BROKEN
    for name in names[:kept]:
        assert mount.read(name) == mount.data[name]
    assert mount.state.get("cached") > 0
    with pytest.raises(StorageError):
        mount.read(names[-1])
    mount.faults._plan = mount.healthy
    assert mount.read(names[-1]) == mount.data[names[-1]]


def test_a_neighbour_that_can_not_be_read_is_no_matter(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(mount.files)
    content = mount.vfs.content

    def lying(node: int) -> tuple[int, Content]:
        size, found = content(node)
        return (size + 1 if node == mount.files[names[5]] else size), found

    monkeypatch.setattr(mount.vfs, "content", lying)
    for name in names[:5] + names[6:20]:
        assert mount.read(name) == mount.data[name]
    with pytest.raises(CasstoreError):
        mount.read(names[5])


def test_files_that_are_read_with_their_neighbours_are_kept_each_in_its_own_place(tmp_path: Path) -> None:
    sizes = [200 << 10, 8192, 700 << 10, 300 << 10, (1 << 20) + 5, 150 << 10, 3 << 20, 900 << 10] * 4
    data: dict[str, bytes] = {}
    (tmp_path / "in").mkdir()
    for number, size in enumerate(sizes):
        data[f"f{number:02d}"] = random.Random(number).randbytes(size)
        (tmp_path / "in" / f"f{number:02d}").write_bytes(data[f"f{number:02d}"])
    store = Store.open(TraceBackend(MemoryBackend(), CallLog()), create=True)
    bucket = Bucket(store, name="b", user="u")
    bucket.upload("ds", [f"{tmp_path}/in/*"])
    store.use(RemoteCache.at(str(tmp_path / "cache"), 1 << 30))
    tree = bucket.tree(bucket.resolve("ds"))
    vfs = Vfs(tree, uid=0, gid=0)
    nodes = {path.decode(): node for node, path, _ in vfs.files()}
    files = FileCache(Space(str(tmp_path / "cache"), 1 << 30))

    def after(node: int) -> Iterator[tuple[int, int, Content]]:
        for other in range(node + 1, vfs.total + 2):
            yield other, *vfs.content(other)

    contents = Contents(store, tree, files=files, neighbours=after)
    step = 1 << 17
    for _ in range(2):
        for name, node in sorted(nodes.items()):
            size, content = vfs.content(node)
            layout = contents.layout(node, size, content)
            found = b""
            for offset in range(0, size, step):
                found += b"".join(contents.fetch(node, layout, offset, step, content))
                if contents.is_worth_keeping(node, layout, step):
                    contents.keep(node, size, content, layout)
            assert found == data[name]
    contents.close()
    kept = 0
    for name, node in nodes.items():
        size, content = vfs.content(node)
        descriptor = files.open(content_id(size, content), size)
        if descriptor is not None:
            with open(descriptor, "rb") as file:
                assert file.read() == data[name]
            kept += 1
    assert kept >= 20
    store.close()
