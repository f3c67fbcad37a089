"""The life of a workflow: what every event changes, and what must be done about it.

Decided here and only here: the rules about leads and non-leads, exit actions and retries, restarts in place,
barriers, cancellation, deadlines, preemption and lost gangs. ``apply`` is a pure function: the same
record, event and time give the same result, and events about attempts or runs that are over change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from casstore.errors import ServiceError

from .attempts import action_for, next_attempt, queue_again, retry_is_left
from .deadlines import exec_limit, late_starters, next_deadline, queue_limit
from .draft import Draft, attempt_uuid
from .events import (
    Attempt,
    CancelRequested,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    GroupFailed,
    GroupLost,
    GroupPlaced,
    GroupPreempted,
    InputsFailed,
    InputsReady,
    NewAttempt,
    OutputsFailed,
    RestartInPlace,
    StartGroup,
    Submitted,
    TaskExited,
    TaskFailed,
    TaskRunning,
    TimedOut,
)
from .exit_actions import ExitAction
from .plan import make_plan
from .pools import Pool
from .records import GroupRecord, TaskRecord, WorkflowRecord
from .spec import WorkflowSpec
from .status import FAILURE_CODES, ExitCode, GroupStatus, Priority, TaskPhase, TaskStatus, WorkflowStatus

__all__ = ["apply", "fail_submission", "new_workflow", "next_deadline", "with_number"]


def new_workflow(
    spec: WorkflowSpec,
    *,
    uuid: str,
    user: str,
    pool: Pool,
    priority: Priority = Priority.NORMAL,
    spec_text: str = "",
    template_text: str | None = None,
    parent: str | None = None,
    tags: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> WorkflowRecord:
    """The record of a workflow that is about to be submitted; its id comes from ``with_number``.

    Raises SpecError when the groups can't be ordered.
    """
    groups = []
    for name, node in make_plan(spec).groups.items():
        group = spec.group(name)
        groups.append(
            GroupRecord(
                name=name,
                tasks=tuple(
                    TaskRecord(name=task.name, uuid=attempt_uuid(uuid, task.name, 0), lead=task.lead)
                    for task in group.tasks
                ),
                upstream=node.upstream,
                downstream=node.downstream,
                barrier=group.barrier,
                ignore_nonlead_status=group.ignore_nonlead_status,
                wait_for_nonlead=group.wait_for_nonlead,
                exec_timeout_s=pool.exec_timeout(group.timeout.exec_timeout or spec.timeout.exec_timeout),
                queue_timeout_s=pool.queue_timeout(group.timeout.queue_timeout or spec.timeout.queue_timeout),
            )
        )
    return WorkflowRecord(
        name=spec.name,
        uuid=uuid,
        user=user,
        pool=pool.name,
        spec=spec,
        groups=tuple(groups),
        priority=priority,
        spec_text=spec_text,
        template_text=template_text,
        parent=parent,
        tags=tags,
        warnings=warnings,
        exec_timeout_s=pool.exec_timeout(spec.timeout.exec_timeout),
        queue_timeout_s=pool.queue_timeout(spec.timeout.queue_timeout),
        start_timeout_s=pool.start_timeout,
        max_retry_per_task=pool.max_retry_per_task,
        pool_exit_actions=dict(pool.default_exit_actions),
    )


def with_number(record: WorkflowRecord, number: int) -> WorkflowRecord:
    """The record with the id ``<name>-<number>``."""
    return replace(record, number=number, id=f"{record.name}-{number}")


def fail_submission(record: WorkflowRecord, message: str, now: float) -> WorkflowRecord:
    """The record of a submission that was refused: kept, and never run."""
    return replace(
        record,
        status=WorkflowStatus.FAILED_SUBMISSION,
        groups=(),
        failure_message=message,
        submit_time=now if record.submit_time is None else record.submit_time,
        end_time=now,
    )


def apply(workflow: WorkflowRecord, event: Event, now: float) -> tuple[WorkflowRecord, list[Effect]]:
    """The record after ``event`` at time ``now``, and what to do about it, in this order."""
    draft = Draft(workflow, now)
    _RULES[type(event)](draft, event)
    draft.finish()
    return draft.result()


# --- the whole workflow


def _submitted(draft: Draft, _event: Submitted) -> None:
    if draft.record.submit_time is None:
        draft.record = replace(draft.record, submit_time=draft.now)
    for group in draft.record.groups:
        if group.status is not GroupStatus.SUBMITTING:
            continue
        if group.upstream:
            for task in group.tasks:
                draft.move(group.name, task, TaskStatus.WAITING)
            draft.put_group(replace(draft.group(group.name), status=GroupStatus.WAITING))
        else:
            draft.queue(group.name)


def _cancelled(draft: Draft, event: CancelRequested) -> None:
    if draft.record.status.finished:
        if event.force:
            draft.effects.extend(CloseGroup(group.name) for group in draft.record.groups)
        return
    message = f"Task was canceled by user: {event.user}."
    if event.message:
        message = f"{message} {event.message}"
    draft.record = replace(draft.record, cancelled_by=event.user, cancel_message=event.message, failure_message=message)
    names = [group.name for group in draft.record.groups if not group.status.finished]
    for name in names:
        draft.end_all(name, TaskStatus.FAILED_CANCELED, message)
    for name in names:
        draft.settle(name)


def _timed_out(draft: Draft, event: TimedOut) -> None:
    deadline = next_deadline(draft.record)
    if deadline is None or deadline[1] != event or draft.now < deadline[0]:
        return
    group = draft.group(event.group)
    if event.kind == "start":
        for task in late_starters(draft.record, group, draft.now):
            message = f"The task did not start within {draft.record.start_timeout_s:g} s."
            _task_failed(
                draft, TaskFailed(Attempt(task.name, task.retry_id, task.run), TaskStatus.FAILED_START_TIMEOUT, message)
            )
        return
    if event.kind == "nonlead":
        draft.end_all(group.name, TaskStatus.COMPLETED, "Lead task finished")
    elif event.kind == "exec":
        message = f"The group ran for longer than its limit of {exec_limit(draft.record, group):g} s."
        draft.end_all(group.name, TaskStatus.FAILED_EXEC_TIMEOUT, message)
    else:
        message = f"The group was queued for longer than its limit of {queue_limit(draft.record, group):g} s."
        draft.end_all(group.name, TaskStatus.FAILED_QUEUE_TIMEOUT, message)
    draft.settle(group.name)


# --- one group


def _placed(draft: Draft, event: GroupPlaced) -> None:
    group = draft.group(event.group)
    if group.status is not GroupStatus.SCHEDULING:
        if not group.status.active:
            draft.effects.append(CloseGroup(group.name))
        return
    tasks = draft.unfinished(group.name)
    missing = [task.name for task in tasks if task.name not in event.placement]
    if missing:
        raise ServiceError(f"group '{group.name}' was placed without its tasks {', '.join(missing)}")
    for task in tasks:
        place = event.placement[task.name]
        draft.move(group.name, task, TaskStatus.INITIALIZING, platform=place.platform, node=place.node, host=place.host)
    draft.put_group(
        replace(
            draft.group(group.name),
            status=GroupStatus.INITIALIZING,
            initializing_time=draft.now,
            placements=group.placements + 1,
        )
    )
    draft.effects.append(StartGroup(group.name, tuple(Attempt(task.name, task.retry_id, task.run) for task in tasks)))


def _group_failed(draft: Draft, event: GroupFailed) -> None:
    draft.end_all(event.group, event.status, event.message, exit_code=event.exit_code)
    draft.settle(event.group)


def _group_lost(draft: Draft, event: GroupLost) -> None:
    group = draft.group(event.group)
    if not group.status.active:
        return
    if not all(retry_is_left(draft, group, task) for task in draft.unfinished(event.group)):
        message = f"{event.message} No retry is left (limit {draft.record.max_retry_per_task})."
        draft.end_all(event.group, TaskStatus.FAILED_SERVER_ERROR, message)
        draft.settle(event.group)
        return
    _interrupted(draft, event.group, event.message, TaskStatus.FAILED_SERVER_ERROR, ExitCode.SERVER_ERROR)


def _group_preempted(draft: Draft, event: GroupPreempted) -> None:
    if draft.group(event.group).status.active:
        _interrupted(draft, event.group, event.message, TaskStatus.FAILED_PREEMPTED, ExitCode.PREEMPTED)


def _interrupted(draft: Draft, name: str, message: str, status: TaskStatus, code: ExitCode) -> None:
    """The gang as a whole is gone: it starts again, unless an exit action for ``code`` says otherwise."""
    actions = {task.name: action_for(draft, task, code) for task in draft.unfinished(name)}
    if ExitAction.FAIL in actions.values():
        draft.end_all(name, status, message)
    for task in draft.unfinished(name):
        if actions[task.name] is ExitAction.COMPLETE:
            draft.move(name, task, TaskStatus.COMPLETED, exit_code=int(code), failure_message=message)
            if task.lead:
                _lead_completed(draft, name)
    if draft.unfinished(name):
        queue_again(draft, name, message, code)
    else:
        draft.settle(name)


def _lead_completed(draft: Draft, name: str) -> None:
    """The others end now, or have some time to finish by themselves."""
    if not draft.group(name).wait_for_nonlead:
        draft.end_all(name, TaskStatus.COMPLETED, "Lead task finished")


# --- one attempt


def _find(draft: Draft, attempt: Attempt) -> tuple[str, TaskRecord] | None:
    """The group and record of an attempt that is going on; None when the report comes too late, or too early."""
    try:
        group = draft.record.group_of(attempt.task)
    except KeyError:
        raise ServiceError(f"workflow {draft.record.id} has no task '{attempt.task}'") from None
    task = group.task(attempt.task)
    if (task.retry_id, task.run) != (attempt.retry_id, attempt.run):
        return None
    if task.status not in {TaskStatus.INITIALIZING, TaskStatus.RUNNING}:
        return None
    return group.name, task


def _task_running(draft: Draft, event: TaskRunning) -> None:
    if found := _find(draft, event.attempt):
        group, task = found
        phase = TaskPhase.INPUTS if task.phase is TaskPhase.NONE else task.phase
        draft.move(group, task, TaskStatus.RUNNING, phase=phase)
        draft.settle(group)


def _inputs_ready(draft: Draft, event: InputsReady) -> None:
    found = _find(draft, event.attempt)
    if found is None or found[1].phase not in {TaskPhase.NONE, TaskPhase.INPUTS}:
        return
    group, task = found
    draft.move(group, task, TaskStatus.RUNNING, phase=TaskPhase.READY, input_download_time=draft.now)
    draft.settle(group)
    draft.release_ready(group)


def _command_exited(draft: Draft, event: CommandExited) -> None:
    found = _find(draft, event.attempt)
    if found is not None and found[1].phase is TaskPhase.COMMAND:
        group, task = found
        draft.move(group, task, TaskStatus.RUNNING, phase=TaskPhase.OUTPUTS, command_end_time=draft.now)


def _inputs_failed(draft: Draft, event: InputsFailed) -> None:
    if found := _find(draft, event.attempt):
        _ended(draft, found, TaskStatus.FAILED, event.exit_code, event.message)


def _outputs_failed(draft: Draft, event: OutputsFailed) -> None:
    if found := _find(draft, event.attempt):
        code = max(event.exit_code, event.command_exit_code)
        _ended(draft, found, TaskStatus.FAILED, code, event.message)


def _task_exited(draft: Draft, event: TaskExited) -> None:
    found = _find(draft, event.attempt)
    if found is None:
        return
    if event.oom:
        message = event.message or "The task reached its memory limit."
        _ended(draft, found, TaskStatus.FAILED_EVICTED, ExitCode.EVICTED, message)
        return
    status = TaskStatus.COMPLETED if event.exit_code == 0 else TaskStatus.FAILED
    group, task = found
    stored = replace(task, output_upload_time=draft.now)
    _ended(draft, (group, stored), status, event.exit_code, event.message)


def _task_failed(draft: Draft, event: TaskFailed) -> None:
    found = _find(draft, event.attempt)
    if found is None:
        return
    group, task = found
    if not event.status.failed:
        raise ServiceError(f"task '{task.name}' can't fail with the status {event.status}")
    if event.status is TaskStatus.FAILED_START_TIMEOUT and task.status is TaskStatus.RUNNING:
        return
    code = FAILURE_CODES.get(event.status, ExitCode.UNKNOWN) if event.exit_code is None else event.exit_code
    _ended(draft, (group, task), event.status, code, event.message)


def _ended(
    draft: Draft, found: tuple[str, TaskRecord], status: TaskStatus, exit_code: int, message: str | None
) -> None:
    """An attempt ended by itself: exit actions first, then what its end means for the group."""
    group, task = found
    code = int(exit_code)
    action = action_for(draft, task, code)
    if action is ExitAction.RESCHEDULE:
        if retry_is_left(draft, draft.group(group), task):
            _reschedule(draft, group, task, code, message)
            draft.settle(group)
            return
        note = f"No exit action applied due to retry limit {draft.record.max_retry_per_task}."
        message = f"{message} {note}" if message else note
    elif action is not None:
        status = TaskStatus.COMPLETED if action is ExitAction.COMPLETE else TaskStatus.FAILED
        if action is ExitAction.FAIL and code == 0 and message is None:
            message = "The exit action FAIL applies."
    draft.move(group, task, status, exit_code=code, failure_message=message)
    record = draft.group(group)
    if task.lead:
        if status is TaskStatus.COMPLETED:
            _lead_completed(draft, group)
            draft.release_ready(group)
        else:
            draft.end_all(group, TaskStatus.FAILED, f"Lead task {task.name} failed.")
    elif status.failed and not record.ignore_nonlead_status:
        draft.end_all(group, TaskStatus.FAILED, f"Task {task.name} failed.")
    else:
        draft.release_ready(group)
    draft.settle(group)


def _reschedule(draft: Draft, group: str, task: TaskRecord, exit_code: int, message: str | None) -> None:
    draft.move(group, task, TaskStatus.RESCHEDULED, exit_code=exit_code, failure_message=message)
    fresh = replace(
        next_attempt(draft, task),
        status=TaskStatus.INITIALIZING,
        initializing_time=draft.now,
        platform=task.platform,
        node=task.node,
        host=task.host,
    )
    draft.put_task(group, fresh)
    draft.effects.append(NewAttempt(group, Attempt(fresh.name, fresh.retry_id, fresh.run)))
    if task.lead or not draft.group(group).ignore_nonlead_status:
        for other in draft.unfinished(group):
            # A command that has not begun needs no restart, and one that ended has its result.
            if other.name != task.name and other.phase is TaskPhase.COMMAND:
                again = replace(other, run=other.run + 1, phase=TaskPhase.READY, command_start_time=None)
                draft.put_task(group, again)
                draft.effects.append(RestartInPlace(group, Attempt(again.name, again.retry_id, again.run)))
    draft.release_ready(group)


_RULES: Final[dict[type[Any], Callable[[Draft, Any], None]]] = {
    Submitted: _submitted,
    GroupPlaced: _placed,
    GroupFailed: _group_failed,
    GroupLost: _group_lost,
    GroupPreempted: _group_preempted,
    TaskRunning: _task_running,
    InputsReady: _inputs_ready,
    InputsFailed: _inputs_failed,
    CommandExited: _command_exited,
    TaskExited: _task_exited,
    OutputsFailed: _outputs_failed,
    TaskFailed: _task_failed,
    CancelRequested: _cancelled,
    TimedOut: _timed_out,
}
