"""Taking a workflow in: render, validate, submit, submit again, restart.

Decided here and only here: what is checked before a workflow gets its id, in which order, and what is only worth a
warning. Nothing is stored of a submission that is refused.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec.structs import replace

from casstore.errors import ConflictError, NotFoundError, SpecError, UsageError
from casstore.wire.workflow import SubmitReply, SubmitRequest
from casstore_orchestrator.credentials import check_credentials
from casstore_orchestrator.gang import validate_fit
from casstore_orchestrator.loader import load, render_text
from casstore_orchestrator.plan import make_plan, restart_spec
from casstore_orchestrator.pools import Pool, PoolStatus
from casstore_orchestrator.records import AppUse, WorkflowRecord
from casstore_orchestrator.spec import (
    Checkpoint,
    DatasetInput,
    DatasetOutput,
    TaskSpec,
    UpdateDatasetOutput,
    WorkflowSpec,
)
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.status import Priority, TaskStatus
from casstore_orchestrator.validation import check_submission
from casstore_server.config import ServerConfig
from casstore_server.db.apps import Apps
from casstore_server.identity.actions import Action
from casstore_server.services import audit
from casstore_server.services.context import Caller, Services
from casstore_server.services.limits import check_limits
from casstore_server.services.rights import readable, within
from casstore_server.services.workflows import check_priorities

__all__ = ["Done", "dry_run", "restart", "resubmit", "submit"]

_LOW_WARNING = "LOW priority can be preempted during the run."
_TOKENS = re.compile(r"[{}]")
DatasetUse = DatasetInput | DatasetOutput | UpdateDatasetOutput


@dataclass(frozen=True, slots=True)
class Done:
    """A reply, and lines for the user."""

    reply: SubmitReply
    warnings: list[str] = field(default_factory=list)


def dry_run(request: SubmitRequest) -> Done:
    """The specification after its templates; nothing else is checked, and no pool is needed."""
    audit.unchanged()
    rendered = render_text(request.file, set_values=request.set_variables, set_strings=request.set_string_variables)
    return Done(SubmitReply(spec=rendered.text.strip("\n") + "\n"), list(rendered.warnings))


def submit(
    services: Services,
    caller: Caller,
    pool_name: str,
    request: SubmitRequest,
    *,
    priority: str | None,
    environment: Sequence[str],
    check_only: bool,
    reuse: bool = False,
    app: AppUse | None = None,
) -> Done:
    """Check a specification completely, and unless ``check_only`` run it. ``reuse``: take results of equal tasks.

    ``app``: where the text came from. Raises ``SpecError``, ``UsageError`` or ``NotFoundError`` with what is wrong.
    """
    if not check_only and (done := _done_before(services, caller, request)) is not None:
        return done
    if app is not None:
        caller.require("app:Read")
        Apps(services.database).check(app.uuid, app.version)
    config = services.config.current()
    pool = _open_pool(config, caller, pool_name)
    rank = _priority(priority)
    loaded = load(
        request.file,
        set_values=request.set_variables,
        set_strings=request.set_string_variables,
        environment=environment,
        render=not request.rendered,
    )
    spec = replace(_with_buckets(loaded.spec, services, caller), pool=pool.name)
    warnings = [*loaded.warnings, *_check(services, caller, config, spec, pool=pool, rank=rank, check_only=check_only)]
    if rank is Priority.LOW:
        warnings.append(_LOW_WARNING)
    if check_only:
        audit.unchanged()
        text = loaded.rendered if loaded.templated else None
        return Done(SubmitReply(name=spec.name, spec=text, logs="Workflow validation succeeded."), warnings)
    template = request.uploaded_templated_spec or (request.file if loaded.templated else None)
    record = _record(
        spec,
        pool,
        caller,
        rank,
        spec_text=loaded.rendered,
        template_text=template,
        warnings=loaded.warnings,
        own=request.uuid,
    )
    try:
        return _run(services, caller, replace(record, reuse=reuse, app=app), warnings)
    except ConflictError:  # the same request, at the same time
        if (done := _done_before(services, caller, request)) is None:
            raise
        return done


def submit_once(services: Services, caller: Caller, pool_name: str, request: SubmitRequest, **options: Any) -> Done:
    """As ``submit``, for what may have been submitted already: by its UUID, which it must have."""
    if request.uuid is None:
        raise UsageError("A submission that is sent again needs its uuid")
    return submit(services, caller, pool_name, request, check_only=False, **options)


def _done_before(services: Services, caller: Caller, request: SubmitRequest) -> Done | None:
    """The answer to a submission that was carried out already."""
    if request.uuid is None:
        return None
    try:
        made = services.database.load(request.uuid)
    except NotFoundError:
        return None
    if made.user != caller.user:
        raise ConflictError("There is a workflow with this UUID already")
    audit.unchanged()
    return Done(SubmitReply(name=made.id, overview=caller.links.overview(made.id)), list(made.warnings))


def resubmit(
    services: Services,
    caller: Caller,
    pool_name: str,
    workflow_id: str,
    *,
    priority: str | None,
    environment: Sequence[str],
    reuse: bool = False,
) -> Done:
    """Run a stored workflow once more, whole."""
    if environment:
        raise UsageError("A workflow is submitted again as it was: --set-env needs the file")
    old = readable(services, caller, workflow_id)
    config = services.config.current()
    pool = _open_pool(config, caller, pool_name)
    rank = old.priority if priority is None else _priority(priority)
    spec = replace(old.spec, pool=pool.name)
    warnings = _check(services, caller, config, spec, pool=pool, rank=rank, check_only=False)
    record = _record(
        spec, pool, caller, rank, spec_text=old.spec_text, template_text=old.template_text, warnings=old.warnings
    )
    return _run(
        services, caller, replace(record, reuse=reuse), [*warnings, *([_LOW_WARNING] if rank is Priority.LOW else [])]
    )


def restart(services: Services, caller: Caller, pool_name: str, workflow_id: str) -> Done:
    """Run the groups of a failed workflow that did not complete again, as a new workflow."""
    old = readable(services, caller, workflow_id)
    if not old.status.failed:
        raise ConflictError(
            f"Workflow {old.id} is {old.status}: only a failed one can be restarted",
            hint=f"To run it once more: osmo workflow submit {old.id}",
        )
    config = services.config.current()
    pool = _open_pool(config, caller, pool_name)
    completed = frozenset(group.name for group in old.groups if group.status.finished and not group.status.failed)
    ended = frozenset(
        task.name
        for group in old.groups
        for task in group.current()
        if task.status is TaskStatus.COMPLETED and task.exit_code is None
    )
    spec = replace(restart_spec(old.spec, old.id, completed, ended), pool=pool.name)
    warnings = _check(services, caller, config, spec, pool=pool, rank=old.priority, check_only=False)
    note = f"# Restart of {old.id}."
    if completed:
        note += f" These groups had completed there and are not run again: {', '.join(sorted(completed))}."
    record = _record(
        spec,
        pool,
        caller,
        old.priority,
        spec_text=f"{note}\n{old.spec_text}",
        template_text=old.template_text,
        warnings=old.warnings,
    )
    return _run(services, caller, replace(record, parent=old.id), warnings)


def _run(services: Services, caller: Caller, record: WorkflowRecord, warnings: list[str]) -> Done:
    made = services.scheduler.submit(record)
    audit.note(workflow=made.id)
    return Done(SubmitReply(name=made.id, overview=caller.links.overview(made.id)), warnings)


def _record(
    spec: WorkflowSpec,
    pool: Pool,
    caller: Caller,
    priority: Priority,
    *,
    spec_text: str,
    template_text: str | None,
    warnings: Sequence[str],
    own: str | None = None,
) -> WorkflowRecord:
    return new_workflow(
        spec,
        uuid=own or uuid.uuid4().hex,
        user=caller.user,
        pool=pool,
        priority=priority,
        spec_text=spec_text,
        template_text=template_text,
        warnings=tuple(warnings),
    )


def _open_pool(config: ServerConfig, caller: Caller, name: str) -> Pool:
    pool = config.pools.get(name)
    if pool is None:
        there = ", ".join(sorted(within(config.pools, caller, "pool:Read")))
        raise NotFoundError(
            f"There is no pool {name}",
            hint=f"Declared: {there}; declare one with: osmo pool declare",
        )
    if pool.status is PoolStatus.MAINTENANCE:
        raise ConflictError(f"Pool {name} is in maintenance and takes no workflows")
    return pool


def _priority(given: str | None) -> Priority:
    return Priority.NORMAL if given is None else Priority(check_priorities([given])[0])


def _check(
    services: Services,
    caller: Caller,
    config: ServerConfig,
    spec: WorkflowSpec,
    *,
    pool: Pool,
    rank: Priority,
    check_only: bool,
) -> list[str]:
    """Everything that depends on more than the text; returns warnings."""
    check_limits(services, config, caller.user, spec, pool)
    validate_fit(spec, pool, rank)
    check_credentials(spec, caller.user, services.credentials)
    check_submission(
        spec,
        partial(readable, services, caller),
        services.settings.workflows,
        file_urls=caller.may("server:Manage"),  # they are read and written as the server
        storage=partial(services.urls.check, user=caller.user),
    )
    return _check_data(services, caller, config, spec, check_only=check_only)


def _check_data(
    services: Services, caller: Caller, config: ServerConfig, spec: WorkflowSpec, *, check_only: bool
) -> list[str]:
    warnings = []
    before = _tasks_before(spec)
    for task in spec.tasks:
        for index, file in enumerate(task.files):
            if file.localpath is not None and not check_only:
                raise SpecError(
                    f"task {task.name}, files[{index}]: localpath is read by the command that submits",
                    hint="Submit the file with 'osmo workflow submit', or write 'contents'.",
                )
        for name in _written(task):
            _check_bucket(config, caller, task, name, writes=True)
        for item in task.inputs:
            if not isinstance(item, DatasetInput):
                continue
            _check_bucket(config, caller, task, item.name, writes=False)
            if item.localpath is not None and not check_only:
                raise SpecError(
                    f"task {task.name}: dataset {item.name}: localpath is uploaded by the command that submits"
                )
            problem = None if item.localpath is not None else _missing(services, caller, item.name)
            if problem is None or _bare(item.name) in before[task.name]:
                continue
            if not check_only:
                raise problem
            warnings.append(f"task {task.name}: {problem.message}")
    return warnings


def _written(task: TaskSpec) -> list[str]:
    """The datasets of which a task makes versions."""
    outputs = [item.name for item in task.outputs if isinstance(item, DatasetOutput | UpdateDatasetOutput)]
    return [*outputs, *(item.dataset for item in task.checkpoint if item.dataset is not None)]


def _check_bucket(config: ServerConfig, caller: Caller, task: TaskSpec, name: str, *, writes: bool) -> None:
    action: Action = "dataset:Write" if writes else "dataset:Read"
    bucket, slash, _ = name.rpartition("/")
    if not slash:
        bucket = config.default_bucket
    if _TOKENS.search(bucket):
        if not caller.grants.scope(action).all:
            raise SpecError(
                f"task {task.name}: dataset {name}: which bucket this is shows only when the task runs",
                hint=f"Name the bucket: {caller.user} has the right {action} in some buckets alone.",
            )
        return
    caller.require(action, bucket=bucket)
    found = config.buckets.get(bucket)
    if found is None:
        there = ", ".join(sorted(within(config.buckets, caller, action)))
        raise SpecError(
            f"task {task.name}: dataset {name}: there is no bucket '{bucket}'",
            hint=f"Declared: {there}; add it with: osmo bucket add {bucket} FOLDER-OR-URL",
        )
    if writes and not found.writable:
        raise SpecError(f"task {task.name}: dataset {name}: bucket '{bucket}' is read-only")


def _missing(services: Services, caller: Caller, name: str) -> SpecError | None:
    """What to say when an input is not there; None when it is, or can't be known yet."""
    if _TOKENS.search(name):
        return None
    try:
        services.data.resolve(name, caller.user)
    except NotFoundError as exc:
        return SpecError(
            f"dataset {name}: {exc.message}",
            hint="Upload it first, or let a task of this workflow that runs earlier produce it.",
        )
    return None


