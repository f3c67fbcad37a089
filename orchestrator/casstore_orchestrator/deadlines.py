"""When a group has taken too long, and for what.

Decided here and only here: which limits there are, from when each one counts, and which comes first. The limits of
execution and of queueing are those of OSMO 6.3: each group has its own clock, which begins anew when the group is
queued again. What happens when one has passed is decided in ``state``.
"""

from __future__ import annotations

from collections.abc import Iterator

from .events import TimedOut
from .records import GroupRecord, TaskRecord, WorkflowRecord
from .status import GroupStatus, TaskStatus

__all__ = ["exec_limit", "late_starters", "lead_is_done", "next_deadline", "queue_limit"]


def next_deadline(record: WorkflowRecord) -> tuple[float, TimedOut] | None:
    """When which limit of which group passes first unless something happens before; None when none applies."""
    if record.status.finished:
        return None
    found = (deadline for group in record.groups for deadline in _deadlines(record, group))
    return min(found, key=lambda deadline: deadline[0], default=None)


def exec_limit(record: WorkflowRecord, group: GroupRecord) -> float | None:
    """How many seconds a group may run."""
    return record.exec_timeout_s if group.exec_timeout_s is None else group.exec_timeout_s


def queue_limit(record: WorkflowRecord, group: GroupRecord) -> float | None:
    """How many seconds a group may wait for nodes."""
    return record.queue_timeout_s if group.queue_timeout_s is None else group.queue_timeout_s


def lead_is_done(group: GroupRecord) -> bool:
    """Whether the lead has completed, and others may go on for a while (``waitForNonlead``)."""
    return any(task.lead and task.status is TaskStatus.COMPLETED for task in group.current())


def late_starters(record: WorkflowRecord, group: GroupRecord, now: float) -> list[TaskRecord]:
    """The attempts that were placed longer ago than a start may take, and have not begun."""
    limit = record.start_timeout_s
    return [task for task in _starting(group) if limit is not None and (task.initializing_time or now) + limit <= now]


def _starting(group: GroupRecord) -> list[TaskRecord]:
    return [task for task in group.current() if task.status is TaskStatus.INITIALIZING]


def _deadlines(record: WorkflowRecord, group: GroupRecord) -> Iterator[tuple[float, TimedOut]]:
    if group.status.finished:
        return
    execution, queueing = exec_limit(record, group), queue_limit(record, group)
    # Once the lead has completed the group can't fail by taking too long: what is left of it ends.
    done = lead_is_done(group)
    if done and not isinstance(group.wait_for_nonlead, bool):
        ended = max(task.end_time or 0.0 for task in group.current() if task.lead)
        yield ended + group.wait_for_nonlead, TimedOut("nonlead", group.name)
    if group.status is GroupStatus.SCHEDULING and group.scheduling_time is not None and queueing is not None:
        yield group.scheduling_time + queueing, TimedOut("nonlead" if done else "queue", group.name)
    if group.status is GroupStatus.RUNNING and group.start_time is not None and execution is not None:
        yield group.start_time + execution, TimedOut("nonlead" if done else "exec", group.name)
    if group.status.active and record.start_timeout_s is not None:
        for task in _starting(group):
            if task.initializing_time is not None:
                yield task.initializing_time + record.start_timeout_s, TimedOut("start", group.name)
