"""Checkpoints: what of a folder is stored, when, and what happens to files that are being written."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import SourceError, StorageError, UsageError
from casstore_orchestrator import checkpoints as module
from casstore_orchestrator import transfers
from casstore_orchestrator.checkpoints import Checkpoints
from casstore_orchestrator.executors.places import plain_place, sandbox_place
from casstore_orchestrator.provenance import Producer
from casstore_orchestrator.spec import Checkpoint
from casstore_orchestrator.testing import FakeData
from casstore_orchestrator.transfers import Stop

OLD = 1_600_000_000


class Task:
    """A task with one checkpoint, and what its log heard."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.folder = tmp_path / "task" / "ck"
        self.folder.mkdir(parents=True)
        self.lines: list[str] = []
        self.said = threading.Condition()
        self.data = FakeData()
        options = {"path": "/ck", "frequency": 3600.0, "dataset": "ck", **options}
        producer = Producer(
            workflow_id="w-1",
            workflow_uuid="0f",
            group="g",
            task="t",
            retry_id=0,
            user="u",
            image="",
            command=("x",),
            exit_code=None,
            inputs=(),
        )
        self.producer = producer
        self.checkpoints = Checkpoints(
            items=(Checkpoint(**options),),
            folder=tmp_path / "copies",
            place=lambda path: (tmp_path / "task", path.lstrip("/")),
            producer=producer,
            data=self.data,
            urls=None,
            file_urls=True,
            say=self.say,
        )

    def say(self, line: str) -> None:
        with self.said:
            self.lines.append(line)
            self.said.notify_all()

    def heard(self, text: str, times: int = 1) -> None:
        with self.said:
            assert self.said.wait_for(lambda: sum(text in line for line in self.lines) >= times, 30), self.lines

    def write(self, name: str, text: str, *, at: float = OLD) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (at, at))
        return path

    def take(self, *, last: bool = False) -> None:
        self.checkpoints._take(0, self.checkpoints.items[0], Stop(), last=last)

    @property
    def versions(self) -> list[dict[str, str]]:
        return self.data.versions.get("ck", [])


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


def test_versions_follow_what_changes(task: Task) -> None:
    task.take()
    assert task.versions == []
    task.write("a.pt", "one")
    task.write("deep/b.pt", "two")
    task.take()
    task.take()
    task.write("a.pt", "other")
    task.take()
    assert task.versions == [{"a.pt": "one", "deep/b.pt": "two"}, {"a.pt": "other", "deep/b.pt": "two"}]
    assert task.lines[0] == "Checkpointing data from /ck to dataset ck..."
    assert task.lines[1] == "Checkpointing data from /ck to default/ck:1 finished: 2 files, 6 B"
    assert len(task.lines) == 4


def test_the_last_one_says_that_there_was_nothing_to_do(task: Task) -> None:
    task.checkpoints.last(Stop(), task.producer)
    assert task.lines == ["Checkpoint of /ck: there is nothing in it"]
    task.write("a", "one")
    task.take()
    task.take(last=True)
    assert task.lines[-1] == "Checkpoint of /ck: nothing has changed since the last one"


def test_only_what_matches_is_taken(tmp_path: Path) -> None:
    task = Task(tmp_path, regex=r".*\.pt$")
    task.write("a.pt", "one")
    task.write("a.log", "no")
    task.take()
    assert task.versions == [{"a.pt": "one"}]


