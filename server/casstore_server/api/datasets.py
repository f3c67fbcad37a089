"""The routes of datasets, thin over ``services.datasets``.

Decided here and only here: paths and parameters, which are OSMO 6.2's, and the form of the names in them.
"""

from __future__ import annotations

from types import NoneType
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from casstore.errors import UsageError
from casstore.model import DatasetType
from casstore.wire.dataset import (
    AttributeBody,
    AttributeReply,
    CollectBody,
    DatasetList,
    DatasetReply,
    DeleteReply,
    DownloadReply,
    LocationReply,
    QueryReply,
    RecollectBody,
    RecollectReply,
    UploadBody,
    UploadReply,
    whole_seconds,
)
from casstore.wire.protocol import from_iso, to_iso
from casstore_server.api.deps import Body, CallerDep, Names, Order, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.rules import STORAGE, rule
from casstore_server.services.datasets import asking, changing, exchange

router = APIRouter(prefix="/api/bucket")

_NAME = r"^[A-Za-z0-9_-]{1,200}$"
BucketName = Annotated[str, Path(pattern=_NAME)]
DatasetName = Annotated[str, Path(pattern=_NAME)]
Tag = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{0,200}$")]
Part = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{0,200}$")]
Count = Annotated[int, Query(ge=0, le=2**31)]
Moment = Annotated[str | None, Query(max_length=40)]
_MAX_QUERY = 32 << 10
_MAX_DESCRIPTION = 16 << 10
_T = TypeVar("_T", bound=msgspec.Struct)


def _moment(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return whole_seconds(to_iso(from_iso(text)))
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"'{text}' is beyond all calendars", hint="Write it as YYYY-MM-DD.") from None


def _decoded(body: bytes, kind: type[_T]) -> _T:
    """The body; without one all of its fields are as when they are left out."""
    return decode(body if body.strip() not in {b"", b"null"} else b"{}", kind)


@router.get("/list_dataset", **rule("dataset:Read", reply=DatasetList, errors=[404, *STORAGE]))
def list_datasets(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    name: Part = None,
    user: Names = [],  # noqa: B006  # FastAPI copies defaults
    buckets: Names = [],  # noqa: B006  # FastAPI copies defaults
    dataset_type: DatasetType | None = None,
    latest_before: Moment = None,
    latest_after: Moment = None,
    all_users: bool = False,
    order: Order = "ASC",
    count: Count = 20,
) -> Response:
    """The newest datasets and collections; without ``user`` and ``all_users`` the caller's own."""
    wanted = asking.Wanted(
        name=name or None,
        users=() if all_users else user or (caller.user,),
        buckets=buckets,
        type=dataset_type,
        latest_before=_moment(latest_before),
        latest_after=_moment(latest_after),
        count=count,
        descending=order.upper() == "DESC",
    )
    found, warnings = asking.list_datasets(services, caller, wanted)
    return reply(found, warnings=warnings)


@router.get("/{bucket}/location", **rule("dataset:Read", reply=LocationReply, errors=STORAGE))
def location(services: ServicesDep, caller: CallerDep, bucket: BucketName) -> Response:
    """Where a bucket is."""
    return reply(asking.location(services, caller, bucket))


@router.get("/{bucket}/query", **rule("dataset:Read", reply=QueryReply, errors=STORAGE))
def query(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    command: Annotated[str, Query(max_length=_MAX_QUERY)] = "",
) -> Response:
    """What fits a query."""
    found, warnings = asking.query(services, caller, bucket, command)
    return reply(found, warnings=warnings)


