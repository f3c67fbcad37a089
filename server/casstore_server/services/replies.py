"""Records as the replies that clients read.

Decided here and only here: which field of a reply comes from which field of a record.
"""

from __future__ import annotations

from typing import Any

from casstore.wire.protocol import to_iso
from casstore.wire.workflow import GroupReply, TaskReply, TaskSummary, WorkflowReply, WorkflowSummary
from casstore_orchestrator.records import GroupRecord, TaskRecord, WorkflowRecord
from casstore_server.services.context import Links

__all__ = ["task_reply", "task_summary", "workflow_reply", "workflow_summary"]

_GIB = 2**30


def workflow_summary(row: Any, tags: list[str], links: Links, now: float) -> WorkflowSummary:
    """One row of a list; ``row`` is what ``queries.workflows`` gives."""
    queued, duration = _spans(row.submit_time, row.start_time, row.end_time, now)
    return WorkflowSummary(
        user=row.user,
        name=row.id,
        workflow_uuid=row.uuid,
        submit_time=_required(row.submit_time),
        start_time=to_iso(row.start_time),
        end_time=to_iso(row.end_time),
        queued_time=queued,
        duration=duration,
        status=row.status,
        overview=links.overview(row.id),
        logs=links.api(f"{row.id}/logs"),
        error_logs=links.api(f"{row.id}/error_logs"),
        pool=row.pool,
        app_owner=row.app_owner,
        app_name=row.app_name,
        app_version=row.app_version,
        priority=row.priority,
        tags=tags,
    )


def workflow_reply(
    record: WorkflowRecord,
    links: Links,
    now: float,
    *,
    groups: bool = True,
    all_attempts: bool = True,
) -> WorkflowReply:
    """Everything about a workflow. Without ``all_attempts`` only the newest attempt of each task is told."""
    queued, duration = _spans(record.submit_time, record.start_time, record.end_time, now)
    parent, _, number = (record.parent or "").rpartition("-")
    unfinished = {group.name for group in record.groups if not group.status.finished}
    return WorkflowReply(
        name=record.id,
        uuid=record.uuid,
        submitted_by=record.user,
        cancelled_by=record.cancelled_by,
        spec=links.api(f"{record.id}/spec"),
        template_spec=links.api(f"{record.id}/spec?use_template=true") if record.template_text else None,
        logs=links.api(f"{record.id}/logs"),
        events=links.api(f"{record.id}/events"),
        overview=links.overview(record.id),
        parent_name=parent or None,
        parent_job_id=int(number) if parent and number.isdigit() else None,
        tags=list(record.tags),
        submit_time=_required(record.submit_time),
        start_time=to_iso(record.start_time),
        end_time=to_iso(record.end_time),
        exec_timeout=record.exec_timeout_s,
        queue_timeout=record.queue_timeout_s,
        duration=duration,
        queued_time=queued,
        status=str(record.status),
        groups=[_group(record, group, unfinished, links, all_attempts) for group in record.groups] if groups else [],
        pool=record.pool,
        backend="local",
        priority=str(record.priority),
        failure_message=record.failure_message,
        warnings=list(record.warnings),
    )


def task_reply(record: WorkflowRecord, task: TaskRecord, links: Links) -> TaskReply:
    """One attempt of one task."""
    chosen = f"task_name={task.name}&retry_id={task.retry_id}"
    return TaskReply(
        name=task.name,
        retry_id=task.retry_id,
        status=str(task.status),
        failure_message=task.failure_message,
        exit_code=task.exit_code,
        logs=links.api(f"{record.id}/logs?{chosen}"),
        error_logs=links.api(f"{record.id}/error_logs?{chosen}") if task.status.failed else None,
        events=links.api(f"{record.id}/events?{chosen}"),
        start_time=to_iso(task.start_time),
        end_time=to_iso(task.end_time),
        processing_start_time=to_iso(task.processing_time),
        scheduling_start_time=to_iso(task.scheduling_time),
        initializing_start_time=to_iso(task.initializing_time),
        input_download_start_time=to_iso(task.start_time) if task.input_download_time else None,
        input_download_end_time=to_iso(task.input_download_time),
        output_upload_start_time=to_iso(task.command_end_time),
        pod_name=task.host or task.name,
        task_uuid=task.uuid,
        node_name=task.node,
        lead=task.lead,
    )


def task_summary(row: Any, links: Links, now: float) -> TaskSummary:
    """One row of a list of tasks; ``row`` is what ``queries.tasks`` gives."""
    chosen = f"task_name={row.name}&retry_id={row.retry_id}"
    return TaskSummary(
        user=row.user,
        workflow_id=row.workflow_id,
        workflow_uuid=row.uuid,
        task_name=row.name,
        retry_id=row.retry_id,
        status=row.status,
        pool=row.pool,
        node=row.node,
        start_time=to_iso(row.start_time),
        end_time=to_iso(row.end_time),
        duration=_spans(None, row.start_time, row.end_time, now)[1],
        priority=row.priority,
        overview=links.overview(row.workflow_id),
        logs=links.api(f"{row.workflow_id}/logs?{chosen}"),
        storage=row.storage / _GIB,
        cpu=row.cpu,
        memory=row.memory / _GIB,
        gpu=row.gpu,
    )


def _group(
    record: WorkflowRecord, group: GroupRecord, unfinished: set[str], links: Links, all_attempts: bool
) -> GroupReply:
    tasks = group.tasks if all_attempts else group.current()
    return GroupReply(
        name=group.name,
        status=str(group.status),
        start_time=to_iso(group.start_time),
        end_time=to_iso(group.end_time),
        processing_start_time=to_iso(group.processing_time),
        scheduling_start_time=to_iso(group.scheduling_time),
        initializing_start_time=to_iso(group.initializing_time),
        remaining_upstream_groups=[name for name in group.upstream if name in unfinished],
        downstream_groups=list(group.downstream),
        failure_message=group.failure_message,
        tasks=[task_reply(record, task, links) for task in tasks],
    )


def _spans(
    submitted: float | None, started: float | None, ended: float | None, now: float
) -> tuple[float | None, float | None]:
    """Seconds in the queue and seconds of running, so far."""
    queued = None
    if submitted is not None:
        queued = max(0.0, (started or ended or now) - submitted)
    duration = None if started is None else max(0.0, (ended or now) - started)
    return queued, duration


def _required(seconds: float | None) -> str:
    return to_iso(seconds) or ""
