"""Agents: adopted, killed at any phase, fenced, started late or twice, of another version; what they leave behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import ServiceError
from casstore.wire.credentials import GENERIC, Credential
from casstore_fuse import mounted
from casstore_fuse.mounting import why_not
from casstore_orchestrator.agent import journal, link, protocol
from casstore_orchestrator.agent.folder import RunFolder, Runs, Start
from casstore_orchestrator.agent.host import ProcessAgents
from casstore_orchestrator.agent.journal import Happened, Journal, Over, Taken
from casstore_orchestrator.events import (
    Attempt,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    GroupFailed,
    InputsReady,
    ReleaseTasks,
    StartGroup,
    TaskExited,
    TaskRunning,
)
from casstore_orchestrator.executors.cgroups import Bases, sweep_groups
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.loader import load
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.pools import Resources, parse_pools, this_machine
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.state import new_workflow, with_number
from casstore_server.agent import local_agents
from casstore_server.config import Watched
from casstore_server.db.engine import open_database
from casstore_server.db.store import Database
from casstore_server.db.vault import SealedVault
from casstore_server.keyring import open_box
from casstore_server.private import Private
from casstore_server.settings import Settings
from casstore_server.stores import Stores

PATIENCE = 60.0
PF_EXITING = 0x4
"""Of the ninth field of proc_pid_stat(5), as in the kernel's include/linux/sched.h."""
NO_MOUNTS = why_not() or ("" if probe().sandbox else "; ".join(probe().reasons))


def eventually(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    pytest.fail(f"never happened: {what}")


class Listener:
    """Remembers what it is told, once it has said yes to it; ``refuse``: how many calls raise before that."""

    def __init__(self, agents: ProcessAgents) -> None:
        self.agents = agents
        self.news = threading.Condition()
        self.events: dict[RunKey, list[tuple[int, Event]]] = {}
        self.orders: dict[RunKey, int] = {}
        self.ends: list[tuple[RunKey, str | None]] = []
        self.refuse = 0

    def _hear(self, change: Callable[[], object]) -> None:
        with self.news:
            if self.refuse:
                self.refuse -= 1
                raise ServiceError("not now")
            change()
            self.news.notify_all()

    def event(self, run: RunKey, number: int, event: Event) -> None:
        self._hear(lambda: self.events.setdefault(run, []).append((number, event)))
        self.agents.acknowledge(run, number)

    def taken(self, run: RunKey, order: int) -> None:
        self._hear(lambda: self.orders.update({run: order}))

    def ended(self, run: RunKey) -> None:
        self._hear(lambda: self.ends.append((run, None)))

    def lost(self, run: RunKey, why: str) -> None:
        self._hear(lambda: self.ends.append((run, why)))

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        with self.news:
            if not self.news.wait_for(condition, PATIENCE):
                pytest.fail(f"never happened: {what}; {self.events} {self.ends}")
            return condition()

    def kinds(self, run: RunKey) -> list[str]:
        return [type(event).__name__ for _, event in self.events.get(run, [])]

    def saw(self, run: RunKey, kind: type[Event], times: int = 1) -> None:
        self.wait(lambda: self.kinds(run).count(kind.__name__) >= times, f"{kind.__name__} of {run}")

    def end(self, run: RunKey) -> str | None:
        self.wait(lambda: any(ended == run for ended, _ in self.ends), f"the end of {run}")
        ((_, why),) = [end for end in self.ends if end[0] == run]
        return why


class Lab:
    """A state folder, and servers over it."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            socket_path=folder / "run" / "s",
            state_dir=folder / "state",
            config_file=folder / "config" / "config.yaml",
            data_dir=folder / "data",
            cache_dir=folder / "cache",
            user="tester",
        )
        for place in ("run", "state", "config"):
            (folder / place).mkdir(parents=True, mode=0o700)
        self.settings.workflows.mkdir()
        self.runs = Runs(self.settings.state_dir / "runs")
        self.servers: list[ProcessAgents] = []
        self.count = 0
        self.agents, self.listener = self.server()

    def server(self) -> tuple[ProcessAgents, Listener]:
        agents = local_agents(self.settings)
        listener = Listener(agents)
        agents.follow(listener)
        self.servers.append(agents)
        return agents, listener

    def record(self, command: str, tasks: str = "a") -> WorkflowRecord:
        self.count += 1
        text = "workflow:\n  name: wf\n  groups:\n  - name: g\n    tasks:\n" + "".join(
            f'    - {{name: {name}, lead: {str(name == tasks[0]).lower()}, image: x, command: [sh, -c, "{command}"]}}\n'
            for name in tasks
        )
        pool = parse_pools({}, this_machine())["default"]
        return with_number(new_workflow(load(text).spec, uuid=uuid.uuid4().hex, user="tester", pool=pool), self.count)

    def start(self, command: str, tasks: str = "a", agents: ProcessAgents | None = None) -> RunKey:
        """Start a run and have its tasks prepared."""
        record = self.record(command, tasks)
        run = RunKey(record.id, "g", 1)
        server = agents or self.agents
        server.start(run, record, {name: Resources(cpu=1, memory=256 << 20) for name in tasks})
        server.order(run, 1, StartGroup("g", tuple(Attempt(name, 0, 0) for name in tasks)))
        return run

    def running(self, command: str, tasks: str = "a") -> RunKey:
        run = self.start(command, tasks)
        self.listener.saw(run, InputsReady, len(tasks))
        self.agents.order(run, 2, ReleaseTasks("g", tuple(Attempt(name, 0, 0) for name in tasks), whole_group=True))
        return run

    def folder(self, run: RunKey) -> RunFolder:
        return self.runs.folder(run)

    def pid(self, run: RunKey) -> int:
        with self.agents.attach(run) as connection:
            return protocol.check_peer(connection)

    def lines(self, run: RunKey) -> list[str]:
        store = LogStore(self.settings.workflows)
        try:
            return [line.split("] ", 1)[1] for line in store.read(run.workflow_id) if "][osmo]" not in line]
        finally:
            store.close()

    def printed(self, run: RunKey, line: str) -> None:
        eventually(lambda: line in self.lines(run), f"{run} prints {line}")

    def gone(self, run: RunKey) -> None:
        """Nothing is left of a run but its log, and the mark that it is over."""
        eventually(lambda: not self.folder(run).path.exists(), f"the folder of {run} goes")
        assert self.folder(run).closed
        workflow = self.settings.workflows / run.workflow_id
        assert [path for path in workflow.glob("*/*") if path.name.isdigit()] == []
        assert not (workflow / "_mounts").exists()

    def close(self) -> None:
        for run in self.agents.strays():
            self.agents.discard(run)
        eventually(lambda: not self.agents.strays(), "the strays end")
        for server in self.servers:
            server.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


def children(pid: int) -> list[int]:
    """A process and all that descends from it."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b") ")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(name))
    found, queue = [], [pid]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += below
    return [pid, *found]


