"""What a caller may see and change, where that hangs on what is in the database.

Decided here and only here: that a workflow in a pool where somebody may not read is to them as if it were not there;
that what is one's own may be changed and entered with the right to do so in its pool, and what belongs to others by who
manages the pool's workflows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from casstore.errors import AccessError, NotFoundError
from casstore_orchestrator.records import WorkflowRecord
from casstore_server.identity.actions import Action
from casstore_server.services.context import Caller, Services

__all__ = ["changeable", "no_workflow", "readable", "within"]

_T = TypeVar("_T")


def no_workflow(workflow_id: str) -> NotFoundError:
    """What is said of a workflow that is not there, or may not be seen."""
    return NotFoundError(f"There is no workflow {workflow_id}", hint="See: osmo workflow list")


def readable(services: Services, caller: Caller, workflow_id: str) -> WorkflowRecord:
    """A workflow by its id or uuid. ``NotFoundError``, also when the caller may not read it."""
    record = services.database.load(workflow_id)
    if not caller.may("workflow:Read", pool=record.pool):
        raise no_workflow(workflow_id)
    return record


def changeable(
    services: Services, caller: Caller, workflow_id: str, action: Literal["workflow:Change", "workflow:Exec"]
) -> WorkflowRecord:
    """A workflow that the caller may change, or enter. ``NotFoundError`` and ``AccessError``."""
    record = readable(services, caller, workflow_id)
    caller.require(action, pool=record.pool)
    if record.user != caller.user and not caller.may("workflow:Manage", pool=record.pool):
        what = "can enter its tasks" if action == "workflow:Exec" else "can change it"
        raise AccessError(
            f"Workflow {record.id} is another user's: only {record.user} {what}",
            hint=f"For those of others it takes the right workflow:Manage in pool {record.pool}.",
        )
    return record


def within(declared: Mapping[str, _T], caller: Caller, action: Action) -> dict[str, _T]:
    """Of pools or buckets, by their names, those on which the caller has a right."""
    scope = caller.grants.scope(action)
    return {name: value for name, value in declared.items() if name in scope}
