"""Pools, platforms and nodes, as the operator declares them.

Decided here and only here: what may be said about a pool in the configuration, and what is assumed where
nothing is said. A platform is a label with capacities: ``ovx-a40`` and ``agx-orin-jp6`` may be two parts of
one laptop for a dry run, so nothing is checked against the real machine; what is not declared is the
machine's own size.

The mapping (``casstore.pools`` in the configuration)::

    robots:
      description: dry run
      default_platform: ovx-a40
      platforms:
        ovx-a40: {gpu: 1, nodes: 2}
        agx-orin-jp6: {cpu: 4, memory: 8Gi, nodes: [orin-left, orin-right]}

A node that is named in several pools is one node, which these pools share; numbered nodes are each pool's own.
"""

from __future__ import annotations

import os
import platform as host_platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from casstore.errors import UsageError

from .typed import nearest
from .units import format_quantity, parse_duration, parse_quantity

__all__ = [
    "DEFAULT_POOL",
    "EXECUTORS",
    "Machine",
    "Node",
    "Platform",
    "Pool",
    "PoolStatus",
    "Resources",
    "default_pools",
    "describe",
    "find_pool",
    "parse_pools",
    "this_machine",
]

DEFAULT_POOL: Final = "default"
EXECUTORS: Final = ("process", "container", "podman", "docker")
"""How tasks of a pool are run; ``container`` is the first engine that this machine has."""
_DAYS_60: Final = 60 * 86400.0
START_TIMEOUT: Final = 1800.0
"""Seconds that a placed task may take until its own work begins: time to fetch a large image."""
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_MAX_NODES: Final = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of everything that is counted: cores, bytes, bytes, devices, and what else the operator
    declared.
    """

    cpu: float = 0.0
    memory: int = 0
    storage: int = 0
    gpu: int = 0
    extras: Mapping[str, int] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, float]]:
        """Every counted resource with its amount."""
        yield "cpu", self.cpu
        yield "memory", self.memory
        yield "storage", self.storage
        yield "gpu", self.gpu
        yield from sorted(self.extras.items())

    def amount(self, name: str) -> float:
        """How much of one resource; 0 when it was never declared."""
        return dict(self.items()).get(name, 0)

    def __add__(self, other: Resources) -> Resources:
        return self._combine(other, 1)

    def __sub__(self, other: Resources) -> Resources:
        return self._combine(other, -1)

    def _combine(self, other: Resources, sign: int) -> Resources:
        names = {*self.extras, *other.extras}
        return Resources(
            # Cores may be fractions: rounding keeps a freed node exactly as empty as it was before.
            cpu=round(self.cpu + sign * other.cpu, 6),
            memory=self.memory + sign * other.memory,
            storage=self.storage + sign * other.storage,
            gpu=self.gpu + sign * other.gpu,
            extras={name: self.extras.get(name, 0) + sign * other.extras.get(name, 0) for name in sorted(names)},
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """The size of a machine: what a platform has when its declaration says nothing."""

    name: str
    capacity: Resources


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a platform. ``topology`` maps a pool's topology keys to this node's values.

    A pool may declare a shared node smaller than another one does: it then uses the node only up to that size.
    """

    name: str
    pool: str
    platform: str
    capacity: Resources
    used: Resources = Resources()
    topology: Mapping[str, str] = field(default_factory=dict)
    numbered: bool = False

    @property
    def key(self) -> str:
        """What tells it from all other nodes of all pools."""
        return f"{self.pool}/{self.name}" if self.numbered else self.name

    @property
    def free(self) -> Resources:
        """What is left; negative amounts when the capacity was lowered below what is in use."""
        return self.capacity - self.used

    def taking(self, amount: Resources) -> Node:
        """The same node with ``amount`` more in use."""
        return replace(self, used=self.used + amount)


