"""Several schedulers over one store, interleaved at every call that they make, with leases that pass from one to the
other at any moment: no node is ever given away twice, no command of an attempt is started twice, everything ends.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from casstore_orchestrator.pools import Machine, Resources, parse_pools
from casstore_orchestrator.scheduler import LEASE, Scheduler
from casstore_orchestrator.scripted_agents import Begun, ScriptedAgents, ScriptedMachine
from casstore_orchestrator.spec import GroupSpec, TaskInput, TaskSpec, WorkflowSpec
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.testing import MemoryStateStore

NODES = 3
POOLS = parse_pools(
    {"default": {"platforms": {"default": {"cpu": 1, "nodes": NODES}}}},
    Machine("box", Resources(cpu=4, memory=1 << 36, storage=1 << 40)),
)
DEPTH = 3


class NoLogs:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class Chaos:
    """Three servers; whenever one calls its store or its agents, anything else may happen first, or after it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.store = MemoryStateStore()
        self.machine = ScriptedMachine(self._code)
        self.now = 1_795_233_600.0
        self.busy: set[int] = set()
        self.calm = False
        logs: Any = NoLogs()
        self.servers = []
        self.locked: set[int] = set()
        """Servers that are under the lock of a workflow, as they are when they talk to an agent: for the rest of them
        nothing happens meanwhile.
        """
        for number in range(3):
            store: Any = Between(self.store, self, ("create", "change", "keep_leases", "news"), None)
            agents: Any = Between(ScriptedAgents(self.machine), self, ("start", "order", "leave", "discard"), number)
            self.servers.append(Scheduler(store, agents, lambda: POOLS, logs, clock=self, alone=False))
            agents.follow(self.servers[number])

    def time(self) -> float:
        return self.now

    def _code(self, begun: Begun) -> int | None:
        _, _, retry_id, _ = begun
        return random.Random(repr(begun)).choice([0, 0, 0, 7]) if retry_id < 2 else 0

    def meddle(self, number: int | None) -> None:
        """Something that happens at the same time, now and then; ``number`` is a server that is locked."""
        if self.calm or len(self.busy) >= DEPTH or self.dice.random() > 0.15:
            return
        before = set(self.locked)
        if number is not None:
            self.locked.add(number)
        self.act()
        self.locked = before

    def act(self) -> None:
        what = self.dice.random()
        if what < 0.6:
            self.tick(self.dice.randrange(len(self.servers)))
        elif what < 0.9:
            self.machine.step(self.deaf)
        else:  # whoever is in the middle of something has stood still past its lease
            self.now += LEASE + 1
        self.check_nodes()

    def tick(self, number: int) -> None:
        if number in self.busy | self.locked:  # the loop of a server is one thread
            return
        self.busy.add(number)
        try:
            self.servers[number].tick()
        finally:
            self.busy.discard(number)

    def deaf(self, follower: ScriptedAgents) -> bool:
        return any(self.servers[number] is follower.listener for number in self.locked)

    def check_nodes(self) -> None:
        used: Counter[str] = Counter()
        for workflow_id in self.store.live("default"):
            for group in self.store.load(workflow_id).groups:
                used.update(held.node for held in group.holds)
        assert all(count == 1 for count in used.values()), used


class Between:
    """Lets other things happen before and after the named calls."""

    def __init__(self, inner: Any, chaos: Chaos, names: tuple[str, ...], number: int | None) -> None:
        self._inner = inner
        self._chaos = chaos
        self._names = names
        self._number = number

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._chaos.meddle(self._number)
            result = found(*args, **kwargs)
            self._chaos.meddle(self._number)
            return result

        return call


def spec(size: int) -> WorkflowSpec:
    tasks = tuple(
        TaskSpec(name=f"t{number}", command=("x",), lead=not number, exit_actions={"RESCHEDULE": "7"})
        for number in range(size)
    )
    after = TaskSpec(name="after", command=("x",), lead=True, inputs=(TaskInput(task="t0"),))
    return WorkflowSpec(name="wf", groups=(GroupSpec(name="g", tasks=tasks), GroupSpec(name="h", tasks=(after,))))


def live(seed: int) -> None:
    chaos = Chaos(seed)
    for number in range(4):
        server = chaos.dice.choice(chaos.servers)
        size = chaos.dice.randint(1, NODES)
        server.submit(new_workflow(spec(size), uuid=uuid.UUID(int=number).hex, user="x", pool=POOLS["default"]))
    if chaos.dice.random() < 0.5:
        for _ in range(chaos.dice.randint(1, 60)):
            chaos.act()
        chaos.dice.choice(chaos.servers).cancel(f"wf-{chaos.dice.randint(1, 4)}", user="x")
    for _ in range(150):
        chaos.act()
    chaos.calm = True  # from here on nobody meddles: what was begun has to come to its end
    for _ in range(400):
        while chaos.machine.step():
            chaos.check_nodes()
        if not chaos.store.live("default") and not chaos.machine.agents:
            break
        chaos.now += 1
        for number in range(len(chaos.servers)):
            chaos.tick(number)
        chaos.check_nodes()
    assert chaos.store.live("default") == []
    assert chaos.machine.agents == {}
    twice = {begun: count for begun, count in chaos.machine.begun.items() if count != 1}
    assert not twice
    for server in chaos.servers:
        server.stop()


def test_racing_schedulers() -> None:
    for seed in range(40):
        live(seed)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_racing_schedulers_for_long() -> None:
    for seed in range(40, 5_000):
        live(seed)
