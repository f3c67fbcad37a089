"""Names, heads and version records: the only mutable objects of a store, changed by conditional writes alone.

Decided here and only here: in which order several of them are written, and what a crash between two writes
leaves. No name, head or version is ever deleted or overwritten without a condition by anybody but ``purge``.

*Name.* ``names/<name>`` holds a dataset's id, or none when the name is free again: releasing a name is a
compare-and-swap too, because a late unconditional delete could take away what somebody else just created.

*Create.* 1. the head under a new random id, 2. the name. A crash after 1 leaves a head that no name leads to.
Of two who create the same name one wins step 2; the other removes its own head and uses the winner's.

*Commit.* See ``versions``.

*Delete.* 1. one swap of the head marks the versions, and when none is left active, the dataset; 2. the name
is released. ``deleted`` is final. A crash after 1 leaves a name that leads to a deleted dataset, which is the
same as a free one. Heads and versions stay for the garbage collector.

*Rename.* 1. the new name, 2. the head's ``name``, 3. the new name once more, 4. the old name is released. The
dataset can be reached under at least one name throughout, and the same rename done again finishes it. Until
then the other name is an *alias*: good for reading, refused for writing. Step 3 makes a release of the new
name by somebody who acts on older knowledge fail, or repairs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from casstore.backend.base import Absent, Backend, Condition, Matches, ObjectInfo
from casstore.errors import (
    CasstoreError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
    UsageError,
)
from casstore.model import DatasetType, Head, Member, VersionRecord, VersionState, VersionStatus
from casstore.repo import layout, versions
from casstore.repo.records import NameRecord, Records, is_active, is_tag, now, write_id
from casstore.repo.versions import ATTEMPTS, Also, Build, Validate, no_dataset, pause

__all__ = ["Damaged", "NameRecord", "Refs", "is_active", "is_tag", "now"]

Damaged = Callable[[CasstoreError], None]
"""Is told of a record that can't be read, where the others are wanted all the same."""

_A = TypeVar("_A")
_B = TypeVar("_B")

_CREATIONS = 8
"""How often a dataset is made anew that a collection took for abandoned."""
_LOOKS = 3
"""At a head that is missing although there are versions, before that counts as damage."""


