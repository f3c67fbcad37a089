"""Mounts of object storage with the real kernel: what was read needs no service, and no collection takes it away."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from casstore.testing.servers.s3 import S3Server, moto_s3
from casstore_cli import main
from casstore_cli.mounts import find_registry

LIMIT = 30.0


def why_not() -> str | None:
    if not os.path.exists("/dev/fuse"):
        return "this machine has no /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "this user may not open /dev/fuse"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnt").mkdir()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)

    def call(*args: object, code: int = 0) -> str:
        capsys.readouterr()
        found = main.run([*map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        return captured.out + captured.err

    yield call
    monkeypatch.chdir("/")
    main.run(["dataset", "umount", "--all", "--lazy"])
    assert find_registry().all() == []


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    """What is closed when the service goes away."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def server(servers: contextlib.ExitStack) -> S3Server:
    return servers.enter_context(moto_s3())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    rng = random.Random(6)
    for number in range(30):
        path = root / f"d{number % 3}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 8192, 100_000])))
    (root / "large").write_bytes(rng.randbytes(3 << 20))
    return root


@pytest.fixture
def dataset(run: Run, source: Path, server: S3Server, isolated_home: Path) -> str:
    name = server.bucket()
    credential = {
        "access_key_id": server.access_key_id,
        "access_key": server.access_key,
        "region": server.region,
        "override_url": server.endpoint,
    }
    path = isolated_home / ".config/osmo/config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"auth": {"data": {f"s3://{name}": credential}}}))
    path.chmod(0o600)
    run("bucket", "add", "far", f"s3://{name}/store", "--default")
    run("dataset", "upload", "ds", f"{source}/*")
    return "ds"


def tree_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def shape_of(run: Run) -> dict[str, Any]:
    (found,) = json.loads(run("dataset", "mount", "list", "-t", "json"))["mounts"]
    return dict(found)


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_was_read_needs_no_service(
    run: Run, dataset: str, source: Path, tmp_path: Path, servers: contextlib.ExitStack
) -> None:
    run("dataset", "mount", dataset, "mnt")
    assert tree_of(tmp_path / "mnt") == tree_of(source)
    shape = shape_of(run)
    assert shape["fetched"] >= 3 << 20
    until(lambda: shape_of(run)["guarded"])
    assert "mount" in run("store", "leases")
    run("dataset", "umount", "mnt")
    assert json.loads(run("store", "leases", "-t", "json"))["leases"] == []
    held = json.loads(run("cache", "info", "-t", "json"))["holds"]
    assert held["frames"]["size"] + held["files"]["size"] >= 3 << 20
    assert {"objects", "stores"} <= held.keys()

    run("dataset", "mount", dataset, "mnt")
    servers.close()
    assert tree_of(tmp_path / "mnt") == tree_of(source)
    shape = shape_of(run)
    assert (shape["fetched"], shape["errors"], shape["hit_rate"]) == (0, 0, 1.0)
    assert "100%" in run("dataset", "mount", "list")
    run("dataset", "umount", "mnt")


def test_prefetching_takes_small_files_together_and_stops_when_the_cache_is_full(
    run: Run, dataset: str, source: Path, tmp_path: Path, servers: contextlib.ExitStack
) -> None:
    said = run("dataset", "mount", dataset, "mnt", "--prefetch", "--cache-size", "3500K")
    assert "fetching ahead ends when it is full" in said
    log = Path(shape_of(run)["log"])
    until(lambda: "the cache may get 3 MiB large, and is full" in log.read_text())
    run("dataset", "umount", "mnt")

    said = run("dataset", "mount", dataset, "mnt", "--prefetch")
    assert "ends when" not in said
    until(lambda: log.read_text().count("were fetched ahead") == 2)
    servers.close()
    assert tree_of(tmp_path / "mnt") == tree_of(source)
    run("dataset", "umount", "mnt")


@pytest.mark.parametrize("service", ["s3", "file"])
def test_a_mount_is_unharmed_by_deletion_and_collection(
    run: Run, request: pytest.FixtureRequest, source: Path, tmp_path: Path, service: str
) -> None:
    if service == "s3":
        request.getfixturevalue("dataset")
    else:
        run("dataset", "upload", "ds", f"{source}/*")
    run("dataset", "mount", "ds", "mnt", "--no-cache")
    until(lambda: shape_of(run)["guarded"])
    run("dataset", "delete", "ds", "--all", "--force")
    run("store", "gc", "--grace", "0", "--yes")
    assert tree_of(tmp_path / "mnt") == tree_of(source)
    run("dataset", "umount", "mnt")
    assert json.loads(run("store", "gc", "--grace", "0", "--yes", "-t", "json"))
    assert "frames" not in json.loads(run("cache", "info", "-t", "json"))["holds"]


def test_a_mount_that_may_not_write_has_no_lease_and_says_what_is_gone(
    run: Run, source: Path, tmp_path: Path, isolated_home: Path
) -> None:
    run("bucket", "add", "lab", str(tmp_path / "store"), "--default")
    run("dataset", "upload", "ds", f"{source}/*")
    config = isolated_home / ".config/osmo/config.yaml"
    writable = config.read_text()
    declared = yaml.safe_load(writable)
    declared["casstore"]["buckets"]["lab"] = {
        **dict(declared["casstore"]["buckets"]["lab"]),
        "mode": "read-only",
    }
    config.write_text(yaml.safe_dump(declared))
    run("dataset", "mount", "ds", "mnt", "--no-cache")
    config.write_text(writable)
    assert json.loads(run("store", "leases", "-t", "json"))["leases"] == []
    run("dataset", "delete", "ds", "--all", "--force")
    run("store", "gc", "--grace", "0", "--yes")
    with pytest.raises(OSError, match="Input/output error"):
        (tmp_path / "mnt/large").read_bytes()
    shape = shape_of(run)
    assert shape["errors"] >= 1 and not shape["guarded"]
    assert " ERROR " in Path(shape["log"]).read_text()
    run("dataset", "umount", "mnt")
