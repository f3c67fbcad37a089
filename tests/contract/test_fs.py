"""The file system in Python: fsspec's own tests for reading, and what we promise beyond them."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.backend import memory, registry
from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.dataset import Bucket
from casstore.fs import OsmoFileSystem, opened
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.testing.servers.s3 import moto_s3

# Python 3.12 and newer warn of what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def declare(home: Path, buckets: dict[str, str], **more: Any) -> None:
    """Write the user's config.yaml."""
    folder = home / ".config" / "osmo"
    folder.mkdir(parents=True, exist_ok=True)
    own = {"default_bucket": next(iter(buckets)), "buckets": {name: {"url": url} for name, url in buckets.items()}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"casstore": own, **more}))


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    OsmoFileSystem.clear_instance_cache()
    yield
    opened.close_all()
    OsmoFileSystem.clear_instance_cache()


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "store").mkdir()
    return f"file://{tmp_path}/store"


@pytest.fixture
def bucket(url: str, isolated_home: Path) -> Iterator[Bucket]:
    declare(isolated_home, {"lab": url, "empty": "memory://empty"})
    Store.open(MemoryBackend("empty"), create=True).close()
    with Store.open(registry.open_backend(url), create=True) as store:
        yield Bucket(store, name="lab", user="u")


@pytest.fixture
def fs(bucket: Bucket) -> OsmoFileSystem:
    return OsmoFileSystem()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def upload(bucket: Bucket, name: str, root: Path, **options: Any) -> int:
    result = bucket.upload(name, [f"{root}/*"], **options)
    assert result.version is not None
    return result.version.number


class Growing(OsmoFileSystem):
    """What is made here is uploaded as one more version: one of fsspec's tests makes what it reads."""

    cachable = False
    bucket: Bucket
    root: Path

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self.local(path).mkdir(parents=True)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        self.local(path).touch()
        upload(self.bucket, "scenario", self.root)
        self.invalidate_cache()

    def local(self, path: str) -> Path:
        return self.root / path.removeprefix("osmo://lab/scenario/")


class OsmoFixtures(AbstractFixtures):
    """What fsspec's tests write to a file system is uploaded here."""

    @pytest.fixture
    def fs(self, bucket: Bucket, tmp_path: Path) -> OsmoFileSystem:
        fs = Growing()
        fs.bucket, fs.root = bucket, tmp_path / "grown"
        return fs

    @pytest.fixture
    def fs_path(self) -> str:
        return "osmo://lab/scenario"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(part.rstrip("/") for part in parts[:-1]) + "/" + parts[-1]

    def made(self, bucket: Bucket, tmp_path: Path, files: dict[str, bytes]) -> str:
        upload(bucket, "scenario", write(tmp_path / "scenario", files))
        return "osmo://lab/scenario/source"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, bucket: Bucket, tmp_path: Path) -> str:
        below = ["file1", "file2", "subdir/subfile1", "subdir/subfile2", "subdir/nesteddir/nestedfile"]
        return self.made(bucket, tmp_path, {f"source/{name}": b"" for name in below})

    @pytest.fixture
    def fs_glob_edge_cases_files(self, bucket: Bucket, tmp_path: Path) -> str:
        below = ["file1", "file2"]
        for folder in ("subdir0", "subdir1"):
            below += [f"{folder}/{name}" for name in ("subfile1", "subfile2", "nesteddir/nestedfile")]
        return self.made(bucket, tmp_path, {f"source/{name}": b"" for name in below})

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, bucket: Bucket, tmp_path: Path) -> str:
        return self.made(bucket, tmp_path, {"source/subdir/subfile.txt": b"", "source/subdir.txt": b""})

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, bucket: Bucket, tmp_path: Path) -> str:
        names = {f"source/{md5(str(i).encode()).hexdigest()}.txt": str(i).encode() for i in range(10)}
        return self.made(bucket, tmp_path, names)


class TestGet(OsmoFixtures, AbstractGetTests):
    """fsspec's own tests of ``get``. Its tests of ``open``, ``pipe``, ``put``, ``copy`` and ``mv`` all write."""


CONTENT = random.Random(1).randbytes(900_000)


