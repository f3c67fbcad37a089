"""What an upload takes in memory, whatever its size: measured in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20

UPLOAD = """
import json, os, resource, sys
from casstore.backend.registry import open_backend
from casstore.repo.store import Store
from casstore.transfer.scan import Source
from casstore.transfer.statcache import StatCache
from casstore.transfer.upload import upload_tree

folder, url, update = sys.argv[1:]
store = Store.open(open_backend(url, create=True), create=True)
cache = StatCache(url.removeprefix("file://") + ".sqlite", store.id)
source = Source(os.fsencode(folder), b"", contents=True)
result = upload_tree(store, [source], cache=cache, state_dir=url.removeprefix("file://") + ".state")
if update == "update":
    os.unlink(next(os.scandir(folder)).path)
    base = store.tree(result.manifest)
    result = upload_tree(store, [source], base=base, keep=lambda path: not path.endswith(b"7"), select=bool)
assert list(result.skipped) == []
# Not ru_maxrss: that counts what the process that started this one had.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) << 10
print(json.dumps({"peak": peak, "files": result.totals.files, "size": result.totals.size}))
"""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path) -> Iterator[None]:
    """Leave nothing: pytest keeps what tests made for a while, and this is much."""
    yield
    shutil.rmtree(tmp_path)


def upload(tmp_path: Path, update: str = "") -> dict[str, Any]:
    arguments = [sys.executable, "-c", UPLOAD, str(tmp_path / "in"), f"file://{tmp_path}/store", update]
    output = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, timeout=280).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def tiny(root: Path, files: int) -> None:
    """Files of a few bytes, all of them different, in one folder, with names as long as those of frames are."""
    root.mkdir()
    descriptor = os.open(root, os.O_RDONLY)
    for number in range(files):
        name = b"a-rather-long-name-of-a-frame-%07d.json" % number
        file = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=descriptor)
        os.write(file, b"%d" % number)
        os.close(file)
    os.close(descriptor)


def large(root: Path, size: int) -> None:
    """One file that does not compress."""
    root.mkdir()
    with open(root / "video.mp4", "wb") as out:
        out.writelines(os.urandom(MIB) for _ in range(size // MIB))


def folders(root: Path, count: int) -> None:
    """Empty folders in one folder."""
    root.mkdir()
    for number in range(count):
        (root / f"a-rather-long-name-of-an-episode-{number:07}").mkdir()


def links(root: Path, count: int) -> None:
    """Two names for each file, far apart in the order of the tree."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        path = root / "a" / f"file-{number:07}"
        path.write_bytes(b"%d" % number)
        os.link(path, root / "b" / path.name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "amount", "limit"),
    [(tiny, 30_000, 150), (large, 320 * MIB, 320), (folders, 15_000, 120), (links, 10_000, 150)],
    ids=["tiny", "large", "folders", "links"],
)
def test_memory(tmp_path: Path, make: Callable[[Path, int], None], amount: int, limit: int) -> None:
    make(tmp_path / "in", amount)
    assert upload(tmp_path)["peak"] < limit * MIB


@pytest.mark.slow
def test_memory_of_an_update_with_patterns(tmp_path: Path) -> None:
    tiny(tmp_path / "in", 20_000)
    assert upload(tmp_path, "update")["peak"] < 150 * MIB


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("make", "amount"),
    [(tiny, 200_000), (large, 1536 * MIB), (folders, 100_000), (links, 100_000)],
    ids=["tiny", "large", "folders", "links"],
)
def test_memory_of_much(tmp_path: Path, make: Callable[[Path, int], None], amount: int) -> None:
    make(tmp_path / "in", amount)
    assert upload(tmp_path)["peak"] < 512 * MIB
