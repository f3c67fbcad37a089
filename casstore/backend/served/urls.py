"""The addresses of data that a server has given.

Decided here and only here: how many are asked for at once, and when another one is. Whoever wants an address while
others are being asked for waits for the next request, which asks for all that have been wanted since: at rest an
address costs one request, in a crowd a part of one. How long it works is counted by this machine's clock from before it
was asked for, so that no two clocks need to agree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from casstore.errors import CasstoreError
from casstore.wire.v1 import MAX_KEYS, Signed, UrlsReply

__all__ = ["Urls"]

KEPT = 100_000
SHARE = 0.8
"""Of its time an address is used for, so that what begins has time to end."""

Ask = Callable[[Sequence[str]], UrlsReply]


class _Batch:
    """Keys that are asked for together."""

    __slots__ = ("done", "error", "found", "keys")

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self.found: dict[str, Signed] = {}
        self.error: CasstoreError | None = None
        self.done = threading.Event()


class Urls:
    """Addresses at which objects are read, by their keys. Thread-safe."""

    def __init__(self, ask: Ask, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Signed, float]] = {}
        self._next = _Batch()
        self._asking = threading.Lock()

    def get(self, key: str) -> Signed:
        """Return an address that works still."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and self._clock() < known[1]:
                return known[0]
            while len(self._next.keys) >= MAX_KEYS and key not in self._next.keys:
                self._next = _Batch()
            batch = self._next
            batch.keys[key] = None
        with self._asking:
            if not batch.done.is_set():
                self._fill(batch)
        if batch.error is not None:
            if len(batch.keys) == 1:
                raise batch.error
            return self._alone(key)
        return batch.found[key]

    def forget(self, key: str, address: Signed) -> None:
        """Do not use an address any more; a newer one is kept."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known[0] is address:
                del self._known[key]

    def clear(self) -> None:
        """Use none of them any more."""
        with self._lock:
            self._known.clear()

    def _alone(self, key: str) -> Signed:
        """One of several keys was refused, maybe not this one."""
        batch = _Batch()
        batch.keys[key] = None
        self._fill(batch)
        if batch.error is not None:
            raise batch.error
        return batch.found[key]

    def _fill(self, batch: _Batch) -> None:
        with self._lock:
            if self._next is batch:
                self._next = _Batch()
            keys = list(batch.keys)
        begun = self._clock()
        try:
            reply = self._ask(keys)
            batch.found = dict(zip(keys, reply.read, strict=True))
            until = begun + SHARE * reply.seconds
            with self._lock:
                if len(self._known) > KEPT:
                    self._known.clear()
                self._known.update((key, (address, until)) for key, address in batch.found.items())
        except CasstoreError as error:
            batch.error = error
        finally:
            batch.done.set()
