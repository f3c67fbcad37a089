"""A process that is killed at any moment of an upload leaves the old versions whole, and the next upload goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import NotFoundError
from casstore.repo.store import Store
from casstore.repo.verify import verify_store

UPLOAD = """
import json, sys
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.repo import packs
from casstore.repo.store import Store
packs.PACK_TARGET = 1 << 20
url, state, source = sys.argv[1:]
store = Store.open(open_backend(url, create=True), create=True)
print("ready", flush=True)
result = Bucket(store, name="b", user="u", state_dir=state).upload("robot", [source + "/*"])
print(json.dumps({"version": result.version.record.number, "new": result.new_bytes}), flush=True)
"""
COLLECT = """
import json, sys
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.store import Store
url, version = sys.argv[1:]
store = Store.open(open_backend(url))
print("ready", flush=True)
if version:
    Bucket(store, name="b", user="u").delete("robot", tag=version)
with Collector(store, rules=Rules(grace=0, margin=0)) as collector:
    outcome = collector.run(collector.plan())
print(json.dumps({"freed": outcome.swept.size}), flush=True)
"""
KILLS = 100


def start(tmp_path: Path) -> subprocess.Popen[str]:
    return run(UPLOAD, f"file://{tmp_path}/store", str(tmp_path / "state"), str(tmp_path / "in"))


def start_collection(tmp_path: Path, version: int | None) -> subprocess.Popen[str]:
    return run(COLLECT, f"file://{tmp_path}/store", str(version or ""))


def run(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


def check(tmp_path: Path, versions: dict[int, dict[str, bytes]], doubtful: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    """The store is whole, and holds these versions; those that are doubtful are whole, or deleted."""
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        report = verify_store(store)
        assert report.problems == []
        bucket = Bucket(store, name="b", user="u")
        for number, files in versions.items():
            try:
                tree = bucket.tree(bucket.resolve("robot", str(number)))
            except NotFoundError:
                assert number in doubtful
                continue
            found = {
                os.fsdecode(entry.path): b"".join(bytes(c) for c in store.read_chunks(list(tree.chunks(entry))))
                for entry in tree.entries()
            }
            assert found == files


def kill_soon(process: subprocess.Popen[str], pause: float) -> str:
    """Kill a process that has begun; returns what it said after that."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    output = process.stdout.read()
    process.wait()
    process.stdout.close()
    return output.strip()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_at_random_moments(tmp_path: Path) -> None:
    """T12: uploads and collections are killed; whatever they did, the versions that count are whole."""
    rng = random.Random(20)
    source = tmp_path / "in"
    source.mkdir()
    files: dict[str, bytes] = {}
    versions: dict[int, dict[str, bytes]] = {}
    killed = resumed = 0
    fresh = False
    duration = 0.2
    while killed < KILLS:
        if len(versions) > 3 and rng.random() < 0.35:
            oldest = min(versions)
            kill_soon(start_collection(tmp_path, oldest), rng.uniform(0, duration))
            killed += 1
            check(tmp_path, versions, {oldest})
            del versions[oldest]
            continue
        if not fresh:
            # New content for the next version: what a killed upload stored of it must not be sent twice.
            name = f"f{rng.randrange(6)}"
            files[name] = rng.randbytes(3 << 20)
            (source / name).write_bytes(files[name])
            fresh = True
        output = kill_soon(start(tmp_path), rng.uniform(0, duration * 1.1))
        killed += 1
        if output:
            versions[json.loads(output)["version"]] = dict(files)
            fresh = False
        check(tmp_path, versions)
        if killed % 5 == 0 and fresh:
            begun = time.monotonic()
            process = start(tmp_path)
            output, _ = process.communicate()
            assert process.returncode == 0
            done = json.loads(output.splitlines()[-1])
            versions[done["version"]] = dict(files)
            duration = min(3.0, max(0.1, (time.monotonic() - begun) / 2))
            resumed += 1
            fresh = False
            check(tmp_path, versions)
    assert killed == KILLS
    assert versions
    assert resumed > 0
    process = start_collection(tmp_path, None)
    output, _ = process.communicate()
    assert process.returncode == 0, "what was interrupted is taken up"
    check(tmp_path, versions)


def test_an_interrupted_upload_sends_only_what_is_missing(tmp_path: Path) -> None:
    """T16: killed half-way, the next run stores at most the missing bytes and one pack for each thread."""
    source = tmp_path / "in"
    source.mkdir()
    size = 64 << 20
    (source / "f").write_bytes(random.Random(1).randbytes(size))
    process = start(tmp_path)
    packs = tmp_path / "store" / "packs"
    stored = 0
    while process.poll() is None and stored < size // 2:
        stored = sum(p.stat().st_size for p in packs.rglob("*") if p.is_file()) if packs.exists() else 0
    process.kill()
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait()
    process.stdout.close()
    assert "version" not in output, "the upload was over before it could be interrupted"
    stored = sum(p.stat().st_size for p in packs.rglob("*") if p.is_file())
    process = start(tmp_path)
    output, _ = process.communicate()
    new = json.loads(output.splitlines()[-1])["new"]
    # What was durable but not in the journal yet when the process died may be sent again: one pack a writer thread.
    assert new <= size - stored + (3 << 20)
    check(tmp_path, {1: {"f": (source / "f").read_bytes()}})
