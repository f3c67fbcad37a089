"""Reading names of a bucket for the index.

Decided here and only here: what has to be read of a dataset that changed, how damage is told, and how much is read
before it is written down.

A head changes with everything that happens to its dataset, and no number below its ``last_version`` is without a record
that was put before (``casstore.repo.versions``). So when a head is another one, only the records are read whose numbers
came since, or whose state the head has changed. What the head does not tell is found by one question more: a version
whose writer died before it raised ``last_version`` has the next number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from casstore.dataset import Bucket
from casstore.errors import CasstoreError, IntegrityError, NotFoundError, StorageError
from casstore.model import DatasetType, Head, VersionRecord
from casstore.repo import layout
from casstore.repo.refs import Refs
from casstore.wire.dataset import whole_seconds
from casstore_server.db.index import Known, Reading, microseconds, same_state

__all__ = ["Read", "States", "Wanted", "read", "require_store"]

RECORDS = 1000
"""Version records that are read before they are written down."""

States = Mapping[str, Mapping[int, str]]
"""What is known of versions: see ``db.index.numbers_known``."""


def _unknown(_key: str) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A name to read. ``mark`` is its state in a listing, ``mark_of`` tells that of a head by the id of its dataset;
    they are empty where they are not known.
    """

    name: str
    before: Known | None
    mark: str = ""
    mark_of: Callable[[str], str] = _unknown


@dataclass(frozen=True, slots=True)
class Read:
    """What was found. ``partial``: there is more to be read. ``same``: nothing is new, but for states in listings."""

    reading: Reading
    partial: bool = False
    same: bool = False
    damage: CasstoreError | None = None


@dataclass(slots=True)
class _Dataset:
    """A dataset that is being read. ``numbers`` are those of records to read."""

    wanted: Wanted
    head: Head
    etag: str
    mark: str
    there: set[int] = field(default_factory=set)
    objects: int = 0
    last: int = -1
    numbers: list[int] = field(default_factory=list)
    damage: CasstoreError | None = None


def read(
    bucket: Bucket, wanted: Sequence[Wanted], states_of: Callable[[Sequence[str]], States], *, whole: bool = False
) -> list[Read]:
    """Read these names, side by side where the bucket is far away.

    ``states_of`` tells what is known of the versions of datasets; ``whole`` has all of their numbers listed. Damage
    is part of what is found; ``StorageError`` and the like when the bucket can't be read.
    """
    refs = bucket.refs
    found = refs.each(lambda one: _find(refs, one), wanted)
    if any(isinstance(one, Read) and one.damage is None for one in found):
        require_store(bucket)
    live = [one for one in found if isinstance(one, _Dataset)]
    states = states_of([one.head.id for one in live]) if live else {}
    refs.each(lambda one: _choose(bucket, one, states.get(one.head.id, {}), whole=whole), live)
    records = _records(refs, live)
    return [_done(one, records.get(one.head.id, {})) if isinstance(one, _Dataset) else one for one in found]


def require_store(bucket: Bucket) -> None:
    """Raise ``StorageError`` when the store is not there: a disk that is not mounted must not look like one that is
    empty.
    """
    try:
        bucket.store.backend.stat(layout.STORE)
    except NotFoundError:
        raise StorageError(f"there is no store at {bucket.store.url} any more") from None


def _find(refs: Refs, wanted: Wanted) -> _Dataset | Read:
    """The head that a name leads to, unless that is another one's, or none."""
    try:
        key = refs.resolve_name(wanted.name)
    except NotFoundError:
        return _free(wanted)
    except IntegrityError as error:
        return _free(wanted, damage=error)
    mark = wanted.mark_of(key)
    try:
        head, etag = _head(refs, wanted.name, key)
        _check_head(head)
    except NotFoundError:
        return _free(wanted, key)
    except IntegrityError as error:
        return _free(wanted, key, damage=error)
    if head.deleted or head.name != wanted.name:
        return _free(wanted, key, mark)
    return _Dataset(wanted, head, etag, mark if head.id == key else "")


def _head(refs: Refs, name: str, key: str) -> tuple[Head, str]:
    try:
        return refs.read_head(key)
    except NotFoundError:
        return refs.read_head(refs.find(name).id)  # which tells what is missing from what was deleted


