"""The scheduler with stand-ins for the executor and the data: who runs when, who ends with whom, what is retried."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from casstore.errors import NotFoundError, ServiceError
from casstore_orchestrator import scheduler as scheduler_module
from casstore_orchestrator import transfers
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.pools import Machine, Resources, parse_pools
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.spec import (
    DatasetInput,
    DatasetOutput,
    FileSpec,
    GroupSpec,
    ResourceSpec,
    TaskInput,
    TaskSpec,
    Timeout,
    UpdateDatasetOutput,
    WorkflowSpec,
)
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.status import GroupStatus, Priority, TaskStatus, WorkflowStatus
from casstore_orchestrator.testing import (
    FakeData,
    FakeExecutor,
    FakeGang,
    FakeTask,
    MemoryStateStore,
    ThreadAgents,
    ThreadMachine,
)

PATIENCE = 30.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    pytest.fail(f"never happened: {what}")


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_233_600.0

    def time(self) -> float:
        return self.now


def task(name: str, **fields: Any) -> TaskSpec:
    fields.setdefault("command", ("run",))
    return TaskSpec(name=name, **fields)


def group(name: str, *tasks: TaskSpec, **fields: Any) -> GroupSpec:
    return GroupSpec(name=name, tasks=tasks, **fields)


class World:
    """A scheduler over stand-ins; ``restart`` is a new server over the same records, folders and agents."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = MemoryStateStore()
        self.data = FakeData()
        self.executor = FakeExecutor()
        self.clock = Clock()
        self.pools: dict[str, Any] = {}
        self.size = Machine("box", Resources(cpu=4, memory=64 << 30, storage=1 << 40, gpu=0))
        self.machine = ThreadMachine.over(self.executor, self.data, home, self.clock)
        self.scheduler = self.make()

    def make(self, **options: Any) -> Scheduler:
        return Scheduler(
            self.store,
            ThreadAgents(self.machine),
            lambda: parse_pools(self.pools, self.size),
            LogStore(self.home, clock=self.clock),
            clock=self.clock,
            **options,
        )

    def restart(self) -> None:
        self.restart_after(lambda: None)

    def restart_after(self, between: Callable[[], None]) -> None:
        self.scheduler.stop()
        between()
        self.scheduler = self.make()
        self.scheduler.start()

    def lose_agents(self) -> None:
        """As if the machine had crashed."""
        for run in list(self.machine.agents):
            self.machine.kill(run, "The machine crashed.")

    def close(self) -> None:
        self.scheduler.stop()
        self.machine.close()

    def submit(self, *groups: GroupSpec, name: str = "wf", pool: str = "default", **fields: Any) -> str:
        spec = WorkflowSpec(
            name=name,
            groups=groups,
            resources=fields.pop("resources", {}),
            timeout=fields.pop("timeout", Timeout()),
        )
        record = new_workflow(
            spec,
            uuid=uuid.uuid4().hex,
            user="tester",
            pool=parse_pools(self.pools, self.size)[pool],
            **fields,
        )
        return self.scheduler.submit(record).id

    def record(self, workflow_id: str) -> WorkflowRecord:
        return self.store.load(workflow_id)

    def status(self, workflow_id: str) -> WorkflowStatus:
        return self.record(workflow_id).status

    def statuses(self, workflow_id: str) -> dict[str, str]:
        record = self.record(workflow_id)
        return {entry.name: record.task(entry.name).status.value for entry in record.all_tasks()}

    def finished(self, workflow_id: str) -> WorkflowRecord:
        def ended() -> WorkflowRecord | None:
            record = self.record(workflow_id)
            return record if record.status.finished else None

        record: WorkflowRecord = eventually(ended, f"{workflow_id} ends: {self.statuses(workflow_id)}")
        return record

    def started(
        self, workflow_id: str, group_name: str, task_name: str, attempt: int = 0, *, gang: int = 0
    ) -> FakeTask:
        """A task whose command runs."""
        found_gang = self.executor.gang(f"{workflow_id}/{group_name}", gang)

        def running() -> FakeTask | None:
            attempts = [entry for entry in found_gang.history if entry.name == task_name]
            return attempts[attempt] if len(attempts) > attempt and attempts[attempt].started.is_set() else None

        found: FakeTask = eventually(running, f"attempt {attempt} of {task_name} starts")
        return found

    def log(self, workflow_id: str) -> list[str]:
        return [line.split(" ", 2)[2] for line in self.scheduler.logs.read(workflow_id)]

    def closed_log(self, workflow_id: str) -> list[str]:
        """The log of a workflow that ends, once it is complete."""
        lines = self.scheduler.logs.read(workflow_id, follow=True, live=lambda: self.record(workflow_id).live)
        return [line.split(" ", 2)[2] for line in lines]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(transfers, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(scheduler_module, "_RETRY", 0.005)
    made = World(tmp_path / "workflows")
    made.scheduler.start()
    yield made
    made.close()


# --- one task


def test_a_task_runs_and_its_workflow_completes(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    assert wf == "wf-1"
    running = world.started(wf, "g", "a")
    assert world.status(wf) is WorkflowStatus.RUNNING
    running.log.write("a", b"hello")
    running.exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.COMPLETED
    assert record.task("a").exit_code == 0
    assert record.task("a").node == "box"
    assert record.task("a").host == "a"
    lines = world.closed_log(wf)
    assert "[a] hello" in lines
    assert "[a][osmo] The command ended with exit code 0" in lines


def test_what_the_executor_gets(world: World) -> None:
    script = FileSpec(path="/tmp/run.sh", contents="echo {{workflow_id}} > {{output}}/x")
    binary = FileSpec(path="/tmp/blob", contents="AP8=", base64=True)
    wf = world.submit(
        group(
            "g",
            task("a", command=("sh",), args=("$(WHERE)", "{{host:b}}"), environment={"WHERE": "{{output}}"}, lead=True,
                 files=(script, binary), resource="big"),
            task("b"),
        ),
        resources={"big": ResourceSpec(cpu=2, memory=3 << 30)},
    )  # fmt: skip
    launch = world.started(wf, "g", "a").launch
    output = f"{launch.home}/data/output"
    assert launch.argv == ("sh", output, "b")
    assert launch.environment == {"WHERE": output}
    assert [(file.path, file.data) for file in launch.files] == [
        ("/tmp/run.sh", f"echo wf-1 > {output}/x".encode()),
        ("/tmp/blob", b"\x00\xff"),
    ]
    assert all(file.mode & 0o100 for file in launch.files)
    assert (launch.cpu, launch.memory, launch.gpu) == (2, 3 << 30, 0)


def test_a_task_without_command_fails_with_a_reason(world: World) -> None:
    wf = world.submit(group("g", task("a", command=(), lead=True)))
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED_START_ERROR
    assert "no command" in (record.failure_message or "")
    assert sum("no command" in line for line in world.closed_log(wf)) == 1


def test_a_group_that_can_not_be_prepared_fails_as_a_whole(world: World) -> None:
    world.executor.refuse = ServiceError("no network can be made")
    wf = world.submit(group("g", task("a", lead=True), task("b")))
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED_START_ERROR
    assert {entry.status for entry in record.all_tasks()} == {TaskStatus.FAILED_START_ERROR}
    assert record.task("a").exit_code == 3003


def test_the_home_of_an_attempt_is_removed_in_the_end(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    running = world.started(wf, "g", "a")
    assert running.launch.home.is_dir()
    running.exit(0)
    world.finished(wf)
    eventually(world.scheduler.idle, "the group is cleaned up")
    assert not running.launch.home.exists()


# --- leads and others


@pytest.mark.parametrize("ignore", [True, False])
def test_the_end_of_the_lead_ends_the_others(world: World, ignore: bool) -> None:
    wf = world.submit(group("g", task("lead", lead=True), task("helper"), ignore_nonlead_status=ignore))
    helper = world.started(wf, "g", "helper")
    world.started(wf, "g", "lead").exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.COMPLETED
    assert record.task("helper").status is TaskStatus.COMPLETED
    eventually(lambda: helper.killed, "the helper is killed")


def test_the_failure_of_the_lead_fails_the_others(world: World) -> None:
    wf = world.submit(group("g", task("lead", lead=True), task("helper")))
    helper = world.started(wf, "g", "helper")
    world.started(wf, "g", "lead").exit(9)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    assert record.task("lead").exit_code == 9
    assert record.task("helper").status is TaskStatus.FAILED
    eventually(lambda: helper.killed, "the helper is killed")


@pytest.mark.parametrize("ignore", [True, False])
def test_the_failure_of_a_non_lead(world: World, ignore: bool) -> None:
    wf = world.submit(group("g", task("lead", lead=True), task("helper"), ignore_nonlead_status=ignore))
    lead = world.started(wf, "g", "lead")
    world.started(wf, "g", "helper").exit(4)
    if ignore:
        eventually(lambda: world.statuses(wf)["helper"] == "FAILED", "the helper failed")
        assert world.statuses(wf)["lead"] == "RUNNING"
        lead.exit(0)
        assert world.finished(wf).status is WorkflowStatus.COMPLETED
    else:
        record = world.finished(wf)
        assert record.status is WorkflowStatus.FAILED
        assert record.task("lead").status is TaskStatus.FAILED
        eventually(lambda: lead.killed, "the lead is killed")


def test_outputs_of_a_killed_helper_are_not_stored(world: World) -> None:
    store = DatasetOutput(name="made")
    wf = world.submit(group("g", task("lead", lead=True), task("helper", outputs=(store,))))
    world.started(wf, "g", "helper").write("x", "partial")
    world.started(wf, "g", "lead").exit(0)
    world.finished(wf)
    eventually(world.scheduler.idle, "the group is cleaned up")
    assert "made" not in world.data.versions


# --- the barrier


def hold_inputs(world: World) -> threading.Event:
    world.data.versions["set"] = [{"file": "text"}]
    world.data.hold = threading.Event()
    return world.data.hold


def test_a_barrier_starts_all_commands_together(world: World) -> None:
    release = hold_inputs(world)
    wf = world.submit(group("g", task("slow", lead=True, inputs=(DatasetInput(name="set"),)), task("quick")))
    gang = world.executor.gang(f"{wf}/g")
    eventually(lambda: any("Waiting for group ready" in line for line in world.log(wf)), "quick waits")
    assert not gang.tasks["quick"].started.is_set()
    release.set()
    world.started(wf, "g", "slow")
    assert gang.tasks["quick"].started.is_set()
    assert gang.released_together == 1
    gang.tasks["slow"].exit(0)
    world.finished(wf)


def test_without_barrier_each_command_starts_when_it_can(world: World) -> None:
    release = hold_inputs(world)
    wf = world.submit(
        group("g", task("slow", lead=True, inputs=(DatasetInput(name="set"),)), task("quick"), barrier=False)
    )
    world.started(wf, "g", "quick")
    gang = world.executor.gang(f"{wf}/g")
    assert not gang.tasks["slow"].started.is_set()
    release.set()
    world.started(wf, "g", "slow").exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


# --- the graph


def test_a_group_waits_for_the_whole_group_before_it_and_reads_its_output(world: World) -> None:
    wf = world.submit(
        group("second", task("reader", lead=True, inputs=(TaskInput(task="writer"), TaskInput(task="other")))),
        group("first", task("writer", lead=True), task("other")),
    )
    writer = world.started(wf, "first", "writer")
    world.started(wf, "first", "other").exit(0)
    eventually(lambda: world.statuses(wf)["other"] == "COMPLETED", "the non-lead ends")
    assert world.scheduler.why_pending(wf) == "second: waits for first"
    writer.write("deep/file.txt", "from the writer")
    writer.exit(0)
    reader = world.started(wf, "second", "reader")
    assert (reader.launch.home / "data/input/0/deep/file.txt").read_text() == "from the writer"
    assert list((reader.launch.home / "data/input/1").iterdir()) == []
    reader.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert world.scheduler.why_pending(wf) == ""


def test_a_failure_reaches_everything_downstream_and_nothing_else(world: World) -> None:
    wf = world.submit(
        group("one", task("a", lead=True)),
        group("two", task("b", lead=True, inputs=(TaskInput(task="a"),))),
        group("three", task("c", lead=True, inputs=(TaskInput(task="b"),))),
        group("apart", task("d", lead=True)),
    )
    world.started(wf, "one", "a").exit(1)
    eventually(lambda: world.statuses(wf)["c"] == "FAILED_UPSTREAM", "the failure arrives")
    assert world.statuses(wf) == {"a": "FAILED", "b": "FAILED_UPSTREAM", "c": "FAILED_UPSTREAM", "d": "RUNNING"}
    world.started(wf, "apart", "d").exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    assert record.task("c").exit_code == 3000


def test_the_output_of_a_task_of_an_earlier_workflow(world: World) -> None:
    first = world.submit(group("g", task("a", lead=True)))
    running = world.started(first, "g", "a")
    running.write("x.txt", "kept")
    running.write("x.bin", "not matched")
    running.exit(0)
    world.finished(first)
    item = TaskInput(task=f"{first}:a", regex=r".*\.txt")
    second = world.submit(group("g", task("b", lead=True, inputs=(item,))))
    reader = world.started(second, "g", "b")
    folder = reader.launch.home / "data/input/0"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"x.txt": "kept"}
    reader.exit(0)
    world.finished(second)


# --- inputs and outputs


def test_inputs_are_fixed_versions_and_outputs_say_what_they_came_from(world: World) -> None:
    world.data.versions["set"] = [{"old": "1"}, {"new": "2"}]
    wf = world.submit(
        group(
            "g",
            task(
                "a",
                lead=True,
                inputs=(DatasetInput(name="set"), DatasetInput(name="set:1")),
                outputs=(DatasetOutput(name="made:{{workflow_id}}"),),
            ),
        )
    )
    running = world.started(wf, "g", "a")
    assert (running.launch.home / "data/input/0/set/new").read_text() == "2"
    assert (running.launch.home / "data/input/1/set/old").read_text() == "1"
    running.write("result.txt", "42")
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert world.data.versions["made"] == [{"result.txt": "42"}]
    assert world.data.tags["made"] == {wf: 1}
    written = world.data.records["made"][0]
    assert written["metadata"]["default"]["wfid"] == wf
    assert written["metadata"]["default"]["input_datasets"] == ["default/set:2", "default/set:1"]
    assert written["metadata"]["default"]["exit_code"] == 0
    assert [item["checksum"] for item in written["provenance"]["inputs"]] == ["c-set-2", "c-set-1"]
    lines = world.closed_log(wf)
    assert any("Downloading default/set:2" in line for line in lines)
    assert "[a][osmo]   set/" in lines
    assert any("Uploaded default/made:1: 1 files" in line for line in lines)


def test_all_attempts_of_a_group_see_the_version_that_the_first_saw(world: World) -> None:
    world.data.versions["set"] = [{"file": "1"}]
    wf = world.submit(
        group("g", task("a", lead=True, inputs=(DatasetInput(name="set"),), exit_actions={"RESCHEDULE": "5"}))
    )
    first = world.started(wf, "g", "a")
    world.data.versions["set"].append({"file": "2"})
    first.exit(5)
    again = world.started(wf, "g", "a", attempt=1)
    assert (again.launch.home / "data/input/0/set/file").read_text() == "1"
    again.exit(0)
    world.finished(wf)


def test_equal_outputs_make_no_new_version(world: World) -> None:
    for _ in range(2):
        wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),))))
        running = world.started(wf, "g", "a")
        running.write("result.txt", "42")
        running.exit(0)
        world.finished(wf)
    assert len(world.data.versions["made"]) == 1
    assert any("holds the same files already" in line for line in world.closed_log(wf))


