"""Our own terminal and streams, for as long as a program in a task has them.

Decided here and only here: how a terminal is made raw and comes back, whatever happens, and how standard input and
output are read and written without blocking. Their descriptors are shared with the shell, so they are never made
non-blocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import struct
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["is_terminal", "raw", "read_input", "window_size", "write_output"]

_PIECE = 1 << 16
_ATOMIC = 4096
"""A pipe or terminal that can be written to at all takes this much."""


def is_terminal() -> bool:
    """Whether both ends of this process's streams are a person's."""
    return _tty(0) and _tty(1)


def _tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def window_size(fd: int = 0) -> tuple[int, int]:
    """Rows and columns; 24 and 80 where nobody knows."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        rows = columns = 0
    return rows or 24, columns or 80


@contextlib.contextmanager
def raw(end: Callable[[], None], resized: Callable[[], None]) -> Iterator[None]:
    """Make the terminal raw for the length of the block, to be used in the event loop.

    Signals that would end the process call ``end`` instead, so that the terminal comes back.
    """
    loop = asyncio.get_running_loop()
    sys.stdout.flush()
    before = termios.tcgetattr(0)
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end)
        loop.add_signal_handler(signal.SIGWINCH, resized)
        tty.setraw(0)
        yield
    finally:
        with contextlib.suppress(termios.error, OSError):  # the terminal itself is gone
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH):
            loop.remove_signal_handler(number)


async def read_input(fd: int = 0) -> AsyncIterator[bytes]:
    """What comes from standard input, until its end."""
    while True:
        try:
            await _ready(fd, reading=True)
            data = os.read(fd, _PIECE)
        except OSError:  # closed, or a terminal that hung up
            return
        if not data:
            return
        yield data


async def write_output(fd: int, data: bytes) -> None:
    """Write all of it, however slow the reader is. Raises ``BrokenPipeError`` when there is none any more."""
    rest = memoryview(data)
    while rest:
        whole = not await _ready(fd, reading=False)
        rest = rest[os.write(fd, rest if whole else rest[:_ATOMIC]) :]


async def _ready(fd: int, *, reading: bool) -> bool:
    """Wait until the descriptor can be used; False for a file, which always can."""
    loop = asyncio.get_running_loop()
    now = select.select([fd], [], [], 0) if reading else select.select([], [fd], [], 0)
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)

    def done() -> None:
        if not ready.done():
            ready.set_result(None)

    if now[0] or now[1]:
        return not _is_file(fd)
    try:
        add(fd, done)
    except PermissionError:
        return False
    try:
        await ready
    finally:
        remove(fd)
    return True


def _is_file(fd: int) -> bool:
    import stat

    return stat.S_ISREG(os.fstat(fd).st_mode)
