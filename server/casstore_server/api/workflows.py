"""The routes of workflows and tasks, thin over ``services``.

Decided here and only here: paths and parameters, which are OSMO 6.2's.
"""

from __future__ import annotations

from types import NoneType
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import PlainTextResponse, Response

from casstore.wire.app import app_and_version
from casstore.wire.protocol import from_iso
from casstore.wire.workflow import (
    CancelReply,
    SubmitReply,
    SubmitRequest,
    SummaryList,
    TagsReply,
    TaskList,
    TaskReply,
    WorkflowList,
    WorkflowReply,
)
from casstore_orchestrator.records import AppUse
from casstore_orchestrator.status import TaskStatus, WorkflowStatus
from casstore_server.api.deps import (
    Body,
    CallerDep,
    Limit,
    Names,
    Offset,
    Order,
    ServicesDep,
    WorkflowId,
    decode,
)
from casstore_server.api.edge import reply
from casstore_server.api.rules import STORAGE, rule
from casstore_server.db.queries import TaskFilter, WorkflowFilter
from casstore_server.services import submission, workflows

router = APIRouter(prefix="/api")

_DEFAULT_TASK_STATUSES = ("PROCESSING", "SCHEDULING", "INITIALIZING", "RUNNING")
_NO_LABELS = "Workflows have no labels on this server: use tags."
Moment = Annotated[str | None, Query(max_length=40)]
RetryId = Annotated[int | None, Query(ge=0)]


@router.post(
    "/pool/{pool}/workflow",
    **rule("workflow:Create", reply=SubmitReply, body=SubmitRequest | None, errors=[409, *STORAGE]),
)
def submit(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    pool: str,
    body: Body,
    workflow_id: str | None = None,
    dry_run: bool = False,
    validation_only: bool = False,
    priority: str | None = None,
    env_vars: Annotated[list[str], Query()] = [],  # noqa: B006  # FastAPI copies defaults
    cache: bool = False,
    app_uuid: Annotated[str | None, Query(max_length=64)] = None,
    app_version: Annotated[int | None, Query(ge=1, le=10**9)] = None,
    label: Names = [],  # noqa: B006  # FastAPI copies defaults
) -> Response:
    """Submit, validate or render a specification, or submit a stored one again."""
    if workflow_id is not None:
        done = submission.resubmit(
            services, caller, pool, workflow_id, priority=priority, environment=env_vars, reuse=cache
        )
    else:
        request = decode(body, SubmitRequest)
        if dry_run:
            done = submission.dry_run(request)
        else:
            done = submission.submit(
                services,
                caller,
                pool,
                request,
                priority=priority,
                environment=[*env_vars, *request.env_vars],
                check_only=validation_only,
                reuse=cache,
                app=None if app_uuid is None else AppUse(app_uuid, app_version or 1),
            )
    return reply(done.reply, warnings=[*done.warnings, *([_NO_LABELS] if label else [])])


@router.post(
    "/v1/pool/{pool}/workflow",
    **rule("workflow:Create", reply=SubmitReply, body=SubmitRequest, errors=[409, *STORAGE]),
)
def submit_once(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    pool: str,
    body: Body,
    priority: str | None = None,
    env_vars: Annotated[list[str], Query()] = [],  # noqa: B006  # FastAPI copies defaults
    cache: bool = False,
    app_uuid: Annotated[str | None, Query(max_length=64)] = None,
    app_version: Annotated[int | None, Query(ge=1, le=10**9)] = None,
) -> Response:
    """Submit a specification with a UUID, unless that was done: for who never heard the answer."""
    request = decode(body, SubmitRequest)
    done = submission.submit_once(
        services,
        caller,
        pool,
        request,
        priority=priority,
        environment=[*env_vars, *request.env_vars],
        reuse=cache,
        app=None if app_uuid is None else AppUse(app_uuid, app_version or 1),
    )
    return reply(done.reply, warnings=done.warnings)


@router.post(
    "/pool/{pool}/workflow/{workflow_id}/restart", **rule("workflow:Create", reply=SubmitReply, errors=[409, *STORAGE])
)
def restart(services: ServicesDep, caller: CallerDep, pool: str, workflow_id: WorkflowId) -> Response:
    """Run what failed of a workflow again, as a new one."""
    done = submission.restart(services, caller, pool, workflow_id)
    return reply(done.reply, warnings=done.warnings)


