from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from casstore.errors import ServiceError
from casstore_orchestrator.derive import group_status, workflow_status
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
from casstore_orchestrator.records import GroupRecord, TaskRecord, WorkflowRecord
from casstore_orchestrator.spec import GroupSpec, TaskInput, TaskSpec, Timeout, WorkflowSpec
from casstore_orchestrator.state import apply, fail_submission, new_workflow, next_deadline, with_number
from casstore_orchestrator.status import FAILURE_CODES, ExitCode, GroupStatus, TaskPhase, TaskStatus, WorkflowStatus

MACHINE = Machine("laptop", Resources(cpu=4, memory=1 << 34, storage=1 << 36))


def task(name: str, *inputs: str, lead: bool = False, **exit_actions: str) -> TaskSpec:
    return TaskSpec(
        name=name,
        command=("x",),
        lead=lead,
        inputs=tuple(TaskInput(task=before) for before in inputs),
        exit_actions=exit_actions,
    )


def group(name: str, *tasks: TaskSpec, **options: bool) -> GroupSpec:
    if not any(member.lead for member in tasks):
        tasks = (msgspec.structs.replace(tasks[0], lead=True), *tasks[1:])
    return GroupSpec(name=name, tasks=tasks, **options)


class Life:
    """A workflow that lives through events; remembers the effects of the last one."""

    def __init__(self, *groups: GroupSpec, pool: Mapping[str, Any] | None = None, start: bool = True) -> None:
        pools = parse_pools({"p": dict(pool or {})}, MACHINE)
        spec = WorkflowSpec(name="w", groups=groups)
        self.record: WorkflowRecord = with_number(new_workflow(spec, uuid="0f", user="u", pool=pools["p"]), 1)
        self.now = 100.0
        self.effects: list[Effect] = []
        if start:
            self(Submitted())

    def __call__(self, event: Event) -> list[Effect]:
        self.now += 1
        self.record, self.effects = apply(self.record, event, self.now)
        return self.effects

    def attempt(self, name: str) -> Attempt:
        found = self.record.task(name)
        return Attempt(name, found.retry_id, found.run)

    def place(self, name: str) -> list[Effect]:
        tasks = [found.name for found in self.record.group(name).current()]
        return self(GroupPlaced(name, {member: Placed("x86", "n", member) for member in tasks}))

    def run(self, name: str) -> None:
        """Bring a group's commands to run."""
        self.place(name)
        for member in self.record.group(name).current():
            self(TaskRunning(self.attempt(member.name)))
            self(InputsReady(self.attempt(member.name)))

    def exit(self, name: str, code: int = 0, **options: Any) -> list[Effect]:
        return self(TaskExited(self.attempt(name), code, **options))

    def status(self, name: str) -> TaskStatus:
        return self.record.task(name).status

    def of(self, kind: type[Any]) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]


def test_one_task_from_submission_to_end() -> None:
    life = Life(group("g", task("t")))
    assert life.effects == [QueueGroup("g")]
    assert life.record.status is WorkflowStatus.PENDING
    assert life.record.submit_time == 101
    assert life.record.task("t").status is TaskStatus.SCHEDULING
    assert life.place("g") == [StartGroup("g", (Attempt("t", 0, 0),))]
    found = life.record.task("t")
    assert (found.status, found.platform, found.node, found.host) == (TaskStatus.INITIALIZING, "x86", "n", "t")
    life(TaskRunning(life.attempt("t")))
    assert life.record.status is WorkflowStatus.RUNNING
    assert life.record.task("t").phase is TaskPhase.INPUTS
    assert life(InputsReady(life.attempt("t"))) == [ReleaseTasks("g", (Attempt("t", 0, 0),), whole_group=True)]
    assert life.record.task("t").phase is TaskPhase.COMMAND
    assert life(CommandExited(life.attempt("t"), 0)) == []
    assert life.record.task("t").phase is TaskPhase.OUTPUTS
    assert life.exit("t") == [CloseGroup("g"), FinishWorkflow(WorkflowStatus.COMPLETED)]
    ended = life.record.task("t")
    times = [
        ended.processing_time,
        ended.scheduling_time,
        ended.initializing_time,
        ended.start_time,
        ended.input_download_time,
        ended.command_start_time,
        ended.command_end_time,
        ended.output_upload_time,
        ended.end_time,
    ]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]  # no None, see above
    assert (ended.exit_code, life.record.end_time) == (0, life.now)
    assert (life.record.id, life.record.failure_message) == ("w-1", None)


