"""A scheduler that ends, or is suspended past its lease, before or after anything that it does.

Every call that a scheduler makes of its store and of its agents is a point at which it is stopped; after each, another
one goes on with the same records and agents. However it went: the workflow ends as if nothing had happened, no command
of an attempt was started twice, and nothing is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from casstore.errors import NotFoundError
from casstore_orchestrator.pools import Machine, Resources, default_pools
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.scheduler import LEASE, Scheduler
from casstore_orchestrator.scripted_agents import ScriptedAgents, ScriptedMachine
from casstore_orchestrator.spec import GroupSpec, TaskInput, TaskSpec, WorkflowSpec
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.status import WorkflowStatus
from casstore_orchestrator.testing import MemoryStateStore

POOLS = default_pools(Machine("box", Resources(cpu=4, memory=64 << 30, storage=1 << 40)))
STEPS = 2_000
WRITES = ("create", "change", "keep_leases", "news", "release_leases")
ORDERS = ("start", "order", "acknowledge", "discard", "leave")


class Crash(BaseException):
    """The process is gone: nothing catches it."""


class NoLogs:
    """Logs are not looked at here."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_233_600.0

    def time(self) -> float:
        return self.now


class Watched:
    """What a scheduler works with, with ``point`` called before and after each of the named calls."""

    def __init__(self, inner: Any, names: tuple[str, ...], point: Callable[[str], None]) -> None:
        self._inner = inner
        self._names = names
        self._point = point

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._point(f"before {name}")
            result = found(*args, **kwargs)
            self._point(f"after {name}")
            return result

        return call


SPEC = WorkflowSpec(
    name="wf",
    groups=(
        GroupSpec(
            name="first",
            tasks=(
                TaskSpec(name="lead", command=("x",), lead=True, exit_actions={"RESCHEDULE": "9"}),
                TaskSpec(name="helper", command=("x",)),
            ),
        ),
        GroupSpec(
            name="second",
            tasks=(TaskSpec(name="after", command=("x",), lead=True, inputs=(TaskInput(task="lead"),)),),
        ),
    ),
)


class World:
    """One store, one machine, and the servers that come and go."""

    def __init__(self, *, cancel: bool) -> None:
        self.store = MemoryStateStore()
        self.machine = ScriptedMachine(self._code)
        self.clock = Clock()
        self.cancel = cancel
        self.cancelled = False
        self.suspended: list[Scheduler] = []

    def _code(self, begun: tuple[str, str, int, int]) -> int | None:
        _, task, retry_id, _ = begun
        if task == "lead":  # it fails once and is tried again
            return 0 if retry_id else 9
        return None if task == "helper" or self.cancel else 0

    def server(self, point: Callable[[str], None] = lambda _: None, *, alone: bool = True) -> Scheduler:
        store: Any = Watched(self.store, WRITES, point)
        agents: Any = Watched(ScriptedAgents(self.machine), ORDERS, point)
        logs: Any = NoLogs()
        return Scheduler(store, agents, lambda: POOLS, logs, clock=self.clock, alone=alone)

    def submitted(self) -> bool:
        return bool(self.store.live_pools()) or self.ended()

    def ended(self) -> bool:
        try:
            return not self.store.load("wf-1").live
        except NotFoundError:
            return False

    def drive(self, *servers: Scheduler, submit: bool = True) -> None:
        """Be the user and the passing time until nothing is left to do (without ``submit``: or nothing happens)."""
        if submit and not self.submitted():
            servers[0].submit(new_workflow(SPEC, uuid="1" * 32, user="tester", pool=POOLS["default"]))
        quiet = 0
        for _ in range(STEPS):
            if self.machine.step(lambda follower: follower.listener in self.suspended):
                quiet = 0
                continue
            if (self.ended() and not self.machine.agents) or (quiet > 3 and not submit):
                return
            if self.cancel and not self.cancelled and self.machine.running():
                servers[0].cancel("wf-1", user="tester")
                self.cancelled = True
            self.clock.now += 1
            quiet += 1
            for server in servers:
                server.tick()
        pytest.fail(f"it does not end: {self.store.load('wf-1').groups} {self.machine.agents}")

    def check(self) -> None:
        record = self.store.load("wf-1")
        assert story(record) == expected(self.cancel)
        assert [group.placements for group in record.groups] == [1, 1]
        self.check_nothing_is_left()

    def check_nothing_is_left(self) -> None:
        record = self.store.load("wf-1")
        twice = {key: count for key, count in self.machine.begun.items() if count != 1}
        assert not twice, twice
        assert self.machine.agents == {}
        assert self.store.live_pools() == []
        assert record.status is (WorkflowStatus.FAILED_CANCELED if self.cancel else WorkflowStatus.COMPLETED)
        assert not any(group.orders or group.holds for group in record.groups)


