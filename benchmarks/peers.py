"""All contenders on the same data, interleaved, and the table of ratios."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from benchmarks.contenders import ALL, Casstore, Contender, Copy, Floor
from benchmarks.measure import Cost, FailedError, run

STEPS = ("new", "again", "edited", "download")
Results = dict[tuple[str, str], list[Cost]]


def compare(name: str, folder: Path, rounds: int, scale: float, only: list[str]) -> str:
    """Run every contender ``rounds`` times on the data set ``name``; returns a report in Markdown."""
    source, original = folder / "data" / name, folder / "original" / name
    _generate("generate", str(original), "--data", name, "--scale", str(scale))
    chosen = [kind for kind in ALL if not only or kind.name in only or kind is Casstore]
    absent = [kind.name for kind in chosen if kind.missing()]
    chosen = [kind for kind in chosen if not kind.missing()]
    results: Results = defaultdict(list)
    stored: dict[str, tuple[int, int]] = {}
    notes = [f"not installed: {', '.join(absent)}"] if absent else []
    for number in range(rounds):
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(original, source)
        contenders = [
            kind(folder / "work" / kind.program.rpartition("/")[2] / kind.__name__, source) for kind in chosen
        ]
        for contender in contenders:
            contender.prepare()
        for step in STEPS:
            if step == "edited":
                _generate("edit", str(source))
            order = contenders if number % 2 == 0 else contenders[::-1]
            for contender in order:
                _step(contender, step, folder, results, notes)
            if step == "again":
                find = run(["find", str(source), "-printf", "%p %s %T@ %i\n"])
                results["find", step].append(find)
            if step == "new":
                first = {contender.name: contender.stored() for contender in contenders}
        stored = {contender.name: (first[contender.name], contender.stored()) for contender in contenders}
        shutil.rmtree(folder / "work", ignore_errors=True)
    size = sum(path.stat().st_size for path in original.rglob("*") if path.is_file())
    count = sum(1 for path in original.rglob("*") if path.is_file())
    head = f"## {name}: {count:,} files, {size / 2**20:,.0f} MiB, {rounds} rounds"
    return "\n\n".join([head, _table(results, stored, [kind.name for kind in chosen]), *notes])


def _generate(*arguments: str) -> None:
    # In a process of its own: a child's peak memory counts what its parent had when it was started.
    subprocess.run([sys.executable, "-m", "benchmarks", *arguments], check=True)


def _step(contender: Contender, step: str, folder: Path, results: Results, notes: list[str]) -> None:
    if isinstance(contender, Floor) and step != "new":
        return
    if isinstance(contender, Copy) and step == "again":
        return
    target = folder / "work" / "target"
    try:
        cost = contender.download(target) if step == "download" else contender.upload()
        results[contender.name, step].append(cost)
    except FailedError as error:
        notes.append(f"{contender.name}, {step}: {error}")
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _table(results: Results, stored: dict[str, tuple[int, int]], names: list[str]) -> str:
    rows = [
        "| step | who | wall s | CPU s | peak MiB | stored MiB | wall: times casstore | CPU: times casstore |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for step in STEPS:
        ours = results["casstore", step]
        for name in [*names, "find"]:
            costs = results.get((name, step))
            if not costs:
                continue
            kept = stored.get(name, (0, 0))[0 if step == "new" else 1] if step in ("new", "edited") else 0
            rows.append(
                f"| {step} | {name} | {_median(c.wall for c in costs):.2f} | {_median(c.cpu for c in costs):.2f} "
                f"| {max(c.memory for c in costs) / 2**20:.0f} | {f'{kept / 2**20:.1f}' if kept else ''} "
                f"| {_ratio([c.wall for c in costs], [c.wall for c in ours])} "
                f"| {_ratio([c.cpu for c in costs], [c.cpu for c in ours])} |"
            )
    return "\n".join(rows)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _ratio(theirs: list[float], ours: list[float]) -> str:
    pairs = [a / b for a, b in zip(theirs, ours, strict=False) if b]
    if not pairs:
        return ""
    return f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
