"""Several uploads to one store at once, and uploads that are interrupted."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import SourceError, StorageError
from casstore.model import Kind
from casstore.repo import index
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.transfer import pipeline
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

PROCESSES = 8

UPLOADS = """
import json, sys
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.repo import index, packs
from casstore.repo.store import Store
packs.PACK_TARGET = 256 << 10
index.MERGE_ABOVE = 2
url, state, number, *sources = sys.argv[1:]
store = Store.open(open_backend(url, create=True), create=True)
bucket = Bucket(store, name="b", user=f"user{number}", state_dir=state)
print("ready", flush=True)
sys.stdin.readline()
done = []
for source in sources:
    name = source.rpartition("/")[2]
    done.append((name, bucket.upload(name, [source + "/*"], force_new_version=True).version.record.number))
print(json.dumps(done), flush=True)
"""


def contents(store: Store, bucket: Bucket, name: str, tag: str) -> dict[str, bytes]:
    tree = bucket.tree(bucket.resolve(name, tag))
    return {
        os.fsdecode(entry.path): b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))
        for entry in tree.entries()
        if entry.kind == Kind.FILE
    }


def expected(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_processes_that_upload_at_once(tmp_path: Path) -> None:
    """Equal trees, trees that share files, and trees of their own, to one folder, with small packs and many merges."""
    rng = random.Random(8)
    shared = rng.randbytes(700_000)
    for number in range(PROCESSES):
        for name in ("equal", f"own{number}"):
            folder = tmp_path / "in" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "shared").write_bytes(shared)
            (folder / f"{name}").write_bytes(random.Random(name).randbytes(400_000))
            for small in range(30):
                (folder / f"small{small}").write_bytes(random.Random(f"{name} {small}").randbytes(3000))
    url = f"file://{tmp_path}/store"
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-c", UPLOADS, url, str(tmp_path / "state"), str(number),
                str(tmp_path / "in" / "equal"), str(tmp_path / "in" / f"own{number}"), str(tmp_path / "in" / "equal"),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(PROCESSES)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        outputs.append(json.loads(output))
    with Store.open(open_backend(url)) as store:
        assert verify_store(store).problems == []
        bucket = Bucket(store, name="b", user="u")
        equal = sorted(number for done in outputs for name, number in done if name == "equal")
        assert equal == list(range(1, 2 * PROCESSES + 1))
        for number in equal:
            assert contents(store, bucket, "equal", str(number)) == expected(tmp_path / "in" / "equal")
        for number in range(PROCESSES):
            assert contents(store, bucket, f"own{number}", "1") == expected(tmp_path / "in" / f"own{number}")
    assert not list((tmp_path / "state" / "uploads").rglob("*-*")), "a journal was left behind"


def test_a_store_may_be_verified_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a running upload does looks like damage."""
    monkeypatch.setattr(index, "MERGE_ABOVE", 2)
    store = Store.open(MemoryBackend(), create=True)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(60):
                folder = tmp_path / str(number)
                folder.mkdir()
                (folder / "f").write_bytes(random.Random(number).randbytes(50_000))
                bucket = Bucket(Store.open(store.backend), name="b", user="u")
                bucket.upload(f"ds{number % 5}", [f"{folder}/*"], tag="t")
        except BaseException as error:  # handed to the test
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    times = 0
    while thread.is_alive() or times == 0:
        assert verify_store(Store.open(store.backend)).problems == []
        times += 1
    thread.join()
    assert failures == []


INTERRUPTED = """
import _thread, json, os, signal, sys, threading
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.repo import packs
from casstore.repo.store import Store
packs.PACK_TARGET = 1 << 20
url, state, source, after = sys.argv[1:]

class Interrupting:
    def __init__(self, inner):
        self.inner = inner
        self.left = int(after)
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def put(self, key, data, *, condition=None):
        tag = self.inner.put(key, data, condition=condition)
        self.left -= key.startswith("packs/")
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return tag

store = Store.open(Interrupting(open_backend(url, create=True)), create=True)
try:
    Bucket(store, name="b", user="u", state_dir=state).upload("robot", [source + "/*"])
    outcome = "done"
except KeyboardInterrupt:
    outcome = "interrupted"
left = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
print(json.dumps({"outcome": outcome, "threads": left}))
"""


@pytest.mark.parametrize("files", [1, 3000])
def test_an_interrupt_ends_an_upload_and_the_next_one_goes_on(tmp_path: Path, files: int) -> None:
    source = tmp_path / "in"
    source.mkdir()
    size = 96 << 20 if files == 1 else 24 << 20
    rng = random.Random(files)
    for number in range(files):
        (source / f"f{number:05}").write_bytes(rng.randbytes(size // files))
    url = f"file://{tmp_path}/store"
    arguments = [sys.executable, "-c", INTERRUPTED, url, str(tmp_path / "state"), str(source), "4"]
    output = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, timeout=120).stdout
    assert json.loads(output) == {"outcome": "interrupted", "threads": []}
    packs = sum(path.stat().st_size for path in (tmp_path / "store" / "packs").rglob("*") if path.is_file())
    assert 4 << 20 <= packs < size // 2, "the upload went on"
    with Store.open(open_backend(url)) as store:
        assert verify_store(store).problems == []
        bucket = Bucket(store, name="b", user="u", state_dir=str(tmp_path / "state"))
        result = bucket.upload("robot", [f"{source}/*"])
        assert result.new_bytes <= size - packs + (2 << 20)
        assert verify_store(store).problems == []


def test_a_failure_in_a_thread_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in a worker: the upload raises just that, and no thread is left."""
    (tmp_path / "f").write_bytes(os.urandom(20 << 20))
    (tmp_path / "g").write_bytes(b"small")
    source = Source(os.fsencode(tmp_path), b"", contents=True)

    class Failing(MemoryBackend):
        def put(self, key, data, *, condition=None):  # type: ignore[no-untyped-def]
            if key.startswith("packs/"):
                raise StorageError("the disk is on fire")
            return super().put(key, data, condition=condition)

    before = threading.active_count()
    with pytest.raises(StorageError, match="on fire"):
        upload_tree(Store.open(Failing(), create=True), [source])
    assert threading.active_count() == before

    def refuse(path: bytes, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pipeline, "open_deep", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        upload_tree(Store.open(MemoryBackend(), create=True), [source])
    assert threading.active_count() == before

    def break_down(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "open_deep", break_down)
    with pytest.raises(ZeroDivisionError):
        upload_tree(Store.open(MemoryBackend(), create=True), [source])
    assert threading.active_count() == before
