"""A folder keeps the contract of a client of object storage; and nothing leads out of it."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from casstore.errors import NotFoundError, OutOfSpaceError, SourceError, StorageError, UsageError
from casstore.remote.base import Absent, ObjectClient
from casstore.remote.limit import Budget, LimitClient
from casstore.remote.local import LocalClient
from casstore.remote.open import open_objects
from casstore.remote.retry import RetryClient
from casstore.testing.client_contract import _KEYS, ClientContract
from casstore.testing.faults import FaultClient

# A name has 255 bytes at most, and a path no empty part.
KEYS = [key for key in _KEYS if "//" not in key and len(key) < 200]


class OfAFolder(ClientContract):
    """No file is both a file and a folder."""

    KEYS = KEYS

    def test_list_folders(self, client: ObjectClient) -> None:
        for key in ("a-b", "a/b", "a/c/d", "a/c/e", "a/d", "a0", "b/x"):
            client.put(key, [b"12"])

        def listed(prefix: str, after: str = "") -> list[str]:
            return [info.key for info in client.list(prefix, after=after, recursive=False)]

        assert listed("") == ["a-b", "a/", "a0", "b/"]
        assert listed("a/") == ["a/b", "a/c/", "a/d"]
        assert listed("a/c") == ["a/c/"]
        assert listed("", after="a-b") == ["a/", "a0", "b/"]
        assert listed("", after="a/") == ["a0", "b/"]
        assert listed("a/", after="a/c/") == ["a/d"]


class TestLocal(OfAFolder):
    LARGE = 20 << 20
    THREADS = 32

    @pytest.fixture
    def client(self, tmp_path: Path) -> Iterator[ObjectClient]:
        found = LocalClient(str(tmp_path), durable=False)
        yield found
        found.close()
        assert [name for _, _, names in os.walk(tmp_path) for name in names if "casstore" in name] == []


class TestWrapped(OfAFolder):
    """The wrappers pass everything on."""

    LARGE = 20 << 20

    @pytest.fixture
    def client(self, tmp_path: Path) -> Iterator[ObjectClient]:
        inner = FaultClient(LocalClient(str(tmp_path), durable=False))
        found = RetryClient(LimitClient(inner, Budget(1 << 20, 4)))
        yield found
        found.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def client(root: Path) -> Iterator[LocalClient]:
    found = LocalClient(str(root))
    yield found
    found.close()


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/./b", "a//b", "a/", "a\0b", "x" * 256, "a/" * 2000 + "b"],
)
def test_keys_that_are_no_paths(client: LocalClient, root: Path, key: str) -> None:
    refused(client, root, key)


@pytest.mark.parametrize("key", [".casstore-part-00", "a/.casstore-part-00/b", "\ud800"])
def test_keys_that_no_file_can_have(client: LocalClient, root: Path, key: str) -> None:
    refused(client, root, key)


def refused(client: LocalClient, root: Path, key: str) -> None:
    with pytest.raises(UsageError):
        client.put(key, [b"x"])
    with pytest.raises(UsageError):
        client.upload(key, io.BytesIO(b"x"))
    with pytest.raises(NotFoundError):
        client.head(key)
    with pytest.raises(NotFoundError):
        client.read(key)
    client.delete([key])
    assert list(client.list(key + "/")) == []
    assert os.listdir(root) == []
    assert os.listdir(root.parent) == ["root"]


def test_links_lead_nowhere(client: LocalClient, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "link").symlink_to(outside / "secret")
    assert list(client.list("")) == []
    assert list(client.list("folder/")) == []
    for key in ("folder/secret", "link"):
        with pytest.raises(NotFoundError):
            client.read(key)
        with pytest.raises(NotFoundError):
            client.head(key)
    for condition in (None, Absent()):
        with pytest.raises(StorageError):
            client.put("folder/new", [b"x"], condition=condition)
    client.delete(["folder/secret"])
    client.put("link", [b"own"])
    assert (outside / "secret").read_bytes() == b"secret"
    assert os.listdir(outside) == ["secret"]
    assert (root / "link").read_bytes() == b"own"


def test_a_failing_disk_leaves_nothing(client: LocalClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (root / "kept").write_bytes(b"kept")
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        for key in ("new", "kept"):
            with pytest.raises(OutOfSpaceError):
                client.put(key, [b"x"])
            with pytest.raises(OutOfSpaceError):
                client.upload(key, io.BytesIO(b"x"))
    assert os.listdir(root) == ["kept"]
    assert (root / "kept").read_bytes() == b"kept"


def test_what_others_write_in_place_is_another_state(client: LocalClient, root: Path) -> None:
    tag = client.put("a", [b"own"])
    (root / "a").write_bytes(b"theirs")
    assert client.head("a").etag != tag
    assert client.read("a").data == b"theirs"


def test_states_differ_however_quickly_they_follow(client: LocalClient) -> None:
    quick = LocalClient(client.url.removeprefix("file://"), durable=False)
    assert len({quick.put("a", [b"%03d" % number]) for number in range(200)}) == 200
    quick.close()


def test_a_pipe_is_no_object(client: LocalClient, root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert list(client.list("")) == []
    with pytest.raises(NotFoundError):
        client.read("pipe")


def test_a_vanished_root_is_an_error(client: LocalClient, root: Path) -> None:
    root.rmdir()
    for call in (lambda: client.put("a/b", [b"x"]), lambda: client.put("a", [b"x"])):
        with pytest.raises(StorageError):
            call()
    assert list(client.list("")) == []


def test_closed(client: LocalClient) -> None:
    client.put("a", [b"x"])
    client.close()
    client.close()
    for call in (lambda: client.read("a"), lambda: client.put("a", [b"y"]), lambda: list(client.list(""))):
        with pytest.raises(StorageError, match="was closed"):
            call()


def test_upload_of_another_size_than_announced(client: LocalClient, root: Path) -> None:
    with pytest.raises(SourceError, match="3 bytes came where 5 were announced"):
        client.upload("a", io.BytesIO(b"abc"), size=5)
    assert os.listdir(root) == []


def test_upload_does_not_hold_what_it_copies(client: LocalClient) -> None:
    class Endless(io.RawIOBase):
        asked: list[int]

        def read(self, size: int = -1) -> bytes:
            self.asked.append(size)
            return bytes(size) if len(self.asked) < 4 else b""

    source = Endless()
    source.asked = []
    client.upload("a", source)  # type: ignore[arg-type]  # what is asked of it is there
    assert max(source.asked) <= 1 << 20
    assert client.head("a").size == 3 << 20


@pytest.mark.parametrize("path", ["", "existing", "existing/new/deep", "existing/file", "new"])
def test_opening_by_url(root: Path, path: str) -> None:
    (root / "existing").mkdir()
    (root / "existing/file").write_bytes(b"file")
    client, prefix = open_objects(f"file://{root}/{path}")
    assert f"{client.url.removeprefix('file://')}/{prefix}".rstrip("/") == f"{root}/{path}".rstrip("/")
    if path.endswith("file"):
        assert client.read(prefix).data == b"file"
    client.close()


def test_a_reader_of_many_threads_sees_whole_objects(client: LocalClient) -> None:
    quick = LocalClient(client.url.removeprefix("file://"), durable=False)
    quick.put("a", [bytes(100_000)])
    done = threading.Event()
    seen: list[set[int]] = []

    def read(_source: BinaryIO | None = None) -> None:
        while not done.is_set():
            found = quick.read("a")
            seen.append(set(found.data))
            assert len(found.data) == 100_000

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(100):
            quick.upload("a", io.BytesIO(bytes([number]) * 100_000))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert seen
    assert {len(found) for found in seen} == {1}
    quick.close()