def test_groups_start_when_all_before_them_completed() -> None:
    life = Life(group("c", task("c1", "a1", "b1")), group("a", task("a1")), group("b", task("b1")))
    assert [found.name for found in life.record.groups] == ["a", "b", "c"]
    assert life.effects == [QueueGroup("a"), QueueGroup("b")]
    assert life.record.group("c").status is GroupStatus.WAITING
    life.run("a")
    life.exit("a1")
    assert life.effects == [CloseGroup("a")]
    life.run("b")
    assert life.exit("b1") == [CloseGroup("b"), QueueGroup("c")]
    life.run("c")
    life.exit("c1")
    assert life.record.status is WorkflowStatus.COMPLETED


def test_a_failure_reaches_everything_downstream() -> None:
    life = Life(
        group("a", task("a1")), group("b", task("b1", "a1")), group("c", task("c1", "b1")), group("d", task("d1"))
    )
    life.run("a")
    life.exit("a1", 7)
    for name in ("b1", "c1"):
        found = life.record.task(name)
        assert (found.status, found.exit_code) == (TaskStatus.FAILED_UPSTREAM, ExitCode.UPSTREAM_FAILED)
    assert life.record.group("c").status is GroupStatus.FAILED_UPSTREAM
    assert life.record.status is WorkflowStatus.RUNNING
    life.run("d")
    life.exit("d1")
    assert life.record.status is WorkflowStatus.FAILED
    assert life.record.failure_message == "Task 'a1' failed with exit code 7"


# --- the barrier


def test_commands_wait_for_the_last_inputs_of_the_group() -> None:
    life = Life(group("g", task("a"), task("b")))
    life.place("g")
    assert life(InputsReady(life.attempt("a"))) == []
    assert life(InputsReady(life.attempt("b"))) == [
        ReleaseTasks("g", (Attempt("a", 0, 0), Attempt("b", 0, 0)), whole_group=True)
    ]


def test_without_a_barrier_each_command_starts_on_its_own() -> None:
    life = Life(group("g", task("a"), task("b"), barrier=False))
    life.place("g")
    assert life(InputsReady(life.attempt("a"))) == [ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=False)]


def test_a_nonlead_that_fails_before_the_barrier_leaves_it() -> None:
    life = Life(group("g", task("a"), task("b")))
    life.place("g")
    life(InputsReady(life.attempt("a")))
    life(InputsFailed(life.attempt("b"), "no such dataset"))
    assert life.of(ReleaseTasks) == [ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True)]
    assert life.record.task("b").exit_code == ExitCode.DOWNLOAD_FAILED


# --- leads


@pytest.mark.parametrize("ignore", [True, False])
def test_the_end_of_the_lead_completes_and_kills_the_others(ignore: bool) -> None:
    life = Life(group("g", task("a"), task("b"), ignore_nonlead_status=ignore))
    life.run("g")
    life.exit("a")
    other = life.record.task("b")
    assert (other.status, other.failure_message) == (TaskStatus.COMPLETED, "Lead task finished")
    assert life.effects == [
        KillTask("g", Attempt("b", 0, 0), "Lead task finished"),
        CloseGroup("g"),
        FinishWorkflow(WorkflowStatus.COMPLETED),
    ]


@pytest.mark.parametrize("ignore", [True, False])
def test_a_lead_that_fails_fails_the_group(ignore: bool) -> None:
    life = Life(group("g", task("a"), task("b"), ignore_nonlead_status=ignore))
    life.run("g")
    life.exit("a", 3)
    assert (life.status("a"), life.status("b")) == (TaskStatus.FAILED, TaskStatus.FAILED)
    assert len(life.of(KillTask)) == 1
    assert life.record.group("g").status is GroupStatus.FAILED
    assert life.record.group("g").failure_message == "Task 'a' failed with exit code 3"


def test_a_nonlead_that_ends_changes_nothing_for_the_others() -> None:
    life = Life(group("g", task("a"), task("b"), task("c")))
    life.run("g")
    assert life.exit("b") == []
    assert life.exit("c", 1) == []
    assert life.record.group("g").status is GroupStatus.RUNNING
    life.exit("a")
    assert life.record.status is WorkflowStatus.COMPLETED
    assert life.status("c") is TaskStatus.FAILED


