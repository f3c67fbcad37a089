"""Text that grows while it is read: logs, error logs and events of a workflow.

Decided here and only here: when a stream ends (with the workflow), how it is asked to stop, and how an event is
written as a line.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from casstore.errors import UsageError
from casstore.wire.following import QUIET_S, mark
from casstore_orchestrator.records import WorkflowRecord
from casstore_server.db.store import EventRow
from casstore_server.services.context import Caller, Services
from casstore_server.services.rights import readable
from casstore_server.services.workflows import check_task

__all__ = ["Stop", "Wish", "check", "event_text", "log_text"]

Stop = Callable[[], bool]
"""Asked now and then; once it is true a stream ends."""
_POLL_S = 0.4
_MAX_LAST = 1_000_000
_EVENTS = "events"


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a text is wanted: of one task, of one attempt, only the last lines of what is there, only what comes
    behind ``places``. ``marked``: with marks (see ``wire.following``). ``shown`` is what whoever asks may see of a
    message of an event.
    """

    task: str | None = None
    retry_id: int | None = None
    last: int | None = None
    places: Mapping[str, int] | None = None
    marked: bool = False
    shown: Callable[[str], str] = str


def check(services: Services, caller: Caller, workflow_id: str, wish: Wish) -> WorkflowRecord:
    """The workflow, once it is certain that the caller may read it and that it has this task and attempt."""
    record = readable(services, caller, workflow_id)
    if wish.task is not None:
        check_task(record, wish.task, wish.retry_id)
    elif wish.retry_id is not None:
        raise UsageError("An attempt (retry id) is one of a task: name the task too")
    if wish.last is not None and not 0 <= wish.last <= _MAX_LAST:
        raise UsageError(f"The number of lines must be between 0 and {_MAX_LAST}")
    return record


def log_text(services: Services, workflow_id: str, wish: Wish, stop: Stop, *, error: bool = False) -> Iterator[bytes]:
    """Whole lines of the log until the workflow ends; with ``error`` what was kept of failed attempts."""
    standings = services.database.standings
    pieces = services.logs.pieces(
        workflow_id,
        task=wish.task,
        retry_id=wish.retry_id,
        last=wish.last,
        follow=not error,
        error=error,
        live=lambda: standings.of(workflow_id).live,
        stop=stop,
        places=wish.places,
        quiet=QUIET_S,
    )
    for piece in pieces:
        yield piece.text + mark(piece.moved) if wish.marked else piece.text


def event_text(services: Services, workflow_id: str, wish: Wish, stop: Stop) -> Iterator[bytes]:
    """Events, a line each, until the workflow ends."""
    seen = (wish.places or {}).get(_EVENTS, 0)
    last = wish.last
    gave = time.monotonic()
    while True:
        ends = stop()  # before the look: what was written before is seen
        finished = services.database.standings.of(workflow_id).finished
        rows = services.database.events(workflow_id, after=seen)
        chosen = (row for _, row in rows if wish.task in {None, row.task} and wish.retry_id in {None, row.retry_id})
        lines = (_line(row, wish.shown) for row in chosen)
        text = b"".join(lines if last is None else deque(lines, maxlen=last))
        last = None
        if rows or time.monotonic() - gave >= QUIET_S:
            seen, gave = rows[-1][0] if rows else seen, time.monotonic()
            yield text + mark({_EVENTS: seen}) if wish.marked else text
        if finished or ends:
            return
        time.sleep(_POLL_S)


def _line(row: EventRow, shown: Callable[[str], str]) -> bytes:
    moment = datetime.fromtimestamp(row.at, UTC)
    name = "" if not row.task else f"[{row.task}] " if not row.retry_id else f"[{row.task} retry-{row.retry_id}] "
    message = shown(" ".join(row.message.split()))
    line = f"{moment:%Y/%m/%d %H:%M:%S} {name}{row.reason}" + (f": {message}" if message else "") + "\n"
    return line.encode("utf-8", "surrogateescape")
