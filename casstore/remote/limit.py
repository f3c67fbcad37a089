"""How much one process has under way with object storage.

Decided here and only here: that all clients of a process share one budget of bytes and one number of requests, how
large they are, and what counts. Both are set by the environment, and what is set there always wins:

    CASSTORE_REMOTE_MEMORY     bytes of requests under way, such as 268435456, 256MiB or 1GiB
    CASSTORE_REMOTE_REQUESTS   requests under way

Without a setting the memory is an eighth of what this process may use, at least 32 MiB and at most 256 MiB, and there
are at most 64 requests. Turns are taken in the order of asking, so that a large request is not kept waiting by small
ones. A request that is larger than the whole budget goes alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from casstore.errors import UsageError
from casstore.model import Buffer
from casstore.remote.base import Advance, Condition, Object, ObjectClient, RemoteInfo

__all__ = ["Budget", "LimitClient", "budget_of_process"]

_LEAST = 32 << 20
_MOST = 256 << 20
_SHARE = 8
_REQUESTS = 64
_UNKNOWN = 1 << 20
"""Bytes of a read whose length is not known: heads and records."""
_STREAM = 32 << 20
"""Bytes that a streamed upload holds, at most."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})\s*([KMGT]?)(?:i?B)?\Z", re.ASCII | re.IGNORECASE)


class Budget:
    """Bytes and requests to be shared out. Thread-safe, first come, first served."""

    def __init__(self, memory: int, requests: int) -> None:
        self.memory = memory
        self.requests = requests
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, threading.Event]] = deque()
        self._bytes = 0
        self._running = 0

    @property
    def used(self) -> tuple[int, int]:
        """Bytes and requests under way."""
        with self._lock:
            return self._bytes, self._running

    @contextlib.contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Have ``size`` bytes and one request, for the time of the block; waits until they are free."""
        turn = threading.Event()
        with self._lock:
            self._waiting.append((size, turn))
            self._admit()
        try:
            turn.wait()
        except BaseException:  # an interrupt: whatever came of the turn is given back
            with self._lock:
                if turn.is_set():
                    self._bytes -= size
                    self._running -= 1
                else:
                    self._waiting.remove((size, turn))
                self._admit()
            raise
        try:
            yield
        finally:
            with self._lock:
                self._bytes -= size
                self._running -= 1
                self._admit()

    def _admit(self) -> None:
        """Let those go whose turn it is. The lock is held."""
        while self._waiting:
            size, turn = self._waiting[0]
            if self._running and (self._running >= self.requests or self._bytes + size > self.memory):
                return
            self._waiting.popleft()
            self._bytes += size
            self._running += 1
            turn.set()


class LimitClient:
    """An ``ObjectClient`` whose requests share a budget, that of the process when None is given."""

    def __init__(self, inner: ObjectClient, budget: Budget | None = None) -> None:
        self._inner = inner
        self._budget = budget or budget_of_process()

    @property
    def url(self) -> str:
        """The URL of the inner client."""
        return self._inner.url

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient.head``."""
        with self._budget.share(0):
            return self._inner.head(key)

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient.read``."""
        with self._budget.share(_share_of(length, limit)):
            return self._inner.read(key, offset=offset, length=length, if_match=if_match, limit=limit)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient.put``."""
        with self._budget.share(sum(memoryview(part).nbytes for part in data)):
            return self._inner.put(key, data, condition=condition)

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient.upload``."""
        with self._budget.share(_STREAM if size is None else min(size, _STREAM)):
            return self._inner.upload(key, source, size=size, advance=advance)

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient.list``. Nothing is held between two objects: whoever lists may ask for others."""
        found = iter(self._inner.list(prefix, after=after, recursive=recursive))
        try:
            while True:
                with self._budget.share(0):
                    info = next(found, None)
                if info is None:
                    return
                yield info
        finally:
            close = getattr(found, "close", None)
            if close is not None:
                close()

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient.delete``."""
        named = [*keys]
        with self._budget.share(0):
            self._inner.delete(named)

    def close(self) -> None:
        """See ``ObjectClient.close``."""
        self._inner.close()


def _share_of(length: int | None, limit: int | None) -> int:
    if length is None:
        return _UNKNOWN if limit is None else min(limit, _UNKNOWN)
    return max(length, 0)


_lock = threading.Lock()
_shared: Budget | None = None


def budget_of_process() -> Budget:
    """The budget that all clients of this process share; made from the environment when first asked for."""
    global _shared  # noqa: PLW0603 - one for the process is what it is for
    with _lock:
        if _shared is None:
            _shared = _from_environment()
        return _shared


def _from_environment() -> Budget:
    memory = _setting("CASSTORE_REMOTE_MEMORY", "bytes, such as 256MiB")
    requests = _setting("CASSTORE_REMOTE_REQUESTS", "a number of requests, at least 1")
    default = min(_MOST, max(_LEAST, _memory_of_process() // _SHARE))
    return Budget(memory or default, requests or _REQUESTS)


def _setting(name: str, what: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    match = _SIZE.match(text)
    value = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if value < 1:
        raise UsageError(f"{name} is {text[:40]!r}", hint=f"set it to {what}, or unset it")
    return value


def _memory_of_process() -> int:
    """Bytes of memory that this process may use, as far as the system tells."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            found.append(int(file.read(32)))
    return min(size for size in found if size > 0)
