"""Which version records count, how one is committed, and the fence that holds late commits off.

Decided here and only here: the rule of the epochs. A head has an epoch, and a version record repeats the epoch of the
head that its writer read before it looked at what is being deleted from the store. A version is there when its number
is at most the head's ``last_version``, or its epoch is not older than the head's. A record above ``last_version`` with
an older epoch is *void*: nobody reads it. Whoever raises ``last_version`` over a void record marks that number deleted
in the same swap, so that it never comes to count.

*Commit.* 1. the head is read; 2. what the version relies on is checked; 3. the record, with the epoch of step 1, is put
where no object is; 4. the head's ``last_version`` is raised to the number by compare-and-swap. Step 3 is the commit:
it allots the number, and a crash after it leaves a valid version. Step 4 finds out whether anything came between: a
deletion of the dataset, which is reported, or a fence that did not see the record. Then the version is void, and the
commit starts again with step 1.

*Fence.* One swap of the head that raises its epoch, and ``last_version`` to the highest number listed after the head
was read. A record that was put before that listing counts from then on by its number; one that is put later carries an
older epoch, however long its writer stood still, or was put by a writer who read the head after the fence.

Step 4 fails the swap of a fence or of a deletion that listed the versions before step 3, and the other way round. See
``docs/adr/0006-leases-epochs-and-gc.md``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable

import msgspec

from casstore.backend.base import Absent, Matches
from casstore.errors import CasstoreError, ConflictError, FormatError, NotFoundError, PreconditionError
from casstore.model import Head, VersionRecord, VersionState, VersionStatus
from casstore.repo import layout
from casstore.repo.records import Records, is_active, write_id

__all__ = [
    "ATTEMPTS",
    "Also",
    "Build",
    "Update",
    "Validate",
    "commit",
    "fence",
    "no_dataset",
    "pause",
    "raised",
    "there",
]

ATTEMPTS = 256
"""How often a write that others were faster with is tried."""
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.25

Build = Callable[[int, str], VersionRecord]
"""From a number and a write id to the record of a version."""
Also = Callable[[Head, int], Head]
"""A change of the head that belongs to the commit of a version with this number."""
Validate = Callable[[Head], None]
"""Raises when something is gone that the version relies on. The head was read before."""
Update = Callable[[str, Callable[[Head], Head]], Head]
"""Changes a head by compare-and-swap, as ``Refs.update_head`` does."""


class DeletedError(ConflictError):
    """The dataset was deleted while a version of it was committed."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"dataset {name!r} was deleted while the upload ran",
            hint="upload again to create it anew",
        )


class _VoidError(Exception):
    """A fence came between the look at the head and the version record."""


