"""What configs in the database do: the buckets, pools, limits, checks and roles that they mean.

Decided here and only here: that what ``config.yaml`` declares is in force as it is there and configs add to it; how
OSMO's fields of pools are read as ours; which documents may name which; and that a config which can't be used (any
more) is left out of a running server while it is refused when somebody stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from casstore.errors import CasstoreError, ConflictError, UsageError
from casstore.remote.credentials import StorageCredential
from casstore.remote.urls import parse_url
from casstore_orchestrator.pools import DEFAULT_POOL, Machine, Pool, parse_pools
from casstore_orchestrator.units import parse_duration
from casstore_server.configs.masking import reveal
from casstore_server.configs.model import BucketConfig, Declared, ServerConfig
from casstore_server.configs.shapes import (
    Assertion,
    BucketDoc,
    PlatformDoc,
    PoolDoc,
    ServiceDoc,
    WorkflowDoc,
    checked,
    checked_name,
)
from casstore_server.identity.actions import Role, parse_role

__all__ = ["NONE", "Stored", "check_documents", "lay_over"]

_CHECK: Final = "RESOURCE_VALIDATION"
_TIMEOUTS: Final = ("default_exec_timeout", "max_exec_timeout", "default_queue_timeout", "max_queue_timeout")
_VARIABLES: Final = {"USER_CPU": "cpu", "USER_GPU": "gpu", "USER_MEMORY": "memory", "USER_STORAGE": "storage"}


class Stored(NamedTuple):
    """What is in the database: the configs of each type, the secrets that buckets need, and a stamp of all of it."""

    stamp: object
    docs: Mapping[str, Any]
    secrets: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Stored({self.stamp})"


NONE: Final = Stored(None, {}, {})


class _Parts:
    """Collects what can be used; what can't is a problem, or raised when ``strict``."""

    def __init__(self, *, strict: bool) -> None:
        self.problems: list[str] = []
        self._strict = strict

    def get(self, what: Callable[..., Any], *args: Any, default: Any = None) -> Any:
        try:
            return what(*args)
        except CasstoreError as error:
            if self._strict:
                raise
            self.problems.append(error.message)
            return default


def lay_over(
    file: ServerConfig, raw: Mapping[str, Any], stored: Stored, machine: Machine, *, strict: bool = False
) -> ServerConfig:
    """The configuration of ``file`` (whose pools are declared in ``raw``) with configs of the database added.

    ``strict`` raises ``UsageError`` for what can't be used.
    """
    docs = stored.docs
    if not any(docs.values()):
        return file
    parts = _Parts(strict=strict)
    service = parts.get(checked, "SERVICE", "", docs.get("SERVICE") or {}, default=ServiceDoc())
    workflow = parts.get(_workflow, docs.get("WORKFLOW") or {}, default=WorkflowDoc())
    buckets, default = _buckets(file, docs.get("DATASET") or {}, stored.secrets, parts)
    shapes = _pool_shapes(file.declared, docs.get("POOL") or {}, parts)
    pools = _pools(file, raw, shapes, workflow, docs.get("WORKFLOW") or {}, machine, parts)
    checks = {
        name: parts.get(checked, _CHECK, name, found, default=[])
        for name, found in (docs.get("RESOURCE_VALIDATION") or {}).items()
    }
    roles = {
        name: role
        for name, found in (docs.get("ROLE") or {}).items()
        if (role := parts.get(_role, name, found)) is not None
    }
    return ServerConfig(
        default_bucket=default,
        buckets=buckets,
        pools=pools,
        references=file.references,
        declared=file.declared,
        service=service,
        workflow=workflow,
        roles=roles,
        assertions=_assertions(shapes, checks, parts),
        backends=docs.get("BACKEND") or {},
        problems=tuple(parts.problems),
    )


