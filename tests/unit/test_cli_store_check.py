"""The commands that look after a store: what they print, in text and JSON, and how they end."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.testing.servers.s3 import moto_s3
from casstore_cli import main

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in tmp_path; returns standard output. ``code`` is the exit code that is expected."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0, err: str = "", answer: str | None = None) -> str:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("" if answer is None else answer + "\n"))
        found = main.run([*map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        assert err in captured.err
        return captured.out

    return call


@pytest.fixture
def store(run: Run, tmp_path: Path, isolated_home: Path) -> Path:
    """A store with two versions of ``robots`` and one of ``other``; returns its folder."""
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "a.bin").write_bytes(os.urandom(150_000))
    (source / "sub/b.txt").write_text("text " * 800)
    run("dataset", "upload", "robots", "src")
    (source / "c.txt").write_text("more " * 800)
    run("dataset", "upload", "robots", "src")
    run("dataset", "upload", "other", "src/sub")
    return isolated_home / ".local/share/casstore/store"


def largest(store: Path) -> Path:
    return max((path for path in (store / "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def spoil(path: Path, at: int = 5000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_store_without_damage(run: Run, store: Path) -> None:
    assert run("store", "check").endswith("no problems.\n")
    found = json.loads(run("store", "check", "-t", "json"))
    assert found["clean"] is True
    assert found["losses"] == found["problems"] == []
    assert 0 < found["read"]["share"] < 1  # the nodes of trees are read
    assert json.loads(run("store", "check", "--read-data", "-t", "json"))["read"]["share"] == 1
    assert "all" in run("store", "check", "--read-data=100%")
    sample = json.loads(run("store", "check", "--read-data=10", "--seed", 5, "-t", "json"))
    assert sample["read"]["seed"] == 5
    assert sample == json.loads(run("store", "check", "--read-data=10%", "--seed=5", "-t", "json"))
    for wrong in ("0", "101", "x", "-1%"):
        run("store", "check", f"--read-data={wrong}", code=2)
    assert "there is no dataset" in run("store", "check", "--dataset", "robots", "nope", code=2)


def test_damaged_data_is_told_by_version_and_file(run: Run, store: Path) -> None:
    spoil(largest(store))
    assert run("store", "check").endswith("no problems.\n")  # which reads no data
    text = run("store", "check", "--read-data", code=2)
    assert "robots:1: 1 file damaged: src/a.bin\n" in text
    assert "robots:2: 1 file damaged: src/a.bin\n" in text
    assert "other" not in text
    found = json.loads(run("store", "check", "--read-data", "-t", "json", code=2))
    assert [(loss["dataset"], loss["version"], loss["paths"]) for loss in found["losses"]] == [
        ("robots", "1", ["src/a.bin"]),
        ("robots", "2", ["src/a.bin"]),
    ]
    assert "robots:1" in run("store", "check", "--read-data", "--dataset", "robots", code=2)
    run("store", "check", "--read-data", "--dataset", "other")
    assert "robots:2" in run("store", "check", "--read-data", "-d", "robots", "other", code=2)
    run("dataset", "collect", "all", "other", "robots:2")
    assert "robots:2" in run("store", "check", "--read-data", "-d", "all", code=2)


def test_a_pack_that_is_gone_is_told_without_reading_data(run: Run, store: Path) -> None:
    largest(store).unlink()
    text = run("store", "check", code=2)
    assert "the pack is missing" in text
    assert "robots:1: 2 files damaged: src/a.bin, src/sub/b.txt\n" in text
    assert "other:1: 1 file damaged: sub/b.txt\n" in text


def test_repair_shows_a_plan_asks_and_keeps_the_originals(run: Run, store: Path) -> None:
    pack = largest(store)
    spoil(pack)
    before = pack.read_bytes()
    plan = run("store", "repair", "--dry-run", code=2)
    assert "whole chunks" in plan
    assert "Nothing was changed." in plan
    assert "Nothing was changed." in run("store", "repair", answer="no", code=2, err="Shall this be done? [y/N]")
    assert "--yes" in run("store", "repair", code=2)
    assert pack.read_bytes() == before
    assert "1 file damaged: src/a.bin" in run("store", "repair", answer="yes", code=2)
    assert not pack.exists()
    (kept,) = (path for path in (store / "quarantine").rglob(pack.name) if path.is_file())
    assert kept.read_bytes() == before
    assert "nothing to repair" in run("store", "repair", code=2)
    # The data is still missing: it comes back from where it was uploaded from.
    assert "missing chunks found" in run("store", "repair", "--from", "src", "--yes")
    assert "no problems" in run("store", "check", "--read-data")
    assert "quarantine" in run("store", "check", "-t", "json")
    assert run("store", "repair", "--discard-quarantine", answer="n").startswith("0 originals")
    assert kept.exists()
    removed = json.loads(run("store", "repair", "--discard-quarantine", "--yes", "-t", "json"))
    assert removed["removed"] > 0
    assert not kept.exists()


def test_repair_in_json(run: Run, store: Path) -> None:
    found = json.loads(run("store", "repair", "-t", "json"))
    assert (found["plan"], found["done"], found["losses"], found["kept"]) == ([], None, [], 0)
    for path in (store / "index").iterdir():
        path.unlink()
    assert [
        step["action"] for step in json.loads(run("store", "repair", "--dry-run", "-t", "json", code=2))["plan"]
    ] == ["index"]
    found = json.loads(run("store", "repair", "--yes", "-t", "json"))
    assert found["failed"] == []
    assert found["done"]
    run("store", "check", "--read-data")


def test_salvage_makes_a_version_of_what_is_left(run: Run, store: Path) -> None:
    spoil(largest(store))
    out = run("store", "repair", "--salvage", "--yes", code=2)
    assert "robots:1: version 3 has what is left of it, 1 file left out" in out
    assert "src/sub/b.txt" in run("dataset", "inspect", "robots:3", "--format-type", "json")
    assert "a.bin" not in run("dataset", "inspect", "robots:4")
    run("dataset", "verify", "robots:4")
    run("dataset", "verify", "robots:2", code=2)


def test_a_damaged_description_is_made_anew_first(run: Run, store: Path) -> None:
    spoil(store / "store.json", 3)
    assert run("store", "check", code=2)
    run("store", "repair", "--dry-run", code=2, err="store.json")
    run("store", "repair", answer="no", code=2)
    assert "nothing to repair" in run("store", "repair", "--yes")
    assert "no problems" in run("store", "check", "--read-data")


def test_a_read_only_bucket_is_not_repaired(run: Run, store: Path) -> None:
    run("bucket", "add", "ro", store, "--mode", "read-only")
    spoil(largest(store))
    run("store", "check", "-b", "ro", "--read-data", code=2)
    run("store", "repair", "-b", "ro", "--dry-run", code=2)
    assert "read-only" in run("store", "repair", "-b", "ro", "--yes", code=2)


def test_info(run: Run, store: Path) -> None:
    text = run("store", "info")
    assert "2 datasets, 0 collections, 3 versions" in text
    found = json.loads(run("store", "info", "-t", "json"))
    assert found["versions"] == 3
    assert found["logical_size"] == 2 * 154_000 + 4_000 + 4_000
    assert found["ratio"] > 1.5
    assert found["total"]["count"] == sum(one["count"] for one in found["objects"].values())
    assert found["total"]["size"] == sum(
        path.stat().st_size
        for path in store.rglob("*")
        if path.is_file() and not path.relative_to(store).parts[0].startswith(".")
    )
    assert found["running"] == 0


@pytest.mark.slow
def test_a_store_in_object_storage(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = server.bucket()
        client = server.boto3()
        run("bucket", "add", "far", f"s3://{bucket}/here", "--default")
        source = tmp_path / "src"
        source.mkdir()
        (source / "a.bin").write_bytes(os.urandom(300_000))
        (source / "b.txt").write_text("text " * 800)
        run("dataset", "upload", "robots", "src")
        keys = {one["Key"]: one["Size"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]}
        assert json.loads(run("store", "info", "-t", "json"))["total"] == {
            "count": len(keys),
            "size": sum(keys.values()),
        }
        assert "no problems" in run("store", "check", "--read-data")
        (pack, *_) = sorted(keys, key=lambda key: -keys[key])
        data = bytearray(client.get_object(Bucket=bucket, Key=pack)["Body"].read())
        data[4000] ^= 1
        client.put_object(Bucket=bucket, Key=pack, Body=bytes(data))
        for key in keys:
            if "/index/" in key:
                client.delete_object(Bucket=bucket, Key=key)
        assert "robots:1: 1 file damaged: src/a.bin" in run("store", "check", "--read-data", code=2)
        assert "robots:1: 1 file damaged" in run("store", "repair", "--yes", "--salvage", code=2)
        run("dataset", "verify", "robots:2")
        assert "missing chunks found" in run("store", "repair", "--yes", "--from", "src")
        assert "no problems" in run("store", "check", "--read-data")
        run("store", "repair", "--discard-quarantine", "--yes")
        left = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
        assert not any("quarantine" in key for key in left)
        client.close()
