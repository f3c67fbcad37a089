"""``osmo data``, on local folders: what is told, and what is asked."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore_cli import main, output

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0) -> str:
        capsys.readouterr()
        found = main.run(["data", *map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        call.err = captured.err  # type: ignore[attr-defined]
        return captured.out

    return call


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path}/bucket"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/a.txt").write_text("first")
    (tmp_path / "runs/b.bin").write_text("second!")
    return tmp_path / "runs"


def test_there_and_back(run: Run, bucket: str, runs: Path, tmp_path: Path) -> None:
    told = json.loads(run("upload", f"{bucket}/exp", runs, "-t", "json"))
    assert told == {
        "files": 2, "size": 12, "transferred": 12, "reused": 0, "failed": 0, "failures": [], "left_out": [],
    }  # fmt: skip
    (tmp_path / "here").mkdir()
    run("download", f"{bucket}/exp/runs", "here", "-p", "1", "-T", "2", "-b", "bench")
    assert (tmp_path / "here/one/a.txt").read_text() == "first"
    measured = json.loads((tmp_path / "bench/data-download.json").read_text())
    assert (measured["total_number_of_files"], measured["total_bytes_transferred"]) == (2, 12)
    told = json.loads(run("download", f"{bucket}/exp/runs", "here", "--resume", "-t", "json"))
    assert (told["files"], told["reused"], told["transferred"]) == (2, 2, 0)


def test_the_folder_must_exist_and_the_url_be_sound(run: Run, bucket: str, tmp_path: Path) -> None:
    assert "does not exist" in run("download", bucket, "nowhere", code=2)
    assert "does not exist" in run("upload", bucket, "nowhere", code=2)
    assert "unknown scheme" in run("list", "http://x/y", code=2)
    assert "not a URL" in run("list", "plain/path", code=2)
    (tmp_path / "here").mkdir()
    assert "nothing at" in run("download", f"{bucket}/none", "here", code=2)


def test_a_file_that_fails_is_listed_and_the_exit_code_is_not_0(run: Run, bucket: str, runs: Path) -> None:
    (runs / "broken").symlink_to("nowhere")
    (runs / "folder").symlink_to("one")
    out = run("upload", bucket, runs, code=2)
    assert f"FAILED {runs}/broken" in out
    assert "1 file failed" in out
    assert "left out" in run.err  # type: ignore[attr-defined]
    told = json.loads(run("upload", bucket, runs, "-t", "json", code=2))
    assert (told["files"], told["failed"], told["failures"][0]["kind"]) == (2, 1, "source")


def test_list(run: Run, bucket: str, runs: Path, tmp_path: Path) -> None:
    run("upload", bucket, runs)
    assert run("list", bucket).splitlines()[-1] == "Total 1 objects found"
    lines = run("list", bucket, "-r").splitlines()
    assert [line.split("   ")[-1] for line in lines[:-1]] == ["runs/b.bin", "runs/one/a.txt"]
    assert lines[-1] == "Total 2 objects found"
    assert run("list", bucket, "-r", "-x", r".*\.txt").splitlines()[-1] == "Total 1 objects found"
    assert run("list", bucket, "-r", "-p", "runs/o").splitlines()[-1] == "Total 1 objects found"
    found = json.loads(run("list", bucket, "-r", "-t", "json"))
    assert [one["name"] for one in found] == ["runs/b.bin", "runs/one/a.txt"]
    assert found[0]["url"] == f"{bucket}/runs/b.bin"
    assert json.loads(run("list", bucket, "-t", "json"))[0]["type"] == "folder"
    run("list", bucket, "list.txt", "-r")
    assert (tmp_path / "list.txt").read_text().splitlines() == lines
    assert "exists already" in run("list", bucket, "list.txt", code=2)
    assert "exclude" in run("list", bucket, "other.txt", "--no-pager", code=2)


def test_a_name_can_not_act_on_a_terminal(run: Run, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "bucket/red\x1b[31m\nTotal 9").write_text("")
    assert "\x1b" not in run("list", bucket)
    assert len(run("list", bucket).splitlines()) == 2


def test_delete_does_as_it_is_told_without_a_terminal(run: Run, bucket: str, runs: Path, tmp_path: Path) -> None:
    run("upload", bucket, runs)
    assert "Deleted 1 object" in run("delete", bucket, "-x", ".*bin")
    assert "Deleted 1 object" in run("delete", f"{bucket}/runs")
    assert "nothing to delete" in run("delete", f"{bucket}/runs")
    assert json.loads(run("delete", bucket, "-t", "json"))["deleted"] == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("\n", 2), ("no\n", 2)])
def test_delete_asks_on_a_terminal(
    run: Run, bucket: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    run("upload", bucket, runs)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    asked = Terminal()
    monkeypatch.setattr(sys, "stderr", asked)
    code = main.run(["data", "delete", bucket])
    assert code == (0 if left == 0 else 3)
    assert "Delete 2 objects (12 B)" in asked.getvalue()
    assert len([name for _, _, names in os.walk(tmp_path / "bucket") for name in names]) == left


def test_force_does_not_ask(run: Run, bucket: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("upload", bucket, runs)
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    monkeypatch.setattr(output, "confirm", lambda _: pytest.fail("it asked"))
    run("delete", bucket, "--force")


@pytest.mark.parametrize("below", ["", "/packs", "/datasets"])
def test_a_store_is_not_deleted_by_accident(run: Run, runs: Path, tmp_path: Path, below: str) -> None:
    assert main.run(["dataset", "upload", "precious", str(runs)]) == 0
    store = tmp_path / "store"
    (Path(os.environ["XDG_DATA_HOME"]) / "casstore/store").rename(store)
    before = sorted(store.rglob("*"))
    for where in (f"file://{store}{below}", f"file://{tmp_path}"):
        said = run("delete", where, "-x", ".*", code=2)
        assert "dataset store" in said
        assert "--force" in said
    assert sorted(store.rglob("*")) == before
    assert "Deleted" in run("delete", f"file://{store}{below}", "--force")


def test_check_prints_its_finding_and_succeeds(run: Run, bucket: str, tmp_path: Path) -> None:
    for access in ("read", "WRITE", "DELETE"):
        assert json.loads(run("check", bucket, "-a", access)) == {"status": "pass"}
    assert os.listdir(tmp_path / "bucket") == []
    found = json.loads(run("check", "s3:/wrong"))
    assert found["status"] == "fail"
    assert "no file" in run("check", bucket, "-c", "nowhere.yaml", code=2)
