"""The commands of mounts, as far as they need no kernel: what they refuse, what is written down, what is decided."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.dataset.pick import find_version
from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore_cli import main
from casstore_cli.mounts import find_registry
from casstore_cli.stores import open_bucket
from casstore_fuse import layers, mounted, session
from casstore_fuse.layers import Layer
from casstore_fuse.records import Record, Registry, started_at
from casstore_fuse.session import Settings, default_limit
from casstore_fuse.state import State
from casstore_fuse.vfs import shown

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0, err: str = "") -> str:
        capsys.readouterr()
        found = main.run(["dataset", *map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        assert err in captured.err
        return captured.out

    return call


@pytest.fixture
def dataset(run: Run, tmp_path: Path) -> Path:
    source = tmp_path / "src"
    source.mkdir()
    (tmp_path / "mnt").mkdir()
    for number in range(3):
        (source / "one.txt").write_text(f"one {number}")
        run("upload", "DS", "src")
    return tmp_path / "mnt"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    found = Registry(str(tmp_path / "run"), str(tmp_path / "state"))
    found.make()
    return found


def record(path: Path, pid: int, clock: int, **more: object) -> Record:
    facts = {
        "bucket": "b",
        "dataset": "ds",
        "version": 3,
        "manifest": "00" * 32,
        "started": "2026-11-21T10:00:00+00:00",
    }
    return Record(path=str(path), pid=pid, clock=clock, log="", **facts, **more)  # type: ignore[arg-type]


def mine(path: Path) -> Record:
    return record(path, os.getpid(), started_at(os.getpid()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("DS",), "name the folder for DS"),
        (("DS", "missing"), "does not exist"),
        (("DS", "src"), "is not empty"),
        (("DS", "src/one.txt"), "is not a folder"),
        (("DS@12", "mnt"), "is no digest"),
        (("DS@" + "0" * 16, "mnt"), "no version of 'DS' has the digest"),
        (("DS:1@" + "0" * 16, "mnt"), "names a tag and a digest"),
        (("DS:9", "mnt"), "no version or tag '9'"),
        (("NO", "mnt"), "NO"),
        (("D S", "mnt"), "does not name a dataset"),
        (("DS", "mnt", "--cache-size", "many"), "'many' is no size"),
        (("DS", "mnt", "--cache-size", "1G", "--no-cache"), "give one of them"),
        (("DS", "mnt", "--prefetch=("), "is not a regular expression"),
    ],
)
def test_what_mount_refuses(run: Run, dataset: Path, arguments: tuple[str, ...], says: str) -> None:
    assert says in run("mount", *arguments, code=2)
    assert find_registry().all() == []


def test_what_is_not_possible_with_a_collection(run: Run, dataset: Path) -> None:
    run("collect", "both", "DS")
    assert "changes are made to one dataset" in run("mount", "both", "mnt", "--writable", code=2)
    assert "it has no digest" in run("mount", "both@0123456789", "mnt", code=2)
    assert "it has no tags" in run("mount", "both:1", "mnt", code=2)


def test_errors_are_json_when_asked_for(run: Run, dataset: Path) -> None:
    told = json.loads(run("mount", "DS:9", "mnt", "-t", "json", code=2))
    assert (told["kind"], told["code"]) == ("not_found", 404)


def test_an_empty_list(run: Run) -> None:
    assert run("mount", "list") == "Nothing is mounted.\n"
    assert json.loads(run("mount", "list", "-t", "json")) == {"mounts": []}


def test_what_umount_and_commit_refuse(run: Run, dataset: Path) -> None:
    assert "nothing of yours is mounted" in run("umount", "mnt", code=2)
    assert "nothing of yours is mounted" in run("umount", "/proc", code=2)
    assert "name one folder" in run("umount", code=2)
    assert "name one folder" in run("umount", "mnt", "--all", code=2)
    assert run("umount", "--all") == ""
    assert "there are no changes" in run("commit", "mnt", code=2)


def kept(folder: Path, *, version: int = 1) -> str:
    """Changes to a version of DS that are kept for a folder; returns where."""
    place = find_registry().layer(str(folder))
    with open_bucket() as bucket:
        manifest = bucket.resolve("DS", str(version)).record.manifest
    layers.prepare(place, Layer(path=str(folder), bucket="default", dataset="DS", version=version, manifest=manifest))
    return place


def test_changes_are_committed_without_a_mount(run: Run, dataset: Path, tmp_path: Path) -> None:
    place = kept(dataset, version=3)
    (Path(place) / "upper/new.txt").write_text("new")
    (tmp_path / "meta.yaml").write_text("quality: {score: 1}\n")
    made = json.loads(run("commit", "mnt", "--tag", "good", "-d", "more", "-m", "meta.yaml", "-t", "json"))
    assert (made["version"], made["created"], made["tags"]) == ("4", True, ["good", "latest"])
    assert run("inspect", "DS:good").split() == ["new.txt", "src/one.txt"]
    run("commit", "mnt", err="Nothing changed")
    (Path(place) / "upper/newer.txt").write_text("new")
    run("commit", "mnt", err="as version 5")
    run("commit", "mnt", "--discard", err="were thrown away")
    assert not os.path.exists(place)


def test_changes_to_an_older_version(run: Run, dataset: Path) -> None:
    place = kept(dataset)
    (Path(place) / "upper/new.txt").write_text("new")
    assert "DS:3 is newer than DS:1" in run("commit", "mnt", code=2)
    run("commit", "mnt", "--name", "OTHER", err="Dataset OTHER has been uploaded to bucket default as version 1")
    assert layers.has_changes(place), "the dataset itself has not got them"
    run("commit", "mnt", "--force", err="as version 4")
    assert not layers.has_changes(place)
    assert "goes alone" in run("commit", "mnt", "--discard", "--force", code=2)


def test_the_changes_of_a_mounted_folder_are_not_thrown_away(run: Run, dataset: Path) -> None:
    kept(dataset)
    registry = find_registry()
    registry.make()
    registry.put(mine(dataset))
    assert "is mounted" in run("commit", "mnt", "--discard", code=2)


def test_changes_belong_to_one_version(tmp_path: Path) -> None:
    folder = str(tmp_path / "layer")
    first = Layer(path="/mnt", bucket="b", dataset="ds", version=1, manifest="01" * 32)
    second = Layer(path="/mnt", bucket="b", dataset="ds", version=2, manifest="02" * 32)
    assert not layers.prepare(folder, first)
    assert not layers.prepare(folder, second), "there were none"
    (tmp_path / "layer/upper/file").write_text("x")
    assert layers.prepare(folder, second), "they are found again"
    with pytest.raises(ConflictError, match="changes to b/ds:2 for /mnt that were not committed"):
        layers.prepare(folder, first)
    assert (tmp_path / "layer/upper/file").exists()


def test_versions_by_digest(run: Run, dataset: Path) -> None:
    with open_bucket() as bucket:
        for number in (1, 2, 3):
            digest = bucket.resolve("DS", str(number)).record.manifest
            assert find_version(bucket, "DS", digest=digest[:12]).number == number
            assert find_version(bucket, "DS", digest=digest).number == number
        assert find_version(bucket, "DS", "2").number == 2
        with pytest.raises(UsageError):
            find_version(bucket, "DS", digest="0123456")
        with pytest.raises(NotFoundError):
            find_version(bucket, "DS", digest="0" * 64)


def test_a_digest_of_two_equal_versions_is_the_newer_one(run: Run, dataset: Path) -> None:
    run("upload", "DS", "src", "--force-new-version")
    with open_bucket() as bucket:
        digest = bucket.resolve("DS").record.manifest
        assert find_version(bucket, "DS", digest=digest[:8]).number == 4


def test_records_are_found_again(registry: Registry, tmp_path: Path) -> None:
    one, two = mine(tmp_path / "one"), mine(tmp_path / "two")
    registry.put(two)
    registry.put(one)
    assert registry.all() == [one, two]
    assert registry.get(one.path) == one and one.alive
    registry.remove(record(tmp_path / "one", 1, 1))
    assert registry.get(one.path) == one, "somebody else's"
    registry.remove(one)
    assert registry.all() == [two]


def test_a_damaged_record_is_none(registry: Registry, tmp_path: Path) -> None:
    registry.put(mine(tmp_path / "one"))
    (file,) = (tmp_path / "run/mounts").glob("*.json")
    file.write_text("{")
    assert registry.all() == []


def test_a_record_of_a_process_that_is_gone_is_cleared(registry: Registry, tmp_path: Path) -> None:
    dead = record(tmp_path / "dead", os.getpid(), 1)  # this process, but it began at another time
    registry.put(dead)
    State.create(registry.page(dead.path, dead.pid)).close()
    registry.put(mine(tmp_path / "alive"))
    assert not dead.alive
    assert registry.clear() == [dead]
    assert [found.path for found in registry.all()] == [str(tmp_path / "alive")]
    assert not os.path.exists(registry.page(dead.path, dead.pid))


def test_a_record_of_processes_that_can_not_be_seen_is_left_alone(run: Run, registry: Registry, tmp_path: Path) -> None:
    elsewhere = record(tmp_path / "elsewhere", os.getpid(), 1, namespace=1)
    registry.put(elsewhere)
    assert elsewhere.alive and registry.clear() == [] and registry.all() == [elsewhere]
    own = find_registry()
    own.make()
    own.put(elsewhere)
    assert json.loads(run("mount", "list", "-t", "json"))["mounts"][0]["state"] == "elsewhere"
    run("umount", elsewhere.path)
    assert own.all() == []


def test_the_page_of_a_mount(registry: Registry, tmp_path: Path) -> None:
    found = mine(tmp_path / "one")
    assert registry.state(found) is None
    page = State.create(registry.page(found.path, found.pid))
    page.count("opened", 3)
    seen = registry.state(found)
    assert seen is not None and seen.get("opened") == 3
    seen.close()
    page.close()


def test_a_list_of_what_is_written_down(run: Run, dataset: Path) -> None:
    registry = find_registry()
    registry.make()
    found = mine(dataset)
    registry.put(found)
    page = State.create(registry.page(found.path, found.pid))
    for name, more in {"reads": 4, "hits": 3, "fetched": 2048, "opened": 7}.items():
        page.count(name, more)
    page.close()
    shape = json.loads(run("mount", "list", "-t", "json"))["mounts"][0]
    assert (shape["hit_rate"], shape["state"], shape["version"], shape["opened"]) == (0.75, "alive", "3", 7)
    assert "75%" in run("mount", "list") and "2.0 KiB" in run("mount", "list")


def test_one_command_at_a_time(registry: Registry) -> None:
    with registry.locked("/mnt"), pytest.raises(ConflictError, match="busy with /mnt"), registry.locked("/mnt"):
        pass
    with registry.locked("/mnt"), registry.locked("/other"):
        pass


def test_a_cache_takes_a_share_of_its_disk(tmp_path: Path) -> None:
    assert 0 < default_limit(str(tmp_path / "not/yet")) <= 20 << 30


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOG_SIZE", 1000)
    handler = session._Log(str(tmp_path / "log"))
    for number in range(200):
        handler.emit(logging.LogRecord("x", logging.ERROR, "", 0, "line %d", (number,), None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000
    assert "line 199" in "".join(path.read_text() for path in tmp_path.iterdir())


def test_paths_in_logs_are_one_line() -> None:
    assert shown(b"a/b \xc3\xa9") == "a/b é"
    assert "\n" not in shown(b"a\nERROR \x1b[2J\xff")


def test_settings_survive_the_command_line() -> None:
    import msgspec

    settings = Settings(path="/m", bucket="b", dataset="d", version=1, manifest="00", runtime="/r", state="/s", limit=5)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


def test_what_is_mounted_here() -> None:
    found = {point.path: point for point in mounted.mounts()}
    assert found["/proc"].kind == "proc"
    assert mounted.at("/proc/self") is None


def test_who_uses_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(user.pid == os.getpid() for user in mounted.users(str(tmp_path)))
    with open(tmp_path / "file", "w", encoding="utf-8"):
        assert any(user.pid == os.getpid() and user.what == "fd" for user in mounted.users(str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert any(user.pid == os.getpid() and user.what == "cwd" for user in mounted.users(str(tmp_path)))
