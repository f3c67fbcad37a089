"""Servers under load, in small; ``benchmarks.serving`` is the same at full size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from casstore.testing.postgres import find_programs

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, *words: str, timeout: float = 300) -> str:
    """Run a part; what it reports. It ends with 1 when a line was lost or a request failed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "OSMO_", "AWS_"))}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *words],
        cwd=ROOT,
        env=kept
        | {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("end", ["KILL", pytest.param("TERM", marks=pytest.mark.nightly)])
def test_clients_lose_nothing_when_one_of_two_servers_ends(tmp_path: Path, end: str) -> None:
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed; scripts/setup dev installs it")
    said = run(tmp_path, "clients", "--clients", "12", "--seconds", "12", "--writers", "2", "--end", end)
    assert " 0 errors." in said
    assert "| ended |" in said


@pytest.mark.slow
def test_tasks_that_print_much_lose_no_line(tmp_path: Path) -> None:
    said = run(tmp_path, "lines", "--tasks", "8", "--lines", "20000", "--rate", "20000")
    assert "| 160,000 |" in said


@pytest.mark.nightly
def test_two_hundred_clients_and_ten_million_lines(tmp_path: Path) -> None:
    run(tmp_path, "clients", timeout=1800)
    run(tmp_path, "lines", timeout=1800)
