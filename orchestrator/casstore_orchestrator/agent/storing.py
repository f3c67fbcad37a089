"""What becomes of what a task made: its checkpoints, its outputs, and the result that equal tasks may take.

Decided here and only here: which tasks' outputs are stored and kept, under whose name, and which failure a failing
store is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

from casstore.errors import AccessError, CancelledError, CasstoreError
from casstore_orchestrator.checkpoints import Checkpoints
from casstore_orchestrator.events import Attempt, OutputsFailed
from casstore_orchestrator.exit_actions import ExitAction, find_action
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.outputs import OutputStorer
from casstore_orchestrator.ports import DataStore, Executor, UrlStore
from casstore_orchestrator.provenance import InputNote, Producer
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.reuse import Results, task_key, why_not
from casstore_orchestrator.spec import TaskInput, TaskSpec
from casstore_orchestrator.status import ExitCode
from casstore_orchestrator.transfers import Say, Stop

__all__ = ["Made", "Storing", "error_text"]


class Made(NamedTuple):
    """One attempt: its task with tokens resolved, its home, and what its inputs were."""

    attempt: Attempt
    spec: TaskSpec
    home: Path
    inputs: tuple[InputNote, ...]


class Storing:
    """Stores what the tasks of one group make."""

    def __init__(
        self,
        record: WorkflowRecord,
        group: str,
        *,
        data: DataStore,
        homes: Homes,
        executor: Executor,
        urls: UrlStore | None,
        file_urls: bool,
    ) -> None:
        self._record = record
        self._group = record.spec.group(group)
        self._data = data
        self._executor = executor
        self._urls = urls
        self._file_urls = file_urls
        self._kept = _kept_tasks(record)
        self._outputs = OutputStorer(data, homes, self._kept, file_urls, urls)
        self._results = Results(homes, data)

    def checkpoints(self, made: Made, say: Say) -> Checkpoints:
        """Those of a command that is about to begin."""
        return Checkpoints(
            items=made.spec.checkpoint,
            folder=made.home / "checkpoints",
            place=partial(self._executor.place_of, made.home),
            producer=self._producer(made, None),
            data=self._data,
            urls=self._urls,
            file_urls=self._file_urls,
            say=say,
        )

    def reused(self, made: Made, say: Say) -> int | None:
        """The exit code of an equal task whose result was taken; None when the command has to run."""
        if not self._record.reuse:
            return None
        reason = self._why_not(made)
        if reason:
            say(f"No result of an equal task is looked for: {reason}")
            return None
        keeps = made.spec.name in self._kept
        return self._results.take(self._key(made), self._producer(made, None), made.spec, keeps=keeps, say=say)

    def store(
        self, made: Made, code: int, checkpoints: Checkpoints, say: Say, stop: Stop, *, oom: bool
    ) -> OutputsFailed | None:
        """Store what a command left; gives what went wrong. ``CancelledError`` once ``stop`` says so."""
        try:
            self._store(made, code, checkpoints, say, stop, oom=oom)
        except CancelledError:
            raise
        except (CasstoreError, OSError) as error:
            status = ExitCode.DATA_UNAUTHORIZED if isinstance(error, AccessError) else ExitCode.UPLOAD_FAILED
            message = f"The outputs can't be stored: {error_text(error)}"
            say(message)
            return OutputsFailed(made.attempt, code, message, status)
        return None

    def _store(self, made: Made, code: int, checkpoints: Checkpoints, say: Say, stop: Stop, *, oom: bool) -> None:
        producer = self._producer(made, code)
        checkpoints.last(stop, producer)
        failed = oom or not self._counts_as_done(made.spec, code)
        if not made.spec.outputs and made.spec.name not in self._kept:
            return
        if failed and not made.spec.outputs_on_failure:
            say("The outputs are not stored, because the task failed")
            return
        published = self._outputs.store(made.spec, made.home, producer, say, stop)
        if not failed and not self._why_not(made):
            self._results.remember(self._key(made), producer, made.spec, published)

    def _why_not(self, made: Made) -> str:
        return why_not(self._record.spec.task(made.spec.name), self._group)

    def _key(self, made: Made) -> str:
        record, name = self._record, made.spec.name
        return task_key(record.spec.task(name), record.user, record.task(name).platform, made.inputs)

    def _counts_as_done(self, task: TaskSpec, code: int) -> bool:
        action = find_action(code, task.exit_actions, self._record.pool_exit_actions)
        return action is ExitAction.COMPLETE or (action is None and code == 0)

    def _producer(self, made: Made, code: int | None) -> Producer:
        record, attempt = self._record, made.attempt
        return Producer(
            workflow_id=record.id,
            workflow_uuid=record.uuid,
            group=self._group.name,
            task=attempt.task,
            retry_id=attempt.retry_id,
            user=record.user,
            image=made.spec.image,
            command=(*made.spec.command, *made.spec.args),
            exit_code=code,
            inputs=made.inputs,
        )


def _kept_tasks(record: WorkflowRecord) -> frozenset[str]:
    """Tasks whose output folder is kept: other tasks read it, it would be lost, or results (``kpis``) are in it."""
    tasks = record.spec.tasks
    read = {item.task for task in tasks for item in task.inputs if isinstance(item, TaskInput) and not item.external}
    return frozenset(read | {task.name for task in tasks if task.kpis or not task.outputs})


def error_text(error: CasstoreError | OSError) -> str:
    """One line for people, with what to do about it."""
    if isinstance(error, CasstoreError):
        return f"{error.message} {error.hint}" if error.hint else error.message
    return str(error)
