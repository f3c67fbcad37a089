"""The tutorials' workflows load as OSMO means them; files of the corpus are also what the end-to-end tests run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from casstore_orchestrator.gang import place, task_request, validate_fit
from casstore_orchestrator.loader import Loaded, load
from casstore_orchestrator.plan import make_plan
from casstore_orchestrator.pools import Machine, Resources, default_pools, parse_pools
from casstore_orchestrator.spec import DatasetInput, DatasetOutput, TaskInput, UpdateDatasetOutput
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.tokens import TokenValues, expand_vars, resolve

FOLDER = Path(__file__).with_name("workflows")
CORPUS = sorted(path.name for path in FOLDER.glob("*.yaml"))
LENIENT = {"welcome.yaml"}
GIB = 1 << 30
LAPTOP = Machine("laptop", Resources(cpu=2, memory=8 * GIB, storage=50 * GIB))
ROBOTS = {
    "robots": {
        "default_platform": "ovx-a40",
        "platforms": {
            "ovx-a40": {"cpu": 4, "memory": "16Gi", "gpu": 2},
            "agx-orin-jp6": {"cpu": 2, "memory": "8Gi"},
        },
    }
}


def corpus(name: str, *settings: str) -> Loaded:
    return load((FOLDER / name).read_text(), set_values=settings)


@pytest.mark.parametrize("name", CORPUS)
def test_every_file_loads_and_loads_again(name: str) -> None:
    loaded = corpus(name)
    assert bool(loaded.warnings) == (name in LENIENT), loaded.warnings
    again = load(loaded.rendered)
    assert again.spec == loaded.spec
    assert again.rendered == loaded.rendered
    pool = parse_pools(ROBOTS, LAPTOP)["robots"]
    record = new_workflow(loaded.spec, uuid="0f", user="u", pool=pool)
    assert {group.name for group in record.groups} == {group.name for group in loaded.spec.groups}


@pytest.mark.parametrize(
    "name",
    sorted({*CORPUS} - {"welcome.yaml", "robot_simulation.yaml", "resources_platforms.yaml", "train_policy.yaml"}),
)
def test_what_names_no_platform_runs_on_a_small_laptop(name: str) -> None:
    assert validate_fit(corpus(name).spec, default_pools(LAPTOP)["default"])


@pytest.mark.parametrize("name", ["robot_simulation.yaml", "resources_platforms.yaml"])
def test_platforms_may_be_two_parts_of_a_laptop(name: str) -> None:
    assert validate_fit(corpus(name).spec, parse_pools(ROBOTS, LAPTOP)["robots"])


def test_gpus_are_found_where_they_are_declared() -> None:
    pool = parse_pools({"gpu": {"platforms": {"node": {"gpu": 2, "nodes": 2}}}}, LAPTOP)["gpu"]
    assert validate_fit(corpus("train_policy.yaml").spec, pool)


def test_hello_world() -> None:
    spec = corpus("hello_world.yaml").spec
    assert (spec.name, spec.tasks[0].command) == ("hello-osmo", ("echo", "Hello from OSMO!"))


def test_serial_tasks_follow_each_other() -> None:
    plan = make_plan(corpus("serial.yaml").spec)
    assert list(plan.groups) == ["task1-group", "task2-group", "task3-group"]
    assert plan.groups["task3-group"].upstream == ("task1-group", "task2-group")


def test_variables_and_tokens_meet_in_arguments() -> None:
    spec = corpus("serial_variables.yaml").spec
    values = TokenValues(workflow_id="w-1", uuid="", output="/out", inputs=("/in/0",))
    producer = resolve(spec.task("producer"), values)
    assert expand_vars(producer.args, producer.environment)[1] == "/out/note.txt"
    consumer = resolve(spec.task("consumer"), values)
    assert expand_vars(consumer.args, consumer.environment) == ("/in/0/note.txt",)


def test_independent_tasks_are_groups_without_edges() -> None:
    plan = make_plan(corpus("parallel.yaml").spec)
    assert all(not node.upstream for node in plan.groups.values())
    assert len(plan.groups) == 3


def test_groups_in_a_row() -> None:
    spec = corpus("combination_complex.yaml").spec
    assert list(make_plan(spec).groups) == ["fetch", "process", "aggregate"]
    assert spec.group("process").lead.name == "upper-case"
    assert [item.task for item in spec.task("aggregate-results").inputs if isinstance(item, TaskInput)] == [
        "upper-case",
        "count-lines",
    ]


def test_templates_have_defaults_and_can_be_set() -> None:
    spec = corpus("template_hello_world.yaml").spec
    assert (spec.name, spec.tasks[0].image) == ("hello-osmo", "ubuntu:22.04")
    spec = corpus(
        "template_hello_world.yaml", "workflow_name=greetings", "ubuntu_version=24.04", "message=Custom message!"
    ).spec
    assert (spec.name, spec.tasks[0].image) == ("greetings", "ubuntu:24.04")
    assert spec.tasks[0].command == ("echo", "Custom message!")


def test_a_loop_makes_workers_and_tokens_for_them() -> None:
    group = corpus("template_loop.yaml", "workers=3").spec.groups[0]
    assert [task.name for task in group.tasks] == ["master", "worker_1", "worker_2", "worker_3"]
    hosts = {task.name: f"{task.name}.local" for task in group.tasks}
    master = resolve(group.lead, TokenValues(workflow_id="w-1", uuid="", output="/out", hosts=hosts))
    assert 'echo "worker 3 is worker_3.local"' in master.args[0]


def test_the_workflow_id_is_left_for_later() -> None:
    loaded = corpus("token_example.yaml", "experiment_name=pick")
    assert "Workflow {{workflow_id}}, experiment pick" in loaded.spec.tasks[0].args[0]
    assert "{{workflow_id}}" in loaded.rendered


def test_datasets() -> None:
    assert corpus("dataset_upload.yaml").spec.tasks[0].outputs == (DatasetOutput(name="my_dataset"),)
    assert corpus("dataset_download.yaml").spec.tasks[0].inputs == (DatasetInput(name="my_dataset"),)
    chosen = corpus("data_filter.yaml").spec.tasks[0]
    assert chosen.inputs == (DatasetInput(name="large_dataset", regex=r".*\.txt$"),)
    assert corpus("dataset_update.yaml").spec.tasks[0].outputs == (
        UpdateDatasetOutput(name="my_dataset", paths=("more/file_11.txt:data",)),
    )


def test_the_robot_simulation_is_the_tutorial_s_text() -> None:
    lines = [line.strip() for line in (FOLDER / "robot_simulation.yaml").read_text().splitlines()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "8dcc4ab678f34c1006631652b2e8212d947f07558b642567fbfb21ffba283def"


def test_the_robot_simulation_is_one_gang_on_two_platforms() -> None:
    spec = corpus("robot_simulation.yaml").spec
    group = spec.groups[0]
    assert (spec.name, spec.timeout.exec_timeout, group.lead.name) == ("robot-simulation", 900, "model-training")
    pool = parse_pools(ROBOTS, LAPTOP)["robots"]
    requests = [task_request(spec, task, pool) for task in group.tasks]
    assert [request.platforms for request in requests] == [("ovx-a40",), ("ovx-a40",), ("agx-orin-jp6",)]
    assert not hasattr(place(requests, pool.nodes), "reason")
    assert [request.amount.gpu for request in requests] == [1, 1, 0]
    script = group.lead.files[0].data().decode()
    assert "policy=18 && " in script
    assert "$(seq 1 12)" in script
    assert 'sim="http://{{host:physics-sim}}:8080"' in script
    assert script.startswith("# Helpers\nwait() {")


def test_the_example_of_the_welcome_page() -> None:
    loaded = corpus("welcome.yaml")
    spec = loaded.spec
    assert spec.name == "workflow"
    assert [spec.resource_of(task).platform for task in spec.tasks] == ["rtx-pro-6000", "gb200", "jetson-agx-thor"]
    assert spec.resource_of(spec.task("train-policy")).gpu == 8
    assert list(make_plan(spec).groups) == ["simulation-group", "train-policy-group", "evaluate-thor-group"]
    assert spec.task("evaluate-thor").outputs == (DatasetOutput(name="thor-benchmark"),)
    assert all(task.command == () for task in spec.tasks)
    assert sum("command" in warning for warning in loaded.warnings) == 3
