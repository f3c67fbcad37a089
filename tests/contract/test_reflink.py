"""Cached files become clones where the file system has them: on Btrfs and XFS in a file, mounted for the test."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.file import FileBackend
from casstore.cache.files import FileCache
from casstore.cache.space import Space
from casstore.dataset import Bucket, checkout
from casstore.errors import UsageError
from casstore.repo.store import Store
from casstore.transfer.download import Cached
from casstore.transfer.place import clone

_FIEMAP = 0xC020660B
_SHARED = 0x2000
_SIZES = {"xfs": 400 << 20, "btrfs": 128 << 20}


@pytest.fixture(scope="module", params=_SIZES)
def disk(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a file system with reflinks."""
    kind = request.param
    folder = tmp_path_factory.mktemp("reflink")
    maker = shutil.which(f"mkfs.{kind}", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if maker is None or os.geteuid() != 0:
        pytest.skip(f"this needs root, and mkfs.{kind}")
    image, point = folder / "image", folder / "disk"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(_SIZES[kind])
    subprocess.run([maker, "-q", str(image)], check=True, capture_output=True)
    mount = ["mount", "-t", kind, "-o", "loop", str(image), str(point)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop mount of {kind} is possible here: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def shares_blocks(path: Path) -> bool:
    """Whether the first extent of a file is shared with another one."""
    os.sync()
    buffer = bytearray(struct.pack("=QQLLLL", 0, (1 << 64) - 1, 1, 0, 1, 0) + bytes(56))
    with open(path, "rb") as file:
        fcntl.ioctl(file, _FIEMAP, buffer)
    flags: int = struct.unpack_from("=L", buffer, 32 + 40)[0]
    return bool(flags & _SHARED)


def test_clones_share_their_blocks(disk: Path) -> None:
    data = os.urandom(1 << 20)
    (disk / "one").write_bytes(data)
    with open(disk / "one", "rb") as source, open(disk / "two", "wb") as target:
        assert clone(source.fileno(), target.fileno(), len(data))
    assert (disk / "two").read_bytes() == data
    assert shares_blocks(disk / "two")


def test_a_copy_where_there_are_no_clones(disk: Path, tmp_path: Path) -> None:
    """From one file system to another."""
    data = os.urandom(3 << 20)
    (disk / "here").write_bytes(data)
    with open(disk / "here", "rb") as source, open(tmp_path / "there", "wb") as target:
        assert not clone(source.fileno(), target.fileno(), len(data))
    assert (tmp_path / "there").read_bytes() == data


def test_a_download_from_the_cache(disk: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "source"):
        (disk / name).mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "store").mkdir()
    (disk / "source/large").write_bytes(os.urandom(2 << 20))
    with Store.open(FileBackend(str(tmp_path / "store"), durable=False), create=True) as store:
        bucket = Bucket(store, name="b", user="u", state_dir=str(tmp_path / "state"))
        bucket.upload("ds", [f"{disk}/source/*"])
        files = FileCache(Space(str(disk / "cache"), 1 << 30))
        checkout.download(bucket, "ds", str(disk / "a"), cached=Cached(files, fill=True))
        assert checkout.download(bucket, "ds", str(disk / "b"), cached=Cached(files)).cached == 1
        for name in ("a", "b"):
            found = disk / name / "ds/large"
            assert found.read_bytes() == (disk / "source/large").read_bytes()
            assert shares_blocks(found)
        with pytest.raises(UsageError, match="no hard links are possible"):
            checkout.download(bucket, "ds", str(tmp_path / "far"), cached=Cached(files, link=True))
        assert list((tmp_path / "far/ds").glob("*")) == []