class PoolStatus(StrEnum):
    """ONLINE runs workflows, OFFLINE queues them, MAINTENANCE refuses new ones."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
    MAINTENANCE = "MAINTENANCE"


@dataclass(frozen=True, slots=True)
class Platform:
    """A kind of node. ``defaults`` is what a task gets of a resource that its specification leaves out."""

    name: str
    nodes: tuple[Node, ...]
    description: str = ""
    host_network_allowed: bool = False
    privileged_allowed: bool = False
    allowed_mounts: tuple[str, ...] = ()
    default_mounts: tuple[str, ...] = ()
    defaults: Resources = Resources(cpu=1, memory=1 << 30, storage=1 << 30, gpu=0)

    @property
    def mounts(self) -> frozenset[str]:
        """Host paths that a task may mount."""
        return frozenset(self.allowed_mounts) | frozenset(self.default_mounts)


@dataclass(frozen=True, slots=True)
class Pool:
    """What workflows are submitted to. Timeouts in seconds.

    ``gpu_guarantee`` is how many GPUs HIGH and NORMAL workflows may use, and how many the pool gets back from pools
    that borrowed them (None: no quota). ``gpu_maximum`` is how many all its workflows may use together (None: no
    limit). ``gpu_weight`` is its share of what can be borrowed, beside the weights of the pools that share its nodes.
    ``executor`` is one of ``EXECUTORS``; ``egress``: whether tasks reach what is beyond their group.
    """

    name: str
    platforms: Mapping[str, Platform]
    description: str = ""
    status: PoolStatus = PoolStatus.ONLINE
    backend: str = "local"
    executor: str = "process"
    egress: bool = True
    default_platform: str | None = None
    default_exec_timeout: float = _DAYS_60
    max_exec_timeout: float = _DAYS_60
    default_queue_timeout: float = _DAYS_60
    max_queue_timeout: float = _DAYS_60
    start_timeout: float = START_TIMEOUT
    default_exit_actions: Mapping[str, str] = field(default_factory=dict)
    max_retry_per_task: int = 3
    topology_keys: tuple[str, ...] = ()
    gpu_guarantee: int | None = None
    gpu_maximum: int | None = None
    gpu_weight: int = 1

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node of every platform, as declared (nothing in use)."""
        return tuple(node for platform in self.platforms.values() for node in platform.nodes)

    def exec_timeout(self, asked: float | None) -> float:
        """The limit on a workflow's run time: what was asked, never more than the pool's maximum."""
        return min(self.default_exec_timeout if asked is None else asked, self.max_exec_timeout)

    def queue_timeout(self, asked: float | None) -> float:
        """The limit on a workflow's waiting time: what was asked, never more than the pool's maximum."""
        return min(self.default_queue_timeout if asked is None else asked, self.max_queue_timeout)


