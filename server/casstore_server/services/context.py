"""What every service works with.

Decided here and only here: which parts the server is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from socket import socket
from threading import Event
from typing import Protocol

from casstore.remote.credentials import CredentialSource
from casstore_orchestrator.figures import Figures
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.ports import DataStore, Isolation, RunKey, UrlStore
from casstore_orchestrator.reasons import Why
from casstore_orchestrator.records import WorkflowRecord
from casstore_server.config import Watched
from casstore_server.configs.stored import StoredConfigs
from casstore_server.credentials import UserCredentials
from casstore_server.db.configs import ConfigRows
from casstore_server.db.signing import SigningKeys
from casstore_server.db.store import Database
from casstore_server.identity.actions import Role
from casstore_server.identity.caller import Caller, Links
from casstore_server.identity.keys import Keys
from casstore_server.metrics import Metrics
from casstore_server.observing import Observers
from casstore_server.secrets import SecretBox
from casstore_server.services.index.follower import Index
from casstore_server.services.jobs import Jobs
from casstore_server.services.sessions import Sessions
from casstore_server.services.v1.plane import Plane
from casstore_server.settings import Settings
from casstore_server.stores import Stores

__all__ = ["Attaching", "Caller", "Links", "SchedulerPort", "Services"]


class SchedulerPort(Protocol):
    """What the services ask of the scheduler."""

    def submit(self, record: WorkflowRecord) -> WorkflowRecord:
        """Store a workflow and begin with it; the record comes back with its id."""

    def cancel(self, workflow_id: str, *, force: bool = False, user: str, message: str | None = None) -> WorkflowRecord:
        """Begin to end a workflow."""

    def end_tasks(self, why: str, timeout: float) -> int:
        """Place nothing more and end everything that runs; how many groups are left after ``timeout`` seconds."""

    def why_pending(self, workflow_id: str) -> str:
        """Why it does not run yet, in one line; empty when it does."""

    def pending(self, record: WorkflowRecord) -> dict[str, Why]:
        """See ``Scheduler.pending``."""

    def figures(self) -> Figures:
        """See ``Scheduler.figures``."""


class Attaching(Protocol):
    """What interactive access asks of the agents: ``ports.GroupAgents``."""

    def attach(self, run: RunKey) -> socket:
        """A raw connection to the agent of a run. Raises ``ServiceError`` when it can't be reached."""


@dataclass(frozen=True, slots=True)
class Configs:
    """The configs in the database, and what this server knows of them."""

    rows: ConfigRows
    stored: StoredConfigs


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server. ``started`` in seconds since the epoch, ``storage`` has users' credentials."""

    settings: Settings
    database: Database
    scheduler: SchedulerPort
    logs: LogStore
    data: DataStore
    stores: Stores
    storage: Callable[[str], CredentialSource]
    jobs: Jobs
    credentials: UserCredentials
    box: SecretBox
    configs: Configs
    sessions: Sessions
    urls: UrlStore
    config: Watched
    isolation: Isolation
    started: float
    agents: Attaching | None = None
    roles: Callable[[], Mapping[str, Role]] = dict
    """The roles that are declared besides those that are built in."""
    observers: Observers = field(default_factory=Observers)
    metrics: Metrics | None = None
    plane: Plane = field(default_factory=Plane)
    ending: Event = field(default_factory=Event)
    """Set once the server is told to end: open replies come to theirs."""
    keys: Keys = field(init=False)
    """What this server's tokens and addresses are signed with."""
    index: Index = field(init=False)
    """Answers for what is in the buckets. Whoever changes a dataset through this server calls its ``changed``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", Keys(SigningKeys(self.database), self.box))
        object.__setattr__(self, "index", Index(self.database, self.stores, self.config))
