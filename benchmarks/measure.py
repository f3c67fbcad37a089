"""Running a command and asking the kernel what it cost."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """Wall and CPU seconds of a command with its children, and the peak memory (bytes) of the largest process."""

    wall: float
    cpu: float
    memory: int


class FailedError(Exception):
    """A contender ended with an error."""


def run(command: list[str], *, env: dict[str, str] | None = None, cwd: str | Path | None = None) -> Cost:
    """Run a command to its end; what it prints is kept for the error only."""
    os.sync()
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    output = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise FailedError(f"{command[0]} ended with {process.returncode}: {output.decode(errors='replace')[-500:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def disk_usage(path: Path) -> int:
    """Return the bytes of all files below a path."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        item.stat(follow_symlinks=False).st_size for item in path.rglob("*") if item.is_file() and not item.is_symlink()
    )
