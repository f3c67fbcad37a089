"""Epochs: all files once, from an object store that was not read from before, and by a PyTorch ``DataLoader``."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import generate
from benchmarks.measure import run
from benchmarks.mounters import Folder, Mounter, Osmo, Rclone, S3fs, ended, rclone_environment
from benchmarks.rounds import Results, Sample, anew, listed, read, turned
from casstore.testing.servers.s3 import S3Server, moto_s3_process

PARALLEL = 8
FRAMES = 8000
READERS = "4"
WORKERS = "2"


class RemoteOsmo(Osmo):
    """The project's command with a bucket of the server."""

    def __init__(self, work: Path, bucket: str, server: S3Server, *options: str, home: Path | None = None) -> None:
        super().__init__(work, *options, home=home)
        self.bucket = bucket
        self.server = server

    def env(self) -> dict[str, str]:
        return {**super().env(), **self.server.environment}

    def prepare(self, source: Path) -> None:
        self.osmo("bucket", "add", "remote", f"s3://{self.bucket}/store", "--default")
        super().prepare(source)


class WithoutCache(RemoteOsmo):
    """The same, keeping nothing on the disk: what the cache costs."""

    name = "casstore, no cache"


class Download(Folder):
    """Every object to a file of its own, eight at once, by boto3 and nothing else."""

    name = "plain download"

    def __init__(self, work: Path, bucket: str, server: S3Server) -> None:
        super().__init__(work)
        self.bucket = bucket
        self.server = server

    def epoch(self, _names: Path, _number: int) -> Sample:
        """Fetch everything; nothing is read."""
        shutil.rmtree(self.path, ignore_errors=True)
        cost = run(self.command(), env=self.env())
        return Sample(cost.wall, cost.cpu, 0.0)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.epochs", self.server.endpoint, self.bucket, str(self.path)]

    def env(self) -> dict[str, str]:
        return self.server.environment


class InMemory(Download):
    """The same, into memory: nothing is written, and nothing is there afterwards."""

    name = "plain download, to memory"

    def command(self) -> list[str]:
        return [*super().command(), "memory"]


class RcloneCopy(Download):
    """``rclone copy`` as it comes."""

    name = "rclone copy"

    @classmethod
    def missing(cls) -> bool:
        return shutil.which("rclone") is None

    def command(self) -> list[str]:
        return ["rclone", "--config", "", "copy", f"s3:{self.bucket}/plain", str(self.path)]

    def env(self) -> dict[str, str]:
        return rclone_environment(self.server)


def fetch(endpoint: str, bucket: str, target: str, kept: str = "") -> None:
    """Download all objects below ``plain/``: to files, or with "memory" to nowhere."""
    client = S3Server(endpoint).boto3()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="plain/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]

    def one(key: str) -> None:
        if kept == "memory":
            body = client.get_object(Bucket=bucket, Key=key)["Body"]
            while body.read(1 << 20):
                pass
            return
        path = Path(target, key.removeprefix("plain/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            shutil.copyfileobj(client.get_object(Bucket=bucket, Key=key)["Body"], out, 1 << 20)

    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(one, keys))
    client.close()


def mounted_epoch(who: Mounter, names: Path, number: int) -> Sample:
    """Mount with empty caches and read all files once, by several processes; the time of mounting counts."""
    with ended([who]):
        begun = time.perf_counter()
        who.mount()
        waited = time.perf_counter() - begun
        found = read(who, "whole", str(who.path), str(names), READERS, str(number))
        return Sample(waited + found.wall, found.cpu, who.cpu(), waited + (found.first or 0.0))


def streamed(name: str, folder: Path, rounds: int, scale: float, only: Sequence[str], *, gigabits: float = 0.0) -> str:
    """First epochs of a data set from moto's S3 server, which sends as fast as it can, or ``gigabits`` a second."""
    work = folder / "stream"
    source = work / "source"
    generate.make(name, source, scale)
    names, size = listed(source, work / "names")
    results = Results(Download.name, only)
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[variable]  # of whoever runs this
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 30)  # what is larger goes to a file
    with moto_s3_process(gigabits * 1e9 / 8) as server:
        bucket = server.bucket()
        client = server.boto3()
        for one in names:
            client.upload_file(str(source / one), bucket, f"plain/{one}")
        client.close()
        ours = RemoteOsmo(work / "osmo", bucket, server)
        ours.prepare(source)
        mounters = results.chosen(
            [
                Download(work / "download", bucket, server),
                InMemory(work / "in-memory", bucket, server),
                RcloneCopy(work / "rclone-copy", bucket, server),
                ours,
                WithoutCache(work / "plain", bucket, server, "--no-cache", home=work / "osmo"),
                Rclone(work / "rclone", f"s3:{bucket}/plain", server),
                S3fs(work / "s3fs", bucket, "plain", server),
            ]
        )
        for number in range(rounds):
            for who in turned(mounters, number):
                if isinstance(who, Download):
                    results.do("first epoch", who, who.epoch, work / "names", number)
                else:
                    results.do("first epoch", who, mounted_epoch, who, work / "names", number)
    firsts = [
        f"{who}: first bytes {min(times):.2f} to {max(times):.2f} s after the mount was asked for."
        for (_, who), samples in results.samples.items()
        if (times := [one.first for one in samples if one.first is not None])
    ]
    line = f"a line of {gigabits:g} Gbit/s" if gigabits else "a server on the same machine"
    head = f"### stream, {name}, {line}: {len(names):,} files, {size >> 20:,} MiB, {READERS} readers, {rounds} rounds"
    return "\n\n".join([head, results.table(), *firsts])


def frames(root: Path, scale: float) -> None:
    """Write files like JPEG images of a camera, 20 to 200 KiB, a thousand in a folder; 8,000 at scale 1."""
    rng = random.Random(4)
    for number in range(max(8, int(FRAMES * scale))):
        folder = root / f"drive_{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(rng.randbytes(rng.randrange(20 << 10, 200 << 10)))


def loaded(folder: Path, rounds: int, scale: float, only: Sequence[str]) -> str:
    """Epochs of a ``DataLoader``: with nothing in any cache, again, and by a mount that was made anew."""
    work = folder / "loader"
    source = work / "files"
    frames(source, scale)
    names, size = listed(source, work / "names")
    results = Results("local disk", only)
    ours = Osmo(work / "osmo")
    ours.prepare(source)
    mounters: list[Mounter] = [Folder(source), ours]
    for number in range(rounds):
        with ended(mounters):
            for step in ("cold", "second epoch", "by a mount made anew"):
                for who in turned(mounters, number):
                    if step == "cold":
                        who.mount()
                        who.evict()
                    elif "anew" in step:
                        anew(who)
                    results.do(step, who, read, who, "loader", str(who.path), str(work / "names"), WORKERS, str(number))
    head = f"### loader: {len(names):,} files, {size >> 20:,} MiB, {WORKERS} workers, {rounds} rounds"
    return f"{head}\n\n{results.table()}"


if __name__ == "__main__":
    fetch(*sys.argv[1:])
