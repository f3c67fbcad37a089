"""Writing the index: what was read in a bucket takes the place of what was known before.

Decided here and only here: that a reading counts only if nothing else was written about its name since before it was
read, so that an older one never replaces a newer one, whoever reads; and that what belongs together changes at once.
What is written is cut and cleaned to what every database takes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Table, delete, func, insert, select, update

from casstore.model import DatasetType, Head, VersionRecord, VersionState, VersionStatus
from casstore_server.db import attributes
from casstore_server.db import index_tables as tables
from casstore_server.db.transactions import upsert

__all__ = [
    "Known", "Reading", "applied", "begin_round", "bucket_at", "clear", "end_round", "forget", "forget_unseen",
    "known", "looked", "microseconds", "names_of", "numbers_known", "problems", "same_state", "since_epoch",
]  # fmt: skip

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MOST_STORED = 1 << 53
_LARGEST = (1 << 63) - 1
_LONGEST_PROBLEM = 500
_AT_ONCE = 500


class Known(msgspec.Struct, frozen=True):
    """What is known of a name: see ``index_tables.name``."""

    mark: str
    key: str | None
    head_mark: str
    etag: str
    last: int
    objects: int
    generation: int
    round: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was found at a name of a bucket; ``before`` is what was known of it before that.

    ``head`` is None where there is no dataset or collection of this name. ``there`` are the numbers of all its
    versions, ``versions`` the records of those that are not known in their present state. The others are as in
    ``Known``.
    """

    name: str
    before: Known | None
    mark: str = ""
    key: str | None = None
    head_mark: str = ""
    etag: str = ""
    last: int = 0
    objects: int = 0
    head: Head | None = None
    there: Collection[int] = ()
    versions: Mapping[int, VersionRecord] = field(default_factory=dict)
    problem: str | None = None


def microseconds(moment: str) -> int:
    """A time of a record, in microseconds since the epoch. ``ValueError``."""
    return since_epoch(datetime.fromisoformat(moment))


def since_epoch(moment: datetime) -> int:
    """As ``microseconds``, of a moment that says its zone."""
    return (moment - _EPOCH) // _MICROSECOND


# ---- buckets


def bucket_at(connection: Connection, address: str) -> Row[Any] | None:
    """What is known of the bucket that is declared with this address."""
    return connection.execute(select(tables.bucket).where(tables.bucket.c.address == address)).one_or_none()


def clear(connection: Connection, address: str, url: str, store: str) -> int:
    """Know of a bucket, and nothing of what was in another one at this address; its id."""
    table = tables.bucket
    fresh = {"url": url, "store": store, "looked_at": None, "cost": 0.0, "round": 1, "round_at": None}
    made = upsert(connection, table).values(address=address, **fresh).on_conflict_do_nothing()
    connection.execute(made)
    found = connection.execute(select(table).where(table.c.address == address).with_for_update()).one()
    if found.store != store:
        for other in (tables.name, tables.dataset, tables.text):
            connection.execute(delete(other).where(other.c.bucket == found.id))
        connection.execute(update(table).where(table.c.id == found.id).values(**fresh))
    return int(found.id)


def looked(connection: Connection, bucket: int, at: float, cost: float) -> None:
    """Note that all that had happened in a bucket before ``at`` is known."""
    table = tables.bucket
    later = (table.c.looked_at.is_(None)) | (table.c.looked_at < at)
    connection.execute(update(table).where(table.c.id == bucket, later).values(looked_at=at, cost=cost))


def begin_round(connection: Connection, bucket: int, now: float, *, anew: bool) -> Row[Any]:
    """Begin a rebuild, or unless ``anew`` go on with the one that is unfinished; the bucket as it is then."""
    table = tables.bucket
    found = connection.execute(select(table).where(table.c.id == bucket).with_for_update()).one()
    if anew or found.round_at is None:
        changed = {"round": found.round + 1, "round_at": now}
        connection.execute(update(table).where(table.c.id == bucket).values(**changed))
    return connection.execute(select(table).where(table.c.id == bucket)).one()