def pause(attempt: int) -> None:
    """Wait a random while, longer with each attempt, so that writers in a race get out of step."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
    time.sleep(longest * os.urandom(1)[0] / 255)


def there(records: Records, head: Head) -> list[int]:
    """Return the numbers of the versions of a dataset that are there, ascending, deleted or not.

    ``head`` was read before. Costs a listing; more only while a version is being committed.
    """
    numbers = records.numbers(head.id)
    late = [number for number in numbers if number > head.last_version]
    if not late:
        return numbers
    try:
        # Newer than the listing: what was void then has not come to count since.
        newest, _ = records.head(head.id)
    except NotFoundError:
        return [number for number in numbers if number <= head.last_version]
    gone = set(_void(records, newest, late)).union(number for number in late if not is_active(newest, number))
    return [number for number in numbers if number not in gone]


def _void(records: Records, head: Head, numbers: Iterable[int]) -> list[int]:
    """Return those of the numbers whose records nobody reads."""
    return [number for number in numbers if number > head.last_version and _epoch(records, head, number) < head.epoch]


def _epoch(records: Records, head: Head, number: int) -> int:
    try:
        return records.version(head.id, number).epoch
    except (FormatError, NotFoundError):
        return head.epoch  # damage is for whoever reads it; what is gone does not matter


def raised(records: Records, head: Head, last: int, numbers: Iterable[int]) -> Head:
    """Return the head with ``last_version`` at least ``last``; void ones among ``numbers`` up to there are deleted.

    ``numbers`` were listed after the head was read.
    """
    if last <= head.last_version:
        return head
    states = dict(head.versions)
    for number in _void(records, head, (number for number in numbers if number <= last)):
        states[number] = VersionState(status=VersionStatus.PENDING_DELETE)
    return msgspec.structs.replace(head, last_version=last, versions=states)


def fence(records: Records, dataset_id: str) -> Head:
    """Raise the epoch of a head, deleted or not, so that nothing that a writer looked at before counts any more.

    Returns the new head. ``NotFoundError`` when there is no such object.
    """
    for attempt in range(ATTEMPTS):
        head, etag = records.head(dataset_id)
        numbers = records.numbers(dataset_id)
        changed = raised(records, head, max([0, *numbers]), numbers) if numbers else head
        changed = msgspec.structs.replace(changed, epoch=head.epoch + 1, write_id=write_id())
        try:
            records.put_head(changed, Matches(etag))
        except PreconditionError:
            pause(attempt)
            continue
        return changed
    raise ConflictError(f"{layout.head_key(dataset_id)} was changed by others {ATTEMPTS} times in a row")


def commit(
    records: Records,
    update: Update,
    dataset_id: str,
    build: Build,
    also: Also | None,
    validate: Validate | None,
) -> VersionRecord:
    """Commit a version. See the module, and ``Refs.commit_version``."""
    records.require_conditions()
    for attempt in range(ATTEMPTS):
        head, _ = records.head(dataset_id)
        if head.deleted:
            raise DeletedError(head.name) if attempt else no_dataset(head.name)
        if validate is not None:
            validate(head)
        try:
            version = _put(records, head, build)
        except NotFoundError:  # a server looks whether the dataset is there before it writes
            raise DeletedError(head.name) from None
        try:
            update(dataset_id, lambda now, v=version: _settled(records, now, v, also))  # type: ignore[misc]
        except _VoidError:
            pause(attempt)
            continue
        except NotFoundError:
            with contextlib.suppress(CasstoreError):
                _tidy(records, dataset_id, version)
            raise DeletedError(head.name) from None
        return version
    raise ConflictError("garbage was collected again and again while a version was committed", hint="try again")


def _put(records: Records, head: Head, build: Build) -> VersionRecord:
    """Put the record under the next free number."""
    number = max([head.last_version, *records.numbers(head.id)]) + 1
    this = write_id()
    for attempt in range(ATTEMPTS):
        version = build(number, this)
        if version.number != number or version.write_id != this:
            raise ValueError("build() must use the number and the write id that it is given")
        version = msgspec.structs.replace(version, epoch=head.epoch)
        try:
            records.put_version(head.id, version, Absent())
        except PreconditionError:
            # No gaps: what raises last_version relies on a record being there under all lower numbers.
            if number in records.numbers(head.id):
                number += 1
            else:
                pause(attempt)
            continue
        return version
    raise ConflictError(f"{ATTEMPTS} other versions were committed meanwhile", hint="try again")


def _settled(records: Records, head: Head, version: VersionRecord, also: Also | None) -> Head:
    """Return the head with which a version that was put counts for good; ``_VoidError`` if it does not count."""
    number = version.number
    if head.epoch != version.epoch and not _survived(records, head, version):
        raise _VoidError
    changed = raised(records, head, number, _below(records, head, number))
    return also(changed, number) if also else changed


def _survived(records: Records, head: Head, version: VersionRecord) -> bool:
    """Whether the fence that came after a version was put has seen it."""
    if version.number > head.last_version or not is_active(head, version.number):
        return False
    try:
        return records.version(head.id, version.number).write_id == version.write_id
    except NotFoundError:
        return False


def _below(records: Records, head: Head, number: int) -> list[int]:
    """Return the numbers between ``last_version`` and this one; usually there is none."""
    if number <= head.last_version + 1:
        return []
    return [other for other in records.numbers(head.id) if other < number]


def _tidy(records: Records, dataset_id: str, version: VersionRecord) -> None:
    """Take a record back whose dataset was removed altogether: without a head it would look like damage."""
    try:
        records.head(dataset_id)
    except NotFoundError:
        if records.version(dataset_id, version.number).write_id == version.write_id:
            records.backend.delete([layout.version_key(dataset_id, version.number)])


def no_dataset(name: str) -> NotFoundError:
    """The error for a name that leads nowhere."""
    return NotFoundError(f"there is no dataset or collection {name!r}", hint="see `osmo dataset list --all-users`")
