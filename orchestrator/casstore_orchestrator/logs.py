"""The logs of workflows: one append-only file for each attempt of a task, read back as one stream.

Decided here and only here: where logs lie, what a line looks like, how lines of several tasks are merged, how
much of a log is kept, and that secrets never reach the disk.

On disk a line is ``YYYY/MM/DD HH:MM:SS.ffffff [task] text`` in UTC; readers get it without the fraction.
Lines are stamped and buffered under one lock, so that a reader that flushes first sees exactly the lines
stamped before, and merging by time is exact. Memory is bounded: files are iterated, and never loaded whole.
"""

from __future__ import annotations

import heapq
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

__all__ = ["LogStore", "TaskLog"]

FLUSH_INTERVAL = 0.1
"""Seconds after which a line is on disk at the latest (and visible to a reader at once: readers flush)."""
FOLLOW_INTERVAL = 0.2
"""Seconds between two looks of a follower for which nothing was announced."""
MAX_HELD = 4 * 1024 * 1024
"""Bytes of one attempt that wait in memory while the disk takes none; then lines are dropped, and counted."""
MAX_LINE = 64 * 1024
"""Bytes of one line that are kept; the rest of a longer line goes to further lines."""
MAX_ATTEMPT = 1 << 30
"""Bytes kept of one attempt's log: a task that prints without end must not fill the disk."""
MAX_BUFFER = 256 * 1024
"""Buffered bytes of one attempt that are written at once rather than at the next flush."""
ERROR_LINES = 100
"""Lines kept apart of each attempt that failed."""
MASK = b"[MASKED]"
MIN_SECRET = 3
"""Bytes of the shortest secret that is masked wherever it stands: shorter ones are in every line, and are masked where
they stand alone, as a word.
"""

_BLOCK = 64 * 1024
_STAMP = len("2026/01/31 00:00:00.000000")
_SHORT_STAMP = len("2026/01/31 00:00:00")
_FILE_NAME = re.compile(r"(?P<task>[A-Za-z][A-Za-z0-9_-]*)\.(?P<retry>[0-9]+)\.(?P<kind>log|err)")
_WORKFLOW_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Clock(Protocol):
    """What this module asks of ``time``."""

    def time(self) -> float: ...


class _Attempt:
    """The writing end of one attempt's file; guarded by the store's lock."""

    __slots__ = ("buffer", "buffered", "full", "lost", "path", "prefix", "prefix_own", "refused", "size")

    def __init__(self, path: Path, task: str, retry_id: int) -> None:
        self.path = path
        name = task if retry_id == 0 else f"{task} retry-{retry_id}"
        self.prefix = f" [{name}] ".encode()
        self.prefix_own = f" [{name}]".encode()
        self.buffer: list[bytes] = []
        self.buffered = 0
        try:
            self.size = path.stat().st_size
        except FileNotFoundError:
            self.size = 0
        self.full = self.size >= MAX_ATTEMPT
        self.lost = 0
        self.refused = ""

    def write(self) -> bool:
        """Write out what is buffered; False when the disk did not take it all, and ``refused`` says why."""
        data = memoryview(b"".join(self.buffer))
        written = 0
        try:
            if data:
                with self.path.open("ab", buffering=0) as file:
                    while written < len(data):  # a disk that becomes full takes a part
                        written += file.write(data[written:])
        except OSError as error:
            self.refused = error.strerror or str(error)
        rest = bytes(data[written:])
        self.buffer = [rest] if rest else []
        self.buffered = len(rest)
        return not rest


class _Workflow:
    __slots__ = ("attempts", "dirty", "secrets")

    def __init__(self) -> None:
        self.attempts: dict[tuple[str, int], _Attempt] = {}
        self.dirty: set[_Attempt] = set()
        self.secrets: tuple[bytes, ...] = ()


class TaskLog:
    """The log of one workflow as the executor sees it: a line belongs to the attempt announced last."""

    def __init__(self, store: LogStore, workflow_id: str) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._retries: dict[str, int] = {}

    def attempt(self, task: str, retry_id: int) -> None:
        """From now on lines of ``task`` belong to this attempt."""
        self._retries[task] = retry_id

    def line(self, task: str, text: bytes, *, source: str = "") -> None:
        """Take one line; see ``ports.LogSink``."""
        self._store.append(self._workflow_id, task, self._retries.get(task, 0), text, source=source)

    def say(self, task: str, text: str) -> None:
        """A line of our own (``[task][osmo] text``)."""
        self._store.say(self._workflow_id, task, self._retries.get(task, 0), text)


