"""Gathering the facts, and marking what goes.

Decided here and only here: how what a store holds becomes the facts that a plan is made from, and how large a trash
record gets. Marking changes nothing for anybody: it writes down what nothing referred to at this moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from casstore.errors import IntegrityError, NotFoundError
from casstore.format.manifest import MAX_DEPTH
from casstore.model import DatasetType, Head
from casstore.repo import layout, trash
from casstore.repo.gc.find import Dropped, Found, Objects, find_versions, is_empty, list_objects, walk
from casstore.repo.gc.live import LiveChunks
from casstore.repo.gc.plan import Facts, Holder, ManifestFact, Marked, PackFact, Plan
from casstore.repo.gc.shares import needed_bytes
from casstore.repo.gc.watch import Watcher
from casstore.repo.leases import MAX_TERM, list_leases
from casstore.repo.refs import Refs
from casstore.repo.store import Store
from casstore.repo.trash import Listed, TrashState

__all__ = ["KIND", "PROBES", "gather", "mark"]

KIND = "gc"
"""What the lease of a collection says that it is."""
PROBES = "probe/"
"""What trying out a bucket leaves behind when it is interrupted."""
_AT_ONCE = 10_000
"""Objects of one kind in one trash record, at most: it is read by every commit."""


def gather(store: Store, refs: Refs, watcher: Watcher, *, now: float, dropped: Dropped = ()) -> Facts:
    """Look at everything, in an order that makes it safe to conclude from it; see ``gc.find``.

    ``dropped`` counts as deleted. ``IntegrityError`` when something that counts can't be read.
    """
    facts = Facts(now)
    records = trash.list_trash(store.backend)
    objects = list_objects(store, watcher)
    held = _leases(store, facts)
    purged = {dataset_id for listed in records for dataset_id in listed.record.datasets}
    found = find_versions(refs, purged=purged, dropped=dropped)
    facts.datasets, facts.versions = found.datasets, found.versions
    _trash(facts, records, objects)
    try:
        walker = walk(store, refs, found.live, watcher, held=held)
        _packs(store, refs, facts, objects, walker.chunks, watcher)
    except IntegrityError:
        if not held:
            raise
        # Of what somebody reads something may be gone already: that keeps nobody from collecting.
        walker = walk(store, refs, found.live, watcher)
        _packs(store, refs, facts, objects, walker.chunks, watcher)
    unneeded = [manifest_id for manifest_id in objects.manifests if manifest_id not in walker.manifests]
    unneeded = [manifest_id for manifest_id in unneeded if manifest_id not in facts.listed]
    stays = dict(zip(unneeded, refs.each(lambda manifest_id: _stays(store, manifest_id), unneeded), strict=True))
    facts.manifests = [
        ManifestFact(manifest_id, size, mtime, manifest_id in walker.manifests or stays.get(manifest_id, False))
        for manifest_id, (size, mtime) in objects.manifests.items()
    ]
    facts.abandoned = [*_abandoned(store, refs, found)]
    left = (store.backend.list(prefix) for prefix in (PROBES, layout.INCOMING))
    facts.probes = [(info.key, info.mtime) for found_here in left for info in found_here]
    return facts


def _leases(store: Store, facts: Facts) -> list[bytes]:
    """Note who stores something; returns the manifests that are being read."""
    held: list[bytes] = []
    for lease in list_leases(store.backend, now=facts.now):
        record = lease.record
        if lease.expired:
            term = MAX_TERM if record is None else record.term
            facts.expired.append((layout.LEASES + lease.id, facts.now - lease.age + term))
        elif record is None:
            facts.holders.append(Holder("somebody", "something that can't be read", lease.begun))
        elif lease.reads is not None:
            held += lease.reads
        elif record.kind != KIND:
            # Another collection stores nothing that this one would not find again: see ``gc.sweep``.
            what = f"{record.kind} to {record.dataset}" if record.dataset else record.kind
            facts.holders.append(Holder(f"{record.user or 'somebody'} on {record.host}", what, lease.begun))
    return held


def _packs(store: Store, refs: Refs, facts: Facts, objects: Objects, live: LiveChunks, watcher: Watcher) -> None:
    watcher.phase("Comparing with the index", 0)
    segments = store.index.everything()
    indexed = {pack_id for segment in segments for pack_id in segment.pack_ids()}
    # What is not listed was stored since, or is lost.
    unlisted = sorted(indexed - objects.packs.keys())
    there = dict(zip(unlisted, refs.each(lambda pack_id: _is_there(store, pack_id), unlisted), strict=True))
    facts.absent = {pack_id for pack_id, is_there in there.items() if not is_there}
    there.update(dict.fromkeys(objects.packs, True))
    needed = needed_bytes(segments, live, {pack_id for pack_id, yes in there.items() if yes}, facts.listed)
    facts.packs = [
        PackFact(pack_id, size, mtime, needed.get(pack_id, 0) if pack_id in indexed else None)
        for pack_id, (size, mtime) in objects.packs.items()
    ]


def _is_there(store: Store, pack_id: bytes) -> bool:
    try:
        store.backend.stat(layout.pack_key(pack_id))
    except NotFoundError:
        return False
    return True


def _stays(store: Store, manifest_id: bytes) -> bool:
    """Whether a root is the last that its tree can have: whoever stores that tree again gives it another one."""
    try:
        root = store.tree(manifest_id).root
    except (NotFoundError, IntegrityError):
        return False
    return not root.children or root.depth >= MAX_DEPTH


def _trash(facts: Facts, records: Sequence[Listed], objects: Objects) -> None:
    sizes = {key: size for key, (size, _) in (*objects.packs.items(), *objects.manifests.items())}
    for listed in records:
        record = listed.record
        if record.state == TrashState.DELETED:
            facts.finished.append((layout.trash_key(record.id), listed.mtime))
            continue
        ids = [*map(bytes.fromhex, record.packs), *map(bytes.fromhex, record.manifests)]
        size = sum(sizes.get(object_id, 0) for object_id in ids)
        begun = record.state != TrashState.MARKED
        facts.marked.append(Marked(record.id, listed.mtime, len(record.packs), size, begun))
        facts.listed.update(ids)
    listed_datasets = {dataset_id for listed in _open(records) for dataset_id in listed.record.datasets}
    listed_versions = {version for listed in _open(records) for version in listed.record.versions}
    facts.datasets = [dataset_id for dataset_id in facts.datasets if dataset_id not in listed_datasets]
    facts.versions = [version for version in facts.versions if version not in listed_versions]


def _abandoned(store: Store, refs: Refs, found: Found) -> Iterator[tuple[str, float]]:
    """Yield the heads that nobody came back to after they were created."""
    named = {dataset_id for _, dataset_id in refs.list_names()} if found.empty else set()
    for head in found.empty:
        if head.type == DatasetType.DATASET or head.id not in named:
            with contextlib.suppress(NotFoundError):
                yield head.id, store.backend.stat(layout.head_key(head.id)).mtime


def _abandon(refs: Refs, dataset_id: str) -> bool:
    """Mark such a head deleted, unless somebody has come back."""

    def change(head: Head) -> Head:
        return msgspec.structs.replace(head, deleted=True) if is_empty(refs, head) else head

    try:
        return refs.update_head(dataset_id, change).deleted
    except NotFoundError:
        return True


def _open(records: Iterable[Listed]) -> Iterator[Listed]:
    return (listed for listed in records if listed.record.state != TrashState.DELETED)


def mark(store: Store, refs: Refs, plan: Plan, watcher: Watcher) -> list[str]:
    """Write down what a plan marks, and return the ids of the records."""
    datasets = [*plan.datasets, *(dataset_id for dataset_id in plan.abandoned if _abandon(refs, dataset_id))]
    packs = [pack.pack_id.hex() for pack in (*plan.dead, *plan.sparse)]
    manifests = [manifest.manifest_id.hex() for manifest in plan.manifests]
    ids: list[str] = []
    for number in range(0, max(len(packs), len(manifests), len(plan.versions), len(datasets)), _AT_ONCE):
        part = slice(number, number + _AT_ONCE)
        ids.append(
            trash.create(
                store.backend,
                packs=packs[part],
                manifests=manifests[part],
                versions=plan.versions[part],
                datasets=datasets[part],
            )
        )
        watcher.step()
    return ids