def alive(pid: int) -> bool:
    """Whether it can still do anything: one that ends gives its locks back a moment before it becomes a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return False
    return fields[0] not in {b"Z", b"X"} and not int(fields[6]) & PF_EXITING


# From the beginning to the end.


def test_a_run_from_beginning_to_end(lab: Lab) -> None:
    run = lab.running("echo one; echo two >&2", "ab")
    lab.listener.saw(run, TaskExited, 2)
    pid = lab.pid(run)
    assert pid > 0
    assert os.getsid(pid) == pid  # neither our session nor our terminal
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1)} == {"/dev/null"}
    assert os.readlink(f"/proc/{pid}/fd/2") == str(lab.folder(run).path / "log")
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    lab.agents.order(run, 3, CloseGroup("g"))
    assert lab.listener.end(run) is None
    assert lab.listener.orders[run] == 3
    assert [number for number, _ in lab.listener.events[run]] == list(range(1, 9))
    assert sorted(lab.lines(run)) == ["one", "one", "two", "two"]
    lab.gone(run)
    assert not alive(pid)


def test_an_agent_is_adopted_with_what_was_not_acknowledged(lab: Lab) -> None:
    run = lab.running("echo began; read line; echo ended")
    lab.listener.saw(run, InputsReady)
    lab.agents.leave(run)
    second, told = lab.server()
    with pytest.raises(ServiceError, match="can't be reached"):
        second.attach(RunKey("wf-0", "g", 1))
    record = lab.folder(run).start().record
    second.start(run, record, {}, seen=1)
    told.saw(run, InputsReady)
    assert told.events[run][0][0] == 2
    second.order(run, 2, ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True))  # again: it has it
    second.order(run, 1, StartGroup("g", (Attempt("a", 0, 0),)))
    told.wait(lambda: told.orders.get(run) == 2, "orders are known")
    told.saw(run, TaskExited)  # standard input is empty
    second.order(run, 3, CloseGroup("g"))
    assert told.end(run) is None
    assert lab.lines(run) == ["began", "ended"]
    assert not [end for end in lab.listener.ends if end[0] == run]


def test_two_servers_may_follow_one_agent(lab: Lab) -> None:
    second, told = lab.server()
    run = lab.start("echo began")
    lab.listener.saw(run, InputsReady)
    second.start(run, lab.folder(run).start().record, {})
    told.saw(run, InputsReady)
    release = ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True)
    for server in (lab.agents, second):
        server.order(run, 2, release)
    for listener in (lab.listener, told):
        listener.saw(run, TaskExited)
    assert lab.lines(run) == ["began"]
    second.order(run, 3, CloseGroup("g"))
    lab.agents.order(run, 3, CloseGroup("g"))
    eventually(lambda: not lab.folder(run).path.exists(), "the run goes")


def test_what_the_listener_does_not_take_comes_again_in_order(lab: Lab) -> None:
    lab.listener.refuse = 4
    run = lab.running("true")
    lab.listener.saw(run, TaskExited)
    lab.listener.refuse = 3
    lab.agents.order(run, 3, CloseGroup("g"))
    assert lab.listener.end(run) is None
    assert [number for number, _ in lab.listener.events[run]] == [1, 2, 3, 4]


def test_orders_come_in_the_order_of_their_numbers(lab: Lab) -> None:
    run = lab.start("echo began; sleep 60")
    lab.listener.saw(run, InputsReady)
    lab.agents.order(run, 3, CloseGroup("g"))
    lab.agents.order(run, 2, ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True))
    assert lab.listener.end(run) is None
    assert lab.listener.orders[run] == 3


def test_a_group_that_can_t_be_run_says_so_and_waits_to_be_closed(lab: Lab) -> None:
    lab.settings.config_file.write_text("casstore: [")
    try:
        run = lab.start("true")
        lab.settings.config_file.unlink()
        lab.listener.saw(run, TaskRunning)  # a wrong configuration is no reason
    finally:
        lab.settings.config_file.unlink(missing_ok=True)
    lab.agents.order(run, 2, CloseGroup("g"))
    assert lab.listener.end(run) is None
    run = lab.start("true", "a")
    lab.listener.saw(run, TaskRunning)
    lab.agents.order(run, 2, CloseGroup("g"))
    assert lab.listener.end(run) is None


# An agent that ends before its time.


def kill_agent(lab: Lab, run: RunKey) -> list[int]:
    pid = lab.pid(run)
    tree = children(pid)
    os.kill(pid, signal.SIGKILL)
    return tree


@pytest.mark.parametrize("phase", ["begun", "ready", "running", "exited"])
def test_a_killed_agent_is_reported_once_and_leaves_nothing(lab: Lab, phase: str) -> None:
    if phase == "begun":
        record = lab.record("true")
        run = RunKey(record.id, "g", 1)
        lab.agents.start(run, record, {})
        eventually(lambda: lab.folder(run).begun, "the agent begins")
    elif phase == "ready":
        run = lab.start("true", "ab")
        lab.listener.saw(run, InputsReady, 2)
    elif phase == "running":
        run = lab.running("echo began; trap '' TERM; (trap '' TERM; setsid sleep 600) & sleep 600", "ab")
        lab.printed(run, "began")
    else:
        run = lab.running("true")
        lab.listener.saw(run, TaskExited)
    tree = kill_agent(lab, run)
    why = lab.listener.end(run)
    assert why is not None
    assert "ended unexpectedly" in why
    assert [pid for pid in tree if alive(pid)] == []
    lab.gone(run)


def test_events_that_nobody_heard_come_before_the_loss(lab: Lab) -> None:
    run = lab.running("true")
    lab.listener.wait(lambda: lab.listener.orders.get(run) == 2, "the order to begin is taken")
    lab.agents.leave(run)
    folder = lab.folder(run)
    record = folder.start().record

    def exited() -> bool:
        past = journal.read(folder.journal)
        return past is not None and any(isinstance(happened.event, TaskExited) for happened in past.events)

    eventually(exited, "the task ends")
    kill_agent(lab, run)
    second, told = lab.server()
    second.start(run, record, {}, seen=2)
    assert "ended unexpectedly" in (told.end(run) or "")
    assert [(number, type(event)) for number, event in told.events[run]] == [(3, CommandExited), (4, TaskExited)]
    assert told.orders[run] == 2


def test_a_killed_supervisor_and_agent_leave_nothing(lab: Lab) -> None:
    if not probe().sandbox:
        pytest.skip(f"no sandboxes here: {'; '.join(probe().reasons)}")
    run = lab.running("echo began; sleep 600", "ab")
    lab.printed(run, "began")
    tree = children(lab.pid(run))
    for pid in reversed(tree):
        if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes() or pid == tree[0]:
            os.kill(pid, signal.SIGKILL)
    assert lab.listener.end(run) is not None
    eventually(lambda: not any(map(alive, tree)), "everything ends")
    lab.gone(run)
    bases = probe().bases
    for base in {bases.memory, bases.cpu, bases.pids} - {""}:
        for name in os.listdir(base):
            pid = name.removeprefix("casstore-").partition("-")[0]
            assert not name.startswith("casstore-") or not pid.isdigit() or os.path.exists(f"/proc/{pid}")


def test_an_agent_that_is_told_to_end_takes_its_tasks_with_it(lab: Lab) -> None:
    run = lab.running("echo began; sleep 600")
    lab.printed(run, "began")
    tree = children(lab.pid(run))
    os.kill(tree[0], signal.SIGTERM)
    assert "told to end" in (lab.listener.end(run) or "")
    assert not any(map(alive, tree))
    lab.gone(run)


def test_an_agent_whose_folder_was_removed_ends(lab: Lab) -> None:
    run = lab.running("echo began; sleep 600")
    lab.printed(run, "began")
    tree = children(lab.pid(run))
    lab.agents.leave(run)
    shutil.rmtree(lab.folder(run).path)
    eventually(lambda: not any(map(alive, tree)), "it ends with its tasks")


def test_no_secret_leaves_the_agent(lab: Lab) -> None:
    canary = "canary-0b9f5c1e"
    database = Database(open_database(lab.settings.database))
    box = open_box(Private(key_file=str(lab.settings.own_key_file)), lab.settings, database)
    credential = Credential(type=GENERIC, profile=None, payload={"value": canary})
    SealedVault(lambda: database, box).put("tester", "key", credential)
    database.close()
    lab.count += 1
    text = """
