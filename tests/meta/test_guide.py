"""What the guide shows is what happens: its ``console`` blocks are run, and their output is compared.

A block is a list of commands, each after ``$ `` (and ``> `` where it goes on), with their output below. A line ``...``
stands for any lines, and ``...`` within a line for anything. Dates, ids, digests, durations and sizes of what was
stored may differ. All blocks of a page run in order, in one new home and one new folder. A block that only shows
something is ``console no-run``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(page for page in GUIDE.glob("*.md") if "```console\n" in page.read_text())
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIES = [
    (re.compile(r"\b[A-Z][a-z]{2} \d\d, \d{4} \d\d:\d\d [A-Z]+"), "DATE"),
    (re.compile(r"\b\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "STORE"),
    (re.compile(r"(?<![\w/-])[A-Za-z0-9_-]{22}(?![\w/-])"), "ID"),
    (re.compile(r"\bin \d+ s\b"), "in N s"),
    (re.compile(r"\b[\d.]+ [KMG]?i?B (?=(?:of them )?new\b)"), "N "),  # with a manifest, which holds times
    (re.compile(r"={4,}"), "===="),
    # An input is downloaded or copied where it can't be mounted.
    (re.compile(r"\b(?:Downloaded|Copied) (.+) to (\{\{\S+): (\d+ files, .*)"), r"Mounted \1 (\3) at \2"),
    (re.compile(r"\s+"), " "),
]


class Step(NamedTuple):
    """One command and the output that the page shows."""

    command: str
    expected: list[str]


def steps(text: str) -> list[Step]:
    """The commands of a page, in order."""
    found: list[Step] = []
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:], []))
            elif (line == ">" or line.startswith("> ")) and not found[-1].expected:
                found[-1] = Step(f"{found[-1].command}\n{line[2:]}", [])
            else:
                found[-1].expected.append(line)
    return found


def matches(expected: list[str], actual: list[str]) -> bool:
    """Whether the output is what the page shows."""
    parts = ["(?:[^\n]*\n)*" if line.strip() == "..." else _line(line) for line in expected]
    return re.fullmatch("".join(parts), "".join(f"{_same(line)}\n" for line in actual)) is not None


def _line(line: str) -> str:
    return "[^\n]*".join(re.escape(part) for part in _same(line).split("...")) + "\n"


def _same(line: str) -> str:
    for pattern, word in _VARIES:
        line = pattern.sub(word, line)
    return line.strip()


def place(folder: Path) -> dict[str, str]:
    """Make a home and a working folder; returns the environment of the commands."""
    home, work, programs = folder / "home", folder / "work", folder / "bin"
    for path in (home, work, programs):
        path.mkdir()
    (work / "examples").symlink_to(ROOT / "examples")
    start = "import sys; sys.argv[0] = 'osmo'; from casstore_cli.start import main; main()"
    for name, arguments in {"osmo": f' -c "{start}"', "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "OSMO_", "COLUMNS"))
    }
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    return environment | {"HOME": str(home), "USER": "you", "LOGNAME": "you", "TZ": "UTC", "LC_ALL": "C.UTF-8"}


def run(step: Step, folder: Path, environment: dict[str, str]) -> list[str]:
    """The output of a command, messages included, without the temporary folder's name."""
    done = subprocess.run(
        ["bash", "-c", step.command], cwd=folder / "work", env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    text = done.stdout.replace(f"{folder}/work", "/home/you/project").replace(f"{folder}/home", "/home/you")
    return text.rstrip("\n").split("\n") if text.strip() else []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_guide_shows_what_happens(page: Path, short_path: Path) -> None:
    mounts = "$ osmo dataset mount" in page.read_text()
    if mounts and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this user may not open /dev/fuse, or there is none")
    environment = place(short_path)
    try:
        for step in steps(page.read_text()):
            actual = run(step, short_path, environment)
            assert matches(step.expected, actual), "\n".join(
                [f"$ {step.command}", *actual, "-- shown:", *step.expected]
            )
    finally:
        if mounts:
            run(Step("osmo dataset umount --all --lazy", []), short_path, environment)
        run(Step("osmo server stop --tasks", []), short_path, environment)  # many commands start one


def test_a_wrong_page_would_be_noticed() -> None:
    assert matches(["a", "...", "z 1 ... 2"], ["a", "b", "c", "z 1 x y 2"])
    assert matches(["in 3 s  x"], ["in 0 s x"])
    assert not matches(["a"], ["b"])
    assert not matches(["a"], ["a", "b"])
    assert not matches(["a", "...", "c"], ["a", "b"])
    assert steps("```console\n$ cat <<E\n> x\n> E\nout\n$ b\n```\n") == [Step("cat <<E\nx\nE", ["out"]), Step("b", [])]
