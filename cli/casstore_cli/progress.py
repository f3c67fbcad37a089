"""Progress of long transfers: one line on a terminal, silence elsewhere, a summary at the end.

Decided here and only here: how progress looks. The line is on standard error, redrawn at most ten times a
second. It promises no share and no time before the totals are final. All events may come from several
threads.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from casstore_cli import output

_REDRAW = 0.1
_RATE_WINDOW = 5.0
_BAR = 20


class Meter:
    """A ``casstore.transfer.progress.Progress`` that counts, and draws when standard error is a terminal.

    Use as a context manager: the line is gone when the block ends, whatever ended it.
    """

    def __init__(self, verb: str, *, draw: bool | None = None) -> None:
        self.verb = verb
        self.files = 0
        self.size = 0
        self.new = 0
        self.started = time.time()
        self._clock = time.monotonic()
        self._expected_files = 0
        self._expected_size = 0
        self._final = False
        self._draws = sys.stderr.isatty() if draw is None else draw
        self._drawn_at = 0.0
        self._drawn = False
        self._current = b""
        self._window: list[tuple[float, int]] = [(self._clock, 0)]
        self._level = output.current_level()  # click's context belongs to the main thread
        self._lock = threading.RLock()  # an interrupt can arrive while the line is drawn

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._clear()
            self._draws = False

    def expect(self, files: int, size: int) -> None:
        """More was found."""
        with self._lock:
            self._expected_files += files
            self._expected_size += size
            self._draw()

    def listed(self) -> None:
        """The totals are final."""
        with self._lock:
            self._final = True

    def advance(self, size: int, *, new: int = 0) -> None:
        """``size`` logical bytes were handled, ``new`` of them stored."""
        with self._lock:
            self.size += size
            self.new += new
            self._draw()

    def file_done(self, path: bytes) -> None:
        """One file is complete."""
        with self._lock:
            self.files += 1
            self._current = path
            self._draw()

    def warn(self, message: str) -> None:
        """Show a warning above the line."""
        with self._lock:
            self._clear()
            output.message(output.escape(message), level="WARNING", wanted=self._level)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return max(time.monotonic() - self._clock, 1e-9)

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._draws or now - self._drawn_at < _REDRAW:
            return
        self._drawn_at = now
        self._window.append((now, self.size))
        while len(self._window) > 2 and now - self._window[0][0] > _RATE_WINDOW:
            self._window.pop(0)
        line = self.line(now)
        width = shutil.get_terminal_size().columns - 1
        try:
            sys.stderr.write("\r" + line[:width] + "\x1b[K")
            sys.stderr.flush()
        except OSError:  # the terminal is gone; the transfer goes on
            self._draws = False
        self._drawn = True

    def line(self, now: float) -> str:
        """The line for the moment ``now``."""
        since, before = self._window[0]
        rate = (self.size - before) / (now - since) if now > since else 0.0
        done = output.size(self.size)
        parts = [self.verb]
        if self._final and self._expected_size:
            share = min(self.size / self._expected_size, 1.0)
            filled = int(share * _BAR)
            parts.append(f"[{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%}")
            parts.append(f"{done} of {output.size(self._expected_size)}")
        else:
            parts.append(f"{done} of {output.size(self._expected_size)} so far (listing)" if not self._final else done)
        parts.append(f"{self.files}/{self._expected_files} files")
        parts.append(f"{output.size(int(rate))}/s")
        if self._final and rate > 0:
            parts.append(f"{duration((self._expected_size - self.size) / rate)} left")
        parts.append(output.escape(self._current.rpartition(b"/")[2]))
        return "  ".join(parts)

    def write_benchmark(self, folder: str | None, name: str, *, files: int, transferred: int) -> None:
        """With ``--benchmark-out``: write the measurements as JSON to ``folder/name``; makes the folder.

        ``transferred`` is what really went to the store or to the disk, in bytes.
        """
        if folder is None:
            return
        import json

        elapsed = self.seconds
        report: dict[str, Any] = {
            "start_time_ms": int(self.started * 1000),
            "end_time_ms": int((self.started + elapsed) * 1000),
            "duration_ms": int(elapsed * 1000),
            "average_mbps": round(transferred * 8 / 1e6 / elapsed, 3),
            "total_bytes_transferred": transferred,
            "total_number_of_files": files,
        }
        path = os.path.join(folder, name)
        try:
            os.makedirs(folder, exist_ok=True)
            with open(path, "w", encoding="ascii") as file:
                json.dump(report, file, indent=2)
                file.write("\n")
        except OSError as error:  # the work itself is done
            output.warn(output.escape(f"can't write {path}: {error.strerror}"))


def duration(seconds: float) -> str:
    """A span of time for people: ``4 s``, ``2 min 05 s``, ``3 h 10 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