def end_round(connection: Connection, bucket: int) -> None:
    """Note that a rebuild is done, and forget texts that nothing has."""
    table = tables.text
    used = (
        select(other.c.key).where(other.c.bucket == bucket, other.c.key == table.c.key).exists()
        for other in (tables.dataset_label, tables.version_metadata)
    )
    connection.execute(delete(table).where(table.c.bucket == bucket, *(~one for one in used)))
    connection.execute(update(tables.bucket).where(tables.bucket.c.id == bucket).values(round_at=None))


# ---- names


def known(connection: Connection, bucket: int, names: Sequence[str] | None = None) -> dict[str, Known]:
    """What is known of these names, or of all in a bucket."""
    table = tables.name
    columns = [table.c.name, *(table.c[column] for column in Known.__struct_fields__)]
    query = select(*columns).where(table.c.bucket == bucket)
    if names is not None:
        query = query.where(table.c.name.in_(names))
    return {row[0]: Known(*row[1:]) for row in connection.execute(query)}


def names_of(connection: Connection, bucket: int, keys: Sequence[str]) -> list[str]:
    """The names that are known to lead to these datasets."""
    table = tables.name
    query = select(table.c.name).where(table.c.bucket == bucket, table.c.key.in_(keys))
    return list(connection.execute(query).scalars())


def numbers_known(connection: Connection, bucket: int, keys: Sequence[str]) -> dict[str, dict[int, str]]:
    """The versions that are known of these datasets, by id in the bucket and number, each with its ``VersionState`` as
    it was written: see ``same_state``.
    """
    dataset, version = tables.dataset, tables.version
    query = (
        select(dataset.c.key, version.c.number, version.c.state)
        .select_from(dataset.join(version, version.c.dataset == dataset.c.id))
        .where(dataset.c.bucket == bucket, dataset.c.key.in_(keys))
    )
    found: dict[str, dict[int, str]] = {}
    for key, number, state in connection.execute(query):
        found.setdefault(key, {})[number] = state
    return found


def problems(connection: Connection, buckets: Sequence[int]) -> dict[int, int]:
    """How many names of each bucket can't be read whole."""
    table = tables.name
    query = select(table.c.bucket, func.count()).where(table.c.bucket.in_(buckets), table.c.problem.is_not(None))
    return {bucket: int(count) for bucket, count in connection.execute(query.group_by(table.c.bucket))}


def forget(connection: Connection, bucket: int, name: str) -> None:
    """Have a name looked at again by whoever looks next."""
    table = tables.name
    changed = {"mark": "", "head_mark": "", "etag": "", "generation": table.c.generation + 1}
    connection.execute(update(table).where(table.c.bucket == bucket, table.c.name == name).values(**changed))


def forget_unseen(connection: Connection, bucket: int, names: Iterable[str]) -> None:
    """Forget names that are in the bucket no more."""
    for name in names:
        for table in (tables.dataset, tables.name):
            connection.execute(delete(table).where(table.c.bucket == bucket, table.c.name == name))


# ---- readings


def same_state(head: Head, number: int, state: str | None) -> bool:
    """Whether a version is known as its dataset's head has it now."""
    return state == _state(head, number)


def _state(head: Head, number: int) -> str:
    found = head.versions.get(number)
    return "" if found is None else msgspec.json.encode(found).decode()


def applied(connection: Connection, bucket: int, reading: Reading, round_: int, *, same: bool = False) -> bool:
    """Make a reading what is known; False when something else was written about its name since ``before``.

    ``same``: only states in listings are new.
    """
    if not _taken(connection, bucket, reading, round_):
        return False
    if same:
        return True
    if reading.head is None:
        dataset = tables.dataset
        connection.execute(delete(dataset).where(dataset.c.bucket == bucket, dataset.c.name == reading.name))
        return True
    if _write(connection, bucket, reading, reading.head):
        return True
    forget(connection, bucket, reading.name)
    return False


