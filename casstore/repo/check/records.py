"""Names, heads and versions: what users see of a store.

Decided here and only here: which relations between them must hold. A name leads to a head, a head is there for every
version, and a version for every number up to the head's last one that is not deleted. Names are listed before the heads
that they lead to, and heads before their versions, so that what is written meanwhile does not look wrong; what looks
wrong is looked at once more. A version that is deleted or void has nothing to lose, and its data may be gone.
"""

from __future__ import annotations

import contextlib
from itertools import groupby, islice
from typing import TypeVar

import msgspec

from casstore.backend.base import ObjectInfo
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.model import DatasetType, Head, VersionRecord
from casstore.repo import layout
from casstore.repo.check.dataset import Dataset, Version
from casstore.repo.check.report import About, Problem
from casstore.repo.check.session import Session
from casstore.repo.limits import bounded_get, check_size
from casstore.repo.records import NameRecord, head_problem, is_active, version_problem
from casstore.repo.trash import TrashState, read_trash

__all__ = ["Records", "read_record"]

_MISSING = 256
"""Missing versions of one dataset that are looked for: its head may say anything."""

_T = TypeVar("_T", bound=msgspec.Struct)


def read_record(session: Session, info: ObjectInfo, kind: str, cls: type[_T], limit: int = record.MAX_RECORD) -> _T:
    """Return a record. ``NotFoundError``, ``FormatError``."""
    check_size(info.key, info.size, limit)
    return record.decode(kind, bounded_get(session.backend, info.key, limit), cls)


