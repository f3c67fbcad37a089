"""The corpus of workflows, run for real: real processes in their sandboxes, a real store, nothing shortened."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import NotFoundError, SpecError
from casstore.repo.store import Store
from casstore_orchestrator.data import BucketData
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.gang import validate_fit
from casstore_orchestrator.loader import load
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.plan import restart_spec
from casstore_orchestrator.pools import Machine, Resources, parse_pools
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.spec import WorkflowSpec
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.status import TaskStatus, WorkflowStatus
from casstore_orchestrator.testing import MemoryStateStore, ThreadAgents, ThreadMachine
from casstore_orchestrator.validation import check_submission

CORPUS = Path(__file__).parent.parent / "compat" / "workflows"
PATIENCE = 120.0
POOLS = {
    "lab": {
        "description": "two platforms that are parts of one machine",
        "platforms": {
            "ovx-a40": {"cpu": 8, "gpu": 1, "memory": "64Gi", "nodes": 2},
            "agx-orin-jp6": {"cpu": 8, "memory": "64Gi", "nodes": 1},
        },
    }
}


BOX = Machine("box", Resources(cpu=8, memory=64 << 30, storage=1 << 40, gpu=0))


class Lab:
    """A scheduler over this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backend = open_backend(f"file://{folder / 'store'}", create=True)
        self.bucket = Bucket(Store.open(self.backend, create=True), name="default", user="tester")
        self.records = MemoryStateStore()
        self.pools = parse_pools(POOLS, BOX)
        self.home = folder / "workflows"
        executor = ProcessExecutor(hidden=[folder])
        self.machine = ThreadMachine.over(executor, BucketData(self._open), self.home, file_urls=True)
        self.scheduler = self.make_scheduler()
        self.scheduler.start()

    def make_scheduler(self) -> Scheduler:
        executor = self.machine.services.executor
        agents, logs = ThreadAgents(self.machine), LogStore(self.home)
        return Scheduler(self.records, agents, lambda: self.pools, logs, host=executor.host)

    def close(self) -> None:
        self.scheduler.stop()
        self.machine.close()

    def _open(self, name: str | None, user: str) -> Bucket:
        if name not in (None, "default"):
            msg = f"there is no bucket {name}"
            raise NotFoundError(msg)
        return self.bucket

    def submit(self, text: str, *, pool: str = "default", **options: Any) -> str:
        return self.submit_spec(load(text, **options).spec, pool=pool)

    def submit_spec(self, spec: WorkflowSpec, *, pool: str = "default", parent: str | None = None) -> str:
        validate_fit(spec, self.pools[pool])
        check_submission(spec, self.records.load, self.home, file_urls=True)
        record = new_workflow(spec, uuid=uuid.uuid4().hex, user="tester", pool=self.pools[pool], parent=parent)
        return self.scheduler.submit(record).id

    def file(self, name: str, **options: Any) -> str:
        return self.submit((CORPUS / f"{name}.yaml").read_text(), **options)

    def finished(self, workflow_id: str, patience: float = PATIENCE) -> WorkflowRecord:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            record = self.records.load(workflow_id)
            if record.status.finished:
                return record
            time.sleep(0.02)
        pytest.fail(f"{workflow_id} did not end; its log:\n" + "\n".join(self.log(workflow_id)))

    def log(self, workflow_id: str, **options: Any) -> list[str]:
        lines = self.scheduler.logs.read(workflow_id, live=lambda: self.records.load(workflow_id).live, **options)
        return [line.split(" ", 2)[2] for line in lines]

    def completed(self, workflow_id: str, patience: float = PATIENCE) -> list[str]:
        """The log of a workflow that has to complete."""
        record = self.finished(workflow_id, patience)
        lines = self.log(workflow_id, follow=True)
        assert record.status is WorkflowStatus.COMPLETED, "\n".join([record.failure_message or "", *lines])
        return lines

    def idle(self) -> None:
        eventually(self.scheduler.idle, "everything is cleaned up")


def eventually(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"never happened: {what}")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.close()


def one_task(command: str, more: str = "") -> str:
    """A workflow of one task that runs a bash script."""
    script = "\n".join(" " * 6 + line for line in command.splitlines())
    return (
        "workflow:\n  name: single\n  tasks:\n  - name: only\n    image: ubuntu:24.04\n"
        f"    command: [bash, -c]\n    args:\n    - |\n{script}\n{more}"
    )


