"""Reading the logs of workflows, which other processes may be writing at the same time.

Decided here and only here: where logs lie, how lines of several tasks are merged, that a line that is not whole is not
read while it may still grow, and what a place in a log is: how much of each of its files was read. From there anybody
goes on who can read the files. Memory is bounded: of all files together about a MiB is held, of none more than that.

    <workflow id>/_logs/<task>.<retry id>.log    what the agent of an attempt wrote
    <workflow id>/_logs/<task>.<retry id>.note   what schedulers added
    <workflow id>/_logs/<task>.<retry id>.err    the last lines of an attempt that failed

On disk a line is ``YYYY/MM/DD HH:MM:SS.ffffff [task] text`` in UTC; readers get it without the fraction.
"""

from __future__ import annotations

import heapq
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

__all__ = ["LogFolder", "Part", "Places", "merged", "shown"]

_BLOCK = 64 * 1024
_LEAST_BLOCK = 4 * 1024
_HELD = 1 << 20
"""Bytes of all files together that are read at a time, where these are not too many."""
STAMP_BYTES = len("2026/01/31 00:00:00.000000")
_SHORT_STAMP = len("2026/01/31 00:00:00")
_FILE_NAME = re.compile(r"(?P<task>[A-Za-z][A-Za-z0-9_-]*)\.(?P<retry>[0-9]+)\.(?P<kind>log|note|err)")
_WORKFLOW_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
LOG, NOTE, ERROR = "log", "note", "err"

Places = dict[str, int]
"""How many bytes of each file, by its name, were read."""


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


def shown(lines: Iterable[bytes]) -> bytes:
    """Lines as readers get them: text, without the fraction of the time."""
    text = b"".join([line[:_SHORT_STAMP] + line[STAMP_BYTES:] for line in lines])
    return text if text.isascii() else text.decode("utf-8", "replace").encode()


class _Range:
    """What is to be read of one file."""

    __slots__ = ("end", "name", "path", "start")

    def __init__(self, path: Path, start: int, end: int) -> None:
        self.path = path
        self.name = path.name
        self.start = start
        self.end = end


class _Stream:
    """The ranges of one task, one after the other, so that its attempts follow each other."""

    __slots__ = ("_at", "_block", "_lines", "_ranges")

    def __init__(self, ranges: Iterable[_Range], block: int) -> None:
        self._ranges = deque(ranges)
        self._block = block
        self._lines: list[bytes] = []
        self._at = 0

    def next(self) -> bytes | None:
        """The stamp of the next line; None at the end."""
        if self._at == len(self._lines):
            self._at, self._lines = 0, []
            while not self._lines:
                if not self._ranges:
                    return None
                self._lines = _whole_lines(self._ranges[0], self._block)
                if not self._lines:
                    self._ranges.popleft()
        return _stamp(self._lines[self._at])

    def take(self, until: bytes | None, places: Places) -> list[bytes]:
        """The next line and those behind it, of those that are read already, with stamps up to ``until``, each with a
        newline; ``places`` is moved behind them.
        """
        start, end = self._at, len(self._lines)
        if until is not None and _stamp(self._lines[-1]) > until:
            end = bisect_right(self._lines, until, start + 1, key=_stamp)
        taken, self._at = self._lines[start:end], end
        file = self._ranges[0]
        file.start = min(file.start + sum(map(len, taken)), file.end)  # a line without a newline was given one
        places[file.name] = file.start
        return taken


def _stamp(line: bytes) -> bytes:
    return line[:STAMP_BYTES]


def merged(parts: list[Part], places: Places, last: int | None = None, *, grows: bool = False) -> Iterator[list[bytes]]:
    """The lines behind ``places``, in the order of their stamps, each with a newline, some at a time; ``places`` is
    moved behind those that were given. The lines of one file stay in their order whatever their stamps are.

    ``last``: only so many. ``grows``: what stands behind the last newline of a file is left for later.
    """
    ranges: dict[tuple[str, str], list[_Range]] = {}
    skip = 0
    for part in parts:
        found = _range(part.path, places.get(part.path.name, 0), grows=grows)
        if last is not None and found.end > found.start:
            skip += _to_tail(found, last)
        places[found.name] = found.start
        if found.end > found.start:
            ranges.setdefault((part.task, part.kind), []).append(found)
    skip = 0 if last is None else max(0, skip - last)
    block = min(_BLOCK, max(_LEAST_BLOCK, _HELD // max(1, len(ranges))))
    batch: list[bytes] = []
    size = 0
    for lines in _in_order([_Stream(files, block) for files in ranges.values()], places):
        batch += lines[skip:]
        size += sum(map(len, lines))
        skip = max(0, skip - len(lines))
        if size >= _BLOCK and batch:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(streams: list[_Stream], places: Places) -> Iterator[list[bytes]]:
    """The lines of all streams, those that stand together in one of them at a time."""
    heap = [(stamp, number) for number, stream in enumerate(streams) if (stamp := stream.next()) is not None]
    heapq.heapify(heap)
    while heap:
        stream = streams[heap[0][1]]
        until = min((entry[0] for entry in heap[1:3]), default=None)
        yield stream.take(until, places)
        stamp = stream.next()
        if stamp is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (stamp, heap[0][1]))


def _range(path: Path, start: int, *, grows: bool) -> _Range:
    """What is new in a file."""
    size = end = path.stat().st_size
    start = min(start, size)
    if grows and size > start:
        with path.open("rb") as file:
            end = _line_end(file, start, size)
    return _Range(path, start, end)


def _to_tail(found: _Range, lines: int) -> int:
    """Leave the last ``lines`` lines of a range; how many there are."""
    with found.path.open("rb") as file:
        found.start = max(found.start, _tail_offset(file, found.end, lines))
        file.seek(found.start)
        count, left, block = 0, found.end - found.start, b"\n"
        while left and (block := file.read(min(_BLOCK, left))):
            count += block.count(b"\n")
            left -= len(block)
    return count + (not block.endswith(b"\n"))


def _whole_lines(found: _Range, size: int) -> list[bytes]:
    """The lines at the start of a range, about ``size`` bytes of them and at least one; none at its end."""
    left = found.end - found.start
    if not left:
        return []
    with found.path.open("rb", buffering=0) as file:
        file.seek(found.start)
        text = file.read(min(size, left))
        while len(text) < left and b"\n" not in text and (more := file.read(min(size, left - len(text)))):
            text += more
    if len(text) < left:  # the line that was not read to its end is for the next time
        text = text[: text.rfind(b"\n") + 1]
    return [line + b"\n" for line in text.removesuffix(b"\n").split(b"\n")] if text else []


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
