"""The benchmarks of mounts still run: at sizes that say nothing, and without other programs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("mounts are made by Linux", allow_module_level=True)

from casstore_fuse.mounting import why_not

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=f"nothing can be mounted here: {why_not()}")
@pytest.mark.parametrize(
    ("part", "steps"),
    [
        ("wide", 1),
        ("large", 5),
        ("small", 6),
        ("stream", 1),
        pytest.param("loader", 3, marks=pytest.mark.nightly),
    ],
)
def test_a_quick_run(tmp_path: Path, part: str, steps: int) -> None:
    if part == "loader" and find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: scripts/setup dev found no build for the CPU")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "OSMO_", "AWS_"))}
    command = ["--folder", str(tmp_path), "mount", "--quick", "--only", "casstore", "--data", part]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command],
        cwd=ROOT,
        env=kept | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert sum("| casstore |" in line for line in lines) == steps, done.stdout
    assert not [line for line in lines if line.startswith(("casstore, ", "local disk, ", "plain download, "))]