def check_documents(docs: Mapping[str, Any]) -> None:
    """See that documents which are named by others are there, and templates are what they must be. ``UsageError``."""
    pods, groups = docs.get("POD_TEMPLATE") or {}, docs.get("GROUP_TEMPLATE") or {}
    for name, found in groups.items():
        _check_group_template(name, found)
    for name, found in pods.items():
        if not isinstance(found.get("spec", {}), Mapping):
            raise UsageError(f"POD_TEMPLATE {name}: spec must be a mapping")
    for name, found in (docs.get("BACKEND_TEST") or {}).items():
        test = checked("BACKEND_TEST", name, found)
        _named(f"BACKEND_TEST {name}", test.common_pod_template, pods, "POD_TEMPLATE")
    for name, found in (docs.get("POOL") or {}).items():
        pool = checked("POOL", name, found)
        _named(f"POOL {name}", pool.common_pod_template, pods, "POD_TEMPLATE")
        _named(f"POOL {name}", pool.common_group_templates, groups, "GROUP_TEMPLATE")
        for label, platform in pool.platforms.items():
            _named(f"POOL {name}, platform {label}", platform.override_pod_template, pods, "POD_TEMPLATE")
    for name, found in (docs.get("BACKEND") or {}).items():
        backend = checked("BACKEND", name, found)
        tests = backend.tests or []
        _named(f"BACKEND {name}", tests, docs.get("BACKEND_TEST") or {}, "BACKEND_TEST")
        if len(set(tests)) < len(tests):
            raise UsageError(f"BACKEND {name}: a test is named twice")


def _check_group_template(name: str, found: Any) -> None:
    for field in ("apiVersion", "kind"):
        if not isinstance(found.get(field), str) or not found[field]:
            raise UsageError(f"GROUP_TEMPLATE {name}: {field} is missing")
    metadata = found.get("metadata")
    if not isinstance(metadata, Mapping) or not metadata.get("name"):
        raise UsageError(f"GROUP_TEMPLATE {name}: metadata.name is missing")


def _named(where: str, names: Sequence[str], known: Mapping[str, Any], kind: str) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"{where}: there is no {kind} {name}", hint=f"There are: {', '.join(sorted(known)) or 'none'}"
            )


def _workflow(raw: Mapping[str, Any]) -> WorkflowDoc:
    found: WorkflowDoc = checked("WORKFLOW", "", raw)
    for name in (*_TIMEOUTS, "force_cleanup_delay", "task_heartbeat_frequency"):
        parse_duration(getattr(found, name), what=f"WORKFLOW: {name}")
    return found


def _role(name: str, raw: Any) -> Role:
    return parse_role(name, {key: value for key, value in raw.items() if key != "immutable"})


def _buckets(
    file: ServerConfig, raw: Mapping[str, Any], secrets: Mapping[str, str], parts: _Parts
) -> tuple[dict[str, BucketConfig], str]:
    found = dict(file.buckets)
    for name, body in (raw.get("buckets") or {}).items():
        if name in file.declared.buckets:
            parts.get(_taken, "bucket", name)
            continue
        made = parts.get(_bucket, name, reveal(body, secrets))
        if made is not None:
            found[name] = made
    chosen = file.declared.default_bucket or raw.get("default_bucket") or file.default_bucket
    if chosen not in found:
        parts.get(_no_bucket, chosen)
        chosen = file.default_bucket
    return found, chosen


def _no_bucket(name: str) -> None:
    raise UsageError(f"DATASET: default_bucket names '{name}', which is not there")


def _bucket(name: str, raw: Any) -> BucketConfig:
    doc: BucketDoc = checked("DATASET", checked_name("DATASET", name), raw)
    try:
        parse_url(doc.dataset_path)
    except UsageError as error:
        raise UsageError(f"DATASET {name}: dataset_path: {error.message}", hint=error.hint) from None
    credential = None
    if doc.default_credential is not None:
        given = msgspec.to_builtins(doc.default_credential)
        given.pop("endpoint")
        credential = StorageCredential(**(given | {"region": given["region"] or doc.region or None}))
    return BucketConfig(name, doc.dataset_path, doc.description, doc.mode, credential=credential)


def _taken(what: str, name: str) -> None:
    raise ConflictError(
        f"The {what} {name} is declared in the server's config.yaml",
        hint="Change it there, or take it out there to have it here.",
    )


def _pool_shapes(declared: Declared, raw: Mapping[str, Any], parts: _Parts) -> dict[str, PoolDoc]:
    found: dict[str, PoolDoc] = {}
    for name, body in raw.items():
        if name in declared.pools:
            parts.get(_taken, "pool", name)
            continue
        made = parts.get(_pool_shape, name, body)
        if made is not None:
            found[name] = made
    return found