workflow:
  name: wf
  groups:
  - name: g
    tasks:
    - name: a
      lead: true
      image: x
      command: [sh, -c, "echo it is $SECRET; sleep 600"]
      credentials: {key: {SECRET: value}}
"""
    pool = parse_pools({}, this_machine())["default"]
    spec = load(text).spec
    record = with_number(new_workflow(spec, uuid=uuid.uuid4().hex, user="tester", pool=pool), lab.count)
    run = RunKey(record.id, "g", 1)
    lab.agents.start(run, record, {})
    lab.agents.order(run, 1, StartGroup("g", (Attempt("a", 0, 0),)))
    lab.agents.order(run, 2, ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True))
    lab.printed(run, "it is [MASKED]")
    for pid in children(lab.pid(run))[:2]:  # the agent and the supervisor
        for name in ("cmdline", "environ"):
            assert canary.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    files = [path for path in lab.settings.state_dir.rglob("*") if path.is_file()]
    assert lab.folder(run).journal in files
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in lab.folder(run).path.iterdir()} == {0}
    lab.agents.order(run, 3, CloseGroup("g"))
    assert lab.listener.end(run) is None


def test_a_stopped_agent_is_waited_for(lab: Lab) -> None:
    run = lab.running("echo began; sleep 0.2; echo ended")
    lab.printed(run, "began")
    pid = lab.pid(run)
    os.kill(pid, signal.SIGSTOP)
    lab.agents.leave(run)
    second, told = lab.server()
    second.start(run, lab.folder(run).start().record, {}, seen=2)
    second.order(run, 3, CloseGroup("g"))
    assert told.ends == []
    os.kill(pid, signal.SIGCONT)
    assert told.end(run) is None
    lab.gone(run)


def test_an_agent_that_does_not_take_the_order_to_end_is_killed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PATIENCE", 0.5)
    for followed in (True, False):
        run = lab.running("echo began; sleep 600")
        lab.printed(run, "began")
        agents, told = lab.agents, lab.listener
        record, pid = lab.folder(run).start().record, lab.pid(run)
        os.kill(pid, signal.SIGSTOP)
        if not followed:  # the server that closes it has not spoken with it before
            agents.leave(run)
            agents, told = lab.server()
            agents.start(run, record, {}, seen=2)
        agents.order(run, 3, CloseGroup("g"))
        assert "did not answer" in str(told.end(run))
        lab.gone(run)


# Those that come too late, or twice.


def test_a_late_starter_runs_nothing(lab: Lab) -> None:
    run = lab.running("echo ran")
    lab.listener.saw(run, TaskExited)
    record = lab.folder(run).start().record
    lab.agents.order(run, 3, CloseGroup("g"))
    assert lab.listener.end(run) is None
    lab.gone(run)
    second, told = lab.server()
    second.start(run, record, {})
    second.order(run, 1, StartGroup("g", (Attempt("a", 0, 0),)))
    assert told.end(run) is not None
    lab.gone(run)
    assert lab.lines(run) == ["ran"]


def test_of_two_agents_for_one_run_one_begins(lab: Lab) -> None:
    record = lab.record("echo ran")
    run = RunKey(record.id, "g", 1)
    folder = lab.folder(run)
    folder.put(Start.of(run, record, {}))
    nursery = lab.agents._nursery
    pids = [nursery.begin(folder.name) for _ in range(5)]
    eventually(lambda: sum(map(alive, pids)) == 1, "all but one end")
    (winner,) = [pid for pid in pids if alive(pid)]
    eventually(lambda: folder.begun, "one begins")
    lab.agents.start(run, record, {})
    lab.agents.order(run, 1, StartGroup("g", (Attempt("a", 0, 0),)))
    lab.listener.saw(run, InputsReady)
    assert lab.pid(run) == winner
    os.kill(winner, signal.SIGKILL)
    assert lab.listener.end(run) is not None
    late = nursery.begin(folder.name)
    eventually(lambda: not alive(late), "the late one ends")
    assert not folder.begun


def test_an_agent_that_was_ordered_and_not_born_is_born_by_the_next_server(lab: Lab) -> None:
    record = lab.record("echo ran")
    run = RunKey(record.id, "g", 1)
    lab.folder(run).put(Start.of(run, record, {}))  # and here the first server was killed
    assert run in lab.agents.strays()
    lab.agents.start(run, record, {})
    lab.agents.order(run, 1, StartGroup("g", (Attempt("a", 0, 0),)))
    lab.listener.saw(run, InputsReady)
    lab.agents.discard(run)
    lab.gone(run)


def test_strays_end_silently(lab: Lab) -> None:
    run = lab.running("echo began; sleep 600")
    lab.printed(run, "began")
    tree = children(lab.pid(run))
    lab.agents.leave(run)
    lab.agents.discard(run)
    lab.gone(run)
    assert not any(map(alive, tree))
    assert not [end for end in lab.listener.ends if end[0] == run]


def test_a_run_without_a_trace_is_lost(lab: Lab) -> None:
    record = lab.record("echo ran")
    run = RunKey(record.id, "g", 1)
    lab.agents.start(run, record, {}, seen=3)
    assert lab.listener.end(run) == "No trace of the group's agent is left."
    lab.gone(run)


def test_an_agent_that_can_t_begin_is_given_up(lab: Lab) -> None:
    record = lab.record("echo ran")
    run = RunKey(record.id, "g", 1)
    folder = lab.folder(run)
    folder.path.mkdir(parents=True)
    (folder.path / "start").write_text("{")
    lab.agents.start(run, record, {})
    why = lab.listener.end(run)
    assert why is not None
    assert why.startswith("The agent of the group can't be started: what the run is about can't be read: ")
    lab.gone(run)


# Mounted inputs.


def reading(lab: Lab, dataset: str) -> RunKey:
    """A run of a task that goes on reading from what is mounted for it."""
    lab.count += 1
    text = f"""