@pytest.fixture
def robots(bucket: Bucket, tmp_path: Path) -> Path:
    root = write(
        tmp_path / "robots",
        {
            "a.txt": b"one\ntwo\nthree",
            "data/large.bin": CONTENT,
            "data/deep/er/x": b"x",
            "data/none": b"",
            "big.tar": b"",
        },
    )
    (root / "void").mkdir()
    (root / "data" / "link").symlink_to("../a.txt")
    (root / "data" / "folder").symlink_to("deep")
    (root / "data" / "loop").symlink_to("..")
    (root / "data" / "out").symlink_to("../../../etc/passwd")
    (root / "data" / "abs").symlink_to("/etc/passwd")
    (root / "data" / "gone").symlink_to("nothing")
    (root / "self").symlink_to("self")
    os.utime(root / "a.txt", (1_000_000_000.5, 1_000_000_000.5))
    upload(bucket, "robots", root, tag="v1")
    return root


# ---- what is where


def test_fsspec_finds_it_by_its_protocol(robots: Path) -> None:
    assert isinstance(fsspec.filesystem("osmo"), OsmoFileSystem)
    with fsspec.open("osmo://lab/robots:v1/a.txt", "rt") as file:
        assert file.read() == "one\ntwo\nthree"


@pytest.mark.parametrize(
    "head", ["robots", "lab/robots", "robots:v1", "robots:1", "robots:latest", "lab/robots:1", "DIGEST"]
)
def test_a_version_has_many_names(fs: OsmoFileSystem, bucket: Bucket, robots: Path, head: str) -> None:
    if head == "DIGEST":
        head = f"robots@{bucket.resolve('robots').record.manifest[:8]}"
    assert fs.ls(f"osmo://{head}/data/deep", detail=False) == [f"{head}/data/deep/er"]
    assert fs.cat(f"osmo://{head}/a.txt") == b"one\ntwo\nthree"
    assert fs.info(f"osmo://{head}")["version"] == 1
    assert fs.pinned(f"osmo://{head}/a.txt") == "osmo://lab/robots:1/a.txt"
    assert fs.pinned(head) == "osmo://lab/robots:1"


def test_listing_from_the_top(fs: OsmoFileSystem, robots: Path) -> None:
    assert fs.ls("osmo://", detail=False) == ["empty", "lab"]
    assert fs.ls("osmo://lab", detail=False) == ["lab/robots"]
    assert fs.ls("lab/robots", detail=False) == [
        f"lab/robots/{name}" for name in ("a.txt", "big.tar", "data", "self", "void")
    ]
    assert fs.isdir("") and fs.isdir("osmo://lab") and fs.isdir("osmo://lab/robots") and fs.isdir("osmo://robots/void")
    assert fs.ls("robots/void") == []
    assert [info["name"] for info in fs.ls("robots/a.txt")] == ["robots/a.txt"]


def test_info(fs: OsmoFileSystem, bucket: Bucket, robots: Path) -> None:
    info = fs.info("osmo://robots/a.txt")
    assert info == {
        "name": "robots/a.txt",
        "size": 13,
        "type": "file",
        "mode": os.stat(robots / "a.txt").st_mode,
        "mtime": 1_000_000_000.5,
        "islink": False,
        "version": 1,
        "digest": bucket.resolve("robots").record.manifest,
    }
    assert fs.modified("osmo://robots/a.txt").timestamp() == 1_000_000_000.5
    assert fs.size("robots/data/large.bin") == len(CONTENT)
    assert fs.isfile("robots/a.txt") and not fs.isfile("robots/data")


