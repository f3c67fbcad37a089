"""A mounted version, through the real kernel."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.backend.registry import open_backend
from casstore.cache.files import FileCache
from casstore.cache.space import Space
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, ConflictError, NotFoundError, UsageError
from casstore.model import Content
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore_fuse import abi, connection
from casstore_fuse.abi import InitFlag
from casstore_fuse.connection import Connection
from casstore_fuse.contents import Contents, Layout
from casstore_fuse.habits import Habits
from casstore_fuse.library import Library
from casstore_fuse.mounting import mount, unmount
from casstore_fuse.state import State
from casstore_fuse.vfs import Vfs


def why_not() -> str | None:
    if not os.path.exists("/dev/fuse"):
        return "this machine has no /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "this user may not open /dev/fuse"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Mounted:
    """A mount that is served by threads of this process."""

    connection: Connection | None = None
    descriptor: int | None = None

    def __init__(
        self,
        bucket: Bucket,
        path: Path,
        *,
        no_open: bool = False,
        files: FileCache | None = None,
        library: bool = False,
    ) -> None:
        self.path = path
        self.state = State.anonymous()
        tree = bucket.tree(bucket.resolve("ds"))
        self.contents = Contents(bucket.store, tree, files=files, state=self.state)
        vfs = Vfs(tree, uid=0, gid=0)
        if library:
            ready = threading.Event()
            serve = Library(vfs, self.contents, state=self.state, ready=ready.set).serve
            self.thread = threading.Thread(target=serve, args=(str(path), "osmo:ds"))
            self.thread.start()
            assert ready.wait(60)
            return
        self.descriptor = mount(str(path), "osmo:ds")
        self.connection = Connection(self.descriptor, vfs, self.contents, state=self.state, no_open=no_open)
        self.thread = threading.Thread(target=self.connection.serve)
        self.thread.start()

    def end(self) -> None:
        with_errors: list[CasstoreError] = []
        try:
            unmount(str(self.path), lazy=True)
        except NotFoundError as error:
            with_errors.append(error)
        self.thread.join()
        if self.descriptor is not None:
            os.close(self.descriptor)
        self.contents.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    rng = random.Random(3)
    for number in range(300):
        path = root / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 100, 8192, 100_000])))
    (root / "large").write_bytes(rng.randbytes(5 << 20))
    (root / "run").write_bytes(b"#!/bin/sh\necho works\n")
    (root / "run").chmod(0o755)
    shutil.copy(shutil.which("ls") or sys.executable, root / "program")
    (root / "link").symlink_to("d0/f0")
    (root / "empty").mkdir()
    os.utime(root / "large", ns=(0, -5_000_000_001))
    return root


@pytest.fixture
def faults() -> FaultBackend:
    return FaultBackend(MemoryBackend())


@pytest.fixture
def bucket(source: Path, faults: FaultBackend) -> Iterator[Bucket]:
    with Store.open(faults, create=True) as store:
        found = Bucket(store, name="b", user="u")
        found.upload("ds", [f"{source}/*"])
        yield found


def past_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if readers had taken large pieces, and the kernel handed nothing over."""
    parse = abi.parse_init
    monkeypatch.setattr(
        abi, "parse_init", lambda body: parse(body)._replace(flags=parse(body).flags & ~InitFlag.PASSTHROUGH)
    )
    monkeypatch.setattr(Habits, "direct", lambda *_: True)
    monkeypatch.setattr(Contents, "is_at_hand", lambda *_: True)


@pytest.fixture(params=["open", "no-open", "passthrough", "direct", "library"])
def mounted(
    bucket: Bucket, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mounted]:
    path = tmp_path / "mnt"
    path.mkdir()
    kept = request.param in {"passthrough", "direct"}
    files = FileCache(Space(str(tmp_path / "cache"), 1 << 30)) if kept else None
    if request.param == "direct":
        past_the_cache(monkeypatch)
    found = Mounted(bucket, path, no_open=request.param == "no-open", files=files, library=request.param == "library")
    yield found
    found.end()


