"""The agents of this machine, as a scheduler sees them: ``ports.GroupAgents`` for processes.

Decided here and only here: that a server follows a run once, however often it is asked to. What happens to one run is
in ``link``.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping

from casstore.errors import ServiceError
from casstore_orchestrator.agent.fence import Cleaner
from casstore_orchestrator.agent.folder import Runs, Start
from casstore_orchestrator.agent.link import Host, Link
from casstore_orchestrator.agent.nursery import Nursery
from casstore_orchestrator.events import Effect
from casstore_orchestrator.pools import Resources
from casstore_orchestrator.ports import AgentEvents, GroupAgents, RunKey
from casstore_orchestrator.records import WorkflowRecord

__all__ = ["ProcessAgents"]

_CLOSE_SECONDS = 10.0


class ProcessAgents(GroupAgents):
    """One agent a run, in a process of its own; see ``ports.GroupAgents``."""

    def __init__(self, runs: Runs, nursery: Nursery, cleaner: Cleaner) -> None:
        self._runs = runs
        self._nursery = nursery
        self._cleaner = cleaner
        self._host: Host | None = None
        self._lock = threading.Lock()
        self._links: dict[RunKey, Link] = {}
        self._ending: set[Link] = set()
        self._closed = False

    def follow(self, listener: AgentEvents) -> None:
        """See ``ports.GroupAgents``."""
        self._host = Host(listener, self._nursery, self._cleaner, self._forget)
        self._runs.sweep()
        self._nursery.warm()

    def start(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], *, seen: int = 0) -> None:
        """See ``ports.GroupAgents``."""
        self._link(run, Start.of(run, record, limits), seen).seen(seen)

    def order(self, run: RunKey, number: int, effect: Effect) -> None:
        """See ``ports.GroupAgents``."""
        with self._lock:
            link = self._links.get(run)
        if link is not None:
            link.order(number, effect)

    def acknowledge(self, run: RunKey, number: int) -> None:
        """See ``ports.GroupAgents``."""
        with self._lock:
            link = self._links.get(run)
        if link is not None:
            link.seen(number)

    def attach(self, run: RunKey) -> socket.socket:
        """See ``ports.GroupAgents``."""
        try:
            return self._runs.folder(run).connect()
        except OSError:
            raise ServiceError(
                f"group {run.group} of {run.workflow_id} can't be reached", hint="Does it run? See: osmo workflow query"
            ) from None

    def strays(self) -> list[RunKey]:
        """See ``ports.GroupAgents``."""
        return self._runs.all()

    def leave(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""
        with self._lock:
            link = self._links.pop(run, None)
            if link is not None:
                self._ending.add(link)
        if link is not None:
            link.leave()

    def discard(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""
        self._link(run, None, 0).discard()

    def close(self) -> None:
        """See ``ports.GroupAgents``. A call of the listener that is going on is waited for, for a while."""
        with self._lock:
            self._closed = True
            links = [*self._links.values(), *self._ending]
            self._links.clear()
        for link in links:
            link.leave()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for link in links:
            link.join(max(0.0, deadline - time.monotonic()))
        self._nursery.close()

    def _link(self, run: RunKey, start: Start | None, seen: int) -> Link:
        if self._host is None:
            raise ServiceError("nobody follows the agents yet")
        with self._lock:
            link = self._links.get(run)
            if link is None:
                before = [other for other in self._ending if other.run == run]
                link = Link(self._host, self._runs.folder(run), start, seen, before)
                if self._closed:
                    link.leave()
                else:
                    self._links[run] = link
                link.begin()
            return link

    def _forget(self, link: Link) -> None:
        with self._lock:
            self._ending.discard(link)
            if self._links.get(link.run) is link:
                del self._links[link.run]
