"""The attempts of a task: how many there may be, and what the next one begins with.

Decided here and only here: which attempts count against the limit of retries, whose exit action applies to a code, and
how the unfinished tasks of a group start again elsewhere.
"""

from __future__ import annotations

from msgspec.structs import replace

from .draft import Draft, attempt_uuid
from .events import CloseGroup
from .exit_actions import ExitAction, find_action
from .records import GroupRecord, TaskRecord
from .status import ExitCode, TaskStatus

__all__ = ["action_for", "next_attempt", "queue_again", "retry_is_left"]


def action_for(draft: Draft, task: TaskRecord, code: int) -> ExitAction | None:
    """What the task's author, or else the pool, wants for a code."""
    return find_action(code, draft.record.spec.task(task.name).exit_actions, draft.record.pool_exit_actions)


def retry_is_left(draft: Draft, group: GroupRecord, task: TaskRecord) -> bool:
    """Whether the task may have another attempt. Those that ended by preemption don't count."""
    used = sum(
        1
        for other in group.tasks
        if other.name == task.name and other.retry_id < task.retry_id and other.exit_code != ExitCode.PREEMPTED
    )
    return used < draft.record.max_retry_per_task


def next_attempt(draft: Draft, task: TaskRecord) -> TaskRecord:
    """The attempt after ``task``, as it begins."""
    retry_id = task.retry_id + 1
    return TaskRecord(
        name=task.name,
        uuid=attempt_uuid(draft.record.uuid, task.name, retry_id),
        retry_id=retry_id,
        lead=task.lead,
        processing_time=draft.now,
        scheduling_time=draft.now,
    )


def queue_again(draft: Draft, name: str, message: str, code: ExitCode) -> None:
    """All of a group's unfinished tasks start again, on nodes yet to be found; the group's clocks begin anew."""
    for task in draft.unfinished(name):
        draft.move(name, task, TaskStatus.RESCHEDULED, failure_message=message, exit_code=int(code))
        draft.put_task(name, next_attempt(draft, task))
    draft.put_group(replace(draft.group(name), initializing_time=None, start_time=None))
    draft.effects.append(CloseGroup(name))
    draft.queue(name)
