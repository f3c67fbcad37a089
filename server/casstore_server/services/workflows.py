"""Questions about workflows and tasks, and the small changes: cancel and tag.

Decided here and only here: the limits of a page, what may be cancelled, and what a tag may be called.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore.wire.workflow import (
    CancelReply,
    ResourceSummary,
    SummaryList,
    TagsReply,
    TaskList,
    TaskReply,
    TaskSummary,
    WorkflowList,
    WorkflowReply,
)
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.status import Priority, TaskStatus, WorkflowStatus
from casstore_server.db import queries
from casstore_server.db.queries import TaskFilter, WorkflowFilter
from casstore_server.services import replies
from casstore_server.services.context import Caller, Services
from casstore_server.services.reasons import visible, visible_text
from casstore_server.services.rights import changeable, readable

__all__ = [
    "MAX_PAGE",
    "cancel",
    "change_tags",
    "check_priorities",
    "check_statuses",
    "check_task",
    "list_tags",
    "list_tasks",
    "list_workflows",
    "query",
    "query_task",
    "spec_text",
    "sum_tasks",
]

MAX_PAGE = 1000
_MAX_TAGS = 32
_TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:/-]{0,62}[A-Za-z0-9])?", re.ASCII)
_GIB = 2**30
_WAITING = (str(TaskStatus.PROCESSING), str(TaskStatus.SCHEDULING))
_MAX_EXPLAINED = 100
"""Workflows on one page of tasks whose records are read to say what they wait for."""


def check_statuses(given: Sequence[str], known: type[WorkflowStatus | TaskStatus]) -> list[str]:
    """Statuses in the spelling of the records. Raises ``UsageError`` for one that does not exist."""
    names = {str(status) for status in known}
    found = [name.upper() for name in given]
    for name in found:
        if name not in names:
            raise UsageError(f"There is no status {name}", hint=f"Known: {', '.join(sorted(names))}")
    return found


def check_priorities(given: Sequence[str]) -> list[str]:
    """As ``check_statuses``, for priorities."""
    names = [str(priority) for priority in Priority]
    found = [name.upper() for name in given]
    for name in found:
        if name not in names:
            raise UsageError(f"There is no priority {name}", hint=f"Known: {', '.join(names)}")
    return found


def list_workflows(
    services: Services, caller: Caller, wanted: WorkflowFilter, *, limit: int, offset: int, oldest_first: bool
) -> WorkflowList:
    """A page of workflows, the newest first unless ``oldest_first``."""
    now = time.time()
    limit = min(limit, MAX_PAGE)
    wanted = replace(wanted, within=caller.grants.scope("workflow:Read"))
    with services.database.reading() as connection:
        rows = queries.workflows(connection, wanted, limit=limit + 1, offset=offset, oldest_first=oldest_first)
        more, rows = len(rows) > limit, rows[:limit]
        tags = queries.tags_of(connection, [row.id for row in rows])
    found = [replies.workflow_summary(row, tags.get(row.id, []), caller.links, now) for row in rows]
    return WorkflowList(workflows=found, more_entries=more)


def query(services: Services, caller: Caller, workflow_id: str, *, groups: bool, all_attempts: bool) -> WorkflowReply:
    """Everything about one workflow."""
    record = readable(services, caller, workflow_id)
    found = replies.workflow_reply(record, caller.links, time.time(), groups=groups, all_attempts=all_attempts)
    if not record.status.finished:
        found.pending_reason = visible_text(services, caller, services.scheduler.why_pending(record.id)) or None
        reasons = services.scheduler.pending(record).values()
        found.pending = [msgspec.to_builtins(visible(services, caller, why)) for why in reasons]
    return found


def query_task(services: Services, caller: Caller, workflow_id: str, task: str, retry_id: int | None) -> TaskReply:
    """One attempt of one task, the newest by default."""
    record = readable(services, caller, workflow_id)
    check_task(record, task, retry_id)
    return replies.task_reply(record, record.task(task, retry_id), caller.links)


def check_task(record: WorkflowRecord, task: str, retry_id: int | None = None) -> None:
    """Raise ``NotFoundError`` unless the workflow has this task, and this attempt of it."""
    try:
        record.task(task, retry_id)
    except KeyError:
        attempts = [found.retry_id for found in record.all_tasks() if found.name == task]
        if attempts:
            raise NotFoundError(
                f"Task {task} of {record.id} has no attempt {retry_id}",
                hint=f"Its attempts: {', '.join(map(str, attempts))}",
            ) from None
        names = sorted({found.name for found in record.all_tasks()})
        raise NotFoundError(f"Workflow {record.id} has no task {task}", hint=f"Its tasks: {', '.join(names)}") from None


def spec_text(services: Services, caller: Caller, workflow_id: str, *, template: bool) -> str:
    """The specification as it runs, or as it was submitted when that was a template."""
    record = readable(services, caller, workflow_id)
    if template and record.template_text is None:
        raise NotFoundError(f"Workflow {record.id} was not submitted as a template", hint="Ask without --template.")
    return (record.template_text or "") if template else record.spec_text


def cancel(services: Services, caller: Caller, workflow_id: str, *, force: bool, message: str | None) -> CancelReply:
    """Begin to end a workflow; one that has ended already is an error unless ``force``."""
    record = changeable(services, caller, workflow_id, "workflow:Change")
    if record.status.finished and not force:
        raise ConflictError(f"Workflow {record.id} has ended already: {record.status}")
    if not record.status.finished:
        services.scheduler.cancel(record.id, force=force, user=caller.user, message=message)
    return CancelReply(name=record.id)


def change_tags(
    services: Services, caller: Caller, workflow_id: str, add: Sequence[str], remove: Sequence[str]
) -> None:
    """Add and remove tags; removing one that is not there is no error."""
    changeable(services, caller, workflow_id, "workflow:Change")
    for name in add:
        if not _TAG.fullmatch(name):
            raise UsageError(
                f"'{name}' is not a tag",
                hint="Letters, digits, '_', '.', ':', '/' and '-', at most 64, ending in a letter or digit.",
            )

    def change(record: WorkflowRecord) -> WorkflowRecord:
        tags = tuple(sorted((set(record.tags) | set(add)) - set(remove)))
        if len(tags) > _MAX_TAGS:
            raise UsageError(f"Workflow {record.id} would have more than {_MAX_TAGS} tags")
        return msgspec.structs.replace(record, tags=tags)

    services.database.change(workflow_id, change)


def list_tags(services: Services, caller: Caller) -> TagsReply:
    """Every tag of any workflow that the caller may read."""
    with services.database.reading() as connection:
        return TagsReply(tags=queries.tags_in_use(connection, caller.grants.scope("workflow:Read")))


def list_tasks(
    services: Services, caller: Caller, wanted: TaskFilter, *, limit: int, offset: int, oldest_first: bool
) -> TaskList:
    """A page of attempts of tasks."""
    now = time.time()
    wanted = replace(wanted, within=caller.grants.scope("workflow:Read"))
    with services.database.reading() as connection:
        rows = queries.tasks(connection, wanted, limit=min(limit, MAX_PAGE), offset=offset, oldest_first=oldest_first)
    found = [replies.task_summary(row, caller.links, now) for row in rows]
    _say_why(services, caller, found)
    return TaskList(tasks=found)


def _say_why(services: Services, caller: Caller, tasks: Sequence[TaskSummary]) -> None:
    """Add to the tasks that wait for nodes what they wait for."""
    by_workflow: dict[str, list[TaskSummary]] = {}
    for task in tasks:
        if task.status in _WAITING and (task.workflow_id in by_workflow or len(by_workflow) < _MAX_EXPLAINED):
            by_workflow.setdefault(task.workflow_id, []).append(task)
    for workflow_id, waiting in by_workflow.items():
        record = services.database.load(workflow_id)
        reasons = services.scheduler.pending(record)
        for task in waiting if reasons else ():
            why = reasons.get(record.group_of(task.task_name).name)
            if why is not None:
                shown = visible(services, caller, why)
                task.pending_reason, task.pending = shown.line, msgspec.to_builtins(shown)


def sum_tasks(services: Services, caller: Caller, wanted: TaskFilter, *, by_workflow: bool) -> SummaryList:
    """What tasks ask for in sum."""
    wanted = replace(wanted, within=caller.grants.scope("workflow:Read"))
    with services.database.reading() as connection:
        rows = queries.task_sums(connection, wanted, by_workflow=by_workflow)
    return SummaryList(
        summaries=[
            ResourceSummary(
                user=row.user,
                pool=row.pool,
                priority=row.priority,
                cpu=row.cpu,
                memory=row.memory / _GIB,
                storage=row.storage / _GIB,
                gpu=row.gpu,
                workflow_id=row.workflow_id if by_workflow else None,
            )
            for row in rows
        ]
    )