@router.post(
    "/{bucket}/dataset/{name}",
    **rule("dataset:Write", reply=UploadReply, body=UploadBody | None, errors=[409, *STORAGE]),
)
def upload(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    body: Body,
    tag: Tag = None,
    description: Annotated[str, Query(max_length=_MAX_DESCRIPTION)] = "",
    resume: bool = False,
    finish: bool = False,
    version_id: Annotated[str, Query(max_length=20)] = "",
    checksum: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Begin an upload, or with ``finish`` make a version of it."""
    given = _decoded(body, UploadBody)
    if finish:
        said = exchange.Finish(version_id=version_id, checksum=checksum, tag=tag or None, labels=given.labels)
        done, warnings = exchange.finish(services, caller, bucket, name, said)
        return reply(done, warnings=warnings)
    begun = exchange.start(
        services,
        caller,
        bucket,
        name,
        tag=tag or None,
        description=description,
        metadata=given.metadata,
        resume=resume,
    )
    return reply(begun)


@router.get("/{bucket}/dataset/{name}", **rule("dataset:Read", reply=DownloadReply, errors=STORAGE))
@router.post(
    "/{bucket}/dataset/{name}/migrate",
    operation_id="datasets_migrate",
    **rule("dataset:Read", reply=DownloadReply, errors=STORAGE),
)
def download(
    services: ServicesDep, caller: CallerDep, bucket: BucketName, name: DatasetName, tag: Tag = None
) -> Response:
    """Where a version, or each member of a collection, can be downloaded. Nothing has to be migrated."""
    found, warnings = exchange.download(services, caller, bucket, name, tag=tag or None)
    return reply(found, warnings=warnings)


@router.get("/{bucket}/dataset/{name}/info", **rule("dataset:Read", reply=DatasetReply, errors=STORAGE))
def info(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    tag: Tag = None,
    all_flag: bool = False,
    count: Count = 100,
    order: Order = "ASC",
) -> Response:
    """One dataset with its versions, or one collection."""
    descending = order.upper() == "DESC"
    found, warnings = asking.info(
        services, caller, bucket, name, tag=tag or None, all_states=all_flag, count=count, descending=descending
    )
    return reply(found, warnings=warnings)


@router.delete("/{bucket}/dataset/{name}", **rule("dataset:Delete", reply=DeleteReply, errors=[409, *STORAGE]))
def delete(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    tag: Tag = None,
    all_flag: bool = False,
    finish: bool = False,
) -> Response:
    """Delete one version, all of them, or a collection."""
    done = changing.delete(services, caller, bucket, name, tag=tag or None, everything=all_flag, finish=finish)
    return reply(done)


@router.post(
    "/{bucket}/dataset/{name}/attribute",
    **rule("dataset:Write", reply=AttributeReply, body=AttributeBody | None, errors=[409, *STORAGE]),
)
def change(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    body: Body,
    tag: Tag = None,
    new_name: Part = None,
    set_tag: Names = [],  # noqa: B006  # FastAPI copies defaults
    delete_tag: Names = [],  # noqa: B006  # FastAPI copies defaults
    delete_label: Names = [],  # noqa: B006  # FastAPI copies defaults
    delete_metadata: Names = [],  # noqa: B006  # FastAPI copies defaults
) -> Response:
    """Rename, tag, label, or edit metadata."""
    wanted = changing.Change(
        tag=tag or None,
        new_name=new_name or None,
        set_tags=set_tag,
        delete_tags=delete_tag,
        delete_labels=delete_label,
        delete_metadata=delete_metadata,
        body=_decoded(body, AttributeBody),
    )
    done, warnings = changing.change(services, caller, bucket, name, wanted)
    return reply(done, warnings=warnings)


@router.post(
    "/{bucket}/dataset/{name}/collect",
    **rule("dataset:Write", reply=NoneType, body=CollectBody, errors=[409, *STORAGE]),
)
def collect(services: ServicesDep, caller: CallerDep, bucket: BucketName, name: DatasetName, body: Body) -> Response:
    """Make a collection."""
    changing.collect(services, caller, bucket, name, decode(body, CollectBody))
    return reply(None)


@router.post(
    "/{bucket}/dataset/{name}/recollect",
    **rule("dataset:Write", reply=RecollectReply, body=RecollectBody, errors=[409, *STORAGE]),
)
def recollect(services: ServicesDep, caller: CallerDep, bucket: BucketName, name: DatasetName, body: Body) -> Response:
    """Change the members of a collection."""
    return reply(changing.recollect(services, caller, bucket, name, decode(body, RecollectBody)))