def test_a_nonlead_that_fails_counts_when_it_is_not_ignored() -> None:
    life = Life(group("g", task("a"), task("b"), ignore_nonlead_status=False))
    life.run("g")
    life.exit("b", 4)
    lead = life.record.task("a")
    assert (lead.status, lead.failure_message) == (TaskStatus.FAILED, "Task b failed.")
    assert life.of(KillTask) == [KillTask("g", Attempt("a", 0, 0), "Task b failed.")]
    assert life.record.group("g").failure_message == "Task 'b' failed with exit code 4"


# --- exit actions and retries


@pytest.mark.parametrize(
    ("actions", "code", "status"),
    [
        ({"COMPLETE": "3"}, 3, TaskStatus.COMPLETED),
        ({"FAIL": "0"}, 0, TaskStatus.FAILED),
        ({"COMPLETE": "1-10,16"}, 16, TaskStatus.COMPLETED),
        ({"COMPLETE": "1-10,16"}, 15, TaskStatus.FAILED),
        ({}, 0, TaskStatus.COMPLETED),
    ],
)
def test_exit_actions(actions: dict[str, str], code: int, status: TaskStatus) -> None:
    life = Life(group("g", task("t", **actions)))
    life.run("g")
    life.exit("t", code)
    assert (life.status("t"), life.record.task("t").exit_code) == (status, code)


def test_the_pool_decides_what_the_task_leaves_open() -> None:
    pool = {"default_exit_actions": {"COMPLETE": "1,2"}}
    life = Life(group("g", task("t", FAIL="1")), group("h", task("u", FAIL="1")), pool=pool)
    life.run("g")
    life.run("h")
    life.exit("t", 1)
    life.exit("u", 2)
    assert (life.status("t"), life.status("u")) == (TaskStatus.FAILED, TaskStatus.COMPLETED)


def test_a_rescheduled_task_gets_a_new_attempt_up_to_the_limit() -> None:
    life = Life(group("g", task("t", RESCHEDULE="1-255")))
    life.run("g")
    for retry in range(3):
        life.exit("t", 9)
        assert life.effects == [NewAttempt("g", Attempt("t", retry + 1, 0))]
        assert life.record.task("t").node == "n"
        life(TaskRunning(life.attempt("t")))
        life(InputsReady(life.attempt("t")))
        assert life.of(ReleaseTasks)
    life.exit("t", 9)
    assert [found.status for found in life.record.group("g").tasks] == [TaskStatus.RESCHEDULED] * 3 + [
        TaskStatus.FAILED
    ]
    assert life.record.task("t", 0).exit_code == 9
    assert "retry limit 3" in str(life.record.task("t").failure_message)
    assert life.record.status is WorkflowStatus.FAILED
    assert len({found.uuid for found in life.record.all_tasks()}) == 4


def test_a_pool_can_turn_retries_off() -> None:
    life = Life(group("g", task("t", RESCHEDULE="1")), pool={"max_retry_per_task": 0})
    life.run("g")
    life.exit("t", 1)
    assert life.status("t") is TaskStatus.FAILED


def test_service_codes_can_be_matched() -> None:
    life = Life(group("g", task("t", RESCHEDULE="3006,3004")))
    life.run("g")
    life(TaskFailed(life.attempt("t"), TaskStatus.FAILED_PREEMPTED, "preempted"))
    assert life.record.task("t").retry_id == 1
    life(InputsReady(life.attempt("t")))
    life.exit("t", 137, oom=True)
    assert life.record.task("t").retry_id == 2
    assert life.record.task("t", 1).exit_code == ExitCode.EVICTED


@pytest.mark.parametrize(("ignore", "who", "restarted"), [(True, "b", False), (False, "b", True), (True, "a", True)])
def test_who_is_restarted_in_place(ignore: bool, who: str, restarted: bool) -> None:
    life = Life(group("g", task("a", RESCHEDULE="5"), task("b", RESCHEDULE="5"), ignore_nonlead_status=ignore))
    life.run("g")
    other = "a" if who == "b" else "b"
    life.exit(who, 5)
    assert life.of(NewAttempt) == [NewAttempt("g", Attempt(who, 1, 0))]
    assert life.of(RestartInPlace) == ([RestartInPlace("g", Attempt(other, 0, 1))] if restarted else [])
    assert life.of(ReleaseTasks) == []
    if restarted:
        stale = Attempt(other, 0, 0)
        before = life.record
        assert life(TaskExited(stale, 0)) == []
        assert life.record == before
    life(InputsReady(life.attempt(who)))
    released = {attempt.task for effect in life.of(ReleaseTasks) for attempt in effect.attempts}
    assert released == ({"a", "b"} if restarted else {who})