def test_an_empty_output_folder_is_no_error(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),))))
    world.started(wf, "g", "a").exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert "made" not in world.data.versions
    assert "[a][osmo] No Files in Output Folder" in world.closed_log(wf)


def test_a_failed_command_stores_nothing_and_says_so(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),))))
    running = world.started(wf, "g", "a")
    running.write("result.txt", "42")
    running.exit(1)
    assert world.finished(wf).status is WorkflowStatus.FAILED
    assert "made" not in world.data.versions
    assert "[a][osmo] The outputs are not stored, because the task failed" in world.closed_log(wf)


def test_an_exit_action_makes_a_code_a_success_with_outputs(world: World) -> None:
    wf = world.submit(
        group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),), exit_actions={"COMPLETE": "3"}))
    )
    running = world.started(wf, "g", "a")
    running.write("result.txt", "42")
    running.exit(3)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert world.data.versions["made"] == [{"result.txt": "42"}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sub", {"sub/x": "1"}),
        ("sub/*", {"x": "1"}),
        ("*", {"sub/x": "1", "top": "2"}),
        ("top", {"top": "2"}),
    ],
)
def test_the_part_of_the_output_that_is_stored(world: World, path: str, expected: dict[str, str]) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made", path=path),))))
    running = world.started(wf, "g", "a")
    running.write("sub/x", "1")
    running.write("top", "2")
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert world.data.versions["made"] == [expected]


