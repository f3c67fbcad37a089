"""Deleting what was marked long enough ago.

Decided here and only here: the order of the steps, and what each of them may rely on.

1. Each record becomes ``deleting`` by compare-and-swap; what the plan found needed again is taken off it. From now on
   no commit uses what it lists: see ``casstore.repo.trash``.
2. Every head is fenced: a version that was put without a look at these records is void from now on.
3. Packs, records, leases of readers, index, heads and versions are read anew. A needed chunk of a listed pack must be
   in a pack that *stays*, by that pack's own table of contents: one that is on no record that is being deleted, whoever
   deletes it. Otherwise it is copied, or, where most of the pack is needed, the pack is taken off the record.
4. The copies are published, and the record is *sealed*: what it lists now goes, whatever happens to this process. Two
   collections at once can't rely on what the other one deletes: each looks at the records after its own step 1.
5. The index forgets the packs, they are deleted, then manifests, version records and datasets; the record becomes
   ``deleted``, and stays for those who stood still.

A collection that was interrupted is taken up by the next one: before the seal at step 2, after it at step 5, where
what is needed is only copied, for somebody may be about to delete the rest. All steps can be repeated.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from casstore.compression import REFERENCE
from casstore.errors import CasstoreError, ConflictError, IntegrityError, NotFoundError, UsageError
from casstore.format.pack import HEADER_SIZE, RECORD_SIZE, TRAILER_SIZE, Footer, Record
from casstore.repo import layout, trash
from casstore.repo.gc.find import find_versions, list_objects, walk
from casstore.repo.gc.live import Walker
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.repack import Mover
from casstore.repo.gc.watch import Watcher
from casstore.repo.leases import read_manifests
from casstore.repo.packs import read_footer
from casstore.repo.refs import Refs, is_active
from casstore.repo.store import Store
from casstore.repo.trash import Listed, TrashState

__all__ = ["Swept", "sweep"]

_AT_ONCE = 64
"""Tables of contents that are read side by side."""
_FOOTERS = 64
"""Tables of contents that are kept in memory."""


@dataclass(slots=True)
class Swept:
    """What a collection deleted. ``size`` in bytes of objects, ``written`` those of the packs with what was moved."""

    packs: int = 0
    manifests: int = 0
    versions: int = 0
    datasets: int = 0
    size: int = 0
    moved: int = 0
    written: int = 0
    rescued: int = 0
    """Packs and manifests that were marked and are needed again."""
    damaged: list[bytes] = field(default_factory=list)
    """Packs that stay because they can't be read."""


@dataclass(slots=True)
class _Work:
    """One record, and the objects that are going to be deleted by it."""

    listed: Listed
    packs: list[str]
    manifests: list[str]


def sweep(
    store: Store,
    refs: Refs,
    ids: Sequence[str],
    rules: Rules,
    watcher: Watcher,
    *,
    now: float | None = None,
    needed: Collection[bytes] = (),
) -> Swept:
    """Delete what these trash records list, and return what went. ``needed`` is known to be needed again.

    ``now`` is the back end's clock, which is asked when it is not given.
    """
    swept = Swept()
    listed = [taken for trash_id in ids if (taken := _take(store, trash_id, needed, swept)) is not None]
    if listed:
        _Sweep(store, refs, rules, watcher, swept, listed, now).run()
    return swept


def _take(store: Store, trash_id: str, needed: Collection[bytes], swept: Swept) -> Listed | None:
    """Begin to delete by a record; None when it is done or gone."""
    try:
        listed = trash.read_listed(store.backend, trash_id)
    except NotFoundError:
        return None
    record = listed.record
    if record.state == TrashState.DELETED:
        return None
    if record.state == TrashState.MARKED:
        packs = [name for name in record.packs if bytes.fromhex(name) not in needed]
        manifests = [name for name in record.manifests if bytes.fromhex(name) not in needed]
        swept.rescued += len(record.packs) - len(packs) + len(record.manifests) - len(manifests)
        record = msgspec.structs.replace(record, state=TrashState.DELETING, packs=packs, manifests=manifests)
    # Written even when it stays the same: whoever worked on it before fails from now on.
    return trash.replace(store.backend, listed, record)