def test_a_command_that_has_not_begun_is_not_restarted() -> None:
    life = Life(group("g", task("a"), task("b", RESCHEDULE="2010"), ignore_nonlead_status=False))
    life.place("g")
    life(InputsReady(life.attempt("a")))
    life(InputsFailed(life.attempt("b"), "not yet"))
    assert life.effects == [NewAttempt("g", Attempt("b", 1, 0))]
    life(InputsReady(life.attempt("b")))
    assert life.of(ReleaseTasks) == [ReleaseTasks("g", (Attempt("a", 0, 0), Attempt("b", 1, 0)), whole_group=True)]


def test_outputs_that_cannot_be_stored_fail_the_task() -> None:
    life = Life(group("g", task("t")))
    life.run("g")
    life(CommandExited(life.attempt("t"), 0))
    life(OutputsFailed(life.attempt("t"), 0, "bucket is full"))
    found = life.record.task("t")
    assert (found.status, found.exit_code) == (TaskStatus.FAILED, ExitCode.UPLOAD_FAILED)
    assert "bucket is full" in str(life.record.failure_message)


def test_out_of_memory_is_an_eviction() -> None:
    life = Life(group("g", task("t")))
    life.run("g")
    life.exit("t", 137, oom=True)
    assert life.record.task("t").exit_code == 3004
    assert life.record.group("g").status is GroupStatus.FAILED_EVICTED
    assert life.record.status is WorkflowStatus.FAILED_EVICTED


def test_a_start_timeout_applies_only_before_the_start() -> None:
    life = Life(group("g", task("t")), group("h", task("u")))
    life.run("g")
    life(TaskFailed(life.attempt("t"), TaskStatus.FAILED_START_TIMEOUT, "slow"))
    assert life.status("t") is TaskStatus.RUNNING
    life.place("h")
    life(TaskFailed(life.attempt("u"), TaskStatus.FAILED_START_TIMEOUT, "slow"))
    assert life.record.task("u").exit_code == 3005


# --- groups as a whole


def test_a_group_that_cannot_be_prepared() -> None:
    life = Life(group("g", task("a"), task("b")), group("h", task("c", "a")))
    life.place("g")
    life(GroupFailed("g", "no sandbox"))
    assert life.record.task("b").exit_code == 3003
    assert life.record.status is WorkflowStatus.FAILED_START_ERROR
    assert life.record.failure_message == "Task 'a' failed with exit code 3003: no sandbox"
    assert CloseGroup("g") in life.effects


def test_a_placement_is_whole_or_an_error() -> None:
    life = Life(group("g", task("a"), task("b")))
    with pytest.raises(ServiceError, match="without its tasks b"):
        life(GroupPlaced("g", {"a": Placed("x86", "n")}))


def test_a_placement_that_comes_too_late_is_given_back() -> None:
    life = Life(group("g", task("a")))
    life(CancelRequested("u"))
    assert life.place("g") == [CloseGroup("g")]


def test_an_unknown_task_is_an_error() -> None:
    life = Life(group("g", task("a")))
    with pytest.raises(ServiceError, match="no task 'z'"):
        life(TaskRunning(Attempt("z", 0, 0)))


# --- the whole workflow


def test_cancellation() -> None:
    life = Life(group("a", task("a1")), group("b", task("b1", "a1")), group("c", task("c1")))
    life.run("a")
    life(CancelRequested("kim", "wrong data"))
    assert life.record.status is WorkflowStatus.FAILED_CANCELED
    assert {found.status for found in life.record.groups} == {GroupStatus.FAILED_CANCELED}
    assert life.record.failure_message == "Task was canceled by user: kim. wrong data"
    assert (life.record.cancelled_by, life.record.cancel_message) == ("kim", "wrong data")
    assert life.of(KillTask) == [KillTask("a", Attempt("a1", 0, 0), "Task was canceled by user: kim. wrong data")]
    assert life.of(CloseGroup) == [CloseGroup("a"), CloseGroup("c")]
    assert life.of(FinishWorkflow) == [FinishWorkflow(WorkflowStatus.FAILED_CANCELED)]
    before = life.record
    assert life(CancelRequested("kim")) == []
    assert life(CancelRequested("kim", force=True)) == [CloseGroup("a"), CloseGroup("b"), CloseGroup("c")]
    assert life.record == before