workflow:
  name: wf
  groups:
  - name: g
    tasks:
    - name: a
      lead: true
      image: x
      command: [sh, -c, "cd {{{{input:0}}}}/{dataset}; cat one; while cat two; do sleep 0.1; done"]
      inputs: [{{dataset: {{name: {dataset}}}}}]
"""
    pool = parse_pools({}, this_machine())["default"]
    spec = load(text).spec
    record = with_number(new_workflow(spec, uuid=uuid.uuid4().hex, user="tester", pool=pool), lab.count)
    run = RunKey(record.id, "g", 1)
    lab.agents.start(run, record, {"a": Resources()})
    lab.agents.order(run, 1, StartGroup("g", (Attempt("a", 0, 0),)))
    lab.listener.saw(run, InputsReady)
    lab.agents.order(run, 2, ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True))
    lab.printed(run, "first line")
    return run


@pytest.mark.skipif(bool(NO_MOUNTS), reason=f"nothing can be mounted for tasks here: {NO_MOUNTS}")
def test_mounts_outlive_the_server_and_not_the_run(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("first line\n")
    (tmp_path / "two").write_text("second line\n")
    stores = Stores(Watched(lab.settings.config_file, lab.settings.data_dir, this_machine()), lab.settings)
    stores.open(None, "tester").upload("ds", [f"{tmp_path}/*"])
    stores.close()
    run = reading(lab, "ds")
    place = lab.settings.workflows / run.workflow_id / "_mounts" / "g.1" / "0"
    assert (place / "one").read_text() == "first line\n"
    lab.agents.leave(run)
    other, told = lab.server()  # neither the end of a server nor the beginning of another one touches it
    assert (place / "one").read_text() == "first line\n"
    other.start(run, lab.folder(run).start().record, {}, seen=2)
    told.wait(lambda: told.orders.get(run) == 2, "the run is adopted")
    assert (place / "two").read_text() == "second line\n"
    kill_agent(lab, run)
    assert "ended unexpectedly" in (told.end(run) or "")
    lab.gone(run)
    assert mounted.at(str(place)) is None
    registry = lab.settings.state_dir / "inputs" / "mounts"
    assert [path.name for path in registry.iterdir() if path.suffix == ".json"] == []


# Other versions.


class Stranger(threading.Thread):
    """An agent of another version: holds lock and socket until it is told to end."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(daemon=True)
        self.lock = folder.lock()
        self.listener = folder.listen()
        self.heard: list[dict[str, Any]] = []

    def run(self) -> None:
        with self.listener:
            while not any("end" in line for line in self.heard):
                connection, _ = self.listener.accept()
                with connection:
                    line = protocol.read_line(connection)
                    if not line:
                        continue
                    self.heard.append(protocol.decode_line(line))
                    if "follow" in self.heard[-1]:
                        protocol.send_line(connection, {"version": 99, "taken": 0})
        assert self.lock is not None
        self.lock.release()


