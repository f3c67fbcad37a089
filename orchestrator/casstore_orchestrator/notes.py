"""What people are told about the life of a task (``osmo workflow events``).

Decided here and only here: which changes of a record are worth a line, and its words. A line's reason is the attempt's
new status, or what its command does: RESTARTED (in place), STARTED, STORING. Every attempt has all of its lines, so
that where its time went can be read from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .records import GroupRecord, TaskRecord, WorkflowRecord
from .statestore import TaskNote
from .status import TaskPhase, TaskStatus

__all__ = ["ENDS", "notes"]

ENDS: Final = frozenset(status.value for status in TaskStatus if status.finished)
"""Reasons of lines whose message is why an attempt ended."""


def notes(before: WorkflowRecord, after: WorkflowRecord, now: float) -> list[TaskNote]:
    """The lines of one change, in the order of the specification."""
    known = {(task.name, task.retry_id): task for task in before.all_tasks()}
    told: list[TaskNote] = []
    for group in after.groups:
        for task in group.tasks:
            old = known.get((task.name, task.retry_id))
            if old is not task:
                told.extend(
                    TaskNote(task.name, task.retry_id, reason, message, now)
                    for reason, message in _lines(group, old, task)
                )
    return told


def _lines(group: GroupRecord, old: TaskRecord | None, task: TaskRecord) -> Iterator[tuple[str, str]]:
    run, phase = (0, TaskPhase.NONE) if old is None else (old.run, old.phase)
    if old is None or old.status is not task.status:
        yield task.status.value, _about(group, task)
    if task.run != run:
        yield "RESTARTED", f"Run {task.run + 1} of the command, in place, together with the group"
    if task.phase is TaskPhase.COMMAND and (phase is not TaskPhase.COMMAND or task.run != run):
        yield "STARTED", "The inputs are in place, and the command was started"
    if task.phase is TaskPhase.OUTPUTS and phase is not TaskPhase.OUTPUTS:
        yield "STORING", "The command ended, and what it left is being stored"


def _about(group: GroupRecord, task: TaskRecord) -> str:
    if task.failure_message:
        return task.failure_message
    if task.status is TaskStatus.WAITING:
        return f"Waits for {', '.join(group.upstream)}"
    if task.status is TaskStatus.INITIALIZING and task.node:
        return f"On node {task.node}, platform {task.platform}"
    return ""