def story(record: WorkflowRecord) -> Mapping[str, list[tuple[int, int, str]]]:
    found: dict[str, list[tuple[int, int, str]]] = {}
    for task in record.all_tasks():
        found.setdefault(task.name, []).append((task.retry_id, task.run, task.status.value))
    return found


def expected(cancel: bool) -> Mapping[str, list[tuple[int, int, str]]]:
    return {
        "lead": [(0, 0, "RESCHEDULED"), (1, 0, "COMPLETED")],
        "helper": [(0, 1, "COMPLETED")],
        "after": [(0, 0, "FAILED_CANCELED" if cancel else "COMPLETED")],
    }


class Stops:
    """Counts the points, and ends the process at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.dead = False

    def __call__(self, _what: str) -> None:
        if self.dead:
            raise Crash
        self.count += 1
        if self.count == self.at:
            self.dead = True
            raise Crash


def begin(server: Scheduler) -> None:
    """``start`` without its thread: time passes as the test says."""
    server._agents.follow(server)
    server.tick()


def run(cancel: bool, *stops: Callable[[str], None]) -> None:
    """A life of servers, the first of which end where ``stops`` say."""
    world = World(cancel=cancel)
    for point in (*stops, lambda _: None):
        server = world.server(point)
        try:
            begin(server)
            world.drive(server)
            server.stop()
            break
        except Crash:
            world.machine.disconnect()
    world.check()


def points(cancel: bool) -> int:
    counter = Stops(-1)
    run(cancel, counter)
    return counter.count


@pytest.mark.parametrize("cancel", [False, True])
def test_a_server_that_ends_at_any_point_is_followed_by_one_that_goes_on(cancel: bool) -> None:
    total = points(cancel)
    assert total > 90
    for at in range(1, total + 1):
        run(cancel, Stops(at))


@pytest.mark.parametrize("cancel", [False, True])
def test_two_servers_end_one_after_the_other(cancel: bool) -> None:
    dice = random.Random(1)
    total = points(cancel)
    for _ in range(100):
        run(cancel, Stops(dice.randint(1, total)), Stops(dice.randint(1, total)))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cancel", [False, True])
def test_two_servers_end_at_any_two_points(cancel: bool) -> None:
    total = points(cancel)
    for first in range(1, total + 1):
        for second in range(1, total + 1):
            run(cancel, Stops(first), Stops(second))


def suspend(cancel: bool, at: int) -> int:
    """A server stands still at a point for longer than its lease, while another one takes over, and then goes on."""
    world = World(cancel=cancel)
    count = 0
    others: list[Scheduler] = []

    def point(_what: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            world.clock.now += LEASE + 1
            others.append(world.server(alone=False))
            world.suspended.append(first)
            begin(others[0])
            world.drive(others[0], submit=False)
            world.suspended.clear()

    first = world.server(point, alone=False)
    begin(first)
    world.drive(first, *others)
    for _ in range(3):
        world.clock.now += 1
        world.drive(first, *others)
        for server in (first, *others):
            server.tick()
    for server in (first, *others):
        server.stop()
    world.check()
    return count


@pytest.mark.parametrize("cancel", [False, True])
def test_a_server_that_is_suspended_at_any_point_past_its_lease_does_no_harm(cancel: bool) -> None:
    total = suspend(cancel, -1)
    assert total > 90
    for at in range(1, total + 1):
        suspend(cancel, at)


def lose(at: int, *, crash: bool) -> int:
    """All agents are killed at a point, and with ``crash`` the server too."""
    world = World(cancel=False)
    count = 0

    def point(_what: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            for key in list(world.machine.agents):
                world.machine.kill(key)
            if crash:
                raise Crash

    while True:
        server = world.server(point)
        try:
            begin(server)
            world.drive(server)
            server.stop()
            break
        except Crash:
            world.machine.disconnect()
    world.check_nothing_is_left()
    return count


@pytest.mark.parametrize("crash", [False, True])
def test_agents_that_are_killed_at_any_point_are_lost_and_their_groups_run_again(crash: bool) -> None:
    total = lose(-1, crash=crash)
    for at in range(1, total + 1):
        lose(at, crash=crash)
