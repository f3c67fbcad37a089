"""Heads and names, made anew from versions and from each other.

Decided here and only here: what a lost head becomes, and whom a name belongs to. Everything is written under the
condition that it still is as it was looked at, so that whoever changes it meanwhile has decided what it is.

A head that is made anew has the versions that have records, none of them deleted, and an epoch above theirs, so that a
commit that began before does not count. Labels, tags, states of versions and rules of retention were in the old one
alone: they are lost, and it is kept in quarantine.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from casstore.backend.base import Absent, Condition, Matches
from casstore.errors import IntegrityError, NotFoundError, PreconditionError
from casstore.model import DatasetType, Head
from casstore.repo import layout
from casstore.repo import records as stored
from casstore.repo.check.dataset import Dataset
from casstore.repo.check.records import Records
from casstore.repo.limits import bounded_object
from casstore.repo.records import NameRecord, now, write_id
from casstore.repo.repair.quarantine import LARGEST, Quarantine

__all__ = ["Rewriter", "name_for"]

_ATTEMPTS = 16


def name_for(records: Records, dataset: Dataset) -> str:
    """Return the name that a dataset without a head gets: one that leads to it, or one made of its id."""
    for key, target in sorted(records.names.items()):
        if target == dataset.id:
            return layout.name_of(key)
    return _free(records, f"recovered-{dataset.id[:8]}", dataset.id)


def _free(records: Records, wanted: str, dataset_id: str) -> str:
    """Return the wanted name, or one like it that belongs to nobody."""
    wanted, name, number = wanted[: layout.MAX_NAME - 8], wanted, 1
    while records.names.get(layout.name_key(name)) not in (None, dataset_id):
        number += 1
        name = f"{wanted}-{number}"
    return name


class Rewriter:
    """Writes heads and names."""

    def __init__(self, store: stored.Records, records: Records, quarantine: Quarantine) -> None:
        self._store = store
        self._backend = store.backend
        self._records = records
        self._quarantine = quarantine

    def head(self, dataset: Dataset) -> bool:
        """Make the head of a dataset that has versions anew, and lead its name to it."""
        key = layout.head_key(dataset.id)
        condition = self._condition(key)
        numbers = [*dataset.versions, *dataset.damaged]
        first = dataset.versions[min(dataset.versions)] if dataset.versions else None
        name = name_for(self._records, dataset)
        head = Head(
            id=dataset.id,
            name=name,
            type=DatasetType.DATASET,
            created_at=first.created_at if first is not None else now(),
            created_by=first.created_by if first is not None else "",
            write_id=write_id(),
            last_version=max(numbers),
        )
        epoch = max((version.epoch for version in dataset.versions.values()), default=0) + 1
        head = msgspec.structs.replace(head, epoch=epoch)
        return self._attempt(lambda: self._store.put_head(head, condition)) and self.lead(name, dataset.id)

    def remove_head(self, dataset: Dataset) -> None:
        """Take the damaged head of a dataset without versions away."""
        self._quarantine.remove(layout.head_key(dataset.id))

    def lead(self, name: str, dataset_id: str | None) -> bool:
        """Lead a name to a dataset, or to none; unless it leads to another sound one."""
        key = layout.name_key(name)
        for _ in range(_ATTEMPTS):
            try:
                current, etag = self._store.read(key, "name", NameRecord)
            except NotFoundError:
                if dataset_id is None:
                    return True
                condition: Condition = Absent()
            except IntegrityError:
                condition = self._condition(key)
            else:
                if current.name == name:
                    if current.id == dataset_id:
                        return True
                    if current.id is not None and self._lives(current.id, name):
                        return False
                self._quarantine.keep(key)
                condition = Matches(etag)
            value = NameRecord(name=name, id=dataset_id, write_id=write_id())
            if self._attempt(lambda v=value, c=condition: self._store.put(key, "name", v, c)):  # type: ignore[misc]
                self._records.names[key] = dataset_id
                return True
        return False

    def claim(self, dataset: Dataset) -> str | None:
        """Give a sound head that no name leads to its name, or one like it when that is another's; returns it."""
        head, etag = self._store.head(dataset.id)
        if head.deleted:
            return None
        if self.lead(head.name, head.id):
            return head.name
        name = _free(self._records, f"{head.name}-recovered", head.id)
        self._quarantine.keep(layout.head_key(head.id))
        changed = msgspec.structs.replace(head, name=name, write_id=write_id())
        if self._attempt(lambda: self._store.put_head(changed, Matches(etag))) and self.lead(name, head.id):
            return name
        return None

    def drop_tags(self, dataset: Dataset, tags: set[str]) -> None:
        """Remove tags that lead to versions that there are not."""
        head, etag = self._store.head(dataset.id)
        left = {tag: number for tag, number in head.tags.items() if tag not in tags}
        self._quarantine.keep(layout.head_key(head.id))
        changed = msgspec.structs.replace(head, tags=left, write_id=write_id())
        self._attempt(lambda: self._store.put_head(changed, Matches(etag)))

    def _lives(self, dataset_id: str, name: str) -> bool:
        """Whether this name is the right one of a sound dataset, or on its way to be."""
        try:
            return not self._store.head(dataset_id)[0].deleted
        except (NotFoundError, IntegrityError):
            return False

    def _condition(self, key: str) -> Condition:
        """Keep what is there, and return the condition that it still is. ``FormatError`` for what is too large."""
        try:
            etag = bounded_object(self._backend, key, LARGEST).etag
        except NotFoundError:
            return Absent()
        self._quarantine.keep(key)
        return Matches(etag)

    def _attempt(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except PreconditionError:
            return False
        return True
