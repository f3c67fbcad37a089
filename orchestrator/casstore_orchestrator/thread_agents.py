"""Agents of groups that are threads of the process: a stand-in for ``ports.GroupAgents``, for tests of schedulers.

Decided here and only here: what a test can do to such an agent. They outlive a scheduler and not the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import socket
from typing import Any

from casstore.errors import ServiceError

from .agent.runner import GroupRunner, Services
from .credentials import NoCredentials, secret_values
from .events import CloseGroup, Effect, Event
from .homes import Homes
from .logwriter import Clock, LogWriter
from .pools import Resources
from .ports import AgentEvents, DataStore, Executor, RunKey
from .records import WorkflowRecord

__all__ = ["ThreadAgents", "ThreadMachine"]

AGAIN = 0.005
"""Seconds after which an agent tells again what could not be taken."""


class _ThreadAgent:
    """One run: its journal, and the thread that tells whoever follows it."""

    def __init__(self, machine: ThreadMachine, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources]):
        self.run = run
        self.journal: list[Event] = []
        self.taken = 0
        self._machine = machine
        self._record = record
        self._limits = dict(limits)
        self._news = threading.Condition()
        self._follower: ThreadAgents | None = None
        self._told = 0
        self._told_taken = 0
        self._ended = False
        self._lost = ""
        self._forgotten = False
        self._runner: GroupRunner | None = None
        self._thread = threading.Thread(target=self._tell_all, name=f"agent {run}", daemon=True)
        self._thread.start()

    def follow(self, follower: ThreadAgents, seen: int) -> None:
        with self._news:
            self._follower = follower
            self._told = seen
            self._told_taken = 0
            self._news.notify_all()

    def leave(self, follower: ThreadAgents) -> None:
        with self._news:
            if self._follower is follower:
                self._follower = None

    def order(self, number: int, effect: Effect) -> None:
        with self._news:
            if number > self.taken and not self._ended and not self._lost:
                self.taken = number
                if self._runner is None:
                    self._runner = GroupRunner(
                        self._machine.services,
                        self._record,
                        self.run.group,
                        self._limits,
                        report=self._report,
                        freed=lambda: None,
                        ended=self._end,
                    )
                self._runner.order(effect)
            self._told_taken = 0
            self._news.notify_all()

    def kill(self, why: str) -> None:
        """End like a process that is killed, and its sandboxes with it: nothing but its loss is reported any more."""
        with self._news:
            self._lost = why
            runner = self._runner
        if runner is not None:
            runner.order(CloseGroup(self.run.group))
            runner.join()
        self._end(runner)

    def forget(self) -> None:
        with self._news:
            self._forgotten = True
            self._news.notify_all()

    def _report(self, event: Event) -> None:
        with self._news:
            if not self._lost:
                self.journal.append(event)
                self._news.notify_all()

    def _end(self, _runner: GroupRunner | None) -> None:
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _tell_all(self) -> None:
        """Tell one thing after the other, each until it is taken; the last is the end."""
        while True:
            with self._news:
                while (step := self._step()) is None and not self._forgotten:
                    self._news.wait()
            if step is None or self._forgotten:
                return
            tell, told = step
            self._machine.services.logs.flush()  # as an agent's own process does
            try:
                tell()
            except Exception:  # noqa: BLE001 - the port says so: whatever it is, it is told again
                self._machine.closed.wait(AGAIN)
                continue
            with self._news:
                told()

    def _step(self) -> tuple[Callable[[], None], Callable[[], None]] | None:
        """What to tell next, and what to note once it is told; None when there is nothing to tell, or nobody."""
        if self._follower is None:
            return None
        listener, run, taken, number = self._follower.listener, self.run, self.taken, self._told + 1
        if self._lost:
            return (lambda: listener.lost(run, self._lost), self._over) if self._ended else None
        if self._told_taken < taken:
            return lambda: listener.taken(run, taken), lambda: self._note_taken(taken)
        if number <= len(self.journal):
            event = self.journal[number - 1]
            return lambda: listener.event(run, number, event), lambda: self._note(number)
        return (lambda: listener.ended(run), self._over) if self._ended else None

    def _note(self, number: int) -> None:
        self._told = max(self._told, number)

    def _note_taken(self, number: int) -> None:
        self._told_taken = number

    def _over(self) -> None:
        self._forgotten = True
        self._machine.closed_runs.add(self.run)
        self._machine.agents.pop(self.run, None)


class ThreadMachine:
    """A machine whose agents are threads around ``GroupRunner``; ``ThreadAgents`` are schedulers' ways to them."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.closed = threading.Event()
        self.agents: dict[RunKey, _ThreadAgent] = {}
        self.closed_runs: set[RunKey] = set()
        """Runs that have ended; none of them can be started again."""
        self._lock = threading.Lock()

    @classmethod
    def over(cls, executor: Executor, data: DataStore, home: Path, clock: Clock = time, **more: Any) -> ThreadMachine:
        """A machine whose folder is ``home``; ``more`` as for ``Services``."""
        options: dict[str, Any] = {"credentials": NoCredentials(), "file_urls": False, **more}
        logs = LogWriter(home, clock=clock)
        return cls(Services(executor=executor, data=data, homes=Homes(home), logs=logs, **options))

    def ensure(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], seen: int) -> _ThreadAgent:
        """The agent of a run."""
        with self._lock:
            agent = self.agents.get(run)
            if agent is None:
                secrets = secret_values(record.spec, record.user, self.services.credentials)
                self.services.logs.begin(record.id, secrets)
                agent = self.agents[run] = _ThreadAgent(self, run, record, limits)
                if seen or run in self.closed_runs:
                    agent.kill("The agent is gone.")
            return agent

    def kill(self, run: RunKey, why: str = "The agent was killed.") -> None:
        """Kill the agent of a run."""
        self.agents[run].kill(why)

    def close(self) -> None:
        """End every agent; nobody is told."""
        self.closed.set()
        for agent in list(self.agents.values()):
            agent.forget()
            agent.kill("The machine ended.")
        self.services.logs.close()


class ThreadAgents:
    """The agents of a ``ThreadMachine``, as one scheduler reaches them."""

    listener: AgentEvents

    def __init__(self, machine: ThreadMachine) -> None:
        self.machine = machine

    def follow(self, listener: AgentEvents) -> None:
        """See ``ports.GroupAgents``."""
        self.listener = listener

    def start(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], *, seen: int = 0) -> None:
        """See ``ports.GroupAgents``."""
        self.machine.ensure(run, record, limits, seen).follow(self, seen)

    def order(self, run: RunKey, number: int, effect: Effect) -> None:
        """See ``ports.GroupAgents``."""
        agent = self.machine.agents.get(run)
        if agent is not None:
            agent.order(number, effect)

    def acknowledge(self, run: RunKey, number: int) -> None:
        """The journal is kept anyway."""

    def attach(self, run: RunKey) -> socket:
        """There is no process to talk to."""
        msg = f"the agent of {run} is a thread"
        raise ServiceError(msg)

    def strays(self) -> list[RunKey]:
        """See ``ports.GroupAgents``."""
        return list(self.machine.agents)

    def leave(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""
        agent = self.machine.agents.get(run)
        if agent is not None:
            agent.leave(self)

    def discard(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""
        agent = self.machine.agents.pop(run, None)
        self.machine.closed_runs.add(run)
        if agent is not None:
            agent.forget()
            agent.kill("No record knows this run.")

    def close(self) -> None:
        """See ``ports.GroupAgents``."""
        for agent in list(self.machine.agents.values()):
            agent.leave(self)
