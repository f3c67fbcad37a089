"""Keys that somebody made to be downloaded by somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, ConflictError, FormatError
from casstore.testing.bucket import MemoryBucket as Bucket
from casstore.transfer.raw import Place, download
from casstore.transfer.raw.names import MAX_NAME

ESCAPES = [
    "../escaped",
    "a/../../escaped",
    "..",
    "/absolute",
    "//absolute",
    "a//b",
    "a/./b",
    ".",
    "nul\0byte",
    "back\\slash",
    "..\\escaped",
    "C:\\escaped",
    "n" * 256,
    "d" * 256 + "/x",
    "/".join(["deep"] * (MAX_NAME // 4)),
    "lone-\udfff-\ud800",
]


def place(bucket: Bucket, prefix: str = "") -> Place:
    return Place(bucket, prefix, f"s3://double/{prefix}".rstrip("/"))


def outside(tmp_path: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and "target" not in path.relative_to(tmp_path).parts
    }


@pytest.mark.parametrize("key", ESCAPES, ids=lambda key: ascii(key)[:30])
@pytest.mark.parametrize("size", [1, 9 << 20], ids=["small", "large"])
def test_a_hostile_key_is_refused_by_name_and_the_others_come(tmp_path: Path, key: str, size: int) -> None:
    target = tmp_path / "target"
    target.mkdir()
    prefix = "" if not key.startswith("/") else "run"
    base = f"{prefix}/" if prefix else ""
    bucket = Bucket({base + key: b"x" * size, f"{base}fine": b"1"})
    got = download(place(bucket, prefix), str(target))
    assert (got.files, got.failed) == (1, 1)
    assert isinstance(got.failures[0].error, FormatError)
    assert "the key" in got.failures[0].error.message
    assert got.failures[0].error.message.isprintable()
    assert [name for _, _, names in os.walk(target) for name in names] == ["fine"]
    assert outside(tmp_path) == {}


@pytest.mark.parametrize("keys", [("a", "a/b"), ("a/b/c", "a/b"), ("x", "x/y/z")], ids=["above", "below", "far below"])
@pytest.mark.parametrize("size", [1, 9 << 20], ids=["small", "large"])
def test_a_file_and_a_folder_of_one_name_clash(tmp_path: Path, keys: tuple[str, str], size: int) -> None:
    bucket = Bucket(dict.fromkeys(keys, b"x" * size) | {"fine": b"1"})
    got = download(place(bucket), str(tmp_path))
    assert (got.files, got.failed) == (2, 1)
    failure = got.failures[0]
    assert isinstance(failure.error, ConflictError)
    assert failure.name in keys
    assert failure.name in failure.error.message
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith(".casstore")]


@pytest.mark.parametrize("key", ["link/x", "link/sub/x", "file", "sub/file"])
@pytest.mark.parametrize("resume", [False, True])
def test_links_that_lie_in_the_target_lead_nowhere(tmp_path: Path, key: str, resume: bool) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (away / "file").write_bytes(b"precious")
    target = tmp_path / "target"
    (target / "sub").mkdir(parents=True)
    (target / "link").symlink_to(away)
    (target / "file").symlink_to(away / "file")
    (target / "sub/file").symlink_to("../../away/file")
    download(place(Bucket({key: b"precious"})), str(target), resume=resume)
    assert {path.name for path in away.iterdir()} == {"file"}
    assert (away / "file").read_bytes() == b"precious"


def test_a_pipe_in_the_way_does_not_hold_up_a_resume(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    got = download(place(Bucket({"x": b"1"})), str(tmp_path), resume=True)
    assert got.failed == 0
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_folder_in_the_way_is_a_clash(tmp_path: Path) -> None:
    (tmp_path / "x/y").mkdir(parents=True)
    got = download(place(Bucket({"x": b"1"})), str(tmp_path))
    assert isinstance(got.failures[0].error, ConflictError)


def test_names_that_act_on_a_terminal_are_files_all_the_same(tmp_path: Path) -> None:
    key = "red\x1b[31m\nfile"
    got = download(place(Bucket({key: b"1"})), str(tmp_path))
    assert got.failed == 0
    assert (tmp_path / key).read_bytes() == b"1"


def test_messages_are_one_printable_line(tmp_path: Path) -> None:
    got = download(place(Bucket({"../red\x1b[31m\n" + "x" * 5000: b"1"})), str(tmp_path))
    error: CasstoreError = got.failures[0].error
    assert error.message.isprintable()
    assert len(error.message) < 500