@pytest.mark.parametrize("path", ["absent", "../../../../../secret", "link", "link/x", "link/*", "/etc/passwd"])
def test_an_output_path_outside_or_absent_is_skipped(world: World, path: str) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made", path=path),))))
    running = world.started(wf, "g", "a")
    running.write("something", "1")
    (running.launch.home / "data/output/link").symlink_to("/etc")
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert "made" not in world.data.versions
    assert any("output made is skipped" in line for line in world.closed_log(wf))


def test_an_output_folder_that_became_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),))))
    running = world.started(wf, "g", "a")
    output = running.launch.home / "data/output"
    output.rmdir()
    output.symlink_to(outside)
    running.exit(0)
    record = world.finished(wf)
    assert record.task("a").exit_code == 2012
    assert "made" not in world.data.versions


def test_metadata_and_label_files(world: World) -> None:
    output = DatasetOutput(name="made", metadata=("meta.yaml", "more.yaml"), labels=("labels.yaml",))
    wf = world.submit(group("g", task("a", lead=True, outputs=(output,))))
    running = world.started(wf, "g", "a")
    running.write("meta.yaml", "quality: 1\nwho: x\n")
    running.write("more.yaml", "quality: 2\n")
    running.write("labels.yaml", "robot: carter\n")
    running.exit(0)
    world.finished(wf)
    written = world.data.records["made"][0]
    assert {key: written["metadata"][key] for key in ("quality", "who")} == {"quality": 2, "who": "x"}
    assert written["metadata"]["default"]["task"] == "a"
    assert written["labels"] == {"robot": "carter"}


