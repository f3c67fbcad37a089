"""The logs of workflows: append-only files for each attempt of a task, read back as one stream.

Decided here and only here: how a log is followed while it grows, in this process or another one, and when a follower
sees its end: once nobody writes to the log any more, and every line that was written before has been read.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from .logreader import ERROR, LOG, NOTE, Places, merged, shown
from .logwriter import Clock, LogWriter

__all__ = ["Clock", "LogStore", "Piece", "TaskLog"]

FOLLOW_INTERVAL = 0.1
"""Seconds between two looks of a follower for what other processes wrote."""
ASK_INTERVAL = 0.5
"""Seconds between two questions of a follower whether the log can still grow."""
ERROR_LINES = 100
"""Lines kept apart of each attempt that failed."""


class Piece(NamedTuple):
    """Whole lines of a log, and how far each file was read with them, as far as that has changed."""

    text: bytes
    moved: Places


class TaskLog:
    """The log of one workflow as the executor sees it: a line belongs to the attempt announced last."""

    def __init__(self, store: LogWriter, workflow_id: str) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._retries: dict[str, int] = {}

    def attempt(self, task: str, retry_id: int) -> None:
        """From now on lines of ``task`` belong to this attempt."""
        self._retries[task] = retry_id

    def write(self, task: str, text: bytes, *, source: str = "") -> None:
        """See ``ports.LogSink``."""
        self._store.append(self._workflow_id, task, self._retries.get(task, 0), text, source=source)

    def say(self, task: str, text: str) -> None:
        """A line of our own (``[task][osmo] text``)."""
        self._store.say(self._workflow_id, task, self._retries.get(task, 0), text)


class LogStore(LogWriter):
    """The logs of all workflows under ``home``; safe to use from any thread, and from several processes.

    Those that were begun here can be written to. Followers of these wait for ``end``; those of others are told by
    whoever knows whether the log can still grow.
    """

    def keep_error(self, workflow_id: str, task: str, retry_id: int) -> None:
        """Keep the tail of a failed attempt apart, for ``read(error=True)``."""
        self.flush()
        with contextlib.suppress(OSError):  # there is none, or no room for it: the log itself is what counts
            parts = self.folder.parts(workflow_id, task, retry_id, {LOG, NOTE})
            lines = list(chain.from_iterable(merged(parts, {}, ERROR_LINES)))
            if parts:
                self.folder.path(workflow_id, task, retry_id, ERROR).write_bytes(b"".join(lines))

    def read(self, workflow_id: str, **options: Any) -> Iterator[str]:
        """The lines of ``pieces``, without newline."""
        for piece in self.pieces(workflow_id, **options):
            yield from piece.text.decode().split("\n")[:-1]

    def pieces(
        self,
        workflow_id: str,
        *,
        task: str | None = None,
        retry_id: int | None = None,
        last: int | None = None,
        follow: bool = False,
        error: bool = False,
        live: Callable[[], bool] | None = None,
        stop: Callable[[], bool] = lambda: False,
        places: Mapping[str, int] | None = None,
        quiet: float = math.inf,
    ) -> Iterator[Piece]:
        """Lines in the order of their times, many at a time.

        ``last``: only the last n lines of what is there (then, with ``follow``, what comes).
        ``follow``: until the log is complete, or ``stop`` is true; both are asked now and then. It is complete once
        ``live`` is false: from then on nobody writes to it any more; by default, once it was ended here.
        ``error``: only the kept tails of failed attempts.
        ``places``: only what comes behind them; it is the sum of ``moved`` of all pieces before.
        ``quiet``: seconds after which there is an empty piece, when nothing comes.
        """
        kinds = {ERROR} if error else {LOG, NOTE}
        seen = dict(places or {})
        told = dict(seen)
        grows, asked, gave = True, -ASK_INTERVAL, time.monotonic()
        while True:
            if live is None or time.monotonic() - asked >= ASK_INTERVAL:
                # Before the look: what was written before the end is seen.
                grows, asked = (live or partial(self._is_live, workflow_id))(), time.monotonic()
            ends = stop()  # before the look, too
            self.flush()
            parts = self.folder.parts(workflow_id, task, retry_id, kinds)
            for lines in merged(parts, seen, last, grows=grows):
                yield Piece(shown(lines), _moved(seen, told))
                gave = time.monotonic()
            last = None
            if not follow or not grows or ends:
                return
            if time.monotonic() - gave >= quiet:
                yield Piece(b"", _moved(seen, told))
                gave = time.monotonic()
            with self._news:
                if self._closed:
                    return
                self._news.wait(FOLLOW_INTERVAL)

    def _is_live(self, workflow_id: str) -> bool:
        with self._lock:
            return workflow_id in self._live and not self._closed

    def retries(self, workflow_id: str, task: str) -> list[int]:
        """The attempts of a task that have a log."""
        return sorted({part.retry_id for part in self.folder.parts(workflow_id, task, None, {LOG, NOTE})})


def _moved(seen: Places, told: Places) -> Places:
    """What of ``seen`` was not told; then it is."""
    moved = dict(seen.items() - told.items())
    told.update(moved)
    return moved
