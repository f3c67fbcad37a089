"""What there is, and what is referred to.

Decided here and only here: which versions count, and in which order a store is looked at. Packs and manifests are
listed first, then leases, then heads and versions: whatever was stored after the listing is not in question, and an
operation that ended in between has committed what the last look finds. A version that can't be read ends the
collection, unless it was deleted: what it refers to is not known, so nothing may go.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format.manifest import Root
from casstore.model import DatasetType, Head
from casstore.repo import layout
from casstore.repo.gc.live import Walker
from casstore.repo.gc.watch import Watcher
from casstore.repo.refs import Refs, is_active
from casstore.repo.store import Store

__all__ = ["REPAIR", "Dropped", "Found", "Objects", "find_versions", "is_empty", "list_objects", "walk"]

REPAIR = "`osmo store check` says what is damaged; `osmo store repair` mends what can be, or delete that version"

_ROOTS_AT_ONCE = 64
"""Roots of manifests that are read side by side."""

Dropped = Container[tuple[str, int]]
"""Versions (dataset id, number) to be taken for deleted: those that are going to be."""


@dataclass(frozen=True, slots=True)
class Live:
    """A version that is there: what it is called, and the id of its manifest."""

    dataset_id: str
    name: str
    number: int
    manifest: bytes


@dataclass(slots=True)
class Found:
    """The versions of a store: those that count, and what was deleted and has objects still."""

    live: list[Live] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    """Of the datasets that are there."""
    versions: list[tuple[str, int]] = field(default_factory=list)
    """Deleted versions of those."""
    datasets: list[str] = field(default_factory=list)
    """Deleted datasets and collections."""
    empty: list[Head] = field(default_factory=list)
    """Of the heads, those of collections whose name leads elsewhere, and of datasets without a version."""


@dataclass(slots=True)
class Objects:
    """Packs and manifests: id -> size and time."""

    packs: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    manifests: dict[bytes, tuple[int, float]] = field(default_factory=dict)


def list_objects(store: Store, watcher: Watcher) -> Objects:
    """List packs and manifests. What has no name of one is no concern of a collection."""
    watcher.phase("Listing", 0)
    objects = Objects()
    for prefix, key_of, found in (
        (layout.PACKS, layout.pack_key, objects.packs),
        (layout.MANIFESTS, layout.manifest_key, objects.manifests),
    ):
        for info in store.backend.list(prefix):
            try:
                object_id = layout.id_of(info.key)
            except FormatError:
                continue
            if key_of(object_id) == info.key:
                found[object_id] = info.size, info.mtime
                watcher.step()
    return objects


def find_versions(refs: Refs, *, purged: Container[str] = (), dropped: Dropped = ()) -> Found:
    """Read all heads and version records. ``IntegrityError`` when one that counts can't be read.

    ``purged`` are datasets whose head a collection has removed: what is left of them counts as deleted.
    """
    found = Found()
    wanted: list[tuple[Head, int]] = []

    def look(dataset_id: str) -> tuple[Head | None, list[int]] | None:
        head = _head(refs, dataset_id, purged)
        if head is None or head.deleted or head.type == DatasetType.COLLECTION:
            return None if head is None and dataset_id not in purged else (head, [])
        return head, refs.versions(dataset_id, head)

    ids = refs.dataset_ids()
    for dataset_id, looked in zip(ids, refs.each(look, ids), strict=True):
        if looked is None:
            continue
        head, numbers = looked
        if head is None or head.deleted:
            found.datasets.append(dataset_id)
            continue
        found.heads.append(head)
        active = {number for number in numbers if is_active(head, number) and (dataset_id, number) not in dropped}
        wanted += [(head, number) for number in numbers if number in active]
        found.versions += [(dataset_id, number) for number in numbers if number not in active]
        if not active and is_empty(refs, head):
            found.empty.append(head)

    def read(item: tuple[Head, int]) -> Live | None:
        head, number = item
        try:
            record = refs.read_version(head.id, number)
        except NotFoundError:
            _expect_gone(refs, head, number)
            return None
        except IntegrityError as error:
            raise unreadable(head.name, number, error) from None
        return Live(head.id, head.name, number, bytes.fromhex(record.manifest))

    found.live = [version for version in refs.each(read, wanted) if version is not None]
    return found


def is_empty(refs: Refs, head: Head) -> bool:
    """Whether there is nothing behind a head: it was created, and nobody came back to it."""
    if head.type == DatasetType.DATASET:
        return not any(is_active(head, number) for number in refs.versions(head.id, head))
    try:
        return refs.resolve_name(head.name) != head.id
    except NotFoundError:
        return True


def _head(refs: Refs, dataset_id: str, purged: Container[str]) -> Head | None:
    """Return a head, or None where there is none and need not be."""
    try:
        return refs.read_head(dataset_id)[0]
    except NotFoundError:
        # Without versions a name was taken meanwhile, or a collection was faster.
        if dataset_id in purged or not refs.numbers(dataset_id):
            return None
        raise IntegrityError(
            f"{layout.head_key(dataset_id)} is missing, but the dataset has versions: nothing is collected",
            hint=REPAIR,
        ) from None
    except IntegrityError as error:
        raise IntegrityError(f"{error.message}: nothing is collected", hint=REPAIR) from None


def _expect_gone(refs: Refs, head: Head, number: int) -> None:
    """A version vanished between two looks: right if it was deleted, a damage otherwise."""
    try:
        now, _ = refs.read_head(head.id)
    except NotFoundError:
        return
    if not now.deleted and is_active(now, number):
        raise IntegrityError(
            f"version {number} of {head.name!r} has no record any more: nothing is collected", hint=REPAIR
        )


def _counts(refs: Refs, version: Live) -> bool:
    try:
        head, _ = refs.read_head(version.dataset_id)
    except NotFoundError:
        return False
    return not head.deleted and is_active(head, version.number)


def unreadable(name: str, number: int, error: CasstoreError) -> IntegrityError:
    """The error for a version whose record or tree can't be read."""
    return IntegrityError(
        f"version {number} of {name!r} can't be read ({error.message}): nothing is collected", hint=REPAIR
    )


def walk(store: Store, refs: Refs, versions: Iterable[Live], watcher: Watcher, *, held: Iterable[bytes] = ()) -> Walker:
    """Collect what these versions refer to. One that is deleted meanwhile may be left out.

    ``held`` are manifests that somebody reads though they may be deleted: what can't be read of them is left out.
    """
    versions = [*versions, *(Live("", "", 0, manifest) for manifest in held)]
    watcher.phase("Reading versions", len(versions))
    walker = Walker(store)

    def root_of(version: Live) -> Root | CasstoreError:
        try:
            return store.tree(version.manifest).root
        except (IntegrityError, NotFoundError) as error:
            return error

    for start in range(0, len(versions), _ROOTS_AT_ONCE):
        part = versions[start : start + _ROOTS_AT_ONCE]
        for version, root in zip(part, refs.each(root_of, part), strict=True):
            try:
                if isinstance(root, CasstoreError):
                    raise root
                walker.manifest(version.manifest, root)
            except (IntegrityError, NotFoundError) as error:
                if version.dataset_id and _counts(refs, version):
                    raise unreadable(version.name, version.number, error) from None
            watcher.step()
    return walker
