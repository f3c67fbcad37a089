"""The status of a whole from the statuses of its parts.

Decided here and only here: the two tables that give a group's status from its tasks, and a workflow's from
its groups.
"""

from __future__ import annotations

from .records import GroupRecord, TaskRecord, WorkflowRecord
from .status import GroupStatus, TaskStatus, WorkflowStatus

__all__ = ["considered", "failed_tasks", "group_status", "workflow_status"]

# A task that ended this way decides for its group whoever the lead is. The first that occurs wins.
_DECISIVE = (
    TaskStatus.FAILED_CANCELED,
    TaskStatus.FAILED_EXEC_TIMEOUT,
    TaskStatus.FAILED_QUEUE_TIMEOUT,
    TaskStatus.FAILED_UPSTREAM,
    TaskStatus.FAILED_SERVER_ERROR,
    TaskStatus.FAILED_PREEMPTED,
)
# The same for a group and its workflow.
_FINAL = (
    GroupStatus.FAILED_CANCELED,
    GroupStatus.FAILED_SERVER_ERROR,
    GroupStatus.FAILED_EXEC_TIMEOUT,
    GroupStatus.FAILED_QUEUE_TIMEOUT,
)


def considered(group: GroupRecord) -> tuple[TaskRecord, ...]:
    """The attempts that decide the group's result: the lead's alone, or everyone's."""
    return tuple(task for task in group.current() if task.lead or not group.ignore_nonlead_status)


def failed_tasks(group: GroupRecord) -> tuple[TaskRecord, ...]:
    """The attempts that made a failed group fail, and not those that merely ended with it."""
    failed = [task for task in group.current() if task.status.failed]
    decisive = [task for task in failed if task.status in _DECISIVE]
    counted = decisive or [task for task in failed if task.lead or not group.ignore_nonlead_status]
    own = [task for task in counted if task.exit_code is not None]
    return tuple(own or counted)


def group_status(group: GroupRecord) -> GroupStatus:
    """Where the group stands. While tasks are unfinished it never falls back behind where it was."""
    current = group.current()
    if any(not task.status.finished for task in current):
        if any(task.status is TaskStatus.RUNNING for task in current):
            return GroupStatus.RUNNING
        return group.status
    statuses = {task.status for task in current}
    for status in _DECISIVE:
        if status in statuses:
            return GroupStatus(status.value)
    counted = {task.status for task in considered(group)}
    if TaskStatus.FAILED_EVICTED in counted:
        return GroupStatus.FAILED_EVICTED
    if any(status.failed for status in counted):
        return GroupStatus.FAILED
    return GroupStatus.COMPLETED


def workflow_status(workflow: WorkflowRecord) -> WorkflowStatus:
    """Where the workflow stands. It is RUNNING from the first task that runs until its end."""
    groups = workflow.groups
    if any(not group.status.finished for group in groups):
        running = any(group.status is GroupStatus.RUNNING for group in groups)
        return WorkflowStatus.RUNNING if running else workflow.status
    statuses = {group.status for group in groups}
    for status in _FINAL:
        if status in statuses:
            return WorkflowStatus(status.value)
    causes: set[str] = set()
    for group in groups:
        if group.status is GroupStatus.FAILED:
            causes.update(task.status.value for task in failed_tasks(group))
        elif group.status.failed and group.status is not GroupStatus.FAILED_UPSTREAM:
            causes.add(group.status.value)
    if all(group.status is GroupStatus.COMPLETED for group in groups):
        return WorkflowStatus.COMPLETED
    return WorkflowStatus(causes.pop()) if len(causes) == 1 else WorkflowStatus.FAILED