def test_links_are_followed_within_the_version(fs: OsmoFileSystem, robots: Path) -> None:
    assert fs.cat("robots/data/link") == b"one\ntwo\nthree"
    assert fs.cat("robots/data/folder/er/x") == fs.cat("robots/data/loop/data/loop/data/deep/er/x") == b"x"
    link = fs.info("robots/data/link")
    assert (link["type"], link["size"], link["islink"], link["destination"]) == ("file", 13, True, "../a.txt")
    assert fs.info("robots/data/folder")["type"] == "directory"
    assert fs.ls("robots/data/folder", detail=False) == ["robots/data/folder/er"]
    assert {info["name"].rpartition("/")[2]: info["type"] for info in fs.ls("robots/data")} == {
        "abs": "link", "deep": "directory", "folder": "link", "gone": "link", "large.bin": "file", "link": "file",
        "loop": "link", "none": "file", "out": "link",
    }  # fmt: skip
    for name in ("data/out", "data/abs", "data/gone", "self", "self/x", "data/link/x"):
        with pytest.raises(FileNotFoundError):
            fs.open(f"robots/{name}")
    assert fs.info("robots/data/out")["type"] == "link"


def test_walks_end_and_find_lists_what_can_be_opened(fs: OsmoFileSystem, robots: Path) -> None:
    files = ["a.txt", "big.tar", "data/deep/er/x", "data/large.bin", "data/link", "data/none"]
    assert fs.find("osmo://robots") == [f"robots/{name}" for name in files]
    assert fs.find("osmo://") == [f"lab/robots/{name}" for name in files]
    assert fs.find("lab", maxdepth=2) == ["lab/robots/a.txt", "lab/robots/big.tar"]
    assert fs.find("robots/data", maxdepth=1, withdirs=True) == [
        f"robots/data{name}" for name in ("", "/deep", "/folder", "/large.bin", "/link", "/loop", "/none")
    ]
    assert fs.find("robots/a.txt", detail=True)["robots/a.txt"]["size"] == 13
    assert fs.find("robots/nothing") == fs.find("nothing") == []
    assert fs.glob("osmo://robots/**/x") == ["robots/data/deep/er/x"]
    assert fs.glob("osmo://robots/*.t?t") == ["robots/a.txt"]
    assert fs.glob("osmo://lab/*/data/l*.bin") == ["lab/robots/data/large.bin"]
    walked = {path: (sorted(folders), sorted(files)) for path, folders, files in fs.walk("robots")}
    assert walked["robots"] == (["data", "void"], ["a.txt", "big.tar", "self"])
    assert set(walked) == {"robots", "robots/data", "robots/data/deep", "robots/data/deep/er", "robots/void"}
    assert fs.du("robots/data") == len(CONTENT) + 1 + 13


def test_collections_hold_their_members(fs: OsmoFileSystem, bucket: Bucket, robots: Path) -> None:
    bucket.collect("all", ["robots:1"])
    assert fs.ls("osmo://all", detail=False) == ["all/robots"]
    assert fs.cat("osmo://lab/all/robots/a.txt") == b"one\ntwo\nthree"
    assert "all/robots/data/none" in fs.find("all")
    assert fs.pinned("all/robots/data") == "osmo://lab/robots:1/data"
    for path in ("all/other", "all@12345678"):
        assert not fs.exists(path)


def test_a_bucket_wins_over_a_dataset_of_its_name(fs: OsmoFileSystem, bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "lab", write(tmp_path / "in", {"f": b"1"}))
    assert fs.ls("osmo://lab", detail=False) == ["lab/lab"]
    assert fs.cat("osmo://lab:1/f") == fs.cat("osmo://lab/lab/f") == b"1"


def test_a_tag_means_one_version_until_it_is_asked_for_anew(fs: OsmoFileSystem, bucket: Bucket, robots: Path) -> None:
    assert fs.info("robots")["version"] == 1
    before = fs.ukey("robots/a.txt")
    (robots / "a.txt").write_bytes(b"new")
    assert upload(bucket, "robots", robots) == 2
    assert fs.cat("robots/a.txt") == b"one\ntwo\nthree"
    with ThreadPoolExecutor(1) as pool:  # fsspec makes another instance for each thread
        assert pool.submit(lambda: OsmoFileSystem().info("robots")["version"]).result() == 1
    assert fs.cat("robots:2/a.txt") == b"new"
    fs.invalidate_cache()
    assert fs.cat("robots/a.txt") == b"new"
    assert fs.ukey("robots/a.txt") != before