class Refs:
    """The names, heads and versions of one store. Thread-safe; keeps no state of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._records = Records(backend)

    # ---- reading

    def list_names(self) -> Iterator[tuple[str, str]]:
        """Yield ``(name, dataset id)`` in the order of names; aliases of unfinished renames included."""
        for info in self._backend.list(layout.NAMES):
            with contextlib.suppress(NotFoundError):
                found = self._name(layout.name_of(info.key))
                if found is not None and found[0].id is not None:
                    yield found[0].name, found[0].id

    def dataset_ids(self) -> list[str]:
        """Return the id of every dataset that has any object, named or not, deleted or not."""
        ids: dict[str, None] = {}
        for info in self._backend.list(layout.DATASETS):
            ids[info.key.removeprefix(layout.DATASETS).partition("/")[0]] = None
        return [text for text in ids if layout.is_dataset_id(text)]

    def heads(self, damaged: Damaged | None = None) -> list[Head]:
        """Return the heads of all datasets and collections, sorted by name. Reads them side by side.

        With ``damaged``, it is told of names and heads that can't be read, and the others are returned.
        """

        def look(info: ObjectInfo) -> Head | None:
            try:
                return self._own_head(info)
            except IntegrityError as error:
                _tell(damaged, error)
                return None

        found = self.each(look, [*self._backend.list(layout.NAMES)])
        return sorted((head for head in found if head is not None), key=lambda head: head.name)

    def each(self, work: Callable[[_A], _B], items: Sequence[_A]) -> list[_B]:
        """Return ``work(item)`` for all items, in parallel where the back end is far away."""
        return self._records.each(work, items)

    def _own_head(self, info: ObjectInfo) -> Head | None:
        """Return the head whose right name this is the record of."""
        name = layout.name_of(info.key)
        found = self._name(name)
        head = None if found is None or found[0].id is None else self._live_head(found[0].id)
        return head if head is not None and head.name == name else None

    def resolve_name(self, name: str) -> str:
        """Return the id of the dataset with this name; ``NotFoundError`` when there is none."""
        found = self._name(name)
        if found is None or found[0].id is None:
            raise no_dataset(name)
        return found[0].id

    def find(self, name: str) -> Head:
        """Return the head of the dataset or collection with this name; ``NotFoundError`` when there is none.

        Its ``name`` is another one while a rename is unfinished.
        """
        dataset_id = self.resolve_name(name)
        head = self._live_head(dataset_id)
        if head is None:
            raise no_dataset(name)
        return head

    def read_head(self, dataset_id: str) -> tuple[Head, str]:
        """Return a head, deleted or not, and its etag. ``NotFoundError`` when there is no such object."""
        return self._records.head(dataset_id)

    def numbers(self, dataset_id: str) -> list[int]:
        """Return the numbers that have a version record, ascending: deleted ones and void ones included."""
        return self._records.numbers(dataset_id)

    def versions(self, dataset_id: str, head: Head | None = None) -> list[int]:
        """Return the numbers of the versions that are there, ascending, deleted or not; void ones are not.

        ``head``, when it was read already, saves a call.
        """
        if head is None:
            try:
                head, _ = self._records.head(dataset_id)
            except NotFoundError:
                return self._records.numbers(dataset_id)
        return versions.there(self._records, head)

    def read_version(self, dataset_id: str, number: int) -> VersionRecord:
        """Return the record of a version; ``NotFoundError`` when there is none."""
        return self._records.version(dataset_id, number)

    # ---- changing

    def create_dataset(
        self,
        name: str,
        *,
        created_by: str,
        type: DatasetType = DatasetType.DATASET,  # noqa: A002 - the word of the format
        labels: dict[str, Any] | None = None,
        members: Iterable[Member] = (),
        exclusive: bool = False,
    ) -> Head:
        """Create a dataset or collection and return its head, or the head of the one that has the name
        already.

        With ``exclusive`` a name that is taken is a ``ConflictError`` instead.
        """
        layout.name_key(name)
        head = Head(
            id=layout.new_dataset_id(),
            name=name,
            type=type,
            created_at=now(),
            created_by=created_by,
            write_id=write_id(),
            labels=labels or {},
            members=list(members),
        )
        for _ in range(_CREATIONS):
            self._records.put_head(head, Absent())
            holder = self._claim(name, head.id)
            if holder is not None:
                break
            # A collection takes a head without a name for abandoned: it marks it deleted, and then frees its name.
            if self._live_head(head.id) is not None:
                return head
            self._release(name, head.id)
            head = msgspec.structs.replace(head, id=layout.new_dataset_id(), write_id=write_id())
        else:
            raise ConflictError(f"dataset {name!r} was collected again and again while it was made", hint="try again")
        # Only garbage is left when this fails.
        with contextlib.suppress(StorageError):
            self._backend.delete([layout.head_key(head.id)])
        if exclusive:
            raise ConflictError(f"the name {name!r} is taken", hint="choose another name")
        return self.read_head(holder)[0]

    def update_head(self, dataset_id: str, change: Callable[[Head], Head]) -> Head:
        """Replace a head by ``change(head)`` with compare-and-swap and return the new one.

        ``change`` is called again, with a newer head, when somebody else was faster; it may raise, and when
        it returns the same object nothing is written. Conditions that it checks in the bucket hold at the
        moment of the swap, provided that whoever breaks them swaps the head too. ``NotFoundError`` for a
        deleted dataset.
        """
        # One id for all attempts: an earlier one whose reply was lost may still have arrived.
        this = write_id()
        for attempt in range(ATTEMPTS):
            head, etag = self.read_head(dataset_id)
            if not attempt or head.write_id != this:
                if head.deleted:
                    raise no_dataset(head.name)
                changed = change(head)
                if changed is head:
                    return head
                head = msgspec.structs.replace(changed, write_id=this)
                try:
                    self._records.put_head(head, Matches(etag))
                except PreconditionError:
                    pause(attempt)
                    continue
            if head.deleted:
                self._release(head.name, dataset_id)
            return head
        raise ConflictError(
            f"{layout.head_key(dataset_id)} was changed by others {ATTEMPTS} times in a row",
            hint="try again",
        )

    def try_update_head(self, dataset_id: str, change: Callable[[Head], Head]) -> bool:
        """Attempt ``update_head`` once; False when somebody else was faster."""
        head, etag = self._head_to_change(dataset_id)
        changed = change(head)
        if changed is head:
            return True
        try:
            self._records.put_head(msgspec.structs.replace(changed, write_id=write_id()), Matches(etag))
        except PreconditionError:
            return False
        return True

    def commit_version(
        self,
        dataset_id: str,
        build: Build,
        *,
        also: Also | None = None,
        validate: Validate | None = None,
    ) -> VersionRecord:
        """Commit ``build(number, write_id)`` under the next free number and return it; its epoch is set here.

        ``also(head, number)`` changes the head (labels, tags) in the swap that follows the commit. Everything
        that the record leads to must be durable before. ``validate(head)`` is called after the head was read, and
        before the commit, each time that it is begun: it raises when something is gone that the record leads to.
        ``ConflictError`` when the dataset was deleted meanwhile.
        """
        return versions.commit(self._records, self.update_head, dataset_id, build, also, validate)

    def fence(self, dataset_id: str) -> Head:
        """Make void what is committed from now on by writers who looked before; return the head, deleted or not.

        ``NotFoundError`` when there is no such object. For the garbage collector: see ``versions``.
        """
        self._records.require_conditions()
        return versions.fence(self._records, dataset_id)

    def delete_versions(self, dataset_id: str, choose: Callable[[Head, list[int]], Iterable[int]]) -> Head:
        """Mark versions PENDING_DELETE, with their tags removed, and return the head.

        ``choose(head, active)`` returns the numbers among ``active`` to delete (it may raise). When no
        version is left active the dataset is dropped: the head comes back ``deleted`` and its name is free.
        """

        def change(head: Head) -> Head:
            listed = self.numbers(dataset_id)
            head = versions.raised(self._records, head, max([0, *listed]), listed)
            active = [number for number in listed if is_active(head, number)]
            chosen = set(choose(head, active))
            if not chosen.issubset(active):
                raise NotFoundError(f"version {min(chosen.difference(active))} of {head.name!r} does not exist")
            states = dict(head.versions)
            for number in chosen:
                state = states.get(number, VersionState())
                states[number] = msgspec.structs.replace(state, status=VersionStatus.PENDING_DELETE)
            return msgspec.structs.replace(
                head,
                versions=states,
                tags={tag: number for tag, number in head.tags.items() if number not in chosen},
                deleted=chosen.issuperset(active),
            )

        return self.update_head(dataset_id, change)

    def delete_dataset(self, dataset_id: str) -> Head:
        """Delete a dataset with all its versions, or a collection; its name is free afterwards."""
        return self.delete_versions(dataset_id, lambda _, active: active)

    def rename(self, old: str, new: str) -> Head:
        """Give ``old`` another name and return its head. See the module for the order of the steps."""
        layout.name_key(new)
        head = self.find(old)
        if old == new:
            return head
        if head.name not in (old, new):
            raise _alias(old, head.name)
        holder = self._claim(new, head.id)
        if holder is not None:
            raise ConflictError(f"the name {new!r} is taken", hint="choose another name, or delete that one first")

        def change(head: Head) -> Head:
            if head.name == new:
                return head
            if head.name != old:
                raise ConflictError(f"{old!r} was renamed to {head.name!r} meanwhile", hint="rename that one")
            return _renamed(head, new)

        try:
            head = self.update_head(head.id, change)
        except (ConflictError, NotFoundError):
            with contextlib.suppress(CasstoreError):
                self._release(new, head.id)
            raise
        if self._claim(new, head.id) is not None:
            raise ConflictError(f"the name {new!r} was taken meanwhile", hint=f"rename {old!r} to another name")
        self._release(old, head.id)
        return head

    def purge(self, dataset_id: str) -> None:
        """Remove the objects of a deleted dataset for good: versions first. For the garbage collector."""
        head, _ = self.read_head(dataset_id)
        if not head.deleted:
            raise UsageError(f"dataset {head.name!r} is not deleted")
        self._release(head.name, dataset_id)
        self._backend.delete([layout.version_key(dataset_id, number) for number in self.numbers(dataset_id)])
        self._backend.delete([layout.head_key(dataset_id)])

    # ---- names

    def _name(self, name: str) -> tuple[NameRecord, str] | None:
        key = layout.name_key(name)
        try:
            found, etag = self._records.read(key, "name", NameRecord)
        except NotFoundError:
            return None
        if found.name != name or not (found.id is None or layout.is_dataset_id(found.id)):
            raise FormatError(f"{key} can't be right: it belongs to the name {found.name[:80]!r}")
        return found, etag

    def _claim(self, name: str, dataset_id: str) -> str | None:
        """Point a name at a dataset; return None, or the id of the other live dataset that has the name.

        Writes even when the name leads there already, so that a release in flight finds another state.
        """
        key = layout.name_key(name)
        this = write_id()
        for attempt in range(ATTEMPTS):
            current = self._name(name)
            condition: Condition = Absent()
            if current is not None:
                holder, etag = current
                if attempt and holder.write_id == this:
                    return None
                if holder.id not in (None, dataset_id) and holder.id and self._live_head(holder.id) is not None:
                    return holder.id
                condition = Matches(etag)
            try:
                self._records.put(key, "name", NameRecord(name=name, id=dataset_id, write_id=this), condition)
                return None
            except PreconditionError:
                pause(attempt)
        raise ConflictError(f"{key} was changed by others {ATTEMPTS} times in a row", hint="try again")

    def _release(self, name: str, dataset_id: str) -> None:
        """Free a name unless it leads to another dataset, or is this one's right name."""
        current = self._name(name)
        if current is None or current[0].id != dataset_id:
            return
        # Read after the name: whoever gives this name to the dataset writes the name again after the head.
        head = self._live_head(dataset_id)
        if head is not None and head.name == name:
            return
        # Somebody who changed the name meanwhile has decided what it is now.
        with contextlib.suppress(PreconditionError):
            free = NameRecord(name=name, id=None, write_id=write_id())
            self._records.put(layout.name_key(name), "name", free, Matches(current[1]))

    # ---- heads and versions

    def _live_head(self, dataset_id: str) -> Head | None:
        for _ in range(_LOOKS):
            with contextlib.suppress(NotFoundError):
                head = self.read_head(dataset_id)[0]
                return None if head.deleted else head
            # Between the two looks a dataset of this name may have been collected, or made: then the next tells.
            if not self.numbers(dataset_id):
                return None
        raise IntegrityError(
            f"{layout.head_key(dataset_id)} is missing, but the dataset has versions",
            hint="run `osmo dataset verify`",
        )

    def _head_to_change(self, dataset_id: str) -> tuple[Head, str]:
        head, etag = self.read_head(dataset_id)
        if head.deleted:
            raise no_dataset(head.name)
        return head, etag


def _tell(damaged: Damaged | None, error: CasstoreError) -> None:
    """Pass the damage of a record on to whoever wants to know of it, if anybody does."""
    if damaged is None:
        raise error
    damaged(error)


def _renamed(head: Head, name: str) -> Head:
    return msgspec.structs.replace(head, name=name)


def _alias(name: str, real: str) -> ConflictError:
    return ConflictError(
        f"{name!r} belongs to an unfinished rename of {real!r}",
        hint=f"finish it with `osmo dataset rename {real} {name}`, or try again when it is done",
    )
