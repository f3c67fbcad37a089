"""Random workflows live through random events: whatever happens, in whatever order, the promises hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore_orchestrator.events import (
    Attempt,
    CancelRequested,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    FinishWorkflow,
    GroupFailed,
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
    TimedOut,
)
from casstore_orchestrator.pools import Machine, Resources, parse_pools
from casstore_orchestrator.records import TaskRecord, WorkflowRecord
from casstore_orchestrator.spec import GroupSpec, TaskInput, TaskSpec, WorkflowSpec
from casstore_orchestrator.state import apply, new_workflow, next_deadline, with_number
from casstore_orchestrator.status import ExitCode, GroupStatus, TaskPhase, TaskStatus, WorkflowStatus

MACHINE = Machine("laptop", Resources(cpu=4, memory=1 << 34, storage=1 << 36))
CODES = st.sampled_from([0, 0, 0, 1, 2, 137])
FAILURES = st.sampled_from(
    [
        TaskStatus.FAILED_START_ERROR,
        TaskStatus.FAILED_START_TIMEOUT,
        TaskStatus.FAILED_PREEMPTED,
        TaskStatus.FAILED_EVICTED,
        TaskStatus.FAILED_SERVER_ERROR,
        TaskStatus.FAILED_IMAGE_PULL,
    ]
)
ACTIONS = st.sampled_from(
    [{}, {}, {"RESCHEDULE": "1-255"}, {"COMPLETE": "1"}, {"FAIL": "0"}, {"RESCHEDULE": "0-9999"}, {"FAIL": "3006"}]
)


@st.composite
def workflows(draw: st.DrawFn) -> WorkflowRecord:
    groups: list[GroupSpec] = []
    names: list[str] = []
    for at in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 3))
        lead = draw(st.integers(0, count - 1))
        tasks = []
        for index in range(count):
            before = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
            tasks.append(
                TaskSpec(
                    name=f"g{at}t{index}",
                    command=("x",),
                    lead=index == lead,
                    inputs=tuple(TaskInput(task=name) for name in before),
                    exit_actions=draw(ACTIONS),
                )
            )
        groups.append(
            GroupSpec(
                name=f"g{at}",
                tasks=tuple(tasks),
                barrier=draw(st.booleans()),
                ignore_nonlead_status=draw(st.booleans()),
                wait_for_nonlead=draw(st.sampled_from([False, False, True, 5.0])),
            )
        )
        names += [task.name for task in tasks]
    pool = parse_pools({"p": {"max_retry_per_task": draw(st.integers(0, 2)), "default_exec_timeout": 500}}, MACHINE)[
        "p"
    ]
    spec = WorkflowSpec(name="w", groups=tuple(draw(st.permutations(groups))))
    return with_number(new_workflow(spec, uuid="0f", user="u", pool=pool), 1)


@dataclass
class World:
    """Applies events and checks, at every step, what must always hold."""

    record: WorkflowRecord
    now: float = 0.0
    released: Counter[Attempt] = field(default_factory=Counter)
    finished: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    queued: Counter[str] = field(default_factory=Counter)

    def send(self, event: Event) -> None:
        before = self.record
        self.now += 1
        after, effects = apply(before, event, self.now)
        assert apply(before, event, self.now) == (after, effects)
        self.record = after
        self.check_tasks(before, after)
        self.check_groups(after)
        for effect in effects:
            self.check_effect(effect, before, after)
        if before.status.finished:
            assert after == before
            assert all(isinstance(effect, CloseGroup) for effect in effects)
        if after.status.finished and not before.status.finished:
            assert [effect for effect in effects if isinstance(effect, FinishWorkflow)] == [
                FinishWorkflow(after.status)
            ]
            assert all(group.status.finished for group in after.groups)

    def check_tasks(self, before: WorkflowRecord, after: WorkflowRecord) -> None:
        new = {(task.name, task.retry_id): task for task in after.all_tasks()}
        for old in before.all_tasks():
            task = new[old.name, old.retry_id]
            if old.status.finished:
                assert task == old
            else:
                assert task.status.rank >= old.status.rank
                assert task.run >= old.run
            if task.status.finished:
                assert task.phase is TaskPhase.NONE
                assert task.end_time is not None
        for group in after.groups:
            for current in group.current():
                attempts = [task for task in group.tasks if task.name == current.name]
                assert [task.retry_id for task in attempts] == list(range(len(attempts)))
                assert all(task.status is TaskStatus.RESCHEDULED for task in attempts[:-1])
                assert current.status is not TaskStatus.RESCHEDULED
                paid = [task for task in attempts[:-1] if task.exit_code != ExitCode.PREEMPTED]
                assert len(paid) <= after.max_retry_per_task

    def check_groups(self, after: WorkflowRecord) -> None:
        order = [group.name for group in after.groups]
        assert all(order.index(name) < order.index(group.name) for group in after.groups for name in group.upstream)
        for group in after.groups:
            ended = all(task.status.finished for task in group.current())
            assert group.status.finished == ended
            if group.status is GroupStatus.SCHEDULING or group.status.active or group.start_time is not None:
                assert all(after.group(name).status is GroupStatus.COMPLETED for name in group.upstream)
            if group.status is GroupStatus.COMPLETED:
                counted = [task for task in group.current() if task.lead or not group.ignore_nonlead_status]
                assert all(task.status is TaskStatus.COMPLETED for task in counted)
        if after.status is WorkflowStatus.COMPLETED:
            assert all(group.status is GroupStatus.COMPLETED for group in after.groups)

    def check_effect(self, effect: Effect, before: WorkflowRecord, after: WorkflowRecord) -> None:
        if isinstance(effect, ReleaseTasks):
            group = after.group(effect.group)
            for attempt in effect.attempts:
                self.released[attempt] += 1
                assert self.released[attempt] == 1, "a command was started twice in one run"
            if group.barrier:
                # Behind a barrier nobody starts before everyone's inputs are there.
                assert all(
                    task.phase in {TaskPhase.COMMAND, TaskPhase.OUTPUTS}
                    for task in group.current()
                    if not task.status.finished
                )
        elif isinstance(effect, StartGroup):
            unfinished = [task for task in before.group(effect.group).current() if not task.status.finished]
            assert [attempt.task for attempt in effect.attempts] == [task.name for task in unfinished]
        elif isinstance(effect, KillTask):
            task = after.task(effect.attempt.task, effect.attempt.retry_id)
            assert task.status.finished
        elif isinstance(effect, NewAttempt):
            assert after.task(effect.attempt.task).retry_id == effect.attempt.retry_id
        elif isinstance(effect, RestartInPlace):
            assert before.task(effect.attempt.task).run == effect.attempt.run - 1
        elif isinstance(effect, FinishWorkflow):
            self.finished += 1
            assert self.finished == 1
        elif isinstance(effect, QueueGroup):
            assert after.group(effect.group).status is GroupStatus.SCHEDULING
        else:
            assert isinstance(effect, CloseGroup)
            assert not after.group(effect.group).status.active

    # --- a world in which everything that is asked for happens

    def settle(self, draw: st.DataObject) -> None:
        """Deliver what a working scheduler and executor would, until there is nothing left to deliver."""
        endless = {
            task.name for task in self.record.all_tasks() if not task.lead and draw.draw(st.booleans(), "endless")
        }
        for _ in range(2000):
            if self.record.status.finished:
                return
            event = self.next_event(draw, endless)
            if event is None:
                # Only somebody who never ends can be waited for, and not for ever.
                assert any(task.name in endless for task in self.record.all_tasks() if not task.status.finished)
                deadline = next_deadline(self.record)
                assert deadline is not None, f"stuck: {self.record.groups}"
                self.now = max(self.now, deadline[0])
                event = deadline[1]
            self.send(event)
        raise AssertionError("no end")

    def next_event(self, draw: st.DataObject, endless: set[str]) -> Event | None:
        for group in self.record.groups:
            if group.status is GroupStatus.SUBMITTING:
                return Submitted()
            if group.status is GroupStatus.SCHEDULING:
                return GroupPlaced(group.name, {task.name: Placed("x", "n") for task in group.current()})
            for task in group.current():
                attempt = Attempt(task.name, task.retry_id, task.run)
                if task.status is TaskStatus.INITIALIZING:
                    return TaskRunning(attempt)
                if task.phase is TaskPhase.INPUTS:
                    return InputsReady(attempt)
                if task.phase is TaskPhase.OUTPUTS or (task.phase is TaskPhase.COMMAND and task.name not in endless):
                    return TaskExited(attempt, draw.draw(CODES, "exit code"))
        return None


def any_attempt(draw: st.DataObject, record: WorkflowRecord) -> Attempt:
    """An attempt, most of the time one that goes on."""
    tasks: list[TaskRecord] = list(record.all_tasks())
    live = [task for task in tasks if not task.status.finished]
    task = draw.draw(st.sampled_from(live if live and draw.draw(st.integers(0, 4)) else tasks), "task")
    run = task.run if draw.draw(st.integers(0, 4)) else max(0, task.run - 1)
    return Attempt(task.name, task.retry_id, run)


def any_event(draw: st.DataObject, world: World) -> Event:
    record = world.record
    kind = draw.draw(st.sampled_from(["place"] * 3 + ["life"] * 14 + ["fail"] * 3 + ["rare"]), "kind")
    if kind == "place":
        group = draw.draw(st.sampled_from(record.groups), "group")
        return GroupPlaced(group.name, {task.name: Placed("x", "n") for task in group.current()})
    attempt = any_attempt(draw, record)
    if kind == "life":
        return draw.draw(
            st.sampled_from(
                [
                    TaskRunning(attempt),
                    InputsReady(attempt),
                    CommandExited(attempt, 0),
                    TaskExited(attempt, draw.draw(CODES, "code"), oom=draw.draw(st.integers(0, 9)) == 0),
                ]
            ),
            "event",
        )
    if kind == "fail":
        return draw.draw(
            st.sampled_from(
                [
                    InputsFailed(attempt, "no"),
                    OutputsFailed(attempt, 1, "no"),
                    TaskFailed(attempt, draw.draw(FAILURES), "no"),
                ]
            ),
            "failure",
        )
    group = draw.draw(st.sampled_from(record.groups), "group")
    return draw.draw(
        st.sampled_from(
            [
                Submitted(),
                GroupFailed(group.name, "no"),
                GroupLost(group.name, "gone"),
                GroupPreempted(group.name, "another comes first"),
                TimedOut("queue", group.name),
                TimedOut("exec", group.name),
                TimedOut("start", group.name),
                TimedOut("nonlead", group.name),
                CancelRequested("u", force=draw.draw(st.booleans())),
            ]
        ),
        "rare",
    )


@settings(deadline=None)
@given(record=workflows(), draw=st.data())
def test_whatever_happens_the_promises_hold_and_the_workflow_ends(record: WorkflowRecord, draw: st.DataObject) -> None:
    world = World(record)
    world.send(Submitted())
    for _ in range(draw.draw(st.integers(0, 40), "events")):
        world.send(any_event(draw, world))
    world.settle(draw)
    assert world.record.status.finished
    assert world.finished == 1
    assert msgspec.json.decode(msgspec.json.encode(world.record), type=WorkflowRecord) == world.record


@settings(deadline=None)
@given(record=workflows(), draw=st.data())
def test_a_world_without_trouble_completes_every_workflow(record: WorkflowRecord, draw: st.DataObject) -> None:
    spec = msgspec.structs.replace(
        record.spec,
        groups=tuple(
            msgspec.structs.replace(
                group, tasks=tuple(msgspec.structs.replace(task, exit_actions={}) for task in group.tasks)
            )
            for group in record.spec.groups
        ),
    )
    world = World(msgspec.structs.replace(record, spec=spec))
    world.send(Submitted())
    while not world.record.status.finished:
        event = world.next_event(draw, set())
        assert event is not None
        if isinstance(event, TaskExited):
            event = TaskExited(event.attempt, 0)
        world.send(event)
    assert world.record.status is WorkflowStatus.COMPLETED
    # Every task that ran to its end ran once; the others ended with their lead.
    assert all(task.retry_id == 0 and task.run == 0 for task in world.record.all_tasks())


@settings(deadline=None)
@given(record=workflows(), draw=st.data())
def test_deadlines_alone_end_every_workflow(record: WorkflowRecord, draw: st.DataObject) -> None:
    world = World(record)
    world.send(Submitted())
    for _ in range(draw.draw(st.integers(0, 20), "events")):
        world.send(any_event(draw, world))
    for _ in range(200):
        deadline = next_deadline(world.record)
        if deadline is None:
            break
        before = world.record
        world.now = max(world.now, deadline[0])
        world.send(deadline[1])
        assert world.record != before, "a deadline that changes nothing would come for ever"
    # A group that was placed and never closed may be in its inputs for ever: the limit of its execution is its end.
    assert world.record.status.finished


@dataclass
class Orders:
    """The world as it can be known from the orders that were given: nothing here looks at a record.

    ``todo`` is what the scheduler and the agents are going to report, in any order.
    """

    todo: list[tuple[str, Event | None]] = field(default_factory=list)
    commands: dict[str, Attempt] = field(default_factory=dict)

    def take(self, effect: Effect) -> None:
        if isinstance(effect, QueueGroup):
            self.todo.append((effect.group, None))
        elif isinstance(effect, StartGroup):
            for attempt in effect.attempts:
                self.todo.append((effect.group, TaskRunning(attempt)))
        elif isinstance(effect, NewAttempt):
            self.stop(effect.attempt.task)
            self.todo.append((effect.group, TaskRunning(effect.attempt)))
        elif isinstance(effect, RestartInPlace):
            self.stop(effect.attempt.task)
            self.todo.append((effect.group, InputsReady(effect.attempt)))
        elif isinstance(effect, ReleaseTasks):
            self.todo += [(effect.group, CommandExited(attempt, 0)) for attempt in effect.attempts]
        elif isinstance(effect, KillTask):
            self.stop(effect.attempt.task)
        elif isinstance(effect, CloseGroup):
            self.todo = [(group, event) for group, event in self.todo if group != effect.group]

    def stop(self, task: str) -> None:
        self.todo = [
            (group, event) for group, event in self.todo if not hasattr(event, "attempt") or event.attempt.task != task
        ]

    def after(self, group: str, event: Event, draw: st.DataObject) -> None:
        """What an agent does by itself next."""
        if isinstance(event, TaskRunning):
            self.todo.append((group, InputsReady(event.attempt)))
        elif isinstance(event, CommandExited):
            self.todo.append((group, TaskExited(event.attempt, draw.draw(CODES, "exit code"))))


@settings(deadline=None)
@given(record=workflows(), draw=st.data())
def test_no_wake_up_is_lost(record: WorkflowRecord, draw: st.DataObject) -> None:
    """Every workflow ends although nobody looks at its record: what was ordered is all that ever happens."""
    now, orders = 0.0, Orders()

    def send(event: Event) -> None:
        nonlocal record, now
        now += 1
        record, effects = apply(record, event, now)
        for effect in effects:
            orders.take(effect)

    send(Submitted())
    trouble = draw.draw(st.integers(0, 4), "trouble")
    while orders.todo:
        active = [group.name for group in record.groups if group.status.active]
        if trouble and active and draw.draw(st.integers(0, 5), "lost") == 0:
            trouble -= 1
            kind = draw.draw(st.sampled_from([GroupLost, GroupPreempted]), "how")
            send(kind(draw.draw(st.sampled_from(active), "group"), "gone"))
            continue
        group, event = orders.todo.pop(draw.draw(st.integers(0, len(orders.todo) - 1), "next"))
        if event is None:
            event = GroupPlaced(group, {task.name: Placed("x", "n") for task in record.group(group).current()})
            send(event)
            continue
        send(event)
        if any(known == group for known, _ in orders.todo) or record.group(group).status.active:
            orders.after(group, event, draw)
    assert record.status.finished, f"stuck: {record.groups}"
