"""Every back end and every wrapper keeps the contract; and what only the one in a folder promises."""

from __future__ import annotations

import concurrent.futures
import errno
import io
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.base import Absent, Backend, Buffer, Condition, Matches
from casstore.backend.descriptors import Descriptors
from casstore.backend.file import FileBackend
from casstore.backend.memory import MemoryBackend
from casstore.backend.objects import ObjectBackend
from casstore.backend.wrap.single import SingleWriterBackend
from casstore.backend.wrap.trace import Call, CallLog, TraceBackend
from casstore.errors import (
    AccessError,
    CasstoreError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    StorageError,
    TransientError,
)
from casstore.remote.limit import Budget, LimitClient
from casstore.remote.local import LocalClient
from casstore.remote.retry import RetryClient
from casstore.testing.backend_contract import BackendContract
from casstore.testing.faults import Fault, FaultBackend, FaultClient, FaultPlan, InjectedCrash


class TestFile(BackendContract):
    MANY = 5500

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        # What is synced is tested below; here it would only take time.
        found = FileBackend(str(tmp_path), durable=False)
        yield found
        found.close()


class TestFileWithoutHardLinks(BackendContract):
    """As on a file system that has none: the lock decides."""

    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
        found = FileBackend(str(tmp_path), durable=False)
        yield found
        found.close()


class TestMemory(BackendContract):
    MANY = 5500

    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend()