class Records:
    """All names and datasets of a store."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.names: dict[str, str | None] = {}
        self.name_problems: dict[str, str] = {}
        self.datasets: dict[str, Dataset] = {}
        self.foreign: dict[str, str] = {}

    def read(self) -> None:
        """Read all of them."""
        session = self._session
        session.spread(self._name, session.each(layout.NAMES))
        groups = groupby(session.each(layout.DATASETS), lambda info: info.key.split("/", 2)[1])
        session.spread(lambda one: self._dataset(*one), ((name, list(infos)) for name, infos in groups))

    def choose(self, names: set[str]) -> list[Dataset]:
        """Return the datasets with these names, and the members of collections, and forget the others.

        ``NotFoundError`` for an unknown one.
        """
        by_key = {layout.name_key(name): name for name in names}
        wanted = {self.names.get(key) for key in by_key}
        chosen = [one for one in self.datasets.values() if one.id in wanted or one.name in names]
        unknown = names - {one.name for one in chosen} - {by_key[key] for key in by_key if self.names.get(key)}
        if unknown:
            raise NotFoundError(f"there is no dataset or collection {min(unknown)!r}")
        members = {member.dataset_id for one in chosen if one.head is not None for member in one.head.members}
        chosen += [one for one in self.datasets.values() if one.id in members and one not in chosen]
        self.datasets = {one.id: one for one in chosen}
        kept = {one.id for one in chosen}
        self.names = {key: target for key, target in self.names.items() if target in kept or key in by_key}
        self.name_problems = {key: text for key, text in self.name_problems.items() if key in by_key}
        return chosen

    def _name(self, info: ObjectInfo) -> None:
        try:
            name = read_record(self._session, info, "name", NameRecord)
            if layout.name_of(info.key) != name.name or not (name.id is None or layout.is_dataset_id(name.id)):
                raise FormatError("it is the record of another name")
            self.names[info.key] = name.id
        except NotFoundError:
            pass
        except IntegrityError as error:
            self.name_problems[info.key] = error.message
        self._session.checked(info.size)

    def _dataset(self, dataset_id: str, infos: list[ObjectInfo]) -> None:
        if not layout.is_dataset_id(dataset_id):
            for info in infos:
                self.foreign[info.key] = "the object does not belong to a store"
                self._session.checked(info.size)
            return
        self.datasets[dataset_id] = self._read(dataset_id, infos)

    def _read(self, dataset_id: str, infos: list[ObjectInfo]) -> Dataset:
        found = Dataset(dataset_id)
        for info in infos:
            rest = info.key.removeprefix(f"{layout.DATASETS}{dataset_id}/")
            try:
                if rest == "head":
                    found.head = self._head(info, dataset_id)
                else:
                    self._version(info, found)
            except NotFoundError:
                continue  # removed for good meanwhile
            except IntegrityError as error:
                if rest == "head":
                    found.head_problem = error.message
                else:
                    self._bad_version(info, found, error.message)
            self._session.checked(info.size)
        self._relations(found)
        return found

    def _head(self, info: ObjectInfo, dataset_id: str) -> Head:
        head = read_record(self._session, info, "head", Head)
        problem = head_problem(head)
        if head.id != dataset_id or problem:
            raise FormatError(problem or "it is the head of another dataset")
        states = {number: msgspec.structs.replace(state, metadata=None) for number, state in head.versions.items()}
        return msgspec.structs.replace(head, labels={}, versions=states)  # what users wrote may be large

    def _version(self, info: ObjectInfo, found: Dataset) -> None:
        number = layout.version_number(info.key)
        if layout.version_key(found.id, number) != info.key:
            raise FormatError("it is the record of another version")
        version = read_record(self._session, info, "version", VersionRecord)
        problem = version_problem(version)
        if version.number != number or problem:
            raise FormatError(problem or "it is the record of another version")
        found.versions[number] = Version(
            bytes.fromhex(version.manifest),
            version.checksum,
            version.totals,
            version.epoch,
            version.created_at,
            version.created_by,
            _referred(version),
        )

    def _bad_version(self, info: ObjectInfo, found: Dataset, message: str) -> None:
        try:
            number = layout.version_number(info.key)
            if layout.version_key(found.id, number) != info.key:
                raise FormatError("another key")
        except FormatError:
            self.foreign[info.key] = "the object does not belong to a store"
        else:
            found.damaged[number] = message

    def _relations(self, found: Dataset) -> None:
        """Find out what is missing, and say what is wrong."""
        problems: list[Problem] = []
        key, head = layout.head_key(found.id), found.head
        if found.head_problem is not None:
            problems.append(Problem(key, f"the record is damaged: {found.head_problem}", About.HEAD))
        if head is None and found.head_problem is None and (found.versions or found.damaged):
            found.collected = found.id in self._collected_ids()
        if head is None and found.head_problem is None and not found.collected and (found.versions or found.damaged):
            problems.append(Problem(key, "the dataset has versions, but its head is missing", About.HEAD))
        for number, message in sorted(found.damaged.items()):
            text = f"the record of version {number} of {found.name} is damaged: {message}"
            problems.append(Problem(layout.version_key(found.id, number), text, About.VERSION))
        found.missing = []
        if head is not None and not head.deleted and head.type == DatasetType.DATASET:
            known = found.versions.keys() | found.damaged.keys()
            numbers = (n for n in range(1, head.last_version + 1) if n not in known and is_active(head, n))
            for number in islice(numbers, _MISSING):
                if self._arrived(found, number):
                    continue
                found.missing.append(number)
                text = f"version {number} of {head.name} is missing"
                problems.append(Problem(layout.version_key(found.id, number), text, About.VERSION))
            for tag, number in sorted(head.tags.items()):
                if number in found.damaged or number in found.missing:
                    continue  # told already
                if number not in found.versions and not self._arrived(found, number):
                    problems.append(Problem(key, f"its tag {tag!r} leads to no sound version", About.HEAD))
        found.problems = problems

    def _collected_ids(self) -> frozenset[str]:
        """Return the ids of datasets that were collected, as far as that is on record."""
        found: set[str] = set()
        for info in self._session.backend.list(layout.TRASH):
            with contextlib.suppress(NotFoundError, IntegrityError):
                trash = read_trash(self._session.backend, layout.random_id(info.key))
                if trash.state != TrashState.MARKED:
                    found.update(trash.datasets)
        return frozenset(found)

    def _arrived(self, found: Dataset, number: int) -> bool:
        """Whether a version is there that was not when the versions were listed: the head was read after that."""
        try:
            self._version(self._session.backend.stat(layout.version_key(found.id, number)), found)
        except (NotFoundError, IntegrityError):
            return False
        return True

    def dangling(self) -> dict[str, str]:
        """Return the names that lead nowhere: key -> the id of the dataset."""
        found: dict[str, str] = {}
        for key, target in sorted(self.names.items()):
            if target is not None:
                dataset = self.datasets.get(target)
                if dataset is None or (dataset.head is None and not dataset.versions and not dataset.damaged):
                    found[key] = target
        return found

    def unnamed(self) -> list[Dataset]:
        """Return the datasets that have versions and that no name leads to.

        One without versions is what an interrupted creation leaves, and nobody misses it.
        """
        named = set(self.names.values())
        return [
            one
            for one in self.datasets.values()
            if one.head is not None and not one.head.deleted and one.id not in named and (one.versions or one.damaged)
        ]

    def look_again(self) -> None:
        """Read once more whatever has a problem."""
        backend = self._session.backend
        for dataset_id in [one.id for one in self.datasets.values() if one.problems]:
            self.refresh(dataset_id)
        keys = {*self.name_problems, *self.dangling(), *(layout.name_key(one.name) for one in self.unnamed())}
        for key in keys:
            self.names.pop(key, None)
            self.name_problems.pop(key, None)
            try:
                self._name(backend.stat(key))
            except NotFoundError:
                continue
            target = self.names.get(key)
            if target is not None:
                self.refresh(target)
        for key in list(self.foreign):
            try:
                backend.stat(key)
            except CasstoreError:
                del self.foreign[key]

    def refresh(self, dataset_id: str) -> None:
        """Read one dataset anew."""
        infos = list(self._session.backend.list(f"{layout.DATASETS}{dataset_id}/"))
        if infos:
            self.datasets[dataset_id] = self._read(dataset_id, infos)
        else:
            self.datasets.pop(dataset_id, None)

    @property
    def suspicious(self) -> bool:
        """Whether anything looks wrong."""
        return bool(
            self.name_problems
            or self.foreign
            or self.dangling()
            or self.unnamed()
            or any(one.problems for one in self.datasets.values())
        )

    def tell(self) -> None:
        """Report what is wrong."""
        session = self._session
        for key, message in sorted(self.name_problems.items()):
            session.problem(key, f"the name is damaged: {message}", About.NAME)
        for key, target in self.dangling().items():
            session.problem(key, f"it leads to dataset {target[:40]}, which is missing", About.NAME)
        for one in self.unnamed():
            session.problem(layout.head_key(one.id), f"no name leads to the dataset {one.name}", About.HEAD)
        for dataset in sorted(self.datasets.values(), key=lambda one: one.id):
            session.report.add(dataset.problems)
        for key, message in sorted(self.foreign.items()):
            session.problem(key, message, About.FOREIGN)


def _referred(version: VersionRecord) -> int:
    """Return how many bytes the record says are elsewhere. Anything may be in it."""
    references = version.provenance.get("references")
    size = references.get("size") if isinstance(references, dict) else None
    return min(max(0, size), version.totals.size) if isinstance(size, int) else 0
