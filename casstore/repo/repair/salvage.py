"""A new version of what is left of a damaged one.

Decided here and only here: what of a version is taken over, and what the new one says of itself. Every entry that can
be read is taken over as it is; files that lost data are left out, and so is what a lost part of the tree held, of
which nobody knows more than the number. Folders that were lost with it are made anew. The old record is never touched;
the provenance of the new one names it, and what was left out.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from casstore.backend.base import Backend
from casstore.errors import ConflictError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.model import Entry, Head, Kind, VersionRecord, sort_key
from casstore.repo import layout
from casstore.repo.check.report import MAX_PATHS, show
from casstore.repo.check.trees import Trees
from casstore.repo.limits import bounded_get
from casstore.repo.records import now
from casstore.repo.refs import Refs
from casstore.repo.repair.storing import Storing
from casstore.repo.trash import dying
from casstore.repo.tree import TreeBuilder

__all__ = ["Salvaged", "manifest_of_damaged", "salvage_version", "salvaged_as"]

KEY = "salvage"
"""The key in a version's provenance that says what it was salvaged from."""
_MANIFEST = re.compile(rb'"manifest":"([0-9a-f]{64})"')


@dataclass(slots=True)
class Salvaged:
    """What was left out: ``files`` of them, the first in ``paths``, and ``entries`` of which nothing is known."""

    number: int = 0
    files: int = 0
    paths: list[bytes] = field(default_factory=list)
    entries: int = 0


def manifest_of_damaged(backend: Backend, trees: Trees, dataset_id: str, number: int) -> bytes | None:
    """Return the manifest that a damaged version record led to, if that can be read and is what its id says."""
    try:
        data = bounded_get(backend, layout.version_key(dataset_id, number), record.MAX_RECORD)
    except (NotFoundError, IntegrityError):
        return None
    found = _MANIFEST.search(data)
    if found is None:
        return None
    manifest_id = bytes.fromhex(found.group(1).decode("ascii"))
    try:
        trees.root(manifest_id)
    except (NotFoundError, IntegrityError):
        return None
    return manifest_id


def salvaged_as(refs: Refs, dataset_id: str, number: int) -> int | None:
    """Return the version that holds what was left of this one, if there is one already."""
    for later in refs.versions(dataset_id):
        if later > number:
            try:
                provenance = refs.read_version(dataset_id, later).provenance
            except (NotFoundError, IntegrityError):
                continue
            origin = provenance.get(KEY)
            if isinstance(origin, dict) and origin.get("version") == number:
                return later
    return None


def salvage_version(
    refs: Refs,
    trees: Trees,
    storing: Storing,
    dataset_id: str,
    number: int,
    manifest_id: bytes,
    *,
    user: str,
    validate: Callable[[Head], None],
) -> Salvaged:
    """Commit what is left of a version as a new one.

    ``IntegrityError`` when nothing can be made of it; ``ConflictError`` when the dataset was deleted meanwhile.
    """
    result = Salvaged()
    missing = _missing_folders(trees.survivors(manifest_id, lambda *_: None))
    builder = TreeBuilder(storing)

    def lost(path: bytes, entries: int) -> None:
        if entries:
            result.entries += entries
        else:
            result.files += 1
            if len(result.paths) < MAX_PATHS:
                result.paths.append(path)

    folders = (Entry(path, Kind.DIRECTORY, 0o755) for path in sorted(missing, key=sort_key))
    for entry in heapq.merge(trees.survivors(manifest_id, lost), folders, key=lambda entry: sort_key(entry.path)):
        builder.add(entry)
    new_manifest = builder.finish()
    old = _old(refs, dataset_id, number)
    provenance = {
        KEY: {
            "version": number,
            "manifest": manifest_id.hex(),
            "left_out": [show(path) for path in result.paths],
            "left_out_files": result.files,
            "lost_entries": result.entries,
        }
    }

    def build(new_number: int, write_id: str) -> VersionRecord:
        return VersionRecord(
            number=new_number,
            manifest=new_manifest.hex(),
            checksum=builder.checksum.hex(),
            totals=builder.totals,
            created_at=now(),
            created_by=user,
            write_id=write_id,
            new_bytes=storing.new_bytes,
            metadata=old,
            provenance=provenance,
        )

    result.number = refs.commit_version(dataset_id, build, validate=validate).number
    return result


def _old(refs: Refs, dataset_id: str, number: int) -> dict[str, Any]:
    """Return the metadata of the old version, as far as it can be read."""
    state = refs.read_head(dataset_id)[0].versions.get(number)
    if state is not None and state.metadata is not None:
        return state.metadata
    try:
        return refs.read_version(dataset_id, number).metadata
    except (NotFoundError, IntegrityError):
        return {}


def _missing_folders(entries: Iterator[Entry]) -> set[bytes]:
    """Return the folders that hold entries, but are no entries themselves."""
    folders: set[bytes] = set()
    needed: set[bytes] = set()
    for entry in entries:
        if entry.kind == Kind.DIRECTORY:
            folders.add(entry.path)
        parent = entry.parent
        while parent and parent not in needed:
            needed.add(parent)
            parent = parent.rpartition(b"/")[0]
    return needed - folders


def check_fresh(backend: Backend, storing: Storing) -> Callable[[Head], None]:
    """Return a check that nothing that a version relies on is being deleted."""

    def validate(_: Head) -> None:
        going = dying(backend)
        if not storing.used.isdisjoint(going.packs) or storing.manifest in going.manifests:
            raise ConflictError("garbage was collected meanwhile", hint="run the repair again")

    return validate