def _taken(connection: Connection, bucket: int, reading: Reading, round_: int) -> bool:
    table, before = tables.name, reading.before
    problem = None if reading.problem is None else _clean(reading.problem, _LONGEST_PROBLEM)
    values = {
        "mark": reading.mark,
        "key": reading.key,
        "head_mark": reading.head_mark,
        "etag": reading.etag,
        "last": reading.last,
        "objects": reading.objects,
        "round": round_,
        "problem": problem,
    }
    if before is None:
        made = upsert(connection, table).values(bucket=bucket, name=reading.name, generation=1, **values)
        return connection.execute(made.on_conflict_do_nothing().returning(table.c.name)).first() is not None
    same = (table.c.bucket == bucket, table.c.name == reading.name, table.c.generation == before.generation)
    changed = update(table).where(*same).values(generation=before.generation + 1, **values)
    return connection.execute(changed).rowcount == 1


def _write(connection: Connection, bucket: int, reading: Reading, head: Head) -> bool:
    """Write a dataset down; False when versions are gone that were known when it was read, as a rename can do that."""
    table = tables.dataset
    named = (table.c.bucket == bucket, table.c.name == head.name)
    connection.execute(delete(table).where(*named, table.c.key != head.id))
    old = connection.execute(select(table).where(table.c.bucket == bucket, table.c.key == head.id)).one_or_none()
    columns = {
        "name": head.name,
        "created": microseconds(head.created_at),
        "created_at": head.created_at,
        "created_by": _user(head.created_by),
        "labels": msgspec.json.encode(head.labels).decode(),
    }
    if old is None:
        fixed = {"bucket": bucket, "key": head.id, "type": head.type.value, "stored_size": 0}
        made = insert(table).values(**fixed, **columns).returning(table.c.id)
        row_id, stored = int(connection.execute(made).scalar_one()), 0
    else:
        row_id, stored = int(old.id), int(old.stored_size)
        connection.execute(update(table).where(table.c.id == row_id).values(**columns))
        if old.name != head.name:
            _renamed(connection, bucket, row_id, old.name, head.name)
    if old is None or old.labels != columns["labels"]:
        _write_attributes(connection, bucket, tables.dataset_label, "dataset", {row_id: head.labels})
    _replace(connection, tables.dataset_tag, row_id, ({"tag": tag, "number": n} for tag, n in head.tags.items()))
    members = ({"member": one.dataset_id, "bucket": bucket, "number": one.version} for one in head.members)
    _replace(connection, tables.collection_member, row_id, members)
    added, whole = _write_versions(connection, bucket, row_id, reading, head)
    _sum_up(connection, row_id, head, stored + added)
    return whole


def _renamed(connection: Connection, bucket: int, row_id: int, old: str, new: str) -> None:
    version = tables.version
    connection.execute(update(version).where(version.c.dataset == row_id).values(name=new))
    forget(connection, bucket, old)  # whoever was wrong about which of the two is right: it is read again


def _replace(connection: Connection, table: Table, row_id: int, rows: Iterable[dict[str, Any]]) -> None:
    """Have these rows, and no others, go with a dataset."""
    columns = [column for column in table.c if column.name != "dataset"]
    wanted = {tuple(row[column.name] for column in columns): {"dataset": row_id, **row} for row in rows}
    mine: ColumnElement[bool] = table.c.dataset == row_id
    if {tuple(row) for row in connection.execute(select(*columns).where(mine))} == wanted.keys():
        return
    connection.execute(delete(table).where(mine))
    if wanted:
        connection.execute(insert(table), list(wanted.values()))


# ---- versions


