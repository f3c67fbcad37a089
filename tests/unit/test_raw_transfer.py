"""Plain files to and from object storage."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import (
    AccessError,
    CancelledError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    SourceError,
    StorageError,
    UsageError,
)
from casstore.model import Buffer
from casstore.remote.base import Condition, Object, RemoteInfo
from casstore.remote.credentials import StorageCredential
from casstore.testing.bucket import MemoryBucket as Bucket
from casstore.transfer.raw import (
    Place,
    check_access,
    check_credential,
    delete_objects,
    download,
    look_before_deleting,
    open_place,
    parse_sources,
    upload,
)
from casstore.transfer.raw import download as download_function
from casstore.transfer.raw.fetch import PIECE
from casstore.transfer.raw.send import SMALL


def place(bucket: Bucket, prefix: str = "") -> Place:
    return Place(bucket, prefix, f"s3://double/{prefix}".rstrip("/"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_bytes(b"first")
    (made / "sub/b.bin").write_bytes(b"second")
    (made / "empty").write_bytes(b"")
    return made


# --- there and back


def test_a_folder_keeps_its_name_and_comes_back(tmp_path: Path, folder: Path) -> None:
    bucket = Bucket()
    sent = upload(place(bucket, "run/1"), parse_sources([str(folder)]))
    assert (sent.files, sent.size, sent.failed) == (3, 11, 0)
    assert bucket.objects == {
        "run/1/data/a.txt": b"first",
        "run/1/data/sub/b.bin": b"second",
        "run/1/data/empty": b"",
    }
    out = tmp_path / "out"
    out.mkdir()
    got = download(place(bucket, "run/1"), str(out))
    assert (got.files, got.size, got.transferred, got.reused, got.failed) == (3, 11, 11, 0, 0)
    assert tree(out / "data") == tree(folder)
    assert os.stat(out / "data/a.txt").st_mtime == 1700000000.0


def test_a_star_strips_the_folder_and_a_file_keeps_its_name(folder: Path) -> None:
    bucket = Bucket()
    upload(place(bucket), parse_sources([f"{folder}/*"]))
    assert set(bucket.objects) == {"a.txt", "sub/b.bin", "empty"}
    bucket = Bucket()
    upload(place(bucket, "p"), parse_sources([str(folder / "a.txt")]), regex="nothing")
    assert set(bucket.objects) == {"p/a.txt"}  # a regex is not asked about single files


def test_the_first_of_two_files_with_one_name_wins(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"other")
    bucket = Bucket()
    upload(place(bucket), parse_sources([str(tmp_path / "a.txt"), f"{folder}/*"]))
    assert bucket.objects["a.txt"] == b"other"


def test_a_regex_is_matched_from_the_start_of_names(tmp_path: Path, folder: Path) -> None:
    bucket = Bucket()
    upload(place(bucket), parse_sources([str(folder)]), regex="data/sub/")
    assert set(bucket.objects) == {"data/sub/b.bin"}
    bucket = Bucket({"x/one.txt": b"1", "x/two.bin": b"2"})
    got = download(place(bucket, "x"), str(tmp_path), regex=r".*\.txt")
    assert got.files == 1
    assert (tmp_path / "one.txt").exists()
    assert not (tmp_path / "two.bin").exists()
    with pytest.raises(UsageError, match="regular expression"):
        download(place(bucket, "x"), str(tmp_path), regex="(")


def test_one_object_is_downloaded_under_its_last_name(tmp_path: Path) -> None:
    bucket = Bucket({"x/one.txt": b"1", "x/one.txt2": b"2"})
    download(place(bucket, "x/one.txt"), str(tmp_path))
    assert tree(tmp_path) == {"one.txt": b"1"}


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(tmp_path: Path) -> None:
    bucket = Bucket({"run/a": b"1", "run2/b": b"2"})
    download(place(bucket, "run"), str(tmp_path))
    assert tree(tmp_path) == {"a": b"1"}


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at s3://double/x"):
        download(place(Bucket({"y": b""}), "x"), str(tmp_path))


def test_the_markers_of_folders_are_no_files(tmp_path: Path) -> None:
    bucket = Bucket({"run/": b"", "run": b"", "run/sub/": b"", "run/sub/x": b"1"})
    got = download(place(bucket, "run"), str(tmp_path))
    assert got.failed == 0
    assert tree(tmp_path) == {"sub/x": b"1"}


def test_a_service_that_lists_what_it_was_not_asked_for_is_not_believed(tmp_path: Path) -> None:
    class Lies(Bucket):
        def list(self, prefix: str, **_: Any) -> Iterator[RemoteInfo]:
            yield RemoteInfo("elsewhere/x", 1, 0.0, "t")

    with pytest.raises(StorageError, match="not asked for"):
        download(place(Lies(), "run"), str(tmp_path))


# --- large objects, and what goes wrong on the way


def test_a_large_object_is_fetched_in_pieces(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * (2 * PIECE // (1 << 20)) + b"the end"
    bucket = Bucket({"big": data})
    got = download(place(bucket), str(tmp_path))
    assert got.transferred == len(data)
    assert (tmp_path / "big").read_bytes() == data
    assert sorted(offset for _, offset in bucket.reads) == [0, PIECE, 2 * PIECE]
    assert os.listdir(tmp_path) == ["big"]


def test_a_large_file_is_sent_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * (SMALL + 5))
    bucket = Bucket()
    assert upload(place(bucket), parse_sources([str(path)])).size == SMALL + 5
    assert bucket.objects["big"] == path.read_bytes()


@pytest.mark.parametrize("size", [10, PIECE + 10], ids=["small", "large"])
def test_bytes_that_were_damaged_on_their_way_are_fetched_again(tmp_path: Path, size: int) -> None:
    class Noisy(Bucket):
        damaged = False

        def read(self, key: str, **options: Any) -> Object:
            found = super().read(key, **options)
            if not self.damaged:
                self.damaged = True
                return Object(b"?" + found.data[1:], found.etag)
            return found

    bucket = Noisy({"x": b"z" * size})
    got = download(place(bucket), str(tmp_path), threads=1)
    assert (got.failed, got.files) == (0, 1)
    assert (tmp_path / "x").read_bytes() == b"z" * size


def test_bytes_that_differ_each_time_are_no_file(tmp_path: Path) -> None:
    class Broken(Bucket):
        def read(self, key: str, **options: Any) -> Object:
            found = super().read(key, **options)
            return Object(os.urandom(len(found.data)), found.etag)

    got = download(place(Broken({"x": b"z" * 50})), str(tmp_path))
    assert isinstance(got.failures[0].error, IntegrityError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [10, PIECE + 10], ids=["small", "large"])
def test_tags_that_are_no_digests_are_found_out(tmp_path: Path, size: int) -> None:
    bucket = Bucket({f"x{n}": bytes([n]) * size for n in range(3)})
    bucket.salt = b"encrypted by a key service"
    got = download(place(bucket), str(tmp_path), threads=1)
    assert (got.failed, got.files) == (0, 3)
    reads = len(bucket.reads)
    per_file = -(-size // PIECE)
    assert reads == 4 * per_file  # one of them twice
    source = tmp_path / "x1"
    sent = upload(place(Salted(), "up"), parse_sources([str(source)]))
    assert sent.failed == 0


class Salted(Bucket):
    def __init__(self) -> None:
        super().__init__()
        self.salt = b"salt"


def test_an_upload_that_stored_something_else_is_a_failure(folder: Path) -> None:
    class Broken(Bucket):
        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            return super().put(key, [b"something else"], condition=condition)

    sent = upload(place(Broken()), parse_sources([str(folder / "a.txt")]))
    assert isinstance(sent.failures[0].error, IntegrityError)


def test_a_file_that_fails_stops_no_other(tmp_path: Path) -> None:
    class Forbidding(Bucket):
        def read(self, key: str, **options: Any) -> Object:
            if key == "b":
                raise AccessError("b is not for you")
            return super().read(key, **options)

    got = download(place(Forbidding({"a": b"1", "b": b"2", "c": b"3"})), str(tmp_path))
    assert (got.files, got.failed) == (2, 1)
    assert got.failures[0].name == "b"
    assert tree(tmp_path) == {"a": b"1", "c": b"3"}
    with pytest.raises(AccessError, match="fetching: b is not for you"):
        got.check("fetching")


@pytest.mark.parametrize("size", [10, 3 * PIECE], ids=["small", "large"])
def test_a_full_disk_ends_the_transfer(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    import casstore.transfer.raw.fetch as module

    monkeypatch.setattr(module, "write_all", full)
    bucket = Bucket({f"x{n}": b"z" * size for n in range(200 if size == 10 else 4)})
    with pytest.raises(OutOfSpaceError):
        download(place(bucket), str(tmp_path), threads=2)
    assert os.listdir(tmp_path) == []
    assert len(bucket.reads) < 100


@pytest.mark.parametrize("size", [10, 3 * PIECE], ids=["small", "large"])
def test_a_stop_ends_the_transfer_and_leaves_no_parts(tmp_path: Path, size: int) -> None:
    stopped = threading.Event()

    class Stops(Bucket):
        def read(self, key: str, **options: Any) -> Object:
            stopped.set()
            return super().read(key, **options)

    bucket = Stops({f"x{n}": b"z" * size for n in range(200 if size == 10 else 4)})
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CancelledError):
        download(place(bucket), str(tmp_path), threads=2, stop=stopped.is_set)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == 1 or not any("casstore-raw" in t.name for t in threading.enumerate())


def test_a_stop_ends_an_upload(folder: Path) -> None:
    with pytest.raises(CancelledError):
        upload(place(Bucket()), parse_sources([str(folder)]), stop=lambda: True)


def test_an_error_of_the_listing_ends_the_threads(tmp_path: Path) -> None:
    class Fails(Bucket):
        def list(self, prefix: str, **options: Any) -> Iterator[RemoteInfo]:
            yield from super().list(prefix, **options)
            raise StorageError("the listing broke off")

    with pytest.raises(StorageError, match="broke off"):
        download(place(Fails({"a": b"1"})), str(tmp_path))
    assert not any("casstore-raw" in thread.name for thread in threading.enumerate())


def test_an_interrupt_ends_the_threads_and_leaves_no_parts(tmp_path: Path) -> None:
    class Interrupted(Bucket):
        def list(self, prefix: str, **options: Any) -> Iterator[RemoteInfo]:
            yield from super().list(prefix, **options)
            raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        download(place(Interrupted({f"x{n}": b"z" * (PIECE + 1) for n in range(6)})), str(tmp_path), threads=2)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert not any("casstore-raw" in thread.name for thread in threading.enumerate())
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_object_that_changes_meanwhile_is_a_failure(tmp_path: Path) -> None:
    class Changing(Bucket):
        def read(self, key: str, **options: Any) -> Object:
            self.objects[key] += b"!"
            return super().read(key, **options)

    got = download(place(Changing({"a": b"1"})), str(tmp_path))
    assert isinstance(got.failures[0].error, PreconditionError)
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_while_it_is_read_is_a_failure(folder: Path) -> None:
    class Slow(Bucket):
        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            (folder / "a.txt").write_bytes(b"rewritten")
            return super().put(key, data, condition=condition)

    sent = upload(place(Slow()), parse_sources([str(folder / "a.txt")]))
    assert isinstance(sent.failures[0].error, SourceError)


# --- resume


def test_resume_keeps_what_is_whole(tmp_path: Path) -> None:
    bucket = Bucket({"a": b"1111", "b": b"2222", "c": b"3333"})
    download(place(bucket), str(tmp_path))
    (tmp_path / "a").write_bytes(b"9999")
    (tmp_path / "b").unlink()
    inode = os.stat(tmp_path / "c").st_ino
    bucket.reads.clear()
    got = download(place(bucket), str(tmp_path), resume=True)
    assert (got.files, got.reused, got.transferred) == (3, 1, 8)
    assert sorted(key for key, _ in bucket.reads) == ["a", "b"]
    assert os.stat(tmp_path / "c").st_ino == inode
    assert tree(tmp_path) == bucket.objects


def test_resume_without_digests_goes_by_the_time(tmp_path: Path) -> None:
    class Opaque(Bucket):
        def tag(self, key: str) -> str:
            return f"0x8D{len(self.objects[key])}"

    bucket = Opaque({"a": b"1111", "b": b"2222"})
    download(place(bucket), str(tmp_path))
    os.utime(tmp_path / "b", (1, 1))
    bucket.reads.clear()
    got = download(place(bucket), str(tmp_path), resume=True)
    assert got.reused == 1
    assert [key for key, _ in bucket.reads] == ["b"]


def test_resume_of_a_large_file(tmp_path: Path) -> None:
    bucket = Bucket({"big": b"x" * (PIECE + 1)})
    download(place(bucket), str(tmp_path))
    bucket.reads.clear()
    assert download(place(bucket), str(tmp_path), resume=True).reused == 1
    assert bucket.reads == []


def test_without_resume_everything_is_fetched_again(tmp_path: Path) -> None:
    bucket = Bucket({"a": b"1111"})
    download(place(bucket), str(tmp_path))
    assert download(place(bucket), str(tmp_path)).reused == 0


def test_an_upload_can_go_on_too(folder: Path) -> None:
    bucket = Bucket()
    upload(place(bucket), parse_sources([str(folder)]))
    (folder / "a.txt").write_bytes(b"fir5t")
    bucket.puts.clear()
    sent = upload(place(bucket), parse_sources([str(folder)]), resume=True)
    assert (sent.files, sent.reused) == (3, 2)
    assert bucket.puts == ["data/a.txt"]


# --- sources


def test_links_and_special_files(tmp_path: Path, folder: Path) -> None:
    (folder / "link").symlink_to("a.txt")
    (folder / "folderlink").symlink_to("sub")
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    bucket = Bucket()
    sent = upload(place(bucket), parse_sources([f"{folder}/*"]))
    assert bucket.objects["link"] == b"first"
    assert {line.split(": ")[1] for line in sent.left_out} == {"a symbolic link to a folder", "not a regular file"}
    assert [failure.name for failure in sent.failures] == [str(folder / "broken")]
    bucket = Bucket()
    sent = upload(place(bucket), parse_sources([f"{folder}/*"]), follow=False)
    assert set(bucket.objects) == {"a.txt", "sub/b.bin", "empty"}
    assert len(sent.left_out) == 4


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        parse_sources([str(tmp_path / "nowhere")])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceError, match="does not exist"):
        parse_sources([f"{tmp_path}/file/*"])


@pytest.mark.parametrize("name", [b"back\\slash", b"latin-\xe9"])
def test_a_name_that_could_not_come_back_is_refused(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(b"1")
    (tmp_path / "fine").write_bytes(b"2")
    bucket = Bucket()
    sent = upload(place(bucket), parse_sources([f"{tmp_path}/*"]))
    assert sent.failed == 1
    assert set(bucket.objects) == {"fine"}


# --- deleting


def test_deleting_takes_the_object_and_what_is_below() -> None:
    bucket = Bucket({"run": b"0", "run/": b"", "run/a": b"1", "run/b/c": b"22", "run2": b"3"})
    there = place(bucket, "run")
    doomed = look_before_deleting(there)
    assert (doomed.objects, doomed.size, doomed.stores) == (4, 4, [])
    assert delete_objects(there) == 4
    assert set(bucket.objects) == {"run2"}


def test_deleting_by_a_regex() -> None:
    bucket = Bucket({f"x/{n}": b"" for n in range(2500)} | {"x/keep": b""})
    assert delete_objects(place(bucket, "x"), regex="[0-9]") == 2500
    assert set(bucket.objects) == {"x/keep"}


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("store.json", ""), ("store.json", "packs/00"), ("a/store.json", "a/packs"), ("a/b/store.json", "a")],
)
def test_a_store_is_noticed_wherever_it_lies(key: str, prefix: str) -> None:
    bucket = Bucket({key: b"{}", f"{prefix}/x".lstrip("/"): b""})
    assert look_before_deleting(place(bucket, prefix), regex="x").stores == [key]


def test_a_store_above_a_local_folder_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "store/packs/00").mkdir(parents=True)
    (tmp_path / "store/store.json").write_text("{}")
    with open_place(f"file://{tmp_path}/store/packs/00") as there:
        assert look_before_deleting(there).stores == [f"{tmp_path}/store/store.json"]


def test_a_deletion_can_be_stopped() -> None:
    bucket = Bucket({str(n): b"" for n in range(10)})
    with pytest.raises(CancelledError):
        look_before_deleting(place(bucket), stop=lambda: True)
    with pytest.raises(CancelledError):
        delete_objects(place(bucket), stop=lambda: True)
    assert len(bucket.objects) == 10


# --- access


def test_access_is_tried_and_leaves_nothing(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    for access in ("READ", "WRITE", "DELETE"):
        check_access(url, access)
    assert os.listdir(tmp_path) == []


def test_a_credential_for_an_account_alone_is_not_tried() -> None:
    assert check_credential("azure://account", StorageCredential(access_key="k")) is False


# --- digest and local files


def test_the_digest_stands_for_names_sizes_and_tags(tmp_path: Path) -> None:
    def digest(objects: dict[str, bytes], **options: Any) -> str:
        out = tmp_path / os.urandom(4).hex()
        out.mkdir()
        return download_function(place(Bucket(objects)), str(out), **options).digest

    first = digest({"a": b"1", "b": b"2"})
    assert first == digest({"a": b"1", "b": b"2"}, threads=1)
    assert len({first, digest({"a": b"1", "b": b"3"}), digest({"a": b"1", "c": b"2"}), digest({"a": b"1"})}) == 4
    assert first != digest({"a": b"1", "b": b"2"}, regex="a")


def test_file_urls_are_a_storage_like_any_other(tmp_path: Path, folder: Path) -> None:
    target = tmp_path / "some where"
    target.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    with open_place(f"file://{tmp_path}/some%20where/deep/er") as there:
        upload(there, parse_sources([str(folder)]))
    assert tree(target / "deep/er/data") == tree(folder)
    with open_place(f"file://{target}/deep".replace(" ", "%20")) as there:
        assert download(there, str(out)).files == 3
    assert tree(out / "er/data") == tree(folder)
    with open_place(f"file://{target}/deep/er/data/a.txt".replace(" ", "%20")) as there:
        assert [one.name for one in there.objects()] == ["a.txt"]


def test_memory_is_bounded_by_pieces(tmp_path: Path) -> None:
    # Whatever is listed, no request asks for more than a piece.
    class Counting(Bucket):
        most = 0

        def read(self, key: str, *, length: int | None = None, **options: Any) -> Object:
            assert length is not None
            self.most = max(self.most, length)
            return super().read(key, length=length, **options)

    bucket = Counting({"x": b"1" * (PIECE * 2 + 1), "y": b"2" * 100})
    download(place(bucket), str(tmp_path))
    assert bucket.most == PIECE


def test_a_lying_size_is_a_failure_and_no_file(tmp_path: Path) -> None:
    class Lies(Bucket):
        def info(self, key: str) -> RemoteInfo:
            return RemoteInfo(key, 1 << 40, time.time(), self.tag(key))

    class Short(Lies):
        def read(self, key: str, **options: Any) -> Object:
            raise IntegrityError(f"{key} is too short")

    got = download(place(Short({"x": b"1"})), str(tmp_path), threads=2)
    assert got.failed == 1
    assert os.listdir(tmp_path) == []


def test_something_in_the_way_is_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "link").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    got = download(place(Bucket({"link/x": b"1", "file": b"2"})), str(target))
    assert os.listdir(outside) == []
    assert isinstance(got.failures[0].error, ConflictError)
    assert "link/x" in got.failures[0].error.message
    assert not (target / "file").is_symlink()
    assert (target / "file").read_bytes() == b"2"
