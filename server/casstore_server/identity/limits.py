"""How often somebody may ask.

Decided here and only here: buckets that fill steadily, one for each name, kept in the memory of one server: two servers
allow twice as much; and how many names are remembered: beyond that the one that asked longest ago is forgotten, which
is to be full again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Limit"]

_MAX_NAMES = 100_000


class Limit:
    """``rate`` a second, and ``burst`` at once; a ``rate`` of 0 is no limit. Safe to use from any thread."""

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, name: str, *, take: bool = True) -> int:
        """Take one for ``name``: 0 when there was one, or else in how many seconds there will be. Without ``take`` it
        is only looked at.
        """
        if self._rate <= 0:
            return 0
        now = self._clock()
        with self._lock:
            left, at = self._buckets.get(name, (self._burst, now))
            left = min(self._burst, left + max(0.0, now - at) * self._rate)
            enough = left >= 1
            if take and enough:
                left -= 1
            self._buckets[name] = (left, now)
            self._buckets.move_to_end(name)
            if len(self._buckets) > _MAX_NAMES:
                self._buckets.popitem(last=False)
        return 0 if enough else math.ceil((1 - left) / self._rate)
