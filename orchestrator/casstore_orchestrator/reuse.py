"""Results of finished tasks, taken again by equal ones (``osmo workflow submit --cache``).

Decided here and only here: when two tasks are equal, whose results may be taken, what a result is, and when it can't be
had any more. Two tasks are equal when one user runs the same image, command, arguments, environment and files on the
same platform, with the same outputs asked for and inputs of equal content. A result is the versions that the task made
and the output folder that was kept of it; it is taken only while all of that is still what its names mean.

What a task does beside this (reads the clock, random numbers, the network) can't be seen: ``cache: false`` on such a
task says that its results are never taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from casstore.errors import CasstoreError
from casstore.hashing import derive_hasher
from casstore.structs import from_json

from .homes import Homes
from .ports import DatasetVersion, DataStore, Published
from .provenance import InputNote, Producer
from .spec import DatasetOutput, GroupSpec, TaskInput, TaskSpec
from .tokens import TokenValues, resolve
from .transfers import Say

__all__ = ["Results", "task_key", "why_not"]

_UNEQUAL = frozenset(
    {
        "name", "lead", "resource", "exit_actions", "checkpoint", "cache", "cache_size", "download_type", "kpis",
        "backend", "outputs_on_failure", "inputs",
    }
)  # fmt: skip
"""Fields of a task that don't change what its command makes; inputs count by their content."""


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a task left. ``versions``: one for each dataset among its outputs, in order; ``kept`` is the checksum of its
    output folder, where that was kept.
    """

    workflow_id: str
    task: str
    exit_code: int
    versions: tuple[tuple[str, int, str], ...]
    kept: str = ""


def why_not(task: TaskSpec, group: GroupSpec) -> str:
    """Why results of this task are neither kept for others nor taken from them; empty when they are."""
    if task.cache is False:
        return "the task says 'cache: false'"
    if len(group.tasks) > 1:
        return "tasks of a group work together, and only as a whole"
    if task.credentials and task.cache is None:
        return "what it does may depend on its credentials; say 'cache: true' if not"
    if task.volume_mounts or task.privileged or task.host_network:
        return "it reaches parts of the machine that can't be compared"
    if task.checkpoint:
        return "it stores checkpoints"
    if not all(isinstance(item, DatasetOutput) for item in task.outputs):
        return "only datasets and {{output}} can be taken from another task"
    if _names_workflow(task):
        return "its text holds the id of the workflow"
    return ""


def task_key(task: TaskSpec, user: str, platform: str | None, notes: Sequence[InputNote]) -> str:
    """What equal tasks have in common, in hex; ``task`` with its tokens in place, and what its inputs really were."""
    fields = {
        entry.name: getattr(task, entry.name)
        for entry in msgspec.structs.fields(TaskSpec)
        if entry.name not in _UNEQUAL
    }
    read = [[note.kind, _shown(note), note.regex, note.checksum] for note in notes]
    names = [item.task_name if isinstance(item, TaskInput) else "" for item in task.inputs]
    body: dict[str, Any] = {"task": fields, "names": names, "inputs": read, "user": user, "platform": platform}
    hasher = derive_hasher("casstore task result 1")
    hasher.update(msgspec.json.encode(body, order="sorted"))
    return hasher.digest().hex()


def _shown(note: InputNote) -> str:
    """The name under which a task finds a dataset's files; that of other inputs it does not see."""
    return note.ref.rpartition("/")[2].partition(":")[0] if note.kind == "dataset" else ""


def _names_workflow(task: TaskSpec) -> bool:
    one, other = (resolve(task, TokenValues(workflow_id=name, uuid=name, output="")) for name in ("one", "other"))
    return one != other


@dataclass(frozen=True, slots=True)
class Results:
    """The results that are known on this machine."""

    homes: Homes
    data: DataStore

    def remember(self, key: str, producer: Producer, task: TaskSpec, published: Sequence[Published]) -> None:
        """Let others take what this task made; nothing happens where an output of it was skipped."""
        if len(published) != len(task.outputs):
            return
        try:
            kept = self.homes.kept_output(producer.workflow_id, task.name)[1].checksum
        except CasstoreError:
            kept = ""
        versions = tuple((made.version.ref, made.version.number, made.version.checksum) for made in published)
        result = _Result(
            workflow_id=producer.workflow_id,
            task=task.name,
            exit_code=producer.exit_code or 0,
            versions=versions,
            kept=kept,
        )
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{producer.workflow_uuid}")
        draft.write_bytes(msgspec.json.encode(result))
        draft.replace(path)

    def take(self, key: str, producer: Producer, task: TaskSpec, *, keeps: bool, say: Say) -> int | None:
        """Make the result of an equal task this one's; gives its exit code, None when there is none that still holds.

        ``keeps``: the output folder is wanted, too.
        """
        try:
            result = from_json(self._path(key).read_bytes(), _Result)
        except (OSError, msgspec.MsgspecError):
            say("No equal task has completed before: the command runs")
            return None
        source = f"{result.workflow_id}:{result.task}"
        try:
            problem = self._changed(result, producer, task)
            if not problem and keeps:
                problem = self._adopt(result, producer)
        except (CasstoreError, OSError) as error:
            problem = str(error)
        if problem:
            say(f"The result of {source}, an equal task, can't be taken: {problem}. The command runs")
            return None
        say(f"The command does not run: the result of {source}, an equal task, is taken (exit code {result.exit_code})")
        for ref, _, checksum in result.versions:
            say(f"Taken: {ref}   Checksum: {checksum}")
        return result.exit_code

    def _changed(self, result: _Result, producer: Producer, task: TaskSpec) -> str:
        for item, (ref, number, checksum) in zip(task.outputs, result.versions, strict=True):
            name = item.name if isinstance(item, DatasetOutput) else ""
            now: tuple[DatasetVersion, ...] = self.data.resolve(name, producer.user)
            if [(version.number, version.checksum) for version in now] != [(number, checksum)]:
                return f"{name} is no longer {ref}"
        return ""

    def _adopt(self, result: _Result, producer: Producer) -> str:
        if not result.kept:
            return "its output folder was not kept"
        note = self.homes.kept_output(result.workflow_id, result.task)[1]
        if note.checksum != result.kept:
            return "its output folder is another one now"
        self.homes.adopt_output(
            result.workflow_id, result.task, producer.workflow_id, producer.task, producer.retry_id, producer.inputs
        )
        return ""

    def _path(self, key: str) -> Path:
        return self.homes.root / "_results" / key[:2] / f"{key}.json"