class LogStore:
    """The logs of all workflows under ``home``; safe to use from any thread.

    ``begin`` makes a workflow one that can still grow (followers wait for it), ``end`` closes it. ``close``
    writes out what is buffered and stops the flushing thread.
    """

    def __init__(self, home: Path, *, clock: Clock = time) -> None:
        self._home = home
        self._clock = clock
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._live: dict[str, _Workflow] = {}
        self._last_micros = 0
        self._second = -1
        self._second_text = ""
        self._closed = False
        self._wake = threading.Event()
        self._flusher = threading.Thread(target=self._flush_loop, name="log-flush", daemon=True)
        self._flusher.start()

    def begin(self, workflow_id: str, secrets: Iterable[str] = ()) -> None:
        """Open the log of a workflow for writing; ``secrets`` are replaced by ``[MASKED]`` in every line."""
        folder = self._folder(workflow_id)
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            workflow = self._live.setdefault(workflow_id, _Workflow())
            workflow.secrets = _secret_pieces(secrets) or workflow.secrets

    def mask(self, workflow_id: str, secrets: Iterable[str]) -> None:
        """Hide these secrets, too, from now on; ignored outside of ``begin`` and ``end``."""
        pieces = _secret_pieces(secrets)
        with self._lock:
            workflow = self._live.get(workflow_id)
            if workflow is not None:
                workflow.secrets = _ordered({*workflow.secrets, *pieces})

    def end(self, workflow_id: str) -> None:
        """Close the log of a workflow: followers get what is left and stop. Later lines are dropped."""
        with self._news:
            workflow = self._live.pop(workflow_id, None)
            if workflow is not None:
                for attempt in workflow.attempts.values():
                    attempt.write()
            self._news.notify_all()

    def close(self) -> None:
        """Write out everything and stop; followers end. Idempotent."""
        with self._news:
            self._closed = True
            self._flush()
            self._news.notify_all()
        self._wake.set()
        self._flusher.join()

    def append(self, workflow_id: str, task: str, retry_id: int, text: bytes, *, source: str = "") -> None:
        """Add a line (several, where ``text`` holds newlines); ``source`` "" is the task's own output.

        Ignored outside of ``begin`` and ``end``: only then the secrets are known.
        """
        with self._lock:
            workflow = self._live.get(workflow_id)
            if workflow is None:
                return
            attempt = workflow.attempts.get((task, retry_id))
            if attempt is None:
                attempt = _Attempt(self._path(workflow_id, task, retry_id, "log"), task, retry_id)
                workflow.attempts[task, retry_id] = attempt
            prefix = attempt.prefix_own + f"[{source}] ".encode() if source else attempt.prefix
            text = _masked(text, workflow.secrets)
            for line in text.split(b"\n"):
                for start in range(0, len(line) or 1, MAX_LINE):
                    self._put(attempt, prefix, line[start : start + MAX_LINE], own=bool(source))
            workflow.dirty.add(attempt)
            if attempt.buffered >= MAX_BUFFER and not attempt.refused:
                attempt.write()
                self._news.notify_all()

    def say(self, workflow_id: str, task: str, retry_id: int, text: str) -> None:
        """Add a line of our own."""
        self.append(workflow_id, task, retry_id, text.encode("utf-8", "surrogateescape"), source="osmo")

    def _put(self, attempt: _Attempt, prefix: bytes, line: bytes, *, own: bool) -> None:
        if attempt.full and not own:
            return
        if attempt.buffered >= MAX_HELD:
            attempt.lost += 1
            return
        line = self._stamp() + prefix + line + b"\n"
        attempt.buffer.append(line)
        attempt.buffered += len(line)
        attempt.size += len(line)
        if attempt.size >= MAX_ATTEMPT and not attempt.full:
            attempt.full = True
            note = f"The log reached {MAX_ATTEMPT >> 20} MiB: further output of the command is dropped.\n"
            attempt.buffer.append(self._stamp() + attempt.prefix_own + b"[osmo] " + note.encode())

    def _stamp(self) -> bytes:
        micros = int(self._clock.time() * 1_000_000)
        self._last_micros = micros = max(micros, self._last_micros + 1)
        seconds, fraction = divmod(micros, 1_000_000)
        if seconds != self._second:
            self._second = seconds
            self._second_text = f"{datetime.fromtimestamp(seconds, UTC):%Y/%m/%d %H:%M:%S}"
        return f"{self._second_text}.{fraction:06d}".encode()

    def keep_error(self, workflow_id: str, task: str, retry_id: int) -> None:
        """Keep the tail of a failed attempt apart, for ``read(error=True)``."""
        with self._lock:
            self._flush()
        source = self._path(workflow_id, task, retry_id, "log")
        target = self._path(workflow_id, task, retry_id, "err")
        try:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(_tail_offset(file, size, ERROR_LINES))
                target.write_bytes(file.read(size - file.tell()))
        except OSError:  # there is none, or no room for it: the log itself is what counts
            return

    def read(
        self,
        workflow_id: str,
        *,
        task: str | None = None,
        retry_id: int | None = None,
        last: int | None = None,
        follow: bool = False,
        error: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """Lines in the order of their times, without newline.

        ``last``: only the last n lines of what is there (then, with ``follow``, what comes).
        ``follow``: until the workflow ends, or ``stop`` is true (asked now and then). ``error``: only the kept
        tails of failed attempts.
        """
        kind = "err" if error else "log"
        seen: dict[Path, int] = {}
        while True:
            with self._lock:
                live = workflow_id in self._live and not self._closed
                self._flush()
            paths = self._files(workflow_id, task, retry_id, kind)
            ranges = {path: (seen.get(path, 0), path.stat().st_size) for path in paths}
            lines = _merge(ranges, last)
            yield from lines
            last = None
            seen.update({path: end for path, (_, end) in ranges.items()})
            if not follow or not live or stop():
                return
            with self._news:
                if workflow_id in self._live and not self._closed:
                    self._news.wait(FOLLOW_INTERVAL)

    def retries(self, workflow_id: str, task: str) -> list[int]:
        """The attempts of a task that have a log."""
        return [retry for path in self._files(workflow_id, task, None, "log") for _, retry in [_parse(path)]]

    def _flush_loop(self) -> None:
        while not self._wake.wait(FLUSH_INTERVAL):
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        wrote = False
        for workflow in self._live.values():
            done = {attempt for attempt in workflow.dirty if attempt.write()}
            workflow.dirty -= done
            for attempt in done:
                self._tell_lost(workflow, attempt)
            wrote = wrote or bool(done)
        if wrote:
            self._news.notify_all()

    def _tell_lost(self, workflow: _Workflow, attempt: _Attempt) -> None:
        """The disk takes lines again: say how many it did not."""
        why, attempt.refused = attempt.refused, ""
        if attempt.lost:
            note = f"{attempt.lost} lines of this log were lost: {why}".encode()
            attempt.lost = 0
            self._put(attempt, attempt.prefix_own + b"[osmo] ", note, own=True)
            workflow.dirty.add(attempt)

    def _folder(self, workflow_id: str) -> Path:
        if not _WORKFLOW_ID.fullmatch(workflow_id):
            msg = f"not a workflow id: {workflow_id!r}"
            raise ValueError(msg)
        return self._home / workflow_id / "_logs"

    def _path(self, workflow_id: str, task: str, retry_id: int, kind: str) -> Path:
        return self._folder(workflow_id) / f"{task}.{retry_id}.{kind}"

    def _files(self, workflow_id: str, task: str | None, retry_id: int | None, kind: str) -> list[Path]:
        found = []
        folder = self._folder(workflow_id)
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
        for name in names:
            match = _FILE_NAME.fullmatch(name)
            if (
                match
                and match["kind"] == kind
                and task in (None, match["task"])
                and retry_id in (None, int(match["retry"]))
            ):
                found.append(folder / name)
        return sorted(found, key=_parse)


def _parse(path: Path) -> tuple[str, int]:
    task, retry, _ = path.name.split(".")
    return task, int(retry)


def _secret_pieces(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """What to look for: each line of each secret, the longest first so that none hides a part of another."""
    lines = (line for secret in secrets for line in secret.splitlines())
    pieces = {piece.encode("utf-8", "surrogateescape") for line in lines for piece in (line, line.strip()) if piece}
    return _ordered(piece for piece in pieces if piece.strip())


def _ordered(pieces: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(pieces, key=lambda piece: (-len(piece), piece)))


def _masked(text: bytes, secrets: Sequence[bytes]) -> bytes:
    for secret in secrets:
        if secret not in text:
            continue
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, MASK)
        else:
            text = re.sub(rb"(?<![\w])" + re.escape(secret) + rb"(?![\w])", MASK, text)
    return text


def _merge(ranges: dict[Path, tuple[int, int]], last: int | None) -> Iterator[str]:
    """The lines of these byte ranges in the order of their stamps.

    The attempts of one task follow each other, so that the number of open files is that of the tasks.
    """
    tasks: dict[str, list[tuple[Path, int, int]]] = {}
    for path, (start, end) in ranges.items():
        if end > start:
            tasks.setdefault(_parse(path)[0], []).append((path, start, end))
    streams = [_task_lines(files, last) for files in tasks.values()]
    merged: Iterable[bytes] = heapq.merge(*streams, key=lambda line: line[:_STAMP])
    if last is not None:
        merged = deque(merged, maxlen=last)
    for line in merged:
        yield (line[:_SHORT_STAMP] + line[_STAMP:]).decode("utf-8", "replace")


def _task_lines(files: list[tuple[Path, int, int]], last: int | None) -> Iterator[bytes]:
    for path, start, end in files:
        with path.open("rb") as file:
            position = max(start, _tail_offset(file, end, last)) if last is not None else start
            file.seek(position)
            for line in file:
                position += len(line)
                if position > end:
                    break
                yield line.removesuffix(b"\n")


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
