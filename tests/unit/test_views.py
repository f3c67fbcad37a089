"""Which inputs are shown without a copy, who shares a mount, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.errors import AccessError, CancelledError
from casstore_orchestrator.folders import listing
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.inputs import InputFetcher
from casstore_orchestrator.ports import DatasetVersion, InputLayer
from casstore_orchestrator.spec import DatasetInput, TaskInput, TaskSpec
from casstore_orchestrator.testing import FakeData, FakeExecutor
from casstore_orchestrator.transfers import Stop
from casstore_orchestrator.views import Views


class Layers(FakeExecutor):
    reason = ""

    def why_no_layer(self, launch_home: Path, source: Path) -> str:
        return self.reason


class Mounts:
    """Mounts that are folders with one file."""

    def __init__(self) -> None:
        self.reason = ""
        self.error: Exception | None = None
        self.calls: list[Path] = []
        self.regexes: list[str] = []

    def why_not(self) -> str:
        return self.reason

    def mount(
        self,
        version: DatasetVersion,
        path: Path,
        *,
        regex: str = "",
        cache_size: int | None = None,
        stop: Callable[[], bool],
    ) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(path)
        self.regexes.append(regex)
        (path / version.ref.replace("/", "_")).touch()

    def unmount(self, path: Path) -> tuple[str, ...]:
        for file in path.iterdir():
            file.unlink()
        return ("a read failed",)

    def clear(self) -> None:
        raise AssertionError("only a new server clears")


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = FakeData(versions={"ds": [{"a": "1"}], "more": [{"b": "2"}]})
        self.executor = Layers()
        self.mounts = Mounts()
        self.homes = Homes(folder)
        self.views = Views(self.executor, self.mounts, self.homes.mounts("wf-1", "g", 1))
        self.fetcher = InputFetcher.make(self.data, self.homes, "wf-1", "u", file_urls=True, views=self.views)
        self.said: list[str] = []

    def task(self, name: str, spec: TaskSpec, stop: Stop | None = None) -> tuple[InputLayer, ...]:
        home = self.homes.make("wf-1", name, 0, len(spec.inputs))
        layers = self.fetcher.lay(spec, home, stop or Stop())
        self.notes = self.fetcher.fetch(spec, home, self.said.append, Stop())
        return layers


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def reads(*inputs: DatasetInput | TaskInput, **more: str) -> TaskSpec:
    return TaskSpec(name="t", inputs=inputs, **more)  # type: ignore[arg-type]


def test_one_mount_for_each_version_of_a_group(world: World) -> None:
    spec = reads(DatasetInput(name="ds"), DatasetInput(name="more"))
    layers = world.task("one", spec)
    assert [(layer.at, layer.source) for layer in layers] == [
        ("0/ds", world.homes.mounts("wf-1", "g", 1) / "0"),
        ("1/more", world.homes.mounts("wf-1", "g", 1) / "1"),
    ]
    assert world.task("two", spec) == layers
    home = world.homes.attempt("wf-1", "two", 0)
    assert world.views.layers(home) == layers
    assert (home / "data/input/0/ds").is_dir()
    assert not list((home / "data/input/0/ds").iterdir())
    assert "Mounted default/ds:1 (1 files, 1 B) at {{input:0}}" in world.said
    assert [note.manifest for note in world.notes] == ["m-ds-1", "m-more-1"]
    assert world.views.close() == ("a read failed",) * 2
    assert not (world.folder / "wf-1" / "_mounts").exists()


def test_a_pattern_has_a_mount_of_its_own(world: World) -> None:
    spec = reads(*(DatasetInput(name="ds", regex=regex) for regex in (None, "a", "b", "a")))
    world.task("one", spec)
    assert world.mounts.regexes == ["", "a", "b", "a"]
    assert world.mounts.calls[1] == world.mounts.calls[3]
    assert len(set(world.mounts.calls)) == 3
    assert [note.regex for note in world.notes] == [None, "a", "b", "a"]
    assert any("(files matching a) at {{input:1}}" in line for line in world.said)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (reads(DatasetInput(name="ds"), download_type="download"), ""),
        (reads(DatasetInput(name="ds"), download_type="mount"), "no /dev/fuse"),
        (reads(DatasetInput(name="ds")), "no overlays"),
        (reads(DatasetInput(name="ds")), "not allowed"),
    ],
)
def test_what_is_not_mounted_is_downloaded_with_the_reason(world: World, spec: TaskSpec, said: str) -> None:
    if said == "no /dev/fuse":
        world.mounts.reason = said
    elif said == "no overlays":
        world.executor.reason = said
    elif said == "not allowed":
        world.mounts.error = AccessError(said)
    assert world.task("one", spec) == ()
    told = [line for line in world.said if "not mounted" in line]
    assert told == ([f"default/ds:1 is downloaded, not mounted: {said}"] if said else [])
    assert (world.homes.attempt("wf-1", "one", 0) / "data/input/0/ds/a").read_text() == "1"
    assert not any("Mounted" in line for line in world.said)


def test_what_can_not_be_looked_up_is_left_to_the_download(world: World) -> None:
    world.data.failures = 0
    home = world.homes.make("wf-1", "one", 0, 1)
    assert world.fetcher.lay(reads(DatasetInput(name="absent")), home, Stop()) == ()


def test_a_stopped_group_mounts_nothing(world: World) -> None:
    stop = Stop()
    stop.set("cancelled")
    with pytest.raises(CancelledError):
        world.task("one", reads(DatasetInput(name="ds")), stop)
    assert world.mounts.calls == []


def test_a_kept_output_is_shown_where_it_lies(world: World) -> None:
    home = world.homes.make("wf-1", "made", 0, 0)
    (home / "data/output/file").write_text("x")
    world.homes.keep_output("wf-1", "made", 0, (), Stop())
    (layer,) = world.task("reads", reads(TaskInput(task="made"), TaskInput(task="absent")))
    assert (layer.at, layer.source) == ("0", world.folder / "wf-1" / "made" / "output")
    assert "Mounted the output of task wf-1:made (1 files, 1 B) at {{input:0}}" in world.said
    assert "  file (1 B)" in world.said
    assert "Task absent has left no output: {{input:1}} is empty" in world.said
    assert world.mounts.calls == []
    world.said.clear()
    assert world.task("copies", reads(TaskInput(task="made", regex="f"))) == ()
    assert world.said[0].startswith("The output of task wf-1:made is copied, not mounted: only files")


def test_no_more_of_a_large_folder_is_read_than_is_told(tmp_path: Path) -> None:
    for name in ("in/ds", "large"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(100):
        (tmp_path / "large" / f"{number:03}").touch()
    lines = listing(tmp_path / "in", shown={"ds": tmp_path / "large"})
    assert lines[0] == "ds/"
    assert len(lines) == 21
    assert lines[-1] == "..."
    assert len(listing(tmp_path / "in", shown={"": tmp_path / "large"})) == 21