def test_every_group_has_clocks_of_its_own() -> None:
    life = Life(
        group("a", task("a1")),
        group("b", task("b1", "a1")),
        group("c", task("c1")),
        pool={"default_exec_timeout": 50, "default_queue_timeout": 20},
    )
    assert next_deadline(life.record) == (121, TimedOut("queue", "a"))
    assert life(TimedOut("queue", "a")) == []
    assert life(TimedOut("exec", "a")) == []
    life.run("a")
    started = life.record.group("a").start_time
    assert started is not None
    assert next_deadline(life.record) == (121, TimedOut("queue", "c"))
    life.run("c")
    assert next_deadline(life.record) == (started + 50, TimedOut("exec", "a"))
    life.now = started + 50
    life(TimedOut("exec", "a"))
    assert life.record.group("a").status is GroupStatus.FAILED_EXEC_TIMEOUT
    assert life.record.group("b").status is GroupStatus.FAILED_UPSTREAM
    assert (life.status("b1"), life.record.task("b1").exit_code) == (TaskStatus.FAILED_UPSTREAM, 3000)
    assert life.status("a1") is TaskStatus.FAILED_EXEC_TIMEOUT
    assert life.of(KillTask) == [KillTask("a", Attempt("a1", 0, 0), "The group ran for longer than its limit of 50 s.")]
    assert life.status("c1") is TaskStatus.RUNNING
    life.exit("c1")
    assert life.record.status is WorkflowStatus.FAILED_EXEC_TIMEOUT
    assert life.record.failure_message == "The group ran for longer than its limit of 50 s."


def test_a_group_that_waits_for_too_long() -> None:
    life = Life(group("g", task("t")), group("h", task("u", "t")), pool={"default_queue_timeout": 20})
    life.now = 1000
    life(TimedOut("queue", "g"))
    assert life.record.status is WorkflowStatus.FAILED_QUEUE_TIMEOUT
    assert life.of(CloseGroup) == [CloseGroup("g")]


def test_downstream_groups_wait_on_their_own_account() -> None:
    life = Life(group("g", task("t")), group("h", task("u", "t")), pool={"default_queue_timeout": 20})
    life.run("g")
    life.now = 5000
    life.exit("t")
    queued = life.record.group("h").scheduling_time
    assert queued == 5001
    assert next_deadline(life.record) == (queued + 20, TimedOut("queue", "h"))


def test_a_group_s_own_limits_come_first_and_the_pool_caps_them() -> None:
    spec = msgspec.structs.replace(group("g", task("t")), timeout=Timeout(exec_timeout=70, queue_timeout=900))
    life = Life(spec, group("h", task("u")), pool={"default_exec_timeout": 50, "max_queue_timeout": 300})
    found = life.record.group("g")
    assert (found.exec_timeout_s, found.queue_timeout_s) == (70, 300)
    assert life.record.group("h").exec_timeout_s == 50


def test_the_clock_of_a_preempted_group_begins_anew() -> None:
    life = Life(group("g", task("t")), pool={"default_exec_timeout": 50, "default_queue_timeout": 20})
    life.run("g")
    life.now = 140
    life(GroupPreempted("g", "for w-2"))
    assert next_deadline(life.record) == (161, TimedOut("queue", "g"))
    life.run("g")
    started = life.record.group("g").start_time
    assert started is not None
    assert started > 141
    assert next_deadline(life.record) == (started + 50, TimedOut("exec", "g"))


def test_a_task_that_does_not_start() -> None:
    life = Life(group("g", task("a"), task("b", RESCHEDULE="3005")), pool={"max_retry_per_task": 1})
    life.place("g")
    placed = life.now
    life(TaskRunning(life.attempt("a")))
    assert next_deadline(life.record) == (placed + 1800, TimedOut("start", "g"))
    life.now = placed + 1800
    assert life(TimedOut("start", "g")) == [NewAttempt("g", Attempt("b", 1, 0))]
    assert life.record.task("b", 0).exit_code == ExitCode.START_TIMEOUT
    life.now += 1800
    life(TimedOut("start", "g"))
    assert life.status("b") is TaskStatus.FAILED_START_TIMEOUT
    assert life.status("a") is TaskStatus.RUNNING
    life = Life(group("g", task("a")), pool={"start_timeout": "5m"})
    life.place("g")
    life.now += 300
    life(TimedOut("start", "g"))
    assert life.record.status is WorkflowStatus.FAILED_START_TIMEOUT
    assert life.record.task("a").exit_code == 3005


# --- the others may go on after their lead


def waiting(wait: float | bool, *tasks: TaskSpec, **options: bool) -> GroupSpec:
    return msgspec.structs.replace(group("g", *tasks, **options), wait_for_nonlead=wait)