@pytest.mark.parametrize("text", [None, "- a list\n", "a: !!python/object:os.system x\n", "a: [\n"])
def test_a_metadata_file_that_can_not_be_used_skips_its_output(world: World, text: str | None) -> None:
    outputs = (DatasetOutput(name="made", metadata=("meta.yaml",)), DatasetOutput(name="fine"))
    wf = world.submit(group("g", task("a", lead=True, outputs=outputs)))
    running = world.started(wf, "g", "a")
    running.write("file", "1")
    if text is not None:
        running.write("meta.yaml", text)
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert list(world.data.versions) == ["fine"]
    assert any("Output made is skipped: its metadata" in line for line in world.closed_log(wf))


def test_an_output_regex_that_matches_nothing(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made", regex=r".*\.json$"),))))
    running = world.started(wf, "g", "a")
    running.write("file.txt", "1")
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert "made" not in world.data.versions


def test_update_a_dataset(world: World) -> None:
    world.data.versions["set"] = [{"data/file_1": "1"}]
    output = UpdateDatasetOutput(name="set", paths=("more/file_2:data", "top"))
    wf = world.submit(group("g", task("a", lead=True, outputs=(output,))))
    running = world.started(wf, "g", "a")
    running.write("more/file_2", "2")
    running.write("top", "3")
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert world.data.versions["set"][1] == {"data/file_1": "1", "data/file_2": "2", "top": "3"}


def test_transfers_that_fail_are_tried_again(world: World) -> None:
    world.data.versions["set"] = [{"file": "1"}]
    world.data.failures = transfers.ATTEMPTS - 1
    wf = world.submit(group("g", task("a", lead=True, inputs=(DatasetInput(name="set"),))))
    world.started(wf, "g", "a").exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED
    assert any("attempt 4 of 5" in line for line in world.closed_log(wf))


@pytest.mark.parametrize(("ref", "failures"), [("set", 10**6), ("absent", 0)])
def test_inputs_that_can_not_be_had(world: World, ref: str, failures: int) -> None:
    world.data.versions["set"] = [{"file": "1"}]
    world.data.failures = failures
    wf = world.submit(group("g", task("a", lead=True, inputs=(DatasetInput(name=ref),))))
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    assert record.task("a").exit_code == 2010
    gang = world.executor.gang(f"{wf}/g")
    assert not gang.tasks["a"].started.is_set()


def test_outputs_that_can_not_be_stored(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),))))
    running = world.started(wf, "g", "a")
    running.write("x", "1")
    world.data.failures = 10**6
    running.exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    assert record.task("a").exit_code == 2012


