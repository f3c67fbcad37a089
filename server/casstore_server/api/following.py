"""The routes of texts that grow: logs, error logs and events of a workflow.

Decided here and only here: paths and parameters: OSMO 6.2's, and under ``/api/v1`` those with which a client goes on
where another reply was cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from casstore.wire.following import PLACES_HEADER, Resume
from casstore_server.api.deps import Body, CallerDep, ServicesDep, WorkflowId, decode
from casstore_server.api.rules import rule
from casstore_server.api.streaming import stream
from casstore_server.services import audit, streams
from casstore_server.services.context import Caller, Services
from casstore_server.services.reasons import visible_text
from casstore_server.services.streams import Stop, Wish

router = APIRouter(prefix="/api")

TaskName = Annotated[str | None, Query(max_length=64)]
RetryId = Annotated[int | None, Query(ge=0)]
Last = Annotated[int | None, Query()]
Marks = Annotated[str | None, Header(alias=PLACES_HEADER, max_length=16)]
_Text = Callable[[Services, str, Wish, Stop], Iterator[bytes]]
_log: _Text = streams.log_text
_errors: _Text = partial(streams.log_text, error=True)
_events: _Text = streams.event_text
_TEXT = rule("workflow:Read", reply=str, media="text/plain")
_REST = rule("workflow:Read", reply=str, media="text/plain", body=Resume)


@router.get("/workflow/{workflow_id}/logs", **_TEXT)
def logs(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    task_name: TaskName = None,
    retry_id: RetryId = None,
    last_n_lines: Last = None,
    marks: Marks = None,
) -> Response:
    """The log, until the workflow ends."""
    wish = Wish(task_name, retry_id, last_n_lines, marked=marks is not None)
    return _reply(services, caller, workflow_id, _log, wish)


@router.get("/workflow/{workflow_id}/error_logs", **_TEXT)
def error_logs(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    task_name: TaskName = None,
    retry_id: RetryId = None,
    last_n_lines: Last = None,
    marks: Marks = None,
) -> Response:
    """The ends of the logs of failed attempts."""
    wish = Wish(task_name, retry_id, last_n_lines, marked=marks is not None)
    return _reply(services, caller, workflow_id, _errors, wish)


@router.get("/workflow/{workflow_id}/events", **_TEXT)
def events(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    task_name: TaskName = None,
    retry_id: RetryId = None,
    last_n_lines: Last = None,
    marks: Marks = None,
) -> Response:
    """What happened, until the workflow ends."""
    wish = Wish(task_name, retry_id, last_n_lines, marked=marks is not None)
    return _reply(services, caller, workflow_id, _events, wish)


@router.post("/v1/workflow/{workflow_id}/logs", **_REST)
def rest_of_logs(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    body: Body,
    task_name: TaskName = None,
    retry_id: RetryId = None,
) -> Response:
    """The log behind the places that were read already, with marks."""
    return _reply(services, caller, workflow_id, _log, _from(body, task_name, retry_id))


@router.post("/v1/workflow/{workflow_id}/error_logs", **_REST)
def rest_of_error_logs(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    body: Body,
    task_name: TaskName = None,
    retry_id: RetryId = None,
) -> Response:
    """The ends of the logs of failed attempts behind the places that were read already, with marks."""
    return _reply(services, caller, workflow_id, _errors, _from(body, task_name, retry_id))


@router.post("/v1/workflow/{workflow_id}/events", **_REST)
def rest_of_events(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    body: Body,
    task_name: TaskName = None,
    retry_id: RetryId = None,
) -> Response:
    """What happened behind the places that were read already, with marks."""
    return _reply(services, caller, workflow_id, _events, _from(body, task_name, retry_id))


def _from(body: bytes, task: str | None, retry_id: int | None) -> Wish:
    return Wish(task, retry_id, places=decode(body, Resume).places, marked=True)


def _reply(services: Services, caller: Caller, workflow_id: str, text: _Text, wish: Wish) -> Response:
    audit.unchanged()
    record = streams.check(services, caller, workflow_id, wish)
    wish = replace(wish, shown=partial(visible_text, services, caller))
    headers = {PLACES_HEADER: "marked"} if wish.marked else {}
    return stream(lambda stop: text(services, record.id, wish, stop), services.ending, headers=headers)
