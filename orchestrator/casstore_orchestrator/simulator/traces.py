"""Work for the simulator: made up, or read from a file.

Decided here and only here: what is made up (Poisson arrivals, a few large groups among many small ones, run times over
four orders of magnitude), which columns a CSV file has, and how a job of the Standard Workload Format is understood:
one group of single-GPU tasks per job, as many as it has processors.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casstore.errors import UsageError
from casstore_orchestrator.pools import Pool
from casstore_orchestrator.status import Priority

__all__ = ["Job", "generate", "read_trace"]

MAX_TRACE: Final = 256 << 20
"""Bytes that a file may have."""
_MAX_TASKS: Final = 100_000
_COLUMNS: Final = ("submit", "duration", "tasks")
_SWF_FIELDS: Final = 18


@dataclass(frozen=True, slots=True)
class Job:
    """One group of equal tasks. ``submit`` and ``duration`` in seconds, ``memory`` in bytes, all but ``submit``,
    ``duration`` and ``limit`` for one task.
    """

    submit: float
    duration: float
    tasks: int = 1
    gpu: int = 1
    cpu: float = 1.0
    memory: int = 1 << 30
    priority: Priority = Priority.NORMAL
    user: str = "user"
    pool: str = ""
    limit: float | None = None


def generate(seed: int, pools: Mapping[str, Pool], *, seconds: float, load: float = 0.9, users: int = 40) -> list[Job]:
    """Work that would use ``load`` of the pools' GPUs for ``seconds`` seconds; the same for the same arguments.

    Every task fits the smallest of the nodes with GPUs. Raises UsageError when there are no GPUs.
    """
    nodes = {node.key: node.capacity for pool in pools.values() for node in pool.nodes if node.capacity.gpu}
    if not nodes:
        raise UsageError("the pools have no GPUs to make up work for")
    gpus = sum(size.gpu for size in nodes.values())
    least = min(nodes.values(), key=lambda size: (size.gpu, size.cpu, size.memory))
    cores, memory = least.cpu / least.gpu, least.memory // least.gpu
    source = random.Random(seed)  # noqa: S311 - not a secret
    names, jobs, left, now = list(pools), [], load * gpus * seconds, 0.0
    while left > 0:
        duration = min(max(30.0, source.lognormvariate(7.6, 1.6)), seconds / 3)
        tasks = source.choices((1, 2, 4, 8, 16, 32), (50, 18, 14, 10, 6, 2))[0]
        gpu = min(least.gpu, source.choices((1, 2, 4, 8), (60, 15, 10, 15))[0])
        if tasks * gpu > gpus / len(names) / 2:
            tasks = 1
        user = int(source.paretovariate(1.2)) % users
        jobs.append(
            Job(
                submit=now,
                duration=duration,
                tasks=tasks,
                gpu=gpu,
                cpu=gpu * min(source.choice((2.0, 4.0, 8.0)), cores),
                memory=gpu * min(source.choice((8, 16, 32)) << 30, memory),
                priority=source.choices((Priority.HIGH, Priority.NORMAL, Priority.LOW), (5, 55, 40))[0],
                user=f"user-{user}",
                pool=names[user % len(names)],
                limit=duration * source.choice((1.2, 2.0, 5.0)),
            )
        )
        left -= tasks * gpu * duration
        now = 0.0  # spread below: how many there are decides how far apart they are
    gap = seconds / len(jobs)
    for number, job in enumerate(jobs):
        now += source.expovariate(1 / gap)
        jobs[number] = _at(job, now)
    return jobs


def _at(job: Job, submit: float) -> Job:
    return Job(
        submit, job.duration, job.tasks, job.gpu, job.cpu, job.memory, job.priority, job.user, job.pool, job.limit
    )


def read_trace(path: Path, pool: str, *, most: int = 1_000_000) -> list[Job]:
    """The jobs of a file, the earliest first: ``.swf`` is the Standard Workload Format, everything else CSV.

    A CSV file has a line of names: ``submit,duration,tasks`` and any of ``gpu,cpu,memory,priority,user,pool,limit``.
    Raises UsageError with the line of what is wrong.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TRACE:
            raise UsageError(f"{path} has {size} bytes, more than the {MAX_TRACE} that a trace may have")
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            lines = _swf(file, path, pool) if path.suffix == ".swf" else _csv(file, path, pool)
            jobs = []
            for job in lines:
                jobs.append(job)
                if len(jobs) > most:
                    raise UsageError(f"{path} has more than {most} jobs")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    if not jobs:
        raise UsageError(f"{path} has no jobs")
    return sorted(jobs, key=lambda job: job.submit)


def _csv(lines: Iterable[str], path: Path, pool: str) -> Iterator[Job]:
    rows = csv.DictReader(lines)
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise UsageError(f"{path}: the first line names no column {missing[0]}", hint=f"needed: {', '.join(_COLUMNS)}")
    for row in rows:
        where = f"{path}:{rows.line_num}"
        limit = _number(row.get("limit"), where, "limit", 0.0)
        priority = (row.get("priority") or "NORMAL").upper()
        if priority not in Priority.__members__:
            raise UsageError(f"{where}: priority {priority!r} is none of {', '.join(Priority)}")
        yield Job(
            submit=_number(row["submit"], where, "submit"),
            duration=_number(row["duration"], where, "duration"),
            tasks=_count(row["tasks"], where, "tasks", 1),
            gpu=_count(row.get("gpu"), where, "gpu", 0, default=1),
            cpu=_number(row.get("cpu"), where, "cpu", 1.0),
            memory=_count(row.get("memory"), where, "memory", 0, default=1 << 30, most=1 << 50),
            priority=Priority(priority),
            user=row.get("user") or "user",
            pool=row.get("pool") or pool,
            limit=limit or None,
        )


def _swf(lines: Iterable[str], path: Path, pool: str) -> Iterator[Job]:
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith(";"):
            continue
        where = f"{path}:{number}"
        if len(fields) < _SWF_FIELDS:
            raise UsageError(f"{where}: {len(fields)} fields, and a line of this format has {_SWF_FIELDS}")
        submit, duration = _number(fields[1], where, "submit"), float(fields[3])
        processors = max(int(float(fields[4])), int(float(fields[7])))
        if duration <= 0 or processors <= 0:
            continue  # it never ran
        limit = float(fields[8])
        tasks = _count(str(processors), where, "processors", 1)
        user = f"user-{fields[11]}"
        yield Job(submit, duration, tasks, user=user, pool=pool, limit=limit if limit > 0 else None)


def _number(text: str | None, where: str, name: str, default: float | None = None) -> float:
    if not text and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e15:
        raise UsageError(f"{where}: {name} {text!r} is not a number of 0 or more")
    return value


def _count(
    text: str | None, where: str, name: str, least: int, *, default: int | None = None, most: int = _MAX_TASKS
) -> int:
    value = _number(text, where, name, None if default is None else float(default))
    if value != int(value) or not least <= value <= most:
        raise UsageError(f"{where}: {name} {text!r} is not a whole number from {least} to {most}")
    return int(value)