def test_the_others_end_with_their_lead_by_default() -> None:
    life = Life(group("g", task("a"), task("b")))
    life.run("g")
    assert life.exit("a")[0] == KillTask("g", Attempt("b", 0, 0), "Lead task finished")


def test_the_others_finish_by_themselves() -> None:
    life = Life(waiting(True, task("a"), task("b"), task("c")), group("h", task("d", "a")))
    life.run("g")
    assert life.exit("a") == []
    assert life.record.group("g").status is GroupStatus.RUNNING
    life.exit("b", 3)
    assert life.status("d") is TaskStatus.WAITING
    life.exit("c")
    assert (life.status("b"), life.status("c")) == (TaskStatus.FAILED, TaskStatus.COMPLETED)
    assert life.record.group("g").status is GroupStatus.COMPLETED
    assert life.status("d") is TaskStatus.SCHEDULING


def test_the_others_have_some_time() -> None:
    life = Life(waiting(30, task("a"), task("b")), pool={"default_exec_timeout": 500})
    life.run("g")
    life.exit("a")
    ended = life.now
    assert next_deadline(life.record) == (ended + 30, TimedOut("nonlead", "g"))
    life.now = ended + 29
    assert life(TimedOut("nonlead", "g"))[0] == KillTask("g", Attempt("b", 0, 0), "Lead task finished")
    assert life.record.status is WorkflowStatus.COMPLETED


def test_the_limit_of_the_group_ends_the_wait_and_fails_nothing() -> None:
    life = Life(waiting(True, task("a"), task("b")), pool={"default_exec_timeout": 50})
    life.run("g")
    started = life.record.group("g").start_time
    assert started is not None
    life.exit("a")
    assert next_deadline(life.record) == (started + 50, TimedOut("nonlead", "g"))
    life.now = started + 50
    life(TimedOut("nonlead", "g"))
    assert life.record.status is WorkflowStatus.COMPLETED


def test_a_failure_among_the_others_counts_where_it_is_asked_to() -> None:
    life = Life(waiting(True, task("a"), task("b"), task("c"), ignore_nonlead_status=False))
    life.run("g")
    life.exit("a")
    life.exit("b", 3)
    assert life.status("c") is TaskStatus.FAILED
    assert life.record.group("g").status is GroupStatus.FAILED


def test_a_gang_that_is_lost_while_the_others_finish() -> None:
    life = Life(waiting(30, task("a"), task("b")))
    life.run("g")
    life.exit("a")
    ended = life.now
    assert life(GroupLost("g", "gone")) == [CloseGroup("g"), QueueGroup("g")]
    assert next_deadline(life.record) == (ended + 30, TimedOut("nonlead", "g"))
    assert life.place("g") == [StartGroup("g", (Attempt("b", 1, 0),))]
    life(InputsReady(life.attempt("b")))
    life.exit("b")
    assert life.record.status is WorkflowStatus.COMPLETED


def test_only_the_lost_gang_starts_again() -> None:
    life = Life(group("a", task("a1"), task("a2"), task("a3")), group("b", task("b1")), group("c", task("c1", "a1")))
    life.run("a")
    life.exit("a2")
    life(GroupLost("a", "gone"))
    assert life.effects == [CloseGroup("a"), QueueGroup("a")]
    assert life.record.group("a").status is GroupStatus.SCHEDULING
    assert life.record.task("a1").retry_id == 1
    assert life.record.task("a1", 0).status is TaskStatus.RESCHEDULED
    assert life.record.task("a2").retry_id == 0
    assert life(TaskExited(Attempt("a1", 0, 0), 0)) == []
    assert life.place("a") == [StartGroup("a", (Attempt("a1", 1, 0), Attempt("a3", 1, 0)))]
    life(InputsReady(life.attempt("a1")))
    life(InputsReady(life.attempt("a3")))
    life.exit("a1")
    assert life.record.group("a").status is GroupStatus.COMPLETED
    assert life.record.group("a").placements == 2


def test_a_lost_gang_is_queued_again_and_uses_up_retries() -> None:
    life = Life(group("g", task("a"), task("b")), pool={"max_retry_per_task": 1})
    assert life(GroupLost("g", "gone")) == []
    life.run("g")
    life.exit("b")
    assert life(GroupLost("g", "gone")) == [CloseGroup("g"), QueueGroup("g")]
    assert (life.status("a"), life.record.task("a").retry_id) == (TaskStatus.SCHEDULING, 1)
    assert life.record.task("b").retry_id == 0
    life.run("g")
    life(GroupLost("g", "gone"))
    assert life.record.status is WorkflowStatus.FAILED_SERVER_ERROR
    assert life.record.task("a").failure_message == "gone No retry is left (limit 1)."