def _pool_shape(name: str, body: Any) -> PoolDoc:
    found: PoolDoc = checked("POOL", checked_name("POOL", name), body)
    return found


def _one_pool(name: str, body: Any, machine: Machine) -> Pool:
    try:
        return parse_pools({name: body}, machine)[name]
    except UsageError as error:
        raise UsageError(f"POOL {name}: {error.message.removeprefix(f'pools.{name}.')}", hint=error.hint) from None


def _pools(
    file: ServerConfig,
    raw: Mapping[str, Any],
    shapes: Mapping[str, PoolDoc],
    workflow: WorkflowDoc,
    given: Mapping[str, Any],
    machine: Machine,
    parts: _Parts,
) -> Mapping[str, Pool]:
    """All pools. What ``WORKFLOW`` says of times counts where a pool says nothing."""
    limits = {name: getattr(workflow, name) for name in _TIMEOUTS if name in given}
    added = {name: limits | _as_declared(doc) for name, doc in shapes.items()}
    if not added and not limits:
        return file.pools
    base = {DEFAULT_POOL: {"description": "this machine"}} | dict(raw) if DEFAULT_POOL not in raw else dict(raw)
    every = {name: limits | dict(body or {}) for name, body in base.items()}
    pools: dict[str, Pool] = parse_pools(every, machine)
    for name, body in added.items():
        made = parts.get(_one_pool, name, body, machine)
        if made is not None:
            pools[name] = made
    return pools


def _as_declared(doc: PoolDoc) -> dict[str, Any]:
    """A pool as ``config.yaml`` would declare it."""
    plain = ("description", "status", "backend", "executor", "egress", "default_platform", "max_retry_per_task")
    found = {name: getattr(doc, name) for name in plain if getattr(doc, name) is not None}
    found |= {name: value for name in (*_TIMEOUTS, "start_timeout") if (value := getattr(doc, name))}
    if doc.enable_maintenance:
        found["status"] = "MAINTENANCE"
    gpu = doc.resources.gpu
    if gpu is not None:
        numbers = {"gpu_guarantee": gpu.guarantee, "gpu_maximum": gpu.maximum}
        found |= {name: number for name, number in numbers.items() if number >= 0} | {"gpu_weight": gpu.weight}
    keys = [key.get("key", "") if isinstance(key, Mapping) else key for key in doc.topology_keys]
    found |= {"topology_keys": keys, "default_exit_actions": doc.default_exit_actions}
    platforms = {name: _platform(one, doc.common_default_variables) for name, one in doc.platforms.items()}
    return found | ({"platforms": platforms} if platforms else {})


def _platform(doc: PlatformDoc, common: Mapping[str, Any]) -> dict[str, Any]:
    own = ("description", "host_network_allowed", "privileged_allowed", "allowed_mounts", "default_mounts", "topology")
    found = {name: getattr(doc, name) for name in own}
    found |= {
        name: value
        for name in ("cpu", "memory", "storage", "gpu", "nodes")
        if (value := getattr(doc, name)) is not None
    }
    if doc.resources:
        found["resources"] = doc.resources
    variables = {**common, **doc.default_variables}
    defaults = {ours: variables[name] for name, ours in _VARIABLES.items() if name in variables} | doc.defaults
    return found | ({"defaults": defaults} if defaults else {})


def _assertions(
    shapes: Mapping[str, PoolDoc], checks: Mapping[str, list[Assertion]], parts: _Parts
) -> dict[tuple[str, str], Sequence[Assertion]]:
    found: dict[tuple[str, str], Sequence[Assertion]] = {}
    for name, pool in shapes.items():
        parts.get(_named, f"POOL {name}", pool.common_resource_validations, checks, _CHECK)
        for label, platform in pool.platforms.items():
            where = f"POOL {name}, platform {label}"
            names = platform.resource_validations
            parts.get(_named, where, names, checks, _CHECK)
            every = [*pool.common_resource_validations, *names]
            found[name, label] = [one for check in every for one in checks.get(check, ())]
        if not pool.platforms:
            found[name, "default"] = [one for c in pool.common_resource_validations for one in checks.get(c, ())]
    return found
