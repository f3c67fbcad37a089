"""Forms of a workflow that documents and cookbooks use although OSMO's own validator rejects them.

Decided here and only here: which of them are accepted, and what each one means. Every one that is met adds a
line to ``warnings``; ``build`` then sees strict forms only. Nothing here raises: what can't be understood is
left as it is, for the strict rules to report.
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Final

__all__ = ["relax"]

_SHELL: Final = re.compile(r"[|&;<>\n`*?]|\$\(|\$\{|\$[A-Za-z_]")
_MISSING_NAME: Final = "workflow"


def relax(raw: Any, warnings: list[str]) -> Any:
    """A copy of the ``workflow`` section in strict form. Adds a warning for each form that is not OSMO's own."""
    if not isinstance(raw, dict):
        return raw
    workflow = _without_nulls(raw)
    if "name" not in workflow:
        workflow["name"] = _MISSING_NAME
        warnings.append(f"workflow.name: missing; '{_MISSING_NAME}' is used")
    resources = dict(workflow["resources"]) if isinstance(workflow.get("resources"), dict) else {}
    if isinstance(workflow.get("tasks"), list):
        workflow["tasks"] = [
            _task(task, f"workflow.tasks[{index}]", resources, warnings) for index, task in enumerate(workflow["tasks"])
        ]
    if isinstance(workflow.get("groups"), list):
        workflow["groups"] = [
            _group(group, f"workflow.groups[{index}]", resources, warnings)
            for index, group in enumerate(workflow["groups"])
        ]
    if resources:
        workflow["resources"] = resources
    return workflow


def _group(raw: Any, path: str, resources: dict[str, Any], warnings: list[str]) -> Any:
    if not isinstance(raw, dict):
        return raw
    group = _without_nulls(raw)
    if isinstance(group.get("tasks"), list):
        group["tasks"] = [
            _task(task, f"{path}.tasks[{index}]", resources, warnings) for index, task in enumerate(group["tasks"])
        ]
    return group


def _task(raw: Any, path: str, resources: dict[str, Any], warnings: list[str]) -> Any:
    if not isinstance(raw, dict):
        return raw
    task = _without_nulls(raw)
    _commands(task, path, warnings)
    _environment(task, path, warnings)
    _inline_resources(task, path, resources, warnings)
    _exit_actions(task, path, warnings)
    for key in ("inputs", "outputs"):
        if isinstance(task.get(key), list):
            task[key] = [_data(item, f"{path}.{key}[{index}]", warnings) for index, item in enumerate(task[key])]
    return task


def _without_nulls(raw: dict[Any, Any]) -> dict[Any, Any]:
    """``inputs:`` with nothing under it (a loop that gave no items) means the same as no ``inputs`` at all."""
    return {key: value for key, value in raw.items() if value is not None}


def _commands(task: dict[str, Any], path: str, warnings: list[str]) -> None:
    if not task.get("image"):
        warnings.append(f"{path}.image: missing; the task runs only where no image is needed")
    for key in ("command", "args"):
        value = task.get(key)
        if isinstance(value, list):
            task[key] = [_scalar(item, f"{path}.{key}[{index}]", warnings) for index, item in enumerate(value)]
        elif isinstance(value, str) and value.strip():
            words = _words(value) if key == "args" or not _SHELL.search(value) else None
            task[key] = ["bash", "-c", value] if words is None else words
            warnings.append(f"{path}.{key}: text instead of a list; read as {task[key]!r}")
    if not task.get("command"):
        task.pop("command", None)
        if task.get("args"):
            warnings.append(f"{path}.command: missing; the arguments alone can't be run without the image")
        else:
            warnings.append(
                f"{path}.command: missing; only an executor that runs images can use the image's own entry point"
            )


def _words(text: str) -> list[str] | None:
    try:
        return shlex.split(text)
    except ValueError:  # unbalanced quotes
        return None


def _scalar(value: Any, path: str, warnings: list[str]) -> Any:
    if isinstance(value, bool):
        warnings.append(f"{path}: a truth value where text is expected; read as '{str(value).lower()}', quote it")
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _environment(task: dict[str, Any], path: str, warnings: list[str]) -> None:
    if "env" in task and "environment" not in task:
        task["environment"] = task.pop("env")
        warnings.append(f"{path}.env: read as 'environment'")
    value = task.get("environment")
    if isinstance(value, list) and all(isinstance(item, dict) and {*item} == {"name", "value"} for item in value):
        value = {item["name"]: item["value"] for item in value}
        warnings.append(f"{path}.environment: a list of name and value; read as a mapping")
    if isinstance(value, dict):
        task["environment"] = {key: _scalar(item, f"{path}.environment.{key}", warnings) for key, item in value.items()}


def _inline_resources(task: dict[str, Any], path: str, resources: dict[str, Any], warnings: list[str]) -> None:
    """``platform`` and ``resources`` in a task become a resource entry of the task's own."""
    inline = task.get("resources")
    if "platform" not in task and not isinstance(inline, dict):
        return
    base = resources.get(task.get("resource", "default"))
    entry = dict(base) if isinstance(base, dict) else {}
    if isinstance(inline, dict):
        entry.update(inline)
        warnings.append(f"{path}.resources: OSMO reads resources from 'workflow.resources' only; used as given")
        del task["resources"]
    if "platform" in task:
        entry["platform"] = task.pop("platform")
        warnings.append(f"{path}.platform: belongs into an entry of 'workflow.resources'; used as given")
    # A dot can't be part of a task's name, so the entry can't be mistaken for one of another task.
    name = f"{task.get('name', path)}.resources"
    resources[name] = entry
    task["resource"] = name


def _exit_actions(task: dict[str, Any], path: str, warnings: list[str]) -> None:
    value = task.get("exitActions")
    if not isinstance(value, dict):
        return
    actions: dict[Any, Any] = {}
    for key, codes in value.items():
        action = key.upper() if isinstance(key, str) else key
        if action == "RESTART":
            action = "RESCHEDULE"
            warnings.append(f"{path}.exitActions.{key}: read as RESCHEDULE")
        text = str(codes) if isinstance(codes, int) and not isinstance(codes, bool) else codes
        if action in actions and isinstance(text, str):
            text = f"{actions[action]},{text}"
        actions[action] = text
    task["exitActions"] = actions


def _data(raw: Any, path: str, warnings: list[str]) -> Any:
    if not isinstance(raw, dict):
        return raw
    item = dict(raw)
    for key in ("dataset", "update_dataset"):
        if isinstance(item.get(key), str):
            item[key] = {"name": item[key]}
            warnings.append(f"{path}.{key}: a bare name; read as '{key}: {{name: ...}}'")
    update = item.get("update_dataset")
    if isinstance(update, dict) and isinstance(update.get("path"), str) and "paths" not in update:
        update = dict(update)
        update["paths"] = [update.pop("path")]
        item["update_dataset"] = update
        warnings.append(f"{path}.update_dataset.path: read as a list 'paths' of one")
    return item
