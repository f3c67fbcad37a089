"""Where the tasks of a group go: all of them at once, or none.

Decided here and only here: what a task asks of a pool, what is refused at submission because it could never run,
and how it is said what is missing. Everything is pure. How nodes are found is decided in ``fitting``, who comes first
in ``queueing``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from casstore.errors import SpecError

from .capacity import Cluster, Kind, Layout, Vector
from .fitting import Shape, fit, stuck
from .pools import Node, Platform, Pool, Resources, describe
from .spec import GroupSpec, TaskSpec, WorkflowSpec
from .status import Priority
from .units import format_quantity

__all__ = [
    "Pending",
    "Placement",
    "Shortage",
    "TaskRequest",
    "amount_text",
    "group_requests",
    "place",
    "task_request",
    "validate_fit",
]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What one task asks. It goes to one of ``platforms``, the earlier the better.

    ``required`` and ``preferred`` are (topology key, group) pairs: requests with an equal pair share a value
    of the key.
    """

    task: str
    amount: Resources
    platforms: tuple[str, ...]
    nodes_excluded: frozenset[str] = frozenset()
    required: tuple[tuple[str, str], ...] = ()
    preferred: tuple[tuple[str, str], ...] = ()

    def kind(self, layout: Layout, pool: str) -> Kind | None:
        """What it asks of a pool's nodes; None when no node at all has a resource of this name."""
        return layout.kind(pool, self.amount, self.platforms, self.nodes_excluded, self.required, self.preferred)


@dataclass(frozen=True, slots=True)
class Placement:
    """A node for every task, by task name."""

    nodes: Mapping[str, Node]


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why one node can't take one task: ``missing`` more of ``resource`` is needed (None: excluded)."""

    node: str
    resource: str | None
    missing: float
    reason: str


@dataclass(frozen=True, slots=True)
class Pending:
    """No placement now. ``reason`` is one line for people; ``task`` is the first that found no node."""

    reason: str
    task: str
    platforms: tuple[str, ...]
    shortages: tuple[Shortage, ...] = ()


def task_request(spec: WorkflowSpec, task: TaskSpec, pool: Pool) -> TaskRequest:
    """What a task asks of a pool, with the platform's defaults filled in.

    A task that names no platform goes to the pool's default platform, or to another one whose nodes are large
    enough when those of the default are not. Raises SpecError when the pool has no such platform.
    """
    wanted = spec.resource_of(task)
    where = f"workflow.resources.{task.resource}"
    first = wanted.platform or pool.default_platform
    if first is None:
        raise SpecError(
            f"{where}: task '{task.name}' does not have a platform, and pool '{pool.name}' has no default",
            hint=f"add 'platform:' with one of {', '.join(pool.platforms)}",
        )
    if first not in pool.platforms:
        raise SpecError(
            f"{where}.platform: platform '{first}' does not exist in pool '{pool.name}'",
            hint=_declare(spec, pool),
        )
    defaults = pool.platforms[first].defaults
    amount = Resources(
        cpu=defaults.cpu if wanted.cpu is None else wanted.cpu,
        memory=defaults.memory if wanted.memory is None else wanted.memory,
        storage=defaults.storage if wanted.storage is None else wanted.storage,
        gpu=defaults.gpu if wanted.gpu is None else wanted.gpu,
        extras=dict(wanted.extras),
    )
    unknown = [item.key for item in wanted.topology if item.key not in pool.topology_keys]
    if unknown:
        raise SpecError(
            f"{where}.topology: '{unknown[0]}' is not a topology key of pool '{pool.name}'",
            hint=f"its keys are: {', '.join(pool.topology_keys) or 'none'}",
        )
    request = TaskRequest(
        task=task.name,
        amount=amount,
        platforms=(first,),
        nodes_excluded=frozenset(wanted.nodes_excluded),
        required=tuple((t.key, t.group) for t in wanted.topology if t.requirement_type == "required"),
        preferred=tuple((t.key, t.group) for t in wanted.topology if t.requirement_type == "preferred"),
    )
    if wanted.platform is None and not _fits_somewhere(request, pool):
        others = (replace(request, platforms=(name,)) for name in pool.platforms if name != first)
        fitting = [other.platforms[0] for other in others if _fits_somewhere(other, pool)]
        request = replace(request, platforms=tuple(fitting) or (first,))
    return request


def _fits_somewhere(request: TaskRequest, pool: Pool) -> bool:
    """Whether an empty node of the request's platforms could take it."""
    nodes = (node for name in request.platforms for node in pool.platforms[name].nodes)
    return any(next(_obstacles(request, node), None) is None for node in nodes)


def group_requests(
    spec: WorkflowSpec, group: GroupSpec, pool: Pool, tasks: Iterable[str] | None = None
) -> tuple[TaskRequest, ...]:
    """What the tasks of a group ask (all of them, or those named)."""
    chosen = None if tasks is None else set(tasks)
    return tuple(task_request(spec, task, pool) for task in group.tasks if chosen is None or task.name in chosen)


