"""Questions about datasets: lists, what there is of one, queries.

Decided here and only here: which field of a reply comes from which field of a record, and that a bucket which can't be
reached is left out of a list of several with a warning, as long as nothing is known of it. Lists, pages and queries are
of the index; whether a dataset that is asked for by name is another one by now is asked of its bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from casstore.dataset import Bucket
from casstore.dataset.exchange.areas import Area, Areas
from casstore.dataset.query_parser import parse
from casstore.dataset.ref import LATEST, version_number
from casstore.dataset.summary import DatasetInfo, DatasetSummary, MemberInfo, Version, VersionInfo
from casstore.errors import CasstoreError, NotFoundError, UsageError
from casstore.model import DatasetType, VersionStatus
from casstore.repo.versions import no_dataset
from casstore.wire.dataset import (
    CollectionMember,
    DatasetList,
    DatasetReply,
    DatasetRow,
    LocationReply,
    QueryReply,
    VersionReply,
    whole_seconds,
)
from casstore_server.db import index_lists, index_query
from casstore_server.db.index import microseconds
from casstore_server.services.context import Caller, Services
from casstore_server.services.datasets.access import Place, open_bucket, place_at, place_of
from casstore_server.services.index.follower import Fresh
from casstore_server.services.rights import within

__all__ = ["MAX_COUNT", "MAX_FOUND", "Wanted", "info", "list_datasets", "location", "query"]

MAX_COUNT = 1000
"""Rows of a list, at most."""
MAX_FOUND = 10_000
"""Rows of the answer to a query, at most."""
_ALL = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a list is to hold. ``users`` empty: everybody's. Times in whole seconds as replies have them."""

    name: str | None
    users: Sequence[str]
    buckets: Sequence[str]
    type: DatasetType | None
    latest_before: str | None
    latest_after: str | None
    count: int
    descending: bool


def location(services: Services, caller: Caller, name: str) -> LocationReply:
    """Where a bucket is. ``UsageError`` for one that only this machine reaches."""
    place = place_of(services, open_bucket(services, caller, name))
    place.require_remote(name)
    return LocationReply(path=place.url, region=place.region)


def list_datasets(services: Services, caller: Caller, wanted: Wanted) -> tuple[DatasetList, list[str]]:
    """The newest datasets and collections that fit, in order of time, with what was left out and why."""
    buckets: list[Fresh] = []
    warnings: list[str] = []
    for name in dict.fromkeys(wanted.buckets) or within(services.config.last_good().buckets, caller, "dataset:Read"):
        caller.require("dataset:Read", bucket=name)
        try:
            buckets.append(services.index.fresh(name))
        except CasstoreError as error:
            if wanted.buckets:
                raise
            if not _is_new(services, name, error):
                warnings.append(f"Bucket {name} was left out: {error.message}")
    warnings += [bucket.warning for bucket in buckets if bucket.warning]
    limit = min(wanted.count, MAX_COUNT)
    chosen = index_lists.Filter(
        name=wanted.name,
        users=wanted.users,
        type=wanted.type,
        after=_seconds(wanted.latest_after),
        before=_seconds(wanted.latest_before),
    )
    with services.database.reading() as connection:
        rows = index_lists.datasets(connection, sorted({bucket.id for bucket in buckets}), chosen, limit)
    places = [(bucket, place_at(services, bucket.url)) for bucket in buckets]
    found = [
        _row(index_lists.summary(row, bucket.name), place)
        for row in rows
        for bucket, place in places
        if bucket.id == row.bucket  # several when a bucket has several names
    ][:limit]
    return DatasetList(datasets=found if wanted.descending else found[::-1]), warnings


def _seconds(moment: str | None) -> int | None:
    return None if moment is None else microseconds(f"{moment}Z") // 1_000_000


def _is_new(services: Services, name: str, error: CasstoreError) -> bool:
    """Whether this is a bucket that nothing was stored in yet."""
    return isinstance(error, NotFoundError) and not services.config.last_good().buckets[name].declared


