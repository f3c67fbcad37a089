"""Giving back the space of what was deleted, and of what the rules of datasets let go.

Decided here and only here: that the rules come first. Expired versions are deleted, as their users would delete them,
before what they alone needed is marked; the plan shows both together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from casstore.dataset import retention
from casstore.dataset.bucket import Bucket
from casstore.dataset.catalog import Catalog
from casstore.dataset.exchange.areas import Areas
from casstore.dataset.retention import Expiry
from casstore.repo.gc.plan import Plan, Rules
from casstore.repo.gc.run import Collector, Outcome
from casstore.repo.gc.watch import Watcher

__all__ = ["Garbage", "GarbageOutcome", "GarbagePlan"]


@dataclass(frozen=True, slots=True)
class GarbagePlan:
    """What the rules of datasets let go, and what is to be collected then."""

    expiries: list[Expiry]
    store: Plan
    exchanges: int = 0
    """Uploads and offers of OSMO's client whose time is over."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return self.store.empty and not self.exchanges and not any(expiry.expired for expiry in self.expiries)


@dataclass(frozen=True, slots=True)
class GarbageOutcome:
    """What was done: the versions that expired, by dataset, and what was marked and deleted."""

    store: Outcome
    expired: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    exchanges: int = 0


class Garbage:
    """The garbage of one bucket. Use as a context manager; see ``casstore.repo.gc.run.Collector`` for the options."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        rules: Rules | None = None,
        watcher: Watcher | None = None,
        look: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._refs = bucket.refs
        self._catalog = Catalog(bucket.refs, bucket.name)
        self._areas = Areas(bucket.store.backend)
        self._collector = Collector(
            bucket.store, rules=rules, user=bucket.user, watcher=watcher, look=look, clock=clock
        )

    def plan(self) -> GarbagePlan:
        """Return what is to be done. ``IntegrityError`` when a version that counts can't be read."""
        expiries = retention.plan(self._refs, self._catalog, self._collector.now)
        dropped = {(expiry.dataset_id, number) for expiry in expiries for number in expiry.expired}
        plan = self._collector.plan(dropped)
        return GarbagePlan(expiries, plan, len(self._areas.expired(plan.now)))

    def run(self, plan: GarbagePlan) -> GarbageOutcome:
        """Do what a plan says. What is interrupted is taken up by the next run."""
        expired = retention.apply(self._refs, self._catalog, plan.expiries, plan.store.now)
        exchanges = self._areas.sweep(plan.store.now)
        self._areas.sweep_orphans(plan.store.now)
        return GarbageOutcome(self._collector.run(plan.store), expired, exchanges)

    def __enter__(self) -> Self:
        self._collector.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collector.__exit__(kind, error, trace)
