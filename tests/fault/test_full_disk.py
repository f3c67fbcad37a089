"""A disk that is full at any point of an upload or a collection: clear errors, whole versions, and on it goes with more
room.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import OutOfSpaceError
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.store import Store
from casstore.repo.verify import verify_store

KIB = 1 << 10
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


class Disk:
    """A file system in memory whose size can be changed."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        self._mount(f"size={size}k")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True)

    def resize(self, size: int) -> None:
        self._mount(f"remount,size={size}k")

    def used(self) -> int:
        info = os.statvfs(self.path)
        return (info.f_blocks - info.f_bfree) * info.f_frsize // KIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "disk", 64 * KIB)
    yield found
    subprocess.run(["umount", "-l", str(found.path)], check=True)


def bucket_on(disk: Disk) -> Bucket:
    return Bucket(Store.open(open_backend(f"file://{disk.path}/store", create=True), create=True), name="b", user="u")


def clean(bucket: Bucket) -> bool:
    return verify_store(bucket.store).problems == []


@pytest.mark.slow
def test_an_upload_that_runs_out_of_room(disk: Disk, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rng = random.Random(5)
    (source / "first").write_bytes(rng.randbytes(300_000))
    bucket = bucket_on(disk)
    assert bucket.upload("d", [f"{source}/*"]).version.record.number == 1
    for number in range(40):
        (source / f"f{number}").write_bytes(rng.randbytes(60_000))
    start = disk.used()
    failed = 0
    for room in [*range(0, 64, 4), *range(64, 3000, 200)]:
        disk.resize(start + room)
        try:
            done = bucket.upload("d", [f"{source}/*"])
        except OutOfSpaceError as error:
            failed += 1
            assert "\n" not in error.message
            disk.resize(64 * KIB)
            assert clean(bucket)
            assert bucket.resolve("d").record.number == 1
            continue
        assert done.version.record.number == 2
        break
    assert failed > 10
    disk.resize(64 * KIB)
    assert bucket.upload("d", [f"{source}/*"]).version.record.number == 2
    assert clean(bucket)
    bucket.store.close()


@pytest.mark.slow
def test_a_collection_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rng = random.Random(6)
    bucket = bucket_on(disk)
    for number in range(6):
        (source / f"f{number}").write_bytes(rng.randbytes(200_000))
    bucket.upload("d", [f"{source}/*"])
    for number in range(1, 6):
        (source / f"f{number}").unlink()
    bucket.upload("d", [f"{source}/*"])
    bucket.delete("d", tag="1")
    start = disk.used()
    for room in (0, 4, 8, 16, 32, 64, 128, 1024):
        disk.resize(start + room)
        try:
            with Collector(bucket.store, rules=Rules(grace=0, margin=0)) as collector:
                collector.run(collector.plan())
        except OutOfSpaceError:
            disk.resize(64 * KIB)
            assert clean(bucket)
            assert (source / "f0").read_bytes() == b"".join(
                bytes(part)
                for entry in bucket.tree(bucket.resolve("d")).entries()
                for part in bucket.store.read_chunks([*bucket.tree(bucket.resolve("d")).chunks(entry)])
            )
    disk.resize(64 * KIB)
    assert clean(bucket)
    assert disk.used() < start - 800, "the space is given back in the end"
    bucket.store.close()
