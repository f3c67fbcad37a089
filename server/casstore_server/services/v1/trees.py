"""Whether a version that a client wants to commit is all there.

Decided here and only here: what is looked at. Its tree is read to the last entry, so that it can be walked by whoever
collects garbage, and its checksum and sums are computed anew: an upload with the checksum of the latest version makes
no new one, and must not be taken in by a wrong one. Every chunk must be in the index, in a pack that is there and is
not being deleted. What the latest versions of the same dataset have of the tree has been looked at before, and is kept
by them: its chunks are not looked up again.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable

from casstore import hashing
from casstore.errors import CasstoreError, NotFoundError, UsageError
from casstore.model import Entry, Kind, VersionRecord
from casstore.repo.live import LivePacks
from casstore.repo.store import Store
from casstore.repo.trash import dying
from casstore.repo.tree import ChecksumBuilder, ListBuilder, Tree

__all__ = ["Proofs", "require_whole"]

_KEPT = 256


class Proofs:
    """Trees that were found whole, each for one epoch of one dataset: nothing that a version needs is deleted before
    the epoch is raised. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, int, str], None] = OrderedDict()

    def knows(self, store: Store, dataset_id: str, epoch: int, version: VersionRecord) -> bool:
        """Whether this was found whole before."""
        with self._lock:
            return (store.id, dataset_id, epoch, _said(version)) in self._known

    def note(self, store: Store, dataset_id: str, epoch: int, version: VersionRecord) -> None:
        """It was."""
        with self._lock:
            self._known[store.id, dataset_id, epoch, _said(version)] = None
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)


def _said(version: VersionRecord) -> str:
    return f"{version.manifest} {version.checksum} {version.totals!r}"


def require_whole(store: Store, version: VersionRecord, bases: Iterable[VersionRecord]) -> dict[bytes, int]:
    """Return the packs that the version needs and its ``bases`` do not, with their sizes. Raise ``UsageError`` unless
    its tree, and all that it needs, is in the store.

    ``bases`` are versions that are there and that it may share parts with.
    """
    manifest = bytes.fromhex(version.manifest)
    going = dying(store.backend)
    if manifest in going.manifests:
        raise UsageError("the manifest of this version is being deleted", hint="Upload again.")
    store.index.load(again=True)
    packs = LivePacks(store.backend, going.packs)
    try:
        tree = store.tree(manifest)
        _look(store, packs, tree, version, _shared(store, bases))
    except UsageError:
        raise
    except NotFoundError as error:
        raise UsageError(f"this version is not all there: {error.message}", hint="Upload again.") from None
    return packs.used


def _shared(store: Store, bases: Iterable[VersionRecord]) -> set[bytes]:
    """The nodes of versions that are there. What can't be read of them is not shared."""
    found: set[bytes] = set()
    for base in bases:
        try:
            found.update(store.tree(bytes.fromhex(base.manifest)).nodes())
        except CasstoreError:
            continue
    return found


def _look(store: Store, packs: LivePacks, tree: Tree, version: VersionRecord, shared: set[bytes]) -> None:
    for node_id in tree.nodes():
        if node_id not in shared:
            _require(store, packs, node_id, None)
    sums = ChecksumBuilder()
    entries = tree.entries()
    for leaf in tree.leaf_refs():
        batch = [*itertools.islice(entries, leaf.count)]
        sums.add(batch)
        if leaf.chunk_id not in shared:
            for entry in batch:
                if entry.kind == Kind.FILE:
                    _file(store, packs, tree, entry)
    if sums.checksum() != tree.checksum or sums.totals() != tree.totals:
        raise UsageError("the manifest of this version does not say what is in it")
    if version.checksum != tree.checksum.hex() or version.totals != tree.totals:
        raise UsageError("the record of this version does not say what is in it")


class _Nowhere:
    """Builds what a list of chunks must look like, and stores nothing."""

    def put_node(self, data: bytes) -> bytes:
        """Return the id of a node."""
        return hashing.digest(data)

    def put_manifest(self, data: bytes) -> bytes:
        """The same of a root."""
        return self.put_node(data)


def _file(store: Store, packs: LivePacks, tree: Tree, entry: Entry) -> None:
    """The chunks of a file are there, and so is the list of them; equal files have equal lists."""
    for node_id in tree.list_nodes(entry):
        _require(store, packs, node_id, None)
    size = 0
    listed = ListBuilder(_Nowhere())
    for chunk_id, raw in tree.chunks(entry):
        _require(store, packs, chunk_id, raw)
        listed.add(chunk_id, raw)
        size += raw
        if size > entry.size:
            break
    if size != entry.size or listed.finish() != entry.content:
        raise UsageError(f"{entry.path[:200]!r} is not made of the chunks that its entry says")


def _require(store: Store, packs: LivePacks, chunk_id: bytes, raw: int | None) -> None:
    for place in store.index.places(chunk_id):
        # One that is only referred to was made so by somebody with credentials of the bucket: see ``packs``.
        if (raw is None or place.raw == raw) and packs.holds(place):
            return
    raise NotFoundError(f"chunk {chunk_id.hex()} is not in the store")
