"""Answers about pools, nodes, buckets, profiles and the server itself.

Decided here and only here: how amounts are written (memory and storage in whole KiB, as Kubernetes does), what counts
as in use, and which pool and bucket a user gets without asking for one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from casstore import __version__
from casstore.errors import NotFoundError, UsageError
from casstore.wire.cluster import (
    BackendReply,
    BackendsReply,
    BucketReply,
    BucketsReply,
    NodeReply,
    NodeSet,
    PlatformReply,
    PoolReply,
    PoolsReply,
    Profile,
    ProfileChange,
    ProfileReply,
    QuotaReply,
    ResourcesReply,
    ResourceUsage,
    ServerReply,
    TasksEnded,
    VersionReply,
)
from casstore.wire.protocol import PROTOCOL_VERSION, to_iso
from casstore_orchestrator.capacity import Layout
from casstore_orchestrator.pools import DEFAULT_POOL, Node, Pool, Resources
from casstore_server.db import queries
from casstore_server.services import tokens
from casstore_server.services.context import Caller, Services
from casstore_server.services.rights import within

__all__ = [
    "backends",
    "buckets",
    "change_profile",
    "default_pool",
    "end_tasks",
    "pools",
    "profile",
    "quota",
    "resources",
    "server",
    "users",
    "version",
]

_END_TASKS_S = 20.0
"""How long the end of tasks is waited for; whoever asked waits a little longer."""


def version() -> VersionReply:
    """The version of the wire."""
    major, minor, revision = PROTOCOL_VERSION.split(".")
    return VersionReply(major=major, minor=minor, revision=revision, hash=f"casstore-{__version__}")


def server(services: Services) -> ServerReply:
    """The server itself."""
    with services.database.reading() as connection:
        counts = queries.unfinished_counts(connection)
        tasks = queries.placed_tasks(connection)
    isolation = services.isolation
    return ServerReply(
        version=__version__,
        pid=os.getpid(),
        user=services.settings.user,
        started=to_iso(services.started) or "",
        running=counts.get("RUNNING", 0),
        pending=sum(count for status, count in counts.items() if status != "RUNNING"),
        tasks=tasks,
        executor="process",
        isolation=isolation.mode,
        network=isolation.network,
        reasons=list(isolation.reasons),
        state_dir=str(services.settings.state_dir),
        url=services.settings.url,
        drain=services.settings.drain,
    )


def end_tasks(services: Services) -> TasksEnded:
    """End everything that runs here, before the server is stopped: it begins again with the next one."""
    return TasksEnded(left=services.scheduler.end_tasks("The server was stopped with its tasks.", _END_TASKS_S))


def default_pool(services: Services, caller: Caller) -> str | None:
    """The pool for a workflow that names none: the user's own choice, ``default``, or the only one they may use."""
    declared = within(services.config.current().pools, caller, "pool:Read")
    chosen = services.database.profile(caller.user).get("pool")
    if isinstance(chosen, str) and chosen in declared:
        return chosen
    if DEFAULT_POOL in declared:
        return DEFAULT_POOL
    return next(iter(declared)) if len(declared) == 1 else None


def profile(services: Services, caller: Caller) -> ProfileReply:
    """The user's settings and what they may use."""
    stored = services.database.profile(caller.user)
    config = services.config.current()
    return ProfileReply(
        profile=Profile(
            username=caller.user,
            email_notification=bool(stored.get("email_notification")),
            slack_notification=bool(stored.get("slack_notification")),
            bucket=stored.get("bucket") or config.default_bucket,
            pool=default_pool(services, caller),
        ),
        roles=list(caller.grants.roles),
        pools=sorted(within(config.pools, caller, "pool:Read")),
        token=tokens.current(services, caller),
    )


def change_profile(services: Services, caller: Caller, change: ProfileChange) -> None:
    """Change settings; a pool or bucket must exist."""
    config = services.config.current()
    values: dict[str, Any] = {}
    if change.pool is not None:
        _known_pool(within(config.pools, caller, "pool:Read"), change.pool)
        values["pool"] = change.pool
    if change.bucket is not None:
        there = within(config.buckets, caller, "dataset:Read")
        if change.bucket not in there:
            raise NotFoundError(f"There is no bucket {change.bucket}", hint=f"Declared: {', '.join(sorted(there))}")
        values["bucket"] = change.bucket
    if change.email_notification or change.slack_notification:
        raise UsageError("This server sends no notifications")
    if values:
        services.database.set_profile(caller.user, values)


