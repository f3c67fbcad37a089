"""Limits of a task's memory, CPU and processes by control groups, version 1 or 2, where they are writable.

Decided here and only here: where groups are created, which limits are set, and how an out-of-memory kill is told.
A task's group is made below the group that this process is in (version 1) or beside it (version 2, whose rule is
that a group with processes of its own has no limits for its children). Nothing outside is changed.

CPU is a weight by default: a task gets its share when the machine is busy and may use what is idle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass

__all__ = ["MAX_PROCESSES", "Bases", "find_bases", "make_group", "remove_group", "sweep_groups"]

_PREFIX = "casstore-"

MAX_PROCESSES = 16384
"""Processes and threads that a task may have at a time: far more than work needs, far less than the machine has."""


@dataclass(frozen=True, slots=True)
class Bases:
    """Folders below which groups for tasks can be made; empty strings where that controller can't be used."""

    version: int = 0
    memory: str = ""
    cpu: str = ""
    pids: str = ""

    def group_paths(self, name: str) -> tuple[str, ...]:
        """The folders of the group ``name``; without duplicates (version 2 has one for all controllers)."""
        return tuple(dict.fromkeys(os.path.join(base, name) for base in (self.memory, self.cpu, self.pids) if base))


@dataclass(slots=True)
class Group:
    """One task's group; made by ``make_group``."""

    bases: Bases
    name: str

    def add(self, pid: int) -> None:
        """Move a process in; its children will be in too."""
        for path in self.bases.group_paths(self.name):
            _write(os.path.join(path, "cgroup.procs"), str(pid))

    def oom_kills(self) -> int:
        """How many processes of the group the kernel killed for memory."""
        if not self.bases.memory:
            return 0
        file = "memory.events" if self.bases.version == 2 else "memory.oom_control"
        with (
            contextlib.suppress(OSError, ValueError),
            open(os.path.join(self.bases.memory, self.name, file), encoding="ascii") as lines,
        ):
            for line in lines:
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)


def make_group(bases: Bases, name: str, *, memory: int, cpu: float, quota: bool) -> Group:
    """Create the group with its limits; ``memory`` in bytes, ``cpu`` in cores, 0 for no limit. Raises OSError."""
    group = Group(bases, name)
    for path in bases.group_paths(name):
        os.mkdir(path)
    if bases.pids:
        _write(os.path.join(bases.pids, name, "pids.max"), str(MAX_PROCESSES))
    if bases.memory and memory > 0:
        folder = os.path.join(bases.memory, name)
        if bases.version == 2:
            _write(os.path.join(folder, "memory.max"), str(memory))
            with contextlib.suppress(OSError):  # no swap accounting in this kernel
                _write(os.path.join(folder, "memory.swap.max"), "0")
        else:
            _write(os.path.join(folder, "memory.limit_in_bytes"), str(memory))
            with contextlib.suppress(OSError):  # no swap accounting in this kernel
                _write(os.path.join(folder, "memory.memsw.limit_in_bytes"), str(memory))
    if bases.cpu and cpu > 0:
        folder = os.path.join(bases.cpu, name)
        if bases.version == 2:
            _write(os.path.join(folder, "cpu.weight"), str(min(10000, max(1, round(cpu * 100)))))
        else:
            _write(os.path.join(folder, "cpu.shares"), str(min(262144, max(2, round(cpu * 1024)))))
        if quota:
            microseconds = max(1000, round(cpu * 100_000))
            if bases.version == 2:
                _write(os.path.join(folder, "cpu.max"), f"{microseconds} 100000")
            else:
                _write(os.path.join(folder, "cpu.cfs_quota_us"), str(microseconds))
    return group


def remove_group(bases: Bases, name: str) -> None:
    """Remove the group ``name``, whose processes have ended; a group that is not there is fine."""
    for path in bases.group_paths(name):
        for _ in range(50):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.02)  # the last process is dead but not yet gone from the group's count
            else:
                break


def sweep_groups(bases: Bases) -> None:
    """Remove the groups ``casstore-<pid>-<n>`` whose supervisor, the process ``pid``, is gone; what is in one is ended.

    The kernel ends the tasks of a supervisor that was killed, but nobody is left who could remove their groups.
    """
    found: set[str] = set()
    for base in {bases.memory, bases.cpu, bases.pids} - {""}:
        with contextlib.suppress(OSError):
            found.update(name for name in os.listdir(base) if name.startswith(_PREFIX))
    for name in found:
        pid = name.removeprefix(_PREFIX).partition("-")[0]
        if not pid.isdigit() or os.path.exists(f"/proc/{pid}"):
            continue
        for path in bases.group_paths(name):
            with contextlib.suppress(OSError, ValueError), open(os.path.join(path, "cgroup.procs"), "rb") as lines:
                for line in lines:
                    os.kill(int(line), signal.SIGKILL)
        remove_group(bases, name)


def _own_groups() -> dict[str, str]:
    """Controller -> path of the group of this process; "" is version 2."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path
    return found


def _mounts() -> list[tuple[str, str, str, set[str]]]:
    """(folder, root, type, options) of every mounted hierarchy."""
    found = []
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            before, after = left.split(" "), right.split(" ")
            if after[0] in {"cgroup", "cgroup2"}:
                found.append((before[4], before[3], after[0], set(after[2].split(","))))
    return found


def _inside(folder: str, root: str, path: str) -> str | None:
    """Where the group ``path`` is in a hierarchy mounted on ``folder`` from ``root``; None when it is not visible."""
    relative = os.path.relpath(path, root)
    if relative.startswith(".."):
        return None
    return os.path.normpath(os.path.join(folder, relative))


def _usable(base: str, file: str) -> bool:
    """Whether a group can really be made below ``base``, limited, and joined by a process of ours."""
    trial = os.path.join(base, f"{_PREFIX}trial-{os.getpid()}")
    try:
        os.mkdir(trial)
    except OSError:
        return False
    try:
        if not os.access(os.path.join(trial, file), os.W_OK):
            return False
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(OSError):
                _write(os.path.join(trial, "cgroup.procs"), str(os.getpid()))
                code = 0
            os._exit(code)
        return os.waitpid(child, 0)[1] == 0
    finally:
        for _ in range(50):
            try:
                os.rmdir(trial)
            except OSError:
                time.sleep(0.02)
            else:
                break


def find_bases() -> Bases:
    """Look for usable hierarchies by trying them. Call it from a single-threaded process: it forks."""
    own, mounts = _own_groups(), _mounts()
    for folder, root, kind, _options in mounts:
        if kind != "cgroup2" or (here := _inside(folder, root, own.get("", "/"))) is None:
            continue
        parent = os.path.dirname(here)
        candidates = [here] if here == folder else [parent, here]
        for base in candidates:
            memory = base if _usable(base, "memory.max") else ""
            cpu = base if _usable(base, "cpu.weight") else ""
            pids = base if _usable(base, "pids.max") else ""
            if memory or cpu or pids:
                return Bases(2, memory, cpu, pids)
    found = {}
    for controller, file in (("memory", "memory.limit_in_bytes"), ("cpu", "cpu.shares"), ("pids", "pids.max")):
        for folder, root, kind, options in mounts:
            here = _inside(folder, root, own.get(controller, "/"))
            if kind == "cgroup" and controller in options and here is not None and _usable(here, file):
                found[controller] = here
                break
    if not found:
        return Bases()
    return Bases(1, found.get("memory", ""), found.get("cpu", ""), found.get("pids", ""))
