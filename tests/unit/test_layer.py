"""Versions of the changes in an overlay's upper folder: what such a folder says, and what is read of it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.layer import commit_layer, mark_of, read_changes
from casstore.errors import ConflictError, SourceError
from casstore.repo.store import Store

LARGE = 8 << 20


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    source = tmp_path / "in"
    for name in ("a/one", "a/two", "a/deep/three", "b/four", "b/link-1", "c/five"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    os.link(source / "b/link-1", source / "b/link-2")
    (source / "empty").mkdir()
    (source / "large").write_bytes(random.Random(1).randbytes(LARGE))
    with Store.open(MemoryBackend(), create=True) as store:
        found = Bucket(store, name="b", user="u")
        found.upload("ds", [f"{source}/*"])
        yield found


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    path = tmp_path / "upper"
    path.mkdir()
    return path


def paths(bucket: Bucket, name: str = "ds") -> list[str]:
    return [entry.path.decode() for entry in bucket.entries(name)]


BEFORE = ["a", "b", "c", "empty", "large", "a/one", "a/two", "a/deep", "a/deep/three"]
BEFORE += ["b/four", "b/link-1", "b/link-2", "c/five"]


def test_nothing_changed_makes_no_version(bucket: Bucket, upper: Path) -> None:
    result = commit_layer(bucket, bucket.resolve("ds"), bytes(upper))
    assert not result.created
    assert sorted(paths(bucket)) == sorted(BEFORE)


def test_files_are_added_replaced_and_removed(bucket: Bucket, upper: Path) -> None:
    (upper / "a").mkdir()
    (upper / "a/new").write_text("new")
    (upper / "a/one").write_text("changed")
    (upper / "a/.wh.two").touch()
    (upper / "a/.wh.deep").touch()
    (upper / ".wh.c").touch()
    result = commit_layer(bucket, bucket.resolve("ds"), bytes(upper), named=True, description="after")
    gone = {"a/two", "a/deep", "a/deep/three", "c", "c/five"}
    assert result.created and not result.skipped
    assert sorted(paths(bucket)) == sorted({*BEFORE, "a/new"} - gone)
    one = next(entry for entry in bucket.entries("ds") if entry.path == b"a/one")
    assert one.size == len("changed")
    assert result.version.metadata["description"] == "after"


def test_a_folder_that_was_made_anew_has_nothing_from_before(bucket: Bucket, upper: Path) -> None:
    (upper / "a").mkdir()
    (upper / "a/.wh..wh..opq").touch()
    (upper / "a/other").write_text("x")
    commit_layer(bucket, bucket.resolve("ds"), bytes(upper), named=True)
    assert [path for path in paths(bucket) if path.startswith("a")] == ["a", "a/other"]


def test_a_folder_in_place_of_a_file_and_the_other_way_round(bucket: Bucket, upper: Path) -> None:
    (upper / "a").write_text("was a folder")
    (upper / "large").mkdir()
    commit_layer(bucket, bucket.resolve("ds"), bytes(upper), named=True)
    kinds = {entry.path.decode(): entry.kind for entry in bucket.entries("ds")}
    assert (kinds["a"], kinds["large"]) == (1, 2)
    assert not any(path.startswith("a/") for path in kinds)


def test_the_last_file_of_a_folder_leaves_the_folder(bucket: Bucket, upper: Path) -> None:
    (upper / "c").mkdir()
    (upper / "c/.wh.five").touch()
    commit_layer(bucket, bucket.resolve("ds"), bytes(upper), named=True)
    assert "c" in paths(bucket) and "c/five" not in paths(bucket) and "empty" in paths(bucket)


def test_names_of_one_file_stay_so(bucket: Bucket, upper: Path) -> None:
    (upper / "new").write_text("x")
    commit_layer(bucket, bucket.resolve("ds"), bytes(upper))
    links = {entry.path: entry.link for entry in bucket.entries("ds") if entry.link}
    assert set(links) == {b"b/link-1", b"b/link-2"} and len(set(links.values())) == 1


def test_without_names_for_what_is_gone_they_are_files(bucket: Bucket, upper: Path) -> None:
    (upper / ".wh.a").write_text("mine")
    commit_layer(bucket, bucket.resolve("ds"), bytes(upper))
    assert {".wh.a", "a/one"} <= set(paths(bucket))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make the devices that the kernel's overlay uses")
def test_what_the_kernel_writes(bucket: Bucket, upper: Path) -> None:
    os.mknod(upper / "c", 0o600 | 0o020000, 0)
    (upper / "a").mkdir()
    os.setxattr(upper / "a", "trusted.overlay.opaque", b"y")
    changes = read_changes(bytes(upper))
    assert (changes.gone, changes.fresh, changes.files) == ({b"c"}, {b"a"}, 0)
    result = commit_layer(bucket, bucket.resolve("ds"), bytes(upper))
    assert not result.skipped
    assert [path for path in paths(bucket) if path[0] in "ac"] == ["a"]


def test_a_newer_version_is_not_overwritten(bucket: Bucket, upper: Path, tmp_path: Path) -> None:
    base = bucket.resolve("ds")
    other = tmp_path / "other"
    other.write_text("of somebody else")
    bucket.update("ds", add=[str(other)])
    (upper / "new").write_text("new")
    with pytest.raises(ConflictError, match="ds:2 is newer than ds:1"):
        commit_layer(bucket, base, bytes(upper))
    assert bucket.resolve("ds").number == 2
    made = commit_layer(bucket, base, bytes(upper), name="mine")
    assert (made.version.dataset, made.version.number) == ("mine", 1)
    assert commit_layer(bucket, base, bytes(upper), force=True).version.number == 3
    assert "new" in paths(bucket) and "other" not in paths(bucket)


def test_changes_can_be_committed_again_and_again(bucket: Bucket, upper: Path) -> None:
    base = bucket.resolve("ds")
    after = None
    for number in range(2, 5):
        (upper / f"new-{number}").write_text("new")
        after = commit_layer(bucket, base, bytes(upper), after=after).version.number
        assert after == number
    assert {"new-2", "new-3", "new-4"} <= set(paths(bucket))


def bytes_read() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


def test_what_did_not_change_is_not_read(bucket: Bucket, upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    inner = bucket.store.backend.read

    def counting(key: str, offset: int, length: int) -> bytes:
        read.append(length)
        return inner(key, offset, length)

    monkeypatch.setattr(bucket.store.backend, "read", counting)
    (upper / "new").write_bytes(b"x" * 1000)
    before = bytes_read()
    assert commit_layer(bucket, bucket.resolve("ds"), bytes(upper)).created
    assert bytes_read() - before < LARGE // 4, "from this machine's disk"
    assert sum(read) < LARGE // 4, "from the store"


def test_a_time_that_was_set_is_a_change(bucket: Bucket, upper: Path) -> None:
    base = bucket.resolve("ds")
    (upper / "a").mkdir()
    assert not commit_layer(bucket, base, bytes(upper)).created, "a folder's is none"
    (upper / "a/one").write_text("a/one")
    os.utime(upper / "a/one", ns=(0, 10**18))
    made = commit_layer(bucket, base, bytes(upper))
    assert made.created
    assert next(entry.mtime_ns for entry in bucket.entries("ds") if entry.path == b"a/one") == 10**18
    assert not commit_layer(bucket, base, bytes(upper), after=made.version.number).created


def test_a_mark_tells_of_every_change(upper: Path) -> None:
    marks = {mark_of(bytes(upper))}
    (upper / "a").write_text("a")
    marks.add(mark_of(bytes(upper)))
    assert mark_of(bytes(upper)) in marks
    (upper / "a").chmod(0o600)
    marks.add(mark_of(bytes(upper)))
    os.utime(upper / "a", ns=(0, 0))
    marks.add(mark_of(bytes(upper)))
    (upper / "a").rename(upper / "b")
    marks.add(mark_of(bytes(upper)))
    assert len(marks) == 5


def test_a_folder_that_is_gone(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="can't read"):
        commit_layer(bucket, bucket.resolve("ds"), bytes(tmp_path / "no such"))
