"""What configs of each type may say.

Decided here and only here: the fields of each (OSMO 6.2's, and of pools and platforms those of ``config.yaml``
besides), their defaults, and that a field which nobody knows is an error. What is there only so that OSMO's documents
are taken is in ``WITHOUT_EFFECT``: it is checked and kept, and whoever sets it is told that it does nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from casstore.errors import UsageError
from casstore.structs import convert

__all__ = [
    "WITHOUT_EFFECT",
    "Assertion",
    "BucketDoc",
    "PlatformDoc",
    "PoolDoc",
    "ServiceDoc",
    "WorkflowDoc",
    "checked",
    "checked_name",
]

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_VERSION: Final = r"^$|^\d{1,6}\.\d{1,6}\.\d{1,6}$"
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Texts = list[str]
Document = dict[str, Any]


class _Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of which every field is known."""


class StorageDoc(_Strict):
    """A credential for object storage."""

    access_key_id: str = ""
    access_key: str = ""
    session_token: str = ""
    endpoint: str = ""
    region: str | None = None
    override_url: str | None = None
    addressing_style: str | None = None


class BucketDoc(_Strict):
    """A bucket (``DATASET``). ``default_credential`` is what the server and its tasks use; no client gets it."""

    dataset_path: str
    description: str = ""
    region: str = ""
    check_key: bool = False
    mode: Literal["read-write", "read-only"] = "read-write"
    default_credential: StorageDoc | None = None


class CliDoc(_Strict):
    """Which clients are served, and how to get one: see ``api.gate``."""

    latest_version: Annotated[str, Meta(pattern=_VERSION)] | None = None
    min_supported_version: Annotated[str, Meta(pattern=_VERSION)] | None = None
    client_install_url: str | None = None


class ServiceDoc(_Strict):
    """``SERVICE``."""

    service_base_url: str = ""
    service_auth: Document = {}
    cli_config: CliDoc = msgspec.field(default_factory=CliDoc)
    max_pod_restart_limit: str = "30m"
    agent_queue_size: Positive = 1024


class StoreDoc(_Strict):
    credential: StorageDoc | None = None
    base_url: str = ""
    websocket_timeout: Count = 1440
    data_timeout: Count = 10
    download_type: str = "download"


class InfoDoc(_Strict):
    tags: Texts = []
    max_name_length: Annotated[int, Meta(ge=1, le=64)] = 64


class TriedDoc(_Strict):
    disable_registry_validation: Texts = []
    disable_data_validation: Texts = []


class LimitsDoc(_Strict):
    max_num_workflows: Positive | None = None
    max_num_tasks: Positive | None = None
    jinja_sandbox_workers: Positive = 2
    jinja_sandbox_max_time: float = 0.5
    jinja_sandbox_memory_limit: Count = 100 * 1024 * 1024


class RsyncDoc(_Strict):
    enabled: bool = True
    enable_telemetry: bool = False
    read_bandwidth_limit: Count = 0
    write_bandwidth_limit: Count = 0
    allowed_paths: dict[str, Document] = {}
    daemon_debounce_delay: Annotated[float, Meta(gt=0)] = 1.0
    daemon_poll_interval: Annotated[float, Meta(gt=0)] = 30.0
    daemon_reconcile_interval: Annotated[float, Meta(gt=0)] = 15.0
    client_upload_rate_limit: Count = 0


class PluginsDoc(_Strict):
    rsync: RsyncDoc = msgspec.field(default_factory=RsyncDoc)


class WorkflowDoc(_Strict):
    """``WORKFLOW``. ``max_num_tasks`` is None for no limit: OSMO's is 20."""

    workflow_data: StoreDoc = msgspec.field(default_factory=StoreDoc)
    workflow_log: StoreDoc = msgspec.field(default_factory=StoreDoc)
    workflow_app: StoreDoc = msgspec.field(default_factory=StoreDoc)
    workflow_info: InfoDoc = msgspec.field(default_factory=InfoDoc)
    backend_images: Document = {}
    workflow_alerts: Document = {}
    credential_config: TriedDoc = msgspec.field(default_factory=TriedDoc)
    user_workflow_limits: LimitsDoc = msgspec.field(default_factory=LimitsDoc)
    plugins_config: PluginsDoc = msgspec.field(default_factory=PluginsDoc)
    max_num_tasks: Positive | None = None
    max_num_ports_per_task: Annotated[int, Meta(ge=1, le=30)] = 30
    max_retry_per_task: Count = 0
    max_retry_per_job: Count = 5
    default_schedule_timeout: Count = 30
    default_exec_timeout: str = "60d"
    default_queue_timeout: str = "60d"
    max_exec_timeout: str = "60d"
    max_queue_timeout: str = "60d"
    force_cleanup_delay: str = "1h"
    max_log_lines: Positive = 10000
    max_task_log_lines: Positive = 1000
    max_error_log_lines: Positive = 100
    max_event_log_lines: Positive = 100
    task_heartbeat_frequency: str = "10m"