def tree_of(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        what = f"{stat.S_IFMT(info.st_mode)} {info.st_mtime_ns}"
        if path.is_symlink():
            what += f" {os.readlink(path)}"
        elif path.is_file():
            what += f" {info.st_size} {hashlib.sha256(path.read_bytes()).hexdigest()} {info.st_mode & 0o555:o}"
        found[str(path.relative_to(root))] = what
    return found


def test_everything_is_as_it_was_uploaded(mounted: Mounted, source: Path) -> None:
    before = tree_of(source)
    assert len(before) > 300
    assert tree_of(mounted.path) == before
    assert tree_of(mounted.path) == before, "the second time from the kernel's memory"


def test_tools_see_no_difference(mounted: Mounted, source: Path) -> None:
    subprocess.run(["diff", "-r", str(source), str(mounted.path)], check=True)
    # By a shell: this process serves the mount, and stands still until a program that it starts itself has begun.
    done = subprocess.run(["tar", "-C", str(mounted.path), "-cf", "-", "."], capture_output=True, check=True)
    assert len(done.stdout) > 5 << 20
    run = subprocess.run(["sh", "-c", '"$0"', str(mounted.path / "run")], capture_output=True, check=True)
    assert run.stdout == b"works\n"
    for _ in range(2):  # the second time perhaps from the cache, by the kernel itself
        run = subprocess.run(["sh", "-c", '"$0" --version', mounted.path / "program"], capture_output=True, check=True)
        assert run.stdout


def test_random_ranges_and_maps(mounted: Mounted, source: Path) -> None:
    data = (source / "large").read_bytes()
    rng = random.Random(9)
    with open(mounted.path / "large", "rb") as file:
        for _ in range(200):
            at, length = rng.randrange(len(data) + 10), rng.randrange(1 << 17)
            assert os.pread(file.fileno(), length, at) == data[at : at + length]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            assert hashlib.sha256(view).digest() == hashlib.sha256(data).digest()


def test_many_readers_at_once(mounted: Mounted, source: Path) -> None:
    names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    wanted = {name: hashlib.sha256((source / name).read_bytes()).digest() for name in names}

    def read(name: str) -> bool:
        return hashlib.sha256((mounted.path / name).read_bytes()).digest() == wanted[name]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, names * 2))


