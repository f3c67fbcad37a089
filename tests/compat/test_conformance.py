"""The specification of OSMO 6.2, section by section, as files: ``workflows/<section>/<name>.yaml`` and beside each of
them ``<name>.expect.yaml`` with what must become of it.

A file is loaded, checked against a pool and lived through with a virtual clock: every effect that the state machine
asks for is carried out by ``Virtual``, which does what the sidecar says that commands, inputs and outputs do. Nothing
here waits, and every time is exact. The keys of a sidecar:

    about       what it shows
    set, set_string, env   as --set, --set-string, --set-env of a submission
    refused     a regular expression for the message with which it is refused; nothing else is looked at then
    warnings    regular expressions, one for each warning, in order; none without this key
    text        what the file becomes after its templates
    spec        path in the specification (``tasks.<name>.<field>`` or ``groups.<name>.<field>``): value
    pool        the pool's declaration
    priority    that of the submission
    commands    task: one entry for each time its command runs: [seconds (or "forever"), exit code, "oom"]
    inputs, outputs   task: one entry for each attempt: [seconds, exit code of the failure and its message, if any]
    events      list of {at: seconds, cancel: user | lose: group | preempt: group | fail: task, status: ...}
    held        group: seconds for which there is no room for it
    workflow, message, groups, tasks   how it ends; of a task "STATUS code" of every attempt
    runs        task: how often its command was started
    started, ended   task: seconds at which its last command was started, at which its last attempt ended
    killed      tasks whose running command was ended from outside, in order
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from casstore.errors import CasstoreError
from casstore_orchestrator.events import (
    Attempt,
    CancelRequested,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    FinishWorkflow,
    GroupLost,
    GroupPlaced,
    GroupPreempted,
    InputsFailed,
    InputsReady,
    KillTask,
    NewAttempt,
    OutputsFailed,
    Placed,
    QueueGroup,
    ReleaseTasks,
    RestartInPlace,
    StartGroup,
    Submitted,
    TaskExited,
    TaskFailed,
    TaskRunning,
)
from casstore_orchestrator.gang import validate_fit
from casstore_orchestrator.loader import Loaded, load
from casstore_orchestrator.pools import Machine, Pool, Resources, parse_pools
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.spec import WorkflowSpec
from casstore_orchestrator.state import apply, new_workflow, next_deadline, with_number
from casstore_orchestrator.status import Priority, TaskStatus

FOLDER = Path(__file__).with_name("workflows")
CASES = sorted(str(path.relative_to(FOLDER)).removesuffix(".expect.yaml") for path in FOLDER.rglob("*.expect.yaml"))
KEYS = set(re.findall(r"^    ([a-z_, ]+?)  +\S", str(__doc__), re.MULTILINE))
KNOWN = {key.strip() for keys in KEYS for key in keys.split(",")}
GIB = 1 << 30
MACHINE = Machine("laptop", Resources(cpu=8, memory=32 * GIB, storage=100 * GIB, gpu=0))
FOREVER = "forever"


class Virtual:
    """A world in which every effect has its time, and nothing takes any other."""

    def __init__(self, spec: WorkflowSpec, pool: Pool, expected: dict[str, Any]) -> None:
        self.expected = expected
        self.now = 0.0
        self.queue: list[tuple[float, int, Event, int]] = []
        self.order = itertools.count()
        self.lives: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.commands: dict[str, int] = {}
        self.killed: list[str] = []
        rank = Priority(expected.get("priority", "NORMAL"))
        record = new_workflow(spec, uuid="0f" * 16, user="tester", pool=pool, priority=rank)
        self.record: WorkflowRecord = with_number(record, 1)
        for item in expected.get("events", ()):
            self.later(item["at"], self.foreseen(item))

    @staticmethod
    def foreseen(item: dict[str, Any]) -> Event:
        if "cancel" in item:
            return CancelRequested(item["cancel"], item.get("message"))
        if "lose" in item:
            return GroupLost(item["lose"], "The machine went away.")
        if "preempt" in item:
            return GroupPreempted(item["preempt"], "Another workflow comes first.")
        status = TaskStatus(item["status"])
        return TaskFailed(Attempt(item["fail"], item.get("retry_id", 0), 0), status, item.get("message", ""))

    def later(self, at: float, event: Event, group: str = "") -> None:
        heapq.heappush(self.queue, (at, next(self.order), event, self.lives[group]))

    def live(self) -> None:
        """Everything that happens, until nothing more will."""
        self.send(Submitted())
        for _ in range(10_000):
            deadline = next_deadline(self.record)
            if deadline is not None and (not self.queue or deadline[0] <= self.queue[0][0]):
                self.now = max(self.now, deadline[0])
                self.send(deadline[1])
            elif self.queue:
                at, _, event, life = heapq.heappop(self.queue)
                if life == self.lives[self.group_of(event)]:
                    self.now = max(self.now, at)
                    self.begin(event)
            else:
                return
        pytest.fail("it never ends")

    def group_of(self, event: Event) -> str:
        attempt = getattr(event, "attempt", None)
        if attempt is None or isinstance(event, TaskFailed):
            return ""
        return self.record.group_of(attempt.task).name

    def begin(self, event: Event) -> None:
        self.send(event)
        if isinstance(event, TaskRunning):
            self.fetch(event.attempt)
        elif isinstance(event, CommandExited):
            self.store(event.attempt, event.exit_code)

    def send(self, event: Event) -> None:
        self.record, effects = apply(self.record, event, self.now)
        for effect in effects:
            self.do(effect)

    def do(self, effect: Effect) -> None:
        if isinstance(effect, QueueGroup):
            names = [task.name for task in self.record.group(effect.group).current()]
            placed = {name: Placed("x86", "node", name) for name in names}
            self.later(
                max(self.now, self.expected.get("held", {}).get(effect.group, 0)), GroupPlaced(effect.group, placed)
            )
        elif isinstance(effect, StartGroup):
            for attempt in effect.attempts:
                self.later(self.now, TaskRunning(attempt), effect.group)
        elif isinstance(effect, NewAttempt):
            self.commands.pop(effect.attempt.task, None)
            self.later(self.now, TaskRunning(effect.attempt), effect.group)
        elif isinstance(effect, RestartInPlace):
            self.commands.pop(effect.attempt.task, None)
            self.later(self.now, InputsReady(effect.attempt), effect.group)
        elif isinstance(effect, ReleaseTasks):
            for attempt in effect.attempts:
                self.command(attempt, effect.group)
        elif isinstance(effect, KillTask):
            if self.commands.pop(effect.attempt.task, None) is not None:
                self.killed.append(effect.attempt.task)
        elif isinstance(effect, CloseGroup):
            self.lives[effect.group] += 1
        else:
            assert isinstance(effect, FinishWorkflow)

    def fetch(self, attempt: Attempt) -> None:
        step = self.step("inputs", attempt.task, attempt.retry_id, [0])
        group = self.group_of(TaskRunning(attempt))
        if len(step) > 1:
            self.later(self.now + step[0], InputsFailed(attempt, step[2] if len(step) > 2 else "no", step[1]), group)
        else:
            self.later(self.now + step[0], InputsReady(attempt), group)

    def command(self, attempt: Attempt, group: str) -> None:
        step = self.step("commands", attempt.task, self.runs[attempt.task], [1, 0])
        self.runs[attempt.task] += 1
        self.commands[attempt.task] = self.runs[attempt.task]
        if step[0] != FOREVER:
            self.later(self.now + step[0], CommandExited(attempt, step[1]), group)

    def store(self, attempt: Attempt, exit_code: int) -> None:
        step = self.step("outputs", attempt.task, attempt.retry_id, [0])
        group = self.group_of(TaskRunning(attempt))
        command = self.step("commands", attempt.task, self.runs[attempt.task] - 1, [1, 0])
        self.commands.pop(attempt.task, None)
        if len(step) > 1:
            message = step[2] if len(step) > 2 else "no"
            self.later(self.now + step[0], OutputsFailed(attempt, exit_code, message, step[1]), group)
        else:
            self.later(self.now + step[0], TaskExited(attempt, exit_code, oom="oom" in command), group)

    def step(self, kind: str, task: str, number: int, default: list[Any]) -> list[Any]:
        steps: list[list[Any]] = self.expected.get(kind, {}).get(task) or [default]
        return steps[min(number, len(steps) - 1)]


def read(case: str) -> tuple[str, dict[str, Any]]:
    expected = yaml.safe_load((FOLDER / f"{case}.expect.yaml").read_text())
    assert {*expected} <= KNOWN, f"unknown keys: { ({*expected} - KNOWN) }"
    return (FOLDER / f"{case}.yaml").read_text(), expected


def accept(text: str, expected: dict[str, Any]) -> tuple[Loaded, Pool]:
    loaded = load(
        text,
        set_values=expected.get("set", ()),
        set_strings=expected.get("set_string", ()),
        environment=expected.get("env", ()),
    )
    pool = parse_pools({"default": expected.get("pool") or {}}, MACHINE)["default"]
    validate_fit(loaded.spec, pool, Priority(expected.get("priority", "NORMAL")))
    return loaded, pool


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def found_at(spec: WorkflowSpec, path: str) -> Any:
    """The value at ``tasks.<name>.<field>...``, under the names of the YAML."""
    value: Any = {
        **plain(spec),
        "tasks": {task.name: plain(task) for task in spec.tasks},
        "groups": {group.name: plain(group) for group in spec.groups},
    }
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


@pytest.mark.parametrize("case", CASES)
def test_conformance(case: str) -> None:
    text, expected = read(case)
    if "refused" in expected:
        with pytest.raises(CasstoreError) as refusal:
            accept(text, expected)
        assert re.search(expected["refused"], refusal.value.message), refusal.value.message
        assert "\n" not in refusal.value.message
        return
    loaded, pool = accept(text, expected)
    patterns = expected.get("warnings", [])
    assert len(loaded.warnings) == len(patterns), loaded.warnings
    for pattern, warning in zip(patterns, loaded.warnings, strict=True):
        assert re.search(pattern, warning), warning
    if "text" in expected:
        assert loaded.rendered == expected["text"]
    for path, value in expected.get("spec", {}).items():
        assert found_at(loaded.spec, path) == value, path
    if "workflow" in expected:
        world = Virtual(loaded.spec, pool, expected)
        world.live()
        check(world, expected)


def check(world: Virtual, expected: dict[str, Any]) -> None:
    record = world.record
    told = [(task.name, task.retry_id, task.status.value, task.exit_code) for task in record.all_tasks()]
    assert record.status.value == expected["workflow"], told
    if "message" in expected:
        assert re.search(expected["message"], record.failure_message or ""), record.failure_message
    for name, status in expected.get("groups", {}).items():
        assert record.group(name).status.value == status, (name, told)
    for name, attempts in expected.get("tasks", {}).items():
        seen = [
            task.status.value if task.exit_code is None else f"{task.status.value} {task.exit_code}"
            for task in record.group_of(name).tasks
            if task.name == name
        ]
        assert seen == ([attempts] if isinstance(attempts, str) else attempts), name
    for name, count in expected.get("runs", {}).items():
        assert world.runs[name] == count, name
    for name, at in expected.get("started", {}).items():
        assert record.task(name).command_start_time == at, name
    for name, at in expected.get("ended", {}).items():
        assert record.task(name).end_time == at, name
    if "killed" in expected:
        assert world.killed == expected["killed"]


def test_every_section_has_its_files() -> None:
    sections = {case.partition("/")[0] for case in CASES}
    assert {"1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11", "1.12"} <= sections
    assert {"2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7"} <= sections
    without = [path for path in FOLDER.rglob("*/*.yaml") if not path.name.endswith(".expect.yaml")]
    assert all(path.with_suffix(".expect.yaml").exists() for path in without)