def place(requests: Sequence[TaskRequest], nodes: Sequence[Node]) -> Placement | Pending:
    """Nodes of one pool for all requests, or why there are none."""
    keys = (key for request in requests for key, _ in (*request.required, *request.preferred))
    layout = Layout(nodes, keys)
    cluster = Cluster(layout)
    for number, node in enumerate(nodes):
        cluster.put(number, layout.vector(node.used) or layout.zero)
    asked = [request.kind(layout, nodes[0].pool if nodes else "") for request in requests]
    if None in asked:  # no node has a resource of this name: such a task alone is looked at
        return _pending([requests[asked.index(None)]], 0, nodes)
    shape, members = Shape.of(layout, [kind for kind in asked if kind is not None])
    found = fit(cluster, shape)
    if found is not None:
        placed: dict[str, Node] = {}
        for numbers, part in zip(members, found, strict=True):
            spread = [node for node, times in part for _ in range(times)]
            placed.update({requests[number].task: nodes[node] for number, node in zip(numbers, spread, strict=True)})
        return Placement(nodes=placed)
    last, done = stuck(cluster, shape)
    order = [requests[number] for numbers in members for number in numbers]
    before = sum(count for _, count in shape.parts[:last]) + done
    state = [_with_use(layout, node, cluster.used(number)) for number, node in enumerate(nodes)]
    return _pending(order, min(before, len(order) - 1), state)


def _with_use(layout: Layout, node: Node, used: Vector) -> Node:
    return replace(node, used=layout.amount(used))


def _pending(order: Sequence[TaskRequest], number: int, nodes: Sequence[Node]) -> Pending:
    request = order[number]
    shortages = tuple(_shortages(request, nodes))
    return Pending(
        reason=_reason(request, shortages, together=number),
        task=request.task,
        platforms=request.platforms,
        shortages=shortages,
    )


def _obstacles(request: TaskRequest, node: Node) -> Iterator[tuple[str | None, float]]:
    """What keeps a request off a node, as (resource, missing); (None, 0) when it is not meant for the node at all."""
    if node.platform not in request.platforms or node.name in request.nodes_excluded:
        yield None, 0.0
        return
    free = node.free
    for name, amount in request.amount.items():
        left = free.amount(name)
        if amount > left + 1e-9:
            yield name, amount - left
        elif name == "storage" and amount and amount >= node.capacity.storage:
            # Storage of a node is never given away whole: the system on it needs some.
            yield name, amount - node.capacity.storage + 1


def _shortages(request: TaskRequest, nodes: Iterable[Node]) -> Iterator[Shortage]:
    for node in nodes:
        if node.platform not in request.platforms:
            continue
        for resource, missing in _obstacles(request, node):
            reason = "excluded by nodesExcluded" if resource is None else f"{amount_text(resource, missing)} missing"
            yield Shortage(node.name, resource, missing, reason)


def _reason(request: TaskRequest, shortages: Sequence[Shortage], *, together: int) -> str:
    platforms = " or ".join(f"'{name}'" for name in request.platforms)
    start = f"task '{request.task}' ({describe(request.amount)})"
    if together:
        start = f"{start} beside {together} other task{'s' if together > 1 else ''} of its group"
    if not shortages:
        if request.required:
            return f"{start}: no arrangement on platform {platforms} satisfies its topology"
        return f"{start}: platform {platforms} has no nodes, or no arrangement was found"
    counted = [shortage for shortage in shortages if shortage.resource is not None]
    if not counted:
        return f"{start}: every node of platform {platforms} is excluded"
    nodes = {shortage.node for shortage in counted}
    # The node that comes closest: it lacks the fewest kinds of resource, and the least of them.
    best = min(
        nodes,
        key=lambda name: (
            sum(shortage.node == name for shortage in counted),
            max(_share(shortage, request) for shortage in counted if shortage.node == name),
            name,
        ),
    )
    lacks = ", ".join(
        amount_text(shortage.resource or "", shortage.missing) for shortage in counted if shortage.node == best
    )
    many = f" (the closest of {len(nodes)})" if len(nodes) > 1 else ""
    return f"{start}: platform {platforms} has no node free; '{best}'{many} lacks {lacks}"


def _share(shortage: Shortage, request: TaskRequest) -> float:
    asked = request.amount.amount(shortage.resource or "")
    return shortage.missing / asked if asked else 0.0


def amount_text(resource: str, value: float) -> str:
    """An amount of one resource for people."""
    return f"{resource} {format_quantity(value) if resource in {'memory', 'storage'} else f'{value:g}'}"


