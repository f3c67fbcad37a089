"""Lists of workflows and tasks.

Decided here and only here: what each filter means, and that a list is of the newest entries first.
Everything that comes from outside is a bound parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, false, func, or_, select, true

from casstore_orchestrator.status import Priority, TaskStatus, WorkflowStatus
from casstore_server.db import schema
from casstore_server.db.transactions import by_index, in_order
from casstore_server.identity.actions import ANYWHERE, Scope

__all__ = [
    "TaskFilter",
    "WorkflowFilter",
    "gpus_of_guaranteed",
    "placed_tasks",
    "pools_of",
    "tags_in_use",
    "tags_of",
    "task_sums",
    "tasks",
    "unfinished_counts",
    "usage_by_node",
    "users",
    "workflows",
]

_FEW = 2_000
_CLOCKS_S = 3600.0
_AT_ONCE = 300
_PLACED = (str(TaskStatus.INITIALIZING), str(TaskStatus.RUNNING))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowFilter:
    """Which workflows; empty and None do not restrict. Times are seconds since the epoch.

    ``name`` is a part of the id. A workflow with any of ``tags`` matches. ``app``: a name and a version or None.
    ``within`` are the pools that whoever asks may see.
    """

    users: Sequence[str] = ()
    statuses: Sequence[str] = ()
    pools: Sequence[str] = ()
    priorities: Sequence[str] = ()
    tags: Sequence[str] = ()
    app: tuple[str, int | None] | None = None
    name: str | None = None
    submitted_after: float | None = None
    submitted_before: float | None = None
    within: Scope = ANYWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which attempts of tasks; as ``WorkflowFilter``. ``workflow_id`` is an id or uuid."""

    users: Sequence[str] = ()
    statuses: Sequence[str] = ()
    pools: Sequence[str] = ()
    priorities: Sequence[str] = ()
    nodes: Sequence[str] = ()
    workflow_id: str | None = None
    started_after: float | None = None
    started_before: float | None = None
    within: Scope = ANYWHERE


_WORKFLOW_COLUMNS = (
    schema.workflow.c.id,
    schema.workflow.c.uuid,
    schema.workflow.c.user,
    schema.workflow.c.pool,
    schema.workflow.c.status,
    schema.workflow.c.priority,
    schema.workflow.c.submit_time,
    schema.workflow.c.start_time,
    schema.workflow.c.end_time,
    schema.workflow.c.app_version,
    schema.app.c.name.label("app_name"),
    schema.app.c.owner.label("app_owner"),
)


def workflows(
    connection: Connection, wanted: WorkflowFilter, *, limit: int, offset: int, oldest_first: bool
) -> list[Row[Any]]:
    """A page of workflows with the columns that a list shows."""
    table = schema.workflow
    order = [column.asc() if oldest_first else column.desc() for column in (table.c.submit_time, table.c.id)]
    # Which they are is found in an index alone: rows have whole records in them.
    ids = connection.execute(_chosen(wanted).order_by(*order).limit(limit).offset(offset)).scalars().all()
    if not ids:
        return []
    apps = table.outerjoin(schema.app, schema.app.c.uuid == table.c.app_uuid)
    query = select(*_WORKFLOW_COLUMNS).select_from(apps).where(table.c.id.in_(ids))
    return list(connection.execute(query.order_by(*order)))


def _chosen(wanted: WorkflowFilter) -> Select[Any]:
    """The ids of workflows."""
    table = schema.workflow
    query = select(table.c.id).where(*_common(wanted))
    if wanted.app is not None:
        name, version = wanted.app
        query = query.where(table.c.app_uuid.in_(select(schema.app.c.uuid).where(schema.app.c.name == name)))
        if version is not None:
            query = query.where(table.c.app_version == version)
    if wanted.name:
        query = query.where(table.c.id.contains(wanted.name, autoescape=True))
    if wanted.statuses:
        # The index of the states has the order of lists in each of them, and not in several.
        status = table.c.status if len(wanted.statuses) == 1 else table.c.status.concat("")
        query = query.where(status.in_(wanted.statuses))
    if wanted.tags:
        tagged = select(schema.tag.c.workflow_id).where(schema.tag.c.tag.in_(wanted.tags))
        query = query.where(table.c.id.in_(tagged))
    if wanted.submitted_after is not None:
        query = query.where(table.c.submit_time >= wanted.submitted_after)
    if wanted.submitted_before is not None:
        query = query.where(table.c.submit_time < wanted.submitted_before)
    return query