def test_a_non_lead_without_inputs_never_starts_and_does_not_hold_up_the_barrier(world: World) -> None:
    wf = world.submit(group("g", task("lead", lead=True), task("helper", inputs=(DatasetInput(name="absent"),))))
    lead = world.started(wf, "g", "lead")
    assert not world.executor.gang(f"{wf}/g").tasks["helper"].started.is_set()
    lead.exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.COMPLETED
    assert record.task("helper").status is TaskStatus.FAILED


# --- retries


def test_rescheduled_until_the_limit(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True, exit_actions={"RESCHEDULE": "1-255"})))
    homes = set()
    for attempt in range(4):
        running = world.started(wf, "g", "a", attempt)
        homes.add(running.launch.home)
        (running.launch.home / "data/output/left").write_text("x")
        running.log.write("a", b"try %d" % attempt)
        running.exit(7)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    assert [entry.status for entry in record.all_tasks()] == [TaskStatus.RESCHEDULED] * 3 + [TaskStatus.FAILED]
    assert len(homes) == 4
    lines = world.closed_log(wf)
    assert "[a] try 0" in lines
    assert "[a retry-3] try 3" in lines
    errors = [line.split(" ", 2)[2] for line in world.scheduler.logs.read(wf, error=True)]
    assert "[a retry-2] try 2" in errors


def test_a_rescheduled_lead_restarts_the_others_in_place(world: World) -> None:
    wf = world.submit(group("g", task("lead", lead=True, exit_actions={"RESCHEDULE": "9"}), task("helper")))
    helper = world.started(wf, "g", "helper")
    world.started(wf, "g", "lead").exit(9)
    again = world.started(wf, "g", "helper", attempt=1)
    assert helper.killed
    assert again.launch.home == helper.launch.home
    lead = world.started(wf, "g", "lead", attempt=1)
    assert lead.launch.home.name == "1"
    lead.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


def test_a_rescheduled_non_lead_leaves_the_others_alone(world: World) -> None:
    wf = world.submit(group("g", task("lead", lead=True), task("helper", exit_actions={"RESCHEDULE": "9"})))
    lead = world.started(wf, "g", "lead")
    world.started(wf, "g", "helper").exit(9)
    world.started(wf, "g", "helper", attempt=1)
    assert not lead.killed
    lead.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


def test_out_of_memory_is_an_eviction(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    world.started(wf, "g", "a").exit(137, oom=True)
    record = world.finished(wf)
    assert record.task("a").status is TaskStatus.FAILED_EVICTED
    assert record.task("a").exit_code == 3004


# --- cancelling


def test_cancel_while_the_command_runs(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True, outputs=(DatasetOutput(name="made"),))))
    running = world.started(wf, "g", "a")
    running.write("x", "1")
    record = world.scheduler.cancel(wf, user="tester", message="wrong input")
    assert record.status is WorkflowStatus.FAILED_CANCELED
    assert record.failure_message == "Task was canceled by user: tester. wrong input"
    eventually(lambda: running.killed, "the command is killed")
    eventually(world.scheduler.idle, "the group is cleaned up")
    assert "made" not in world.data.versions
    assert any("canceled by user: tester" in line for line in world.closed_log(wf))


def test_cancel_while_inputs_are_downloaded(world: World) -> None:
    hold_inputs(world)
    wf = world.submit(group("g", task("a", lead=True, inputs=(DatasetInput(name="set"),))))
    eventually(lambda: any("Downloading" in line for line in world.log(wf)), "the download begins")
    world.scheduler.cancel(wf, user="tester")
    eventually(world.scheduler.idle, "the group is cleaned up")
    assert world.status(wf) is WorkflowStatus.FAILED_CANCELED


