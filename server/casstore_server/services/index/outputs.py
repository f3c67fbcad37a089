"""Which datasets the tasks of a workflow have written to.

Decided here and only here: that an attempt of a task has stored its outputs, if any, when it has ended.
"""

from __future__ import annotations

import contextlib

from casstore.dataset import Ref, parse_ref
from casstore.errors import UsageError
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.spec import DatasetOutput, UpdateDatasetOutput

__all__ = ["written"]


def written(old: WorkflowRecord, new: WorkflowRecord) -> list[Ref]:
    """The datasets that are outputs of what has ended between two states of a record; no bucket is the default one."""
    before = {(task.name, task.retry_id) for task in old.all_tasks() if task.status.finished}
    found: dict[Ref, None] = {}
    for task in new.all_tasks():
        if not task.status.finished or (task.name, task.retry_id) in before:
            continue
        with contextlib.suppress(KeyError):  # a record whose groups are not those of its specification
            for output in new.spec.task(task.name).outputs:
                if isinstance(output, DatasetOutput | UpdateDatasetOutput):
                    with contextlib.suppress(UsageError):
                        found[parse_ref(output.name)] = None
    return list(found)