def validate_fit(spec: WorkflowSpec, pool: Pool, priority: Priority = Priority.NORMAL) -> tuple[TaskRequest, ...]:
    """Check at submission that every task, and every group as a whole, fits the pool when it is empty.

    Returns the requests of all tasks. Raises SpecError: the message says which task and why, the hint holds a
    table of nodes with a reason each.
    """
    requests: list[TaskRequest] = []
    for group in spec.groups:
        members = group_requests(spec, group, pool)
        requests.extend(members)
        for request, task in zip(members, group.tasks, strict=True):
            _check_rights(task, pool, [pool.platforms[name] for name in request.platforms])
            if isinstance(found := place([request], pool.nodes), Pending):
                raise SpecError(
                    f"workflow.resources.{task.resource}: {_too_high(found)}", hint=_table(found, request, pool)
                )
        if len(members) > 1 and isinstance(found := place(members, pool.nodes), Pending):
            raise SpecError(
                f"group '{group.name}' can never be placed as a whole: {found.reason}",
                hint=f"a group runs at once or not at all; {_larger(pool, found.platforms[0])}",
            )
        gpus = sum(request.amount.gpu for request in members)
        if pool.gpu_guarantee is not None and priority is not Priority.LOW and gpus > pool.gpu_guarantee:
            raise SpecError(
                f"group '{group.name}' asks for {gpus} GPUs, more than the {pool.gpu_guarantee} guaranteed to pool "
                f"'{pool.name}'",
                hint="submit it with --priority LOW",
            )
    return tuple(requests)


def _check_rights(task: TaskSpec, pool: Pool, platforms: Sequence[Platform]) -> None:
    """What a task asks of the platform besides resources; of the first platform when several are possible."""
    platform = platforms[0]
    if task.privileged and not platform.privileged_allowed:
        raise SpecError(
            f"task '{task.name}': platform '{platform.name}' does not allow privileged tasks",
            hint=_allowing(pool, platform, "privileged_allowed: true"),
        )
    if task.host_network and not platform.host_network_allowed:
        raise SpecError(
            f"task '{task.name}': platform '{platform.name}' does not allow the host's network",
            hint=_allowing(pool, platform, "host_network_allowed: true"),
        )
    for mount in task.volume_mounts:
        source = mount.split(":")[0]
        if source not in platform.mounts:
            raise SpecError(
                f"task '{task.name}': volume mount '{source}' is not allowed on platform '{platform.name}'",
                hint=f"allowed are: {', '.join(sorted(platform.mounts)) or 'none'}; "
                + _allowing(pool, platform, f"allowed_mounts: [{source}]"),
            )


def _allowing(pool: Pool, platform: Platform, setting: str) -> str:
    where = f"casstore.pools.{pool.name}.platforms.{platform.name}"
    return f"whoever runs the server may allow it in config.yaml, below {where}: {setting}"


def _too_high(found: Pending) -> str:
    counted = [shortage for shortage in found.shortages if shortage.resource is not None]
    names = list(dict.fromkeys(shortage.resource for shortage in counted))
    if names:
        return f"value too high for {', '.join(str(name) for name in names)}: {found.reason}"
    return found.reason


def _table(found: Pending, request: TaskRequest, pool: Pool) -> str:
    reasons: dict[str, list[str]] = {}
    for shortage in found.shortages:
        reasons.setdefault(shortage.node, []).append(shortage.reason)
    rows = [
        (node.name, node.platform, describe(node.capacity), "; ".join(reasons[node.name]))
        for node in pool.nodes
        if node.name in reasons
    ][:20]
    header = ("node", "platform", "capacity", "reason")
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in (header, *rows)
    ]
    return "\n".join(["", *lines, _larger(pool, request.platforms[0])])


def _declare(spec: WorkflowSpec, pool: Pool) -> str:
    """One command that declares every platform that the workflow names and the pool has not, with its GPUs."""
    known = ", ".join(pool.platforms) or "none"
    missing: dict[str, int] = {}
    for group in spec.groups:
        together: dict[str, int] = {}
        for task in group.tasks:
            wanted = spec.resource_of(task)
            if wanted.platform is not None and wanted.platform not in pool.platforms:
                together[wanted.platform] = together.get(wanted.platform, 0) + (wanted.gpu or 0)
        for name, gpus in together.items():
            missing[name] = max(missing.get(name, 0), gpus)
    options = " ".join(
        f"--platform {name}:gpu={gpus}" if gpus else f"--platform {name}" for name, gpus in missing.items()
    )
    return (
        f"platforms of the pool: {known}; a platform is a label that you declare, here for a dry run on this machine: "
        f"osmo pool declare {pool.name} {options}"
    )


def _larger(pool: Pool, platform: str) -> str:
    return (
        "ask for less, or for a dry run declare a larger platform: "
        f"osmo pool declare {pool.name} --platform {platform} --cpu N --memory N --gpu N"
    )
