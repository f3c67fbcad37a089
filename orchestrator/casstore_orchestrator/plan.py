"""The order in which groups run.

Decided here and only here: groups are the nodes of the graph, and only ``task:`` inputs are its edges (an
output and an input that name the same dataset are none). The order of declaration does not matter. Also here:
what is left of a workflow when it is restarted.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from msgspec.structs import replace

from casstore.errors import SpecError, UsageError

from .spec import GroupSpec, TaskInput, WorkflowSpec
from .typed import nearest

__all__ = ["Plan", "PlanNode", "make_plan", "restart_spec"]


@dataclass(frozen=True, slots=True)
class PlanNode:
    """The groups directly before and after one, in topological order."""

    upstream: tuple[str, ...]
    downstream: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The graph. ``groups`` iterates in topological order, which keeps the order of the file where it is
    free.

    ``external`` holds the ``<workflow id>:<task>`` references, which are no edges.
    """

    groups: Mapping[str, PlanNode]
    external: tuple[str, ...]


def make_plan(spec: WorkflowSpec) -> Plan:
    """The graph of a workflow. Raises SpecError for an unknown task, or for groups that wait for each other."""
    home = {task.name: group.name for group in spec.groups for task in group.tasks}
    upstream: dict[str, list[str]] = {group.name: [] for group in spec.groups}
    external: list[str] = []
    for group in spec.groups:
        for task in group.tasks:
            for index, item in enumerate(task.inputs):
                if not isinstance(item, TaskInput):
                    continue
                if item.external:
                    external.append(item.task)
                    continue
                where = f"task '{task.name}', inputs[{index}]"
                if item.task not in home:
                    raise SpecError(f"{where}: task input {item.task} does not exist", hint=nearest(item.task, home))
                source = home[item.task]
                if source == group.name:
                    raise SpecError(
                        f"{where}: '{item.task}' is in the same group '{group.name}'",
                        hint="tasks of a group run at the same time: move one of them to another group",
                    )
                if source not in upstream[group.name]:
                    upstream[group.name].append(source)
    order = _order(upstream)
    rank = {name: index for index, name in enumerate(order)}
    nodes = {
        name: PlanNode(
            upstream=tuple(sorted(upstream[name], key=rank.__getitem__)),
            downstream=tuple(other for other in order if name in upstream[other]),
        )
        for name in order
    }
    return Plan(groups=MappingProxyType(nodes), external=tuple(dict.fromkeys(external)))


def _order(upstream: Mapping[str, list[str]]) -> list[str]:
    downstream: dict[str, list[str]] = {name: [] for name in upstream}
    for name, before in upstream.items():
        for other in before:
            downstream[other].append(name)
    position = {name: index for index, name in enumerate(upstream)}
    names = list(upstream)
    waiting = {name: len(before) for name, before in upstream.items()}
    free = [position[name] for name, count in waiting.items() if count == 0]  # sorted, so a heap already
    order: list[str] = []
    while free:
        name = names[heapq.heappop(free)]
        order.append(name)
        for other in downstream[name]:
            waiting[other] -= 1
            if waiting[other] == 0:
                heapq.heappush(free, position[other])
    if len(order) < len(upstream):
        raise SpecError(
            f"groups wait for each other: {' -> '.join(_cycle(upstream, set(order)))}",
            hint="remove one of these 'task:' inputs",
        )
    return order


def _cycle(upstream: Mapping[str, list[str]], done: set[str]) -> list[str]:
    """One chain of groups, each needing the next, that ends where it began."""
    name = next(group for group in upstream if group not in done)
    seen: list[str] = []
    while name not in seen:
        seen.append(name)
        name = next(before for before in upstream[name] if before not in done)
    return [*seen[seen.index(name) :], name]


def restart_spec(
    spec: WorkflowSpec, workflow_id: str, completed: frozenset[str], ended: frozenset[str] = frozenset()
) -> WorkflowSpec:
    """The rest of a workflow: without its ``completed`` groups, whose tasks become ``<workflow_id>:<task>``.

    ``ended``: tasks of these that ended with their lead; what read them found nothing, and does so again.

    Raises UsageError when nothing is left.
    """
    gone = {task.name for group in spec.groups if group.name in completed for task in group.tasks}
    groups = tuple(_redirected(group, workflow_id, gone, ended) for group in spec.groups if group.name not in completed)
    if not groups:
        raise UsageError(f"workflow {workflow_id} has no group to run again")
    return replace(spec, groups=groups)


def _redirected(group: GroupSpec, workflow_id: str, gone: set[str], ended: frozenset[str]) -> GroupSpec:
    tasks = []
    for task in group.tasks:
        inputs = tuple(
            replace(item, task=f"{workflow_id}:{item.task}", optional=item.task in ended)
            if isinstance(item, TaskInput) and item.task in gone
            else item
            for item in task.inputs
        )
        tasks.append(replace(task, inputs=inputs))
    return replace(group, tasks=tuple(tasks))