@router.get("/workflow", **rule("workflow:Read", reply=WorkflowList))
def list_workflows(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    users: Names = [],  # noqa: B006  # FastAPI copies defaults
    statuses: Names = [],  # noqa: B006  # FastAPI copies defaults
    pools: Names = [],  # noqa: B006  # FastAPI copies defaults
    priority: Names = [],  # noqa: B006  # FastAPI copies defaults
    tags: Names = [],  # noqa: B006  # FastAPI copies defaults
    name: str | None = None,
    all_users: bool = False,
    all_pools: bool = False,
    submitted_after: Moment = None,
    submitted_before: Moment = None,
    app: str | None = None,
    label: Names = [],  # noqa: B006  # FastAPI copies defaults
    no_label: Names = [],  # noqa: B006  # FastAPI copies defaults
    limit: Limit = 20,
    offset: Offset = 0,
    order: Order = "DESC",
) -> Response:
    """A page of workflows; without ``users`` and ``all_users`` the caller's own."""
    del all_pools, no_label  # without names of pools all are meant anyway, and no workflow has labels
    if label:
        return reply(WorkflowList(workflows=[]), warnings=[_NO_LABELS])
    wanted = WorkflowFilter(
        users=() if all_users else users or (caller.user,),
        statuses=workflows.check_statuses(statuses, WorkflowStatus),
        pools=pools,
        priorities=workflows.check_priorities(priority),
        tags=tags,
        app=None if app is None else app_and_version(app),
        name=name,
        submitted_after=None if submitted_after is None else from_iso(submitted_after),
        submitted_before=None if submitted_before is None else from_iso(submitted_before),
    )
    found = workflows.list_workflows(
        services, caller, wanted, limit=limit, offset=offset, oldest_first=order.upper() == "ASC"
    )
    return reply(found)


@router.get("/workflow/{workflow_id}", **rule("workflow:Read", reply=WorkflowReply))
def query_workflow(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    skip_groups: bool = False,
    verbose: bool = False,
) -> Response:
    """Everything about one workflow; with ``verbose`` every attempt of every task."""
    return reply(workflows.query(services, caller, workflow_id, groups=not skip_groups, all_attempts=verbose))


@router.get("/workflow/{workflow_id}/task/{task_name}", **rule("workflow:Read", reply=TaskReply))
def query_task(
    services: ServicesDep, caller: CallerDep, workflow_id: WorkflowId, task_name: str, retry_id: RetryId = None
) -> Response:
    """One task."""
    return reply(workflows.query_task(services, caller, workflow_id, task_name, retry_id))


@router.get("/workflow/{workflow_id}/spec", **rule("workflow:Read", reply=str, media="text/plain"))
def spec(services: ServicesDep, caller: CallerDep, workflow_id: WorkflowId, use_template: bool = False) -> Response:
    """The specification as text."""
    return PlainTextResponse(workflows.spec_text(services, caller, workflow_id, template=use_template))


@router.post("/workflow/{workflow_id}/cancel", **rule("workflow:Change", reply=CancelReply, errors=[409]))
def cancel(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    force: bool = False,
    message: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """End a workflow."""
    return reply(workflows.cancel(services, caller, workflow_id, force=force, message=message))


@router.post("/workflow/{workflow_id}/tag", **rule("workflow:Change", reply=NoneType, errors=[409]))
def tag(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    add: Names = [],  # noqa: B006  # FastAPI copies defaults
    remove: Names = [],  # noqa: B006  # FastAPI copies defaults
) -> Response:
    """Change the tags of a workflow."""
    workflows.change_tags(services, caller, workflow_id, add, remove)
    return reply(None)


@router.get("/tag", **rule("workflow:Read", reply=TagsReply))
def tags(services: ServicesDep, caller: CallerDep) -> Response:
    """Every tag in use."""
    return reply(workflows.list_tags(services, caller))


@router.get("/task", **rule("workflow:Read", reply=TaskList | SummaryList))
def list_tasks(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: str | None = None,
    statuses: Names = [],  # noqa: B006  # FastAPI copies defaults
    users: Names = [],  # noqa: B006  # FastAPI copies defaults
    pools: Names = [],  # noqa: B006  # FastAPI copies defaults
    nodes: Names = [],  # noqa: B006  # FastAPI copies defaults
    priority: Names = [],  # noqa: B006  # FastAPI copies defaults
    all_users: bool = False,
    all_pools: bool = False,
    started_after: Moment = None,
    started_before: Moment = None,
    limit: Limit = 20,
    offset: Offset = 0,
    order: Order = "DESC",
    summary: bool = False,
    aggregate_by_workflow: bool = False,
) -> Response:
    """A page of tasks, or with ``summary`` or ``aggregate_by_workflow`` what they ask for in sum."""
    del all_pools
    wanted = TaskFilter(
        users=() if all_users else users or (caller.user,),
        statuses=workflows.check_statuses(statuses or _DEFAULT_TASK_STATUSES, TaskStatus),
        pools=pools,
        priorities=workflows.check_priorities(priority),
        nodes=nodes,
        workflow_id=workflow_id,
        started_after=None if started_after is None else from_iso(started_after),
        started_before=None if started_before is None else from_iso(started_before),
    )
    if summary or aggregate_by_workflow:
        return reply(workflows.sum_tasks(services, caller, wanted, by_workflow=aggregate_by_workflow))
    return reply(
        workflows.list_tasks(services, caller, wanted, limit=limit, offset=offset, oldest_first=order.upper() == "ASC")
    )