def test_cancel_while_queued_gives_the_place_to_the_next(world: World) -> None:
    world.pools = {"default": {"platforms": {"default": {"cpu": 1, "nodes": 1}}}}
    first = world.submit(group("g", task("a", lead=True)))
    running = world.started(first, "g", "a")
    second = world.submit(group("g", task("a", lead=True)))
    third = world.submit(group("g", task("a", lead=True)))
    assert eventually(lambda: world.scheduler.why_pending(third), "a reason")
    assert world.scheduler.cancel(second, user="tester").status is WorkflowStatus.FAILED_CANCELED
    running.exit(0)
    world.started(third, "g", "a").exit(0)
    assert world.finished(third).status is WorkflowStatus.COMPLETED
    assert f"{second}/g" not in world.executor.gangs


def test_cancel_what_does_not_exist(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.scheduler.cancel("none-1", user="tester")


# --- places and priorities


def small_pool(world: World, **more: Any) -> None:
    world.pools = {"default": {"platforms": {"default": {"cpu": 1, "nodes": 1}, **more}}}


def test_a_group_waits_with_a_reason_until_there_is_room(world: World) -> None:
    small_pool(world)
    first = world.submit(group("g", task("a", lead=True)))
    running = world.started(first, "g", "a")
    second = world.submit(group("g", task("a", lead=True)))
    reason = eventually(lambda: world.scheduler.why_pending(second), "a reason")
    assert reason.startswith("g: ")
    assert "cpu 1" in eventually(
        lambda: (text := world.scheduler.why_pending(second)) and "lacks" in text and text, "the real reason"
    )
    running.exit(0)
    world.started(second, "g", "a").exit(0)
    world.finished(second)


def test_a_gang_is_placed_as_a_whole(world: World) -> None:
    world.pools = {"default": {"platforms": {"default": {"cpu": 1, "nodes": 2}}}}
    single = world.submit(group("g", task("a", lead=True)))
    running = world.started(single, "g", "a")
    pair = world.submit(group("g", task("a", lead=True), task("b")))
    eventually(lambda: "lacks" in world.scheduler.why_pending(pair), "the pair waits")
    assert f"{pair}/g" not in world.executor.gangs
    running.exit(0)
    world.started(pair, "g", "a").exit(0)
    record = world.finished(pair)
    assert {record.task("a").node, record.task("b").node} == {"default-1", "default-2"}


def test_priority_goes_before_time(world: World) -> None:
    small_pool(world)
    first = world.submit(group("g", task("a", lead=True)))
    running = world.started(first, "g", "a")
    order = {}
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        order[priority] = world.submit(group("g", task("a", lead=True)), priority=priority)
        world.clock.now += 1
    running.exit(0)
    for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW):
        world.started(order[priority], "g", "a").exit(0)
        world.finished(order[priority])


def test_a_large_group_is_not_overtaken_on_its_platform_but_others_go_on(world: World) -> None:
    world.pools = {
        "default": {
            "default_platform": "a",
            "platforms": {"a": {"cpu": 1, "nodes": 2}, "b": {"cpu": 1, "nodes": 1}},
        }
    }
    resources = {"default": ResourceSpec(platform="a"), "other": ResourceSpec(platform="b")}
    first = world.submit(group("g", task("a", lead=True)), resources=resources)
    running = world.started(first, "g", "a")
    large = world.submit(group("g", task("a", lead=True), task("b")), resources=resources)
    small = world.submit(group("g", task("a", lead=True)), resources=resources)
    apart = world.submit(group("g", task("a", lead=True, resource="other")), resources=resources)
    world.started(apart, "g", "a").exit(0)
    world.finished(apart)
    assert f"waits behind {large}" in world.scheduler.why_pending(small)
    running.exit(0)
    world.started(large, "g", "a").exit(0)
    world.started(small, "g", "a").exit(0)
    world.finished(small)


def test_heterogeneous_group_over_two_platforms(world: World) -> None:
    world.pools = {"lab": {"platforms": {"ovx-a40": {"gpu": 1, "nodes": 2}, "agx-orin-jp6": {"nodes": ["orin"]}}}}
    resources = {
        "gpu": ResourceSpec(platform="ovx-a40", gpu=1, cpu=1),
        "edge": ResourceSpec(platform="agx-orin-jp6", cpu=1),
    }
    wf = world.submit(
        group("g", task("sim", lead=True, resource="gpu"), task("train", resource="gpu"), task("arm", resource="edge")),
        resources=resources,
        pool="lab",
    )
    world.started(wf, "g", "sim").exit(0)
    record = world.finished(wf)
    assert record.task("arm").platform == "agx-orin-jp6"
    assert record.task("arm").node == "orin"
    assert {record.task("sim").node, record.task("train").node} == {"ovx-a40-1", "ovx-a40-2"}


