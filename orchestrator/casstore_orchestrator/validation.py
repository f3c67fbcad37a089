"""What is refused at submission because no attempt could ever run it.

Decided here and only here: which URLs can be read and written, and what must be true of tasks of earlier workflows
that are named as inputs. Specifications are checked on their own by the loader, resources by ``gang``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from casstore.errors import CasstoreError, NotFoundError, SpecError

from .folders import local_path
from .homes import Homes
from .records import WorkflowRecord
from .spec import TaskInput, TaskSpec, UrlInput, UrlOutput, WorkflowSpec

Storage = Callable[..., None]
"""``UrlStore.check`` for one user: takes the URL, and ``reads``."""

__all__ = ["check_external_tasks", "check_submission", "check_urls"]


def check_submission(
    spec: WorkflowSpec,
    load: Callable[[str], WorkflowRecord],
    home: Path,
    *,
    file_urls: bool,
    storage: Storage | None = None,
) -> None:
    """Everything below, in one call; ``load`` gives the record of a workflow or raises ``NotFoundError``."""
    check_urls(spec, file_urls=file_urls, storage=storage)
    check_external_tasks(spec, load, home)


def check_urls(spec: WorkflowSpec, *, file_urls: bool, storage: Storage | None = None) -> None:
    """``SpecError`` for a URL that can't be read or written.

    ``storage`` raises what is wrong with a URL of object storage, and is told whether it is read; without it there
    is none.
    """
    for task in spec.tasks:
        for index, item in enumerate(task.inputs):
            if isinstance(item, UrlInput):
                _check_url(
                    item.url, f"task {task.name}, input {index}", file_urls, storage and partial(storage, reads=True)
                )
        for index, output in enumerate(task.outputs):
            if isinstance(output, UrlOutput):
                _check_url(
                    output.url,
                    f"task {task.name}, output {index}",
                    file_urls,
                    storage and partial(storage, reads=False),
                )
        for index, checkpoint in enumerate(task.checkpoint):
            if checkpoint.url is not None:
                where = f"task {task.name}, checkpoint {index}"
                _check_url(checkpoint.url, where, file_urls, storage and partial(storage, reads=False))


def _check_url(url: str, where: str, file_urls: bool, storage: Callable[[str], None] | None) -> None:
    if storage is not None and not url.startswith("file:"):
        try:
            storage(url)
        except CasstoreError as error:
            msg = f"{where}: url: {error.message}"
            raise SpecError(msg, hint=error.hint) from None
        return
    if local_path(url) is None:
        schemes = "only file:///absolute/path is" if file_urls else "URLs are not"
        msg = f"{where}: url: {url!r} is not supported: {schemes} supported here"
        raise SpecError(msg, hint="Upload the data with 'osmo dataset upload' and use 'dataset:'.")
    if not file_urls:
        msg = f"{where}: url: {url!r} is refused: this server does not open its own files to workflows"
        raise SpecError(msg, hint="Upload the data with 'osmo dataset upload' and use 'dataset:'.")


def check_external_tasks(spec: WorkflowSpec, load: Callable[[str], WorkflowRecord], home: Path) -> None:
    """``SpecError`` for an input ``<workflow>:<task>`` that is unknown, unfinished or has left nothing."""
    homes = Homes(home)
    for task in spec.tasks:
        for index, item in enumerate(task.inputs):
            if isinstance(item, TaskInput) and item.external:
                _check_external(task, index, item, load, homes)


def _check_external(
    task: TaskSpec, index: int, item: TaskInput, load: Callable[[str], WorkflowRecord], homes: Homes
) -> None:
    where = f"task {task.name}, input {index}: task {item.task}"
    workflow_id, _, name = item.task.rpartition(":")
    try:
        record = load(workflow_id)
        record.task(name)
    except NotFoundError:
        msg = f"{where}: there is no workflow {workflow_id}"
        raise SpecError(msg) from None
    except KeyError:
        msg = f"{where}: workflow {workflow_id} has no task {name}"
        raise SpecError(msg) from None
    if not record.status.finished:
        msg = f"{where}: workflow {workflow_id} has not finished"
        raise SpecError(msg, hint="Wait for it, or put both into one workflow.")
    if item.optional:
        return
    try:
        homes.kept_output(record.id, name)
    except (CasstoreError, ValueError):
        msg = f"{where}: this task has left no output that others can read"
        raise SpecError(msg, hint="Outputs are kept of tasks that other tasks read, or that name no outputs.") from None