def test_an_agent_of_another_version_is_ended_and_the_run_lost(lab: Lab) -> None:
    record = lab.record("true")
    run = RunKey(record.id, "g", 1)
    folder = lab.folder(run)
    folder.put(Start.of(run, record, {}))
    stranger = Stranger(folder)
    (folder.path / "journal").write_bytes(b"casstore run 99\n")
    stranger.start()
    lab.agents.start(run, record, {}, seen=1)
    why = lab.listener.end(run)
    stranger.join(PATIENCE)
    assert [set(line) for line in stranger.heard] == [{"follow"}, {"end"}]
    assert why == "the journal of the run was written by another version"
    lab.gone(run)


def test_a_server_of_another_version_is_refused(lab: Lab) -> None:
    run = lab.start("true")
    lab.listener.saw(run, InputsReady)
    for line in (b'{"follow": {"version": 99, "seen": 0}}\n', b'{"follow": 1}\n', b"{}\n", b"[]\n", b"\xff\n"):
        with lab.agents.attach(run) as connection:
            connection.sendall(line)
            assert b"error" in protocol.read_line(connection)
            assert connection.recv(1) == b""
    with lab.agents.attach(run) as connection:
        connection.sendall(b'{"follow": {"version": 1, "seen": 0}}\n')
        protocol.read_line(connection)
        connection.sendall(b"\xff\xff\xff\xff")
        while connection.recv(1 << 16):
            pass
    with lab.agents.attach(run) as connection:  # an order before its turn
        connection.sendall(b'{"follow": {"version": 1, "seen": 99}}\n')
        protocol.read_line(connection)
        connection.sendall(protocol.encode(protocol.Order(5, CloseGroup("g"))))
        assert connection.recv(1 << 16) == b""
    lab.agents.order(run, 2, CloseGroup("g"))
    assert lab.listener.end(run) is None