def test_nothing_can_be_changed(mounted: Mounted) -> None:
    for work in (
        lambda: (mounted.path / "new").write_bytes(b"x"),
        lambda: (mounted.path / "large").write_bytes(b"x"),
        (mounted.path / "large").unlink,
        lambda: (mounted.path / "large").chmod(0o777),
        (mounted.path / "folder").mkdir,
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            work()
    with pytest.raises(FileNotFoundError):
        (mounted.path / "no such").read_bytes()


def test_what_was_read_as_a_whole_is_read_by_the_kernel(mounted: Mounted, source: Path) -> None:
    if mounted.contents.files is None:
        return  # what the other mounts do is tested above
    assert mounted.connection is not None
    data = (source / "large").read_bytes()
    assert (mounted.path / "large").read_bytes() == data
    if mounted.state.get("direct"):
        return  # as here: see below
    if InitFlag.PASSTHROUGH not in mounted.connection.flags:
        pytest.skip("this kernel reads no files by itself")
    while mounted.state.get("passed") == 0:
        assert (mounted.path / "large").read_bytes() == data  # it is put into the cache meanwhile
    reads = mounted.state.get("reads")
    with open(mounted.path / "large", "rb") as first, open(mounted.path / "large", "rb") as second:
        assert first.read() == second.read() == data
    assert mounted.state.get("reads") == reads
    assert mounted.state.get("passed") >= 3


def test_readers_of_large_pieces_bypass_the_kernel_s_cache(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Habits.direct, Contents.is_at_hand
    past_the_cache(monkeypatch)
    monkeypatch.setattr(Habits, "direct", before[0])
    monkeypatch.setattr(Contents, "is_at_hand", before[1])
    path = tmp_path / "mnt"
    path.mkdir()
    found = Mounted(bucket, path, files=FileCache(Space(str(tmp_path / "cache"), 1 << 30)))
    try:
        data = (source / "large").read_bytes()
        tree = bucket.tree(bucket.resolve("ds"))
        row = next(entry for entry in tree.entries() if entry.path == b"large")
        wanted = (path / "large").stat().st_ino, len(data), row.content
        assert (path / "large").stat().st_blksize == 128 << 10
        assert (path / "run").stat().st_blksize == 4096

        def read(size: int) -> tuple[int, int]:
            seen = found.state.get("direct"), found.state.get("reads")
            with open(path / "large", "rb", buffering=0) as file:
                assert b"".join(iter(lambda: file.read(size), b"")) == data
            return found.state.get("direct") - seen[0], found.state.get("reads") - seen[1]

        found.contents._far = False  # as if of a store on the disk, whose files are put into the cache later
        assert read(1 << 20)[0] == 0, "nothing is known of the readers"
        while not found.contents.is_at_hand(*wanted):
            direct, _ = read(1 << 20)
            assert not direct or found.contents.is_at_hand(*wanted), (
                "what is not in the cache is best kept by the kernel"
            )
        assert found.connection is not None
        if InitFlag.DIRECT_IO_ALLOW_MMAP not in found.connection.flags:
            pytest.skip("this kernel maps no files that are read past its cache")
        direct, reads = read(1 << 20)
        assert direct == 1
        assert 6 <= reads <= 11, "five pieces, each in two where memory begins amid a page, and the end"
        assert read(4096) == (1, 1281)
        assert read(4096)[0] == 0, "these readers are better off with the kernel's cache"
        assert found.state.get("errors") == 0
    finally:
        found.end()


def test_what_was_read_before_costs_two_messages_or_none(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answer = Connection._answer

    def listen(self: Connection, handler: Any, op: int, *rest: Any) -> None:
        asked.append(op)
        answer(self, handler, op, *rest)

    monkeypatch.setattr(Connection, "_answer", listen)
    small = next(f"d{n % 7}/f{n}" for n in range(300) if (source / f"d{n % 7}/f{n}").stat().st_size == 8192)
    for no_open, wanted in ((False, {abi.Op.OPEN: 8, abi.Op.RELEASE: 8}), (True, {})):
        path = tmp_path / f"mnt{no_open}"
        path.mkdir()
        found = Mounted(bucket, path, no_open=no_open, files=FileCache(Space(str(tmp_path / "cache"), 1 << 30)))
        try:
            for name in (small, "large"):
                for _ in range(2):
                    (path / name).read_bytes()
            assert found.connection is not None
            through = not no_open and InitFlag.PASSTHROUGH in found.connection.flags
            while through and not found.state.get("passed"):
                (path / "large").read_bytes()  # it is put into the cache meanwhile
            while not no_open and asked.count(abi.Op.RELEASE) < asked.count(abi.Op.OPEN):
                time.sleep(0.01)  # nobody who closes a file waits for the answer
            del asked[:]
            for name in (small, "large") * 4:
                with open(path / name, "rb", buffering=0) as file:
                    assert file.read() == (source / name).read_bytes()
            while asked.count(abi.Op.RELEASE) < asked.count(abi.Op.OPEN):
                time.sleep(0.01)
            assert {op: asked.count(op) for op in set(asked)} == wanted
        finally:
            found.end()
            del asked[:]


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE, Fault.FLIP, Fault.TRUNCATE])
def test_a_read_that_fails_is_an_error_and_the_next_one_is_whole(
    mounted: Mounted, source: Path, faults: FaultBackend, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.stat(mounted.path / "large")
    plan = FaultPlan(at=1, times=10**6, fault=fault, operations=frozenset({"read"}), prefix="packs/")
    monkeypatch.setattr(faults, "_plan", plan)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (mounted.path / "large").read_bytes()
    assert faults.hits
    monkeypatch.setattr(faults, "_plan", FaultPlan())
    assert (mounted.path / "large").read_bytes() == (source / "large").read_bytes()


def test_reads_that_hang_hold_up_nobody_else(
    mounted: Mounted, source: Path, faults: FaultBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"d{number % 7}/f{number}" for number in range(300)]
    slow = [name for name in names if (source / name).stat().st_size == 100_000][:6]
    (mounted.path / "run").read_bytes()
    fetch, going, go_on = mounted.contents.fetch, threading.Semaphore(0), threading.Event()

    def hang(node: int, layout: Layout, offset: int, size: int, content: Content) -> list[memoryview]:
        going.release()
        assert go_on.wait(60)
        return fetch(node, layout, offset, size, content)

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(slow)) as pool:
        patch.setattr(mounted.contents, "fetch", hang)
        readers = [pool.submit((mounted.path / name).read_bytes) for name in slow]
        for _ in slow:
            assert going.acquire(timeout=60)
        try:
            assert len(list(mounted.path.iterdir())) == len(list(source.iterdir()))
            assert (mounted.path / "empty").stat().st_nlink == 2
            assert (mounted.path / "run").read_bytes() == (source / "run").read_bytes()
            assert not any(reader.done() for reader in readers)
        finally:
            go_on.set()
        assert [reader.result() for reader in readers] == [(source / name).read_bytes() for name in slow]


@pytest.mark.parametrize("mounted", ["open", "no-open"], indirect=True)
def test_a_manifest_that_hangs_holds_up_nobody_else(
    mounted: Mounted, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in mounted.path.rglob("*"):
        pass
    (mounted.path / "run").read_bytes()
    assert mounted.connection is not None
    lookup, away = Vfs.lookup, mounted.connection._away
    going, go_on = threading.Semaphore(0), threading.Event()

    def hang(self: Vfs, parent: int, name: bytes) -> Any:
        if name.startswith(b"slow"):
            with away():  # as reading a leaf does
                going.release()
                assert go_on.wait(60)
        return lookup(self, parent, name)

    monkeypatch.setattr(Vfs, "lookup", hang)
    with ThreadPoolExecutor(8) as pool:
        for round_ in range(2):
            waiting = [pool.submit((mounted.path / f"d{n}" / f"slow{round_}").exists) for n in range(7)]
            for _ in waiting:
                assert going.acquire(timeout=60)
            try:
                assert not (mounted.path / "d0/other").exists()
                assert (mounted.path / "large").read_bytes() == (source / "large").read_bytes()
                assert not any(one.done() for one in waiting)
            finally:
                go_on.set()
            assert [one.result() for one in waiting] == [False] * 7
            go_on.clear()
    number = 0
    while mounted.connection._free > connection.TAKERS:  # those that are not needed any more stand by
        assert not (mounted.path / f"other{number}").exists()
        number += 1


def test_readers_of_many_processes(mounted: Mounted, source: Path) -> None:
    script = 'cd "$0" && find . -type f -exec sha256sum {} + | LC_ALL=C sort'
    readers = [subprocess.Popen(["sh", "-c", script, mounted.path], stdout=subprocess.PIPE) for _ in range(4)]
    wanted = subprocess.run(["sh", "-c", script, source], stdout=subprocess.PIPE, check=True).stdout
    assert wanted.count(b"\n") > 300
    assert [reader.communicate()[0] for reader in readers] == [wanted] * 4
    assert [reader.returncode for reader in readers] == [0] * 4


OPTIONAL = [flag for flag in InitFlag if flag in connection._WANTED | InitFlag.PASSTHROUGH]


@pytest.mark.parametrize("no_open", [False, True], ids=["open", "no-open"])
@pytest.mark.parametrize("missing", [*OPTIONAL, sum(OPTIONAL)], ids=[*(str(flag.name) for flag in OPTIONAL), "ALL"])
def test_a_kernel_that_offers_less(
    bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int, no_open: bool
) -> None:
    parse, opened = abi.parse_init, Connection._open_folder

    def offer(body: memoryview) -> abi.InitIn:
        flags = parse(body).flags & ~missing
        if missing & InitFlag.INIT_EXT:
            flags &= 0xFFFFFFFF  # there was no second half then
        return parse(body)._replace(flags=flags, minor=31 if missing & InitFlag.INIT_EXT else parse(body).minor)

    folders: list[int] = []

    def open_folder(self: Connection, unique: int, node: int, body: memoryview) -> None:
        folders.append(node)
        opened(self, unique, node, body)

    monkeypatch.setattr(abi, "parse_init", offer)
    monkeypatch.setattr(Connection, "_open_folder", open_folder)
    (tmp_path / "mnt").mkdir()
    files = FileCache(Space(str(tmp_path / "cache"), 1 << 30))
    found = Mounted(bucket, tmp_path / "mnt", no_open=no_open, files=files)
    try:
        before = tree_of(source)
        assert tree_of(found.path) == before
        assert tree_of(found.path) == before
        assert found.connection is not None
        assert not found.connection.flags & missing
        assert (found.state.get("opened") == 0) == (no_open and InitFlag.NO_OPEN_SUPPORT in found.connection.flags)
        assert (len(folders) > 1) == (InitFlag.NO_OPENDIR_SUPPORT not in found.connection.flags)
        assert found.state.get("errors") == 0
    finally:
        found.end()


def test_a_mount_in_use_is_not_taken_away(mounted: Mounted) -> None:
    with open(mounted.path / "large", "rb"), pytest.raises(ConflictError):
        unmount(str(mounted.path))
    assert (mounted.path / "run").exists()


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        mount(str(tmp_path / "no such"), "osmo:x")
    with pytest.raises(NotFoundError):
        unmount(str(tmp_path))


SERVER = """
import os, sys, threading
from casstore.backend.registry import open_backend
from casstore.cache.files import FileCache
from casstore.cache.space import Space
from casstore.dataset import Bucket
from casstore.repo.store import Store
from casstore_fuse import abi
from casstore_fuse.connection import Connection
from casstore_fuse.contents import Contents
from casstore_fuse.mounting import mount
from casstore_fuse.state import State
from casstore_fuse.supervisor import supervise
from casstore_fuse.vfs import Vfs

url, path, page, old = sys.argv[1:]
if old:
    parse = abi.parse_init
    abi.parse_init = lambda body: parse(body)._replace(flags=parse(body).flags & ~abi.InitFlag.HAS_RESEND)
state = State.create(page)
descriptor = mount(path, "osmo:ds")

def serve(deaths):
    store = Store.open(open_backend(url))
    bucket = Bucket(store, name="b", user="u")
    tree = bucket.tree(bucket.resolve("ds"))
    contents = Contents(store, tree, files=FileCache(Space(page + ".cache", 1 << 30)))
    if old:
        contents.fetch = lambda *_: threading.Event().wait()
    connection = Connection(descriptor, Vfs(tree, uid=0, gid=0), contents, state=state, first=not deaths)
    connection.serve()

sys.exit(supervise(descriptor, path, state, serve))
"""


@pytest.fixture(params=[""])
def supervised(
    source: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Path, subprocess.Popen[bytes], State]]:
    url = f"file://{tmp_path}/store"
    with Store.open(open_backend(url, create=True), create=True) as store:
        Bucket(store, name="b", user="u").upload("ds", [f"{source}/*"])
    path, page = tmp_path / "mnt", tmp_path / "page"
    path.mkdir()
    process = subprocess.Popen([sys.executable, "-c", SERVER, url, str(path), str(page), request.param])
    while not os.path.ismount(path):
        assert process.poll() is None
        time.sleep(0.01)
    state = State.open(str(page))
    yield path, process, state
    state.close()
    process.kill()
    process.wait()
    subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def server_of(process: subprocess.Popen[bytes]) -> int | None:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(found[0]) if found else None


def test_a_server_killed_under_load_is_replaced_and_no_reader_notices(
    supervised: tuple[Path, subprocess.Popen[bytes], State], source: Path
) -> None:
    path, process, state = supervised
    names = [str(found.relative_to(source)) for found in source.rglob("*") if found.is_file()]
    stop = threading.Event()

    def read(seed: int) -> int:
        rng = random.Random(seed)
        done = 0
        while not stop.is_set() or not done:
            name = rng.choice(names)
            assert (path / name).read_bytes() == (source / name).read_bytes()
            done += 1
        return done

    os.stat(path)
    again = InitFlag.HAS_RESEND in InitFlag(state.flags)
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, seed) for seed in range(4)] if again else []
        for round_ in range(3):
            while (server := server_of(process)) is None:
                time.sleep(0.01)
            os.kill(server, signal.SIGKILL)
            while state.get("restarts") <= round_:
                time.sleep(0.01)
        stop.set()
        assert [reader.result() > 0 for reader in readers] == [True] * len(readers)
    assert tree_of(path) == tree_of(source)