def _bare(name: str) -> str:
    """Without the tag."""
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def _tasks_before(spec: WorkflowSpec) -> Mapping[str, frozenset[str]]:
    """For each task the datasets, without tags, that are stored before its group starts."""
    plan = make_plan(spec)
    made: dict[str, frozenset[str]] = {}
    for name, node in plan.groups.items():  # in topological order
        made[name] = frozenset().union(*(made[other] | _produced(spec, other) for other in node.upstream))
    return {task.name: made[group.name] for group in spec.groups for task in group.tasks}


def _produced(spec: WorkflowSpec, group: str) -> frozenset[str]:
    return frozenset(
        _bare(output.name)
        for task in spec.group(group).tasks
        for output in task.outputs
        if isinstance(output, DatasetOutput | UpdateDatasetOutput)
    )


def _with_buckets(spec: WorkflowSpec, services: Services, caller: Caller) -> WorkflowSpec:
    """Dataset names without a bucket get the one the user chose as a default, if any."""
    bucket = services.database.profile(caller.user).get("bucket")
    if not bucket:
        return spec

    def named(item: object) -> object:
        if isinstance(item, DatasetInput | DatasetOutput | UpdateDatasetOutput) and "/" not in item.name:
            return replace(item, name=f"{bucket}/{item.name}")
        if isinstance(item, Checkpoint) and item.dataset is not None and "/" not in item.dataset:
            return replace(item, dataset=f"{bucket}/{item.dataset}")
        return item

    groups = tuple(
        replace(
            group,
            tasks=tuple(
                replace(
                    task,
                    inputs=tuple(named(item) for item in task.inputs),
                    outputs=tuple(named(item) for item in task.outputs),
                    checkpoint=tuple(named(item) for item in task.checkpoint),
                )
                for task in group.tasks
            ),
        )
        for group in spec.groups
    )
    return replace(spec, groups=groups)
