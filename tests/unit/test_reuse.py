"""Results of equal tasks: what makes two tasks equal, and when a result can't be had any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from casstore_orchestrator.agent.storing import Made, Storing
from casstore_orchestrator.events import Attempt
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.pools import Machine, Resources, default_pools
from casstore_orchestrator.provenance import InputNote
from casstore_orchestrator.reuse import task_key, why_not
from casstore_orchestrator.spec import (
    Checkpoint,
    DatasetOutput,
    FileSpec,
    GroupSpec,
    TaskInput,
    TaskSpec,
    UpdateDatasetOutput,
    UrlOutput,
    WorkflowSpec,
)
from casstore_orchestrator.state import new_workflow, with_number
from casstore_orchestrator.testing import FakeData, FakeExecutor
from casstore_orchestrator.transfers import Stop

BASE = TaskSpec(name="t", image="i", command=("run",), args=("a",), environment={"A": "1"}, lead=True)
NOTE = InputNote(kind="dataset", ref="b/robots:3", requested="robots", checksum="c1")


def group(task: TaskSpec) -> GroupSpec:
    return GroupSpec(name="g", tasks=(task,))


def key(task: TaskSpec = BASE, *notes: InputNote, user: str = "u", platform: str = "x86") -> str:
    return task_key(task, user, platform, notes)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "j"},
        {"command": ("walk",)},
        {"args": ("b",)},
        {"environment": {"A": "2"}},
        {"files": (FileSpec(path="/tmp/x", contents="y"),)},
        {"outputs": (DatasetOutput(name="out"),)},
        {"credentials": {"c": {"A": "k"}}},
        {"inputs": (TaskInput(task="before"),)},
    ],
)
def test_what_makes_tasks_different(change: dict[str, Any]) -> None:
    assert key(replace(BASE, **change)) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"lead": False},
        {"resource": "large"},
        {"exit_actions": {"RESCHEDULE": "1"}},
        {"download_type": "download"},
        {"cache": True},
    ],
)
def test_what_makes_no_difference(change: dict[str, Any]) -> None:
    assert key(replace(BASE, **change)) == key()


def test_inputs_count_by_what_they_are() -> None:
    assert key(BASE, NOTE) == key(BASE, replace(NOTE, ref="other/robots:9", requested="other/robots:9", manifest="m"))
    assert key(BASE, NOTE) != key(BASE, replace(NOTE, checksum="c2"))
    assert key(BASE, NOTE) != key(BASE, replace(NOTE, ref="b/arms:3"))
    assert key(BASE, NOTE) != key(BASE, replace(NOTE, regex="x"))
    assert key(BASE, NOTE) != key(BASE, NOTE, NOTE)
    assert key(user="v") != key()
    assert key(platform="arm") != key()
    old = replace(BASE, inputs=(TaskInput(task="w-1:before"),))
    assert key(old) == key(replace(BASE, inputs=(TaskInput(task="before"),)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"cache": False}, "cache: false"),
        ({"credentials": {"c": {"A": "k"}}}, "credentials"),
        ({"credentials": {"c": {"A": "k"}}, "cache": True}, ""),
        ({"volume_mounts": ("/srv",)}, "machine"),
        ({"checkpoint": (Checkpoint(path="/a", frequency=1, dataset="d"),)}, "checkpoints"),
        ({"outputs": (UrlOutput(url="s3://b/x"),)}, "only datasets"),
        ({"outputs": (UpdateDatasetOutput(name="d"),)}, "only datasets"),
        ({"args": ("{{workflow_id}}",)}, "id of the workflow"),
        ({"environment": {"RUN": "{{uuid}}"}}, "id of the workflow"),
        ({"args": ("{{output}}", "{{input:0}}")}, ""),
    ],
)
def test_whose_results_may_be_taken(change: dict[str, Any], reason: str) -> None:
    task = replace(BASE, **change)
    found = why_not(task, group(task))
    assert reason in found
    assert bool(found) == bool(reason)


def test_tasks_of_a_gang_are_left_alone() -> None:
    assert why_not(BASE, GroupSpec(name="g", tasks=(BASE, replace(BASE, name="u")))).startswith("tasks of a group")


class Place:
    """Workflows of one task each, on one machine."""

    def __init__(self, root: Path) -> None:
        self.homes = Homes(root)
        self.data = FakeData()
        self.lines: list[str] = []
        self.number = 0
        self.pool = default_pools(Machine("m", Resources(cpu=1, memory=1 << 30, storage=1 << 30)))["default"]

    def workflow(self, task: TaskSpec, *, reuse: bool = True, after: bool = False) -> tuple[Storing, Made]:
        groups = [group(task)]
        if after:
            groups.append(
                GroupSpec(
                    name="h", tasks=(TaskSpec(name="u", command=("x",), lead=True, inputs=(TaskInput(task="t"),)),)
                )
            )
        self.number += 1
        record = new_workflow(
            WorkflowSpec(name="w", groups=tuple(groups)), uuid=f"{self.number:032x}", user="u", pool=self.pool
        )
        record = replace(with_number(record, self.number), reuse=reuse)
        storing = Storing(
            record, "g", data=self.data, homes=self.homes, executor=FakeExecutor(), urls=None, file_urls=False
        )
        home = self.homes.make(record.id, "t", 0, 0)
        return storing, Made(Attempt("t", 0, 0), task, home, ())

    def run(self, task: TaskSpec, code: int = 0, text: str = "made", **options: bool) -> int | None:
        """The exit code of a result that was taken; None when the task ran, and left ``text``."""
        storing, made = self.workflow(task, **options)
        found = storing.reused(made, self.lines.append)
        if found is None:
            (made.home / "data" / "output" / "file").write_text(text)
            checkpoints = storing.checkpoints(made, self.lines.append)
            assert storing.store(made, code, checkpoints, self.lines.append, Stop(), oom=False) is None
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "workflows")


DATASET = replace(BASE, outputs=(DatasetOutput(name="out"),))


def test_a_version_is_taken_from_an_equal_task(place: Place) -> None:
    assert place.run(DATASET, reuse=False) is None
    assert place.run(DATASET, reuse=False) is None
    assert place.run(DATASET) == 0
    assert "The command does not run: the result of w-2:t, an equal task, is taken (exit code 0)" in place.lines
    assert "Taken: default/out:1   Checksum: c-out-1" in place.lines
    assert len(place.data.versions["out"]) == 1


def test_a_version_that_is_no_longer_the_newest_is_not_taken(place: Place) -> None:
    place.run(DATASET)
    place.run(replace(DATASET, args=("b",)), text="other")
    assert place.run(DATASET) is None
    assert place.lines[-4:][0].endswith("can't be taken: out is no longer default/out:1. The command runs")


def test_an_output_folder_is_taken_without_a_copy(place: Place) -> None:
    assert place.run(BASE) is None
    assert place.run(BASE) == 0
    old, new = (place.homes.kept_output(f"w-{number}", "t") for number in (1, 2))
    assert (new[0] / "file").read_text() == "made"
    assert (new[0] / "file").stat().st_ino == (old[0] / "file").stat().st_ino
    assert (new[1].workflow_id, new[1].checksum) == ("w-2", old[1].checksum)
    place.homes.remove_workflow("w-1")
    assert place.run(BASE) is None
    assert any("has left no output" in line for line in place.lines)


def test_an_output_folder_that_others_read_must_have_been_kept(place: Place) -> None:
    place.run(DATASET)
    assert place.run(DATASET, after=True) is None
    assert any("its output folder was not kept" in line for line in place.lines)
    assert place.run(DATASET, after=True) == 0


def test_failures_leave_nothing_to_take(place: Place) -> None:
    place.run(DATASET, code=1)
    assert place.run(DATASET) is None
    assert "No equal task has completed before: the command runs" in place.lines
    asked = replace(DATASET, outputs_on_failure=True, args=("c",))
    place.run(asked, code=1, text="half")
    assert place.data.versions["out"][-1] == {"file": "half"}
    assert place.run(asked) is None


def test_a_code_that_counts_as_done_is_taken_with_the_result(place: Place) -> None:
    task = replace(DATASET, exit_actions={"COMPLETE": "3"})
    place.run(task, code=3)
    assert place.run(task) == 3


def test_the_log_says_why_nothing_is_looked_for(place: Place) -> None:
    assert place.run(replace(DATASET, cache=False)) is None
    assert place.lines[0] == "No result of an equal task is looked for: the task says 'cache: false'"


def test_a_damaged_note_is_no_result(place: Place) -> None:
    place.run(DATASET)
    (note,) = (place.homes.root / "_results").rglob("*.json")
    note.write_text("{")
    assert place.run(DATASET) is None
