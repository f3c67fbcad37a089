"""What is to be collected, and why the rest is not: a function from facts to a plan.

Decided here and only here: the rules. A pack of which nothing is needed goes, and so does one that is mostly
unneeded: what is needed of it is copied first. Copying the share s of a pack frees the share 1 - s: below a half,
every byte that is moved frees more than itself, and that is where the threshold is unless it is told otherwise.
Nothing is touched that is younger than the grace period, or that was stored after the oldest running operation began:
it may be referred to soon. All times are of the back end's clock, in seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Facts", "Holder", "Kept", "ManifestFact", "Marked", "PackFact", "Plan", "Reason", "Rules", "make_plan"]

DEFAULT_GRACE = 24 * 3600.0
"""Seconds between marking and deleting, and the least age of what is marked."""
DEFAULT_REPACK_BELOW = 0.5
"""The needed share of a pack below which the needed part is copied and the pack goes."""
DEFAULT_MARGIN = 60.0
"""Seconds before the begin of an operation from which on objects count as its own: a service has many clocks."""
TOMBSTONES_KEPT = 30 * 24 * 3600.0
"""Seconds that the record of a finished collection is kept: writers that stood still look there."""
LEFTOVERS_AFTER = 24 * 3600.0
"""Seconds after which what a probe or an operation that ended without a word left is removed."""


class Reason(StrEnum):
    """Why something that nothing refers to is kept; append-only, these appear in JSON output."""

    GRACE = "grace"
    """It is younger than the grace period."""
    LEASE = "lease"
    """It was stored after an operation began that still runs."""
    SHARE = "share"
    """Too much else in the same packs is needed."""
    UNREADABLE = "unreadable"
    """The pack can't be read, so nobody knows what is in it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a collection is to be made. ``grace`` and ``margin`` in seconds, ``repack_below`` a share of 0 to 1."""

    grace: float = DEFAULT_GRACE
    repack_below: float = DEFAULT_REPACK_BELOW
    margin: float = DEFAULT_MARGIN


@dataclass(frozen=True, slots=True)
class PackFact:
    """A pack: its size, when it was written, and how many bytes of it are needed. None: nobody knows.

    A needed chunk counts with its part of the table of contents, so that a pack that is needed whole counts whole.
    """

    pack_id: bytes
    size: int
    mtime: float
    needed: int | None

    @property
    def unneeded(self) -> int:
        """Bytes that nothing refers to."""
        return 0 if self.needed is None else max(0, self.size - self.needed)


@dataclass(frozen=True, slots=True)
class ManifestFact:
    """The root of a manifest: its size, when it was written, and whether a version needs it."""

    manifest_id: bytes
    size: int
    mtime: float
    needed: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """A running operation: who does what (for people), and since when."""

    who: str
    what: str
    begun: float


@dataclass(frozen=True, slots=True)
class Marked:
    """A trash record that is in force: how much it lists, since when, and whether its deletion has begun."""

    id: str
    since: float
    packs: int
    size: int
    begun: bool


@dataclass(slots=True)
class Facts:
    """What a store holds, gathered in an order that makes it safe to conclude from it. See ``gc.mark``."""

    now: float
    packs: list[PackFact] = field(default_factory=list)
    manifests: list[ManifestFact] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)
    marked: list[Marked] = field(default_factory=list)
    absent: set[bytes] = field(default_factory=set)
    """Packs that the index speaks of and that are gone: a merge by somebody who stood still brought them back."""
    listed: set[bytes] = field(default_factory=set)
    """Packs and manifests that are on a trash record already."""
    datasets: list[str] = field(default_factory=list)
    """Ids of deleted datasets, not yet on a record."""
    versions: list[tuple[str, int]] = field(default_factory=list)
    """Deleted versions of other datasets, not yet on a record."""
    abandoned: list[tuple[str, float]] = field(default_factory=list)
    """Datasets without a version, and collections that never got their name; with the times of their heads."""
    probes: list[tuple[str, float]] = field(default_factory=list)
    """Keys and times of what probes, and uploads through a server, left."""
    expired: list[tuple[str, float]] = field(default_factory=list)
    """Keys of leases that have run out, and when they did."""
    finished: list[tuple[str, float]] = field(default_factory=list)
    """Keys of trash records of finished collections, and when they finished."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Unneeded things that stay: why, on whose account, until when (None: as long as that lasts), how much."""

    reason: Reason
    holder: Holder | None
    until: float | None
    packs: int
    size: int


