"""What every service works with.

Decided here and only here: which parts the server is made of, and how the links in replies look. A server on a unix
socket has no URL: where OSMO's replies have the address of a page, ours then have the command that shows the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from socket import socket
from threading import Event
from typing import Protocol

from casstore.errors import AccessError
from casstore.remote.credentials import CredentialSource
from casstore.vault import Vault
from casstore_orchestrator.figures import Figures
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.ports import Credentials, DataStore, Isolation, RunKey, UrlStore
from casstore_orchestrator.reasons import Why
from casstore_orchestrator.records import WorkflowRecord
from casstore_server.config import Watched
from casstore_server.db.store import Database
from casstore_server.identity.actions import EVERYTHING, Action, Grants, scope_kind
from casstore_server.metrics import Metrics
from casstore_server.observing import Observers
from casstore_server.services.jobs import Jobs
from casstore_server.services.sessions import Sessions
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
class Links:
    """Addresses in replies. ``base`` is the URL the caller used, empty on a unix socket."""

    base: str = ""

    def overview(self, workflow_id: str) -> str:
        """Where to look at a workflow."""
        return f"{self.base}/workflows/{workflow_id}" if self.base else f"osmo workflow query {workflow_id}"

    def api(self, path: str) -> str:
        """The address of something below ``/api/workflow``."""
        return f"{self.base}/api/workflow/{path}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, from where, and what they may do. ``token`` is the name of the personal token they came with, if any,
    ``address`` where the connection is from. Without ``grants`` it is somebody who may do everything, as the owner of
    the server may who comes by the unix socket.
    """

    user: str
    links: Links = Links()
    grants: Grants = EVERYTHING
    token: str | None = None
    address: str = ""

    def may(self, action: Action, *, pool: str | None = None, bucket: str | None = None) -> bool:
        """Whether they may: on this pool or bucket, or without one anywhere."""
        return self.grants.may(action, pool=pool, bucket=bucket)

    def require(self, action: Action, *, pool: str | None = None, bucket: str | None = None) -> None:
        """Raise ``AccessError`` unless they ``may``."""
        if self.may(action, pool=pool, bucket=bucket):
            return
        kind = scope_kind(action)
        name = pool if kind == "pool" else bucket if kind == "bucket" else None
        where = "" if name is None else f" in {kind} {name}"
        roles = ", ".join(self.grants.roles) or "none"
        raise AccessError(
            f"{self.user} has no right {action}{where}",
            hint=f"Rights come with roles (of this login: {roles}): ask whoever runs this server.",
        )


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
    credentials: Credentials
    vault: Vault
    urls: UrlStore
    config: Watched
    isolation: Isolation
    started: float
    agents: Attaching | None = None
    sessions: Sessions = field(default_factory=Sessions)
    observers: Observers = field(default_factory=Observers)
    metrics: Metrics | None = None
    ending: Event = field(default_factory=Event)
    """Set once the server is told to end: open replies come to theirs."""