def pools(services: Services, caller: Caller, wanted: Sequence[str]) -> PoolsReply:
    """Pools with their platforms; all when none is named."""
    declared = _chosen(services, caller, wanted)
    return PoolsReply(pools={name: _pool(pool) for name, pool in declared.items()})


def quota(services: Services, caller: Caller, wanted: Sequence[str]) -> QuotaReply:
    """GPUs in use in each pool. Pools that share nodes are one set, in which every node counts once.

    What a pool uses is what its workflows hold; what is free in it is what is free on its nodes, whoever uses the rest.
    """
    every = services.config.current().pools
    declared = _chosen(services, caller, wanted)
    held, used = _usage(services), _used_by_all(services, every)
    sets: dict[str, NodeSet] = {}
    sums = [0, 0, 0, 0, 0]
    counted: set[str] = set()
    layout = Layout(node for pool in declared.values() for node in pool.nodes)
    for name, pool in declared.items():
        usage = sum(amount.gpu for (owner, _), amount in held.items() if owner == name)
        capacity = sum(node.capacity.gpu for node in pool.nodes)
        free = sum(_free(node, used).gpu for node in pool.nodes)
        limit = capacity if pool.gpu_guarantee is None else pool.gpu_guarantee
        guaranteed = _guaranteed(services, name)
        fresh = [node for node in pool.nodes if node.key not in counted]
        counted.update(node.key for node in fresh)
        once = (sum(node.capacity.gpu for node in fresh), sum(_free(node, used).gpu for node in fresh))
        sums = [before + more for before, more in zip(sums, (guaranteed, limit, usage, *once), strict=True)]
        reply = _pool(pool)
        reply.resource_usage = _numbers(guaranteed, limit, usage, capacity, free)
        sets.setdefault(layout.family(name), NodeSet(pools=[])).pools.append(reply)
    return QuotaReply(node_sets=list(sets.values()), resource_sum=_numbers(*sums))


def resources(
    services: Services,
    caller: Caller,
    wanted_pools: Sequence[str] = (),
    platforms: Sequence[str] = (),
    *,
    node_name: str | None = None,
) -> ResourcesReply:
    """Nodes with what they have and what is in use; one node by its name. Raises ``NotFoundError``."""
    every = services.config.current().pools
    declared = _chosen(services, caller, wanted_pools)
    used = _used_by_all(services, every)
    owners = Counter(node.key for pool in every.values() for node in pool.nodes)
    found = []
    for pool in declared.values():
        for node in pool.nodes:
            if platforms and node.platform not in platforms:
                continue
            if node_name is not None and node.name != node_name:
                continue
            found.append(_node(pool, node, used, shared=owners[node.key] > 1))
    if node_name is not None and not found:
        raise NotFoundError(f"There is no node {node_name}", hint="See: osmo resource list")
    return ResourcesReply(resources=found)


def buckets(services: Services, caller: Caller, *, default_only: bool) -> BucketsReply:
    """The declared buckets, as far as the caller may read them."""
    config = services.config.current()
    there = within(config.buckets, caller, "dataset:Read")
    default = services.database.profile(caller.user).get("bucket")
    if default not in there:
        default = config.default_bucket
    found = {
        name: BucketReply(
            path=bucket.url,
            description=bucket.description,
            mode=bucket.mode,
            default_cred=bucket.credential is not None,
        )
        for name, bucket in there.items()
        if not default_only or name == default
    }
    return BucketsReply(default=default, buckets=found)


def backends(services: Services, caller: Caller) -> BackendsReply:
    """Where workflows run: here."""
    names = sorted({pool.backend for pool in _chosen(services, caller, ()).values()})
    described = f"processes on this machine ({services.isolation.mode})"
    said = services.config.current().backends
    return BackendsReply(
        backends=[
            BackendReply(name=name, description=said.get(name, {}).get("description") or described) for name in names
        ]
    )


def users(services: Services, caller: Caller) -> list[str]:
    """Everybody who has submitted a workflow that the caller may read."""
    with services.database.reading() as connection:
        return queries.users(connection, caller.grants.scope("workflow:Read"))


