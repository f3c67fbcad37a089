"""A server that is killed at any step loses nothing, runs nothing twice and leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.status import WorkflowStatus

PATIENCE = 120.0
PROGRAM = str(Path(__file__).with_name("small_server.py"))
ONE = """
workflow:
  name: wf
  groups:
  - name: g
    tasks:
    - {name: a, lead: true, image: x, command: [sh, -c, "echo began; sleep 0.1; echo ended"]}
"""
SEVERAL = """
workflow:
  name: wf
  groups:
  - name: first
    tasks:
    - name: a
      lead: true
      image: x
      command: [sh, -c, "echo began; sleep 0.4; echo ended; echo from a > {{output}}/a"]
    - {name: b, image: x, command: [sh, -c, "echo began; sleep 60"]}
  - name: second
    tasks:
    - name: c
      lead: true
      image: x
      inputs: [{task: a}]
      command: [sh, -c, "echo began; sleep 0.3; cat {{input:0}}/a; echo ended"]
  - name: third
    tasks:
    - name: d
      lead: true
      image: x
      inputs: [{task: c}]
      exitActions: {RESCHEDULE: "7"}
      command: [sh, -c, "echo began; sleep 0.2; echo ended; case $TRY in 0) exit 7;; esac"]
      environment: {TRY: "0"}
"""


@pytest.fixture
def folder(short_path: Path) -> Iterator[Path]:
    yield short_path
    for pid in processes(short_path):
        os.kill(pid, signal.SIGKILL)


def processes(folder: Path) -> list[int]:
    """Everything that was started for this folder: it is named in the command lines."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if os.fsencode(folder) in file.read():
                        found.append(int(name))
            except OSError:
                continue
    return found


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, PROGRAM, str(folder), str(folder / "wf.yaml")])


def record(folder: Path) -> WorkflowRecord:
    return msgspec.json.decode((folder / "record").read_bytes(), type=WorkflowRecord)


def lines(folder: Path, task: str, retry_id: int = 0) -> Counter[str]:
    path = folder / "state" / "workflows" / "wf-1" / "_logs" / f"{task}.{retry_id}.log"
    return Counter(line.split("] ", 1)[1] for line in path.read_text().splitlines() if "][osmo]" not in line)


def check_clean(folder: Path) -> None:
    """Nothing runs, and of the run's homes, mounts and folders nothing is left."""
    deadline = time.monotonic() + PATIENCE
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.02)  # the last agent is on its way out
    assert processes(folder) == []
    assert [path.name for path in (folder / "state" / "runs").iterdir()] == ["closed"]
    homes = [path for path in (folder / "state" / "workflows" / "wf-1").glob("*/*") if path.name.isdigit()]
    assert homes == []
    bases = probe().bases
    for base in {bases.memory, bases.cpu, bases.pids} - {""}:
        groups = [name for name in os.listdir(base) if name.startswith("casstore-") and name.split("-")[1].isdigit()]
        assert [name for name in groups if not os.path.exists(f"/proc/{name.split('-')[1]}")] == []


@pytest.mark.slow
def test_killed_at_every_step(folder: Path) -> None:
    (folder / "wf.yaml").write_text(ONE)
    (folder / "die").touch()
    deaths = 0
    while (code := start(folder).wait(PATIENCE)) != 0:
        assert code == -signal.SIGKILL
        deaths += 1
    steps = (folder / "died").read_text().splitlines()
    assert deaths == len(steps) == len(set(steps))
    for step in (
        "stored",
        "start 1",
        "started 1",
        "ordered 1 1",
        "ordered 1 2",
        "ordered 1 3",
        "taken stored 1 3",
        "TaskRunning 1 1",
        "InputsReady stored 1 2",
        "CommandExited 1 3",
        "TaskExited 1 4",
        "ended 1",
        "ended 1 stored",
    ):
        assert step in steps
    ended = record(folder)
    assert ended.status is WorkflowStatus.COMPLETED
    assert [(task.name, task.retry_id) for task in ended.all_tasks()] == [("a", 0)]
    assert lines(folder, "a") == {"began": 1, "ended": 1}
    check_clean(folder)


def random_kills(folder: Path, seed: int, kills: int) -> int:
    """Run a workflow under a server that is killed at random; gives how often it was."""
    choice = random.Random(seed)
    (folder / "wf.yaml").write_text(SEVERAL)
    done = 0
    while True:
        server = start(folder)
        try:
            code = server.wait(choice.uniform(0.2, 1.0) if done < kills else PATIENCE)
            assert code == 0
            break
        except subprocess.TimeoutExpired:
            assert done < kills, f"seed {seed}: the workflow does not end"
            server.kill()
            server.wait()
            done += 1
    ended = record(folder)
    attempts = [(task.name, task.retry_id) for task in ended.all_tasks()]
    assert attempts == [("a", 0), ("b", 0), ("c", 0), ("d", 0), ("d", 1), ("d", 2), ("d", 3)], f"seed {seed}"
    assert ended.status is WorkflowStatus.FAILED
    assert lines(folder, "a") == {"began": 1, "ended": 1}, f"seed {seed}"
    assert lines(folder, "b") == {"began": 1}, f"seed {seed}"
    assert lines(folder, "c") == {"began": 1, "ended": 1, "from a": 1}, f"seed {seed}"
    for retry_id in range(4):
        assert lines(folder, "d", retry_id) == {"began": 1, "ended": 1}, f"seed {seed}"
    check_clean(folder)
    return done


@pytest.mark.slow
def test_killed_at_random(folder: Path) -> None:
    assert random_kills(folder, seed=5, kills=6) > 0


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_killed_a_hundred_times_at_random(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> None:
    killed = seed = 0
    while killed < 100:
        seed += 1
        place = folder / str(seed)
        place.mkdir()
        killed += random_kills(place, seed, kills=20)
