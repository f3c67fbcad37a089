"""What a store holds, and what it takes.

Decided here and only here: what is counted as what. Sizes of objects are those of a listing; the logical size is that
of all files of all versions that users can see, so that its share of the packs tells what deduplication and compression
save. Nothing is written, and no data is read.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from casstore.errors import IntegrityError, NotFoundError
from casstore.model import DatasetType
from casstore.repo import layout
from casstore.repo.check.records import Records
from casstore.repo.check.rest import PROBES, QUARANTINE
from casstore.repo.check.session import Session
from casstore.repo.leases import list_leases
from casstore.repo.store import Store
from casstore.repo.trash import TrashState, read_trash

__all__ = ["Count", "StoreUsage", "usage"]

_FOLDERS = {
    layout.PACKS: "packs",
    layout.INDEX: "index",
    layout.MANIFESTS: "manifests",
    layout.NAMES: "names",
    layout.DATASETS: "datasets",
    layout.LEASES: "leases",
    layout.TRASH: "trash",
    layout.EXCHANGE: "exchange",
    layout.INCOMING: "incoming",
    QUARANTINE: "quarantine",
    PROBES: "probes",
    layout.STORE: "store.json",
}


@dataclass(slots=True)
class Count:
    """How many objects, of how many bytes."""

    objects: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        """Count one more."""
        self.objects += 1
        self.size += size


@dataclass(slots=True)
class StoreUsage:
    """What a store holds. ``logical`` is the size in bytes of all files of all versions that users can see."""

    format: int
    id: str
    features: list[str]
    kinds: dict[str, Count] = field(default_factory=dict)
    datasets: int = 0
    collections: int = 0
    versions: int = 0
    logical: int = 0
    referred: int = 0
    """Bytes of those that are not in the store but referred to elsewhere, as the versions' records say."""
    running: int = 0
    """Operations that hold a lease, by this machine's clock."""
    waiting: Count = field(default_factory=Count)
    """Packs that are marked as garbage, or being deleted."""

    @property
    def stored(self) -> int:
        """Bytes of the packs."""
        return self.kinds["packs"].size

    @property
    def total(self) -> Count:
        """All objects."""
        return Count(sum(one.objects for one in self.kinds.values()), sum(one.size for one in self.kinds.values()))

    @property
    def ratio(self) -> float | None:
        """The logical size over the stored one; None for an empty store."""
        return self.logical / self.stored if self.stored else None


def usage(store: Store) -> StoreUsage:
    """Return what a store holds. Costs a listing, and a read for every name, head and version."""
    config = store.config
    found = StoreUsage(config.format, config.id, [*config.features])
    found.kinds = {name: Count() for name in [*_FOLDERS.values(), "other"]}
    garbage = _garbage(store)
    for info in store.backend.list(""):
        folder = info.key.partition("/")[0] + ("/" if "/" in info.key else "")
        found.kinds[_FOLDERS.get(folder, "other")].add(info.size)
        if folder == layout.PACKS and info.key.rpartition("/")[2] in garbage:
            found.waiting.add(info.size)
    found.running = sum(
        not lease.expired and lease.reads is None for lease in list_leases(store.backend, now=time.time())
    )
    records = Records(Session(store))
    records.read()
    for dataset in records.datasets.values():
        if dataset.head is None or dataset.head.deleted:
            continue
        if dataset.head.type == DatasetType.COLLECTION:
            found.collections += 1
            continue
        found.datasets += 1
        for number in dataset.active():
            found.versions += 1
            found.logical += dataset.versions[number].totals.size
            found.referred += dataset.versions[number].referred
    return found


def _garbage(store: Store) -> set[str]:
    """Return the ids of the packs that wait for being deleted, as keys have them."""
    found: set[str] = set()
    for info in store.backend.list(layout.TRASH):
        with contextlib.suppress(NotFoundError, IntegrityError):
            trash = read_trash(store.backend, layout.random_id(info.key))
            if trash.state != TrashState.DELETED:
                found.update(trash.packs)
    return found
