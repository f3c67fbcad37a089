"""Replies about what workflows run on, and for whom: the server itself, profile, pools, nodes, buckets.

Decided here and only here: the field names of these shapes. Amounts that OSMO's clients print as they come
(quotas, usage) are strings.
"""

from __future__ import annotations

from typing import Any

import msgspec

from casstore.wire.auth import UserTokenReply


class VersionReply(msgspec.Struct, kw_only=True):
    """The version of the wire that the server speaks (see ``casstore.wire.protocol.PROTOCOL_VERSION``)."""

    major: str
    minor: str
    revision: str
    hash: str = ""


class ServerReply(msgspec.Struct, kw_only=True):
    """The server itself (``GET /api/v1/server``).

    ``version`` is the product's; ``started`` is an ISO time. ``running`` and ``pending`` are workflows, ``tasks`` those
    that hold nodes.

    ``url`` is where it listens besides its socket; ``drain`` the seconds that it gives to open replies at its end.
    """

    version: str
    pid: int
    user: str
    started: str
    running: int
    pending: int
    tasks: int = 0
    executor: str
    isolation: str
    network: bool
    reasons: list[str] = []
    state_dir: str = ""
    url: str | None = None
    drain: float = 0.0


class TasksEnded(msgspec.Struct, kw_only=True):
    """What ``POST /api/v1/server/end-tasks`` did: ``left`` groups had not ended when it gave up waiting."""

    left: int


class Profile(msgspec.Struct, kw_only=True):
    """A user's defaults."""

    username: str
    email_notification: bool = False
    slack_notification: bool = False
    bucket: str | None = None
    pool: str | None = None


class ProfileReply(msgspec.Struct, kw_only=True):
    """The profile with what the user may use."""

    profile: Profile
    roles: list[str] = []
    pools: list[str] = []
    token: UserTokenReply | None = None


class ProfileChange(msgspec.Struct, kw_only=True):
    """Body of a change of the profile; None leaves a setting alone."""

    bucket: str | None = None
    pool: str | None = None
    email_notification: bool | None = None
    slack_notification: bool | None = None


class PlatformReply(msgspec.Struct, kw_only=True):
    """One platform of a pool."""

    description: str = ""
    host_network_allowed: bool = False
    privileged_allowed: bool = False
    allowed_mounts: list[str] = []
    default_mounts: list[str] = []


class ResourceUsage(msgspec.Struct, kw_only=True):
    """Whole GPUs, as strings."""

    quota_used: str = "0"
    quota_free: str = "0"
    quota_limit: str = "0"
    total_usage: str = "0"
    total_capacity: str = "0"
    total_free: str = "0"


class PoolReply(msgspec.Struct, kw_only=True):
    """One pool. ``resource_usage`` is filled in replies about quota only."""

    name: str
    description: str = ""
    status: str = "ONLINE"
    backend: str = "local"
    default_platform: str | None = None
    platforms: dict[str, PlatformReply] = {}
    resource_usage: ResourceUsage = msgspec.field(default_factory=ResourceUsage)


class PoolsReply(msgspec.Struct, kw_only=True):
    """Pools by name."""

    pools: dict[str, PoolReply]


class NodeSet(msgspec.Struct, kw_only=True):
    """Pools that share nodes."""

    pools: list[PoolReply]


class QuotaReply(msgspec.Struct, kw_only=True):
    """Pools with their usage, and the sum."""

    node_sets: list[NodeSet]
    resource_sum: ResourceUsage


class NodeReply(msgspec.Struct, kw_only=True):
    """One node. Fields of amounts have the keys ``storage``, ``cpu``, ``memory`` and ``gpu``; ``config_fields`` of each
    platform have ``host_network`` and ``privileged`` (whether tasks may), ``allowed_mounts`` and ``default_mounts``.
    """

    hostname: str
    exposed_fields: dict[str, Any]
    taints: list[Any] = []
    conditions: list[str] = []
    usage_fields: dict[str, str]
    allocatable_fields: dict[str, str]
    platform_allocatable_fields: dict[str, dict[str, dict[str, str]]]
    platform_available_fields: dict[str, dict[str, dict[str, str]]] = {}
    config_fields: dict[str, dict[str, dict[str, Any]]] = {}
    label_fields: dict[str, Any] = {}
    pool_platform_labels: dict[str, list[str]] = {}
    resource_type: str = "SHARED"
    backend: str = "local"


class ResourcesReply(msgspec.Struct, kw_only=True):
    """Nodes."""

    resources: list[NodeReply]


class BucketReply(msgspec.Struct, kw_only=True):
    """One bucket; ``path`` is its URL."""

    path: str
    description: str = ""
    mode: str = "read-write"
    default_cred: bool = False


class BucketsReply(msgspec.Struct, kw_only=True):
    """Buckets by name, and the default one."""

    default: str | None
    buckets: dict[str, BucketReply]


class BackendReply(msgspec.Struct, kw_only=True):
    """One place where workflows run."""

    name: str
    description: str = ""
    online: bool = True


class BackendsReply(msgspec.Struct, kw_only=True):
    """All backends."""

    backends: list[BackendReply]
