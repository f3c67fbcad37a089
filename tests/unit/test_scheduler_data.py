"""What workflows do with folders, datasets, credentials and references to earlier workflows."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import AccessError, CancelledError, NotFoundError, SourceError, SpecError, UsageError
from casstore.repo.store import Store
from casstore_orchestrator import transfers
from casstore_orchestrator.credentials import check_credentials, secret_values, task_credentials
from casstore_orchestrator.data import BucketData
from casstore_orchestrator.folders import (
    confined,
    copy_tree,
    is_empty,
    listing,
    local_path,
    read_small,
    remove_tree,
    size_text,
)
from casstore_orchestrator.homes import Homes, tree_checksum
from casstore_orchestrator.spec import Checkpoint, GroupSpec, TaskSpec, UrlInput, WorkflowSpec
from casstore_orchestrator.transfers import Stop, repeat
from casstore_orchestrator.validation import check_urls


def fill(folder: Path) -> None:
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.bin").write_bytes(os.urandom(200_000))
    (folder / "sub" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "sub" / "deep" / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("/nowhere/else")
    Path(os.fsdecode(bytes(folder) + b"/\xff")).write_text("not utf-8")


# --- folders


def test_a_copy_is_like_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    fill(source)
    os.utime(source / "a.txt", ns=(10**18, 10**18))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        result = copy_tree(source, target)
    assert (result.files, result.skipped) == (5, 1)
    assert tree_checksum(target, Stop()) == tree_checksum(source, Stop())
    assert (target / "a.txt").stat().st_mtime_ns == 10**18
    assert os.readlink(target / "link") == "/nowhere/else"
    assert not (target / "socket").exists()


def test_a_copy_with_a_regex_makes_only_the_folders_it_needs(tmp_path: Path) -> None:
    fill(tmp_path / "source")
    result = copy_tree(tmp_path / "source", tmp_path / "target", regex=r"sub/.*\.sh")
    assert result.files == 1
    found = [str(path.relative_to(tmp_path / "target")) for path in sorted((tmp_path / "target").rglob("*"))]
    assert found == ["sub", "sub/deep", "sub/deep/run.sh"]


def test_a_copy_can_be_stopped_and_never_overwrites_by_itself(tmp_path: Path) -> None:
    fill(tmp_path / "source")
    with pytest.raises(CancelledError):
        copy_tree(tmp_path / "source", tmp_path / "target", stop=lambda: True)
    copy_tree(tmp_path / "source", tmp_path / "target")
    with pytest.raises(FileExistsError):
        copy_tree(tmp_path / "source", tmp_path / "target")
    copy_tree(tmp_path / "source", tmp_path / "target", replace=True)


def test_a_copy_without_shared_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("casstore_orchestrator.folders.fcntl.ioctl", refuse)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    fill(tmp_path / "source")
    copy_tree(tmp_path / "source", tmp_path / "target")
    assert tree_checksum(tmp_path / "target", Stop()) == tree_checksum(tmp_path / "source", Stop())


@pytest.mark.parametrize("change", ["content", "mode", "name", "link", "more"])
def test_the_checksum_of_a_tree_sees_every_change(tmp_path: Path, change: str) -> None:
    fill(tmp_path / "a")
    before = tree_checksum(tmp_path / "a", Stop())[0]
    if change == "content":
        (tmp_path / "a" / "a.txt").write_text("b")
    elif change == "mode":
        (tmp_path / "a" / "a.txt").chmod(0o700)
    elif change == "name":
        (tmp_path / "a" / "a.txt").rename(tmp_path / "a" / "c.txt")
    elif change == "link":
        (tmp_path / "a" / "link").unlink()
        (tmp_path / "a" / "link").symlink_to("/nowhere/at all")
    else:
        (tmp_path / "a" / "more").mkdir()
    assert tree_checksum(tmp_path / "a", Stop())[0] != before


@pytest.mark.parametrize("path", ["..", "sub/../..", "link", "link/x", "absent", "a.txt/x", "sub/absent", "\0"])
def test_paths_that_leave_the_folder_or_lead_nowhere(tmp_path: Path, path: str) -> None:
    fill(tmp_path / "out")
    with pytest.raises(SourceError):
        confined(tmp_path / "out", path)


@pytest.mark.parametrize("path", ["", ".", "sub", "sub/", "./sub//deep", "/sub", "a.txt"])
def test_paths_that_stay(tmp_path: Path, path: str) -> None:
    fill(tmp_path / "out")
    assert confined(tmp_path / "out", path).is_relative_to(tmp_path / "out")


def test_read_small(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    assert read_small(tmp_path / "out/a.txt", 1) == b"a"
    os.mkfifo(tmp_path / "out/pipe")
    for name in ("sub/b.bin", "link", "sub", "pipe", "absent"):
        with pytest.raises(SourceError):
            read_small(tmp_path / "out" / name, 100)


def test_a_listing_is_short(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    lines = listing(tmp_path / "out")
    assert lines[:2] == ["a.txt (1 B)", "empty/"]
    assert "  deep/" in lines
    assert not any("run.sh" in line for line in lines)
    for number in range(30):
        (tmp_path / "out" / f"file-{number}").touch()
    assert len(listing(tmp_path / "out")) == 21
    assert listing(tmp_path / "out")[-1] == "..."
    assert listing(tmp_path / "absent") == []


def test_remove_whatever_a_task_did(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out/sub/deep").chmod(0)
    (tmp_path / "out/sub").chmod(0)
    remove_tree(tmp_path / "out")
    remove_tree(tmp_path / "out")
    assert is_empty(tmp_path / "out")
    keep = tmp_path / "keep"
    keep.mkdir()
    (tmp_path / "out").symlink_to(keep)
    remove_tree(tmp_path / "out")
    assert keep.is_dir()


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


def test_local_path() -> None:
    assert local_path("file:///a/../b") == Path("/b")
    assert local_path("file://localhost/b") == Path("/b")
    for url in ("s3://a/b", "file://host/b", "/b", "FILE:///b"):
        assert local_path(url) is None


@pytest.mark.parametrize("name", ["..", "a/b", "", "-a", "a\n", "_logs"])
def test_names_never_become_paths(tmp_path: Path, name: str) -> None:
    homes = Homes(tmp_path)
    with pytest.raises(ValueError, match="not a name"):
        homes.attempt("wf-1", name, 0)
    with pytest.raises(ValueError, match="not a name"):
        homes.kept_output(name, "a")


# --- trying again


def test_repeat_gives_up_on_what_a_new_try_can_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "FIRST_PAUSE", 0.0)
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise (UsageError("wrong") if len(calls) == 2 else OSError("flaky"))

    with pytest.raises(UsageError):
        repeat(work, "Work", say=lambda _: None, stop=Stop())
    assert len(calls) == 2
    calls.clear()
    stop = Stop()
    stop.set("enough")
    with pytest.raises(CancelledError, match="enough"):
        repeat(work, "Work", say=lambda _: None, stop=stop)
    assert calls == []


# --- datasets


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    backend = open_backend(f"file://{tmp_path / 'store'}", create=True)
    return Bucket(Store.open(backend, create=True), name="main", user="tester")


@pytest.fixture
def data(bucket: Bucket) -> BucketData:
    def open_bucket(name: str | None, user: str) -> Bucket:
        if name not in (None, "main"):
            msg = f"there is no bucket {name}"
            raise NotFoundError(msg)
        return bucket

    return BucketData(open_bucket)


NOTHING: dict[str, Any] = {"metadata": {}, "labels": {}, "origin": {}, "provenance": {}}


def publish(data: BucketData, folder: Path, ref: str = "made", **options: Any) -> Any:
    settings = {**NOTHING, "regex": None, "stop": lambda: False, **options}
    return data.publish(ref, "tester", [f"{folder}/*"], **settings)


def test_publish_tags_and_says_where_it_came_from(data: BucketData, bucket: Bucket, tmp_path: Path) -> None:
    fill(tmp_path / "out")
    made = publish(
        data, tmp_path / "out", "made:best", origin={"default": {"wfid": "wf-1"}}, metadata={"score": 1},
        labels={"robot": "x"}, provenance={"task": "a"},
    )  # fmt: skip
    assert (made.version.ref, made.created) == ("main/made:1", True)
    version = bucket.resolve("made", "best")
    assert version.metadata == {"default": {"wfid": "wf-1"}, "score": 1}
    assert version.record.provenance == {"task": "a"}
    same = publish(data, tmp_path / "out", origin={"default": {"wfid": "wf-2"}})
    assert (same.version.ref, same.created) == ("main/made:1", False)
    assert same.version.checksum == made.version.checksum
    (tmp_path / "out" / "a.txt").write_text("other")
    assert publish(data, tmp_path / "out").version.ref == "main/made:2"


def test_download_of_a_fixed_version(data: BucketData, tmp_path: Path) -> None:
    fill(tmp_path / "out")
    publish(data, tmp_path / "out")
    (version,) = data.resolve("main/made", "tester")
    (tmp_path / "out" / "new").touch()
    publish(data, tmp_path / "out")
    target = tmp_path / "in"
    target.mkdir()
    for _ in range(2):  # again after one that succeeded, as after one that failed
        moved = data.download(version, "tester", target, regex=None, stop=lambda: False)
        assert moved.files == 4
    assert not (target / "made" / "new").exists()
    assert os.readlink(target / "made" / "link") == "/nowhere/else"


def test_update_adds_to_what_the_reference_names(data: BucketData, tmp_path: Path) -> None:
    fill(tmp_path / "out")
    publish(data, tmp_path / "out", "made:base")
    (tmp_path / "with:colon").write_text("x")
    addition = str(tmp_path / "with:colon").replace(":", "\\:") + ":added"
    made = data.update("made:base", "tester", [addition], stop=lambda: False, **NOTHING)
    assert made.version.ref == "main/made:2"
    assert made.version.files == 5


def test_tasks_that_update_at_the_same_time_all_have_their_effect(data: BucketData, tmp_path: Path) -> None:
    fill(tmp_path / "out")
    publish(data, tmp_path / "out")
    names = [f"new{number}" for number in range(4)]
    for name in names:
        (tmp_path / name).write_text(name)

    def update(name: str) -> int:
        return data.update("made", "tester", [str(tmp_path / name)], stop=lambda: False, **NOTHING).version.number

    with ThreadPoolExecutor(len(names)) as pool:
        assert sorted(pool.map(update, names)) == [2, 3, 4, 5]
    (version,) = data.resolve("made", "tester")
    assert version.files == 4 + len(names)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_transfers_can_be_stopped(data: BucketData, bucket: Bucket, tmp_path: Path, direction: str) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out" / "large").write_bytes(os.urandom(8 << 20))
    target = tmp_path / "in"
    target.mkdir()
    if direction == "up":
        with pytest.raises(CancelledError):
            publish(data, tmp_path / "out", stop=lambda: True)
        with pytest.raises(NotFoundError):
            bucket.resolve("made")
        return
    publish(data, tmp_path / "out")
    (version,) = data.resolve("made", "tester")
    with pytest.raises(CancelledError):
        data.download(version, "tester", target, regex=None, stop=lambda: True)
    assert not (target / "made").exists()


@pytest.mark.parametrize("ref", ["absent", "other/made", "made:absent"])
def test_references_that_name_nothing(data: BucketData, tmp_path: Path, ref: str) -> None:
    fill(tmp_path / "out")
    publish(data, tmp_path / "out")
    with pytest.raises(NotFoundError):
        data.resolve(ref, "tester")


@pytest.mark.parametrize("ref", ["../x", "a/b/c", "a b", ""])
def test_references_that_are_none(data: BucketData, ref: str) -> None:
    with pytest.raises(UsageError):
        data.resolve(ref, "tester")


# --- credentials and what is refused


class Keys:
    def lookup(self, user: str, name: str) -> Mapping[str, str] | None:
        return {"token": "s3cret", "user": "me"} if (user, name) == ("tester", "hub") else None


def spec(**fields: Any) -> WorkflowSpec:
    task = TaskSpec(name="a", lead=True, command=("x",), **fields)
    return WorkflowSpec(name="w", groups=(GroupSpec(name="g", tasks=(task,)),))


def test_credentials_as_variables_and_as_files() -> None:
    variables = spec(credentials={"hub": {"HF_TOKEN": "token"}})
    assert task_credentials(variables.task("a"), "tester", Keys()) == ({"HF_TOKEN": "s3cret"}, ())
    _, files = task_credentials(spec(credentials={"hub": "/run/keys/"}).task("a"), "tester", Keys())
    assert [(file.path, file.data, file.mode) for file in files] == [
        ("/run/keys/token", b"s3cret", 0o600),
        ("/run/keys/user", b"me", 0o600),
    ]
    assert set(secret_values(variables, "tester", Keys())) == {"s3cret", "me"}


@pytest.mark.parametrize(
    ("user", "wanted"),
    [("tester", {"other": "/x"}), ("somebody", {"hub": "/x"}), ("tester", {"hub": {"A": "absent"}})],
)
def test_credentials_that_are_missing(user: str, wanted: dict[str, Any]) -> None:
    with pytest.raises(AccessError) as caught:
        check_credentials(spec(credentials=wanted), user, Keys())
    assert "s3cret" not in caught.value.message + (caught.value.hint or "")


def test_what_a_server_for_others_refuses() -> None:
    check_urls(spec(inputs=(UrlInput(url="file:///data"),)), file_urls=True)
    with pytest.raises(SpecError):
        check_urls(spec(inputs=(UrlInput(url="file:///data"),)), file_urls=False)
    with pytest.raises(SpecError, match="checkpoint"):
        check_urls(spec(checkpoint=(Checkpoint(path="/x", url="s3://b/x", frequency=5),)), file_urls=True)


def test_a_store_that_fails_hides_no_other_secret() -> None:
    class Broken:
        def lookup(self, user: str, name: str) -> Mapping[str, str] | None:
            if name == "broken":
                raise AccessError("others can read it")
            return {"k": "s3cret"}

    wanted = spec(credentials={"broken": {"A": "k"}, "hub": {"B": "k"}})
    assert set(secret_values(wanted, "tester", Broken())) == {"s3cret"}
    with pytest.raises(AccessError, match="others can read it"):
        check_credentials(wanted, "tester", Broken())


@pytest.mark.parametrize(
    "wanted",
    [{"hub": "/keys", "hub2": "/keys/"}, {"hub": {"A": "token"}, "hub2": {"A": "user"}}],
    ids=["files", "variables"],
)
def test_two_credentials_do_not_overwrite_each_other(wanted: dict[str, Any]) -> None:
    class Two:
        def lookup(self, user: str, name: str) -> Mapping[str, str] | None:
            return {"token": name, "user": "me"}

    with pytest.raises(AccessError, match="two credentials would both be the"):
        check_credentials(spec(credentials=wanted), "tester", Two())
    both = spec(credentials={"hub": {"A": "token"}, "hub2": {"B": "token"}})  # OSMO 6.2 mixed these up
    assert task_credentials(both.task("a"), "tester", Two())[0] == {"A": "hub", "B": "hub2"}
