"""Declaring buckets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore_cli import main

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0) -> str:
        capsys.readouterr()
        found = main.run(["bucket", *map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        return captured.out

    return call


def test_the_default_is_always_there(run: Run, isolated_home: Path) -> None:
    store = f"file://{isolated_home}/.local/share/casstore/store"
    header, _, row = run("list").splitlines()
    assert [cell.strip() for cell in header.split("   ") if cell] == [
        "Bucket", "Description", "Location", "Mode", "Default Cred",
    ]  # fmt: skip
    assert row.split() == ["default", "(default)", store, "read-write", "No"]
    assert "always there" in run("remove", "default", code=2)
    assert not Path(store.removeprefix("file://")).exists()


def test_add_list_remove(run: Run, tmp_path: Path) -> None:
    run("add", "lab", "a folder", "-d", "ours", "--default")
    found = json.loads(run("list", "-t", "json"))
    assert found["default"] == "lab"
    assert found["buckets"]["lab"] == {
        "path": f"file://{tmp_path}/a%20folder",
        "description": "ours",
        "mode": "read-write",
        "default_cred": False,
    }
    assert (tmp_path / "a folder/store.json").exists()
    assert "declared already" in run("add", "lab", "elsewhere", code=2)
    assert not (tmp_path / "elsewhere").exists()
    run("remove", "lab")
    assert json.loads(run("list", "-t", "json"))["default"] == "default"
    assert (tmp_path / "a folder/store.json").exists()
    assert "no bucket" in run("remove", "lab", code=2)


def test_default(run: Run, tmp_path: Path) -> None:
    run("add", "lab", tmp_path / "lab")
    run("default", "lab")
    assert "lab (default)" in run("list")
    run("default", "default")
    assert "default (default)" in run("list")
    assert "no bucket" in run("default", "nope", code=2)


def test_a_store_is_used_again(run: Run, tmp_path: Path) -> None:
    first = run("add", "one", f"file://{tmp_path}/lab")
    run("remove", "one")
    second = run("add", "two", tmp_path / "lab", "--mode", "read-only")
    assert first.split("store ")[1] == second.split("store ")[1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a b", "x"], "name"),
        (["a/b", "x"], "name"),
        (["x", "s3://bucket"], "s3"),
        (["x", "http://host/"], "http"),
        (["x", "memory://x"], "memory"),
        (["x", "file://host/x"], "three slashes"),
        (["x", "file:relative"], "file:///absolute/path"),
        (["x", ""], "neither a URL nor the path"),
        (["x", "missing", "--mode", "read-only"], "does not exist"),
        (["x", "full"], "no store"),
        (["x", "file"], "not a folder"),
    ],
)
def test_what_can_not_be_a_bucket(run: Run, tmp_path: Path, args: list[str], words: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something").write_text("x")
    (tmp_path / "file").write_text("x")
    assert words in run("add", *args, code=2)
    assert list(json.loads(run("list", "-t", "json"))["buckets"]) == ["default"]


def test_a_missing_disk_is_not_an_empty_bucket(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", "lab", tmp_path / "lab")
    (tmp_path / "lab").rename(tmp_path / "unmounted")
    (tmp_path / "file").write_text("x")
    assert main.run(["dataset", "upload", "lab/DS", "file"]) == 2
    assert "is the disk mounted" in capsys.readouterr().out
    assert not (tmp_path / "lab").exists()