@pytest.mark.parametrize("supervised", ["old"], indirect=True)
def test_nobody_waits_for_ever_where_the_kernel_can_not_send_again(
    supervised: tuple[Path, subprocess.Popen[bytes], State],
) -> None:
    path, process, state = supervised
    with ThreadPoolExecutor(1) as pool, open(path / "large", "rb") as file:
        reader = pool.submit(file.read)
        while not state.get("reads"):
            time.sleep(0.01)
        assert not reader.done()
        server = server_of(process)
        assert server is not None
        os.kill(server, signal.SIGKILL)
        with pytest.raises(OSError, match=r"(?i)connect"):
            reader.result()
    assert process.wait(60)
    assert not os.path.ismount(path)


def test_a_supervisor_that_is_ended_takes_the_mount_away(
    supervised: tuple[Path, subprocess.Popen[bytes], State],
) -> None:
    path, process, _ = supervised
    assert (path / "run").exists()
    process.terminate()
    assert process.wait(timeout=60) in {0, -signal.SIGTERM}
    assert not os.path.ismount(path)


def test_a_mount_whose_processes_are_all_killed_can_be_cleared(
    supervised: tuple[Path, subprocess.Popen[bytes], State],
) -> None:
    path, process, _ = supervised
    server = server_of(process)
    process.kill()
    process.wait()
    assert server is not None
    while os.path.exists(f"/proc/{server}") and Path(f"/proc/{server}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    unmount(str(path), lazy=True)
    assert not os.path.ismount(path)
    assert list(path.iterdir()) == []


def test_a_process_outlives_what_it_writes_to_a_closed_pipe_after_a_mount(mounted: Mounted) -> None:
    assert (mounted.path / "run").read_bytes()
    unmount(str(mounted.path), lazy=True)
    mounted.thread.join()
    with open("/proc/self/status", encoding="ascii") as status:
        ignored = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn:"))
    assert ignored >> (signal.SIGPIPE - 1) & 1