# --- the corpus


def test_hello_world(lab: Lab) -> None:
    wf = lab.file("hello_world")
    assert wf == "hello-osmo-1"
    lines = lab.completed(wf)
    assert "[hello] Hello from OSMO!" in lines
    assert any(line.startswith("[hello][osmo]") and "solat" in line for line in lines), lines


def test_template_hello_world(lab: Lab) -> None:
    wf = lab.file("template_hello_world", set_values=["workflow_name=greetings", "message=Custom message!"])
    assert wf == "greetings-1"
    assert "[hello] Custom message!" in lab.completed(wf)


def test_tokens(lab: Lab) -> None:
    lines = lab.completed(lab.file("token_example"))
    assert "[show-tokens] Workflow token-example-1, experiment my-experiment" in lines
    assert "[show-tokens] output folder exists" in lines


def test_serial(lab: Lab) -> None:
    lines = lab.completed(lab.file("serial"))
    assert "[task2] task2 got: Data from task 1" in lines
    assert "[task3] task3 got: Data from task 1 and Data from task 2" in lines


def test_serial_with_variables(lab: Lab) -> None:
    assert "[consumer] from the producer" in lab.completed(lab.file("serial_variables"))


def test_parallel(lab: Lab) -> None:
    lines = lab.completed(lab.file("parallel"))
    assert {f"[task{n}] Task {n} done" for n in (1, 2, 3)} <= set(lines)


def test_combination_simple(lab: Lab) -> None:
    lines = lab.completed(lab.file("combination_simple"))
    assert "[train-model-a] Training model A on 5 files" in lines
    assert "[train-model-b] Training model B on 5 files" in lines


def test_combination_complex_reads_what_lead_and_non_lead_wrote(lab: Lab) -> None:
    lines = lab.completed(lab.file("combination_complex"))
    assert "[aggregate-results] lines: 3" in lines
    assert "[aggregate-results] last: RECORD 3" in lines


def test_group_tasks(lab: Lab) -> None:
    lines = lab.completed(lab.file("group_tasks"))
    assert {f"[task{n}][osmo] Group ready" for n in (1, 2, 3)} <= set(lines)
    assert {"[task2] Task 2 done", "[task3] Task 3 done"} <= set(lines)


def test_group_communication(lab: Lab) -> None:
    assert "[client] The client got: Hello from the server" in lab.completed(lab.file("group_communication"))


def test_template_loop(lab: Lab) -> None:
    lines = lab.completed(lab.file("template_loop"))
    assert any(line.startswith("[master] worker 2 is ") for line in lines)
    assert any("rank 2 of 3 follows" in line for line in lines)


@pytest.mark.parametrize("values", [[], ["num_gpu=3", "num_nodes=3"]])
def test_training_on_several_nodes(lab: Lab, values: list[str]) -> None:
    """Ranks from a loop, a rendezvous at the master's name, the trained policy as a dataset."""
    lab.pools = parse_pools({"gpu": {"platforms": {"node": {"gpu": 3, "nodes": 3}}}}, BOX)
    lines = lab.completed(lab.file("train_policy", pool="gpu", set_values=values))
    world = 9 if values else 4
    connected = [line for line in lines if line.endswith(f" of {world} is connected to master:5555")]
    assert len(connected) == world
    weights = {line.rsplit(" ", 1)[1] for line in lines if " ends with weight " in line}
    assert weights == {f"{(world + 1) / 2:.3f}"}
    version = lab.bucket.resolve("trained-policy")
    assert version.record.provenance["task"] == "master"
    assert [os.fsdecode(entry.path) for entry in lab.bucket.entries("trained-policy")] == [
        "policy",
        "policy/policy.json",
    ]


@pytest.mark.parametrize("name", ["resources_basic", "resources_multiple"])
def test_resources(lab: Lab, name: str) -> None:
    lab.completed(lab.file(name))


def test_platforms(lab: Lab) -> None:
    wf = lab.file("resources_platforms", pool="lab")
    lines = lab.completed(wf)
    assert "[x86-task] on the x86 platform" in lines
    assert "[arm-task] on the ARM platform" in lines
    record = lab.records.load(wf)
    assert record.task("arm-task").platform == "agx-orin-jp6"


def test_platforms_that_nobody_declared_are_refused(lab: Lab) -> None:
    with pytest.raises(SpecError, match="platform"):
        lab.file("resources_platforms")


