"""The specification of OSMO 6.2, section by section, as files: ``workflows/<section>/<name>.yaml`` and beside each of
them ``<name>.expect.yaml`` with what must become of it.

A file is loaded, checked against a pool and lived through by the real scheduler with a virtual clock: its orders are
carried out by ``Virtual``, which does what the sidecar says that commands, inputs and outputs do. Nothing here waits,
and every time is exact. The keys of a sidecar:

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
    workflow, message, groups, tasks   how it ends; of a task "STATUS code" of every attempt
    runs        task: how often its command was started
    started, ended   task: seconds at which its last command was started, at which its last attempt ended
    told        task: the reasons of its events, "retry-<n> REASON" for later attempts
    logs        regular expressions, each for a line of the workflow's log
    killed      tasks whose running command was ended from outside, in order
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any

import msgspec
import pytest
import yaml

from casstore.errors import CasstoreError
from casstore_orchestrator.events import (
    Attempt,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    GroupPreempted,
    InputsFailed,
    InputsReady,
    KillTask,
    NewAttempt,
    OutputsFailed,
    ReleaseTasks,
    RestartInPlace,
    StartGroup,
    TaskExited,
    TaskFailed,
    TaskRunning,
)
from casstore_orchestrator.gang import validate_fit
from casstore_orchestrator.loader import Loaded, load
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.pools import Machine, Pool, Resources, parse_pools
from casstore_orchestrator.ports import AgentEvents, RunKey
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.spec import WorkflowSpec
from casstore_orchestrator.state import new_workflow, next_deadline
from casstore_orchestrator.status import Priority, TaskStatus
from casstore_orchestrator.testing import MemoryStateStore

FOLDER = Path(__file__).with_name("workflows")
CASES = sorted(str(path.relative_to(FOLDER)).removesuffix(".expect.yaml") for path in FOLDER.rglob("*.expect.yaml"))
KEYS = set(re.findall(r"^    ([a-z_, ]+?)  +\S", str(__doc__), re.MULTILINE))
KNOWN = {key.strip() for keys in KEYS for key in keys.split(",")}
GIB = 1 << 30
MACHINE = Machine("laptop", Resources(cpu=8, memory=32 * GIB, storage=100 * GIB, gpu=0))
FOREVER = "forever"


class Virtual:
    """The agents of groups and the clock of a real scheduler: every effect has its time, and nothing takes any other.

    Implements ``ports.GroupAgents`` and ``logs.Clock``.
    """

    def __init__(self, spec: WorkflowSpec, pool: Pool, expected: dict[str, Any], folder: Path) -> None:
        self.expected = expected
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.order_of = itertools.count()
        self.live: set[RunKey] = set()
        self.over: set[Attempt] = set()
        self.taken: Counter[RunKey] = Counter()
        self.told: Counter[RunKey] = Counter()
        self.started: Counter[str] = Counter()
        self.commands: set[str] = set()
        self.killed: list[str] = []
        self.store = MemoryStateStore()
        self.logs = LogStore(folder, clock=self)
        self.scheduler = Scheduler(self.store, self, lambda: {pool.name: pool}, self.logs, clock=self)
        self.scheduler.tick()
        rank = Priority(expected.get("priority", "NORMAL"))
        record = new_workflow(spec, uuid="0f" * 16, user="tester", pool=pool, priority=rank)
        self.id = self.scheduler.submit(record).id
        for item in expected.get("events", ()):
            self.later(item["at"], partial(self.foreseen, item))

    @property
    def record(self) -> WorkflowRecord:
        return self.store.load(self.id)

    def time(self) -> float:
        return self.now

    def later(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (at, next(self.order_of), what))

    def run_of(self, group: str) -> RunKey:
        return RunKey(self.id, group, self.record.group(group).placements)

    def foreseen(self, item: dict[str, Any]) -> None:
        if "cancel" in item:
            self.scheduler.cancel(self.id, user=item["cancel"], message=item.get("message"), force=True)
        elif "lose" in item:
            run = self.run_of(item["lose"])
            self.live.discard(run)
            self.scheduler.lost(run, "The machine went away.")
        elif "preempt" in item:
            self.scheduler.post(self.id, GroupPreempted(item["preempt"], "Another workflow comes first."))
        else:
            run = self.run_of(self.record.group_of(item["fail"]).name)
            status = TaskStatus(item["status"])
            self.report(run, TaskFailed(Attempt(item["fail"], 0, 0), status, item.get("message", "")))

    def be(self) -> None:
        """Everything that happens, until nothing more will."""
        for _ in range(10_000):
            assert self.scheduler.tick()
            times = [at for at, _, _ in self.queue[:1]]
            deadline = next_deadline(self.record)
            if deadline is not None:
                times.append(deadline[0])
            if not times:
                return
            self.now = max(self.now, min(times))
            if self.queue and self.queue[0][0] <= self.now and (deadline is None or deadline[0] > self.queue[0][0]):
                heapq.heappop(self.queue)[2]()
        pytest.fail("it never ends")

    # What the scheduler asks of the agents.

    def follow(self, listener: AgentEvents) -> None:
        """The scheduler is the only one there is."""

    def start(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], *, seen: int = 0) -> None:
        assert seen == 0
        self.live.add(run)

    def order(self, run: RunKey, number: int, effect: Effect) -> None:
        if number > self.taken[run]:
            self.taken[run] = number
            self.later(self.now, partial(self.carry_out, run, number, effect))

    def acknowledge(self, run: RunKey, number: int) -> None:
        assert number == self.told[run]

    def attach(self, run: RunKey) -> socket:
        raise NotImplementedError

    def strays(self) -> list[RunKey]:
        return []

    def leave(self, run: RunKey) -> None:
        raise AssertionError(run)

    def discard(self, run: RunKey) -> None:
        raise AssertionError(run)

    def close(self) -> None:
        """Nothing is open."""

    # What an agent does.

    def report(self, run: RunKey, event: Event) -> None:
        if run in self.live:
            self.told[run] += 1
            self.scheduler.event(run, self.told[run], event)

    def carry_out(self, run: RunKey, number: int, effect: Effect) -> None:
        if run not in self.live:
            return
        self.scheduler.taken(run, number)
        if isinstance(effect, StartGroup):
            for attempt in effect.attempts:
                self.step(run, attempt, 0, self.begin)
        elif isinstance(effect, NewAttempt | RestartInPlace):
            self.stop(effect.attempt.task)
            self.step(run, effect.attempt, 0, self.begin if isinstance(effect, NewAttempt) else self.ready)
        elif isinstance(effect, ReleaseTasks):
            for attempt in effect.attempts:
                self.command(run, attempt)
        elif isinstance(effect, KillTask):
            self.over.add(effect.attempt)
            if effect.attempt.task in self.commands:
                self.killed.append(effect.attempt.task)
            self.stop(effect.attempt.task)
        elif isinstance(effect, CloseGroup):
            self.live.discard(run)
            for task in self.record.spec.group(run.group).tasks:
                self.stop(task.name)
            self.scheduler.ended(run)

    def stop(self, task: str) -> None:
        self.commands.discard(task)

    def step(
        self,
        run: RunKey,
        attempt: Attempt,
        seconds: float,
        then: Callable[[RunKey, Attempt], None],
        *,
        command: int = 0,
    ) -> None:
        """Do this, unless the attempt is over by then or its command another one."""

        def happen() -> None:
            current = self.record.task(attempt.task)
            same = (current.retry_id, current.run) == (attempt.retry_id, attempt.run)
            same = same and command in {0, self.started[attempt.task]}
            if run in self.live and attempt not in self.over and same:
                then(run, attempt)

        self.later(self.now + seconds, happen)

    def begin(self, run: RunKey, attempt: Attempt) -> None:
        self.report(run, TaskRunning(attempt))
        seconds, *failure = self.scripted("inputs", attempt.task, attempt.retry_id, [0])
        if failure:
            message = failure[1] if len(failure) > 1 else "no"
            self.step(run, attempt, seconds, lambda *_: self.report(run, InputsFailed(attempt, message, failure[0])))
        else:
            self.step(run, attempt, seconds, self.ready)

    def ready(self, run: RunKey, attempt: Attempt) -> None:
        self.report(run, InputsReady(attempt))

    def command(self, run: RunKey, attempt: Attempt) -> None:
        task = attempt.task
        seconds, code, *oom = self.scripted("commands", task, self.started[task], [1, 0])
        self.started[task] += 1
        self.commands.add(task)

        def exit_(run: RunKey, attempt: Attempt) -> None:
            self.stop(task)
            self.report(run, CommandExited(attempt, code))
            wait, *failure = self.scripted("outputs", task, attempt.retry_id, [0])
            message = failure[1] if len(failure) > 1 else "no"
            event = (
                OutputsFailed(attempt, code, message, failure[0])
                if failure
                else TaskExited(attempt, code, oom=bool(oom))
            )
            self.step(run, attempt, wait, lambda *_: self.report(run, event))

        if seconds != FOREVER:
            self.step(run, attempt, seconds, exit_, command=self.started[task])

    def scripted(self, kind: str, task: str, number: int, default: list[Any]) -> list[Any]:
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
def test_conformance(case: str, tmp_path: Path) -> None:
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
        world = Virtual(loaded.spec, pool, expected, tmp_path)
        try:
            world.be()
            check(world, expected)
        finally:
            world.logs.close()


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
        assert world.started[name] == count, name
    for name, at in expected.get("started", {}).items():
        assert record.task(name).command_start_time == at, name
    for name, at in expected.get("ended", {}).items():
        assert record.task(name).end_time == at, name
    for name, reasons in expected.get("told", {}).items():
        notes = [note for _, note in world.store.notes if note.task == name]
        assert [f"retry-{note.retry_id} {note.reason}" if note.retry_id else note.reason for note in notes] == reasons
    lines = list(world.logs.read(record.id)) if "logs" in expected else []
    for pattern in expected.get("logs", []):
        assert any(re.search(pattern, line) for line in lines), (pattern, lines)
    if "killed" in expected:
        assert world.killed == expected["killed"]


def test_every_section_has_its_files() -> None:
    sections = {case.partition("/")[0] for case in CASES}
    assert {"1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8", "1.9", "1.10", "1.11", "1.12"} <= sections
    assert {"2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7"} <= sections
    without = [path for path in FOLDER.rglob("*/*.yaml") if not path.name.endswith(".expect.yaml")]
    assert all(path.with_suffix(".expect.yaml").exists() for path in without)
