from __future__ import annotations

from pathlib import Path

import pytest

from casstore.errors import UsageError
from casstore_orchestrator.pools import Machine, Pool, Resources, parse_pools
from casstore_orchestrator.simulator.report import report
from casstore_orchestrator.simulator.traces import Job, generate, read_trace
from casstore_orchestrator.simulator.world import simulate
from casstore_orchestrator.status import Priority

GIB = 1 << 30
MACHINE = Machine("node", Resources(cpu=64, memory=1024 * GIB, storage=GIB, gpu=4))


def pools(nodes: int = 2) -> dict[str, Pool]:
    return parse_pools({"default": {"platforms": {"default": {"nodes": nodes}}}}, MACHINE)


def test_a_group_waits_as_long_as_the_one_before_it_runs() -> None:
    jobs = [Job(0.0, 100.0, tasks=2, gpu=4, pool="default"), Job(10.0, 50.0, gpu=1, pool="default")]
    result = simulate(pools(), jobs, every=0.0)
    first, second = result.outcomes
    assert (first.started, first.ended) == (0.0, 100.0)
    assert (second.started, second.ended) == (100.0, 150.0)
    found = report(result)
    assert found.bound == 106.25  # 850 GPU seconds on 8 GPUs
    assert found.utilisation == pytest.approx(850 / (8 * 150))
    assert (found.unfinished, found.preemptions) == (0, 0)


def test_who_is_preempted_runs_again() -> None:
    jobs = [
        Job(0.0, 100.0, tasks=2, gpu=4, pool="default", priority=Priority.LOW),
        Job(10.0, 50.0, gpu=4, pool="default"),
    ]
    result = simulate(pools(), jobs, every=0.0)
    low, normal = result.outcomes
    assert (normal.started, normal.ended) == (10.0, 60.0)
    assert (low.runs, low.ended, low.status) == (2, 160.0, "COMPLETED")
    assert result.preemptions == 1


def test_made_up_work_is_done_and_is_the_same_each_time() -> None:
    own = pools(4)
    jobs = generate(3, own, seconds=2000.0, load=0.8)
    assert jobs == generate(3, own, seconds=2000.0, load=0.8)
    found = report(simulate(own, jobs))
    assert found.unfinished == 0
    assert 0 < found.utilisation <= found.possible <= 1.0 + 1e-9
    assert found.span >= found.bound


def test_traces_are_read(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("submit,duration,tasks,gpu,priority,user\n5,10,2,,low,ann\n1,20,1,4,,\n")
    first, second = read_trace(table, "default")
    assert (first.submit, first.gpu, first.priority) == (1.0, 4, Priority.NORMAL)
    assert (second.tasks, second.gpu, second.user) == (2, 1, "ann")
    workload = tmp_path / "t.swf"
    workload.write_text(
        "; comment\n1 0 3 60 4 -1 -1 4 120 -1 1 7 1 1 1 1 -1 -1\n2 9 3 -1 0 -1 -1 0 0 -1 0 7 1 1 1 1 -1 -1\n"
    )
    (job,) = read_trace(workload, "default")
    assert (job.duration, job.tasks, job.limit, job.user) == (60.0, 4, 120.0, "user-7")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", "no column submit"),
        ("submit,duration,tasks\n", "no jobs"),
        ("submit,duration,tasks\n1,x,1\n", ":2: duration 'x'"),
        ("submit,duration,tasks\n1,2,0\n", ":2: tasks '0'"),
        ("submit,duration,tasks,priority\n1,2,1,best\n", "priority 'BEST'"),
    ],
)
def test_a_trace_that_is_wrong_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_trace(path, "default")


def test_there_is_nothing_to_make_up_without_gpus() -> None:
    with pytest.raises(UsageError, match="no GPUs"):
        generate(1, parse_pools({}, Machine("n", Resources(cpu=1, storage=1))), seconds=10.0)


def test_a_trace_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="more than"):
        read_trace(path, "default")
