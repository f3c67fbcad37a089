"""The routes about what is in versions, thin over ``services.v1``.

Decided here and only here: paths, parameters and headers, and what a browser is told about files that are somebody
else's: nothing of them runs, and nobody guesses what they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import Response, StreamingResponse

from casstore.wire.v1 import (
    MAX_LISTED,
    CommitBody,
    CommitReply,
    DiffReply,
    FilesReply,
    GarbageReply,
    LineageReply,
)
from casstore_server.api.deps import Body, CallerDep, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.ranges import Span, Unsatisfiable, span_of, unsatisfiable
from casstore_server.api.rules import rule
from casstore_server.services.v1 import garbage, versions
from casstore_server.services.v1.content import Content, content_of, pieces

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/bucket/{bucket}")

_NAME = r"^[A-Za-z0-9_-]{1,200}$"
BucketName = Annotated[str, Path(pattern=_NAME)]
DatasetName = Annotated[str, Path(pattern=_NAME)]
Tag = Annotated[str, Path(pattern=_NAME)]
Ref = Annotated[str, Query(max_length=700)]
FilePath = Annotated[str, Path(max_length=65_536)]
Raw = Annotated[str, Query(max_length=90_000)]
Download = Annotated[bool, Query()]
Asked = Annotated[str | None, Header(alias="range", max_length=200)]
Tags = Annotated[str | None, Header(max_length=4000)]
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Authorization, Cookie, x-osmo-user",
}


@router.get("/diff", **rule("dataset:Read", reply=DiffReply, errors=(404,)))
def diff(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    old: Ref,
    new: Ref,
    count: Annotated[int, Query(ge=0, le=versions.MOST_CHANGES)] = versions.MOST_CHANGES,
) -> Response:
    """What changed from one version to another, each NAME[:TAG]; the first ``count`` changes."""
    return reply(versions.diff(services, caller, bucket, old, new, count))


@router.get("/dataset/{name}/version/{tag}/lineage", **rule("dataset:Read", reply=LineageReply, errors=(404,)))
def lineage(services: ServicesDep, caller: CallerDep, bucket: BucketName, name: DatasetName, tag: Tag) -> Response:
    """What a version was made from, by whom, and which versions of the bucket were made from it."""
    return reply(versions.lineage(services, caller, bucket, name, tag))


@router.get("/dataset/{name}/version/{tag}/files", **rule("dataset:Read", reply=FilesReply, errors=(404,)))
def files(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    tag: Tag,
    path: Annotated[str, Query(max_length=65_536)] = "",
    raw: Raw = "",
    prefix: Annotated[str, Query(max_length=1024)] = "",
    recursive: bool = False,
    cursor: Annotated[str, Query(max_length=90_000)] = "",
    count: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
) -> Response:
    """The entries of a folder of a version, or of all that is below it, page by page."""
    opened = versions.open_version(services, caller, bucket, name, tag)
    found = versions.files(
        opened,
        versions.path_of(path, raw),
        prefix=prefix.encode("utf-8", "surrogateescape"),
        recursive=recursive,
        cursor=cursor,
        count=count,
    )
    return reply(found)


@router.get(
    "/dataset/{name}/version/{tag}/file/{path:path}",
    **rule("dataset:Read", reply=bytes, media="*/*", errors=(206, 304, 404, 416)),
)
def read_file(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    tag: Tag,
    path: FilePath,
    raw: Raw = "",
    download: Download = False,
    range_: Asked = None,
    if_range: Tags = None,
    if_none_match: Tags = None,
) -> Response:
    """The bytes of a file, or a range of them."""
    opened = versions.open_version(services, caller, bucket, name, tag)
    content = content_of(opened, versions.path_of(path, raw))
    headers = _headers(content, tag, download=download)
    if _holds(if_none_match, content.digest):
        return Response(status_code=304, headers=headers)
    found = _span(content, range_, if_range)
    if found is None:
        return unsatisfiable(content.entry.size, headers)
    status = 206 if found.partial else 200
    body = pieces(opened, content.entry, found.start, found.length)
    first = next(body, b"")  # what is wrong with it is better said before anything is

    def rest() -> Iterator[bytes]:
        yield first
        yield from body

    return StreamingResponse(rest(), status_code=status, media_type=None, headers={**headers, **found.headers()})


@router.head(
    "/dataset/{name}/version/{tag}/file/{path:path}",
    **rule("dataset:Read", reply=bytes, media="*/*", errors=(206, 404, 416)),
)
def head_file(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    name: DatasetName,
    tag: Tag,
    path: FilePath,
    raw: Raw = "",
    download: Download = False,
    range_: Asked = None,
    if_range: Tags = None,
) -> Response:
    """What ``GET`` says of a file, without its bytes."""
    opened = versions.open_version(services, caller, bucket, name, tag)
    content = content_of(opened, versions.path_of(path, raw))
    headers = _headers(content, tag, download=download)
    found = _span(content, range_, if_range)
    if found is None:
        return unsatisfiable(content.entry.size, headers)
    return Response(status_code=206 if found.partial else 200, headers={**headers, **found.headers()})


def _span(content: Content, asked: str | None, if_range: str | None) -> Span | None:
    """What is asked for; None when there is nothing of it. A range of another content is none."""
    if if_range is not None and if_range.strip() != f'"{content.digest}"':
        asked = None
    try:
        return span_of(asked, content.entry.size)
    except Unsatisfiable:
        return None


def _holds(header: str | None, digest: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in tags or f'"{digest}"' in tags


def _headers(content: Content, tag: str, *, download: bool) -> dict[str, str]:
    # A version never changes; what a tag leads to does.
    fixed = tag.isdigit()
    shown = "attachment" if download or not content.inline else "inline"
    name = quote(content.entry.name, safe="")
    return {
        **_SAFE,
        "Accept-Ranges": "bytes",
        "Content-Type": f"{content.media}; charset=utf-8" if content.media.startswith("text/") else content.media,
        "Content-Disposition": f"{shown}; filename*=UTF-8''{name}",
        "ETag": f'"{content.digest}"',
        "Cache-Control": "private, max-age=86400, immutable" if fixed else "private, no-cache",
    }


@router.post("/dataset/{name}/commit", **rule("dataset:Write", body=CommitBody, reply=CommitReply, errors=(404, 409)))
def commit(services: ServicesDep, caller: CallerDep, bucket: BucketName, name: DatasetName, body: Body) -> Response:
    """Make a version of a manifest that is in the store with all that it needs; a new dataset, with its first one."""
    return reply(versions.commit(services, caller, bucket, name, decode(body, CommitBody)))


@router.get("/gc/plan", **rule("bucket:Manage", reply=GarbageReply, errors=(404, 409)))
def gc_plan(
    services: ServicesDep,
    caller: CallerDep,
    bucket: BucketName,
    grace: Annotated[float, Query(ge=0, le=1e9)] = 86_400.0,
    repack_below: Annotated[float, Query(ge=0, le=1)] = 0.5,
) -> Response:
    """What collecting garbage would do now; nothing is changed. ``grace`` in seconds."""
    return reply(garbage.plan(services, caller, bucket, grace, repack_below))
