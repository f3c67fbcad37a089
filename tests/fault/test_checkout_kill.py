"""A download into a folder with a version is killed at any moment: the next one makes it whole, and loses nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from casstore.backend.registry import open_backend
from casstore.dataset import Bucket, checkout
from casstore.repo.store import Store

DOWNLOAD = """
import os, sys
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket, checkout
from casstore.repo.store import Store
from casstore.transfer.progress import Silent
url, state, dest, tag, files = sys.argv[1:]
left = int(files)
class Watch(Silent):
    def file_done(self, path):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
store = Store.open(open_backend(url))
checkout.download(Bucket(store, name="b", user="u", state_dir=state), "ds", dest, tag=tag, progress=Watch())
"""
KILLS = 12


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_kills(tmp_path: Path) -> None:
    rng = random.Random(4)
    source, here = tmp_path / "source", tmp_path / "here"
    source.mkdir()
    here.mkdir()
    url, state = f"file://{tmp_path}/store", str(tmp_path / "state")
    versions: dict[str, dict[str, bytes]] = {}
    with Store.open(open_backend(url, create=True), create=True) as store:
        bucket = Bucket(store, name="b", user="u", state_dir=state)
        for number in range(1, 5):
            for name in range(60):
                path = source / f"folder{name % 7}/f{name}"
                path.parent.mkdir(exist_ok=True)
                if rng.random() < 0.25:
                    path.unlink(missing_ok=True)
                elif number == 1 or rng.random() < 0.4:
                    path.write_bytes(rng.randbytes(rng.choice((100, 100, 2_000_000))))
                    os.utime(path, ns=(1, 1))  # size and time are those of the version before
            bucket.upload("ds", [f"{source}/*"])
            versions[str(number)] = content(source)
        checkout.download(bucket, "ds", str(here), tag="1")
        (here / "ds/mine").write_bytes(b"mine")
        killed = 0
        for _ in range(KILLS):
            tag = rng.choice(list(versions))
            command = [sys.executable, "-c", DOWNLOAD, url, state, str(here), tag, str(rng.randint(1, 25))]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode in {0, -signal.SIGKILL}, done.stderr
            killed += done.returncode != 0
            found = content(here / "ds")
            assert found.pop("mine") == b"mine"
            for path_in, data in found.items():  # each file is whole, and of one of the versions
                assert data in [files.get(path_in) for files in versions.values()]
            if done.returncode == 0:
                assert found == versions[tag]
            elif rng.random() < 0.4:
                checkout.download(bucket, "ds", str(here), tag=tag)
                assert content(here / "ds") == versions[tag] | {"mine": b"mine"}
                assert [one.path for one in checkout.status(bucket, str(here / "ds")).changes] == [b"mine"]
        assert killed >= KILLS // 3
        assert sorted(os.listdir(here)) in (["ds"], [".ds.casstore-partial", "ds"])
        checkout.download(bucket, "ds", str(here))
        assert content(here / "ds") == versions["4"] | {"mine": b"mine"}
        assert os.listdir(here) == ["ds"]
