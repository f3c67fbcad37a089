"""What people are told of a transaction: its notes, and the lines that they leave in the logs.

Decided here and only here: that a failure stands in the log of the attempt that it ends, with secrets masked, and that
the end of the log of a failed attempt is kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from .credentials import secret_values
from .logs import LogStore
from .notes import ENDS, notes
from .ports import Credentials
from .records import WorkflowRecord
from .statestore import TaskNote
from .status import TaskStatus

__all__ = ["Told"]


class Told:
    """The notes of a transaction, which may be made several times until it is stored."""

    def __init__(self, now: float) -> None:
        self.notes: Sequence[TaskNote] = ()
        self._now = now

    def __call__(self, before: WorkflowRecord, after: WorkflowRecord) -> Sequence[TaskNote]:
        self.notes = notes(before, after, self._now)
        return self.notes

    def write(self, logs: LogStore, record: WorkflowRecord, credentials: Credentials) -> None:
        """Write what was stored into the logs."""
        ends = [note for note in self.notes if note.reason in ENDS]
        failures = [note for note in ends if note.message]
        if failures:
            logs.begin(record.id, secret_values(record.spec, record.user, credentials))
        for note in failures:
            logs.note(record.id, note.task, note.retry_id, note.message)
        for note in ends:
            if note.reason != TaskStatus.COMPLETED:
                logs.keep_error(record.id, note.task, note.retry_id)
