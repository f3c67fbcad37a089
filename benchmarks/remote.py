"""Uploading to and downloading from an S3 server, side by side with rclone.

The server is moto's, in a process of its own on the loopback interface, and the same for both within a round. It is
written in Python and has a part of the machine to itself, so the seconds are those of the client and the server
together; the CPU seconds are the client's alone. ``rclone`` runs with its own defaults.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders import Casstore
from benchmarks.measure import Cost, FailedError, run
from casstore.testing.servers.s3 import S3Server, moto_s3_process

STEPS = {
    "new": "upload, all data is new",
    "download": "download",
    "files": "upload, one file in twenty is another",
    "spread": "upload, a twentieth of every file is other",
    "elsewhere": "upload of the same from another machine",
}
CHANGED = 20


class RemoteCasstore(Casstore):
    """The project's command, with a bucket of the server."""

    def __init__(self, work: Path, source: Path, server: S3Server, bucket: str) -> None:
        super().__init__(work, source)
        self.server = server
        self.bucket = bucket

    def env(self) -> dict[str, str]:
        """The same, and the server."""
        return {**super().env(), **self.server.environment}

    def prepare(self) -> None:
        super().prepare()
        osmo = str(Path(sys.executable).with_name("osmo"))
        run([osmo, "bucket", "add", "remote", f"s3://{self.bucket}/store", "--default"], env=self.env())

    def forget(self) -> None:
        """Become another machine: only the bucket's name is kept."""
        for name in ("state", "cache", "data"):
            shutil.rmtree(self.work / name, ignore_errors=True)


class Rclone:
    """rclone as it comes, without a configuration file. Every upload goes to a new prefix."""

    name = "rclone"

    def __init__(self, source: Path, server: S3Server, bucket: str) -> None:
        self.source = source
        self.bucket = bucket
        self.number = 0
        self.env = {
            "RCLONE_CONFIG_MOTO_TYPE": "s3",
            "RCLONE_CONFIG_MOTO_PROVIDER": "Other",
            "RCLONE_CONFIG_MOTO_ENDPOINT": server.endpoint,
            "RCLONE_CONFIG_MOTO_ACCESS_KEY_ID": server.access_key_id,
            "RCLONE_CONFIG_MOTO_SECRET_ACCESS_KEY": server.access_key,
            "RCLONE_CONFIG_MOTO_REGION": server.region,
            "RCLONE_CONFIG_MOTO_FORCE_PATH_STYLE": "true",
        }

    def _copy(self, source: str, target: str) -> Cost:
        return run(["rclone", "--config", "", "copy", source, target], env=self.env)

    @property
    def _prefix(self) -> str:
        return f"moto:{self.bucket}/rclone/{self.number}"

    def upload(self) -> Cost:
        """Copy the folder to a new prefix."""
        self.number += 1
        return self._copy(str(self.source), self._prefix)

    def download(self, target: Path) -> Cost:
        """Copy the newest prefix back."""
        return self._copy(self._prefix, str(target))


def compare(name: str, folder: Path, rounds: int, scale: float, steps: list[str]) -> str:
    """Run both ``rounds`` times on the data set ``name``; returns a report in Markdown."""
    original, source = folder / "original" / name, folder / "data" / name
    subprocess.run(
        [sys.executable, "-m", "benchmarks", "generate", str(original), "--data", name, "--scale", str(scale)],
        check=True,
    )
    results: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    notes: list[str] = []
    # What moto keeps of an object goes to a file above this size: then the disk would be measured.
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[variable]  # of whoever runs this
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 30)
    with moto_s3_process() as server:
        for number in range(rounds):
            shutil.rmtree(source, ignore_errors=True)
            shutil.copytree(original, source)
            bucket = server.bucket()
            ours = RemoteCasstore(folder / "work" / "remote", source, server, bucket)
            ours.prepare()
            theirs = Rclone(source, server, bucket)
            for step in STEPS:
                if step in steps:
                    _step(step, ours, theirs, results, notes, folder / "work" / "target", swap=bool(number % 2))
            shutil.rmtree(folder / "work", ignore_errors=True)
            urllib.request.urlopen(urllib.request.Request(f"{server.endpoint}/moto-api/reset", method="POST")).close()
    files = [path for path in original.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    head = f"### {name}: {len(files):,} files, {size / 2**20:,.0f} MiB, {rounds} rounds"
    return "\n\n".join([head, _table(results), *notes])


def _step(
    step: str,
    ours: RemoteCasstore,
    theirs: Rclone,
    results: dict[tuple[str, str], list[Cost]],
    notes: list[str],
    target: Path,
    *,
    swap: bool,
) -> None:
    if step in ("files", "spread"):
        # In a process of its own: a child's peak memory counts what its parent had when it was started.
        code = f"from benchmarks.remote import Path, change; change(Path({str(ours.source)!r}), {step!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
    if step == "elsewhere":
        ours.forget()

    def measured(who: str, call: Callable[[], Cost]) -> None:
        try:
            results[who, step].append(call())
        except FailedError as error:
            notes.append(f"{who}, {step}: {error}")
        finally:
            shutil.rmtree(target, ignore_errors=True)

    if step == "download":
        calls = [("casstore", lambda: ours.download(target)), ("rclone", lambda: theirs.download(target))]
    else:
        calls = [("casstore", ours.upload), ("rclone", theirs.upload)]
    for who, call in calls[::-1] if swap else calls:
        measured(who, call)


def change(root: Path, step: str) -> None:
    """Change a twentieth of the bytes: whole files, or a run in the middle of every file, and its length by a byte."""
    rng = random.Random(step)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if step == "files":
        for path in files[:: max(1, CHANGED)]:
            path.write_bytes(rng.randbytes(path.stat().st_size))
        return
    for path in files:
        data = path.read_bytes()
        at, run_length = len(data) // 2, max(1, len(data) // CHANGED)
        path.write_bytes(data[:at] + rng.randbytes(run_length + 1) + data[at + run_length :])


def _table(results: dict[tuple[str, str], list[Cost]]) -> str:
    rows = [
        "| step | casstore, s | rclone, s | ratio | casstore, CPU s | rclone, CPU s | ratio | peak MiB | rclone's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for step, words in STEPS.items():
        ours, theirs = results["casstore", step], results["rclone", step]
        if not ours or not theirs:
            continue
        cells = [words]
        for pick in (_wall, _cpu):
            mine, other = list(map(pick, ours)), list(map(pick, theirs))
            ratios = [b / a for a, b in zip(mine, other, strict=False)]
            cells += [f"{statistics.median(mine):.2f}", f"{statistics.median(other):.2f}"]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells += [f"{max(cost.memory for cost in costs) / 2**20:.0f}" for costs in (ours, theirs)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _wall(cost: Cost) -> float:
    return cost.wall


def _cpu(cost: Cost) -> float:
    return cost.cpu
