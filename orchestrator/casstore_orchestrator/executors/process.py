"""The executor that needs no engine: tasks are processes of this machine, sandboxed where the kernel allows it.

Decided here and only here: which of the two modes is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from casstore.errors import ServiceError
from casstore_orchestrator.executors import plain, sandbox
from casstore_orchestrator.executors.isolated import SandboxGang
from casstore_orchestrator.executors.launch import check_launches
from casstore_orchestrator.executors.network import MAX_TASKS
from casstore_orchestrator.executors.places import plain_place, sandbox_place
from casstore_orchestrator.executors.probe import Machine, probe, why_no_layer
from casstore_orchestrator.executors.running import ProcessGang
from casstore_orchestrator.ports import Executor, Isolation, Layout, LogSink, TaskLaunch

__all__ = ["ProcessExecutor"]


class ProcessExecutor(Executor):
    """Runs groups on this machine; implements ``ports.Executor``.

    ``mode``: "auto" takes bubblewrap where it works. ``hidden``: folders that tasks must not see (stores, homes of
    other tasks, sockets); the user's home and its configuration are hidden anyway. ``exposed``: folders in the hidden
    ones that tasks may read after all. ``strict_cpu`` makes the CPU share a limit even on an idle machine. ``egress``:
    tasks get a way out of their group's network where this machine can give one. ``hold`` is
    a descriptor that is kept open by whatever is started for a group, but not by its tasks.
    """

    def __init__(
        self,
        *,
        mode: Literal["auto", "bubblewrap", "plain"] = "auto",
        hidden: Iterable[Path] = (),
        exposed: Iterable[Path] = (),
        strict_cpu: bool = False,
        egress: bool = True,
        hold: int | None = None,
    ) -> None:
        self._mode = mode
        self._hidden = tuple(hidden)
        self._exposed = tuple(exposed)
        self._strict_cpu = strict_cpu
        self._egress = egress
        self._hold = () if hold is None else (hold,)

    def _machine(self) -> Machine | None:
        """None: plain mode."""
        if self._mode == "plain":
            return None
        machine = probe()
        if machine.sandbox:
            return machine
        if self._mode == "bubblewrap":
            raise ServiceError(f"tasks can't be isolated on this machine: {'; '.join(machine.reasons)}")
        return None

    def describe(self) -> Isolation:
        """The isolation that tasks get here, and why."""
        machine = self._machine()
        if machine is None:
            why = ("plain mode was asked for",) if self._mode == "plain" else probe().reasons
            return plain.plain_isolation(why)
        lacks = machine.lacks
        if machine.way_out and not self._egress:
            lacks = (*lacks, "nothing outside the group can be reached: the pool does not allow it")
        reasons = tuple(dict.fromkeys((*machine.reasons, *lacks)))
        return Isolation(mode="bubblewrap", network=machine.bridged, reasons=reasons, lacks=lacks)

    def layout(self, launch_home: Path) -> Layout:
        """The paths of a task whose attempt has this home."""
        return plain.plain_layout(launch_home) if self._machine() is None else sandbox.LAYOUT

    def host(self, group_key: str, task: str) -> str:
        """A name that resolves to the task inside its group."""
        return "localhost" if self._machine() is None else task

    def place_of(self, launch_home: Path, path: str) -> tuple[Path, str]:
        """Where on the host what the task sees at a path lies."""
        place = plain_place if self._machine() is None else sandbox_place
        return place(launch_home, path)

    def why_no_layer(self, launch_home: Path, source: Path) -> str:
        """Why inputs can't be laid over ``source``; empty when they can."""
        machine = self._machine()
        if machine is None:
            return "tasks have no sandboxes on this machine"
        layers = launch_home.resolve() / "layers"
        layers.mkdir(exist_ok=True)
        return why_no_layer(sandbox.layer_source(launch_home, source), str(layers), user=machine.user)

    def prepare(self, group_key: str, launches: Sequence[TaskLaunch], log: LogSink) -> ProcessGang:
        """Prepare all tasks or none."""
        check_launches(launches, MAX_TASKS)
        machine = self._machine()
        gang: ProcessGang
        if machine is None:
            gang = plain.PlainGang(group_key, log, isolation=self.describe(), hold=self._hold)
        else:
            gang = SandboxGang(
                group_key,
                launches,
                log,
                machine=machine,
                view=sandbox.machine_view(self._hidden, self._exposed),
                isolation=self.describe(),
                strict_cpu=self._strict_cpu,
                egress=self._egress,
                hold=self._hold,
            )
        gang.prepare(launches)
        return gang