def test_preemption_queues_again_without_using_up_retries() -> None:
    life = Life(group("g", task("a"), task("b")), pool={"max_retry_per_task": 1})
    for number in range(3):
        life.run("g")
        assert life(GroupPreempted("g", "for w-2")) == [CloseGroup("g"), QueueGroup("g")]
        before = life.record.task("a", number)
        assert (before.status, before.exit_code, before.failure_message) == (TaskStatus.RESCHEDULED, 3006, "for w-2")
        assert life.record.group("g").start_time is None
    assert life.record.submit_time == 101
    assert life(GroupPreempted("g", "for w-2")) == []
    life.run("g")
    life(GroupLost("g", "gone"))
    assert life.status("a") is TaskStatus.SCHEDULING
    life.run("g")
    life.exit("a")
    assert life.record.status is WorkflowStatus.COMPLETED
    assert life.record.task("a").retry_id == 4


def test_an_exit_action_for_preemption() -> None:
    life = Life(group("g", task("a", FAIL="3006"), task("b")), group("h", task("c", "a")))
    life.run("g")
    life(GroupPreempted("g", "for w-2"))
    assert life.status("b") is TaskStatus.FAILED_PREEMPTED
    assert life.record.task("a").exit_code == 3006
    assert life.status("c") is TaskStatus.FAILED_UPSTREAM
    assert life.record.status is WorkflowStatus.FAILED_PREEMPTED
    life = Life(group("g", task("a", COMPLETE="3006"), task("b")))
    life.run("g")
    life(GroupPreempted("g", "for w-2"))
    assert life.record.status is WorkflowStatus.COMPLETED
    life = Life(group("g", task("a"), task("b", COMPLETE="3006")))
    life.run("g")
    life(GroupPreempted("g", "for w-2"))
    assert (life.status("a"), life.status("b")) == (TaskStatus.SCHEDULING, TaskStatus.COMPLETED)


def test_a_refused_submission_is_kept() -> None:
    life = Life(group("g", task("t")), start=False)
    refused = fail_submission(life.record, "too large", 5.0)
    assert (refused.status, refused.failure_message) == (WorkflowStatus.FAILED_SUBMISSION, "too large")
    assert apply(refused, Submitted(), 6.0)[1] == []


def test_a_gang_of_a_thousand() -> None:
    names = [f"t{number}" for number in range(1000)]
    life = Life(group("g", *(task(name) for name in names)))
    life.place("g")
    for name in names:
        life(TaskRunning(Attempt(name, 0, 0)))
    for name in names[:-1]:
        assert life(InputsReady(Attempt(name, 0, 0))) == []
    released = life(InputsReady(Attempt(names[-1], 0, 0)))
    assert released == [ReleaseTasks("g", tuple(Attempt(name, 0, 0) for name in names), whole_group=True)]
    life.exit("t0")
    assert len(life.of(KillTask)) == 999
    assert life.record.status is WorkflowStatus.COMPLETED


# --- the tables


def lone(*statuses: str, ignore: bool = True) -> GroupRecord:
    """A group of ended tasks, the first of them the lead."""
    return GroupRecord(
        name="g",
        status=GroupStatus.RUNNING,
        ignore_nonlead_status=ignore,
        tasks=tuple(
            TaskRecord(name=f"t{index}", uuid="", lead=index == 0, status=TaskStatus(status))
            for index, status in enumerate(statuses)
        ),
    )


ENDS = [status for status in TaskStatus if status.finished and status is not TaskStatus.RESCHEDULED]
NOT_ENDED = [TaskStatus.SCHEDULING, TaskStatus.INITIALIZING, TaskStatus.RUNNING]


def group_table(statuses: Sequence[str], *, ignore: bool) -> str:
    """The first row that matches, word for word as the specification has it (2.2), before it the ends of a whole
    workflow.
    """
    counted = statuses[:1] if ignore else statuses
    for status in ("FAILED_CANCELED", "FAILED_EXEC_TIMEOUT", "FAILED_QUEUE_TIMEOUT"):
        if status in statuses:
            return status
    for status in ("FAILED_UPSTREAM", "FAILED_SERVER_ERROR", "FAILED_PREEMPTED"):
        if status in statuses:
            return status
    if "FAILED_EVICTED" in counted:
        return "FAILED_EVICTED"
    if any(status.startswith("FAILED") for status in counted):
        return "FAILED"
    return "COMPLETED"


