"""The tree of a version as inodes, without a kernel."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError
from casstore.repo.store import Store
from casstore_fuse.contents import Contents
from casstore_fuse.members import Members
from casstore_fuse.vfs import ROOT, Vfs

MANY = 3000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several leaves of entries: a large folder, deep folders, names that sort around the slash, links, holes."""
    root = tmp_path_factory.mktemp("vfs") / "in"
    rng = random.Random(7)
    for folder in ("a", "a/b", "a/b/c", "a-b", "a.b", "empty", "many"):
        (root / folder).mkdir(parents=True)
    for number in range(MANY):
        (root / "many" / f"f{number}").write_bytes(b"%d" % number)
    for path in ("a/x", "a/b/x", "a/b/c/x", "a-b/x", "a.b/x", "x"):
        (root / path).write_bytes(path.encode())
    (root / "large").write_bytes(rng.randbytes(3 << 20))
    (root / "none").touch()
    (root / "run").write_bytes(b"#!/bin/sh\necho works\n")
    (root / "run").chmod(0o755)
    os.link(root / "x", root / "y")
    (root / "link").symlink_to("a/b/x")
    return root


@pytest.fixture(scope="module")
def bucket(source: Path) -> Iterator[Bucket]:
    with Store.open(MemoryBackend("vfs-tests"), create=True) as store:
        found = Bucket(store, name="b", user="u")
        found.upload("ds", [f"{source}/*"])
        yield found


@pytest.fixture
def vfs(bucket: Bucket) -> Vfs:
    return Vfs(bucket.tree(bucket.resolve("ds")), uid=7, gid=8)


def paths(vfs: Vfs, node: int = ROOT, above: str = "") -> Iterator[str]:
    for name, _, attributes in vfs.listing(node, 0):
        path = f"{above}/{name.decode()}" if above else name.decode()
        yield path
        if stat.S_ISDIR(attributes.mode):
            yield from paths(vfs, attributes.node, path)


def find(vfs: Vfs, path: str) -> int:
    node = ROOT
    for name in path.split("/"):
        found = vfs.lookup(node, name.encode())
        assert found is not None, path
        node = found.node
    return node


def test_every_path_is_there_once(vfs: Vfs, source: Path) -> None:
    found = sorted(paths(vfs))
    assert found == sorted(str(path.relative_to(source)) for path in source.rglob("*"))


def test_stat_shows_what_was_there(vfs: Vfs, source: Path) -> None:
    for path in source.rglob("*"):
        there, here = path.lstat(), vfs.attributes(find(vfs, str(path.relative_to(source))))
        assert stat.S_IFMT(here.mode) == stat.S_IFMT(there.st_mode)
        assert here.mtime_ns == there.st_mtime_ns
        assert (here.uid, here.gid) == (7, 8)
        if not stat.S_ISDIR(there.st_mode):
            assert here.size == there.st_size
        if stat.S_ISREG(there.st_mode):
            assert stat.S_IMODE(here.mode) == there.st_mode & 0o555
    assert vfs.attributes(find(vfs, "x")).ino == vfs.attributes(find(vfs, "y")).ino
    assert vfs.target(find(vfs, "link")) == b"a/b/x"


def test_what_is_not_there(vfs: Vfs) -> None:
    assert vfs.lookup(ROOT, b"no such") is None
    assert vfs.lookup(ROOT, b"") is None
    assert vfs.lookup(find(vfs, "empty"), b"x") is None
    assert list(vfs.listing(find(vfs, "empty"), 0)) == []
    assert vfs.lookup(find(vfs, "many"), b"f") is None
    assert vfs.lookup(find(vfs, "many"), b"f99999") is None


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_listing_goes_on_where_it_stopped(vfs: Vfs, step: int) -> None:
    node = find(vfs, "many")
    names: list[bytes] = []
    offset = 0
    while True:
        part = [item for item, _ in zip(vfs.listing(node, offset), range(step), strict=False)]
        if not part:
            break
        names += [name for name, _, _ in part]
        offset = part[-1][1]
    assert names == sorted(b"f%d" % number for number in range(MANY))


def test_a_folder_is_known_by_its_number_alone(bucket: Bucket, vfs: Vfs) -> None:
    node = find(vfs, "a/b")
    fresh = Vfs(bucket.tree(bucket.resolve("ds")), uid=7, gid=8)
    assert [name for name, _, _ in fresh.listing(node, 0)] == [b"c", b"x"]
    assert fresh.lookup(node, b"x") is not None