def test_quota_of_guaranteed_gpus(world: World) -> None:
    world.pools = {"default": {"gpu_guarantee": 1, "platforms": {"default": {"gpu": 2, "nodes": 1}}}}
    resources = {"default": ResourceSpec(gpu=1)}
    first = world.submit(group("g", task("a", lead=True)), resources=resources)
    running = world.started(first, "g", "a")
    second = world.submit(group("g", task("a", lead=True)), resources=resources)
    borrower = world.submit(group("g", task("a", lead=True)), resources=resources, priority=Priority.LOW)
    eventually(lambda: "quota" in world.scheduler.why_pending(second), "the quota is named")
    running.exit(0)
    world.started(second, "g", "a").exit(0)
    world.started(borrower, "g", "a").exit(0)
    world.finished(borrower)


@pytest.mark.parametrize(
    ("pools", "reason"),
    [({"default": {"status": "OFFLINE"}}, "offline"), ({"lab": {}}, "not declared")],
)
def test_a_pool_that_takes_nothing_now(world: World, pools: dict[str, Any], reason: str) -> None:
    world.pools = {"lab": {}} if reason == "offline" else {"gone": {}}
    wf = world.submit(group("g", task("a", lead=True)), pool="default" if reason == "offline" else "gone")
    world.started(wf, "g", "a").exit(0)
    world.finished(wf)
    world.pools = {"gone": {}, **pools}
    name = "default" if reason == "offline" else "gone"
    waiting = world.submit(group("g", task("a", lead=True)), pool=name)
    if reason != "offline":
        world.started(waiting, "g", "a").exit(0)
        return
    eventually(lambda: reason in world.scheduler.why_pending(waiting), "the reason")
    world.pools = {}
    world.scheduler.wake()
    world.started(waiting, "g", "a").exit(0)
    world.finished(waiting)


def test_nodes_that_are_declared_later_are_used(world: World) -> None:
    small_pool(world)
    first = world.submit(group("g", task("a", lead=True)))
    world.started(first, "g", "a")
    second = world.submit(group("g", task("a", lead=True)))
    eventually(lambda: world.scheduler.why_pending(second), "it waits")
    world.pools = {"default": {"platforms": {"default": {"cpu": 1, "nodes": 2}}}}
    world.scheduler.wake()
    world.started(second, "g", "a").exit(0)
    world.finished(second)


# --- time


def test_exec_timeout(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)), timeout=Timeout(exec_timeout=60))
    running = world.started(wf, "g", "a")
    world.clock.now += 59
    world.scheduler.tick()
    assert world.status(wf) is WorkflowStatus.RUNNING
    world.clock.now += 2
    world.scheduler.wake()
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED_EXEC_TIMEOUT
    eventually(lambda: running.killed, "the command is killed")


def test_queue_timeout(world: World) -> None:
    small_pool(world)
    first = world.submit(group("g", task("a", lead=True)))
    world.started(first, "g", "a")
    wf = world.submit(group("g", task("a", lead=True)), timeout=Timeout(queue_timeout=10))
    eventually(lambda: world.scheduler.why_pending(wf), "it waits")
    world.clock.now += 11
    world.scheduler.wake()
    assert world.finished(wf).status is WorkflowStatus.FAILED_QUEUE_TIMEOUT
    assert world.status(first) is WorkflowStatus.RUNNING


# --- the server ends and begins


def test_what_runs_goes_on_without_a_server_and_is_taken_up_by_the_next(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True), task("b")), group("later", task("c", lead=True)))
    running = world.started(wf, "g", "a")
    other = world.started(wf, "later", "c")
    world.restart_after(lambda: other.exit(0))
    assert not running.killed
    eventually(lambda: world.statuses(wf)["c"] == "COMPLETED", "the end of the other group is learnt")
    running.exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.COMPLETED
    assert [(entry.name, entry.retry_id) for entry in record.all_tasks()] == [("a", 0), ("b", 0), ("c", 0)]
    assert [len(gangs) for gangs in world.executor.gangs.values()] == [1, 1]


def test_a_group_whose_agent_is_lost_runs_again(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True), task("b")), group("later", task("c", lead=True)))
    running = world.started(wf, "g", "a")
    world.started(wf, "later", "c").exit(0)
    eventually(lambda: world.statuses(wf)["c"] == "COMPLETED", "the other group ends")
    world.restart_after(world.lose_agents)
    assert running.killed
    again = world.started(wf, "g", "a", gang=1)
    assert again.launch.home.name == "1"
    again.exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.COMPLETED
    assert [(entry.name, entry.retry_id) for entry in record.all_tasks()] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("c", 0),
    ]
    assert record.task("a", 0).exit_code == 3002


def test_without_retries_left_a_lost_agent_is_a_server_error(world: World) -> None:
    world.pools = {"default": {"max_retry_per_task": 0}}
    wf = world.submit(group("g", task("a", lead=True)))
    world.started(wf, "g", "a")
    world.lose_agents()
    record = world.finished(wf)
    assert record.status is WorkflowStatus.FAILED_SERVER_ERROR
    assert record.task("a").exit_code == 3002