def test_dataset_up_and_down(lab: Lab) -> None:
    first = lab.completed(lab.file("dataset_upload"))
    assert any("Uploaded default/my_dataset:1: 10 files" in line for line in first)
    version = lab.bucket.resolve("my_dataset")
    names = [os.fsdecode(entry.path) for entry in lab.bucket.entries("my_dataset")]
    assert [name for name in names if name != "data"] == sorted(f"data/file_{n}.txt" for n in range(1, 11))
    assert version.record.metadata["default"]["wfid"] == "upload-dataset-1"
    assert version.record.provenance["task"] == "upload"

    again = lab.completed(lab.file("dataset_upload"))
    assert any("default/my_dataset:1 holds the same files already" in line for line in again)
    assert lab.bucket.resolve("my_dataset").number == 1

    lines = lab.completed(lab.file("dataset_download"))
    assert "[download] contents of file 1" in lines
    assert any("Downloading default/my_dataset:1" in line for line in lines)


def test_dataset_update(lab: Lab) -> None:
    lab.completed(lab.file("dataset_upload"))
    lab.completed(lab.file("dataset_update"))
    version = lab.bucket.resolve("my_dataset")
    assert version.number == 2
    names = {os.fsdecode(entry.path) for entry in lab.bucket.entries("my_dataset")}
    assert {"data/file_1.txt", "data/file_11.txt"} <= names
    made_from = version.record.provenance["inputs"][0]
    assert made_from["ref"] == "default/my_dataset:1"
    assert made_from["checksum"] == lab.bucket.resolve("my_dataset", "1").record.checksum


def test_tasks_that_add_to_one_dataset_at_once_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "base").write_text("base")
    lab.bucket.upload("shared", [str(tmp_path / "base")])
    tasks = "".join(
        f"  - {{name: u{n}, image: x, command: [bash, -c, 'echo {n} > {{{{output}}}}/f{n}'],"
        f" outputs: [{{update_dataset: {{name: shared, paths: [f{n}]}}}}]}}\n"
        for n in range(4)
    )
    lab.completed(lab.submit(f"workflow:\n  name: adding\n  tasks:\n{tasks}"))
    assert {os.fsdecode(entry.path) for entry in lab.bucket.entries("shared")} == {"base", "f0", "f1", "f2", "f3"}
    assert lab.bucket.resolve("shared").number == 5


def test_tags_metadata_and_labels_of_an_output(lab: Lab) -> None:
    script = """
mkdir {{output}}/d {{output}}/about
echo 1 > {{output}}/d/a.txt; echo 2 > {{output}}/d/b.bin
echo 'accuracy: 0.9' > {{output}}/about/metadata.yaml
echo 'robot: arm' > {{output}}/about/labels.yaml"""
    more = r"""    outputs:
    - dataset:
        name: "tagged:{{workflow_id}}"
        path: d
        regex: .*\.txt$
        metadata: [about/metadata.yaml]
        labels: [about/labels.yaml]
    - dataset:
        name: skipped
        metadata: [about/none.yaml]
"""
    for number in (1, 2):
        lines = lab.completed(lab.submit(one_task(script, more)))
        assert any("skipped" in line and "about/none.yaml" in line for line in lines)
        version = lab.bucket.resolve("tagged", f"single-{number}")
        assert version.number == 1, "the same content is the same version, which gets another tag"
    assert [os.fsdecode(entry.path) for entry in lab.bucket.entries("tagged")] == ["d", "d/a.txt"]
    assert version.record.metadata["accuracy"] == 0.9
    assert lab.bucket.info("tagged").summary.labels == {"robot": "arm"}


def test_the_welcome_page_runs_once_its_tasks_have_commands(lab: Lab) -> None:
    lab.pools = parse_pools(
        {"default": {"platforms": {name: {"gpu": 8} for name in ("rtx-pro-6000", "gb200", "jetson-agx-thor")}}},
        BOX,
    )
    text = (CORPUS / "welcome.yaml").read_text()
    script = "cat {{input:0}}/file 2> /dev/null; echo more >> {{output}}/file"
    for name in ("simulation", "train-policy", "evaluate-thor"):
        text = text.replace(f"- name: {name}\n", f"- name: {name}\n    command: [bash, -c, '{script}']\n")
    lab.completed(lab.submit(text))
    assert lab.bucket.resolve("thor-benchmark").record.provenance["inputs"][0]["ref"] == "workflow-1:train-policy"