def test_it_tells_before_it_reads_the_manifest(vfs: Vfs) -> None:
    waits: list[bool] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        waits.append(True)
        yield
        waits.append(False)

    vfs.on_wait(waiting)
    node = find(vfs, "many/f2999")
    assert waits and waits == [True, False] * (len(waits) // 2)
    del waits[:]
    assert find(vfs, "many/f2999") == node and vfs.content(node)[0] == 4
    assert not waits


def test_a_sample_is_of_files_all_over(vfs: Vfs, source: Path) -> None:
    sizes = list(vfs.sample())
    assert len(sizes) > 100
    assert set(sizes) <= {path.stat().st_size for path in source.rglob("*") if path.is_file()}
    assert len(sizes) <= vfs.totals.files


def test_ranges_of_files(bucket: Bucket, vfs: Vfs, source: Path) -> None:
    contents = Contents(bucket.store, vfs.tree)
    rng = random.Random(1)
    for path in ("large", "x", "none", "many/f2999"):
        data = (source / path).read_bytes()
        node = find(vfs, path)
        size, content = vfs.content(node)
        layout = contents.layout(node, size, content)
        ranges = [(0, len(data)), (0, 1), (len(data), 10), (max(0, len(data) - 3), 100), (len(data) + 5, 5)]
        ranges += [(rng.randrange(len(data) + 1), rng.randrange(1 << 18)) for _ in range(50)]
        for offset, length in ranges:
            fetched = b"".join(contents.fetch(node, layout, offset, length))
            assert fetched == data[offset : offset + length]
            again = contents.cached(layout, offset, length)
            assert again is not None
            assert b"".join(again) == fetched
    contents.close()


def test_paths_of_inodes_and_all_files(vfs: Vfs, source: Path) -> None:
    files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sorted(path.decode() for _, path, _ in vfs.files()) == sorted(str(p.relative_to(source)) for p in files)
    assert all(vfs.path(node) == path and vfs.content(node)[0] == size for node, path, size in vfs.files())
    assert vfs.path(ROOT) == b""


def test_below_something_writable_modes_are_whole(bucket: Bucket, source: Path) -> None:
    vfs = Vfs(bucket.tree(bucket.resolve("ds")), uid=7, gid=8, below=True)
    for path in source.rglob("*"):
        if not path.is_symlink():
            mode = vfs.attributes(find(vfs, str(path.relative_to(source)))).mode
            assert stat.S_IMODE(mode) == stat.S_IMODE(path.lstat().st_mode)
    assert stat.S_IMODE(vfs.attributes(ROOT).mode) == 0o755


def test_a_collection_shows_every_member_whole(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    bucket.upload("none", [f"{tmp_path}/none/*"])
    bucket.upload("more", [f"{source}/*"])
    names = ["more", "none", "ds"]
    own = {name: Vfs(bucket.tree(bucket.resolve(name)), uid=7, gid=8) for name in names}
    members = Members([(name.encode(), own[name]) for name in names], uid=7, gid=8)
    assert [name for name, _, _ in members.listing(ROOT, 0)] == [b"ds", b"more", b"none"]
    assert [name for name, _, _ in members.listing(ROOT, 2)] == [b"none"]

    seen: dict[int, str] = {}

    def walk(node: int, above: str) -> None:
        for name, _, attributes in members.listing(node, 0):
            path = f"{above}/{name.decode()}" if above else name.decode()
            assert attributes.node not in seen, "each inode has a number of its own"
            seen[attributes.node] = path
            assert members.lookup(node, name) == attributes == members.attributes(attributes.node)
            assert members.path(attributes.node).decode() == path
            if stat.S_ISDIR(attributes.mode):
                walk(attributes.node, path)

    walk(ROOT, "")
    expected = {f"{name}/{path}" for name in names for path in paths(own[name])} | set(names)
    assert set(seen.values()) == expected
    for node, path, size in members.files():
        assert seen[node] == path.decode() and members.content(node)[0] == size
        name, _, below = path.decode().partition("/")
        assert members.content(node) == own[name].content(find(own[name], below))
    assert members.totals.files == sum(vfs.totals.files for vfs in own.values())
    assert members.lookup(ROOT, b"other") is None and members.path(ROOT) == b""
    for node in (0, max(seen) + 1):
        with pytest.raises(CasstoreError):
            members.attributes(node)
