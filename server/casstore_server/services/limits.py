"""What the server's configs allow a workflow to ask for.

Decided here and only here: which limits of ``WORKFLOW`` are checked of a submission, how checks of resources
(``RESOURCE_VALIDATION``) are carried out, and what their operands may name. A check that names something which a task
or a node does not have says nothing, as with OSMO.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from casstore.errors import ConflictError, SpecError, UsageError
from casstore_orchestrator.pools import Node, Platform, Pool, Resources
from casstore_orchestrator.spec import ResourceSpec, TaskSpec, WorkflowSpec
from casstore_orchestrator.units import parse_quantity
from casstore_server.config import ServerConfig
from casstore_server.configs.shapes import Assertion
from casstore_server.db import queries
from casstore_server.services.context import Services

__all__ = ["check_limits"]

_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "GT": operator.gt,
    "GE": operator.ge,
    "LT": operator.lt,
    "LE": operator.le,
    "EQ": operator.eq,
}
_TOKEN: Final = re.compile(r"\{\{\s*([A-Za-z0-9_]{1,64})\s*\}\}")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_UNITS: Final = {"B": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def check_limits(services: Services, config: ServerConfig, user: str, spec: WorkflowSpec, pool: Pool) -> None:
    """Raise ``SpecError`` for a workflow that no config allows, ``ConflictError`` when its user has too many."""
    limits, tasks = config.workflow, spec.tasks
    longest = limits.workflow_info.max_name_length
    if len(spec.name) > longest:
        raise SpecError(f"The name {spec.name} is too long: at most {longest} characters are allowed here")
    most = limits.max_num_tasks
    if most is not None and len(tasks) > most:
        raise SpecError(f"The workflow has {len(tasks)} tasks: at most {most} are allowed here")
    own = limits.user_workflow_limits
    if own.max_num_workflows is not None or own.max_num_tasks is not None:
        with services.database.reading() as connection:
            workflows, running = queries.unfinished_of(connection, user)
        _below(own.max_num_workflows, workflows + 1, user, "workflows")
        _below(own.max_num_tasks, running + len(tasks), user, "tasks")
    for task in tasks:
        _check_task(config, spec, pool, task)


def _below(most: int | None, count: int, user: str, what: str) -> None:
    if most is not None and count > most:
        raise ConflictError(
            f"{user} would have {count} {what} that are not finished: at most {most} are allowed here",
            hint="Wait for one to end, or cancel one.",
        )


def _check_task(config: ServerConfig, spec: WorkflowSpec, pool: Pool, task: TaskSpec) -> None:
    asked = spec.resource_of(task)
    named = pool.platforms.get(asked.platform or pool.default_platform or "")
    platforms = list(pool.platforms.values()) if named is None else [named]
    problems: list[str] = []
    for platform in platforms:
        checks = config.assertions.get((pool.name, platform.name), ())
        problem = _problem(checks, task, _wanted(asked, platform), platform.nodes)
        if problem is None:
            return
        problems.append(problem)
    if problems:
        raise SpecError(problems[0], hint=f"What pool {pool.name} has: osmo resource list --pool {pool.name}")


def _problem(
    checks: Sequence[Assertion], task: TaskSpec, wanted: Mapping[str, str], nodes: Sequence[Node]
) -> str | None:
    """What is wrong on every node; None when there is one on which nothing is."""
    found: str | None = None
    places = [_tokens("K8", node.capacity) for node in nodes] or [{}]
    for tokens in ({**wanted, **place} for place in places):
        failed = next((check for check in checks if not _holds(check, tokens)), None)
        if failed is None:
            return None
        found = f"task {task.name}: {_filled(failed.assert_message, tokens) or failed.assert_message}"
    return found


def _holds(check: Assertion, tokens: Mapping[str, str]) -> bool:
    left, right = _value(check.left_operand, tokens), _value(check.right_operand, tokens)
    if left is None or right is None:
        return True
    if isinstance(left, str) or isinstance(right, str):
        left, right = str(left), str(right)
    return _COMPARE[check.operator](left, right)


def _value(operand: str, tokens: Mapping[str, str]) -> float | str | None:
    """A number (bytes of an amount with a unit), or a text; None when it names what is not there."""
    text = _filled(operand, tokens)
    if text is None:
        return None
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return float(parse_quantity(text, what="operand"))
    except UsageError:
        return text


def _filled(text: str, tokens: Mapping[str, str]) -> str | None:
    missing = [name for name in _TOKEN.findall(text) if name not in tokens]
    return None if missing else _TOKEN.sub(lambda match: tokens[match[1]], text).strip()


def _wanted(asked: ResourceSpec, platform: Platform) -> dict[str, str]:
    base = platform.defaults
    return _tokens(
        "USER",
        Resources(
            cpu=base.cpu if asked.cpu is None else asked.cpu,
            memory=base.memory if asked.memory is None else asked.memory,
            storage=base.storage if asked.storage is None else asked.storage,
            gpu=base.gpu if asked.gpu is None else asked.gpu,
        ),
    )


def _exact(size: int) -> str:
    """An amount in the largest unit that it is a whole number of."""
    for unit, factor in reversed(_UNITS.items()):
        if size and size % factor == 0:
            return f"{size // factor}{unit if unit != 'B' else ''}"
    return "0"


def _tokens(prefix: str, amount: Resources) -> dict[str, str]:
    found = {f"{prefix}_CPU": f"{amount.cpu:g}", f"{prefix}_GPU": str(amount.gpu)}
    for name, size in (("MEMORY", amount.memory), ("STORAGE", amount.storage)):
        found[f"{prefix}_{name}"] = _exact(size)
        found |= {f"{prefix}_{name}_{unit}": f"{size / factor:.15g}" for unit, factor in _UNITS.items()}
    return found