def tags_of(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, list[str]]:
    """The tags of these workflows."""
    found: dict[str, list[str]] = {}
    rows = connection.execute(
        select(schema.tag).where(schema.tag.c.workflow_id.in_(workflow_ids)).order_by(schema.tag.c.tag)
    )
    for row in rows:
        found.setdefault(row.workflow_id, []).append(row.tag)
    return found


def pools_of(connection: Connection, workflow_ids: Sequence[str]) -> dict[str, str]:
    """The pools of those of these workflows that there are."""
    table = schema.workflow
    rows = connection.execute(select(table.c.id, table.c.pool).where(table.c.id.in_(workflow_ids)))
    return {row.id: row.pool for row in rows}


def tags_in_use(connection: Connection, within: Scope) -> list[str]:
    """Every tag of any workflow in these pools."""
    query = select(schema.tag.c.tag).distinct().order_by(schema.tag.c.tag)
    if not within.all:
        query = query.select_from(schema.tag.join(schema.workflow)).where(_inside(within))
    return list(connection.execute(query).scalars())


def tasks(connection: Connection, wanted: TaskFilter, *, limit: int, offset: int, oldest_first: bool) -> list[Row[Any]]:
    """A page of attempts of tasks, by the time their workflow was submitted."""
    task, workflow = schema.task, schema.workflow
    order = [
        column.asc() if oldest_first else column.desc()
        for column in (workflow.c.submit_time, workflow.c.id, task.c.position)
    ]
    key = (task.c.workflow_id, task.c.name, task.c.retry_id)
    by_index(connection)
    fits, few = _fitting(connection, wanted)
    if not few:
        in_order(connection)
    chosen = _task_query(wanted, fits, *key).order_by(*order).limit(limit).offset(offset)
    found = [tuple(row) for row in connection.execute(chosen)]
    rows: dict[Any, Row[Any]] = {}
    shown = (workflow.c.user, workflow.c.uuid, workflow.c.pool, workflow.c.priority, *task.c)
    for at in range(0, len(found), _AT_ONCE):
        ids, names = ({one[part] for one in found[at : at + _AT_ONCE]} for part in (0, 1))
        query = (
            select(*shown).select_from(task.join(workflow)).where(task.c.workflow_id.in_(ids), task.c.name.in_(names))
        )
        rows.update(((row.workflow_id, row.name, row.retry_id), row) for row in connection.execute(query))
    return [rows[one] for one in found if one in rows]


def task_sums(connection: Connection, wanted: TaskFilter, *, by_workflow: bool) -> list[Row[Any]]:
    """What the tasks ask for in sum, by user, pool and priority, and by workflow when asked."""
    task, workflow = schema.task, schema.workflow
    keys: list[Any] = [workflow.c.user, workflow.c.pool, workflow.c.priority]
    if by_workflow:
        keys.append(task.c.workflow_id)
    sums = [func.sum(task.c[name]).label(name) for name in ("cpu", "memory", "storage", "gpu")]
    fits, _ = _fitting(connection, wanted)
    return list(connection.execute(_task_query(wanted, fits, *keys, *sums).group_by(*keys).order_by(*keys)))


def _fitting(connection: Connection, wanted: TaskFilter) -> tuple[list[ColumnElement[bool]], bool]:
    """What is asked of tasks' states and nodes, and whether few can be on a list.

    Where few have the states or nodes that are wanted, these are looked at; otherwise the workflows in the order of the
    list, with the tasks of each.
    """
    found: list[ColumnElement[bool]] = []
    any_few = wanted.workflow_id is not None
    for column, values in ((schema.task.c.status, wanted.statuses), (schema.task.c.node, wanted.nodes)):
        if values:
            few = wanted.workflow_id is None and _few(connection, column.in_(values))
            found.append((column if few else column.concat("")).in_(values))
            any_few = any_few or few
    return found, any_few