class _Sweep:
    def __init__(
        self,
        store: Store,
        refs: Refs,
        rules: Rules,
        watcher: Watcher,
        swept: Swept,
        listed: list[Listed],
        now: float | None,
    ) -> None:
        self._store = store
        self._refs = refs
        self._rules = rules
        self._watcher = watcher
        self._swept = swept
        self._listed = listed
        self._now = now
        self._footers: OrderedDict[bytes, frozenset[bytes]] = OrderedDict()
        self._staying: set[bytes] = set()
        self._sizes: dict[bytes, int] = {}

    def run(self) -> None:
        self._fence()
        walker = self._look()
        works = [self._decide(listed, walker) for listed in self._listed]
        self._mover.finish()
        self._swept.moved = self._mover.size
        self._swept.written = sum(self._store.backend.stat(layout.pack_key(pack)).size for pack in self._mover.packs)
        works = [self._seal(work) for work in works]
        self._forget(works)
        for work in works:
            self._delete(work)

    def _fence(self) -> None:
        ids = self._refs.dataset_ids()
        self._watcher.phase("Fencing", len(ids))

        def fence(dataset_id: str) -> None:
            with contextlib.suppress(NotFoundError):  # removed, or the leavings of one that was
                self._refs.fence(dataset_id)
            self._watcher.step()

        self._refs.each(fence, ids)

    def _look(self) -> Walker:
        """Read everything anew."""
        records = trash.list_trash(self._store.backend)
        going = {
            bytes.fromhex(name)
            for found in records
            if found.record.state != TrashState.MARKED
            for name in found.record.packs
        }
        purged = {dataset_id for found in records for dataset_id in found.record.datasets}
        objects = list_objects(self._store, self._watcher)
        self._sizes = {key: size for key, (size, _) in (*objects.packs.items(), *objects.manifests.items())}
        self._staying = objects.packs.keys() - going
        self._mover = Mover(self._store, going)
        self._store.index.load(again=True)
        held = read_manifests(self._store.backend, now=self._now)
        found = find_versions(self._refs, purged=purged)
        return walk(self._store, self._refs, found.live, self._watcher, held=held)

    # ---- deciding

    def _decide(self, listed: Listed, walker: Walker) -> _Work:
        record = listed.record
        self._watcher.phase("Looking into packs", len(record.packs))
        work = _Work(listed, [], [])
        for start in range(0, len(record.packs), _AT_ONCE):
            names = record.packs[start : start + _AT_ONCE]
            footers = self._refs.each(self._footer, [bytes.fromhex(name) for name in names])
            for name, footer in zip(names, footers, strict=True):
                if self._goes(bytes.fromhex(name), footer, walker, sealed=record.sealed):
                    work.packs.append(name)
                self._watcher.step()
        for name in record.manifests:
            # After the seal it is not needed: nobody could commit it.
            if record.sealed or bytes.fromhex(name) not in walker.manifests:
                work.manifests.append(name)
            else:
                self._swept.rescued += 1
        return work

    def _footer(self, pack_id: bytes) -> Footer | CasstoreError:
        try:
            return read_footer(self._store.backend, pack_id)
        except (NotFoundError, IntegrityError) as error:
            return error

    def _goes(self, pack_id: bytes, footer: Footer | CasstoreError, walker: Walker, *, sealed: bool) -> bool:
        """Whether a pack is to be deleted; copies what is needed of it."""
        if isinstance(footer, CasstoreError):
            if sealed or isinstance(footer, NotFoundError):
                return True  # an earlier attempt deleted it, or had decided on it
            return self._stays(pack_id, damaged=True)
        needed = self._needed(footer, walker)
        if not needed:
            return True
        size = HEADER_SIZE + TRAILER_SIZE + sum(frame.stored + RECORD_SIZE for frame in needed)
        if not sealed and size >= self._rules.repack_below * footer.size:
            return self._stays(pack_id)
        try:
            self._mover.move(pack_id, footer.kind, needed)
        except NotFoundError:
            raise ConflictError(
                f"another collection has deleted {layout.pack_key(pack_id)} meanwhile", hint="run it again"
            ) from None
        except IntegrityError:
            if sealed:
                raise
            return self._stays(pack_id, damaged=True)
        return True

    def _stays(self, pack_id: bytes, *, damaged: bool = False) -> bool:
        self._staying.add(pack_id)
        if damaged:
            self._swept.damaged.append(pack_id)
        else:
            self._swept.rescued += 1
        return False

    def _needed(self, footer: Footer, walker: Walker) -> list[Record]:
        return [
            frame
            for frame in footer.records
            if frame.chunk_id in walker.chunks
            and not self._mover.has(frame.chunk_id)
            and not self._is_elsewhere(frame.chunk_id)
        ]

    def _is_elsewhere(self, chunk_id: bytes) -> bool:
        """Whether a pack that stays holds this chunk, too, by its own table of contents. A reference is none."""
        return any(
            place.codec != REFERENCE
            and (place.pack_id in self._staying or place.pack_id in self._mover.packs)
            and chunk_id in self._contents(place.pack_id)
            for place in self._store.index.places(chunk_id)
        )

    def _contents(self, pack_id: bytes) -> frozenset[bytes]:
        found = self._footers.get(pack_id)
        if found is None:
            footer = self._footer(pack_id)
            records = () if isinstance(footer, CasstoreError) else footer.records
            found = frozenset(frame.chunk_id for frame in records if frame.codec != REFERENCE)
            self._footers[pack_id] = found
            if len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return found

    # ---- deleting

    def _seal(self, work: _Work) -> _Work:
        record = msgspec.structs.replace(work.listed.record, packs=work.packs, manifests=work.manifests, sealed=True)
        return _Work(trash.replace(self._store.backend, work.listed, record), work.packs, work.manifests)

    def _forget(self, works: Sequence[_Work]) -> None:
        self._store.index.tidy({bytes.fromhex(name) for work in works for name in work.packs})

    def _delete(self, work: _Work) -> None:
        backend, record, swept = self._store.backend, work.listed.record, self._swept
        packs = [bytes.fromhex(name) for name in work.packs]
        manifests = [bytes.fromhex(name) for name in work.manifests]
        self._watcher.phase("Deleting", len(packs) + len(manifests))
        backend.delete([layout.pack_key(pack_id) for pack_id in packs])
        backend.delete([layout.manifest_key(manifest_id) for manifest_id in manifests])
        there = [object_id for object_id in (*packs, *manifests) if object_id in self._sizes]
        for object_id in there:
            self._watcher.step(self._sizes[object_id])
        swept.packs += sum(pack_id in self._sizes for pack_id in packs)
        swept.manifests += sum(manifest_id in self._sizes for manifest_id in manifests)
        swept.size += sum(self._sizes[object_id] for object_id in there)
        for version in record.versions:
            swept.versions += self._purge_version(*version)
        for dataset_id in record.datasets:
            swept.datasets += self._purge_dataset(dataset_id)
        trash.replace(backend, work.listed, msgspec.structs.replace(record, state=TrashState.DELETED))

    def _purge_version(self, dataset_id: str, number: int) -> bool:
        """Remove the record of a deleted version. Its number stays marked in the head, and is not used again."""
        with contextlib.suppress(NotFoundError):
            head, _ = self._refs.read_head(dataset_id)
            if not head.deleted and not is_active(head, number) and number in self._refs.numbers(dataset_id):
                self._store.backend.delete([layout.version_key(dataset_id, number)])
                return True
        return False

    def _purge_dataset(self, dataset_id: str) -> bool:
        try:
            self._refs.purge(dataset_id)
        except UsageError:
            return False  # somebody has come back to it
        except NotFoundError:
            # Its head is gone: what is left are records that came too late.
            keys = [layout.version_key(dataset_id, number) for number in self._refs.numbers(dataset_id)]
            self._store.backend.delete(keys)
            return bool(keys)
        return True
