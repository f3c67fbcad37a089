"""Pools that share nodes.

Decided here and only here: which pools belong together, and that one server looks after all of a family: a decision
about one of them is a decision about the nodes of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .pools import Pool
from .statestore import Fence, pool_lease, pool_of

__all__ = ["Families", "families_of", "keep_whole"]


class Families:
    """Names that were joined, with each other or by way of others."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The first by name of a family."""
        while name in self._above:
            name = self._above[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        """Make one family of all that these belong to."""
        first, *others = sorted({self.find(name) for name in names})
        for other in others:
            self._above[other] = first


def families_of(pools: Mapping[str, Pool]) -> Families:
    """The families of pools, by the nodes that several of them declare."""
    families = Families()
    owners: dict[str, str] = {}
    for pool in pools.values():
        for node in pool.nodes:
            other = owners.setdefault(node.key, pool.name)
            if other != pool.name:
                families.join((other, pool.name))
    return families


def keep_whole(
    names: Iterable[str], families: Families, keep: Callable[[Sequence[str]], Mapping[str, Fence]]
) -> dict[str, Fence]:
    """Prolong and take leases by ``keep``: of a family all or none, which the lease of its first pool decides.

    One whose family is another server's is not prolonged, and so soon is that server's.
    """
    named = set(names)
    kept = dict(keep([pool_lease(name) for name in sorted({families.find(name) for name in named})]))
    held = {pool_of(fence) for fence in kept.values()}
    rest = sorted(name for name in named - held if families.find(name) in held)
    if rest:
        kept |= keep([pool_lease(name) for name in rest])
    return kept
