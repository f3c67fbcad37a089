"""A scheduler seen from outside.

Decided here and only here: what whoever operates a server is told of its scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Figures", "PoolFigures"]


class PoolFigures(NamedTuple):
    """Groups of a pool, and for how many seconds its lease is good."""

    waiting: int
    running: int
    lease: float


class Figures(NamedTuple):
    """``pools`` are those whose lease the scheduler has; ``seconds_since_step`` is since its loop last came round."""

    pools: Mapping[str, PoolFigures]
    alive: bool
    seconds_since_step: float
