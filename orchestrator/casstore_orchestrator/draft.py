"""A workflow's record while one event is applied to it.

Decided here and only here: how a task, a group and a workflow move between statuses, which times they stamp,
and what follows from a move for what lies around it (a group from its tasks, downstream groups, the
workflow). Why they move is decided in ``state``.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from .derive import failed_tasks, group_status, workflow_status
from .events import Attempt, CloseGroup, Effect, FinishWorkflow, KillTask, QueueGroup, ReleaseTasks
from .records import GroupRecord, TaskRecord, WorkflowRecord
from .status import FAILURE_CODES, GroupStatus, TaskPhase, TaskStatus, WorkflowStatus

__all__ = ["Draft", "attempt_uuid"]

_STAMPS = {
    TaskStatus.PROCESSING: "processing_time",
    TaskStatus.SCHEDULING: "scheduling_time",
    TaskStatus.INITIALIZING: "initializing_time",
    TaskStatus.RUNNING: "start_time",
}


def attempt_uuid(workflow_uuid: str, task: str, retry_id: int) -> str:
    """The id of an attempt: the same however often it is computed."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{workflow_uuid}/{task}/{retry_id}").hex


class Draft:
    """The record being changed, and the effects that the changes ask for so far."""

    def __init__(self, record: WorkflowRecord, now: float) -> None:
        self.record = record
        self.now = now
        self.effects: list[Effect] = []

    def result(self) -> tuple[WorkflowRecord, list[Effect]]:
        """What became of it."""
        return self.record, self.effects

    # --- parts

    def group(self, name: str) -> GroupRecord:
        """The group as it is now."""
        return self.record.group(name)

    def put_group(self, group: GroupRecord) -> None:
        """Replace the group of this name."""
        self.record = replace(
            self.record, groups=tuple(group if old.name == group.name else old for old in self.record.groups)
        )

    def put_task(self, group: str, task: TaskRecord) -> None:
        """Replace an attempt, or add it behind the attempt before it."""
        record = self.group(group)
        tasks: list[TaskRecord] = []
        known = any(old.name == task.name and old.retry_id == task.retry_id for old in record.tasks)
        for old in record.tasks:
            same = old.name == task.name
            if known and same and old.retry_id == task.retry_id:
                tasks.append(task)
                continue
            tasks.append(old)
            if not known and same and old.retry_id == task.retry_id - 1:
                tasks.append(task)
        self.put_group(replace(record, tasks=tuple(tasks)))

    def unfinished(self, group: str) -> tuple[TaskRecord, ...]:
        """The attempts of a group that have not ended."""
        return tuple(task for task in self.group(group).current() if not task.status.finished)

    # --- tasks

    def move(self, group: str, task: TaskRecord, status: TaskStatus, **changes: Any) -> TaskRecord:
        """Move a task forward; a task that has ended, or is further along, keeps its status."""
        if task.status.finished:
            return task
        if status.rank > task.status.rank:
            changes["status"] = status
            if status in _STAMPS:
                changes[_STAMPS[status]] = self.now
            if status.finished:
                changes["end_time"] = self.now
                changes["phase"] = TaskPhase.NONE
        moved = replace(task, **changes)
        self.put_task(group, moved)
        return moved

    def end(
        self, group: str, task: TaskRecord, status: TaskStatus, message: str | None, exit_code: int | None = None
    ) -> None:
        """End an attempt for a reason outside it, and order what is left of it to be killed."""
        if task.status.finished:
            return
        if task.status.rank >= TaskStatus.INITIALIZING.rank:
            self.effects.append(KillTask(group, Attempt(task.name, task.retry_id, task.run), message or status.value))
        code = exit_code if exit_code is not None else FAILURE_CODES.get(status)
        self.move(group, task, status, failure_message=message, exit_code=None if code is None else int(code))

    def end_all(
        self,
        group: str,
        status: TaskStatus,
        message: str | None,
        *,
        besides: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        """End every unfinished attempt of a group, except the task ``besides``."""
        for task in self.unfinished(group):
            if task.name != besides:
                self.end(group, task, status, message, exit_code)

    def release_ready(self, name: str) -> None:
        """Release commands that may start: behind a barrier all that wait, once nobody is still on the way."""
        group = self.group(name)
        unfinished = self.unfinished(name)
        ready = [task for task in unfinished if task.phase is TaskPhase.READY]
        late = [task for task in unfinished if task.phase in {TaskPhase.NONE, TaskPhase.INPUTS}]
        if not ready or (group.barrier and late):
            return
        for task in ready:
            self.move(name, task, TaskStatus.RUNNING, phase=TaskPhase.COMMAND, command_start_time=self.now)
        attempts = tuple(Attempt(task.name, task.retry_id, task.run) for task in ready)
        self.effects.append(ReleaseTasks(name, attempts, whole_group=len(ready) == len(unfinished)))

    # --- groups

    def queue(self, name: str) -> None:
        """The group may run as soon as there are nodes for it."""
        for status in (TaskStatus.PROCESSING, TaskStatus.SCHEDULING):
            for task in self.unfinished(name):
                self.move(name, task, status)
        group = self.group(name)
        self.put_group(
            replace(
                group,
                status=GroupStatus.SCHEDULING,
                processing_time=group.processing_time or self.now,
                scheduling_time=self.now,
            )
        )
        self.effects.append(QueueGroup(name))

    def settle(self, name: str) -> None:
        """Bring a group's status in line with its tasks, and what depends on it in line with the group."""
        group = self.group(name)
        if group.status.finished:
            return
        status = group_status(group)
        if status is GroupStatus.RUNNING and group.start_time is None:
            group = replace(group, start_time=self.now)
        if not status.finished:
            self.put_group(replace(group, status=status))
            return
        known_to_scheduler = group.status.active or group.status is GroupStatus.SCHEDULING
        self.put_group(
            replace(group, status=status, end_time=self.now, failure_message=_why(group) if status.failed else None)
        )
        if known_to_scheduler:
            self.effects.append(CloseGroup(name))
        for other in group.downstream:
            if status.failed:
                self._fail_downstream(other, name)
            elif self.group(other).status is GroupStatus.WAITING and all(
                self.group(before).status is GroupStatus.COMPLETED for before in self.group(other).upstream
            ):
                self.queue(other)

    def _fail_downstream(self, name: str, cause: str) -> None:
        if self.group(name).status.finished:
            return
        self.end_all(name, TaskStatus.FAILED_UPSTREAM, f"Group '{cause}', which this one needs, failed.")
        self.settle(name)

    # --- the workflow

    def finish(self) -> None:
        """Bring the workflow's status in line with its groups; the last step of every event."""
        record = self.record
        if record.status.finished:
            return
        status = workflow_status(record)
        if status is WorkflowStatus.RUNNING and record.start_time is None:
            record = replace(record, start_time=self.now)
        if status.finished:
            message = record.failure_message
            if status.failed and message is None:
                message = _first_failure(record.groups)
            record = replace(record, end_time=self.now, failure_message=message)
            self.effects.append(FinishWorkflow(status))
        self.record = replace(record, status=status)


def _why(group: GroupRecord) -> str:
    task = failed_tasks(group)[0]
    if task.status in {
        TaskStatus.FAILED_CANCELED,
        TaskStatus.FAILED_UPSTREAM,
        TaskStatus.FAILED_EXEC_TIMEOUT,
        TaskStatus.FAILED_QUEUE_TIMEOUT,
    }:
        return task.failure_message or task.status.value
    code = "" if task.exit_code is None else f" with exit code {task.exit_code}"
    detail = f": {task.failure_message}" if task.failure_message else ""
    return f"Task '{task.name}' failed{code}{detail}"


def _first_failure(groups: Iterable[GroupRecord]) -> str | None:
    failed = [group for group in groups if group.status.failed]
    own = [group for group in failed if group.status is not GroupStatus.FAILED_UPSTREAM]
    return next((group.failure_message for group in own or failed), None)
