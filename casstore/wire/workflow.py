"""Requests and replies about workflows and their tasks.

Decided here and only here: the field names of these shapes. Times are ISO 8601 in UTC without a zone; spans
are seconds. Fields that no part of this product fills (dashboards, apps) are there because OSMO's clients
read them.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec


class SubmitRequest(msgspec.Struct, kw_only=True):
    """Body of a submission.

    ``file`` is the text of the specification. ``uploaded_templated_spec`` is the original when ``file`` was
    rendered by an earlier dry run. ``rendered`` (ours) says that ``file`` is the outcome of a dry run and is
    not rendered again, so that braces inside of it are left alone. ``env_vars`` (ours) adds to those of the
    query, which can't be long. ``uuid`` (ours), 32 hexadecimal digits that nobody used before, becomes the
    workflow's: with it the same submission can be sent again when nobody knows whether it was carried out.
    """

    file: str
    set_variables: list[str] = []
    set_string_variables: list[str] = []
    uploaded_templated_spec: str | None = None
    rendered: bool = False
    env_vars: list[str] = []
    uuid: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")] | None = None


class SubmitReply(msgspec.Struct, kw_only=True):
    """``name`` is the workflow's id; a dry run fills ``spec``, a validation ``logs``."""

    name: str | None = None
    overview: str | None = None
    logs: str | None = None
    spec: str | None = None
    dashboard_url: str | None = None


class WorkflowSummary(msgspec.Struct, kw_only=True):
    """One row of a list of workflows. ``name`` is the workflow's id."""

    user: str
    name: str
    workflow_uuid: str
    submit_time: str
    start_time: str | None = None
    end_time: str | None = None
    queued_time: float | None = None
    duration: float | None = None
    status: str
    overview: str
    logs: str
    error_logs: str | None = None
    grafana_url: str | None = None
    dashboard_url: str | None = None
    pool: str | None = None
    app_owner: str | None = None
    app_name: str | None = None
    app_version: int | None = None
    priority: str
    tags: list[str] = []


class WorkflowList(msgspec.Struct, kw_only=True):
    """``more_entries``: a larger offset gives more."""

    workflows: list[WorkflowSummary]
    more_entries: bool = False


class TaskReply(msgspec.Struct, kw_only=True):
    """One attempt of one task."""

    name: str
    retry_id: int
    status: str
    failure_message: str | None = None
    exit_code: int | None = None
    logs: str
    error_logs: str | None = None
    events: str
    start_time: str | None = None
    end_time: str | None = None
    processing_start_time: str | None = None
    scheduling_start_time: str | None = None
    initializing_start_time: str | None = None
    input_download_start_time: str | None = None
    input_download_end_time: str | None = None
    output_upload_start_time: str | None = None
    dashboard_url: str | None = None
    pod_name: str = ""
    pod_ip: str | None = None
    task_uuid: str
    node_name: str | None = None
    lead: bool = False


class GroupReply(msgspec.Struct, kw_only=True):
    """One group; ``remaining_upstream_groups`` are those it still waits for."""

    name: str
    status: str
    start_time: str | None = None
    end_time: str | None = None
    processing_start_time: str | None = None
    scheduling_start_time: str | None = None
    initializing_start_time: str | None = None
    remaining_upstream_groups: list[str] = []
    downstream_groups: list[str] = []
    failure_message: str | None = None
    tasks: list[TaskReply] = []


class WorkflowReply(msgspec.Struct, kw_only=True):
    """Everything about one workflow.

    ``name`` is its id; ``pending_reason`` (ours) says why it does not run yet, ``pending`` (ours) the same for each
    group that waits for nodes, in parts (the fields of ``casstore_orchestrator.reasons.Why``).
    """

    name: str
    uuid: str
    submitted_by: str
    cancelled_by: str | None = None
    spec: str
    template_spec: str | None = None
    logs: str
    events: str
    overview: str
    parent_name: str | None = None
    parent_job_id: int | None = None
    dashboard_url: str | None = None
    grafana_url: str | None = None
    tags: list[str] = []
    submit_time: str
    start_time: str | None = None
    end_time: str | None = None
    exec_timeout: float | None = None
    queue_timeout: float | None = None
    duration: float | None = None
    queued_time: float | None = None
    status: str
    outputs: str | None = None
    groups: list[GroupReply] = []
    pool: str | None = None
    backend: str | None = None
    app_owner: str | None = None
    app_name: str | None = None
    app_version: int | None = None
    plugins: dict[str, Any] = msgspec.field(default_factory=lambda: {"rsync": False})
    priority: str
    failure_message: str | None = None
    warnings: list[str] = []
    pending_reason: str | None = None
    pending: list[dict[str, Any]] = []


class CancelReply(msgspec.Struct, kw_only=True):
    """``name`` is the id of the workflow that is being cancelled."""

    name: str


class TagsReply(msgspec.Struct, kw_only=True):
    """The tags in use."""

    tags: list[str]


class TaskSummary(msgspec.Struct, kw_only=True):
    """One row of a list of tasks; storage and memory are in GiB, cpu and gpu in units. ``pending_reason`` and
    ``pending`` as in ``WorkflowReply``, for the task's group.
    """

    user: str
    workflow_id: str
    workflow_uuid: str
    task_name: str
    retry_id: int
    status: str
    pool: str | None = None
    node: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    duration: float | None = None
    priority: str
    overview: str
    logs: str
    storage: float = 0
    cpu: float = 0
    memory: float = 0
    gpu: int = 0
    pending_reason: str | None = None
    pending: dict[str, Any] | None = None


class TaskList(msgspec.Struct, kw_only=True):
    """A page of tasks."""

    tasks: list[TaskSummary]


class ResourceSummary(msgspec.Struct, kw_only=True):
    """What the tasks of one user in one pool ask for; ``workflow_id`` when aggregated by workflow."""

    user: str
    pool: str
    priority: str
    storage: float = 0
    cpu: float = 0
    memory: float = 0
    gpu: int = 0
    workflow_id: str | None = None


class SummaryList(msgspec.Struct, kw_only=True, omit_defaults=False):
    """The sums over tasks."""

    summaries: list[ResourceSummary]
