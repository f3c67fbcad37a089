"""Steps that several do in turns, and the table of what they took."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec

from benchmarks.measure import FailedError, run
from benchmarks.mounters import Mounter, Osmo

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a step took: wall seconds, CPU seconds of the reader and of those who serve, seconds to the first byte, and
    the memory of those who serve.
    """

    wall: float
    cpu: float
    served: float
    first: float | None = None
    memory: int = 0


@dataclass(slots=True)
class Results:
    """What was found, by step and contender. ``base`` is the one that all are compared with; it and casstore take part
    whatever ``only`` says.
    """

    base: str
    only: Sequence[str] = ()
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def chosen(self, mounters: Sequence[Mounter]) -> list[Mounter]:
        """Those that are wanted and installed; what is not installed is named in the notes."""
        always = (self.base, Osmo.name)
        mounters = [one for one in mounters if not self.only or one.name in self.only or one.name in always]
        absent = [one.name for one in mounters if one.missing()]
        if absent:
            self.notes.append(f"not installed: {', '.join(absent)}")
        return [one for one in mounters if not one.missing()]

    def do(self, step: str, who: Mounter, work: Callable[P, Sample], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do one step; whoever fails is named in the notes."""
        try:
            sample = work(*args, **kwargs)
        except (FailedError, subprocess.SubprocessError) as error:
            self.notes.append(f"{who.name}, {step}: {error}")
        else:
            self.samples[step, who.name].append(sample)

    def table(self) -> str:
        """Return the medians, and the ratios to the base of each step."""
        rows = [
            f"| step | who | wall s | reader's CPU s | server's CPU s | speed: times {self.base} |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for (step, who), samples in self.samples.items():
            base = self.samples.get((step, self.base), [])
            rows.append(
                f"| {step} | {who} | {_median(one.wall for one in samples):.3f} "
                f"| {_median(one.cpu for one in samples):.3f} | {_median(one.served for one in samples):.2f} "
                f"| {_ratio([one.wall for one in base], [one.wall for one in samples])} |"
            )
        notes = "\n\n".join(dict.fromkeys(self.notes))
        return "\n".join(rows) + (f"\n\n{notes}" if notes else "")


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _ratio(base: Sequence[float], theirs: Sequence[float]) -> str:
    pairs = [a / b for a, b in zip(base, theirs, strict=False) if b]
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})" if pairs else ""


def read(who: Mounter, work: str, *arguments: str) -> Sample:
    """Let a process of its own read what somebody shows."""
    served = who.cpu()
    command = [*who.enter, sys.executable, "-m", "benchmarks.reading", work, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(f"{work}: {done.stderr[-500:]}")
    told = json.loads(done.stdout)
    return Sample(told["wall"], told["cpu"], who.cpu() - served, told["first"])


def find(who: Mounter) -> Sample:
    """Let `find` look for all files."""
    served = who.cpu()
    cost = run([*who.enter, "find", str(who.path), "-type", "f"])
    return Sample(cost.wall, cost.cpu, who.cpu() - served)


def turned(mounters: Sequence[Mounter], number: int) -> list[Mounter]:
    """The same in another order for each round."""
    number %= len(mounters)
    return [*mounters[number:], *mounters[:number]]


def anew(who: Mounter) -> None:
    """Mount once more, when all that was read has been kept."""
    if isinstance(who, Osmo):
        who.settled()
    who.unmount()
    who.again()


def listed(root: Path, target: Path) -> tuple[list[str], int]:
    """Write the names of all files below a folder to a list; return them, and the sum of their sizes."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    target.write_text("\n".join(names))
    return names, sum((root / name).stat().st_size for name in names)
