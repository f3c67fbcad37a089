"""Who has to leave so that a group can run.

Decided here and only here: who may be preempted for whom, and who of those is. Only LOW groups are, and only whole
ones. A HIGH or NORMAL group may take what LOW groups of its own pool hold. A pool that has less than its guarantee may
take back what pools have borrowed that share nodes with it: from LOW groups of pools that have more than theirs. As few
groups as possible leave, the youngest before others, and none unless the group that needs the nodes then fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .capacity import Cluster
from .fitting import Arrangement, Shape, fit
from .pools import Pool
from .status import Priority
from .waiting import Holding, Key, Waiting

if TYPE_CHECKING:
    from .queueing import Pass

__all__ = ["Evictions"]

_COMBINATIONS: Final = 256
"""Sets of victims that are tried for one group before the youngest are taken one after the other."""
_ATTEMPTS: Final = 3_000
"""Sets of victims that are tried in one pass."""


class Evictions:
    """The victims of one pass."""

    def __init__(self, current: Pass) -> None:
        self._pass = current
        self.gone: set[Key] = set()
        """Who has to leave, as far as the pass has decided."""
        self._attempts = _ATTEMPTS
        self._low: list[Holding] | None = None
        self._without: dict[tuple[str, bool, bool], Cluster | None] = {}

    def find(
        self, waiting: Waiting, pool: Pool, shape: Shape, excess: int
    ) -> tuple[Sequence[Holding], Arrangement | None]:
        """The groups that leave for this one, and its nodes then: both have happened in the view ``soon``.

        ``excess`` is how many GPUs the pool itself would have too many.
        """
        if self._attempts <= 0 or not self._enough(waiting, pool, shape):
            return (), None
        candidates = self._candidates(waiting, pool, shape)
        chosen = self._fewest(pool, shape, excess, candidates)
        if chosen is None:
            return (), None
        soon = self._pass.clearing()
        for victim in chosen:
            self._pass.release(soon, victim)
        return chosen, fit(soon, shape)

    def _youngest_low(self) -> list[Holding]:
        if self._low is None:
            low = [held for held in self._pass.holdings if held.priority is Priority.LOW and not held.ending]
            self._low = sorted(low, key=lambda held: (held.since, held.key), reverse=True)
        return self._low

    def _candidates(self, waiting: Waiting, pool: Pool, shape: Shape) -> list[Holding]:
        """Whom the rules allow to be preempted at all, the youngest first."""
        pools = self._pass.pools
        allowed = {name: name != pool.name and self._reclaims(pool, name, shape) for name in pools}
        allowed[pool.name] = waiting.guaranteed
        return [held for held in self._youngest_low() if allowed.get(held.pool) and held.key not in self.gone]

    def _reclaims(self, pool: Pool, other: str, shape: Shape) -> bool:
        """Whether a pool may take back GPUs from another one now."""
        wants = pool.gpu_guarantee is not None and shape.gpus > 0
        return wants and self._pass.layout.together(other, pool.name) and self._borrowed(other) > 0

    def _borrowed(self, name: str) -> int:
        """How many GPUs a pool has beyond its guarantee; a pool without one has no more than what is its own."""
        pool = self._pass.pools.get(name)
        if pool is None or pool.gpu_guarantee is None:
            return 0
        return self._pass.quotas.total[name] - self._pass.quotas.leaving[name] - pool.gpu_guarantee

    def _allowed(self, pool: Pool, shape: Shape, victims: Sequence[Holding]) -> bool:
        """Whether the pools may lose these groups: own ones first, then lenders take back what they lent."""
        gpus = self._pass.memory.gpus
        own = sum(gpus(victim.key) for victim in victims if victim.pool == pool.name)
        others = [victim for victim in victims if victim.pool != pool.name]
        if not others:
            return True
        after = self._pass.quotas.total[pool.name] - self._pass.quotas.leaving[pool.name] - own + shape.gpus
        if pool.gpu_guarantee is None or after > pool.gpu_guarantee:
            return False
        borrowed: dict[str, int] = {}
        for victim in others:
            left = borrowed.get(victim.pool, self._borrowed(victim.pool))
            if left <= 0:
                return False
            borrowed[victim.pool] = left - gpus(victim.key)
        return True

    def _enough(self, waiting: Waiting, pool: Pool, shape: Shape) -> bool:
        """Whether the group fits without all candidates; what is worked out for it serves the whole pass."""
        key = (pool.name, waiting.guaranteed, shape.gpus > 0)
        if key not in self._without:
            candidates = self._candidates(waiting, pool, shape)
            self._without[key] = self._emptied(candidates) if candidates else None
        view = self._without[key]
        if view is None:
            return False
        mark = view.mark()
        fits = fit(view, shape) is not None
        view.rollback(mark)
        return fits

    def _emptied(self, candidates: Sequence[Holding]) -> Cluster:
        view = self._pass.clearing().copy()
        for held in candidates:
            self._pass.release(view, held)
        return view

    def _fewest(self, pool: Pool, shape: Shape, excess: int, candidates: Sequence[Holding]) -> Sequence[Holding] | None:
        tried = 0
        for size in range(1, len(candidates) + 1):
            for victims in itertools.combinations(candidates, size):
                tried += 1
                if tried > _COMBINATIONS:
                    return self._youngest(pool, shape, excess, candidates)
                if self._works(pool, shape, excess, victims):
                    return victims
        return None

    def _works(self, pool: Pool, shape: Shape, excess: int, victims: Sequence[Holding]) -> bool:
        """Whether the group would really run without these."""
        gpus = self._pass.memory.gpus
        if excess > 0 and sum(gpus(victim.key) for victim in victims if victim.pool == pool.name) < excess:
            return False
        soon = self._pass.clearing()
        if self._attempts <= 0 or not self._allowed(pool, shape, victims):
            return False
        self._attempts -= 1
        mark = soon.mark()
        for victim in victims:
            self._pass.release(soon, victim)
        fits = fit(soon, shape) is not None
        soon.rollback(mark)
        return fits

    def _youngest(
        self, pool: Pool, shape: Shape, excess: int, candidates: Sequence[Holding]
    ) -> Sequence[Holding] | None:
        """Many would have to leave: the youngest that suffice, without those that then turn out not to matter."""
        usable: list[Holding] = []
        borrowed: dict[str, int] = {}
        for held in candidates:
            left = borrowed.get(held.pool, self._borrowed(held.pool))
            if held.pool == pool.name or left > 0:
                usable.append(held)
                borrowed[held.pool] = left - self._pass.memory.gpus(held.key)
        low, high = 0, len(usable)
        if not self._works(pool, shape, excess, usable):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._works(pool, shape, excess, usable[:middle]):
                high = middle
            else:
                low = middle
        chosen = usable[:high]
        for held in list(reversed(chosen)):
            fewer = [other for other in chosen if other is not held]
            if fewer and self._works(pool, shape, excess, fewer):
                chosen = fewer
        return chosen