@dataclass(slots=True)
class Plan:
    """What a collection does: mark now, delete of what was marked before, and leave alone. Sizes in bytes."""

    now: float
    rules: Rules
    dead: list[PackFact] = field(default_factory=list)
    sparse: list[PackFact] = field(default_factory=list)
    manifests: list[ManifestFact] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    versions: list[tuple[str, int]] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    due: list[Marked] = field(default_factory=list)
    waiting: list[Marked] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    total: int = 0
    needed: int = 0

    @property
    def marks(self) -> bool:
        """Whether there is anything to mark."""
        objects = self.dead or self.sparse or self.manifests
        return bool(objects or self.datasets or self.versions or self.abandoned)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do now."""
        return not (self.marks or self.due or self.leftovers)

    @property
    def frees(self) -> int:
        """Bytes that deleting what is to be marked now gives back, sooner or later."""
        gone = sum(pack.unneeded for pack in (*self.dead, *self.sparse))
        return gone + sum(manifest.size for manifest in self.manifests)


def make_plan(facts: Facts, rules: Rules) -> Plan:
    """Return what to collect, by these rules. Pure."""
    plan = Plan(facts.now, rules)
    packs = [pack for pack in facts.packs if pack.pack_id not in facts.listed]
    plan.total = sum(pack.size for pack in facts.packs) + sum(manifest.size for manifest in facts.manifests)
    plan.needed = sum(pack.size - pack.unneeded for pack in facts.packs)
    plan.needed += sum(manifest.size for manifest in facts.manifests if manifest.needed)
    kept = _Kept(facts, rules)
    for pack in sorted(packs, key=lambda pack: pack.pack_id):
        if pack.needed is None:
            kept.add(Reason.UNREADABLE, pack.size)
        elif not pack.unneeded or kept.holds(pack.mtime, pack.unneeded):
            continue
        elif not pack.needed:
            plan.dead.append(pack)
        elif pack.needed < rules.repack_below * pack.size:
            plan.sparse.append(pack)
        else:
            kept.add(Reason.SHARE, pack.unneeded)
    for manifest in sorted(facts.manifests, key=lambda manifest: manifest.manifest_id):
        if not manifest.needed and manifest.manifest_id not in facts.listed and not kept.protects(manifest.mtime):
            plan.manifests.append(manifest)
    plan.kept = kept.all()
    plan.datasets = sorted(facts.datasets)
    plan.versions = sorted(facts.versions)
    plan.abandoned = sorted(dataset_id for dataset_id, mtime in facts.abandoned if not kept.protects(mtime))
    plan.leftovers = [
        *_older(facts.probes, facts.now - LEFTOVERS_AFTER),
        *_older(facts.expired, facts.now - max(LEFTOVERS_AFTER, rules.grace)),
        *_older(facts.finished, facts.now - TOMBSTONES_KEPT),
    ]
    for marked in sorted(facts.marked, key=lambda marked: (marked.since, marked.id)):
        due = marked.begun or marked.since + rules.grace <= facts.now
        (plan.due if due else plan.waiting).append(marked)
    return plan


def _older(found: Iterable[tuple[str, float]], limit: float) -> list[str]:
    return sorted(key for key, mtime in found if mtime <= limit)


class _Kept:
    """Sums up what stays, by reason."""

    def __init__(self, facts: Facts, rules: Rules) -> None:
        self._young = facts.now - rules.grace
        self._grace = rules.grace
        self._margin = rules.margin
        self._first: Holder | None = min(facts.holders, key=lambda holder: holder.begun, default=None)
        self._sums: dict[Reason, tuple[int, int]] = {}
        self._until = 0.0

    def protects(self, mtime: float) -> Reason | None:
        """Why an object of this age is not to be touched, or None."""
        if self._first is not None and mtime >= self._first.begun - self._margin:
            return Reason.LEASE
        return Reason.GRACE if mtime > self._young else None

    def holds(self, mtime: float, size: int) -> bool:
        """Whether an object of this age stays; counts it."""
        reason = self.protects(mtime)
        if reason is None:
            return False
        if reason is Reason.GRACE:
            self._until = max(self._until, mtime + self._grace)
        self.add(reason, size)
        return True

    def add(self, reason: Reason, size: int) -> None:
        count, total = self._sums.get(reason, (0, 0))
        self._sums[reason] = count + 1, total + size

    def all(self) -> list[Kept]:
        found: Sequence[Reason] = [reason for reason in Reason if reason in self._sums]
        return [
            Kept(
                reason,
                self._first if reason is Reason.LEASE else None,
                self._until if reason is Reason.GRACE else None,
                *self._sums[reason],
            )
            for reason in found
        ]
