"""The rules of a workflow: strict data into a specification.

Decided here and only here: how the parts of a workflow go together. Uniqueness of names, leads, the kinds of inputs
and outputs, references inside one file, and how many tasks there may be. ``checks`` knows the legal values of single
fields, ``gang`` what depends on a pool, ``plan`` the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from casstore.errors import SpecError, UsageError

from .checks import (
    TASK_REFERENCE,
    VARIABLE,
    check_credentials,
    check_dataset,
    check_files,
    check_inside,
    check_labels,
    check_mounts,
    check_name,
    check_regex,
    check_size,
    check_url,
)
from .exit_actions import parse_exit_actions
from .spec import (
    Checkpoint,
    DatasetInput,
    DatasetOutput,
    GroupSpec,
    Input,
    Output,
    ResourceSpec,
    TaskInput,
    TaskSpec,
    Timeout,
    UpdateDatasetOutput,
    UrlInput,
    UrlOutput,
    WorkflowSpec,
)
from .typed import convert, kind_of, nearest
from .units import parse_duration, parse_quantity

__all__ = ["build_workflow", "normal_name"]

_RESERVED_TASK: Final = "osmo-ctrl"
_TASK_FORM_SUFFIX: Final = "-group"
MAX_TASKS: Final = 1000
"""Tasks in one workflow."""


def normal_name(name: str) -> str:
    """The form in which names of tasks and groups are compared: lower case, ``-`` for ``_``."""
    return name.lower().replace("_", "-")


def build_workflow(raw: Any, environment: Mapping[str, str] | None = None) -> WorkflowSpec:
    """The specification in the ``workflow`` section. ``environment`` is added to every task.

    Raises SpecError with the path of what is wrong.
    """
    path = "workflow"
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a mapping, found {kind_of(raw)}")
    tasks, groups = raw.get("tasks"), raw.get("groups")
    if tasks and groups:
        raise SpecError(f"{path}: cannot use both 'tasks' and 'groups'")
    if not tasks and not groups:
        raise SpecError(f"{path}: at least one group or one task is needed", hint="add 'tasks:' or 'groups:'")
    _check_count(tasks, groups, path)
    resources = {
        key: _resource(entry, f"{path}.resources.{key}")
        for key, entry in _mapping(raw.get("resources"), f"{path}.resources").items()
    } or {"default": ResourceSpec()}
    timeout = _timeout(raw.get("timeout"), f"{path}.timeout")
    built = (
        tuple(_group(item, f"{path}.groups[{index}]") for index, item in enumerate(_list(groups, f"{path}.groups")))
        if groups
        else tuple(_single(item, f"{path}.tasks[{index}]") for index, item in enumerate(_list(tasks, f"{path}.tasks")))
    )
    if environment:
        built = tuple(_with_environment(group, environment) for group in built)
    reduced = {key: value for key, value in raw.items() if key not in {"tasks", "resources", "timeout"}}
    spec = convert({**reduced, "groups": []}, WorkflowSpec, path)
    spec = replace(spec, groups=built, resources=resources, timeout=timeout)
    check_name(spec.name, f"{path}.name")
    check_labels(spec.labels, f"{path}.labels")
    _check_names(spec, by_task=bool(tasks))
    _check_resources(spec, by_task=bool(tasks))
    return spec


def _check_count(tasks: Any, groups: Any, path: str) -> None:
    """Before anything is made of them."""
    members = [group.get("tasks") for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    count = sum(len(items) for items in (tasks, *members) if isinstance(items, list))
    if count > MAX_TASKS:
        raise SpecError(f"{path}: {count} tasks are more than the {MAX_TASKS} that a workflow may have")


def _with_environment(group: GroupSpec, environment: Mapping[str, str]) -> GroupSpec:
    return replace(
        group,
        tasks=tuple(replace(task, environment={**task.environment, **environment}) for task in group.tasks),
    )


def _group(raw: Any, path: str) -> GroupSpec:
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a mapping, found {kind_of(raw)}")
    items = _list(raw.get("tasks"), f"{path}.tasks")
    if not items:
        raise SpecError(f"{path}.tasks: a group needs at least one task")
    group = convert({**_without_own(raw), "tasks": []}, GroupSpec, path)
    group = replace(group, **_own(raw, path))
    check_name(group.name, f"{path}.name")
    tasks = tuple(_task(item, f"{path}.tasks[{index}]") for index, item in enumerate(items))
    if len(tasks) == 1:
        tasks = (replace(tasks[0], lead=True),)
    leads = sum(task.lead for task in tasks)
    if leads != 1:
        raise SpecError(
            f"{path}: group '{group.name}' has {leads} leads but must have exactly one",
            hint="give one of its tasks 'lead: true'",
        )
    return replace(group, tasks=tasks)


def _single(raw: Any, path: str) -> GroupSpec:
    inner = {key: value for key, value in raw.items() if key != "timeout"} if isinstance(raw, dict) else raw
    task = replace(_task(inner, path), lead=True)
    timeout = _timeout(raw.get("timeout"), f"{path}.timeout")
    return GroupSpec(name=task.name + _TASK_FORM_SUFFIX, tasks=(task,), timeout=timeout)


def _without_own(raw: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in raw.items() if key not in {"timeout", "waitForNonlead"}}


def _own(raw: dict[Any, Any], path: str) -> dict[str, Any]:
    """What a group says with durations."""
    wait = raw.get("waitForNonlead", False)
    if not isinstance(wait, bool):
        wait = _duration(wait, f"{path}.waitForNonlead")
    return {"timeout": _timeout(raw.get("timeout"), f"{path}.timeout"), "wait_for_nonlead": wait}


def _task(raw: Any, path: str) -> TaskSpec:
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a mapping, found {kind_of(raw)}")
    inputs = tuple(
        _input(item, f"{path}.inputs[{index}]") for index, item in enumerate(_list(raw.get("inputs"), f"{path}.inputs"))
    )
    outputs = tuple(
        _output(item, f"{path}.outputs[{index}]")
        for index, item in enumerate(_list(raw.get("outputs"), f"{path}.outputs"))
    )
    checkpoints = tuple(
        _checkpoint(item, f"{path}.checkpoint[{index}]")
        for index, item in enumerate(_list(raw.get("checkpoint"), f"{path}.checkpoint"))
    )
    taken = {"inputs", "outputs", "checkpoint", "cacheSize"}
    task = convert({key: value for key, value in raw.items() if key not in taken}, TaskSpec, path)
    if "cacheSize" in raw:
        task = replace(task, cache_size=_quantity(raw["cacheSize"], f"{path}.cacheSize"))
    check_name(task.name, f"{path}.name")
    if normal_name(task.name)[:63] == _RESERVED_TASK:
        raise SpecError(f"{path}.name: '{task.name}' is reserved")
    _check_words(task, path)
    check_files(task.files, f"{path}.files")
    check_mounts(task.volume_mounts, f"{path}.volumeMounts")
    check_credentials(task.credentials, f"{path}.credentials")
    try:
        parse_exit_actions(task.exit_actions)
    except UsageError as error:
        raise SpecError(f"{path}.exitActions: {error.message}", hint=error.hint) from None
    for index, kpi in enumerate(task.kpis):
        check_inside(kpi.path, f"{path}.kpis[{index}].path")
    return replace(task, inputs=inputs, outputs=outputs, checkpoint=checkpoints)


def _check_words(task: TaskSpec, path: str) -> None:
    """What the program is given: its words and its environment."""
    for name, value in task.environment.items():
        if not VARIABLE.fullmatch(name):
            raise SpecError(f"{path}.environment: {name!r} is not a name for a variable")
        if "\0" in value:
            raise SpecError(f"{path}.environment.{name}: contains a null character")
        check_size(f"{name}={value}", f"{path}.environment.{name}")
    for key, words in (("command", task.command), ("args", task.args)):
        for index, word in enumerate(words):
            if "\0" in word:
                raise SpecError(f"{path}.{key}[{index}]: contains a null character")
            check_size(word, f"{path}.{key}[{index}]")
    if task.command and not task.command[0]:
        raise SpecError(f"{path}.command[0]: is empty", hint="the first word is the program to run")


def _kind(raw: Any, kinds: Sequence[str], beside: Mapping[str, Sequence[str]], path: str) -> str:
    """Which kind of input or output an item is; exactly one of ``kinds`` must be among its keys."""
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a mapping with one of {', '.join(kinds)}, found {kind_of(raw)}")
    present = [kind for kind in kinds if kind in raw]
    unknown = [key for key in raw if key not in kinds and key not in beside.get((present or [""])[0], ())]
    if len(present) > 1:
        raise SpecError(f"{path}: exactly one of {' and '.join(present)} may be given")
    if not present:
        raise SpecError(
            f"{path}: expected one of {', '.join(kinds)}", hint=nearest(str(unknown[0]), kinds) if unknown else None
        )
    if unknown:
        legal = [present[0], *beside.get(present[0], ())]
        hint = nearest(str(unknown[0]), legal)
        if present[0] == "dataset":
            hint = f"'{unknown[0]}' may belong under 'dataset:', one level deeper"
        raise SpecError(f"{path}.{unknown[0]}: unknown key {str(unknown[0])!r}", hint=hint)
    return present[0]


def _input(raw: Any, path: str) -> Input:
    kind = _kind(raw, ("task", "url", "dataset"), {"task": ("regex",), "url": ("regex",)}, path)
    if kind == "task":
        task = convert(raw, TaskInput, path)
        if not TASK_REFERENCE.fullmatch(task.task):
            raise SpecError(
                f"{path}.task: {task.task!r} is not the name of a task",
                hint="write the name of a task, or <workflow id>:<task>",
            )
        return replace(task, regex=check_regex(task.regex, path))
    if kind == "url":
        url = convert(raw, UrlInput, path)
        check_url(url.url, f"{path}.url")
        return replace(url, regex=check_regex(url.regex, path))
    where = f"{path}.dataset"
    dataset = convert(raw["dataset"], DatasetInput, where)
    check_dataset(dataset.name, f"{where}.name")
    if dataset.localpath is not None and ":" in dataset.name:
        raise SpecError(f"{where}.name: a dataset with a localpath can't have a tag", hint="remove the ':...'")
    return replace(dataset, regex=check_regex(dataset.regex, where))


def _output(raw: Any, path: str) -> Output:
    kind = _kind(raw, ("url", "dataset", "update_dataset"), {"url": ("regex",)}, path)
    if kind == "url":
        url = convert(raw, UrlOutput, path)
        check_url(url.url, f"{path}.url")
        return replace(url, regex=check_regex(url.regex, path))
    where = f"{path}.{kind}"
    if kind == "update_dataset":
        update = convert(raw[kind], UpdateDatasetOutput, where)
        check_dataset(update.name, f"{where}.name")
        for index, item in enumerate(update.paths):
            source, _, target = item.partition(":")
            check_inside(source, f"{where}.paths[{index}]")
            check_inside(target, f"{where}.paths[{index}]")
        return update
    dataset = convert(raw[kind], DatasetOutput, where)
    check_dataset(dataset.name, f"{where}.name")
    if dataset.path is not None:
        check_inside(dataset.path, f"{where}.path")
    for key, files in (("metadata", dataset.metadata), ("labels", dataset.labels)):
        for index, item in enumerate(files):
            check_inside(item, f"{where}.{key}[{index}]")
    return replace(dataset, regex=check_regex(dataset.regex, where))


def _checkpoint(raw: Any, path: str) -> Checkpoint:
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a mapping, found {kind_of(raw)}")
    frequency = _duration(raw["frequency"], f"{path}.frequency") if "frequency" in raw else None
    prepared = {**raw} if frequency is None else {**raw, "frequency": frequency}
    if isinstance(raw.get("dataset"), dict) and {*raw["dataset"]} == {"name"}:
        prepared["dataset"] = raw["dataset"]["name"]
    checkpoint = convert(prepared, Checkpoint, path)
    if (checkpoint.url is None) == (checkpoint.dataset is None):
        raise SpecError(f"{path}: exactly one of 'url' and 'dataset' is needed", hint="it says where the folder goes")
    if checkpoint.frequency <= 0:
        raise SpecError(f"{path}.frequency: must be more than 0")
    if checkpoint.url is not None:
        check_url(checkpoint.url, f"{path}.url")
    else:
        check_dataset(checkpoint.dataset or "", f"{path}.dataset")
    folder = checkpoint.path if checkpoint.path.startswith(("/", "{{")) else f"/{checkpoint.path}"
    if ".." in folder.split("/") or "\0" in folder or not folder.strip("/"):
        raise SpecError(f"{path}.path: {checkpoint.path!r} is not an absolute path without '..'")
    return replace(checkpoint, path=folder, regex=check_regex(checkpoint.regex, path))


def _resource(raw: Any, path: str) -> ResourceSpec:
    values = dict(_mapping(raw, path))
    for key in ("memory", "storage"):
        if values.get(key) is not None:
            values[key] = _quantity(values[key], f"{path}.{key}")
    values = {key: value for key, value in values.items() if value is not None}
    entry = convert(values, ResourceSpec, path)
    for key, amount, least in (("cpu", entry.cpu, 0), ("memory", entry.memory, 0), ("storage", entry.storage, 0)):
        if amount is not None and not math.isfinite(amount):
            raise SpecError(f"{path}.{key}: {amount} is not an amount")
        if amount is not None and amount <= least:
            raise SpecError(f"{path}.{key}: must be more than 0")
    for key, count in (("gpu", entry.gpu), *((f"extras.{name}", value) for name, value in entry.extras.items())):
        if count is not None and count < 0:
            raise SpecError(f"{path}.{key}: must not be negative")
    return entry


def _timeout(raw: Any, path: str) -> Timeout:
    values = _mapping(raw, path)
    for key in values:
        if key not in {"exec_timeout", "queue_timeout"}:
            raise SpecError(
                f"{path}.{key}: unknown key {key!r}", hint=nearest(str(key), ("exec_timeout", "queue_timeout"))
            )
    found = {key: _duration(value, f"{path}.{key}") for key, value in values.items() if value is not None}
    for key, seconds in found.items():
        if seconds <= 0:
            raise SpecError(f"{path}.{key}: must be more than 0")
    return Timeout(**found)


def _check_names(spec: WorkflowSpec, *, by_task: bool) -> None:
    """Tasks and groups share one name space."""
    taken: dict[str, str] = {}
    for index, group in enumerate(spec.groups):
        named = [(f"tasks[{index}]", group.tasks[0].name)] if by_task else [(f"groups[{index}]", group.name)]
        if not by_task:
            named += [(f"groups[{index}].tasks[{at}]", task.name) for at, task in enumerate(group.tasks)]
        for place, name in named:
            path = f"workflow.{place}.name"
            if (other := taken.get(normal_name(name))) is not None:
                raise SpecError(
                    f"{path}: '{name}' is taken by {other}",
                    hint="tasks and groups share one name space, in which case and '_' against '-' don't matter",
                )
            taken[normal_name(name)] = path
    if by_task:
        for index, group in enumerate(spec.groups):
            if (other := taken.get(normal_name(group.name))) is not None:
                raise SpecError(
                    f"workflow.tasks[{index}].name: its group '{group.name}' would have the name of {other}"
                )


def _check_resources(spec: WorkflowSpec, *, by_task: bool) -> None:
    for index, group in enumerate(spec.groups):
        for at, task in enumerate(group.tasks):
            if task.resource not in spec.resources and task.resource != "default":
                place = f"tasks[{index}]" if by_task else f"groups[{index}].tasks[{at}]"
                raise SpecError(
                    f"workflow.{place}.resource: undefined resource '{task.resource}'",
                    hint=nearest(task.resource, spec.resources),
                )


def _quantity(value: Any, path: str) -> int:
    try:
        return parse_quantity(value, what=path)
    except UsageError as error:
        raise SpecError(error.message, hint=error.hint) from None


def _duration(value: Any, path: str) -> float:
    try:
        return parse_duration(value, what=path)
    except UsageError as error:
        raise SpecError(error.message, hint=error.hint) from None


def _mapping(raw: Any, path: str) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a mapping, found {kind_of(raw)}")
    for key in raw:
        if not isinstance(key, str):
            raise SpecError(f"{path}: the key {key!r} is not text", hint=f"quote it: '{key}'")
    return raw


def _list(raw: Any, path: str) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise SpecError(f"{path}: expected a list, found {kind_of(raw)}")
    return raw