def test_data_filter(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "large"
    (source / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.bin", "sub/c.txt"):
        (source / name).write_text(name)
    lab.bucket.upload("large_dataset", [f"{source}/*"])
    lines = lab.completed(lab.file("data_filter"))
    printed = [line.rsplit("/", 1)[-1] for line in lines if line.startswith("[filter] ")]
    assert sorted(printed) == ["a.txt", "c.txt"]
    with pytest.raises(NotFoundError):
        lab.bucket.resolve("output_dataset")


def test_a_collection_is_one_folder_for_each_member(lab: Lab, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        lab.bucket.upload(name, [str(tmp_path / name)])
    lab.bucket.collect("both", ["one", "two"])
    more = "    inputs:\n    - dataset:\n        name: both\n"
    lines = lab.completed(lab.submit(one_task("cat {{input:0}}/one/one {{input:0}}/two/two", more)))
    assert "[only] onetwo" in lines


def test_reschedule_until_the_limit(lab: Lab) -> None:
    wf = lab.file("reschedule")
    record = lab.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    assert [task.exit_code for task in record.all_tasks()] == [7, 7, 7, 7]
    assert "[flaky retry-3] this attempt fails" in lab.log(wf, follow=True)


def test_what_can_not_be_run_without_images_fails_with_a_reason(lab: Lab) -> None:
    lab.pools = parse_pools(
        {"default": {"platforms": {name: {"gpu": 8} for name in ("rtx-pro-6000", "gb200", "jetson-agx-thor")}}},
        Machine("box", Resources(cpu=8, memory=64 << 30, storage=1 << 40, gpu=0)),
    )
    record = lab.finished(lab.file("welcome"))
    assert record.status is WorkflowStatus.FAILED_START_ERROR
    assert "command" in (record.failure_message or "")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_robot_simulation(lab: Lab) -> None:
    """Three computers on two platforms; the end of the lead ends the two endless others."""
    wf = lab.file("robot_simulation", pool="lab")
    lines = lab.completed(wf, patience=1000)
    record = lab.records.load(wf)
    assert {task.platform for task in record.all_tasks()} == {"ovx-a40", "agx-orin-jp6"}
    assert {task.status for task in record.all_tasks()} == {TaskStatus.COMPLETED}
    assert record.task("model-training").exit_code == 0
    assert any("[model-training] === Epoch 1 ===" in line for line in lines)
    assert any(line.startswith("[physics-sim] [SIM] E1:S1") for line in lines)
    assert any(line.startswith("[robot-ctrl] [CTRL] E1:S1") for line in lines)


# --- what only real processes show


def test_the_rest_of_a_failed_workflow_is_run_again(lab: Lab, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.mkdir()
    text = f"""
workflow:
  name: halves
  tasks:
  - name: first
    image: x
    command: [bash, -c, "echo made > {{{{output}}}}/file; echo ran-first"]
  - name: second
    image: x
    command: [bash, -c, "test -e {{{{input:1}}}}/go && cat {{{{input:first}}}}/file"]
    inputs:
    - task: first
    - url: file://{flag}
"""
    wf = lab.submit(text)
    record = lab.finished(wf)
    assert record.status is WorkflowStatus.FAILED
    completed = frozenset(group.name for group in record.groups if not group.status.failed)
    (flag / "go").write_text("")
    again = lab.submit_spec(restart_spec(record.spec, record.id, completed), parent=wf)
    lines = lab.completed(again)
    assert "[second] made" in lines
    assert not any("ran-first" in line for line in lines)


def test_a_task_can_not_publish_what_is_outside_of_its_folder(lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("hunter2")
    more = "    outputs:\n    - dataset:\n        name: made\n"
    wf = lab.submit(one_task(f"ln -s {secret} {{{{output}}}}/link; echo fine > {{{{output}}}}/file", more))
    lab.completed(wf)
    kinds = {os.fsdecode(entry.path): entry.kind.__int__() for entry in lab.bucket.entries("made")}
    assert set(kinds) == {"file", "link"}


def test_exit_code_and_error_log(lab: Lab) -> None:
    wf = lab.submit(one_task("echo before; echo broken >&2; exit 23"))
    record = lab.finished(wf)
    assert record.task("only").exit_code == 23
    lines = lab.log(wf, follow=True)
    assert "[only] broken" in lines
    lab.idle()
    assert "[only] broken" in lab.log(wf, error=True)


def test_cancel_ends_every_process(lab: Lab) -> None:
    marker = f"cancel-{uuid.uuid4().hex}"
    wf = lab.submit(one_task(f"echo started; exec -a {marker} sleep 1000 & wait"))
    eventually(lambda: "[only] started" in lab.log(wf), "the task starts")
    lab.scheduler.cancel(wf, user="tester")
    lab.idle()
    assert lab.records.load(wf).status is WorkflowStatus.FAILED_CANCELED
    assert not _processes(marker)


def test_the_next_scheduler_goes_on_with_what_runs(lab: Lab) -> None:
    wf = lab.submit(one_task("echo started; while ! [ -e {{output}}/go ]; do sleep 0.05; done; echo ended"))
    eventually(lambda: "[only] started" in lab.log(wf), "the task starts")
    lab.scheduler.stop()
    assert not lab.records.load(wf).status.finished
    (lab.home / wf / "only" / "0" / "data" / "output" / "go").touch()
    lab.scheduler = lab.make_scheduler()
    lab.scheduler.start()
    assert "[only] ended" in lab.completed(wf)


def test_a_lost_agent_leaves_nothing_behind_and_its_group_runs_again(lab: Lab) -> None:
    marker = f"stop-{uuid.uuid4().hex}"
    wf = lab.submit(one_task(f"echo started; exec -a {marker} sleep 2 & wait; echo ended"))
    eventually(lambda: "[only] started" in lab.log(wf), "the task starts")
    lab.machine.kill(RunKey(wf, "only-group", 1))
    assert not _processes(marker)
    assert "[only retry-1] ended" in lab.completed(wf)


def test_what_the_memory_limit_ended_is_told_even_when_the_command_went_on(lab: Lab) -> None:
    if not probe().bases.memory:
        pytest.skip("no control group is writable here")
    resources = "  resources: {default: {memory: 64Mi}}\n  tasks:"
    wf = lab.submit(one_task("python3 -c 'bytearray(400 << 20)'; echo went on").replace("  tasks:", resources))
    lines = lab.completed(wf)
    assert "[only] went on" in lines
    assert any("memory limit" in line for line in lines), lines


def test_exec_timeout(lab: Lab) -> None:
    text = one_task("echo started; sleep 1000").replace("  tasks:", "  timeout:\n    exec_timeout: 1s\n  tasks:")
    record = lab.finished(lab.submit(text))
    assert record.status is WorkflowStatus.FAILED_EXEC_TIMEOUT


def test_outputs_that_the_store_refuses_end_with_2012(lab: Lab) -> None:
    more = "    outputs:\n    - dataset:\n        name: nowhere/made\n"
    record = lab.finished(lab.submit(one_task("echo x > {{output}}/x", more)))
    assert record.task("only").exit_code == 2012


def test_url_inputs_and_outputs(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "file.txt").write_text("from a folder")
    more = f"    inputs:\n    - url: file://{source}\n    outputs:\n    - url: file://{target}\n"
    lab.completed(lab.submit(one_task("tr a-z A-Z < {{input:0}}/file.txt > {{output}}/file.txt", more)))
    assert (target / "file.txt").read_text() == "FROM A FOLDER"


@pytest.mark.parametrize("url", ["s3://bucket/key", "https://example.com/x", "file://host/x", "/plain"])
def test_urls_that_are_not_supported_are_refused_at_submission(lab: Lab, url: str) -> None:
    with pytest.raises(SpecError, match="url"):
        lab.submit(one_task("true", f"    inputs:\n    - url: {url}\n"))


def test_a_task_of_an_unfinished_workflow_is_refused_as_input(lab: Lab) -> None:
    wf = lab.submit(one_task("sleep 1000"))
    with pytest.raises(SpecError, match="has not finished"):
        lab.submit(one_task("true", f"    inputs:\n    - task: {wf}:only\n"))
    with pytest.raises(SpecError, match="no workflow"):
        lab.submit(one_task("true", "    inputs:\n    - task: absent-1:only\n"))
    lab.scheduler.cancel(wf, user="tester")


def _processes(marker: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command and int(name) != os.getpid():
                found.append(int(name))
    return found
