"""What is in a store beside its data: leases, records of collections, leftovers, and what does not belong there.

Decided here and only here: what of it is damage. Nothing of it holds data. A lease or a record of a collection that
can't be read is told, for nobody who needs it can read it either; what was left behind by somebody who ended without a
word is a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from casstore.backend.base import ObjectInfo
from casstore.errors import CasstoreError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.repo import layout
from casstore.repo.check.records import read_record
from casstore.repo.check.report import About, Note
from casstore.repo.check.session import Session
from casstore.repo.limits import bounded_get
from casstore.repo.store import MAX_CONFIG, StoreConfig

if TYPE_CHECKING:
    from casstore.repo.check.run import Inspection

__all__ = ["look_at_rest", "tell_unused"]

PROBES = "probe/"
QUARANTINE = "quarantine/"

_HELD = (layout.PACKS, layout.INDEX, layout.MANIFESTS, layout.NAMES, layout.DATASETS)
_RECORDS = {layout.LEASES: ("lease", About.LEASE), layout.TRASH: ("trash", About.TRASH)}
_NOTES = {
    layout.LEASES: "operations that run, or ended without a word",
    layout.TRASH: "records of collected garbage",
    QUARANTINE: "originals that a repair has kept: osmo store repair --discard-quarantine",
    layout.EXCHANGE: "uploads and downloads of OSMO's client; garbage collection removes those that are over",
    layout.INCOMING: "uploads through a server that run, or ended without a word",
    PROBES: "left by probes",
}
_PAST = "~"
"""Comes after every character that a key may hold."""


def others(session: Session) -> Iterator[ObjectInfo]:
    """Yield the objects that are in none of the folders that a check has been through."""
    after = ""
    while True:
        for info in session.backend.list("", after=after):
            held = next((prefix for prefix in _HELD if info.key.startswith(prefix)), None)
            if held is not None:
                after = held + _PAST
                break
            yield info
        else:
            return


def look_at_rest(session: Session) -> None:
    """Look at ``store.json``, at leases and the like, and at whatever belongs to no part of a store."""
    counts: dict[str, list[int]] = {}
    for info in others(session):
        folder = info.key.partition("/")[0] + "/"
        if info.key == layout.STORE:
            _try(session, info, "store", About.STORE)
        elif folder in _NOTES:
            count = counts.setdefault(folder, [0, 0])
            count[0] += 1
            count[1] += info.size
            if folder in _RECORDS:
                _try(session, info, *_RECORDS[folder])
        else:
            session.problem(info.key, "the object does not belong to a store", About.FOREIGN)
    for folder, (number, size) in sorted(counts.items()):
        session.report.notes.append(Note(folder.rstrip("/"), _NOTES[folder], number, size))


def _try(session: Session, info: ObjectInfo, kind: str, about: About) -> None:
    try:
        if about is About.STORE:
            read_record(session, info, kind, StoreConfig, MAX_CONFIG)
        else:
            record.check(kind, _small(session, info))
    except NotFoundError:
        return  # ended meanwhile
    except IntegrityError as error:
        try:
            session.backend.stat(info.key)
        except CasstoreError:
            return
        session.problem(info.key, error.message, about)


def _small(session: Session, info: ObjectInfo) -> bytes:
    if info.size > record.MAX_RECORD:
        raise IntegrityError(f"{info.key} has {info.size} bytes, more than a record may have")
    return bounded_get(session.backend, info.key, record.MAX_RECORD)


def tell_unused(inspection: Inspection) -> None:
    """Note what nothing refers to, and what is stored twice: garbage collection takes care of it."""
    report = inspection.report
    unused = [pack.size for pack in inspection.packs.known.values() if pack.sound and not pack.used]
    if unused:
        report.notes.append(Note("packs", "packs that no version needs", len(unused), sum(unused)))
    roots = inspection.unreferenced
    if roots:
        report.notes.append(Note("manifests", "manifests that no version leads to", len(roots), sum(roots.values())))
    behind = sum(inspection.places.behind.values())
    if behind:
        report.notes.append(Note("index", "records of the index that lead to packs that were collected", behind, 0))
    copies, size = inspection.places.duplicates
    if copies:
        report.notes.append(Note("duplicates", "chunks that are stored more than once", copies, size))
    void = sum(
        dataset.is_void(number) for dataset in inspection.records.datasets.values() for number in dataset.versions
    )
    if void:
        report.notes.append(Note("void", "versions that were never committed", void, 0))
