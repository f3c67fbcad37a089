"""A server as small as can be, for tests that kill it: one workflow, its record in a file, real rules, real agents.

Run as a program: ``small_server.py FOLDER YAML``. Each change of the record is one replacement of the file. Before and
after everything that it does it passes a named step; with ``FOLDER/die`` there it kills itself at the first step that
is not named in ``FOLDER/died`` yet.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

import msgspec
from msgspec.structs import replace

from casstore_orchestrator.agent.host import ProcessAgents
from casstore_orchestrator.events import (
    Effect,
    Event,
    FinishWorkflow,
    GroupLost,
    GroupPlaced,
    Placed,
    QueueGroup,
    Submitted,
)
from casstore_orchestrator.loader import load
from casstore_orchestrator.pools import Resources, parse_pools, this_machine
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.records import GroupRecord, Held, WorkflowRecord
from casstore_orchestrator.records import Order as Ordered
from casstore_orchestrator.state import apply, new_workflow, with_number
from casstore_server.agent import local_agents
from casstore_server.settings import Settings

LIMITS = Resources(cpu=1, memory=256 << 20)


def settings_of(folder: Path) -> Settings:
    return Settings(
        socket_path=folder / "run" / "s",
        state_dir=folder / "state",
        config_file=folder / "config" / "config.yaml",
        data_dir=folder / "data",
        cache_dir=folder / "cache",
        user="tester",
    )


def make_folders(folder: Path) -> Settings:
    settings = settings_of(folder)
    for place in ("run", "state", "config"):
        (folder / place).mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.workflows.mkdir(exist_ok=True)
    return settings


class SmallServer:
    """Follows the agents of one workflow; its record is all that it remembers."""

    def __init__(self, folder: Path, agents: ProcessAgents) -> None:
        self.folder = folder
        self.agents = agents
        self.over = threading.Event()
        self.told: list[str] = []
        self.first = threading.Event()
        """Set by the first event."""
        self._lock = threading.RLock()

    # The record.

    @property
    def record(self) -> WorkflowRecord:
        return msgspec.json.decode((self.folder / "record").read_bytes(), type=WorkflowRecord)

    def _store(self, record: WorkflowRecord) -> None:
        draft = self.folder / "record.new"
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(self.folder / "record")

    def step(self, name: str) -> None:
        if not (self.folder / "die").exists():
            return
        died = self.folder / "died"
        before = died.read_text().splitlines() if died.exists() else []
        if name not in before:
            with died.open("a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    # What happens.

    def begin(self, text: str) -> None:
        """Submit, or take up what is there, and be told by the agents."""
        if not (self.folder / "record").exists():
            pool = parse_pools({}, this_machine())["default"]
            made = new_workflow(load(text).spec, uuid=uuid.uuid4().hex, user="tester", pool=pool)
            self._store(self._after(with_number(made, 1), Submitted()))
        self.step("stored")
        self.agents.follow(self)
        for run in self.agents.strays():
            if self._current(run) is None:
                self.agents.discard(run)
        self._pursue()

    def _after(self, record: WorkflowRecord, event: Event, run: RunKey | None = None, seen: int = 0) -> WorkflowRecord:
        """The record after an event, with the orders that follow in their outbox; queued groups are placed at once."""
        effects: list[Effect]
        record, effects = apply(record, event, 1_795_233_600.0)
        if run is not None:
            record = _put(record, replace(record.group(run.group), seen=seen))
        for effect in effects:
            if isinstance(effect, QueueGroup):
                continue
            if not isinstance(effect, FinishWorkflow):
                group = record.group(effect.group)
                if group.holds:
                    order = Ordered(group.next_order, effect)
                    record = _put(
                        record, replace(group, orders=(*group.orders, order), next_order=group.next_order + 1)
                    )
        return self._place(record)

    def _place(self, record: WorkflowRecord) -> WorkflowRecord:
        for group in record.groups:
            if group.status.value == "SCHEDULING" and not group.holds:
                nodes = {task.name: Placed("default", "box") for task in group.current()}
                held = tuple(Held(name, "default", "box", LIMITS) for name in nodes)
                group = replace(group, holds=held, seen=0, orders=(), next_order=1)  # noqa: PLW2901
                record = self._after(_put(record, group), GroupPlaced(group.name, nodes))
        return record

    def _pursue(self) -> None:
        """Have done what the record asks for; all of it may have been asked for before."""
        with self._lock:
            record = self.record
            for group in record.groups:
                if not group.holds:
                    continue
                run = RunKey(record.id, group.name, group.placements)
                self.step(f"start {run.placement}")
                self.agents.start(run, record, {held.task: held.amount for held in group.holds}, seen=group.seen)
                self.step(f"started {run.placement}")
                for order in group.orders:
                    self.agents.order(run, order.number, order.effect)
                    self.step(f"ordered {run.placement} {order.number}")
            if not record.live:
                self.over.set()

    def _current(self, run: RunKey) -> GroupRecord | None:
        group = self.record.group(run.group)
        return group if group.placements == run.placement and group.holds else None

    def event(self, run: RunKey, number: int, event: Event) -> None:
        kind = type(event).__name__
        self.step(f"{kind} {run.placement} {number}")
        with self._lock:
            group = self._current(run)
            if group is not None and number > group.seen:
                assert number == group.seen + 1
                self._store(self._after(self.record, event, run, number))
            self.step(f"{kind} stored {run.placement} {number}")
            self.agents.acknowledge(run, number)
            self._pursue()

    def taken(self, run: RunKey, order: int) -> None:
        self.step(f"taken {run.placement} {order}")
        with self._lock:
            group = self._current(run)
            if group is not None:
                left = tuple(kept for kept in group.orders if kept.number > order)
                self._store(_put(self.record, replace(group, orders=left)))
        self.step(f"taken stored {run.placement} {order}")

    def ended(self, run: RunKey) -> None:
        self._free(run, None, f"ended {run.placement}")

    def lost(self, run: RunKey, why: str) -> None:
        self._free(run, why, f"lost {run.placement}")

    def _free(self, run: RunKey, why: str | None, what: str) -> None:
        self.step(what)
        with self._lock:
            self.told.append(f"{what}{': ' + why if why else ''}")
            group = self._current(run)
            if group is not None:
                record = _put(self.record, replace(group, holds=(), orders=()))
                record = self._after(record, GroupLost(run.group, why)) if why else self._place(record)
                self._store(record)
            self.step(f"{what} stored")
            self._pursue()


def _put(record: WorkflowRecord, group: GroupRecord) -> WorkflowRecord:
    groups = tuple(group if known.name == group.name else known for known in record.groups)
    return replace(record, groups=groups)


def main() -> None:
    folder = Path(sys.argv[1])
    agents = local_agents(make_folders(folder))
    server = SmallServer(folder, agents)
    server.begin(Path(sys.argv[2]).read_text())
    server.over.wait()
    while agents.strays():
        time.sleep(0.01)
    agents.close()


if __name__ == "__main__":
    main()