def this_machine(storage_path: str | os.PathLike[str] = "/") -> Machine:
    """The size of this machine, with the disk that holds ``storage_path``. GPUs are counted by their device
    files.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    folder = Path(storage_path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    gpus = sum(1 for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())
    name = re.sub(r"[^A-Za-z0-9.-]", "-", host_platform.node().lower()).strip(".-")[:63] or "localhost"
    capacity = Resources(cpu=cores, memory=memory, storage=shutil.disk_usage(folder).total, gpu=gpus)
    return Machine(name=name, capacity=capacity)


def default_pools(machine: Machine) -> dict[str, Pool]:
    """What there is when nothing is declared: pool, platform ``default`` with one node, this machine."""
    return parse_pools({}, machine)


def parse_pools(declared: Mapping[str, Any] | None, machine: Machine) -> dict[str, Pool]:
    """The pools in the configuration's mapping, by name; pool ``default`` is added when it isn't declared.

    Raises UsageError with the path of what is wrong. Node names are unique within a pool.
    """
    pools: dict[str, Pool] = {}
    entries = _mapping(declared, "pools")
    if DEFAULT_POOL not in entries:
        entries = {DEFAULT_POOL: {"description": "this machine"}, **entries}
    for name, raw in entries.items():
        pools[name] = _pool(_name(name, "pools"), _mapping(raw, f"pools.{name}"), machine)
    return pools


def find_pool(pools: Mapping[str, Pool], name: str, *, submitting: bool = False) -> Pool:
    """The pool of this name. Raises UsageError when there is none, or when it takes no submissions."""
    if name not in pools:
        raise UsageError(
            f"pool '{name}' does not exist",
            hint=f"there are: {', '.join(pools)}; declare one with: osmo pool declare {name} --platform NAME",
        )
    if submitting and pools[name].status is PoolStatus.MAINTENANCE:
        raise UsageError(f"pool '{name}' is in maintenance and takes no workflows now")
    return pools[name]


# On a machine that nobody divided up, tasks that ask for nothing share all of it without limits, so that a group of
# three runs on two cores. Declared platforms have OSMO's defaults.
_UNDECLARED: Final = {"defaults": {"cpu": 0, "memory": 0, "storage": 0, "gpu": 0}}

_POOL_KEYS: Final = (
    "description",
    "status",
    "backend",
    "executor",
    "egress",
    "default_platform",
    "default_exec_timeout",
    "max_exec_timeout",
    "default_queue_timeout",
    "max_queue_timeout",
    "start_timeout",
    "default_exit_actions",
    "max_retry_per_task",
    "topology_keys",
    "gpu_guarantee",
    "gpu_maximum",
    "gpu_weight",
    "platforms",
)
_PLATFORM_KEYS: Final = (
    "description",
    "cpu",
    "memory",
    "storage",
    "gpu",
    "resources",
    "nodes",
    "topology",
    "host_network_allowed",
    "privileged_allowed",
    "allowed_mounts",
    "default_mounts",
    "defaults",
)


def _pool(name: str, raw: dict[str, Any], machine: Machine) -> Pool:
    where = f"pools.{name}"
    _known(raw, _POOL_KEYS, where)
    declared = _mapping(raw.get("platforms"), f"{where}.platforms") or {
        "default": _UNDECLARED | {"nodes": [machine.name]}
    }
    platforms: dict[str, Platform] = {}
    taken: set[str] = set()
    for key, body in declared.items():
        label = _name(key, f"{where}.platforms")
        platform = _platform(name, label, _mapping(body, f"{where}.platforms.{label}"), machine)
        for node in platform.nodes:
            if node.name in taken:
                msg = f"{where}.platforms.{label}.nodes: node '{node.name}' is declared twice in this pool"
                raise UsageError(msg)
            taken.add(node.name)
        platforms[label] = platform
    default = raw.get("default_platform")
    if default is None:
        default = "default" if "default" in platforms else next(iter(platforms)) if len(platforms) == 1 else None
    elif default not in platforms:
        msg = f"{where}.default_platform: there is no platform {default!r} in this pool"
        raise UsageError(msg, hint=f"the platforms are: {', '.join(platforms)}")
    timeouts = {
        key: parse_duration(raw[key], what=f"{where}.{key}")
        for key in _POOL_KEYS
        if key.endswith("_timeout") and raw.get(key) is not None
    }
    return Pool(
        name=name,
        platforms=platforms,
        description=_typed(raw, "description", str, "", where),
        status=_status(raw.get("status"), where),
        backend=_typed(raw, "backend", str, "local", where),
        executor=_executor(raw, where),
        egress=_typed(raw, "egress", bool, True, where),
        default_platform=default,
        default_exit_actions={
            str(key): str(value)
            for key, value in _mapping(raw.get("default_exit_actions"), f"{where}.default_exit_actions").items()
        },
        max_retry_per_task=_count(raw.get("max_retry_per_task", 3), f"{where}.max_retry_per_task"),
        topology_keys=_strings(raw.get("topology_keys"), f"{where}.topology_keys"),
        **(_quota(raw, where) | timeouts),
    )


def _executor(raw: Mapping[str, Any], where: str) -> str:
    name = _typed(raw, "executor", str, EXECUTORS[0], where)
    if name not in EXECUTORS:
        msg = f"{where}.executor: there is no executor {name!r}"
        raise UsageError(msg, hint=f"the executors are: {', '.join(EXECUTORS)}")
    return name


def _quota(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = {
        key: _count(raw[key], f"{where}.{key}")
        for key in ("gpu_guarantee", "gpu_maximum", "gpu_weight")
        if raw.get(key) is not None
    }
    if found.get("gpu_weight") == 0:
        msg = f"{where}.gpu_weight: 0 is not a weight"
        raise UsageError(msg, hint="a whole number of 1 or more; set gpu_maximum to gpu_guarantee to borrow nothing")
    if found.get("gpu_maximum", found.get("gpu_guarantee", 0)) < found.get("gpu_guarantee", 0):
        msg = f"{where}.gpu_maximum: {found['gpu_maximum']} is less than the guarantee of {found['gpu_guarantee']}"
        raise UsageError(msg)
    return found


def _platform(pool: str, name: str, raw: dict[str, Any], machine: Machine) -> Platform:
    where = f"pools.{pool}.platforms.{name}"
    _known(raw, _PLATFORM_KEYS, where)
    capacity = _resources(raw, machine.capacity, where)
    topology = {str(key): str(value) for key, value in _mapping(raw.get("topology"), f"{where}.topology").items()}
    numbered = not isinstance(raw.get("nodes", 1), list)
    nodes = tuple(
        Node(name=node, pool=pool, platform=name, capacity=capacity, topology=topology, numbered=numbered)
        for node in _node_names(raw.get("nodes", 1), name, f"{where}.nodes")
    )
    base = Resources(cpu=1, memory=1 << 30, storage=1 << 30, gpu=0)
    defaults = _mapping(raw.get("defaults"), f"{where}.defaults")
    _known(defaults, ("cpu", "memory", "storage", "gpu"), f"{where}.defaults")
    return Platform(
        name=name,
        nodes=nodes,
        description=_typed(raw, "description", str, "", where),
        host_network_allowed=_typed(raw, "host_network_allowed", bool, False, where),
        privileged_allowed=_typed(raw, "privileged_allowed", bool, False, where),
        allowed_mounts=_strings(raw.get("allowed_mounts"), f"{where}.allowed_mounts"),
        default_mounts=_strings(raw.get("default_mounts"), f"{where}.default_mounts"),
        defaults=_resources(defaults, base, f"{where}.defaults"),
    )


def _resources(raw: Mapping[str, Any], base: Resources, where: str) -> Resources:
    cpu = raw.get("cpu", base.cpu)
    if isinstance(cpu, bool) or not isinstance(cpu, int | float) or not 0 <= cpu <= 1e6:
        msg = f"{where}.cpu: {cpu!r} is not a number of cores"
        raise UsageError(msg)
    extras = _mapping(raw.get("resources"), f"{where}.resources")
    return Resources(
        cpu=float(cpu),
        memory=parse_quantity(raw.get("memory", base.memory), what=f"{where}.memory"),
        storage=parse_quantity(raw.get("storage", base.storage), what=f"{where}.storage"),
        gpu=_count(raw.get("gpu", base.gpu), f"{where}.gpu"),
        extras={str(key): _count(value, f"{where}.resources.{key}") for key, value in extras.items()},
    )


def _node_names(raw: object, platform: str, where: str) -> Iterable[str]:
    if isinstance(raw, list):
        return tuple(_name(name, where) for name in raw)
    count = _count(raw, where)
    if count > _MAX_NODES:
        msg = f"{where}: {count} nodes are more than the {_MAX_NODES} that a platform may have"
        raise UsageError(msg)
    return tuple(f"{platform}-{number}" for number in range(1, count + 1))


def _mapping(raw: object, where: str) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        msg = f"{where}: expected a mapping, found {type(raw).__name__}"
        raise UsageError(msg)
    return dict(raw)


def _known(raw: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for key in raw:
        if key not in keys:
            msg = f"{where}: unknown key {key!r}"
            raise UsageError(msg, hint=nearest(str(key), keys))


def _typed(raw: Mapping[str, Any], key: str, kind: type[T], default: T, where: str) -> T:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        msg = f"{where}.{key}: expected {kind.__name__}, found {value!r}"
        raise UsageError(msg)
    return value


def _strings(raw: object, where: str) -> tuple[str, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        msg = f"{where}: expected a list of strings"
        raise UsageError(msg)
    return tuple(raw)


def _count(raw: object, where: str) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < 1 << 62:
        msg = f"{where}: {raw!r} is not a whole number of 0 or more"
        raise UsageError(msg)
    return raw


def _status(raw: object, where: str) -> PoolStatus:
    if raw is None:
        return PoolStatus.ONLINE
    try:
        return PoolStatus(str(raw).upper())
    except ValueError:
        msg = f"{where}.status: {raw!r} is none of {', '.join(PoolStatus)}"
        raise UsageError(msg) from None


def _name(raw: object, where: str) -> str:
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        msg = f"{where}: {raw!r} is not a name"
        raise UsageError(msg, hint="letters, digits, '.', '_' and '-', at most 63, ending in a letter or digit")
    return raw


def describe(amount: Resources) -> str:
    """An amount in one line: ``cpu 4, memory 8Gi, gpu 1``."""
    parts = []
    for name, value in amount.items():
        if value:
            parts.append(f"{name} {format_quantity(value) if name in {'memory', 'storage'} else f'{value:g}'}")
    return ", ".join(parts) or "nothing"
