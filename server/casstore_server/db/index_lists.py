"""Reading the index: lists of datasets, pages of versions.

Decided here and only here: what each filter means in a database, so that it means the same as in a bucket
(``casstore.dataset.catalog``), and that a page takes a number of statements that does not depend on its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import Boolean

from casstore.dataset.ref import LATEST
from casstore.dataset.summary import DatasetSummary, MemberInfo, Version
from casstore.model import DatasetType, VersionRecord, VersionState
from casstore_server.db import index_tables as tables

__all__ = [
    "Filter", "collections_of", "dataset_at", "datasets", "facts_of", "has", "members", "number_tagged", "some_tags",
    "summary", "tags_of", "version_page", "versions_of",
]  # fmt: skip

_SECOND = 1_000_000
_decode = msgspec.json.Decoder(VersionRecord).decode
_decode_state = msgspec.json.Decoder(VersionState).decode
_SAME = VersionState()
_AT_ONCE = 500


class has(GenericFunction[bool]):  # noqa: N801  # the name of a function of SQL
    """``has(whole, part)``: whether a text or bytes have others in them; no character means anything special."""

    type = Boolean()
    inherit_cache = True


@compiles(has)
def _has(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    whole, part = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(position({part} in {whole}) > 0)"


@compiles(has, "sqlite")
def _has_in_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    whole, part = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"(instr({whole}, {part}) > 0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which datasets and collections; None and empty do not restrict. Times in whole seconds since the epoch, which the
    time of the last version without its fraction must not be before, or after.
    """

    name: str | None = None
    users: Sequence[str] = ()
    type: DatasetType | None = None
    after: int | None = None
    before: int | None = None


_LISTED = [column for column in tables.dataset.c if column.name != "labels"]


def datasets(connection: Connection, buckets: Sequence[int], wanted: Filter, limit: int) -> list[Row[Any]]:
    """The newest datasets and collections of these buckets, the newest first."""
    table, user = tables.dataset, tables.dataset_user
    query = select(*_LISTED).where(table.c.bucket.in_(buckets), table.c.last_created.is_not(None))
    if wanted.name:
        query = query.where(has(table.c.name, wanted.name))
    if wanted.type is not None:
        query = query.where(table.c.type == wanted.type.value)
    if wanted.users:
        query = query.where(table.c.id.in_(select(user.c.dataset).where(user.c.user.in_(wanted.users))))
    if wanted.after is not None:
        query = query.where(table.c.last_created >= wanted.after * _SECOND)
    if wanted.before is not None:
        query = query.where(table.c.last_created < (wanted.before + 1) * _SECOND)
    return list(connection.execute(query.order_by(table.c.last_created.desc(), table.c.name.desc()).limit(limit)))


def dataset_at(connection: Connection, bucket: int, name: str) -> Row[Any] | None:
    """The dataset or collection of this name."""
    table = tables.dataset
    return connection.execute(select(table).where(table.c.bucket == bucket, table.c.name == name)).one_or_none()


def summary(row: Any, bucket: str, users: tuple[str, ...] = ()) -> DatasetSummary:
    """A row of the datasets as the bucket called ``bucket`` would tell it; ``size`` is not known here."""
    return DatasetSummary(
        name=row.name,
        id=row.key,
        bucket=bucket,
        type=DatasetType(row.type),
        created_at=row.created_at,
        created_by=row.created_by,
        labels=msgspec.json.decode(row.labels) if hasattr(row, "labels") else {},
        last_version=row.last_version,
        last_created_at=row.last_created_at or row.created_at,
        size=0,
        stored_size=row.stored_size,
        users=users,
    )


def version_page(
    connection: Connection, dataset: int, limit: int, *, ready: bool, number: int | None = None
) -> list[Row[Any]]:
    """The newest versions of a dataset, the newest first; ``number`` is that of a single one."""
    table = tables.version
    query = select(table).where(table.c.dataset == dataset)
    if ready:
        query = query.where(table.c.ready == 1)
    if number is not None:
        query = query.where(table.c.number == number)
    return list(connection.execute(query.order_by(table.c.number.desc()).limit(limit)))