def info(
    services: Services,
    caller: Caller,
    bucket_name: str,
    name: str,
    *,
    tag: str | None,
    all_states: bool,
    count: int,
    descending: bool,
) -> tuple[DatasetReply, list[str]]:
    """One dataset with its newest ``count`` versions (all for 0), or one collection, whatever the tag; also what is
    wrong with that.
    """
    caller.require("dataset:Read", bucket=bucket_name)
    fresh = services.index.current(bucket_name, name, whole=all_states)
    warnings = [fresh.warning] if fresh.warning else []
    place = place_at(services, fresh.url)
    with services.database.reading() as connection:
        row = index_lists.dataset_at(connection, fresh.id, name)
        if row is not None and row.type == DatasetType.DATASET.value:
            found = _versions(connection, fresh, row, tag=tag, all_states=all_states, count=count)
    if row is None:
        real = no_dataset(name) if warnings else open_bucket(services, caller, bucket_name).refs.find(name)
        if isinstance(real, CasstoreError) or real.name == name:
            raise no_dataset(name)
        # The name is one of two of an unfinished rename.
        return info(
            services, caller, bucket_name, real.name,
            tag=tag, all_states=all_states, count=count, descending=descending,
        )  # fmt: skip
    if row.type == DatasetType.COLLECTION.value:
        return _collection(services, caller, fresh, row), warnings
    reply = _dataset(found, place)
    if all_states and not tag and not warnings:
        begun = pending(open_bucket(services, caller, bucket_name), name, place)
        reply.versions = _with_pending(found, begun, place, count)
    if descending:
        reply.versions = reply.versions[::-1]
    if not reply.versions:
        raise NotFoundError(
            f"Dataset {name} in bucket {bucket_name} has no version that fits", hint="Ask with --all for any state."
        )
    return reply, warnings


def _versions(
    connection: Connection, fresh: Fresh, row: Any, *, tag: str | None, all_states: bool, count: int
) -> DatasetInfo:
    """A dataset with the newest of its versions that fit, ascending."""
    number = _number(connection, row, tag) if tag else None
    ready = not all_states and number is None
    rows = index_lists.version_page(connection, row.id, count or _ALL, ready=ready, number=number)[::-1]
    if number is not None and not rows:
        raise _no_tag(connection, row, tag or "")
    containing = (
        index_lists.collections_of(connection, fresh.id, row.key, rows[0].number, rows[-1].number) if rows else {}
    )
    shown = index_lists.versions_of(connection, rows)
    infos = tuple(VersionInfo(one, containing.get(one.number, ())) for one in shown)
    return DatasetInfo(index_lists.summary(row, fresh.name), infos, ())


def _number(connection: Connection, row: Any, tag: str) -> int:
    """The number that a tag means, as ``Catalog.number_of``."""
    if tag == LATEST:
        if row.last_version is None:
            raise NotFoundError(f"dataset {row.name!r} has no version that is ready")
        return int(row.last_version)
    number = version_number(tag)
    if number is None:
        number = index_lists.number_tagged(connection, row.id, tag)
    if number is None:
        raise _no_tag(connection, row, tag)
    return number


def _no_tag(connection: Connection, row: Any, tag: str) -> NotFoundError:
    known = index_lists.some_tags(connection, row.id, 10)
    if row.last_version is not None:
        known.append(LATEST)
    return NotFoundError(
        f"dataset {row.name!r} has no version or tag {tag!r}",
        hint=f"its tags are {', '.join(known)}" if known else "no version of it is ready",
    )


def _collection(services: Services, caller: Caller, fresh: Fresh, row: Any) -> DatasetReply:
    """A collection; of members that the index does not have as they were collected the bucket itself is asked."""
    with services.database.reading() as connection:
        members = index_lists.members(connection, fresh.id, row.id)
    place = place_at(services, fresh.url)
    if not fresh.warning and any(member.version is None for member in members):
        return _dataset(open_bucket(services, caller, fresh.name).info(row.name), place)
    return _dataset(DatasetInfo(index_lists.summary(row, fresh.name), (), tuple(members)), place)


def pending(bucket: Bucket, name: str, place: Place) -> list[VersionReply]:
    """The uploads to a dataset that are under way, as versions."""
    return [_pending(area, place) for area in Areas(bucket.store.backend).uploads(name)]


def _pending(area: Area, place: Place) -> VersionReply:
    record, uri = area.record, f"{place.url}/{area.manifest}"
    started = whole_seconds(record.started_at) or ""
    return VersionReply(
        name=record.dataset,
        version=str(record.number),
        status=VersionStatus.PENDING.value,
        created_by=record.user,
        created_date=started,
        last_used=started,
        size=0,
        checksum="",
        location=place.link(uri),
        uri=uri,
        metadata=record.metadata,
        tags=[],
        collections=[],
    )


