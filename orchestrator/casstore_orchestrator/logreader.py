"""Reading the logs of workflows, which other processes may be writing at the same time.

Decided here and only here: where logs lie, how lines of several tasks are merged, and that a line that is not whole is
not read while it may still grow. Memory is bounded: files are iterated, and never loaded whole.

    <workflow id>/_logs/<task>.<retry id>.log    what the agent of an attempt wrote
    <workflow id>/_logs/<task>.<retry id>.note   what schedulers added
    <workflow id>/_logs/<task>.<retry id>.err    the last lines of an attempt that failed

On disk a line is ``YYYY/MM/DD HH:MM:SS.ffffff [task] text`` in UTC; readers get it without the fraction.
"""

from __future__ import annotations

import heapq
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

__all__ = ["LogFolder", "Part", "merged", "shown"]

_BLOCK = 64 * 1024
_STAMP = len("2026/01/31 00:00:00.000000")
_SHORT_STAMP = len("2026/01/31 00:00:00")
_FILE_NAME = re.compile(r"(?P<task>[A-Za-z][A-Za-z0-9_-]*)\.(?P<retry>[0-9]+)\.(?P<kind>log|note|err)")
_WORKFLOW_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
LOG, NOTE, ERROR = "log", "note", "err"


class Part(NamedTuple):
    """One file of a log; sorts by task and attempt."""

    task: str
    retry_id: int
    kind: str
    path: Path


class LogFolder:
    """The logs of all workflows below ``home``."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def path(self, workflow_id: str, task: str, retry_id: int, kind: str) -> Path:
        """Where a part of a log is. ``ValueError`` for what is no workflow id."""
        return self.folder(workflow_id) / f"{task}.{retry_id}.{kind}"

    def folder(self, workflow_id: str) -> Path:
        """Where the log of a workflow is. ``ValueError`` for what is no workflow id."""
        if not _WORKFLOW_ID.fullmatch(workflow_id):
            msg = f"not a workflow id: {workflow_id!r}"
            raise ValueError(msg)
        return self._home / workflow_id / "_logs"

    def parts(self, workflow_id: str, task: str | None, retry_id: int | None, kinds: Iterable[str]) -> list[Part]:
        """The files of a log, those of one task or attempt if wanted, in the order of tasks and attempts."""
        folder = self.folder(workflow_id)
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            match = _FILE_NAME.fullmatch(name)
            if match is None or match["kind"] not in kinds:
                continue
            part = Part(match["task"], int(match["retry"]), match["kind"], folder / name)
            if task in {None, part.task} and retry_id in {None, part.retry_id}:
                found.append(part)
        return sorted(found)


def shown(line: bytes) -> str:
    """A line as readers get it."""
    return (line[:_SHORT_STAMP] + line[_STAMP:]).decode("utf-8", "replace")


def merged(
    parts: list[Part], seen: dict[Path, int], last: int | None = None, *, grows: bool = False
) -> Iterator[bytes]:
    """The lines behind ``seen``, which is moved on at once, in the order of their stamps.

    ``last``: only so many. ``grows``: what stands behind the last newline of a file is left for later. The attempts of
    one task follow each other, so that the number of open files is that of the tasks.
    """
    streams: dict[tuple[str, str], list[tuple[Path, int, int]]] = {}
    for part in parts:
        start, size = seen.get(part.path, 0), part.path.stat().st_size
        end = size
        if size > start:
            if grows:
                with part.path.open("rb") as file:
                    end = _line_end(file, start, size)
            streams.setdefault((part.task, part.kind), []).append((part.path, start, end))
        seen[part.path] = end
    lines: Iterable[bytes] = heapq.merge(
        *(_lines(files, last) for files in streams.values()), key=lambda line: line[:_STAMP]
    )
    yield from lines if last is None else deque(lines, maxlen=last)


def _lines(files: list[tuple[Path, int, int]], last: int | None) -> Iterator[bytes]:
    for path, start, end in files:
        with path.open("rb") as file:
            position = max(start, _tail_offset(file, end, last)) if last is not None else start
            file.seek(position)
            while position < end:
                line = file.readline(end - position)
                if not line:
                    break
                position += len(line)
                yield line.removesuffix(b"\n")


def _line_end(file: BinaryIO, start: int, end: int) -> int:
    """Where the last whole line between these positions ends; ``start`` when there is none."""
    position = end
    while position > start:
        size = min(_BLOCK, position - start)
        position -= size
        file.seek(position)
        found = file.read(size).rfind(b"\n")
        if found >= 0:
            return position + found + 1
    return start


def _tail_offset(file: BinaryIO, end: int, lines: int) -> int:
    """Where the last ``lines`` lines before ``end`` begin; reads backwards, a block at a time."""
    if lines <= 0:
        return end
    position = end
    wanted = lines + 1  # the newline that ends the line before
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        count = block.count(b"\n")
        if count >= wanted:
            at = len(block)
            for _ in range(wanted):
                at = block.rfind(b"\n", 0, at)
            return position + at + 1
        wanted -= count
    return 0