# Dead runs, by their journals alone.


def dead(lab: Lab, *entries: Happened | Taken | Over) -> RunKey:
    record = lab.record("true")
    run = RunKey(record.id, "g", 1)
    lab.folder(run).put(Start.of(run, record, {}))
    written = Journal.create(lab.folder(run).journal)
    for entry in entries:
        written.append(entry)
    written.close()
    lab.agents.start(run, record, {})
    return run


START: Effect = StartGroup("g", (Attempt("a", 0, 0),))


def test_a_run_that_closed_while_no_server_was_there(lab: Lab) -> None:
    run = dead(lab, Taken(1, START), Happened(1, TaskRunning(Attempt("a", 0, 0))), Taken(2, CloseGroup("g")), Over())
    assert lab.listener.end(run) is None
    assert (lab.listener.orders[run], lab.listener.kinds(run)) == (2, ["TaskRunning"])
    lab.gone(run)


def test_a_run_that_broke_off_while_no_server_was_there(lab: Lab) -> None:
    run = dead(lab, Taken(1, START), Happened(1, GroupFailed("g", "x")), Over("told to end"))
    assert lab.listener.end(run) == "told to end"
    lab.gone(run)


def test_homes_of_a_dead_run_are_removed_and_others_are_not(lab: Lab) -> None:
    record = lab.record("true")
    homes = lab.settings.workflows / record.id / "a"
    for name in ("0/data/input", "1/data", "output"):
        (homes / name).mkdir(parents=True)
    mounts = lab.settings.workflows / record.id / "_mounts"
    (mounts / "g.1" / "0").mkdir(parents=True)
    lab.count -= 1
    run = dead(lab, Taken(1, START))
    assert "ended unexpectedly" in (lab.listener.end(run) or "")
    assert sorted(path.name for path in homes.iterdir()) == ["1", "output"]
    assert not (mounts / "g.1").exists()


