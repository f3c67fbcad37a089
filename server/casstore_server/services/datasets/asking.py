"""Questions about datasets: lists, what there is of one, queries.

Decided here and only here: which field of a reply comes from which field of a record, and that a bucket which can't be
reached is left out of a list of several with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casstore.dataset import Bucket
from casstore.dataset.exchange.areas import Area, Areas
from casstore.dataset.summary import DatasetInfo, DatasetSummary, MemberInfo, Version
from casstore.errors import CasstoreError, NotFoundError, UsageError
from casstore.model import DatasetType, VersionStatus
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
from casstore_server.services.context import Caller, Services
from casstore_server.services.datasets.access import Place, open_bucket, place_of
from casstore_server.services.rights import within

__all__ = ["MAX_COUNT", "Wanted", "info", "list_datasets", "location", "query"]

MAX_COUNT = 1000
"""Rows of a list, at most."""


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
    found: list[tuple[DatasetSummary, Place]] = []
    warnings: list[str] = []
    for name in wanted.buckets or within(services.config.last_good().buckets, caller, "dataset:Read"):
        try:
            bucket = open_bucket(services, caller, name)
            rows = bucket.list(
                name=wanted.name, users=wanted.users or None, count=_most(wanted), order="asc", type=wanted.type
            )
            found += [(row, place_of(services, bucket)) for row in rows]
        except CasstoreError as error:
            if wanted.buckets:
                raise
            if not _is_new(services, name, error):
                warnings.append(f"Bucket {name} was left out: {error.message}")
    kept = [(row, place) for row, place in found if _in_time(row, wanted)]
    kept.sort(key=lambda pair: (pair[0].last_created_at, pair[0].name))
    kept = kept[max(0, len(kept) - min(wanted.count, MAX_COUNT)) :]
    if wanted.descending:
        kept.reverse()
    return DatasetList(datasets=[_row(row, place) for row, place in kept]), warnings


def _most(wanted: Wanted) -> int | None:
    timed = wanted.latest_before or wanted.latest_after
    return None if timed else min(wanted.count, MAX_COUNT)


def _is_new(services: Services, name: str, error: CasstoreError) -> bool:
    """Whether this is a bucket that nothing was stored in yet."""
    return isinstance(error, NotFoundError) and not services.config.last_good().buckets[name].declared


def _in_time(row: DatasetSummary, wanted: Wanted) -> bool:
    moment = whole_seconds(row.last_created_at) or ""
    return (wanted.latest_before is None or moment <= wanted.latest_before) and (
        wanted.latest_after is None or moment >= wanted.latest_after
    )


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
) -> DatasetReply:
    """One dataset with its newest ``count`` versions (all for 0), or one collection, whatever the tag."""
    bucket = open_bucket(services, caller, bucket_name)
    place = place_of(services, bucket)
    chosen = None if is_collection(bucket, name) else tag or None
    found = bucket.info(
        name, tag=chosen, all_states=all_states, count=count or 10**9, order="desc" if descending else "asc"
    )
    reply = _dataset(found, place)
    if found.summary.type == DatasetType.DATASET and all_states and chosen is None:
        reply.versions = _with_pending(found, pending(bucket, name, place), place, count, descending=descending)
    if found.summary.type == DatasetType.DATASET and not reply.versions:
        raise NotFoundError(
            f"Dataset {name} in bucket {bucket_name} has no version that fits", hint="Ask with --all for any state."
        )
    return reply


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


def _with_pending(
    found: DatasetInfo, begun: list[VersionReply], place: Place, count: int, *, descending: bool
) -> list[VersionReply]:
    """The newest ``count`` of both, in order of time."""
    there = [version_reply(one.version, place, one.collections) for one in found.versions]
    both = sorted([*there, *begun], key=lambda one: (one.created_date, int(one.version)))
    both = both[max(0, len(both) - count) :] if count else both
    return both[::-1] if descending else both


def is_collection(bucket: Bucket, name: str) -> bool:
    """Whether this is the name of a collection. ``NotFoundError``."""
    return bucket.refs.find(name).type == DatasetType.COLLECTION


def query(services: Services, caller: Caller, bucket_name: str, command: str) -> QueryReply:
    """What fits a query."""
    if not command.strip():
        raise UsageError("No query was given")
    bucket = open_bucket(services, caller, bucket_name)
    place = place_of(services, bucket)
    try:
        found = bucket.query(command)
    except NotFoundError:
        raise UsageError(f"No Datasets Fit the Query in bucket {bucket_name}") from None
    if found.versions:
        return QueryReply(type=found.type, datasets=[version_reply(one, place, ()) for one in found.versions])
    return QueryReply(type=found.type, datasets=[_dataset(DatasetInfo(one, (), ()), place) for one in found.datasets])


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
