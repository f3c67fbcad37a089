"""Text that grows while it is read: logs, error logs and events of a workflow.

Decided here and only here: when a stream ends (with the workflow), how it is asked to stop, and how an event is
written as a line.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from casstore.errors import NotFoundError, UsageError
from casstore_orchestrator.records import WorkflowRecord
from casstore_server.db.store import EventRow
from casstore_server.services.context import Services
from casstore_server.services.workflows import check_task

__all__ = ["Stop", "check_choice", "event_lines", "log_lines"]

Stop = Callable[[], bool]
"""Asked now and then; once it is true a stream ends."""
_POLL_S = 0.25
_MAX_LAST = 1_000_000


def check_choice(
    services: Services, workflow_id: str, task: str | None, retry_id: int | None, *, last: int | None = None
) -> WorkflowRecord:
    """The workflow, once it is certain that it has this task and attempt."""
    record = services.database.load(workflow_id)
    if task is not None:
        check_task(record, task, retry_id)
    elif retry_id is not None:
        raise UsageError("An attempt (retry id) is one of a task: name the task too")
    if last is not None and not 0 <= last <= _MAX_LAST:
        raise UsageError(f"The number of lines must be between 0 and {_MAX_LAST}")
    return record


def log_lines(
    services: Services,
    workflow_id: str,
    *,
    task: str | None,
    retry_id: int | None,
    last: int | None,
    error: bool,
    stop: Stop,
) -> Iterator[str]:
    """Lines of the log until the workflow ends; with ``error`` what was kept of failed attempts."""
    yield from services.logs.read(
        workflow_id,
        task=task,
        retry_id=retry_id,
        last=last,
        follow=not error,
        error=error,
        live=lambda: _is_live(services, workflow_id),
        stop=stop,
    )


def _is_live(services: Services, workflow_id: str) -> bool:
    """Whether lines can still come: it has not ended, or something of it is being ended."""
    try:
        return services.database.load(workflow_id).live
    except NotFoundError:
        return False


def event_lines(
    services: Services, workflow_id: str, *, task: str | None, retry_id: int | None, last: int | None, stop: Stop
) -> Iterator[str]:
    """Events until the workflow ends."""
    seen = 0
    while True:
        ends = stop()  # before the look: what was written before is seen
        finished = services.database.load(workflow_id).status.finished
        rows = services.database.events(workflow_id, after=seen)
        seen = rows[-1][0] if rows else seen
        chosen = (row for _, row in rows if task in {None, row.task} and retry_id in {None, row.retry_id})
        lines = (_line(row) for row in chosen)
        yield from lines if last is None else deque(lines, maxlen=last)
        last = None
        if finished or ends:
            return
        time.sleep(_POLL_S)


def _line(row: EventRow) -> str:
    moment = datetime.fromtimestamp(row.at, UTC)
    name = "" if not row.task else f"[{row.task}] " if not row.retry_id else f"[{row.task} retry-{row.retry_id}] "
    message = " ".join(row.message.split())
    return f"{moment:%Y/%m/%d %H:%M:%S} {name}{row.reason}" + (f": {message}" if message else "")
