"""Stores that are far away, read through the cache of this machine: no request twice, and never a wrong byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.cache.remote import RemoteCache
from casstore.cache.space import Space
from casstore.dataset import Bucket
from casstore.errors import StorageError
from casstore.repo import packs
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.transfer.download import download_tree
from casstore.transfer.ranges import Ranges

MIB = 1 << 20
FILES = {f"d{n % 7}/f{n}": random.Random(n).randbytes(3000 + 500 * n) for n in range(60)}
FILES["large"] = random.Random(99).randbytes(3 * MIB)
FILES["text"] = b"line after line\n" * 10_000


class Far:
    """A store that is far away: its calls are counted, and fail where a test says so."""

    def __init__(self, root: Path) -> None:
        for name, data in FILES.items():
            path = root / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.name = f"far{root.name}"
        self.objects = MemoryBackend(self.name)
        self.cache = root / "cache"
        with Store.open(MemoryBackend(self.name), create=True) as store:
            bucket = Bucket(store, name="b", user="u")
            bucket.upload("ds", [f"{root}/in/*"])
            self.manifest = bytes.fromhex(bucket.resolve("ds").record.manifest)
        self.log = CallLog()
        self.faults = FaultBackend(self.objects)

    def open(self, *, limit: int = 1 << 30, recall: bool = True) -> Reader:
        return Reader(self, RemoteCache.at(str(self.cache), limit), recall=recall)

    def frames(self) -> list[Path]:
        return [path for path in (self.cache / "frames").rglob("*") if path.is_file()]


class Reader:
    """One process that reads a version."""

    def __init__(self, far: Far, cache: RemoteCache | None, *, recall: bool) -> None:
        far.log.clear()
        self.store = Store.open(TraceBackend(far.faults, far.log))
        self.store.use(cache, recall=recall)
        self.told = [0, 0]
        self.ranges = Ranges(self.store, memory=0, on_fetch=self._count)
        self.tree = self.store.tree(far.manifest)

    def _count(self, fetched: int, cached: int) -> None:
        self.told[0] += fetched
        self.told[1] += cached

    def read(self, name: str) -> bytes:
        entry = self.tree.lookup(name.encode())
        assert entry is not None
        layout = self.ranges.layout(name, self.tree, entry.size, entry.content)
        return b"".join(self.ranges.read(layout, 0, entry.size))

    def read_all(self) -> None:
        assert sum(1 for _ in self.tree.entries()) == len(FILES) + 7
        for name, data in FILES.items():
            assert self.read(name) == data, name

    def close(self) -> None:
        self.ranges.close()
        self.store.index.close()


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    monkeypatch.setattr(packs, "PACK_TARGET", MIB)
    monkeypatch.setattr(packs, "PACK_LEAST", MIB)
    return Far(tmp_path)


def test_nothing_is_asked_for_twice(far: Far) -> None:
    first = far.open()
    first.read_all()
    assert first.told == [sum(map(len, FILES.values())), 0]
    first.close()
    second = far.open()
    second.read_all()
    assert second.told == [0, sum(map(len, FILES.values()))]
    assert [call for call in far.log.calls if call.key != "store.json"] == []
    second.close()


def test_who_writes_lists_the_index_anew(far: Far) -> None:
    far.open().read_all()
    reader = far.open(recall=False)
    reader.read_all()
    assert far.log.count("list") == 1
    assert far.log.count("read", "index/") + far.log.count("get", "index/") == 0
    reader.close()


def test_a_download_takes_what_was_read(far: Far, tmp_path: Path) -> None:
    reader = far.open()
    reader.read_all()
    reader.close()
    again = far.open()
    download_tree(again.store, again.tree, str(tmp_path / "out"))
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in FILES.items())
    assert far.log.count("read") == 0
    again.close()


def test_a_download_alone_puts_no_data_into_the_cache(far: Far, tmp_path: Path) -> None:
    reader = far.open()
    download_tree(reader.store, reader.tree, str(tmp_path / "out"))
    assert sum(path.stat().st_blocks * 512 for path in far.frames()) < MIB, "nodes only"
    reader.close()


def test_any_damage_in_the_cache_is_mended_in_silence(far: Far) -> None:
    rng = random.Random(8)
    first = far.open()
    first.read_all()
    first.close()
    for turn in range(12):
        for path in [path for path in far.cache.rglob("*") if path.is_file() and path.name != ".evict"]:
            data = bytearray(path.read_bytes())
            path.chmod(0o600)
            if turn == 0:
                data = data[: len(data) // 2]
            elif turn == 1:
                data = bytearray(len(data))
            else:
                for _ in range(8):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        reader = far.open()
        reader.read_all()
        reader.close()
        again = far.open()
        again.read_all()
        assert again.told[0] == 0, "what was wrong was written over"
        again.close()


def test_a_frame_that_is_damaged_here_and_moved_there_is_found(far: Far, tmp_path: Path) -> None:
    first = far.open()
    first.read_all()
    for path in far.frames():
        data = bytearray(path.read_bytes())
        data[16:] = os.urandom(len(data) - 16)
        path.write_bytes(data)
    with Store.open(MemoryBackend(far.name)) as store:
        bucket = Bucket(store, name="b", user="u")
        (tmp_path / "in" / "large").unlink()
        for number in range(1, 60, 2):
            (tmp_path / "in" / f"d{number % 7}/f{number}").unlink()
        bucket.upload("ds", [f"{tmp_path}/in/*"])
        before = {info.key for info in far.objects.list("packs/")}
        rules = Rules(grace=0, margin=0, repack_below=1.1)
        bucket.delete("ds", tag="1")
        with Collector(store, rules=rules) as collector:
            collector.run(collector.plan())
        assert before - {info.key for info in far.objects.list("packs/")}
    for number in range(0, 60, 2):
        name = f"d{number % 7}/f{number}"
        assert first.read(name) == FILES[name]
    first.close()


@pytest.mark.parametrize("whole", [True, False])
def test_a_service_that_fails_and_comes_back(far: Far, whole: bool) -> None:
    if whole:
        warm = far.open()
        warm.read("large")
        warm.close()
    reader = far.open()
    healthy = far.faults._plan
    far.faults._plan = FaultPlan(at=1, times=10**6, fault=Fault.ERROR_BEFORE, prefix="packs/")
    if whole:
        assert reader.read("large") == FILES["large"], "what is cached needs no service"
    with pytest.raises(StorageError):
        reader.read("d1/f1")
    far.faults._plan = healthy
    reader.read_all()
    reader.close()


def test_a_cache_that_is_full_or_can_not_be_written_breaks_no_read(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        patch.setattr(os, "write", full)
        reader = far.open()
        reader.read_all()
        reader.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda fd, parts, offset: os.pwrite(fd, bytes(parts[0])[:10], offset))
        reader = far.open()
        reader.read_all()
        reader.close()
    reader = far.open()
    reader.read_all()
    reader.close()
    (far.cache / "frames").rename(far.cache / "away")
    (far.cache / "frames").write_bytes(b"")
    reader = far.open()
    reader.read_all()
    reader.close()


def test_a_small_cache_stays_small(far: Far) -> None:
    for _ in range(3):
        reader = far.open(limit=2 * MIB)
        reader.read_all()
        reader.close()
        # A pack of one MiB, and what was added since somebody looked.
        assert Space(str(far.cache), 2 * MIB).usage() < 4 * MIB
    nothing = far.open(limit=0)
    nothing.read_all()
    nothing.close()


def test_nodes_and_roots_that_are_evicted_are_fetched_again(far: Far) -> None:
    reader = far.open()
    reader.read_all()
    Space(str(far.cache), 1).shrink(0)
    reader.read_all()
    reader.close()
    again = far.open()
    again.read_all()
    again.close()


def test_a_version_that_came_later_is_found(far: Far, tmp_path: Path) -> None:
    far.open().read_all()
    with Store.open(MemoryBackend(far.name)) as store:
        bucket = Bucket(store, name="b", user="u")
        (tmp_path / "new").write_bytes(b"new" * 50_000)
        bucket.upload("other", [str(tmp_path / "new")])
        manifest = bytes.fromhex(bucket.resolve("other").record.manifest)
    reader = far.open()
    reader.tree = reader.store.tree(manifest)
    assert reader.read("new") == b"new" * 50_000
    reader.close()


FILLER = """
import os, sys
from casstore.backend.registry import open_backend
from casstore.cache.remote import RemoteCache
from casstore.repo.store import Store
from casstore.transfer.ranges import Ranges
import casstore.backend.file as file