def test_groups_of_dead_supervisors_are_swept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for name in (f"casstore-{process.pid}-1", f"casstore-{os.getpid()}-1", "casstore-trial-1", "other"):
        (tmp_path / name).mkdir()
    sweep_groups(Bases(2, str(tmp_path), str(tmp_path), ""))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"casstore-{os.getpid()}-1", "casstore-trial-1", "other"]
    )


# The process that agents are forked from.


def test_agents_outlive_the_process_that_they_are_forked_from(lab: Lab) -> None:
    second, told = lab.server()
    run = lab.start("echo ran", agents=second)
    told.saw(run, InputsReady)
    nursery = second._nursery
    assert nursery._process is not None
    first = nursery._process.pid
    assert len(os.listdir(f"/proc/{first}/task")) == 1, "only one thread may be there when it forks"
    os.kill(first, signal.SIGKILL)
    again = lab.start("echo ran", agents=second)
    told.saw(again, InputsReady)
    assert nursery._process.pid != first
    second.order(run, 2, ReleaseTasks("g", (Attempt("a", 0, 0),), whole_group=True))
    told.saw(run, TaskExited)
    for left in (run, again):
        second.discard(left)
        lab.gone(left)


ABANDON = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from small_server import make_folders
from casstore_server.agent import local_agents
agents = local_agents(make_folders(Path(sys.argv[1])))
agents._nursery.warm()
print(agents._nursery._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_that_agents_are_forked_from_ends_with_its_server(short_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABANDON, str(short_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    eventually(lambda: not alive(pid), "it ends")


# Interactive connections.


def test_an_interactive_connection_is_answered(lab: Lab) -> None:
    run = lab.running("sleep 600")
    with lab.agents.attach(run) as connection:
        protocol.send_line(connection, {"attach": "no such thing", "task": "a"})
        assert "error" in protocol.decode_line(protocol.read_line(connection))
    with lab.agents.attach(run) as idle:
        lab.agents.order(run, 3, CloseGroup("g"))
        assert lab.listener.end(run) is None
        idle.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert idle.recv(1) == b""
