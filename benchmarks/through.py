"""The command through a server, beside the command with credentials of the bucket.

    python -m benchmarks.through [--rounds 5] [--data video mixed] [--scale 0.25]

Both do the same to buckets of one S3 server (moto's, in a process of its own); the server of casstore is one, too. What
differs is that one asks a server for addresses and has what it uploads looked at. A ratio above 1 says that the way
through the server takes so many times as long; it is taken inside each round, and its median is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contenders import Casstore
from benchmarks.measure import Cost, run
from benchmarks.remote import RemoteCasstore
from casstore.testing.servers.s3 import S3Server, moto_s3_process

OSMO = str(Path(sys.executable).with_name("osmo"))
STEPS = ("upload, all data is new", "upload, all data is there", "download")


class LoggedIn(Casstore):
    """The project's command, logged in to a server."""

    def login(self, url: str) -> None:
        run([OSMO, "login", url, "--method", "dev", "--username", "bench"], env=self.env())


@contextlib.contextmanager
def server(work: Path, s3: S3Server, bucket: str) -> Iterator[str]:
    """A server whose default bucket this is; gives its URL."""
    owner = RemoteCasstore(work, work, s3, bucket)
    owner.prepare()
    env = {**os.environ, **owner.env()}
    subprocess.run([OSMO, "server", "start", "--port", "0"], env=env, check=True, stdout=subprocess.DEVNULL)
    try:
        told = subprocess.run([OSMO, "server", "status"], env=env, check=True, capture_output=True, text=True).stdout
        yield next(word for word in told.split() if word.startswith("http://")).rstrip(".,")
    finally:
        subprocess.run([OSMO, "server", "stop", "--tasks"], env=env, check=False, stdout=subprocess.DEVNULL)


def compare(name: str, folder: Path, rounds: int, scale: float) -> str:
    """Run both ``rounds`` times; returns a table in Markdown."""
    source = folder / "data"
    generate = [sys.executable, "-m", "benchmarks", "generate", str(source), "--data", name, "--scale", str(scale)]
    subprocess.run(generate, check=True)
    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 30)
    for number in range(rounds):
        with moto_s3_process() as s3, server(folder / "server", s3, s3.bucket()) as url:
            direct = RemoteCasstore(folder / "direct", source, s3, s3.bucket())
            direct.prepare()
            through = LoggedIn(folder / "through", source)
            through.prepare()
            through.login(url)
            both = [("direct", direct), ("through", through)]
            for step in STEPS:
                for who, contender in both[::-1] if number % 2 else both:
                    target = folder / "target"
                    work = contender.upload if step != STEPS[2] else lambda c=contender, t=target: c.download(t)  # type: ignore[misc]
                    costs[who, step].append(work())
                    shutil.rmtree(target, ignore_errors=True)
        for name_of in ("server", "direct", "through"):
            shutil.rmtree(folder / name_of, ignore_errors=True)
    files = [path for path in source.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    shutil.rmtree(source)
    rows = [
        f"### {name}: {len(files):,} files, {size / 2**20:,.0f} MiB, {rounds} rounds",
        "",
        "| step | with credentials, s | through a server, s | ratio | CPU of the client, ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for step in STEPS:
        mine, theirs = costs["direct", step], costs["through", step]
        wall = [b.wall / a.wall for a, b in zip(mine, theirs, strict=True)]
        cpu = [b.cpu / a.cpu for a, b in zip(mine, theirs, strict=True)]
        seconds = [statistics.median(cost.wall for cost in found) for found in (mine, theirs)]
        rows.append(
            f"| {step} | {seconds[0]:.2f} | {seconds[1]:.2f}"
            f" | {statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})"
            f" | {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) |"
        )
    return "\n".join(rows)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", nargs="+", default=["video", "mixed"])
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/casstore-through"))
    arguments = parser.parse_args()
    for name in arguments.data:
        print(compare(name, arguments.folder, arguments.rounds, arguments.scale))
        print()


if __name__ == "__main__":
    main()