def _with_pending(found: DatasetInfo, begun: list[VersionReply], place: Place, count: int) -> list[VersionReply]:
    """The newest ``count`` of both, in order of time."""
    there = [version_reply(one.version, place, one.collections) for one in found.versions]
    both = sorted([*there, *begun], key=lambda one: (one.created_date, int(one.version)))
    return both[max(0, len(both) - count) :] if count else both


def is_collection(bucket: Bucket, name: str) -> bool:
    """Whether this is the name of a collection. ``NotFoundError``."""
    return bucket.refs.find(name).type == DatasetType.COLLECTION


def query(services: Services, caller: Caller, bucket_name: str, command: str) -> tuple[QueryReply, list[str]]:
    """What fits a query, and what is wrong with that."""
    if not command.strip():
        raise UsageError("No query was given")
    caller.require("dataset:Read", bucket=bucket_name)
    parsed = parse(command)
    fresh = services.index.fresh(bucket_name)
    warnings = [fresh.warning] if fresh.warning else []
    place = place_at(services, fresh.url)
    with services.database.reading() as connection, index_query.limited(connection):
        rows = index_query.run(connection, parsed, fresh.id, MAX_FOUND + 1)
        if len(rows) > MAX_FOUND:
            warnings.append(f"More than {MAX_FOUND} fit the query; only the first of them are shown")
            del rows[MAX_FOUND:]
        versions = index_lists.versions_of(connection, rows) if parsed.versions else []
    if not rows:
        raise UsageError(f"No Datasets Fit the Query in bucket {bucket_name}")
    if parsed.versions:
        return QueryReply(type="VERSION", datasets=[version_reply(one, place, ()) for one in versions]), warnings
    infos = (DatasetInfo(index_lists.summary(row, bucket_name), (), ()) for row in rows)
    return QueryReply(type="DATASET", datasets=[_dataset(one, place) for one in infos]), warnings


def version_reply(version: Version, place: Place, collections: Sequence[str]) -> VersionReply:
    """One version. Its checksum is OSMO's own where OSMO's client uploaded it, else the store's."""
    record, uri = version.record, place.manifest(version.record.manifest)
    adopted = record.provenance.get("adopted")
    osmo = adopted.get("checksum") if isinstance(adopted, dict) else None
    created = whole_seconds(record.created_at) or ""
    return VersionReply(
        name=version.dataset,
        version=str(version.number),
        status=version.status.value,
        created_by=record.created_by,
        created_date=created,
        last_used=whole_seconds(version.state.last_used) or created,
        size=record.totals.size,
        checksum=osmo if isinstance(osmo, str) and osmo else record.checksum,
        location=place.link(uri),
        uri=uri,
        metadata=version.metadata,
        tags=list(version.tags),
        collections=list(collections),
    )


def _dataset(found: DatasetInfo, place: Place) -> DatasetReply:
    summary = found.summary
    single = summary.type == DatasetType.DATASET
    return DatasetReply(
        name=summary.name,
        id=summary.id,
        bucket=summary.bucket,
        created_by=summary.created_by,
        created_date=whole_seconds(summary.created_at),
        hash_location=place.folder(summary.id) if single else None,
        hash_location_size=summary.stored_size if single else None,
        labels=summary.labels,
        type=summary.type.value,
        versions=[version_reply(one.version, place, one.collections) for one in found.versions]
        if single
        else [_member(one, place) for one in found.members],
    )


def _member(member: MemberInfo, place: Place) -> CollectionMember:
    record = None if member.version is None else member.version.record
    uri = "" if record is None else place.manifest(record.manifest)
    return CollectionMember(
        name=member.name,
        version=str(member.number),
        location=place.link(uri) if uri else "",
        uri=uri,
        hash_location=place.folder(member.dataset_id),
        size=0 if record is None else record.totals.size,
    )


def _row(row: DatasetSummary, place: Place) -> DatasetRow:
    single = row.type == DatasetType.DATASET
    return DatasetRow(
        name=row.name,
        id=row.id,
        bucket=row.bucket,
        create_time=whole_seconds(row.created_at) or "",
        last_created=whole_seconds(row.last_created_at) if single else None,
        hash_location=place.folder(row.id) if single else None,
        hash_location_size=row.stored_size if single else None,
        version_id=None if row.last_version is None else str(row.last_version),
        type=row.type.value,
    )