def _free(wanted: Wanted, key: str | None = None, mark: str = "", damage: CasstoreError | None = None) -> Read:
    before, problem = wanted.before, None if damage is None else damage.message
    reading = Reading(
        name=wanted.name, before=before, mark=wanted.mark, key=key, head_mark=mark, last=-1, problem=problem
    )
    same = before is not None and (before.key, before.etag, before.problem) == (key, "", problem)
    return Read(reading, same=same, damage=damage)


def _choose(bucket: Bucket, one: _Dataset, state: Mapping[int, str], *, whole: bool) -> None:
    """Find out which versions there are, and which of them have to be read."""
    head, before = one.head, one.wanted.before
    if head.type == DatasetType.DATASET:
        try:
            if whole or not _settled(head, before) or before is None or _more(bucket, head):
                numbers = bucket.refs.numbers(head.id)
                one.last = max([head.last_version, *numbers[-1:]])
                one.there = set(numbers if one.last == head.last_version else bucket.refs.versions(head.id, head))
                one.objects = len(numbers)
            else:
                new = range(before.last + 1, head.last_version + 1)
                one.there = {*state, *new}
                one.objects, one.last = before.objects + len(new), head.last_version
        except IntegrityError as error:
            one.damage = error
    one.numbers = sorted((n for n in one.there if not same_state(head, n, state.get(n))), reverse=True)


def _settled(head: Head, before: Known | None) -> bool:
    """Whether what is known of a dataset is all that there was up to ``before.last``."""
    if before is None or before.key != head.id or before.problem is not None:
        return False
    return bool(before.etag) and before.last <= head.last_version


def _more(bucket: Bucket, head: Head) -> bool:
    try:
        bucket.store.backend.stat(layout.version_key(head.id, head.last_version + 1))
    except NotFoundError:
        return False
    return True


def _records(refs: Refs, datasets: Sequence[_Dataset]) -> dict[str, dict[int, VersionRecord]]:
    """The records of the versions to read, as many as are read at once; those left over are partial."""
    room, wanted = RECORDS, []
    for one in datasets:
        chosen, left = one.numbers[:room], one.numbers[room:]
        room -= len(chosen)
        one.there -= set(left)
        one.numbers = left
        wanted += [(one, number) for number in chosen]

    def look(item: tuple[_Dataset, int]) -> VersionRecord | CasstoreError:
        one, number = item
        try:
            record = refs.read_version(one.head.id, number)
            _check_record(one.head, record)
        except (NotFoundError, IntegrityError) as error:
            return error
        return record

    records: dict[str, dict[int, VersionRecord]] = {}
    for (one, number), found in zip(wanted, refs.each(look, wanted), strict=True):
        if isinstance(found, VersionRecord):
            records.setdefault(one.head.id, {})[number] = found
            continue
        one.there.discard(number)
        if isinstance(found, IntegrityError):
            one.damage = found
        else:
            one.objects -= 1  # collected as garbage just now
    return records


def _done(one: _Dataset, records: Mapping[int, VersionRecord]) -> Read:
    wanted, head, before, partial = one.wanted, one.head, one.wanted.before, bool(one.numbers)
    reading = Reading(
        name=wanted.name,
        before=before,
        mark="" if partial else wanted.mark,
        key=head.id,
        head_mark="" if partial else one.mark,
        etag="" if partial else one.etag,
        last=one.last,
        objects=one.objects,
        head=head,
        there=one.there,
        versions=records,
        problem=None if one.damage is None else one.damage.message,
    )
    same = before is not None and (before.key, before.etag, before.last, before.objects, before.problem) == (
        reading.key, reading.etag, reading.last, reading.objects, reading.problem)  # fmt: skip
    return Read(reading, partial, same=same and not records and not partial, damage=one.damage)


def _check_head(head: Head) -> None:
    """Refuse what could be stored but not told of."""
    try:
        microseconds(head.created_at)
        whole_seconds(head.created_at)
        msgspec.json.encode(head)
    except (ValueError, OverflowError) as error:
        raise IntegrityError(f"the head of {head.name!r} can't be right: {error}") from None


def _check_record(head: Head, record: VersionRecord) -> None:
    try:
        microseconds(record.created_at)
        whole_seconds(record.created_at)
        msgspec.json.encode(record)
    except (ValueError, OverflowError) as error:
        raise IntegrityError(f"version {record.number} of {head.name!r} can't be right: {error}") from None