class Remote:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def local_path(self, key): return None
    @property
    def capabilities(self):
        from casstore.backend.base import Capabilities
        return Capabilities(conditional_put=True, local=False)

url, cache, manifest, turns = sys.argv[1:]
for turn in range(int(turns)):
    store = Store.open(Remote(open_backend(url)))
    store.use(RemoteCache.at(cache, 3 << 20), recall=True)
    tree = store.tree(bytes.fromhex(manifest))
    ranges = Ranges(store, memory=0)
    for entry in tree.entries():
        if entry.size:
            layout = ranges.layout(entry.path, tree, entry.size, entry.content)
            data = b"".join(ranges.read(layout, 0, entry.size))
            with open(os.path.join(os.environ["WANTED"], entry.path.decode()), "rb") as wanted:
                assert data == wanted.read(), entry.path
    ranges.close()
    store.close()
    print("whole", flush=True)
"""


def filler(tmp_path: Path, turns: int) -> subprocess.Popen[bytes]:
    url = f"file://{tmp_path}/store"
    if not (tmp_path / "store").exists():
        from casstore.backend.registry import open_backend

        with Store.open(open_backend(url, create=True), create=True) as store:
            bucket = Bucket(store, name="b", user="u")
            bucket.upload("ds", [f"{tmp_path}/in/*"])
            (tmp_path / "manifest").write_text(bucket.resolve("ds").record.manifest)
    command = [sys.executable, "-c", FILLER, url, str(tmp_path / "shared"), (tmp_path / "manifest").read_text()]
    environment = {**os.environ, "WANTED": str(tmp_path / "in")}
    return subprocess.Popen([*command, str(turns)], stdout=subprocess.PIPE, env=environment)


def test_processes_share_a_cache_that_is_too_small(far: Far, tmp_path: Path) -> None:
    processes = [filler(tmp_path, 4) for _ in range(2)]
    for process in processes:
        out, _ = process.communicate()
        assert (process.returncode, out.count(b"whole")) == (0, 4)
    assert Space(str(tmp_path / "shared"), 3 * MIB).usage() < 8 * MIB


def test_killed_in_the_middle_of_filling(far: Far, tmp_path: Path) -> None:
    rng = random.Random(3)
    for _ in range(4):
        process = filler(tmp_path, 1000)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 4)):
            assert process.stdout.readline() == b"whole\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = filler(tmp_path, 1)
    assert (process.communicate()[0], process.returncode) == (b"whole\n", 0)
