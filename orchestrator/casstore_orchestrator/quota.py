"""How many GPUs the workflows of a pool may use.

Decided here and only here: what counts against a pool's guarantee (HIGH and NORMAL) and against its maximum (all), and
that the first group which has to wait for either is not overtaken for ever: whoever is behind may use what that group
leaves, or more until it can run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from .pools import Pool
from .status import Priority
from .waiting import Holding, Key, Memory, Waiting

__all__ = ["MAXIMUM", "QUOTA", "Quotas", "ending_order"]

QUOTA: Final = "quota"
MAXIMUM: Final = "maximum"


class _Wall(NamedTuple):
    """A group that waits for GPUs of its pool: until when, and how many others may use for longer."""

    owner: Waiting
    at: float
    extra: int


class Quotas:
    """The GPUs of all pools in one pass: in use altogether (``total``), by what counts against the guarantee
    (``guaranteed``), and by what is about to end (``leaving``).
    """

    def __init__(self, pools: Mapping[str, Pool], holdings: Sequence[Holding], memory: Memory) -> None:
        self.total: dict[str, int] = dict.fromkeys(pools, 0)
        self.guaranteed: dict[str, int] = dict.fromkeys(pools, 0)
        self.leaving: dict[str, int] = dict.fromkeys(pools, 0)
        self._pools, self._holdings, self._memory = pools, holdings, memory
        self._walls: dict[tuple[str, str], _Wall] = {}
        for holding in holdings:
            gpus, pool = memory.gpus(holding.key), holding.pool
            if gpus and pool in pools:
                self.total[pool] += gpus
                if holding.priority is not Priority.LOW:
                    self.guaranteed[pool] += gpus
                if holding.ending:
                    self.leaving[pool] += gpus

    def over(self, waiting: Waiting, code: str, gpus: int, limit: int, end: float) -> tuple[object, ...] | None:
        """Why a limit of its pool keeps a group that would run until ``end`` waiting; None when it does not."""
        used = (self.guaranteed if code == QUOTA else self.total)[waiting.pool]
        wall = self._walls.get((waiting.pool, code))
        if used + gpus > limit:
            if wall is None and gpus <= limit:
                self._walls[waiting.pool, code] = self._wall(waiting, code, used + gpus - limit)
            return code, gpus, used, limit
        if wall is not None and gpus > wall.extra and end >= wall.at:
            return "behind", wall.owner
        return None

    def _wall(self, waiting: Waiting, code: str, missing: int) -> _Wall:
        own = [held for held in self._holdings if held.pool == waiting.pool]
        for held in sorted(own, key=ending_order):
            if code == MAXIMUM or held.priority is not Priority.LOW:
                missing -= self._memory.gpus(held.key)
                if missing <= 0:
                    return _Wall(waiting, -math.inf if held.until is None else held.until, -missing)
        return _Wall(waiting, -math.inf, 0)  # what is in the way was placed a moment ago

    def use(self, waiting: Waiting, gpus: int, end: float) -> None:
        """A group was placed, or is about to be."""
        self.total[waiting.pool] += gpus
        if waiting.guaranteed:
            self.guaranteed[waiting.pool] += gpus
        for code in (QUOTA, MAXIMUM):
            wall = self._walls.get((waiting.pool, code))
            if wall is not None and (waiting.guaranteed or code == MAXIMUM) and end >= wall.at:
                self._walls[waiting.pool, code] = wall._replace(extra=wall.extra - gpus)

    def keep(self, waiting: Waiting, gpus: int, at: float | None) -> None:
        """Nobody may use up what a reservation needs when it comes due."""
        pool = self._pools[waiting.pool]
        limits = [(MAXIMUM, pool.gpu_maximum, self.total[pool.name])]
        if waiting.guaranteed:
            limits.append((QUOTA, pool.gpu_guarantee, self.guaranteed[pool.name]))
        for code, limit, used in limits:
            if gpus and limit is not None:
                wall = self._walls.get((pool.name, code))
                if wall is None:
                    wall = _Wall(waiting, -math.inf if at is None else at, limit - used)
                self._walls[pool.name, code] = wall._replace(extra=wall.extra - gpus)


def ending_order(holding: Holding) -> tuple[float, float, Key]:
    """The order in which running groups are expected to end."""
    return (math.inf if holding.until is None else holding.until), holding.since, holding.key
