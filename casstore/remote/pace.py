"""How slowly an answer may come.

Decided here and only here: that a service which sends a byte now and then is given up. The timeout of a connection
begins anew with every byte; this one does not. It is kept where the bytes leave the connection, below every library
that an adapter uses, so that it holds for headers, listings and refusals as well as for objects.

An answer may be waited for ``READING`` seconds (``WRITING`` for requests that have the service work: to put an object
of many parts together takes minutes, and blanks come meanwhile), and for another second with each ``RATE`` bytes that
have come. What a service announces plays no part. Only waiting counts, not what is done with the bytes.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

__all__ = ["paced"]

READING: Final = 60.0
WRITING: Final = 600.0
RATE: Final = 16 << 10
"""Bytes per second: 64 transfers side by side take an eighth of a line of 64 Mbit/s."""


def paced(pools: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes of connection pools of a ``urllib3.PoolManager``, made to keep the pace.

    An answer that comes too slowly is a ``TimeoutError``, which urllib3 makes a ``ReadTimeoutError``.
    """
    return {scheme: _pool(pool) for scheme, pool in pools.items()}


@functools.cache
def _pool(pool: Any) -> Any:
    connection = type(pool.ConnectionCls.__name__, (_Connection, pool.ConnectionCls), {})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _Connection:
    """Goes before a class of connections of urllib3."""

    response_class: Any

    def getresponse(self) -> Any:
        make = self.response_class

        def response(*args: Any, **options: Any) -> Any:
            made = make(*args, **options)
            seconds = READING if options.get("method") in {"GET", "HEAD"} else WRITING
            made.fp = io.BufferedReader(_Paced(made.fp.detach(), seconds))
            return made

        self.response_class = response
        try:
            return super().getresponse()  # type: ignore[misc]  # there is one in the class that this goes before
        finally:
            self.response_class = make


class _Paced(io.RawIOBase):
    """What comes over a connection, for as long as it comes fast enough."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self._inner = inner
        self._left = seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        before = monotonic()
        count: int | None = self._inner.readinto(buffer)
        self._left += (count or 0) / RATE - (monotonic() - before)
        if self._left < 0:
            raise TimeoutError("the answer comes too slowly")
        return count

    def fileno(self) -> int:
        number: int = self._inner.fileno()
        return number

    def close(self) -> None:
        self._inner.close()
        super().close()
