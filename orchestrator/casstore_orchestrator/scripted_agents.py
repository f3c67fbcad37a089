"""Agents of groups that are data: a stand-in for ``ports.GroupAgents`` without threads, time or files, for tests that
look at every order in which things can happen.

Decided here and only here: what such an agent does with its orders. A task's command ends when a test says so
(``exit``), or at once when ``script`` knows its attempt. Whatever an agent may do only once is counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from socket import socket

from casstore.errors import ServiceError

from .events import (
    Attempt,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    InputsReady,
    KillTask,
    NewAttempt,
    ReleaseTasks,
    RestartInPlace,
    StartGroup,
    TaskExited,
    TaskRunning,
)
from .pools import Resources
from .ports import AgentEvents, RunKey
from .records import WorkflowRecord

__all__ = ["ScriptedAgents", "ScriptedMachine"]

Begun = tuple[str, str, int, int]
"""Workflow, task, attempt and run of a command that was started."""


@dataclass
class _Told:
    """How far a follower of a run is."""

    orders: int
    events: int


@dataclass
class _Agent:
    """One run. ``orders`` wait to be carried out. It obeys every follower, and tells each of them everything."""

    run: RunKey
    followers: dict[ScriptedAgents, _Told] = field(default_factory=dict)
    orders: deque[tuple[int, Effect]] = field(default_factory=deque)
    taken: int = 0
    journal: list[Event] = field(default_factory=list)
    running: set[Attempt] = field(default_factory=set)
    ended: bool = False
    lost: str = ""


class ScriptedMachine:
    """A machine; ``ScriptedAgents`` are schedulers' ways to it. Not thread-safe, and calls may be nested."""

    def __init__(self, script: Callable[[Begun], int | None] = lambda _: None) -> None:
        self.script = script
        self.agents: dict[RunKey, _Agent] = {}
        self.closed: set[RunKey] = set()
        """Runs that are over; none of them can be started again."""
        self.begun: Counter[Begun] = Counter()
        """How often each command was started."""

    def agent(self, run: RunKey, seen: int) -> _Agent:
        """The agent of a run; one that was there and is gone is lost."""
        if run not in self.agents:
            gone = "The agent is gone." if seen or run in self.closed else ""
            self.agents[run] = _Agent(run, ended=bool(gone), lost=gone)
        return self.agents[run]

    def kill(self, run: RunKey) -> None:
        """End an agent with everything that it runs."""
        agent = self.agents[run]
        agent.running.clear()
        agent.ended, agent.lost = True, "The agent was killed."

    def disconnect(self) -> None:
        """Whoever followed is gone."""
        for agent in self.agents.values():
            agent.followers.clear()

    def exit(self, workflow_id: str, task: str, code: int) -> None:
        """Let the running command of a task end."""
        for agent in list(self.agents.values()):
            for attempt in sorted(agent.running):
                if agent.run.workflow_id == workflow_id and attempt.task == task:
                    self._exit(agent, attempt, code)

    def running(self) -> list[Begun]:
        """The commands that run."""
        found = [(agent.run.workflow_id, *attempt) for agent in self.agents.values() for attempt in agent.running]
        return sorted(found)

    def step(self, deaf: Callable[[ScriptedAgents], bool] = lambda _: False) -> bool:
        """Have one thing done or told, but not to who is ``deaf``; False when there is nothing."""
        for agent in list(self.agents.values()):
            if agent.orders and not agent.ended:
                self._carry_out(agent, agent.orders.popleft()[1])
                return True
            if any(self._tell(agent, follower) for follower in list(agent.followers) if not deaf(follower)):
                return True
        return False

    def _carry_out(self, agent: _Agent, effect: Effect) -> None:
        if isinstance(effect, StartGroup):
            for attempt in effect.attempts:
                agent.journal += [TaskRunning(attempt), InputsReady(attempt)]
        elif isinstance(effect, NewAttempt):
            agent.journal += [TaskRunning(effect.attempt), InputsReady(effect.attempt)]
        elif isinstance(effect, RestartInPlace):
            agent.running = {attempt for attempt in agent.running if attempt.task != effect.attempt.task}
            agent.journal.append(InputsReady(effect.attempt))
        elif isinstance(effect, ReleaseTasks):
            for attempt in effect.attempts:
                self._begin(agent, attempt)
        elif isinstance(effect, KillTask):
            agent.running.discard(effect.attempt)
        elif isinstance(effect, CloseGroup):
            agent.running.clear()
            agent.ended = True

    def _begin(self, agent: _Agent, attempt: Attempt) -> None:
        begun = agent.run.workflow_id, *attempt
        self.begun[begun] += 1
        agent.running.add(attempt)
        code = self.script(begun)
        if code is not None:
            self._exit(agent, attempt, code)

    @staticmethod
    def _exit(agent: _Agent, attempt: Attempt, code: int) -> None:
        agent.running.discard(attempt)
        agent.journal += [CommandExited(attempt, code), TaskExited(attempt, code)]

    def _tell(self, agent: _Agent, follower: ScriptedAgents) -> bool:
        """Tell a follower one thing; what it does not take is told again later."""
        listener, run, told = follower.listener, agent.run, agent.followers.get(follower)
        if told is None:
            return False
        try:
            if agent.lost:
                listener.lost(run, agent.lost)
            elif told.orders < agent.taken:
                taken = agent.taken
                listener.taken(run, taken)
                told.orders = taken
                return True
            elif told.events < len(agent.journal):
                number = told.events + 1
                listener.event(run, number, agent.journal[number - 1])
                told.events = max(told.events, number)
                return True
            elif agent.ended:
                listener.ended(run)
            else:
                return False
        except Exception:  # noqa: BLE001 - the port says so
            return False
        self.forget(run)
        return True

    def forget(self, run: RunKey) -> None:
        """Remove the traces of a run but that it is over."""
        self.closed.add(run)
        self.agents.pop(run, None)


class ScriptedAgents:
    """The agents of a ``ScriptedMachine``, as one scheduler reaches them."""

    listener: AgentEvents

    def __init__(self, machine: ScriptedMachine) -> None:
        self.machine = machine

    def follow(self, listener: AgentEvents) -> None:
        """See ``ports.GroupAgents``."""
        self.listener = listener

    def start(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], *, seen: int = 0) -> None:
        """See ``ports.GroupAgents``."""
        del record, limits
        self.machine.agent(run, seen).followers[self] = _Told(orders=0, events=seen)

    def order(self, run: RunKey, number: int, effect: Effect) -> None:
        """See ``ports.GroupAgents``."""
        agent = self.machine.agents.get(run)
        if agent is not None and not agent.ended and number > agent.taken:
            if number != agent.taken + 1:
                msg = f"order {number} of {run} came after {agent.taken}"
                raise AssertionError(msg)
            agent.taken = number
            agent.orders.append((number, effect))

    def acknowledge(self, run: RunKey, number: int) -> None:
        """The journal is kept anyway."""

    def attach(self, run: RunKey) -> socket:
        """There is no process to talk to."""
        msg = f"the agent of {run} is no process"
        raise ServiceError(msg)

    def strays(self) -> list[RunKey]:
        """See ``ports.GroupAgents``."""
        return list(self.machine.agents)

    def leave(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""
        agent = self.machine.agents.get(run)
        if agent is not None:
            agent.followers.pop(self, None)

    def discard(self, run: RunKey) -> None:
        """See ``ports.GroupAgents``."""
        self.machine.forget(run)

    def close(self) -> None:
        """See ``ports.GroupAgents``."""
        for run in list(self.machine.agents):
            self.leave(run)
