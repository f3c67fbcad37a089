"""Large bodies in parts.

Decided here and only here: how a stream is cut into parts, how many of them are in memory at a time, and that the first
failure stops the rest. What a part is on the line is for each service's adapter. A part that fails for the moment is
sent again here: whoever wraps a client in retries could only start over, and a stream can't be read twice.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import BinaryIO, Final, TypeVar

from casstore.errors import CasstoreError, SourceError, TransientError
from casstore.remote.base import Advance
from casstore.remote.pause import pause

__all__ = ["persist", "read_parts", "send_parts"]

P = TypeVar("P", bound=Sized)
T = TypeVar("T")

TRIES: Final = 5
PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 20.0
"""Seconds between two tries of a part: a random share of a time that doubles, or what the service asks for."""

_DOUBLE_EVERY = 4096  # parts of one size; a service takes 10,000 parts, or more, and their sizes may differ


def read_parts(source: BinaryIO, size: int | None, part: int, *, most: int) -> Iterator[bytes]:
    """Yield what ``source`` holds in parts of at least ``part`` bytes, so large that ``most`` of them suffice.

    An empty source gives one empty part. ``SourceError`` when it can't be read, or does not hold ``size`` bytes.
    """
    if size is not None:
        part = max(part, -(-size // most))
    total = 0
    for number in itertools.count():
        wanted = part if size is not None else part << (number // _DOUBLE_EVERY)
        data = _read_full(source, wanted)
        total += len(data)
        if size is not None and (total > size or (total < size and len(data) < wanted)):
            raise SourceError(
                f"the source gave {'more' if total > size else total} bytes instead of {size}",
                hint="it changed meanwhile: try again",
            )
        if data or not number:
            yield data
        if len(data) < wanted:
            return


def _read_full(source: BinaryIO, size: int) -> bytes:
    pieces = []
    while size:
        try:
            piece = source.read(size)
        except CasstoreError:
            raise
        except OSError as error:
            raise SourceError(f"the source can't be read: {error.strerror or type(error).__name__}") from error
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def send_parts(
    pool: concurrent.futures.Executor,
    parts: Iterable[P],
    send: Callable[[int, P], T],
    *,
    at_once: int,
    advance: Advance | None = None,
) -> list[T]:
    """Call ``send(number, part)`` for all parts, numbers from 0, side by side, and return the results in order.

    At most ``at_once`` parts are in memory, and one more that waits. The first error is raised, after the parts that
    were on their way came back: nothing is sent any more when this returns.
    """
    slots = threading.Semaphore(at_once)
    failed = threading.Event()
    futures: list[concurrent.futures.Future[T]] = []

    def run(number: int, part: P) -> T:
        try:
            result = persist(lambda: send(number, part))
        except BaseException:
            failed.set()
            raise
        finally:
            slots.release()
        if advance is not None:
            advance(len(part))
        return result

    try:
        for number, part in enumerate(parts):
            slots.acquire()
            if failed.is_set():
                break
            futures.append(pool.submit(run, number, part))
    finally:
        concurrent.futures.wait(futures)
    return [future.result() for future in futures]


def persist(work: Callable[[], T]) -> T:
    """Do ``work``, and again some times when it fails for the moment."""
    for attempt in range(TRIES - 1):
        try:
            return work()
        except TransientError as error:
            seconds = error.retry_after or random.uniform(0, PAUSE * 2**attempt)  # noqa: S311 - no secret
            pause(min(seconds, LONGEST_PAUSE))
    return work()