def test_a_file_that_was_written_just_now_may_be_written_still(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setattr(module, "_SETTLED_NS", 3600 * 10**9)
    task.write("done.pt", "old")
    task.write("now.pt", "half", at=time.time())
    task.take()
    assert task.versions == [{"done.pt": "old"}]
    assert "  now.pt changes while it is read: its last whole copy, if any, is taken" in task.lines
    task.take(last=True)
    assert task.versions[-1] == {"done.pt": "old", "now.pt": "half"}


def test_the_last_whole_copy_stands_for_a_file_that_is_written(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    path = task.write("model.pt", "whole")
    task.write("epoch", "1")
    task.take()
    task.write("epoch", "2")
    task.write("model.pt", "whole and more")
    real = module.copy_bytes

    def growing(reader: int, writer: int, stop: Any) -> None:
        real(reader, writer, stop)
        if os.fstat(reader).st_ino == path.stat().st_ino:
            with path.open("a") as file:
                file.write(".")

    monkeypatch.setattr(module, "copy_bytes", growing)
    task.take()
    assert task.versions[-1] == {"model.pt": "whole", "epoch": "2"}
    monkeypatch.setattr(module, "copy_bytes", real)
    task.take(last=True)
    assert task.versions[-1]["model.pt"].startswith("whole and more.")


def test_nobody_follows_links_out_of_the_folder(task: Task, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("hidden")
    (task.folder / "link").symlink_to(tmp_path / "secret")
    task.write("a", "one")
    task.take()
    copies = tmp_path / "copies" / "0" / "a"
    assert os.readlink(copies / "link") == str(tmp_path / "secret")
    task.folder.rename(tmp_path / "elsewhere")
    task.folder.symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="is a link"):
        task.take()


def test_pipes_and_devices_are_left_out(task: Task) -> None:
    os.mkfifo(task.folder / "pipe")
    task.write("a", "one")
    task.take()
    assert task.versions == [{"a": "one"}]


def test_one_file_can_be_named(tmp_path: Path) -> None:
    task = Task(tmp_path, path="/ck/model.pt")
    task.write("model.pt", "one")
    task.write("other", "two")
    task.take()
    assert task.versions == [{"model.pt": "one"}]


def test_a_url_of_this_machine(tmp_path: Path) -> None:
    target = tmp_path / "target"
    task = Task(tmp_path, dataset=None, url=f"file://{target}")
    task.write("a", "one")
    task.take()
    task.write("a", "other")
    task.take()
    assert (target / "a").read_text() == "other"
    assert os.listdir(target) == ["a"]


def test_the_loop_goes_on_after_a_failure_and_ends_with_the_command(tmp_path: Path) -> None:
    task = Task(tmp_path, frequency=0.01)
    task.data.failures = 2
    task.write("a", "one")
    task.checkpoints.start()
    task.heard("The checkpoint of /ck failed: the storage fails. The next one is in 0.01 s", times=2)
    task.heard("finished")
    task.checkpoints.stop()
    assert task.versions == [{"a": "one"}]
    assert task.checkpoints.threads == []


def test_the_last_one_is_tried_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "FIRST_PAUSE", 0.0)
    task.write("a", "one")
    task.data.failures = 2
    task.checkpoints.last(Stop(), task.producer)
    assert task.versions == [{"a": "one"}]
    task.write("a", "two")
    task.data.failures = 9
    with pytest.raises(StorageError):
        task.checkpoints.last(Stop(), task.producer)


def test_the_command_s_end_interrupts_what_is_being_stored(tmp_path: Path) -> None:
    task = Task(tmp_path, frequency=0.01)
    task.data.hold = threading.Event()
    task.write("a", "one")
    task.checkpoints.start()
    task.heard("Checkpointing data from")
    task.data.hold = None
    task.checkpoints.stop()


def test_where_a_task_s_folders_lie(tmp_path: Path) -> None:
    home = tmp_path.resolve()
    (home / "layers" / "opt.upper").mkdir(parents=True)
    for path, base, rest in [
        ("/osmo/data/output/ck", "data", "output/ck"),
        ("/osmo/run/workspace", "run/workspace", ""),
        ("/tmp/ck", "tmp", "ck"),
        ("/tmpfoo", "root", "tmpfoo"),
        ("/opt/ck/../a", "layers/opt.upper", "a"),
        ("/../../root/ck", "root", "root/ck"),
    ]:
        assert sandbox_place(home, path) == (home / base, rest)
    assert plain_place(home, f"{home}/data/output/ck") == (home / "data", "output/ck")
    assert plain_place(home, "/srv/ck") == (Path("/"), "srv/ck")


class Uploads:
    """Object storage that keeps what was uploaded."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bool, dict[str, str]]] = []

    def upload(self, url: str, user: str, source: Path, *, again: bool, **_options: Any) -> None:
        self.calls.append((url, user, again, {path.name: path.read_text() for path in source.iterdir()}))


def test_object_storage_gets_the_copy_and_keeps_what_it_has(tmp_path: Path) -> None:
    task = Task(tmp_path, dataset=None, url="s3://bucket/run")
    uploads = Uploads()
    task.checkpoints.urls = uploads  # type: ignore[assignment]  # uploads only
    task.write("a", "one")
    task.take()
    task.take()
    task.write("a", "two")
    task.take(last=True)
    assert uploads.calls == [
        ("s3://bucket/run", "u", True, {"a": "one"}),
        ("s3://bucket/run", "u", True, {"a": "two"}),
    ]
    task.checkpoints.urls = None
    task.write("a", "three")
    with pytest.raises(UsageError, match="can't be written here"):
        task.take(last=True)
