"""The routes at which data moves between clients and buckets, thin over ``services.v1.transfer``.

Decided here and only here: paths, headers and statuses, and how much of a body is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from casstore.backend.base import Absent
from casstore.errors import AccessError, UsageError
from casstore.wire.v1 import (
    MAX_LISTED,
    BucketInfo,
    DeleteBody,
    IndexBody,
    ObjectReply,
    ObjectsReply,
    PackBody,
    UrlsBody,
    UrlsReply,
    Written,
    etag_header,
)
from casstore_server.api.authenticate import no_signature
from casstore_server.api.deps import Body, CallerDep, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.ranges import Unsatisfiable, span_of, unsatisfiable
from casstore_server.api.rules import rule
from casstore_server.services.context import Services
from casstore_server.services.v1.transfer import Blob, condition_of, open_transfer

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/bucket/{bucket}")

PIECE = 4 << 20
"""Bytes of an object that are in memory for a reply."""
BucketName = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
Key = Annotated[str, Path(min_length=1, max_length=512)]
Condition = Annotated[str | None, Header(max_length=300)]
_OCTETS = "application/octet-stream"


@router.get("", **rule("dataset:Read", reply=BucketInfo, errors=(404,)))
def about(services: ServicesDep, caller: CallerDep, bucket: BucketName) -> Response:
    """Who the caller is in this bucket, and what they may do."""
    return reply(open_transfer(services, caller, bucket).about())


@router.get("/object/{key:path}", **rule("dataset:Read", reply=bytes, media=_OCTETS, errors=(404,)))
def read_object(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    key: Key,
    limit: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """A record of the store, or the root of a manifest: whatever is small."""
    found = open_transfer(services, caller, bucket).get(key, limit)
    return Response(found.data, media_type=_OCTETS, headers={"ETag": etag_header(found.etag), **_SAFE})


@router.put("/object/{key:path}", **rule("dataset:Read", reply=Written, body=bytes, errors=(404, 409)))
def write_object(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    key: Key,
    body: Body,
    if_match: Condition = None,
    if_none_match: Condition = None,
) -> Response:
    """Change a record of the store, under a condition, if it may be changed so; or store the root of a manifest."""
    condition = condition_of(if_match, if_none_match)
    return reply(open_transfer(services, caller, bucket).put(key, body, condition))


@router.get("/stat/{key:path}", **rule("dataset:Read", reply=ObjectReply, errors=(404,)))
def stat_object(services: ServicesDep, caller: CallerDep, bucket: BucketName, key: Key) -> Response:
    """Size and time of an object of the store."""
    return reply(open_transfer(services, caller, bucket).stat(key))


@router.get("/objects", **rule("dataset:Read", reply=ObjectsReply, errors=(404,)))
def list_objects(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    prefix: Annotated[str, Query(max_length=512)] = "",
    after: Annotated[str, Query(max_length=512)] = "",
    count: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
) -> Response:
    """Objects of the store, in the order of their keys."""
    return reply(open_transfer(services, caller, bucket).listed(prefix, after, count))


@router.post("/objects/delete", **rule("dataset:Read", reply=NoneType, body=DeleteBody, errors=(404,)))
def delete_objects(services: ServicesDep, caller: CallerDep, bucket: BucketName, body: Body) -> Response:
    """Give up leases of one's own, and the head of a dataset that never came to be."""
    open_transfer(services, caller, bucket).objects.delete(decode(body, DeleteBody).keys)
    return reply(None)


@router.post("/urls", **rule("dataset:Read", body=UrlsBody, reply=UrlsReply, errors=(404,)))
def urls(services: ServicesDep, caller: CallerDep, bucket: BucketName, body: Body) -> Response:
    """Addresses at which packs and the like are read, and packs are put, for some minutes."""
    return reply(open_transfer(services, caller, bucket).urls(decode(body, UrlsBody)))


@router.post("/packs", **rule("dataset:Write", body=PackBody, reply=Written, errors=(404, 409)))
async def take_pack(services: ServicesDep, caller: CallerDep, bucket: BucketName, body: Body) -> Response:
    """Check what was put at an address, and make it a pack of the store."""
    said = decode(body, PackBody)

    def take() -> Written:
        return open_transfer(services, caller, bucket).take_pack(said)

    async with services.plane.bodies:  # who waits holds none of the threads that answer the others
        return reply(await run_in_threadpool(take))


@router.post("/index", **rule("dataset:Write", reply=NoneType, body=IndexBody, errors=(404, 409)))
def publish(services: ServicesDep, caller: CallerDep, bucket: BucketName, body: Body) -> Response:
    """Make the chunks of packs known to everybody."""
    open_transfer(services, caller, bucket).publish(decode(body, IndexBody))
    return reply(None)


# ---- addresses of the server itself

What = Annotated[str, Query(alias="for", max_length=40)]
Until = Annotated[str, Query(max_length=20)]
By = Annotated[str, Query(max_length=64)]
Signature = Annotated[str, Query(alias="sig", max_length=80)]
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}


def _blob(
    request: Request, services: Services, bucket: str, key: str, what: str, until: str, by: str, sig: str
) -> Blob:
    try:
        return Blob(services, bucket, key, what=what, until=until, by=by, signature=sig)
    except AccessError:
        no_signature(request)
        raise


@router.get("/blob/{key:path}", **rule("open", reply=bytes, media=_OCTETS, errors=(206, 403, 404, 416)))
def read_blob(
    request: Request,
    services: ServicesDep,
    bucket: BucketName,
    key: Key,
    what: What,
    until: Until,
    sig: Signature,
    by: By = "",
    range_: Annotated[str | None, Header(alias="range", max_length=200)] = None,
) -> Response:
    """An object of the store, or a part of it, at a signed address."""
    blob = _blob(request, services, bucket, key, what, until, by, sig)
    size = blob.size()
    try:
        span = span_of(range_, size)
    except Unsatisfiable:
        return unsatisfiable(size, _SAFE)

    def pieces() -> Iterator[bytes]:
        for start in range(span.start, span.start + span.length, PIECE):
            yield blob.read(start, min(PIECE, span.start + span.length - start))

    headers = {**span.headers(), **_SAFE}
    status = 206 if span.partial else 200
    if span.length <= PIECE:
        return Response(b"".join(pieces()), status_code=status, media_type=_OCTETS, headers=headers)
    return StreamingResponse(pieces(), status_code=status, media_type=_OCTETS, headers=headers)


@router.put("/blob/{key:path}", **rule("open", reply=Written, body=bytes, errors=(403, 409)))
async def write_blob(
    request: Request,
    services: ServicesDep,
    bucket: BucketName,
    key: Key,
    what: What,
    until: Until,
    sig: Signature,
    by: By = "",
    if_none_match: Condition = None,
) -> Response:
    """Store a pack at a signed address; it is checked first."""
    blob = await run_in_threadpool(_blob, request, services, bucket, key, what, until, by, sig)
    most = blob.announced
    async with services.plane.bodies:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > most:
                raise UsageError(f"{most} bytes were announced, and more came")
        fresh = isinstance(condition_of(None, if_none_match), Absent)
        return reply(await run_in_threadpool(blob.put, data, fresh=fresh))