def _task_query(wanted: TaskFilter, fits: Sequence[ColumnElement[bool]], *columns: Any) -> Select[Any]:
    """Columns of tasks and their workflows."""
    task, workflow = schema.task, schema.workflow
    query = select(*columns).select_from(workflow.join(task)).where(*_common(wanted), *fits)
    if wanted.workflow_id:
        query = query.where(or_(workflow.c.id == wanted.workflow_id, workflow.c.uuid == wanted.workflow_id))
    if wanted.started_after is not None:
        query = query.where(task.c.start_time >= wanted.started_after)
    if wanted.started_before is not None:
        query = query.where(task.c.start_time < wanted.started_before)
        # None starts before its workflow is submitted, but for clocks that differ.
        query = query.where(workflow.c.submit_time < wanted.started_before + _CLOCKS_S)
    return query


def _few(connection: Connection, fits: ColumnElement[bool]) -> bool:
    """Whether it is better to sort the tasks that fit than to look for them in the order of a list."""
    some = select(schema.task.c.status).where(fits).limit(_FEW + 1).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one()) <= _FEW


def _common(wanted: WorkflowFilter | TaskFilter) -> list[ColumnElement[bool]]:
    table = schema.workflow
    found: list[ColumnElement[bool]] = []
    for column, values in (
        (table.c.user, wanted.users),
        (table.c.pool, wanted.pools),
        (table.c.priority, wanted.priorities),
    ):
        if values:
            found.append(column.in_(values))
    if not wanted.within.all:
        found.append(_inside(wanted.within))
    return found


def _inside(within: Scope) -> ColumnElement[bool]:
    """Workflows in these pools. A prefix is compared as it is: what ``LIKE`` makes of case differs by database."""
    pool = schema.workflow.c.pool
    if within.all:
        return true()
    prefixes = (func.substr(pool, 1, len(prefix)) == prefix for prefix in within.prefixes)
    return or_(false(), pool.in_(sorted(within.names)), *prefixes)


def unfinished_counts(connection: Connection) -> dict[str, int]:
    """How many workflows have each status that is not final."""
    table = schema.workflow
    names = [str(status) for status in WorkflowStatus if not status.finished]
    rows = connection.execute(
        select(table.c.status, func.count()).where(table.c.status.in_(names)).group_by(table.c.status)
    )
    return {status: int(count) for status, count in rows}


def unfinished_of(connection: Connection, user: str) -> tuple[int, int]:
    """How many workflows of a user are not finished, and how many tasks in them."""
    table, task = schema.workflow, schema.task
    names = [str(status) for status in WorkflowStatus if not status.finished]
    own = (table.c.user == user, table.c.status.in_(names))
    workflows = connection.execute(select(func.count()).select_from(table).where(*own)).scalar_one()
    ended = [str(status) for status in TaskStatus if status.finished]
    waiting = (task.c.status.not_in(ended), task.c.workflow_id.in_(select(table.c.id).where(*own)))
    tasks = connection.execute(select(func.count()).select_from(task).where(*waiting)).scalar_one()
    return int(workflows), int(tasks)


def placed_tasks(connection: Connection) -> int:
    """How many tasks hold nodes."""
    query = select(func.count()).select_from(schema.task).where(schema.task.c.status.in_(_PLACED))
    return int(connection.execute(query).scalar_one())


def usage_by_node(connection: Connection) -> list[Row[Any]]:
    """What the placed tasks ask for, by pool and node."""
    task, workflow = schema.task, schema.workflow
    sums = [func.sum(task.c[name]).label(name) for name in ("cpu", "memory", "storage", "gpu")]
    query = (
        select(workflow.c.pool, task.c.node, *sums)
        .select_from(task.join(workflow))
        .where(task.c.status.in_(_PLACED), task.c.node.is_not(None))
        .group_by(workflow.c.pool, task.c.node)
    )
    return list(connection.execute(query))


def gpus_of_guaranteed(connection: Connection, pool: str) -> int:
    """GPUs of the placed tasks of a pool whose priority counts against its guarantee."""
    task, workflow = schema.task, schema.workflow
    query = (
        select(func.coalesce(func.sum(task.c.gpu), 0))
        .select_from(task.join(workflow))
        .where(task.c.status.in_(_PLACED), workflow.c.pool == pool, workflow.c.priority != str(Priority.LOW))
    )
    return int(connection.execute(query).scalar_one())


def users(connection: Connection, within: Scope) -> list[str]:
    """Everybody who has submitted a workflow in these pools."""
    column = schema.workflow.c.user
    query = select(column).distinct().order_by(column)
    return list(connection.execute(query if within.all else query.where(_inside(within))).scalars())
