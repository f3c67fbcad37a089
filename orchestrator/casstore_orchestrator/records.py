"""What is remembered about a submitted workflow: the rows that the database keeps and the transitions
rewrite.

Decided here and only here: the fields of a workflow's, a group's and a task attempt's record. Records are
immutable; ``state.apply`` gives new ones. All times are seconds since the epoch (UTC), None while not
reached.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .events import Effect
from .pools import START_TIMEOUT, Resources
from .spec import WorkflowSpec
from .status import GroupStatus, Priority, TaskPhase, TaskStatus, WorkflowStatus

__all__ = ["AppUse", "GroupRecord", "Held", "Order", "TaskRecord", "WorkflowRecord"]


class Order(msgspec.Struct, frozen=True):
    """An effect that the agent of a group has to carry out. Numbered from 1 in each placement of the group: the
    first is ``StartGroup``, the last ``CloseGroup``.
    """

    number: int
    effect: Effect


class Held(msgspec.Struct, frozen=True):
    """What one task of a placed group holds of a node."""

    task: str
    platform: str
    node: str
    amount: Resources


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one task; earlier attempts stay with the status RESCHEDULED.

    ``run`` counts how often the command was restarted in place within this attempt. ``exit_code`` is None
    while the task runs, and for tasks that ended because another one did. ``host`` is the name under which
    peers reach it. ``input_download_time`` and ``output_upload_time`` are when these ended.
    """

    name: str
    uuid: str
    retry_id: int = 0
    run: int = 0
    lead: bool = False
    status: TaskStatus = TaskStatus.SUBMITTING
    phase: TaskPhase = TaskPhase.NONE
    exit_code: int | None = None
    failure_message: str | None = None
    platform: str | None = None
    node: str | None = None
    host: str | None = None
    processing_time: float | None = None
    scheduling_time: float | None = None
    initializing_time: float | None = None
    start_time: float | None = None
    input_download_time: float | None = None
    command_start_time: float | None = None
    command_end_time: float | None = None
    output_upload_time: float | None = None
    end_time: float | None = None


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One group. ``tasks`` holds every attempt, in the order of the specification, attempts of a task in
    sequence.

    ``upstream`` and ``downstream`` are the names of the groups directly before and after this one.
    ``exec_timeout_s`` counts from ``start_time``, ``queue_timeout_s`` from ``scheduling_time``, both in seconds and
    both anew when the group is queued again. ``wait_for_nonlead`` is how many seconds the others may go on after the
    lead completed; True: until they end.
    ``placements`` counts how often the gang was placed (more than once only after the machine lost it, or it was
    preempted): the number of its newest run. ``holds`` is what that run holds, and not empty exactly from the
    placement until nothing of the run is left; a group is placed again only then. ``seen`` is the number of the last
    event that the run's agent reported and that is part of this record, ``orders`` are those that the agent is not yet
    known to have taken, ``next_order`` is the number of the next one.
    """

    name: str
    tasks: tuple[TaskRecord, ...]
    status: GroupStatus = GroupStatus.SUBMITTING
    upstream: tuple[str, ...] = ()
    downstream: tuple[str, ...] = ()
    barrier: bool = True
    ignore_nonlead_status: bool = True
    wait_for_nonlead: float | bool = False
    exec_timeout_s: float | None = None
    queue_timeout_s: float | None = None
    placements: int = 0
    holds: tuple[Held, ...] = ()
    seen: int = 0
    orders: tuple[Order, ...] = ()
    next_order: int = 1
    failure_message: str | None = None
    processing_time: float | None = None
    scheduling_time: float | None = None
    initializing_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None

    def current(self) -> tuple[TaskRecord, ...]:
        """The newest attempt of each task, in the order of the specification."""
        newest: dict[str, TaskRecord] = {}
        for task in self.tasks:
            if task.name not in newest or newest[task.name].retry_id < task.retry_id:
                newest[task.name] = task
        return tuple(newest.values())

    def task(self, name: str, retry_id: int | None = None) -> TaskRecord:
        """An attempt of a task, the newest by default; KeyError when there is none."""
        for task in self.current() if retry_id is None else self.tasks:
            if task.name == name and retry_id in {None, task.retry_id}:
                return task
        raise KeyError(name)


class AppUse(msgspec.Struct, frozen=True):
    """The version of an app that a workflow was submitted by."""

    uuid: str
    version: int


class WorkflowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One submitted workflow. ``groups`` are in topological order.

    ``id`` is ``<name>-<number>``; both are empty (0) until the store allots them. ``spec_text`` is the YAML
    after templates, ``template_text`` as submitted when it had any. ``parent`` is the id of the workflow that
    this one restarts. ``exec_timeout_s`` and ``queue_timeout_s`` are those of groups without their own;
    ``start_timeout_s`` is how long a placed task may take to begin. ``pool_exit_actions`` apply after a task's own.
    ``reuse``: results of equal tasks may be taken. ``revision`` grows by every change that the scheduler makes.
    """

    name: str
    uuid: str
    user: str
    pool: str
    spec: WorkflowSpec
    groups: tuple[GroupRecord, ...] = ()
    id: str = ""
    number: int = 0
    priority: Priority = Priority.NORMAL
    status: WorkflowStatus = WorkflowStatus.PENDING
    submit_time: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    spec_text: str = ""
    template_text: str | None = None
    parent: str | None = None
    app: AppUse | None = None
    tags: tuple[str, ...] = ()
    exec_timeout_s: float | None = None
    queue_timeout_s: float | None = None
    start_timeout_s: float | None = START_TIMEOUT
    max_retry_per_task: int = 3
    pool_exit_actions: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    failure_message: str | None = None
    cancelled_by: str | None = None
    cancel_message: str | None = None
    reuse: bool = False
    revision: int = 0

    def group(self, name: str) -> GroupRecord:
        """The group of this name; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def group_of(self, task: str) -> GroupRecord:
        """The group that holds the task of this name; KeyError when there is none."""
        for group in self.groups:
            if any(record.name == task for record in group.tasks):
                return group
        raise KeyError(task)

    def task(self, name: str, retry_id: int | None = None) -> TaskRecord:
        """An attempt of a task, the newest by default; KeyError when there is none."""
        return self.group_of(name).task(name, retry_id)

    @property
    def live(self) -> bool:
        """Whether there is still something to do: it has not ended, or something of it is left on a node."""
        return not self.status.finished or any(group.holds for group in self.groups)

    def all_tasks(self) -> Iterator[TaskRecord]:
        """Every attempt of every task."""
        for group in self.groups:
            yield from group.tasks
