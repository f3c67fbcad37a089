"""What a server is set up for, whether ``config.yaml`` says so or a config in the database.

Decided here and only here: which parts of it the rest of the server asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from casstore.remote.credentials import StorageCredential
from casstore_orchestrator.pools import Pool
from casstore_server.configs.shapes import Assertion, ServiceDoc, WorkflowDoc
from casstore_server.identity.actions import Role

__all__ = ["DEFAULT_BUCKET", "BucketConfig", "Declared", "ServerConfig"]

DEFAULT_BUCKET: Final = "default"


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """One declared bucket. ``credential`` is what the server and its tasks use for it, if it has its own."""

    name: str
    url: str
    description: str = ""
    mode: str = "read-write"
    declared: bool = True
    credential: StorageCredential | None = field(default=None, repr=False)

    @property
    def writable(self) -> bool:
        """Whether new versions may be stored."""
        return self.mode != "read-only"


@dataclass(frozen=True, slots=True)
class Declared:
    """What ``config.yaml`` declares, as it is written: it can't be changed elsewhere."""

    pools: Mapping[str, Any] = field(default_factory=dict)
    buckets: Mapping[str, Any] = field(default_factory=dict)
    default_bucket: str | None = None


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything together, with the bucket and the pool that exist without being declared."""

    default_bucket: str
    buckets: Mapping[str, BucketConfig]
    pools: Mapping[str, Pool]
    references: tuple[str, ...] = ()
    """URLs below which references of stores may lead."""
    declared: Declared = Declared()
    service: ServiceDoc = field(default_factory=ServiceDoc)
    workflow: WorkflowDoc = field(default_factory=WorkflowDoc)
    roles: Mapping[str, Role] = field(default_factory=dict)
    assertions: Mapping[tuple[str, str], Sequence[Assertion]] = field(default_factory=dict)
    """What is checked of tasks, by pool and platform."""
    backends: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What of the configs in the database can't be used, such as one whose name ``config.yaml`` has taken since."""