class TestTrace(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        found = TraceBackend(FileBackend(str(tmp_path), durable=False), CallLog())
        yield found
        found.close()


class TestFault(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return FaultBackend(MemoryBackend())


class TestFaultClient(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        found = ObjectBackend(FaultClient(LocalClient(str(tmp_path), durable=False)))
        yield found
        found.close()


class TestLocalObjects(BackendContract):
    """Over a folder in the manner of a service, as the clients of services come: with retries, within limits."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        client = LocalClient(str(tmp_path), durable=False)
        found = ObjectBackend(RetryClient(LimitClient(client, Budget(1 << 20, 4))), "some/prefix")
        yield found
        found.close()


class TestSingleWriter(BackendContract):
    """Over a service that takes every put, whatever the condition."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        class Careless(MemoryBackend):
            def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
                return super().put(key, data)

        def permit(_: bool) -> None:
            pass

        return SingleWriterBackend(Careless(), str(tmp_path / "locks"), permit)


# --- the folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def folder(root: Path) -> Iterator[FileBackend]:
    backend = FileBackend(str(root))
    yield backend
    backend.close()


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


RACER = """
import sys
from casstore.backend.base import Absent, Matches
from casstore.backend.file import FileBackend
from casstore.errors import PreconditionError

root, number, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
backend = FileBackend(root, durable=False)
print("ready", flush=True)
sys.stdin.readline()
won = 0
for step in range(steps):
    try:
        backend.put(f"versions/{step}", [number.encode()], condition=Absent())
        won += 1
    except PreconditionError:
        pass
for _ in range(steps):
    while True:
        found = backend.get("counter")
        try:
            backend.put("counter", [b"%d" % (int(found.data) + 1)], condition=Matches(found.etag))
            break
        except PreconditionError:
            pass
print(won, flush=True)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_processes_race_with_one_winner_per_step(folder: FileBackend, root: Path) -> None:
    processes, steps = 4, 50
    folder.put("counter", [b"0"])
    racers = [start(RACER, str(root), str(number), str(steps)) for number in range(processes)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    outputs = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        output, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        outputs.append(int(output))
    assert sum(outputs) == steps
    assert folder.get("counter").data == b"%d" % (processes * steps)
    assert not list((root / ".tmp").iterdir())


WRITER = """
import sys
from casstore.backend.file import FileBackend

backend = FileBackend(sys.argv[1], durable=False)
print("ready", flush=True)
number = 0
while True:
    backend.put("packs/00/x", [bytes([number % 251]) * 65536] * 16)
    backend.put(f"packs/01/{number}", [bytes([number % 251]) * 65536] * 16)
    number += 1
    if number > 20:
        backend.delete([f"packs/01/{number - 20}"])
"""


def test_killed_writer_leaves_whole_objects(folder: FileBackend, root: Path) -> None:
    for round_ in range(5):
        writer = start(WRITER, str(root))
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.03 * round_)
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
        for info in folder.list(""):
            assert info.size == 16 * 65536
            data = folder.get(info.key).data
            assert len(set(data)) == 1
        folder.put("packs/00/x", [b"still writable"])
        folder.delete(info.key for info in folder.list("packs/01/"))
        folder.delete(["packs/00/x"])


def test_layout(folder: FileBackend, root: Path) -> None:
    folder.put("packs/ab/x", [b"1"], condition=Absent())
    folder.put("head", [b"2"])
    assert [name for name in files_of(root) if not name.startswith(".lock/")] == ["head", "packs/ab/x"]
    assert (root / "packs/ab/x").read_bytes() == b"1"
    assert (root / "packs/ab/x").stat().st_nlink == 1
    folder.delete(["packs/ab/x", "head"])
    assert sorted(path.name for path in root.iterdir()) == [".lock", ".tmp"]


def test_mode_follows_the_umask(root: Path) -> None:
    old = os.umask(0o027)
    try:
        with_umask = FileBackend(str(root))
        with_umask.put("a/b", [b"x"])
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o750
    with_umask.close()


def test_foreign_names_are_not_listed(folder: FileBackend, root: Path) -> None:
    folder.put("a/b", [b"x"])
    for name in (".hidden", "a/.part", "a/with space", "-dash", "a/ü", "tmp~"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git/config").write_bytes(b"x")
    os.mkfifo(root / "a/pipe")
    (root / "empty").mkdir()
    assert [info.key for info in folder.list("")] == ["a/b"]
    with pytest.raises(NotFoundError):
        folder.get("a/pipe")


def test_symbolic_links_lead_nowhere(folder: FileBackend, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "packs").symlink_to(outside)
    (root / "link").symlink_to(outside / "secret")
    (root / "a").mkdir()
    (root / "a/link").symlink_to(outside / "secret")
    assert list(folder.list("")) == []
    assert list(folder.list("packs/")) == []
    for key in ("packs/secret", "link", "a/link"):
        for call in (folder.get, folder.stat, lambda key: folder.read(key, 0, 1)):
            with pytest.raises(NotFoundError):
                call(key)
        assert folder.local_path(key) is None
    with pytest.raises(StorageError):
        folder.put("packs/new", [b"x"])
    with pytest.raises(StorageError):
        folder.put("packs/sub/new", [b"x"], condition=Absent())
    folder.delete(["packs/secret"])
    folder.put("link", [b"replaces the link"])
    folder.delete(["a/link"])
    assert folder.get("link").data == b"replaces the link"
    assert files_of(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("name", [".tmp", ".lock"])
def test_own_folders_are_not_followed_either(root: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    old = outside / "old"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    (root / name).symlink_to(outside)
    backend = FileBackend(str(root))
    with pytest.raises(StorageError):
        backend.put("a", [b"x"])
    assert files_of(outside) == ["old"]
    backend.close()


def test_leftovers_of_crashed_writers_are_removed(root: Path) -> None:
    (root / ".tmp").mkdir()
    for name, age in (("old", 25 * 3600), ("young", 23 * 3600)):
        (root / ".tmp" / name).write_bytes(b"x")
        os.utime(root / ".tmp" / name, (time.time() - age,) * 2)
    backend = FileBackend(str(root))
    list(backend.list(""))
    assert (root / ".tmp/old").exists(), "reading alone changes nothing"
    backend.put("a", [b"x"])
    assert [path.name for path in (root / ".tmp").iterdir()] == ["young"]
    backend.close()


def test_own_folders_may_be_removed_meanwhile(folder: FileBackend, root: Path) -> None:
    tag = folder.put("a", [b"x"])
    for lock in (root / ".lock").iterdir():
        lock.unlink()
    (root / ".lock").rmdir()
    (root / ".tmp").rmdir()
    folder.put("a", [b"y"], condition=Matches(tag))
    assert folder.get("a").data == b"y"


def test_short_writes_are_continued(folder: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    sizes: list[int] = []

    def short(fd: int, buffers: list[memoryview]) -> int:
        wanted = 1 + len(sizes) % 7
        taken = []
        for buffer in buffers:
            taken.append(buffer[:wanted])
            wanted -= len(taken[-1])
            if not wanted:
                break
        sizes.append(writev(fd, taken))
        return sizes[-1]

    monkeypatch.setattr(os, "writev", short)
    parts: list[Buffer] = [b"abc", b"", b"defghijklmnop", bytearray(b"q"), memoryview(b"rstuvwxyz" * 30)]
    folder.put("a", parts)
    assert len(sizes) > 10
    assert folder.get("a").data == b"".join(parts)


def test_short_reads_are_continued(folder: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 3
    folder.put("a", [data])
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 100), at))
    assert folder.get("a").data == data
    assert folder.read("a", 7, 555) == data[7:562]


FAILURES = [
    ("writev", errno.ENOSPC, OutOfSpaceError),
    ("writev", errno.EDQUOT, OutOfSpaceError),
    ("writev", errno.EIO, StorageError),
    ("fsync", errno.ENOSPC, OutOfSpaceError),
    ("fsync", errno.EIO, StorageError),
    ("mkdir", errno.EACCES, AccessError),
    ("mkdir", errno.EROFS, AccessError),
    ("mkdir", errno.ENOSPC, OutOfSpaceError),
    ("rename", errno.ENOSPC, OutOfSpaceError),
    ("link", errno.EIO, StorageError),
]


@pytest.mark.parametrize(("call", "number", "expected"), FAILURES)
def test_failure_of_the_file_system(
    folder: FileBackend,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    expected: type[CasstoreError],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    condition = Absent() if call == "link" else None
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(expected) as caught:
            folder.put("new/object", [b"x" * 100], condition=condition)
    assert type(caught.value) is expected
    assert str(root / "new/object") in caught.value.message
    assert os.strerror(number) in caught.value.message
    assert list(folder.list("")) == []
    assert not (root / ".tmp").exists() or not list((root / ".tmp").iterdir())
    folder.put("new/object", [b"y"], condition=condition)
    assert folder.get("new/object").data == b"y"


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EACCES, AccessError), (errno.EIO, StorageError), (errno.ESTALE, StorageError)]
)
def test_failure_to_read(
    folder: FileBackend, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[CasstoreError]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    folder.put("a", [b"x"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        for call in (folder.get, folder.stat, lambda key: folder.read(key, 0, 1), folder.local_path):
            with pytest.raises(expected) as caught:
                call("a")
            assert type(caught.value) is expected
        with pytest.raises(expected):
            list(folder.list(""))


def test_lost_reply_of_a_link_is_no_conflict(folder: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(*arguments: Any, **options: Any) -> None:
        link(*arguments, **options)
        link(*arguments, **options)

    monkeypatch.setattr(os, "link", link_twice)
    folder.put("a", [b"x"], condition=Absent())
    assert folder.get("a").data == b"x"


def test_sync_before_the_name_appears(folder: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "rename", "link"):
        inner = getattr(os, name)

        def record(*arguments: Any, _inner: Any = inner, _name: str = name, **options: Any) -> Any:
            calls.append(_name)
            return _inner(*arguments, **options)

        monkeypatch.setattr(os, name, record)
    folder.put("a", [b"x"])
    first = calls.index("rename")
    assert "fsync" in calls[:first]
    assert "fsync" in calls[first + 1 :]
    calls.clear()
    folder.put("b", [b"x"], condition=Absent())
    assert calls == ["fsync", "link", "fsync"]
    calls.clear()
    quick = FileBackend(str(folder.local_path("a")).removesuffix("/a"), durable=False)
    quick.put("c", [b"x"])
    assert calls == ["rename"]
    quick.close()


def test_replacement_by_another_process_is_seen(folder: FileBackend, root: Path) -> None:
    other = FileBackend(str(root))
    folder.put("packs/ab/x", [b"first"])
    assert folder.read("packs/ab/x", 0, 5) == b"first"
    other.put("packs/ab/x", [b"repaired"])
    assert folder.read("packs/ab/x", 0, 8) == b"repaired"
    other.delete(["packs/ab/x"])
    with pytest.raises(NotFoundError):
        folder.read("packs/ab/x", 0, 1)
    other.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_leaks(root: Path) -> None:
    before = open_descriptors()
    backend = FileBackend(str(root))
    for number in range(100):
        backend.put(f"packs/{number}", [b"x"])
        backend.read(f"packs/{number}", 0, 1)
        backend.put("head", [b"x"])
        backend.read("head", 0, 1)
        with pytest.raises(NotFoundError):
            backend.get("packs/0/below")
        with pytest.raises(NotFoundError):
            backend.get("packs")
        with pytest.raises(PreconditionError):
            backend.put("head", [b"x"], condition=Absent())
        next(iter(backend.list("")))
    assert open_descriptors() <= before + 1 + 64
    backend.close()
    assert open_descriptors() == before


def test_descriptor_in_use_is_not_closed(tmp_path: Path) -> None:
    def opener(key: str) -> tuple[int, os.stat_result]:
        fd = os.open(tmp_path / key, os.O_RDONLY)
        return fd, os.fstat(fd)

    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    cache = Descriptors(limit=1)
    first = cache.borrow("a", opener)
    assert first.size == 1
    second = cache.borrow("b", opener)
    assert os.pread(first.fd, 1, 0) == b"a"
    cache.forget("b")
    assert os.pread(second.fd, 1, 0) == b"b"
    cache.give_back(second)
    cache.close()
    assert os.pread(first.fd, 1, 0) == b"a"
    third = cache.borrow("a", opener)
    assert third is not first
    for entry in (first, third):
        cache.give_back(entry)
    for entry in (first, second, third):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(entry.fd)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        FileBackend(str(tmp_path / "none"))


def test_url_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a b#ü"
    path.mkdir()
    backend = FileBackend(str(path))
    assert backend.url == f"file://{tmp_path}/a%20b%23%C3%BC"
    backend.close()


# --- the wrappers


def test_trace_tells_every_call() -> None:
    log = CallLog()
    backend = TraceBackend(MemoryBackend(), log)
    backend.put("a/b", [b"abc", memoryview(b"de")])
    backend.get("a/b")
    backend.read("a/b", 1, 2)
    backend.stat("a/b")
    list(backend.list("a/"))
    backend.local_path("a/b")
    backend.delete(iter(["a/b", "c"]))
    with pytest.raises(NotFoundError):
        backend.get("a/b")
    assert log.calls == [
        Call("put", "a/b", 5),
        Call("get", "a/b", 5),
        Call("read", "a/b", 2),
        Call("stat", "a/b"),
        Call("list", "a/"),
        Call("local_path", "a/b"),
        Call("delete", "a/b", 2),
        Call("get", "a/b", error="NotFoundError"),
    ]
    assert log.count("get") == 2
    assert log.count("get", "x") == 0
    assert log.bytes("put", "a/") == 5
    assert log.counts()["delete"] == 1
    log.clear()
    assert not log.calls


def test_faults_hit_the_call_they_name() -> None:
    inner = MemoryBackend()
    backend = FaultBackend(inner, FaultPlan(at=2, times=2, operations=frozenset({"put"}), prefix="p/"))
    backend.put("p/1", [b"x"])
    backend.put("other", [b"x"])
    for key in ("p/2", "p/3"):
        backend.get("p/1")
        with pytest.raises(StorageError):
            backend.put(key, [b"x"])
    backend.put("p/4", [b"x"])
    assert [info.key for info in inner.list("")] == ["other", "p/1", "p/4"]
    assert (backend.calls, backend.hits) == (4, 2)


def test_fault_after_the_effect() -> None:
    inner = MemoryBackend()
    backend = FaultBackend(inner, FaultPlan(at=1, fault=Fault.ERROR_AFTER))
    with pytest.raises(StorageError):
        backend.put("a", [b"x"], condition=Absent())
    assert inner.get("a").data == b"x"


def test_faults_that_may_pass() -> None:
    inner = MemoryBackend()
    backend = FaultBackend(inner, FaultPlan(at=1, times=2, fault=Fault.TRANSIENT))
    for _ in range(2):
        with pytest.raises(TransientError):
            backend.put("a", [b"x"])
    assert list(inner.list("")) == []
    backend.put("a", [b"x"])
    backend = FaultBackend(inner, FaultPlan(at=1, fault=Fault.LOST))
    with pytest.raises(TransientError):
        backend.put("b", [b"x"])
    assert inner.get("b").data == b"x"


def test_a_call_that_stands_still_goes_on_when_it_is_let_go() -> None:
    inner = MemoryBackend()
    backend = FaultBackend(inner, FaultPlan(at=1, fault=Fault.STALL))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        put = pool.submit(backend.put, "a", [b"x"])
        assert backend.wait_stalled(30)
        assert list(inner.list("")) == []
        assert not put.done()
        backend.put("b", [b"x"])  # the next one is not hit
        backend.release()
        put.result(30)
    assert [info.key for info in inner.list("")] == ["a", "b"]


def test_a_delayed_call_is_done() -> None:
    backend = FaultBackend(MemoryBackend(), FaultPlan(at=1, times=3, fault=Fault.DELAY, seconds=0.001))
    backend.put("a", [b"x"])
    assert backend.get("a").data == b"x"
    assert (backend.calls, backend.hits) == (2, 2)


@pytest.mark.parametrize(("fault", "expected"), [(Fault.FLIP, b"\x01bc"), (Fault.TRUNCATE, b"a")])
def test_faults_of_a_client(tmp_path: Path, fault: Fault, expected: bytes) -> None:
    local = LocalClient(str(tmp_path), durable=False)
    local.put("a", [b"\0bc" if fault is Fault.FLIP else b"abc"])
    plan = FaultPlan(at=1, fault=fault, operations=frozenset({"read"}))
    client = FaultClient(local, plan)
    client.head("a")
    assert client.read("a").data == expected
    assert client.read("a").data == local.read("a").data
    assert client.hits == 1
    full = FaultClient(local, FaultPlan(at=1, times=9, fault=Fault.NO_SPACE))
    for call in (lambda: full.put("b", [b"x"]), lambda: full.upload("b", io.BytesIO(b"x"))):
        with pytest.raises(OutOfSpaceError):
            call()
    assert [info.key for info in full.list("")] == ["a"]
    dead = FaultClient(local, FaultPlan(at=2, fault=Fault.CRASH_BEFORE))
    found = dead.list("")
    next(found)
    for end in (lambda: next(found), lambda: dead.delete(["a"])):
        with pytest.raises(InjectedCrash):
            end()
    assert local.head("a").size == 3
    local.close()


@pytest.mark.parametrize(("fault", "stored"), [(Fault.CRASH_BEFORE, False), (Fault.CRASH_AFTER, True)])
def test_crash_is_final(fault: Fault, stored: bool) -> None:
    inner = MemoryBackend()
    backend = FaultBackend(inner, FaultPlan(at=1, fault=fault))
    with pytest.raises(InjectedCrash):
        backend.put("a", [b"x"])
    for call in (lambda: backend.get("a"), lambda: backend.delete(["a"]), lambda: backend.list("")):
        with pytest.raises(InjectedCrash):
            call()
    assert [info.key for info in inner.list("")] == (["a"] if stored else [])


def test_no_space_hits_puts_only() -> None:
    backend = FaultBackend(MemoryBackend(), FaultPlan(at=1, times=99, fault=Fault.NO_SPACE))
    with pytest.raises(OutOfSpaceError):
        backend.put("a", [b"x"])
    backend.delete(["a"])
    assert list(backend.list("")) == []


@pytest.mark.parametrize(
    ("fault", "expected"), [(Fault.TRUNCATE, b"abcd"), (Fault.FLIP, b"abcdefg" + bytes([ord("h") ^ 2]))]
)
def test_silent_damage(fault: Fault, expected: bytes) -> None:
    data = b"abcdefgh"
    for operation in ("put", "get", "read"):
        inner = MemoryBackend()
        plan = FaultPlan(at=1, fault=fault, operations=frozenset({operation}), bit=64 + 57)
        backend = FaultBackend(inner, plan)
        backend.put("a", [data[:3], data[3:]])
        if operation == "read":
            assert backend.read("a", 0, 8) == expected
            assert backend.read("a", 0, 8) == data
        else:
            assert backend.get("a").data == expected
            assert backend.get("a").data == (expected if operation == "put" else data)
        assert backend.hits == 1
