"""Special tokens and variables in the strings of a task.

Decided here and only here: what ``{{workflow_id}}``, ``{{uuid}}``, ``{{output}}``, ``{{input:...}}`` and
``{{host:...}}`` become, where they work (every string of a task but its name and base64 contents), and how
``$(NAME)`` is expanded in commands. A token that names an unknown input or host stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from .spec import FileSpec, TaskInput, TaskSpec

__all__ = ["TokenValues", "expand_vars", "names_in", "resolve", "resolve_text"]

# Inside the braces there is no brace: a token built from another one is resolved from the inside out by
# nobody.
_TOKEN: Final = re.compile(r"\{\{\s*(uuid|workflow_id|output|input\s*:[^{}]+|host\s*:[^{}]+?)\s*\}\}")
_VARIABLE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")

# Names and references that the scheduler has resolved already; a token in them would change what they mean.
_FIXED: Final = frozenset({"name", "resource", "lead", "exit_actions"})


@dataclass(frozen=True, slots=True)
class TokenValues:
    """What the tokens of one task become.

    ``inputs[i]`` is the folder of input i, ``hosts`` maps the tasks of the same group to the names under
    which they are reached.
    """

    workflow_id: str
    uuid: str
    output: str
    inputs: Sequence[str] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)


def resolve(task: TaskSpec, values: TokenValues) -> TaskSpec:
    """The task with its tokens replaced: command, arguments, environment, files, inputs, outputs, checkpoints."""
    table = _table(task, values)
    changes: dict[str, Any] = {}
    for entry in msgspec.structs.fields(TaskSpec):
        if entry.name in _FIXED:
            continue
        value = getattr(task, entry.name)
        changed = _walk(value, table)
        if changed != value:
            changes[entry.name] = changed
    return replace(task, **changes) if changes else task


def resolve_text(text: str, task: TaskSpec, values: TokenValues) -> str:
    """One string of a task with its tokens replaced."""
    return _replace(text, _table(task, values))


def expand_vars(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """``$(NAME)`` in a command becomes the task's variable, as Kubernetes does it.

    ``$$`` is a literal ``$`` in front of ``(``, and an unknown name stays as it is. Everything else belongs
    to the shell, if there is one.
    """

    def value(match: re.Match[str]) -> str:
        return "$" if match[1] is None else environment.get(match[1], match[0])

    return tuple(_VARIABLE.sub(value, word) if "$(" in word else word for word in argv)


def names_in(argv: Sequence[str]) -> set[str]:
    """The names that ``expand_vars`` would look up."""
    return {match[1] for word in argv for match in _VARIABLE.finditer(word) if match[1] is not None}


def _table(task: TaskSpec, values: TokenValues) -> dict[str, str]:
    table = {
        "workflow_id": values.workflow_id,
        "uuid": values.uuid,
        "output": values.output,
        **{f"host:{name}": host for name, host in values.hosts.items()},
    }
    for index, folder in enumerate(values.inputs):
        table[f"input:{index}"] = folder
    for item, folder in zip(task.inputs, values.inputs, strict=False):
        if isinstance(item, TaskInput):
            table.setdefault(f"input:{item.task_name}", folder)
    return table


def _replace(text: str, table: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        kind, colon, name = match[1].partition(":")
        return table.get(f"{kind.strip()}{colon}{name.strip()}", match[0])

    return _TOKEN.sub(value, text) if "{{" in text else text


def _walk(value: Any, table: Mapping[str, str]) -> Any:
    """A copy of plain values and structs with every string replaced."""
    if isinstance(value, str):
        return _replace(value, table)
    if isinstance(value, tuple):
        return tuple(_walk(item, table) for item in value)
    if isinstance(value, dict):
        return {key: _walk(item, table) for key, item in value.items()}
    if isinstance(value, FileSpec) and value.base64:
        return replace(value, path=_replace(value.path, table))
    if isinstance(value, msgspec.Struct):
        return replace(
            value,
            **{entry.name: _walk(getattr(value, entry.name), table) for entry in msgspec.structs.fields(type(value))},
        )
    return value