def _write_versions(connection: Connection, bucket: int, row_id: int, reading: Reading, head: Head) -> tuple[int, bool]:
    """Have the versions that a reading found: by how much the bytes that they store have changed, and whether all of
    them are known.
    """
    table = tables.version
    mine: ColumnElement[bool] = table.c.dataset == row_id
    there = set(reading.there)
    rows = connection.execute(select(table.c.number, table.c.stored).where(mine))
    before = {row.number: int(row.stored) for row in rows}
    gone = sorted((before.keys() - there) | (before.keys() & reading.versions.keys()))
    for part in _parts(gone):
        connection.execute(delete(table).where(mine, table.c.number.in_(part)))
    fixed = {"bucket": bucket, "dataset": row_id, "name": head.name}
    made: list[dict[str, Any]] = [
        fixed | _version_row(head, record) for record in reading.versions.values() if record.number in there
    ]
    metadata = {record.number: _metadata(head, record) for record in reading.versions.values()}
    for rows_ in _parts(made):
        found = connection.execute(insert(table).returning(table.c.id, table.c.number), rows_)
        trees = {int(row.id): metadata[row.number] for row in found}
        _write_attributes(connection, bucket, tables.version_metadata, "version", trees)
    added: int = sum(row["stored"] for row in made)
    whole = there <= before.keys() | reading.versions.keys()
    return added - sum(before[number] for number in gone), whole


def _metadata(head: Head, record: VersionRecord) -> dict[str, Any]:
    state = head.versions.get(record.number)
    return record.metadata if state is None or state.metadata is None else state.metadata


def _version_row(head: Head, record: VersionRecord) -> dict[str, Any]:
    adopted = record.provenance.get("adopted")
    shown = {"adopted": {"checksum": adopted.get("checksum")}} if isinstance(adopted, dict) else {}
    kept = msgspec.structs.replace(record, metadata=_metadata(head, record), provenance=shown)
    state = head.versions.get(record.number, VersionState())
    return {
        "number": record.number,
        "ready": int(state.status == VersionStatus.READY),
        "created": microseconds(record.created_at),
        "created_by": _user(record.created_by),
        "stored": min(record.new_bytes, _MOST_STORED),
        "state": _state(head, record.number),
        "record": msgspec.json.encode(kept).decode(),
    }


def _sum_up(connection: Connection, row_id: int, head: Head, stored: int) -> None:
    """What a list says of the dataset, and whose it is."""
    version, user = tables.version, tables.dataset_user
    ready = (version.c.dataset == row_id, version.c.ready == 1)
    latest = connection.execute(
        select(version.c.number, version.c.created, version.c.record)
        .where(*ready)
        .order_by(version.c.number.desc())
        .limit(1)
    ).one_or_none()
    columns: dict[str, Any] = {"last_version": None, "last_created": None, "last_created_at": None}
    if latest is not None:
        record = msgspec.json.decode(latest.record, type=VersionRecord)
        columns = dict(zip(columns, (latest.number, latest.created, record.created_at), strict=True))
    elif head.type == DatasetType.COLLECTION:
        columns = dict(zip(columns, (None, microseconds(head.created_at), head.created_at), strict=True))
    columns["stored_size"] = min(max(stored, 0), _LARGEST)
    connection.execute(update(tables.dataset).where(tables.dataset.c.id == row_id).values(**columns))
    uploaders = set(connection.execute(select(version.c.created_by).where(*ready).distinct()).scalars())
    names = uploaders or {_user(head.created_by)}
    _replace(connection, user, row_id, ({"user": one} for one in sorted(names)))


def _write_attributes(
    connection: Connection, bucket: int, table: Table, owner: str, trees: Mapping[int, dict[str, Any]]
) -> None:
    """Have the keys of these trees, and no others, go with their owners."""
    connection.execute(delete(table).where(table.c[owner].in_(list(trees))))
    rows: list[dict[str, Any]] = []
    texts: dict[bytes, bytes] = {}
    for owner_id, tree in trees.items():
        keys = dict(attributes.rows(tree))
        rows += [{owner: owner_id, "key": key, "bucket": bucket} for key in keys]
        texts.update((key, text) for key, text in keys.items() if text is not None)
    if rows:
        connection.execute(insert(table), rows)
    if texts:
        made = upsert(connection, tables.text).on_conflict_do_nothing()
        connection.execute(made, [{"bucket": bucket, "key": key, "text": text} for key, text in sorted(texts.items())])


def _parts(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))


def _user(name: str) -> str:
    return _clean(name, tables.LONGEST)


def _clean(text: str, most: int) -> str:
    """A text that every database takes."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:most]