def test_links_of_a_hostile_version_cost_little(fs: OsmoFileSystem, bucket: Bucket, tmp_path: Path) -> None:
    root = write(tmp_path / "in", {"d/f": b"f"})
    for number in range(60):
        (root / f"l{number}").symlink_to(f"l{number + 1}")
    (root / "up").symlink_to("d/../../in/d/f")
    (root / "long").symlink_to("d/../" * 800 + "d/f")
    for name in ("a", "b"):
        (root / name).symlink_to("a/b/" * 1000)
    upload(bucket, "hostile", root)
    assert fs.find("hostile") == ["hostile/d/f", "hostile/long"]
    assert fs.cat("hostile/long") == b"f"
    assert not fs.exists("hostile/a/b/f") and not fs.exists("hostile/l0/f")
    assert sum(1 for _ in fs.walk("hostile")) == 2


def test_names_that_are_not_utf8(fs: OsmoFileSystem, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path) + b"/in/\xff:*", "wb") as file:
        file.write(b"?")
    upload(bucket, "odd", tmp_path / "in")
    (name,) = fs.find("odd")
    assert name == "odd/\udcff:*"
    assert fs.cat_file(name) == b"?"


@pytest.mark.parametrize(
    "path",
    [
        "robots/../robots/a.txt", "robots/./a.txt", "robots//a.txt", "robots/a.txt/x", "robots/nothing", "nothing",
        "lab/nothing/x", "lab//robots", "no such name!/x", "robots:/../x", "robots:nothing/a.txt", "robots:99",
        "robots@zz/a.txt", "robots@00000000/a.txt", "robots:1@00000000", "x" * 300, "robots/" + "y" * 5000, "a\0b/c",
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(fs: OsmoFileSystem, robots: Path, path: str) -> None:
    assert not fs.exists(path) and not fs.isdir(path) and not fs.isfile(path)
    for ask in (fs.info, fs.ls, fs.open, fs.cat_file):
        with pytest.raises(FileNotFoundError):
            ask(path)


def test_folders_are_no_files(fs: OsmoFileSystem, robots: Path) -> None:
    for path in ("robots", "robots/data", "lab", ""):
        with pytest.raises((IsADirectoryError, FileNotFoundError)):
            fs.open(path)
    with pytest.raises(IsADirectoryError):
        fs.cat_file("robots/data")


def test_nothing_can_be_written(fs: OsmoFileSystem, robots: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    for write in (
        lambda: fs.open("robots/new", "wb"),
        lambda: fs.open("robots/a.txt", "ab"),
        lambda: fs.pipe("robots/new", b"x"),
        lambda: fs.put(str(tmp_path / "f"), "robots/f"),
        lambda: fs.rm("robots/a.txt"),
        lambda: fs.rm("robots", recursive=True),
        lambda: fs.mv("robots/a.txt", "robots/b.txt"),
        lambda: fs.copy("robots/a.txt", "robots/b.txt"),
        lambda: fs.touch("robots/a.txt"),
        lambda: fs.mkdir("robots/m"),
        lambda: fs.makedirs("robots/m/n"),
        lambda: fs.rmdir("robots/void"),
    ):
        with pytest.raises(OSError, match="osmo dataset upload") as caught:
            write()
        assert caught.value.errno == errno.EROFS
    assert fs.exists("robots/a.txt")


# ---- bytes


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ranges_are_the_bytes_of_the_file(fs: OsmoFileSystem, robots: Path, data: st.DataObject) -> None:
    size = len(CONTENT)
    bound = st.none() | st.integers(-size - 10, size + 10)
    parts = data.draw(st.lists(st.tuples(bound, bound), max_size=5))
    path = "robots/data/large.bin"
    found = fs.cat_ranges([path] * len(parts), [start for start, _ in parts], [end for _, end in parts])
    assert found == [CONTENT[start:end] for start, end in parts]
    with fs.open(path, cache_type=data.draw(st.sampled_from(["none", "readahead", "bytes"]))) as file:
        for offset, length in data.draw(st.lists(st.tuples(st.integers(0, size + 10), st.integers(0, size)))):
            file.seek(offset)
            assert file.read(length) == CONTENT[offset : offset + length]


def test_a_file_is_a_file(fs: OsmoFileSystem, robots: Path) -> None:
    with fs.open("robots/data/large.bin") as file:
        assert file.seekable() and file.readable() and not file.writable()
        assert file.read() == CONTENT and file.read() == file.read(5) == b""
        assert file.seek(-10, io.SEEK_END) == len(CONTENT) - 10
        assert file.read() == CONTENT[-10:]
        into = bytearray(100)
        file.seek(7)
        assert file.readinto(into) == 100 and into == CONTENT[7:107]
        assert file.tell() == 107 and file.size == len(CONTENT)
        with pytest.raises(ValueError, match="before start"):
            file.seek(-1)
    with fs.open("robots/a.txt") as file:
        assert list(file) == [b"one\n", b"two\n", b"three"]
        file.seek(0)
        assert (file.readline(2), file.readline(9), file.readline(), file.readline(3)) == (
            b"on", b"e\n", b"two\n", b"thr",
        )  # fmt: skip
    with fs.open("robots/a.txt", "r", encoding="ascii") as text:
        assert text.readlines() == ["one\n", "two\n", "three"]
    assert fs.cat("robots/data/none") == b"" == fs.open("robots/data/none").read()
    assert fs.head("robots/data/large.bin", 9) == CONTENT[:9] and fs.tail("robots/data/large.bin", 9) == CONTENT[-9:]


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reads_of_a_few_bytes_and_of_lines(fs: OsmoFileSystem, robots: Path, data: st.DataObject) -> None:
    """As a file in memory does it, wherever a chunk or what is at hand of it ends."""
    size = len(CONTENT)
    lengths = st.integers(0, 50) | st.integers(16_000, 17_000) | st.sampled_from([-1, None, 100_000])
    steps = st.lists(st.tuples(st.sampled_from(["read", "readline", "seek", "readinto"]), lengths), max_size=30)
    with fs.open("robots/data/large.bin") as file, io.BytesIO(CONTENT) as same:
        for what, length in data.draw(steps):
            if what == "seek":
                offset = data.draw(st.integers(0, size + 10))
                file.seek(offset)
                same.seek(offset)
            elif what == "readinto":
                ours, theirs = bytearray(max(1, length or 1)), bytearray(max(1, length or 1))
                assert (file.readinto(ours), ours) == (same.readinto(theirs), theirs)
            else:
                assert getattr(file, what)(length) == getattr(same, what)(length)
            assert file.tell() == same.tell()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_many_files_at_once(fs: OsmoFileSystem, robots: Path) -> None:
    found = fs.cat("robots/data/**", recursive=True, on_error="omit")
    assert found["robots/data/deep/er/x"] == b"x" and found["robots/data/large.bin"] == CONTENT
    with pytest.raises(FileNotFoundError):
        fs.cat(["robots/a.txt", "robots/nothing"])
    found = fs.cat(["robots/a.txt", "robots/nothing"], on_error="return")
    assert isinstance(found["robots/nothing"], FileNotFoundError)
    with pytest.raises(ValueError, match="one length"):
        fs.cat_ranges(["robots/a.txt"], [0, 1], [2])


# ---- processes and threads


def test_pickled_it_opens_everything_itself(fs: OsmoFileSystem, bucket: Bucket, robots: Path) -> None:
    file = fs.open("robots:v1/data/large.bin")
    file.seek(1000)
    blob = pickle.dumps((fs, file, fs.pinned("robots")))
    assert b"file://" not in blob  # neither URLs nor credentials
    bucket.set_tags("robots", ["other"])
    code = (
        "import pickle, sys\n"
        "fs, file, pinned = pickle.load(sys.stdin.buffer)\n"
        "assert fs.cat(pinned + '/a.txt').startswith(b'one')\n"
        "sys.stdout.buffer.write(file.read(500))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], input=blob, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, CONTENT[1000:1500], b"")
    copy = pickle.loads(pickle.dumps(file))
    assert copy.read(500) == CONTENT[1000:1500]


def in_a_fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_reads_by_itself_and_sees_the_same_version(fs: OsmoFileSystem, bucket: Bucket, robots: Path) -> None:
    file = fs.open("robots/data/large.bin")
    assert file.read(10) == CONTENT[:10]
    source = fs._sources.source("lab")
    (robots / "a.txt").write_bytes(b"new")
    upload(bucket, "robots", robots)

    def work() -> None:
        assert fs._sources.source("lab") is not source
        assert fs.cat("robots/a.txt") == b"one\ntwo\nthree"
        file.seek(500_000)
        assert file.read(1000) == CONTENT[500_000:501_000]
        assert OsmoFileSystem().cat("robots/data/large.bin") == CONTENT

    assert in_a_fork(work) == 0
    assert fs._sources.source("lab") is source
    assert file.read() == CONTENT[10:]


def test_a_fork_while_threads_read(fs: OsmoFileSystem, robots: Path) -> None:
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            fs._sources.source("lab").ranges.close()
            assert fs.cat_file("robots/data/large.bin", 1000, 300_000) == CONTENT[1000:300_000]

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            ends = [in_a_fork(lambda: _same(fs.cat("robots/data/large.bin"))) for _ in range(10)]
        finally:
            done.set()
        assert [reader.result() for reader in readers] == [None] * 3
    assert ends == [0] * 10


def _same(content: bytes) -> None:
    assert content == CONTENT


def test_threads_share_what_is_open(fs: OsmoFileSystem, robots: Path) -> None:
    start = threading.Barrier(8)

    def read(seed: int) -> int:
        start.wait()
        own = OsmoFileSystem()
        rng = random.Random(seed)
        for _ in range(30):
            offset = rng.randrange(len(CONTENT))
            assert own.cat_file("robots/data/large.bin", offset, offset + 5000) == CONTENT[offset : offset + 5000]
        return id(own._sources.source("lab"))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(read, range(8)))) == 1


# ---- far away


class Far:
    """A store in memory, as far away as an object store, whose calls are counted and can be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self.log = CallLog()
        self.faults = FaultBackend(MemoryBackend("far"))
        Store.open(MemoryBackend("far"), create=True).close()
        monkeypatch.setattr(registry, "open_backend", lambda *_, **__: TraceBackend(self.faults, self.log))
        declare(home, {"far": "memory://far"})

    def upload(self, name: str, root: Path) -> None:
        with Store.open(MemoryBackend("far")) as store:
            # By one thread: how many packs there are, and so how many reads, depends on their number.
            upload(Bucket(store, name="far", user="u"), name, root, threads=1)

    def data_reads(self, work: Callable[[], object]) -> int:
        """How many requests for data some work costs."""
        before = self.log.count("read", "packs/")
        work()
        return self.log.count("read", "packs/") - before


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> Far:
    memory._spaces.pop("far", None)
    return Far(monkeypatch, isolated_home)


def test_the_end_of_a_large_parquet_file_costs_few_requests(far: Far, tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f"c{number}": np.random.default_rng(number).random(650_000) for number in range(10)}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "t.parquet", row_group_size=50_000, compression="none")
    assert (tmp_path / "in" / "t.parquet").stat().st_size > 50_000_000
    far.upload("t", tmp_path / "in")
    fs = OsmoFileSystem()
    fs.info("osmo://t/t.parquet")

    def footer() -> None:
        with fs.open("osmo://t/t.parquet") as file:
            assert pq.read_metadata(file).num_rows == 650_000

    assert far.data_reads(footer) <= 3
    assert far.data_reads(footer) == 0  # from memory


def test_the_directory_of_a_zip_file_costs_few_requests(far: Far, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rng = random.Random(5)
    with zipfile.ZipFile(tmp_path / "in" / "z.zip", "w") as archive:
        for number in range(500):
            archive.writestr(f"f{number}", rng.randbytes(20_000))
    far.upload("z", tmp_path / "in")
    fs = OsmoFileSystem()
    fs.info("osmo://z/z.zip")

    def directory() -> None:
        with fs.open("osmo://z/z.zip") as file, zipfile.ZipFile(file) as archive:
            assert len(archive.namelist()) == 500

    assert far.data_reads(directory) <= 3

    def member() -> None:
        with fs.open("osmo://z/z.zip") as file, zipfile.ZipFile(file) as archive:
            assert len(archive.read("f77")) == 20_000

    assert far.data_reads(member) <= 2


def test_columns_of_a_parquet_file_cost_few_requests(far: Far, tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f"c{number}": np.random.default_rng(number).random(100_000) for number in range(10)}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "t.parquet", row_group_size=50_000, compression="none")
    far.upload("t", tmp_path / "in")
    fs = OsmoFileSystem()
    fs.info("osmo://t/t.parquet")

    def two_columns() -> None:
        found = pq.read_table("t/t.parquet", columns=["c3", "c4"], filesystem=fs)
        assert found["c4"].to_numpy().tolist() == columns["c4"].tolist()

    assert far.data_reads(two_columns) <= 6  # the end of the file, and two of two neighbours


def write_recording(path: Path, topics: int, chunk_size: int) -> None:
    """An MCAP file as robots write them: at 100 moments a camera and small topics, indexed."""
    from mcap.writer import CompressionType, Writer

    rng = random.Random(6)
    with path.open("wb") as out:
        writer = Writer(out, chunk_size=chunk_size, compression=CompressionType.NONE)
        writer.start()
        schema = writer.register_schema("raw", "raw", b"")
        channels = [writer.register_channel(f"/robot/{number}", "raw", schema) for number in range(topics)]
        for moment in range(100):
            for number, channel in enumerate(channels):
                frame = rng.randbytes(200_000 if number == 0 else 200)
                writer.add_message(channel, log_time=moment, data=frame, publish_time=moment)
        writer.finish()


@pytest.mark.parametrize(("topics", "chunk_size"), [(20, 1 << 20), (60, 256)], ids=["short", "long"])
def test_the_summary_of_an_mcap_file_costs_few_requests(far: Far, tmp_path: Path, topics: int, chunk_size: int) -> None:
    """Also where it is longer than what is fetched of the end."""
    from mcap.reader import make_reader

    from casstore.fs.file import TAIL

    recording = tmp_path / "in" / "drive.mcap"
    recording.parent.mkdir()
    write_recording(recording, topics, chunk_size)
    (begin,) = struct.unpack("<Q", recording.read_bytes()[-28:-20])  # as its footer says
    assert (recording.stat().st_size - begin > TAIL) == (topics > 20)
    far.upload("drive", tmp_path / "in")
    fs = OsmoFileSystem()
    fs.info("osmo://drive/drive.mcap")

    def summary() -> None:
        with fs.open("osmo://drive/drive.mcap") as file:
            found = make_reader(file).get_summary()
            assert found is not None and found.statistics is not None
            assert found.statistics.message_count == 100 * topics

    def one_moment() -> None:
        with fs.open("osmo://drive/drive.mcap") as file:
            (message,) = make_reader(file).iter_messages(topics=["/robot/3"], starting_at=50, ending_before=51)
            assert len(message[2].data) == 200

    assert far.data_reads(summary) <= 3
    assert far.data_reads(summary) == 0  # from memory
    assert far.data_reads(one_moment) <= 4


def test_ranges_of_neighbours_are_fetched_together(far: Far, tmp_path: Path) -> None:
    files = {f"f{number:03}": random.Random(number).randbytes(9_000) for number in range(200)}
    far.upload("small", write(tmp_path / "in", files))
    fs = OsmoFileSystem()
    paths = fs.find("osmo://small")

    def read() -> None:
        assert fs.cat_ranges(paths, [10] * 200, [20] * 200) == [content[10:20] for content in files.values()]

    assert far.data_reads(read) <= 2
    assert far.data_reads(lambda: fs.cat(paths)) == 0


def test_what_is_read_from_front_to_back_is_read_ahead(far: Far, tmp_path: Path) -> None:
    content = random.Random(7).randbytes(20 << 20)
    far.upload("long", write(tmp_path / "in", {"x": content}))
    fs = OsmoFileSystem()

    def read() -> None:
        with fs.open("osmo://long/x") as file:
            pieces = iter(lambda: file.read(4096), b"")
            assert b"".join(pieces) == content

    assert far.data_reads(read) < 20


def test_a_fork_of_who_reads_ahead(far: Far, tmp_path: Path) -> None:
    content = random.Random(9).randbytes(40 << 20)
    far.upload("long", write(tmp_path / "in", {"x": content}))
    fs = OsmoFileSystem()
    with fs.open("osmo://long/x") as file:
        assert file.read(100_000) == content[:100_000]
        while file.tell() < 20 << 20:
            assert file.read(100_000) == content[file.tell() - 100_000 : file.tell()]
        assert file._fetching is not None

        def work() -> None:
            file.seek(20 << 20)
            pieces = iter(lambda: file.read(100_000), b"")
            assert b"".join(pieces) == content[20 << 20 :]

        assert in_a_fork(work) == 0
        at = file.tell()
        assert file.read() == content[at:]


def test_what_could_not_be_read_ahead_is_an_error_when_it_is_read(far: Far, tmp_path: Path) -> None:
    content = random.Random(10).randbytes(40 << 20)
    far.upload("long", write(tmp_path / "in", {"x": content}))
    with OsmoFileSystem().open("osmo://long/x") as file:
        while file._fetching is None:
            assert file.read(1 << 20) == content[file.tell() - (1 << 20) : file.tell()]
        file._fetching[1].result()
        far.faults._plan = FaultPlan(1, times=1 << 30, operations=frozenset({"read"}), prefix="packs/")
        with pytest.raises(OSError, match="injected"):
            list(iter(lambda: file.read(1 << 20), b""))
        far.faults._plan = FaultPlan()
        at = file.tell()
        assert file.read() == content[at:] != b""


def test_failures_are_errors_and_pass(far: Far, tmp_path: Path) -> None:
    far.upload("ds", write(tmp_path / "in", {"a": b"a" * 50_000, "b": random.Random(8).randbytes(50_000)}))
    fs = OsmoFileSystem()
    assert fs.ls("osmo://ds", detail=False) == ["ds/a", "ds/b"]
    for fault in (Fault.ERROR_BEFORE, Fault.FLIP):
        far.faults._plan = FaultPlan(1, fault, times=1 << 30, operations=frozenset({"read"}), prefix="packs/")
        with pytest.raises(OSError, match=r"injected|damaged") as caught:
            fs.cat_file("osmo://ds/b")
        assert caught.value.errno == errno.EIO
        assert [type(one) for one in fs.cat_ranges(["osmo://ds/b"] * 2, 0, 5)] == [OSError] * 2
        with fs.open("osmo://ds/b") as file, pytest.raises(OSError, match=r"injected|damaged"):
            file.read(1)
        far.faults._plan = FaultPlan()
    assert fs.cat_file("osmo://ds/b") == random.Random(8).randbytes(50_000)


def test_a_store_that_is_not_there_is_no_missing_file(isolated_home: Path, tmp_path: Path) -> None:
    declare(isolated_home, {"lab": f"file://{tmp_path}/unplugged"})
    with pytest.raises(OSError, match="is the disk mounted") as caught:
        OsmoFileSystem().exists("osmo://robots/a.txt")
    assert caught.value.errno == errno.EIO
    (isolated_home / ".config" / "osmo" / "config.yaml").write_text("casstore: []")
    opened.close_all()
    with pytest.raises(ValueError, match=r"config\.yaml"):
        OsmoFileSystem().ls("osmo://")


def test_credentials_are_those_of_the_command(isolated_home: Path, tmp_path: Path) -> None:
    with moto_s3() as server:
        name = server.bucket()
        credential = server.credential
        data = {f"s3://{name}": {key: getattr(credential, key) for key in (
            "access_key_id", "access_key", "region", "override_url", "addressing_style"
        ) if getattr(credential, key)}}  # fmt: skip
        declare(isolated_home, {"cloud": f"s3://{name}/store"}, auth={"data": data})
        from casstore.config import load_config
        from casstore.dataset.opening import open_store

        config = load_config()
        with open_store(config.bucket("cloud"), config=config, create=True) as store:
            upload(Bucket(store, name="cloud", user="u"), "ds", write(tmp_path / "in", {"x": CONTENT}))
        fs = OsmoFileSystem()
        assert fs.cat("osmo://cloud/ds/x") == CONTENT
        assert fs.find("osmo://cloud") == ["cloud/ds/x"]
        opened.close_all()
