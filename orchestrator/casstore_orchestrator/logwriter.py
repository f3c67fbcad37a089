"""Writing the logs of workflows.

Decided here and only here: what a line looks like, how much of a log is kept, when it reaches the disk, and that
secrets never do. What comes at once is handled at once, whatever the number of its lines, since a task may write
millions of them. Lines are stamped and buffered under one lock, so that within one process whoever flushes before
reading sees exactly the lines stamped before, and merging by time is exact; lines of several processes are in order
but for the time they wait to be written. A file has one writer: the agent of the attempt; what schedulers add is in a
file beside it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from .logreader import LOG, NOTE, STAMP_BYTES, LogFolder

__all__ = ["Clock", "LogWriter"]

FLUSH_INTERVAL = 0.05
"""Seconds after which a line is on disk at the latest (and visible to a reader at once: readers flush)."""
MAX_HELD = 4 * 1024 * 1024
"""Bytes of one attempt that wait in memory while the disk takes none; then lines are dropped, and counted."""
MAX_LINE = 64 * 1024
"""Bytes of one line that are kept; the rest of a longer line goes to further lines."""
MAX_ATTEMPT = 1 << 30
"""Bytes kept of one attempt's log: a task that prints without end must not fill the disk."""
MAX_BUFFER = 256 * 1024
"""Buffered bytes of one attempt that are written at once rather than at the next flush."""
MASK = b"[MASKED]"
MIN_SECRET = 3
"""Bytes of the shortest secret that is masked wherever it stands: shorter ones are in every line, and are masked where
they stand alone, as a word.
"""


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
        self.attempts: dict[tuple[str, int, str], _Attempt] = {}
        self.dirty: set[_Attempt] = set()
        self.secrets: tuple[bytes, ...] = ()


class LogWriter:
    """The writing end of the logs of some workflows, under ``home``; safe to use from any thread.

    ``close`` writes out what is buffered and stops the flushing thread.
    """

    def __init__(self, home: Path, *, clock: Clock = time) -> None:
        self.folder = LogFolder(home)
        self._clock = clock
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._live: dict[str, _Workflow] = {}
        self._last_micros = 0
        self._second = -1
        self._second_text = ""
        self._closed = False
        self._dirty = threading.Event()
        self._end = threading.Event()
        self._flusher = threading.Thread(target=self._flush_loop, name="log-flush", daemon=True)
        self._flusher.start()

    def begin(self, workflow_id: str, secrets: Iterable[str] = ()) -> None:
        """Open the log of a workflow for writing; ``secrets`` are replaced by ``[MASKED]`` in every line."""
        self.folder.folder(workflow_id).mkdir(parents=True, exist_ok=True)
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
        """Write out what is left of a log. Later lines are dropped."""
        with self._news:
            workflow = self._live.pop(workflow_id, None)
            if workflow is not None:
                for attempt in workflow.attempts.values():
                    attempt.write()
            self._news.notify_all()

    def flush(self) -> None:
        """Write out everything."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Write out everything and stop. Idempotent."""
        with self._news:
            self._closed = True
            self._flush()
            self._news.notify_all()
        self._end.set()
        self._dirty.set()
        self._flusher.join()

    def append(self, workflow_id: str, task: str, retry_id: int, text: bytes, *, source: str = "") -> None:
        """Add a line (several, where ``text`` holds newlines); ``source`` "" is the task's own output.

        Ignored outside of ``begin`` and ``end``: only then the secrets are known.
        """
        self._append(workflow_id, task, retry_id, text, source=source, kind=LOG)

    def say(self, workflow_id: str, task: str, retry_id: int, text: str) -> None:
        """Add a line of our own."""
        self._append(workflow_id, task, retry_id, _encoded(text), source="osmo", kind=LOG)

    def note(self, workflow_id: str, task: str, retry_id: int, text: str) -> None:
        """Add a line of our own to a log that another process may be writing. It is on the disk at once."""
        self._append(workflow_id, task, retry_id, _encoded(text), source="osmo", kind=NOTE)

    def _append(self, workflow_id: str, task: str, retry_id: int, text: bytes, *, source: str, kind: str) -> None:
        with self._lock:
            workflow = self._live.get(workflow_id)
            if workflow is None:
                return
            attempt = workflow.attempts.get((task, retry_id, kind))
            if attempt is None:
                attempt = _Attempt(self.folder.path(workflow_id, task, retry_id, kind), task, retry_id)
                workflow.attempts[task, retry_id, kind] = attempt
            prefix = attempt.prefix_own + f"[{source}] ".encode() if source else attempt.prefix
            self._put_all(attempt, prefix, _masked(text, workflow.secrets), own=bool(source))
            workflow.dirty.add(attempt)
            if (attempt.buffered >= MAX_BUFFER or kind == NOTE) and not attempt.refused:
                attempt.write()
                self._news.notify_all()
            self._dirty.set()

    def _put_all(self, attempt: _Attempt, prefix: bytes, text: bytes, *, own: bool) -> None:
        count = text.count(b"\n") + 1
        size = len(text) + count * (len(prefix) + STAMP_BYTES + 1)
        fits = attempt.buffered + size < MAX_HELD and attempt.size + size < MAX_ATTEMPT and not attempt.full
        if fits and (len(text) <= MAX_LINE or max(map(len, text.split(b"\n"))) <= MAX_LINE):
            # Lines that came together have one time, and are kept in their order.
            head = self._stamp() + prefix
            attempt.buffer.append(head + text.replace(b"\n", b"\n" + head) + b"\n")
            attempt.buffered += size
            attempt.size += size
            return
        for line in text.split(b"\n"):
            for start in range(0, len(line) or 1, MAX_LINE):
                self._put(attempt, prefix, line[start : start + MAX_LINE], own=own)

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

    def _flush_loop(self) -> None:
        # ``close`` sets the end first: a flush that takes its call away has the end to see.
        while not self._end.is_set():
            self._dirty.wait()  # costs nothing while nobody writes
            if self._end.wait(FLUSH_INTERVAL):
                return
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        self._dirty.clear()
        wrote = False
        for workflow in self._live.values():
            done = {attempt for attempt in workflow.dirty if attempt.write()}
            workflow.dirty -= done
            for attempt in done:
                self._tell_lost(workflow, attempt)
            wrote = wrote or bool(done)
            if workflow.dirty:
                self._dirty.set()
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


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


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
