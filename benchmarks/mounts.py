"""A version as a folder, side by side with the local disk and with what else shows data as folders.

Within a round every step is done by all, one after the other, in an order that turns with the rounds. A ratio is taken
inside each round: above 1 is quicker than the local disk. The CPU seconds are those of the reader and of whoever
serves it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from benchmarks import epochs, generate
from benchmarks.measure import run
from benchmarks.mounters import OSMO, Folder, Mounter, Osmo, Ratarmount, Rclone, WithoutPassthrough, ended
from benchmarks.rounds import Results, Sample, anew, find, listed, read, turned

READERS = epochs.READERS
FILES = 1_000_000
LARGE = 1 << 30
BLOCKS = "2000"
QUICK = 0.0002
"""The scale at which everything is only tried."""


def wide(folder: Path, rounds: int, scale: float, only: Sequence[str]) -> str:
    """From the start of the mount to the end of the first `ls`, of a version of very many files."""
    count = max(2000, int(FILES * scale))
    work = folder / "wide"
    ours, results = Osmo(work / "osmo"), Results("rclone", only)
    env = {**os.environ, **ours.env()}
    subprocess.run([sys.executable, "-m", "benchmarks.wide", ours.dataset, str(count)], env=env, check=True)
    plain = work / "plain"  # the same folders, without their files: rclone looks at the top alone
    for number in range(-(-count // 1000)):
        (plain / f"part_{number:06d}").mkdir(parents=True)
    mounters = results.chosen([ours, Rclone(work / "rclone", str(plain))])
    for number in range(rounds):
        for who in turned(mounters, number):
            with ended([who]):
                results.do("mount and ls", who, _first_ls, who)
    samples = results.samples["mount and ls", ours.name]
    walls, memory = [one.wall for one in samples], max(one.memory for one in samples)
    told = f"casstore: {min(walls):.2f} to {max(walls):.2f} s, at most {memory / 2**20:.0f} MiB after the `ls`."
    return f"### wide: {count:,} files, {rounds} rounds\n\n{results.table()}\n\n{told}"


def _first_ls(who: Mounter) -> Sample:
    if isinstance(who, Osmo):
        shutil.rmtree(who.work / "own", ignore_errors=True)
        who.path.mkdir(parents=True, exist_ok=True)
        command = f"{OSMO[0]} dataset mount {who.dataset} {who.path} && ls {who.path}"
        cost = run(["sh", "-c", command], env=who.env())
        who.pid = int(who.details()["pid"])
        return Sample(cost.wall, cost.cpu, who.cpu(), None, who.memory())
    begun = time.perf_counter()
    who.mount()
    cost = run(["ls", str(who.path)])
    return Sample(time.perf_counter() - begun, cost.cpu, who.cpu(), None, who.memory())


def large(folder: Path, rounds: int, scale: float, only: Sequence[str]) -> str:
    """One large file: read for the first time, and from the caches by mounts that were just made."""
    work = folder / "large"
    source = work / "source"
    source.mkdir(parents=True)
    size = max(4 << 20, int(LARGE * scale))
    generate.noise(source / "camera.mp4", size, 5)
    results = Results("local disk", only)
    ours = Osmo(work / "osmo")
    ours.prepare(source)
    other = WithoutPassthrough(work / "plain", home=work / "osmo")
    mounters = results.chosen([Folder(source), ours, other, Rclone(work / "rclone", str(source))])
    steps: dict[str, tuple[str, ...]] = {
        "the first time": ("sequential",),
        "cached: sequential": ("sequential",),
        "cached: sequential, again": ("sequential",),
        "cached: 128 KiB here and there": ("scattered", "131072", BLOCKS),
        "cached: 4 KiB here and there": ("scattered", "4096", BLOCKS),
    }
    for number in range(rounds):
        with ended(mounters):
            for who in mounters:
                who.mount()
            for step, (kind, *details) in steps.items():
                for who in turned(mounters, number):
                    if step.startswith("cached") and "again" not in step:
                        anew(who)
                    seed = [str(number)] if details else []
                    results.do(step, who, read, who, kind, str(who.path / "camera.mp4"), *details, *seed)
    other.end()
    return f"### large: one file of {size >> 20:,} MiB, {rounds} rounds\n\n{results.table()}"


def tree(name: str, folder: Path, rounds: int, scale: float, only: Sequence[str], *, passthrough: bool = True) -> str:
    """Find and read all files of a data set: by mounts without and with something in their caches, and again. Without
    ``passthrough``: also where the kernel takes no files over.
    """
    work = folder / name
    source, tar = work / "source", work / "tar" / "source.tar"
    generate.make(name, source, scale)
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as out:
        out.add(source, arcname=".")
    names, size = listed(source, work / "names")
    results = Results("local disk", only)
    ours = Osmo(work / "osmo")
    ours.prepare(source)
    others = [] if passthrough else [WithoutPassthrough(work / "plain", home=work / "osmo")]
    mounters = results.chosen(
        [Folder(source), ours, *others, Rclone(work / "rclone", str(source)), Ratarmount(work / "ratarmount", tar)]
    )
    for number in range(rounds):
        with ended(mounters):
            for who in mounters:
                who.mount()
            for step in ("find", "find, again"):
                for who in turned(mounters, number):
                    results.do(step, who, find, who)
            for step in ("read", "read, again", "read by a mount made anew", "read by it, again"):
                for who in turned(mounters, number):
                    if "anew" in step:
                        anew(who)
                    results.do(step, who, read, who, "whole", str(who.path), str(work / "names"), READERS, str(number))
    for one in others:
        one.end()
    head = f"### {name}: {len(names):,} files, {size >> 20:,} MiB, {READERS} readers, {rounds} rounds"
    return f"{head}\n\n{results.table()}"


Part: TypeAlias = Callable[[Path, int, float, Sequence[str]], str]

PARTS: dict[str, Part] = {
    "wide": wide,
    "large": large,
    "small": partial(tree, "small"),
    "mixed": partial(tree, "mixed"),
    "video": partial(tree, "video", passthrough=False),
    "stream": partial(epochs.streamed, "video"),
    "stream-1g": partial(epochs.streamed, "video", gigabits=1.0),
    "stream-2.5g": partial(epochs.streamed, "video", gigabits=2.5),
    "stream-mixed": partial(epochs.streamed, "mixed"),
    "loader": epochs.loaded,
}


def compare(name: str, folder: Path, rounds: int, scale: float, only: Sequence[str]) -> str:
    """Do one part; returns a report in Markdown."""
    own = folder / "mounts"
    shutil.rmtree(own, ignore_errors=True)
    try:
        return PARTS[name](own, rounds, scale, only)
    finally:
        shutil.rmtree(own, ignore_errors=True)
