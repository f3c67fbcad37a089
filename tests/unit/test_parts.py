"""Files that are put together in the cache while they are read from far away."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.cache.files import FileCache, content_id
from casstore.cache.parts import Part
from casstore.cache.remote import RemoteCache
from casstore.cache.space import Space
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, StorageError
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.transfer.ranges import Ranges
from casstore_fuse.contents import Contents
from casstore_fuse.vfs import Vfs

CHUNKS = [random.Random(number).randbytes(5000 + number) for number in range(8)]
BEGINS = [0, *accumulate(map(len, CHUNKS))]
NAME = b"n" * 32
SIZE = 24 << 20
READ = 1 << 17
BROKEN = FaultPlan(at=1, times=10**6, fault=Fault.ERROR_BEFORE, operations=frozenset({"read"}), prefix="packs/")


@pytest.fixture
def files(tmp_path: Path) -> FileCache:
    return FileCache(Space(str(tmp_path / "cache"), 1 << 30))


def opened(files: FileCache) -> Part:
    part = Part.open(files, NAME, BEGINS)
    assert part is not None
    return part


def stored(files: FileCache) -> bytes | None:
    path = Path(files.path(NAME))
    return path.read_bytes() if path.exists() else None


def parts(files: FileCache) -> list[Path]:
    return [path for path in (Path(files.space.root) / "parts").rglob("*") if path.is_file()]


def test_a_file_is_whole_when_its_last_chunk_has_come(files: FileCache) -> None:
    part = opened(files)
    for some in ([5, 6], [0], [1, 2, 3, 7]):
        assert part.put([(number, CHUNKS[number]) for number in some])
        assert not part.finish()
        assert stored(files) is None
    assert part.missing() == [4]
    assert part.has(0, BEGINS[4]) and part.has(BEGINS[5] + 1, 1 << 20)
    assert not part.has(BEGINS[4] - 1, 2) and not part.has(BEGINS[5] - 1, 1)
    assert part.put([(4, CHUNKS[4])])
    assert part.whole and part.finish() and not part.finish()
    assert stored(files) == b"".join(CHUNKS)
    assert os.stat(files.path(NAME)).st_mode & 0o777 == 0o400
    assert parts(files) == []


def test_what_nobody_finished_is_found_by_the_next_one_who_must_verify_it(files: FileCache) -> None:
    first = opened(files)
    first.put([(1, CHUNKS[1]), (2, CHUNKS[2])])
    del first
    part = opened(files)
    assert part.get(1) == (CHUNKS[1], False)
    assert part.missing() == list(range(8)) and not part.has(BEGINS[1], 1)
    part.found(1)
    assert part.get(1) == (CHUNKS[1], True) and part.has(BEGINS[1], 1)
    assert opened(files).get(7) is None


def test_a_file_that_was_thrown_away_meanwhile_gets_no_name_and_nobody_elses_does(files: FileCache) -> None:
    part = opened(files)
    part.put([(0, CHUNKS[0])])
    parts(files)[0].unlink()
    other = opened(files)
    other.put([(1, CHUNKS[1])])
    part.put(list(enumerate(CHUNKS))[1:])
    assert part.whole and not part.finish()
    assert stored(files) is None
    assert part.get(3) == (CHUNKS[3], True)


def test_two_who_put_together_the_same_file(files: FileCache) -> None:
    one, two = opened(files), opened(files)
    for part in (one, two):
        part.put(list(enumerate(CHUNKS)))
    assert one.finish() and not two.finish()
    assert stored(files) == b"".join(CHUNKS)


def test_a_disk_that_is_full(files: FileCache, monkeypatch: pytest.MonkeyPatch) -> None:
    part = opened(files)
    write = os.pwritev

    def full(descriptor: int, data: list[bytes], offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwritev", full)
    assert not part.put([(0, CHUNKS[0]), (2, CHUNKS[2])])
    assert not part.put([(1, CHUNKS[1])])
    assert part.missing() == list(range(1, 8))


class Mount:
    """What a mount reads with, without a kernel: one large file of a store that is far away."""

    def __init__(self, root: Path) -> None:
        self.data = random.Random(1).randbytes(SIZE)
        (root / "in").mkdir()
        (root / "in" / "large").write_bytes(self.data)
        self.log = CallLog()
        self.faults = FaultBackend(MemoryBackend())
        self.store = Store.open(TraceBackend(self.faults, self.log), create=True)
        bucket = Bucket(self.store, name="b", user="u")
        bucket.upload("ds", [f"{root}/in/*"])
        cache = RemoteCache.at(str(root / "cache"), 1 << 30)
        assert cache is not None
        self.files = cache.files
        self.store.use(cache)
        self.tree = bucket.tree(bucket.resolve("ds"))
        self.vfs = Vfs(self.tree, uid=0, gid=0)
        ((self.node, _, _),) = self.vfs.files()
        self.size, self.content = self.vfs.content(self.node)
        self.contents = self.new()
        self.log.clear()

    def new(self) -> Contents:
        return Contents(self.store, self.tree, files=self.files)

    def again(self) -> None:
        self.contents.close()
        self.contents = self.new()
        self.log.clear()

    def read(self, offset: int) -> bytes:
        contents, node = self.contents, self.node
        contents.find(node, self.size, self.content)
        found = contents.whole(node, offset, READ, wait=True)
        if found is not None:
            return bytes(found)
        layout = contents.layout(node, self.size, self.content)
        return b"".join(contents.fetch(node, layout, offset, READ, self.content))

    def check(self, begin: int, end: int) -> None:
        for offset in range(begin, end, READ):
            assert self.read(offset) == self.data[offset : offset + READ]

    @property
    def whole(self) -> Path:
        return Path(self.files.path(content_id(self.size, self.content)))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    found = Mount(tmp_path)
    yield found
    found.contents.close()
    found.store.close()


def fetched(mount: Mount) -> int:
    return mount.log.count("read", "packs/")


def test_a_file_that_is_read_from_front_to_back_is_fetched_once_and_kept_whole(mount: Mount) -> None:
    mount.check(0, SIZE)
    mount.contents.close()
    assert mount.whole.read_bytes() == mount.data
    assert fetched(mount) < 20
    mount.again()
    mount.faults._plan = BROKEN
    mount.check(0, SIZE)
    assert fetched(mount) == 0


def test_a_file_that_is_read_half_way_is_not_fetched_again(mount: Mount) -> None:
    mount.check(0, 1 << 20)
    mount.again()
    assert not mount.whole.exists()
    healthy, mount.faults._plan = mount.faults._plan, BROKEN
    for offset in range(0, 1 << 20, READ):
        assert mount.read(offset) == mount.data[offset : offset + READ]
    with pytest.raises(StorageError):
        mount.read(SIZE - READ)
    mount.faults._plan = healthy
    mount.check(0, SIZE)
    mount.contents.close()
    assert mount.whole.read_bytes() == mount.data


def test_ranges_of_another_file_are_never_written_into_one(mount: Mount, files: FileCache) -> None:
    layout = mount.contents.layout(mount.node, mount.size, mount.content)
    with pytest.raises(ValueError, match="another file"):
        Ranges(mount.store).read_many([(layout, 0, READ)], into=opened(files))


def test_a_file_that_is_kept_without_being_read(mount: Mount) -> None:
    mount.check(0, 1 << 20)
    before = fetched(mount)
    layout = mount.contents.layout(mount.node, mount.size, mount.content)
    for _ in range(2):
        mount.contents.keep(mount.node, mount.size, mount.content, layout)
        assert mount.whole.read_bytes() == mount.data
    assert 0 < fetched(mount) - before < 10


def test_what_was_kept_half_way_and_is_damaged_is_fetched_again(mount: Mount) -> None:
    mount.check(0, 1 << 20)
    mount.contents.close()
    ((path),) = parts(mount.files)
    with path.open("r+b") as file:
        file.seek(1 << 19)
        file.write(bytes(READ))
    mount.again()
    mount.check(0, SIZE)
    mount.contents.close()
    assert mount.whole.read_bytes() == mount.data


def test_a_service_that_goes_away_and_comes_back(mount: Mount) -> None:
    mount.check(0, READ)
    healthy, mount.faults._plan = mount.faults._plan, BROKEN
    with pytest.raises(CasstoreError):
        mount.check(0, SIZE)
    mount.faults._plan = healthy
    mount.check(0, SIZE)
    mount.contents.close()
    assert mount.whole.read_bytes() == mount.data


def test_a_whole_file_that_was_cut_is_read_from_the_store(mount: Mount) -> None:
    mount.check(0, SIZE)
    mount.again()
    mount.check(0, READ)
    assert fetched(mount) == 0
    mount.whole.chmod(0o600)
    os.truncate(mount.whole, SIZE // 2)
    mount.check(0, SIZE)


def test_whoever_reads_ranges_finds_what_a_mount_has_kept(mount: Mount) -> None:
    for kept in (1 << 20, SIZE):
        mount.check(0, kept)
        mount.again()
        healthy, mount.faults._plan = mount.faults._plan, BROKEN
        ranges = Ranges(mount.store)
        layout = ranges.layout("large", mount.tree, mount.size, mount.content)
        for offset in (0, kept - READ):
            assert b"".join(ranges.read(layout, offset, READ)) == mount.data[offset : offset + READ]
        ranges.close()
        assert fetched(mount) == 0
        mount.faults._plan = healthy
    assert mount.whole.exists()