@pytest.mark.parametrize("ignore", [True, False])
def test_the_status_of_a_group_of_tasks_that_ended(ignore: bool) -> None:
    for statuses in itertools.product(ENDS, repeat=3):
        expected = group_table([status.value for status in statuses], ignore=ignore)
        assert group_status(lone(*statuses, ignore=ignore)) == expected, statuses


def test_the_status_of_a_group_that_goes_on() -> None:
    for one, other in itertools.product([*NOT_ENDED, *ENDS], repeat=2):
        if one.finished and other.finished:
            continue
        found = lone(one, other)
        if TaskStatus.RUNNING in {one, other}:
            assert group_status(found) is GroupStatus.RUNNING
        else:
            assert group_status(found) is found.status


def workflow_table(groups: Sequence[str]) -> str:
    for status in ("FAILED_CANCELED", "FAILED_SERVER_ERROR", "FAILED_EXEC_TIMEOUT", "FAILED_QUEUE_TIMEOUT"):
        if status in groups:
            return status
    failures = {status for status in groups if status.startswith("FAILED") and status != "FAILED_UPSTREAM"}
    if {*groups} == {"COMPLETED"}:
        return "COMPLETED"
    return failures.pop() if len(failures) == 1 else "FAILED"


def of_groups(*statuses: GroupStatus) -> WorkflowRecord:
    return msgspec.structs.replace(
        Life(group("g", task("t")), start=False).record,
        groups=tuple(
            GroupRecord(
                name=f"g{index}",
                status=status,
                tasks=(TaskRecord(name=f"t{index}", uuid="", lead=True, exit_code=1, status=TaskStatus(status.value)),),
            )
            for index, status in enumerate(statuses)
        ),
    )


def test_the_status_of_a_workflow_of_groups_that_ended() -> None:
    ends = [status for status in GroupStatus if status.finished]
    for statuses in itertools.product(ends, repeat=3):
        expected = workflow_table([status.value for status in statuses])
        assert workflow_status(of_groups(*statuses)) == expected, statuses


def test_the_status_of_a_workflow_that_goes_on() -> None:
    for one, other in itertools.product(GroupStatus, repeat=2):
        if one.finished and other.finished:
            continue
        for before in (WorkflowStatus.PENDING, WorkflowStatus.RUNNING):
            record = msgspec.structs.replace(of_groups(one, other), status=before)
            running = GroupStatus.RUNNING in {one, other}
            assert workflow_status(record) is (WorkflowStatus.RUNNING if running else before)


@pytest.mark.parametrize("status", [status for status in TaskStatus if status.failed])
def test_every_failure_has_its_code_or_none(status: TaskStatus) -> None:
    codes = {
        "FAILED_UPSTREAM": 3000,
        "FAILED_BACKEND_ERROR": 3001,
        "FAILED_SERVER_ERROR": 3002,
        "FAILED_START_ERROR": 3003,
        "FAILED_EVICTED": 3004,
        "FAILED_START_TIMEOUT": 3005,
        "FAILED_PREEMPTED": 3006,
        "FAILED_IMAGE_PULL": 302,
    }
    assert FAILURE_CODES.get(status) == codes.get(status.value)
    life = Life(group("g", task("t")))
    life.place("g")
    life(TaskFailed(life.attempt("t"), status, "why"))
    assert life.record.task("t").exit_code == codes.get(status.value, 4000)
    assert life.record.status.failed


def test_a_failure_that_all_failed_groups_share_is_the_workflow_s() -> None:
    life = Life(group("g", task("t")), group("h", task("u", "t")), group("k", task("v")))
    life.place("g")
    life.place("k")
    life(TaskFailed(life.attempt("t"), TaskStatus.FAILED_IMAGE_PULL, "no such image", 301))
    life(TaskFailed(life.attempt("v"), TaskStatus.FAILED_IMAGE_PULL, "no such image", 301))
    assert life.record.group("g").status is GroupStatus.FAILED
    assert life.record.status is WorkflowStatus.FAILED_IMAGE_PULL


def test_records_survive_being_stored() -> None:
    life = Life(group("g", task("t", RESCHEDULE="1"), task("u")), group("h", task("v", "t")))
    life.run("g")
    life.exit("t", 1)
    stored = msgspec.json.encode(life.record)
    assert msgspec.json.decode(stored, type=WorkflowRecord) == life.record
