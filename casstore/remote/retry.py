"""Trying again what may pass.

Decided here and only here: what is tried again, how long is waited in between, and when to give up. Adapters try once
and tell with ``TransientError`` that it may pass; nothing above this module tries a request again.

The pause before attempt n is drawn evenly from zero to a limit that doubles each time (full jitter), so that many
clients that failed together do not come back together. A service that names a pause gets it, up to a minute. The clock
of the deadline starts at the first failure: a long transfer on a slow line is no failure.

A conditional put whose reply was lost may have been done. When it is tried again and its condition then does not hold,
the object decides: if it is byte for byte what was to be written, this put had won. (Records carry a random write id,
so that equal bytes mean the same write.)
"""

from __future__ import annotations

import random as random_module
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import BinaryIO, TypeVar

import msgspec

from casstore.errors import FormatError, IntegrityError, NotFoundError, PreconditionError, StorageError, TransientError
from casstore.model import Buffer
from casstore.remote.base import Advance, Condition, Object, ObjectClient, RemoteInfo
from casstore.remote.pause import pause

__all__ = ["RetryClient", "RetryPolicy"]

_COMPARED = 4 << 20
_DELETED = 1000

T = TypeVar("T")


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and for how long. Times in seconds."""

    attempts: int = 8
    first_pause: float = 0.2
    """Limit of the pause before the second attempt; it doubles with each further one."""
    longest_pause: float = 20.0
    longest_asked: float = 60.0
    """The longest pause that a service may ask for."""
    deadline: float = 180.0
    """No attempt is begun later than this after the first failure."""


class RetryClient:
    """An ``ObjectClient`` that tries again what failed and may pass, and passes everything else on.

    ``clock``, ``sleep`` and ``random`` are replaced by tests. ``close`` ends the pauses of other threads: they fail.
    """

    def __init__(
        self,
        inner: ObjectClient,
        policy: RetryPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._inner = inner
        self._policy = policy or RetryPolicy()
        self._closed = threading.Event()
        self._clock = clock
        self._sleep = sleep or self._pause
        self._random = random

    @property
    def url(self) -> str:
        """The URL of the inner client."""
        return self._inner.url

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient.head``."""
        return self._again(lambda: self._inner.head(key))

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient.read``. A reply of the wrong length is asked for once more."""

        def read() -> Object:
            return self._inner.read(key, offset=offset, length=length, if_match=if_match, limit=limit)

        try:
            return self._again(read)
        except FormatError:  # it is longer than the limit, and will be
            raise
        except IntegrityError:
            return self._again(read)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient.put``. A lost reply is no conflict."""
        unknown = False

        def put() -> str:
            nonlocal unknown
            try:
                return self._inner.put(key, data, condition=condition)
            except PreconditionError:
                tag = self._tag_if_ours(key, data) if unknown else None
                if tag is None:
                    raise
                return tag
            except TransientError:
                unknown = True
                raise

        return self._again(put)

    def _tag_if_ours(self, key: str, data: Sequence[Buffer]) -> str | None:
        """Return the tag of the object if its bytes are these."""
        try:
            found = self.head(key)
            if found.size != sum(memoryview(part).nbytes for part in data):
                return None
            offset = 0
            for part in data:
                view = memoryview(part).cast("B")
                for start in range(0, view.nbytes, _COMPARED):
                    piece = view[start : start + _COMPARED]
                    there = self.read(key, offset=offset, length=piece.nbytes, if_match=found.etag)
                    if there.data != piece:
                        return None
                    offset += piece.nbytes
        except (NotFoundError, PreconditionError, IntegrityError):  # it is changing: somebody else's
            return None
        return found.etag

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient.upload``. Tried again only when ``source`` can be read again from where it was.

        Bytes that go over the line again are not told again.
        """
        start = source.tell() if source.seekable() else None
        told = 0

        def upload() -> str:
            sent = 0

            def tell(count: int) -> None:
                nonlocal sent, told
                sent += count
                if advance is not None and sent > told:
                    advance(sent - told)
                told = max(told, sent)

            if start is not None:
                source.seek(start)
            return self._inner.upload(key, source, size=size, advance=tell)

        return upload() if start is None else self._again(upload)

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient.list``. A listing that breaks off goes on after the last key that it had yielded."""
        last = after
        failed = _Failures(self)
        while True:
            try:
                for info in self._inner.list(prefix, after=last, recursive=recursive):
                    # A folder is named again when the listing goes on within it.
                    if info.key == last:
                        continue
                    last = info.key
                    failed = _Failures(self)
                    yield info
            except TransientError as error:
                failed.wait(error)
            else:
                return

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient.delete``. What an earlier attempt deleted is passed over."""
        waiting = iter(keys)
        while batch := [*islice(waiting, _DELETED)]:
            self._again(lambda batch=batch: self._inner.delete(batch))  # type: ignore[misc]  # mypy can't type it

    def close(self) -> None:
        """See ``ObjectClient.close``."""
        self._closed.set()
        self._inner.close()

    def _again(self, call: Callable[[], T]) -> T:
        failed = _Failures(self)
        while True:
            try:
                return call()
            except TransientError as error:
                failed.wait(error)

    def _pause(self, seconds: float) -> None:
        if pause(seconds, self._closed):
            raise StorageError(f"{self.url} was closed")


class _Failures:
    """The failures of one request, so far."""

    __slots__ = ("_client", "_count", "_first")

    def __init__(self, client: RetryClient) -> None:
        self._client = client
        self._count = 0
        self._first = 0.0

    def wait(self, error: TransientError) -> None:
        """Wait before the next attempt, or raise ``error`` when there is none."""
        policy, now = self._client._policy, self._client._clock()  # noqa: SLF001 - a part of the class
        self._count += 1
        if self._count == 1:
            self._first = now
        limit = min(policy.longest_pause, policy.first_pause * 2 ** (self._count - 1))
        seconds = self._client._random() * limit  # noqa: SLF001
        if error.retry_after is not None:
            seconds += min(max(error.retry_after, 0.0), policy.longest_asked)
        if self._count >= policy.attempts or now + seconds - self._first > policy.deadline:
            raise self._told(error, now - self._first)
        self._client._sleep(seconds)  # noqa: SLF001

    def _told(self, error: TransientError, seconds: float) -> TransientError:
        if self._count == 1:
            return error
        return TransientError(
            f"{error.message} (tried {self._count} times in {seconds:.0f} s)",
            hint=error.hint or "check the connection, then run it again: what is stored is not stored twice",
            retry_after=error.retry_after,
        )