def _chosen(services: Services, caller: Caller, wanted: Sequence[str]) -> dict[str, Pool]:
    """The pools that are wanted, of those that the caller may see: others are not there."""
    declared = within(services.config.current().pools, caller, "pool:Read")
    for name in wanted:
        _known_pool(declared, name)
    return {name: declared[name] for name in sorted(declared) if not wanted or name in wanted}


def _known_pool(declared: Mapping[str, Pool], name: str) -> None:
    if name not in declared:
        raise NotFoundError(
            f"There is no pool {name}",
            hint=f"Declared: {', '.join(sorted(declared))}; declare one with: osmo pool declare",
        )


def _usage(services: Services) -> dict[tuple[str, str], Resources]:
    """What placed tasks ask for, by (pool, node)."""
    with services.database.reading() as connection:
        rows = queries.usage_by_node(connection)
    return {
        (row.pool, row.node): Resources(cpu=row.cpu, memory=int(row.memory), storage=int(row.storage), gpu=row.gpu)
        for row in rows
    }


def _used_by_all(services: Services, pools: Mapping[str, Pool]) -> dict[str, Resources]:
    """What placed tasks of all pools ask for, by the node's key."""
    keys = {(pool.name, node.name): node.key for pool in pools.values() for node in pool.nodes}
    used: dict[str, Resources] = {}
    for place, amount in _usage(services).items():
        key = keys.get(place, "/".join(place))
        used[key] = used.get(key, Resources()) + amount
    return used


def _free(node: Node, used: Mapping[str, Resources]) -> Resources:
    """What is left of a node for its pool, whoever uses the rest."""
    taken = used.get(node.key, Resources())
    return Resources(
        cpu=max(0.0, node.capacity.cpu - taken.cpu),
        memory=max(0, node.capacity.memory - taken.memory),
        storage=max(0, node.capacity.storage - taken.storage),
        gpu=max(0, node.capacity.gpu - taken.gpu),
    )


def _guaranteed(services: Services, pool: str) -> int:
    with services.database.reading() as connection:
        return queries.gpus_of_guaranteed(connection, pool)


def _numbers(guaranteed: int, limit: int, usage: int, capacity: int, free: int) -> ResourceUsage:
    return ResourceUsage(
        quota_used=str(guaranteed),
        quota_free=str(max(0, limit - guaranteed)),
        quota_limit=str(limit),
        total_usage=str(usage),
        total_capacity=str(capacity),
        total_free=str(free),
    )


def _pool(pool: Pool) -> PoolReply:
    return PoolReply(
        name=pool.name,
        description=pool.description,
        status=str(pool.status),
        backend=pool.backend,
        default_platform=pool.default_platform,
        platforms={
            name: PlatformReply(
                description=platform.description,
                host_network_allowed=platform.host_network_allowed,
                privileged_allowed=platform.privileged_allowed,
                allowed_mounts=list(platform.allowed_mounts),
                default_mounts=list(platform.default_mounts),
            )
            for name, platform in pool.platforms.items()
        },
    )


def _amounts(amount: Resources) -> dict[str, str]:
    found = {
        "cpu": f"{amount.cpu:g}",
        "memory": f"{amount.memory // 1024}Ki",
        "storage": f"{amount.storage // 1024}Ki",
        "gpu": str(amount.gpu),
    }
    return found | {name: str(count) for name, count in amount.extras.items()}


def _node(pool: Pool, node: Node, used: Mapping[str, Resources], *, shared: bool) -> NodeReply:
    capacity, platform = _amounts(node.capacity), pool.platforms[node.platform]
    config = {
        "host_network": platform.host_network_allowed,
        "privileged": platform.privileged_allowed,
        "allowed_mounts": list(platform.allowed_mounts),
        "default_mounts": list(platform.default_mounts),
    }
    return NodeReply(
        hostname=node.name,
        exposed_fields={"node": node.name, "pool/platform": [f"{pool.name}/{node.platform}"], **capacity},
        usage_fields=_amounts(used.get(node.key, Resources())),
        allocatable_fields=capacity,
        platform_allocatable_fields={pool.name: {node.platform: capacity}},
        platform_available_fields={pool.name: {node.platform: _amounts(_free(node, used))}},
        config_fields={pool.name: {node.platform: config}},
        label_fields=dict(node.topology),
        pool_platform_labels={pool.name: [node.platform]},
        resource_type="SHARED" if shared else "RESERVED",
        backend=pool.backend,
    )