class Assertion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check of what a task asks for (``RESOURCE_VALIDATION``)."""

    operator: Literal["GT", "GE", "LT", "LE", "EQ"]
    left_operand: str
    right_operand: str
    assert_message: str


class PlatformDoc(_Strict):
    """A platform of a pool. ``resource_validations`` are checked besides those of the pool."""

    description: str = ""
    host_network_allowed: bool = False
    privileged_allowed: bool = False
    allowed_mounts: Texts = []
    default_mounts: Texts = []
    default_variables: Document = {}
    resource_validations: Texts = []
    override_pod_template: Texts = []
    cpu: Any = None
    memory: Any = None
    storage: Any = None
    gpu: Any = None
    resources: Document = {}
    nodes: Any = None
    topology: dict[str, str] = {}
    defaults: Document = {}


class CountableDoc(_Strict):
    guarantee: Annotated[int, Meta(ge=-1)] = -1
    maximum: Annotated[int, Meta(ge=-1)] = -1
    weight: Positive = 1


class PoolResourcesDoc(_Strict):
    gpu: CountableDoc | None = None


class PoolDoc(_Strict):
    """A pool. What OSMO works out itself (``parsed_...``, its state) is taken and dropped."""

    name: str = ""
    description: str = ""
    status: str | None = None
    enable_maintenance: bool = False
    backend: str = "local"
    executor: str | None = None
    egress: bool | None = None
    default_platform: str | None = None
    default_exec_timeout: str = ""
    default_queue_timeout: str = ""
    max_exec_timeout: str = ""
    max_queue_timeout: str = ""
    start_timeout: str = ""
    default_exit_actions: dict[str, str] = {}
    max_retry_per_task: Count | None = None
    resources: PoolResourcesDoc = msgspec.field(default_factory=PoolResourcesDoc)
    topology_keys: list[Any] = []
    download_type: str | None = None
    common_default_variables: Document = {}
    common_resource_validations: Texts = []
    common_pod_template: Texts = []
    common_group_templates: Texts = []
    platforms: dict[str, PlatformDoc] = {}


class BackendDoc(_Strict):
    """What may be set of a backend; there is one for each that a pool names."""

    description: str | None = None
    dashboard_url: str | None = None
    grafana_url: str | None = None
    router_address: str | None = None
    tests: Texts | None = None
    scheduler_settings: Document | None = None
    node_conditions: Document | None = None


class BackendTestDoc(_Strict):
    """A test of a backend."""

    name: str = ""
    description: str = ""
    cron_schedule: str = ""
    test_timeout: str = "300s"
    node_conditions: Texts = []
    common_pod_template: Texts = []
    configmap: Document | None = None


_SHAPES: Final[Mapping[str, Any]] = {
    "SERVICE": ServiceDoc,
    "WORKFLOW": WorkflowDoc,
    "DATASET": BucketDoc,
    "BACKEND": BackendDoc,
    "BACKEND_TEST": BackendTestDoc,
    "POOL": PoolDoc,
    "RESOURCE_VALIDATION": list[Assertion],
    "POD_TEMPLATE": dict[str, Any],
    "GROUP_TEMPLATE": dict[str, Any],
    "ROLE": dict[str, Any],
}
_DROPPED: Final = frozenset({
    "parsed_pod_template", "parsed_pod_template_for_accounting", "parsed_resource_validations",
    "parsed_group_templates", "last_heartbeat", "tolerations", "labels",
})  # fmt: skip
WITHOUT_EFFECT: Final[Mapping[str, frozenset[str]]] = {
    "SERVICE": frozenset({"service_base_url", "service_auth", "max_pod_restart_limit", "agent_queue_size"}),
    "WORKFLOW": frozenset({
        "workflow_data", "workflow_log", "workflow_app", "backend_images", "workflow_alerts", "max_retry_per_task",
        "max_retry_per_job", "default_schedule_timeout", "force_cleanup_delay", "max_log_lines", "max_task_log_lines",
        "max_error_log_lines", "max_event_log_lines", "task_heartbeat_frequency",
    }),
    "POOL": frozenset({"download_type", "common_pod_template", "common_group_templates"}),
    "BACKEND": frozenset({"scheduler_settings", "node_conditions", "tests", "router_address"}),
}  # fmt: skip
"""What is kept and does nothing here, by type. Templates and tests of backends are for an executor on Kubernetes."""


def checked(kind: str, name: str, raw: Any) -> Any:
    """One config, with its defaults where there are structs for it. Raises ``UsageError`` with the path of what is
    wrong, and no value.
    """
    try:
        return convert(_without_dropped(raw) if kind == "POOL" else raw, _SHAPES[kind])
    except msgspec.ValidationError as error:
        where = f"{kind} {name}".rstrip()
        raise UsageError(f"{where}: {error}") from None


def checked_name(kind: str, name: str) -> str:
    """A name for a config. ``UsageError``."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name[:80]}' is no name for a config of type {kind}",
            hint="Letters, digits, '.', '_' and '-', at most 63, ending in a letter or digit.",
        )
    return name


def _without_dropped(raw: Any) -> Any:
    if not isinstance(raw, Mapping):
        return raw
    kept = {key: value for key, value in raw.items() if key not in _DROPPED}
    if isinstance(kept.get("platforms"), Mapping):
        kept["platforms"] = {name: _without_dropped(one) for name, one in kept["platforms"].items()}
    return kept