def number_tagged(connection: Connection, dataset: int, tag: str) -> int | None:
    """The number of the version with this tag."""
    table = tables.dataset_tag
    query = select(table.c.number).where(table.c.dataset == dataset, table.c.tag == tag)
    return connection.execute(query).scalar_one_or_none()


def some_tags(connection: Connection, dataset: int, limit: int) -> list[str]:
    """The first tags of a dataset."""
    table = tables.dataset_tag
    query = select(table.c.tag).where(table.c.dataset == dataset).order_by(table.c.tag).limit(limit)
    return list(connection.execute(query).scalars())


def tags_of(connection: Connection, versions: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[str]]:
    """The tags of versions, each given by the row of its dataset and its number."""
    table = tables.dataset_tag
    found: dict[tuple[int, int], list[str]] = {}
    columns = (table.c.dataset, table.c.tag, table.c.number)
    for at in range(0, len(versions), _AT_ONCE):
        datasets, numbers = ({one[part] for one in versions[at : at + _AT_ONCE]} for part in (0, 1))
        query = select(*columns).where(table.c.dataset.in_(datasets), table.c.number.in_(numbers))
        for dataset, tag, number in connection.execute(query.order_by(table.c.tag)):
            found.setdefault((dataset, number), []).append(tag)
    return found


def collections_of(connection: Connection, bucket: int, key: str, first: int, last: int) -> dict[int, tuple[str, ...]]:
    """The names of the collections that contain versions from ``first`` to ``last`` of a dataset."""
    member, dataset = tables.collection_member, tables.dataset
    query = (
        select(member.c.number, dataset.c.name)
        .select_from(member.join(dataset, dataset.c.id == member.c.dataset))
        .where(member.c.bucket == bucket, member.c.member == key, member.c.number.between(first, last))
        .order_by(dataset.c.name)
    )
    found: dict[int, list[str]] = {}
    for number, name in connection.execute(query):
        found.setdefault(number, []).append(name)
    return {number: tuple(names) for number, names in found.items()}


def members(connection: Connection, bucket: int, collection: int) -> list[MemberInfo]:
    """The members of a collection, sorted by name; ``version`` is None where it is not ready, or not known here."""
    member, dataset, version = tables.collection_member, tables.dataset, tables.version
    joined = member.outerjoin(
        dataset, (dataset.c.bucket == bucket) & (dataset.c.key == member.c.member)
    ).outerjoin(
        version, (version.c.dataset == dataset.c.id) & (version.c.number == member.c.number) & (version.c.ready == 1)
    )  # fmt: skip
    query = (
        select(member.c.member, member.c.number, dataset.c.name, version.c.record, version.c.state)
        .select_from(joined)
        .where(member.c.dataset == collection)
    )
    found = []
    for key, number, name, record, state in connection.execute(query):
        one = None if record is None else Version(name, key, _decode(record), _state(state), ())
        found.append(MemberInfo(name or key, key, number, one))
    return sorted(found, key=lambda one: one.name)


def facts_of(connection: Connection, rows: Sequence[Any]) -> dict[int, tuple[str, int | None]]:
    """The id and the latest version of the datasets that rows of versions belong to."""
    table = tables.dataset
    found: dict[int, tuple[str, int | None]] = {}
    ids = list(dict.fromkeys(row.dataset for row in rows))
    for at in range(0, len(ids), _AT_ONCE):
        query = select(table.c.id, table.c.key, table.c.last_version).where(table.c.id.in_(ids[at : at + _AT_ONCE]))
        found.update((row.id, (row.key, row.last_version)) for row in connection.execute(query))
    return found


def versions_of(connection: Connection, rows: Sequence[Any]) -> list[Version]:
    """Rows of versions as a bucket tells them, with their tags."""
    facts = facts_of(connection, rows)
    tags = tags_of(connection, [(row.dataset, row.number) for row in rows])
    found = []
    for row in rows:
        key, latest = facts[row.dataset]
        names = tags.get((row.dataset, row.number), [])
        if row.number == latest:
            names.append(LATEST)
        found.append(Version(row.name, key, _decode(row.record), _state(row.state), tuple(sorted(names))))
    return found


def _state(text: str) -> VersionState:
    return _decode_state(text) if text else _SAME