def test_what_was_ordered_while_no_server_ran_is_carried_out_by_the_next(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    running = world.started(wf, "g", "a")
    other = world.make(alone=False)
    world.restart_after(lambda: other.cancel(wf, user="tester"))
    eventually(lambda: running.killed, "the command is killed")
    eventually(world.scheduler.idle, "the group is cleaned up")
    other.stop()


def test_a_run_that_no_record_knows_is_ended(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    running = world.started(wf, "g", "a")
    world.restart_after(lambda: world.store.delete(wf))
    eventually(lambda: running.killed, "the command is killed")
    assert not world.machine.agents


def test_tasks_are_ended_with_the_server_when_asked_and_run_again_with_the_next(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    running = world.started(wf, "g", "a")
    assert world.scheduler.end_tasks("The server was stopped with its tasks.", 30.0) == 0
    assert running.killed
    assert world.scheduler.idle()
    world.restart()
    world.started(wf, "g", "a", gang=1).exit(0)
    record = world.finished(wf)
    assert record.status is WorkflowStatus.COMPLETED
    assert record.group("g").placements == 2


def test_a_record_of_a_server_that_kept_its_tasks_to_itself(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    world.started(wf, "g", "a")

    def as_before() -> None:
        world.lose_agents()
        world.machine.agents.clear()
        old = world.record(wf).group("g")
        world.store.change(wf, lambda record: replace(record, groups=(replace(old, holds=(), orders=()),)))

    world.restart_after(as_before)
    world.started(wf, "g", "a", gang=1).exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


def test_a_queued_workflow_survives_a_restart(world: World) -> None:
    world.pools = {"default": {"status": "OFFLINE"}}
    wf = world.submit(group("g", task("a", lead=True)))
    eventually(lambda: world.scheduler.why_pending(wf), "it waits")
    world.restart()
    assert world.status(wf) is WorkflowStatus.PENDING
    world.pools = {}
    world.scheduler.wake()
    world.started(wf, "g", "a").exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


def test_an_event_survives_a_state_store_that_fails_for_a_while(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    running = world.started(wf, "g", "a")
    world.store.failures = 5
    running.exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


def test_a_placement_survives_a_state_store_that_fails_for_a_while(world: World) -> None:
    small_pool(world)
    first = world.submit(group("g", task("a", lead=True)))
    running = world.started(first, "g", "a")
    second = world.submit(group("g", task("a", lead=True)))
    eventually(lambda: world.scheduler.why_pending(second), "it waits")
    world.store.failures = 8
    running.exit(0)
    world.started(second, "g", "a").exit(0)
    assert world.finished(second).status is WorkflowStatus.COMPLETED


def test_a_log_that_can_not_be_written_does_not_stop_the_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ServiceError("no room for logs")

    monkeypatch.setattr(world.scheduler.logs, "keep_error", refuse)
    wf = world.submit(group("g", task("a", lead=True)))
    world.started(wf, "g", "a").exit(1)
    assert world.finished(wf).status is WorkflowStatus.FAILED


def test_agents_that_can_not_be_told_are_told_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pool(world)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(ThreadAgents, "order", refuse)
        wf = world.submit(group("g", task("a", lead=True)))
        eventually(lambda: world.record(wf).group("g").orders, "it is placed")
    world.scheduler.wake()
    world.started(wf, "g", "a").exit(0)
    assert world.finished(wf).status is WorkflowStatus.COMPLETED


def test_nothing_is_taken_once_it_stops(world: World) -> None:
    world.scheduler.stop()
    with pytest.raises(ServiceError):
        world.submit(group("g", task("a", lead=True)))


# --- what is told


def test_events_tell_the_story_of_a_task(world: World) -> None:
    wf = world.submit(group("g", task("a", lead=True)))
    world.started(wf, "g", "a").exit(1)
    world.finished(wf)
    reasons = [note.reason for name, note in world.store.notes if name == wf]
    assert reasons == ["SCHEDULING", "INITIALIZING", "RUNNING", "STARTED", "STORING", "FAILED"]


def test_many_workflows_at_once(world: World) -> None:
    world.pools = {"default": {"platforms": {"default": {"cpu": 4, "nodes": 2}}}}
    done = threading.Event()

    def run_everything() -> None:
        while not done.is_set():
            for gangs in list(world.executor.gangs.values()):
                for gang in gangs:
                    _end_started(gang)
            done.wait(0.002)

    ender = threading.Thread(target=run_everything)
    ender.start()
    try:
        ids = [
            world.submit(group("g", task("a", lead=True), task("b")), name=f"load-{index % 3}") for index in range(30)
        ]
        assert {world.finished(wf).status for wf in ids} == {WorkflowStatus.COMPLETED}
    finally:
        done.set()
        ender.join()
    eventually(world.scheduler.idle, "everything is cleaned up")
    assert {world.record(wf).group("g").status for wf in ids} == {GroupStatus.COMPLETED}


def _end_started(gang: FakeGang) -> None:
    for entry in gang.tasks.values():
        if entry.started.is_set():
            entry.exit(0)
