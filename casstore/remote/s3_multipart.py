"""Large objects on S3: uploads in parts.

Decided here and only here: how large parts are, how many are under way, and that an upload is completed or aborted: a
service charges for parts that nobody sees. How a stream is cut, and that a part is sent again, is in ``parts``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from casstore.errors import CasstoreError
from casstore.remote.base import Advance, Condition
from casstore.remote.body import Body, cut
from casstore.remote.parts import read_parts, send_parts

if TYPE_CHECKING:
    from casstore.remote.s3 import S3Client

__all__ = ["MEMORY", "THRESHOLD", "put_parts", "upload_stream"]

THRESHOLD: Final = 64 << 20
"""Bytes from which on a ``put`` goes in parts."""
CONDITIONAL: Final = 5 << 30
"""The same for a ``put`` with a condition, as much as one request may hold: there are services (Ceph's gateway of 2021,
moto) that look at the condition of a request, and not at that of an upload in parts."""
PART: Final = 16 << 20
STREAM_PART: Final = 8 << 20
"""Bytes of a part, unless that would be more than ``MOST_PARTS``. While the size of a stream is known, all of its parts
but the last have the same size: some services insist on it."""
MOST_PARTS: Final = 10_000
MEMORY: Final = 32 << 20
"""Bytes of a stream that are in memory at a time, besides the part that is read."""
SENDERS: Final = 4
"""Parts of one object that are sent side by side."""
ABORTS: Final = 3
"""How often it is tried to abort an upload: nobody would do it later."""


def put_parts(client: S3Client, key: str, views: Sequence[memoryview], condition: Condition) -> str:
    """Store buffers as one object, in parts; returns its tag."""
    size = sum(map(len, views))
    runs = cut(views, max(PART, -(-size // MOST_PARTS)))
    return _send(client, key, (Body(run, named_by_hash=True) for run in runs), at_once=SENDERS, condition=condition)


def upload_stream(client: S3Client, key: str, source: BinaryIO, size: int | None, advance: Advance | None) -> str:
    """Store a stream as one object; returns its tag. ``SourceError`` when it is not ``size`` bytes long."""
    part = max(STREAM_PART, -(-(size or 0) // MOST_PARTS))
    parts = read_parts(source, size, part, most=MOST_PARTS)
    first = next(parts)
    following = next(parts, b"") if len(first) == part else b""
    if not following:
        next(parts, None)  # so that the size is compared
        etag = client.put_one(key, [memoryview(first)] if first else [], named_by_hash=False)
        if advance is not None:
            advance(len(first))
        return etag
    bodies = (Body([memoryview(piece)]) for piece in chain([first, following], parts))
    return _send(client, key, bodies, at_once=max(1, min(SENDERS, MEMORY // part)), advance=advance)


def _send(
    client: S3Client,
    key: str,
    parts: Iterable[Body],
    *,
    at_once: int,
    condition: Condition = None,
    advance: Advance | None = None,
) -> str:
    checksum = {"ChecksumAlgorithm": "CRC32"} if client.on_aws else {}
    upload_id: str = client.call("create_multipart_upload", key, **checksum)["UploadId"]

    def send(number: int, part: Body) -> dict[str, Any]:
        body = client.body_of(part.views, named_by_hash=part.named_by_hash)
        sent = client.call("upload_part", key, UploadId=upload_id, PartNumber=number + 1, **body)
        tag = {"PartNumber": number + 1, "ETag": sent["ETag"]}
        if "ChecksumCRC32" in body:
            tag["ChecksumCRC32"] = body["ChecksumCRC32"]
        return tag

    try:
        with ThreadPoolExecutor(at_once, thread_name_prefix="casstore-part") as threads:
            tags = send_parts(threads, parts, send, at_once=at_once, advance=advance)
        made = client.conditional(
            "complete_multipart_upload", key, condition, UploadId=upload_id, MultipartUpload={"Parts": tags}
        )
    except BaseException:
        # No part is under way any more: one that arrived after this would stay.
        _abort(client, key, upload_id)
        raise
    return client.tag_of(made) or _tag_of_parts(tags)


def _tag_of_parts(parts: Sequence[dict[str, Any]]) -> str:
    """The tag that S3 gives to an object of these parts, for a service that does not say it (Ceph's gateway)."""
    hashes = "".join(part["ETag"].strip('"') for part in parts)
    try:
        return f'"{hashlib.md5(bytes.fromhex(hashes), usedforsecurity=False).hexdigest()}-{len(parts)}"'
    except ValueError:
        return ""


def _abort(client: S3Client, key: str, upload_id: str) -> None:
    for _ in range(ABORTS):
        with contextlib.suppress(CasstoreError):
            client.call("abort_multipart_upload", key, UploadId=upload_id)
            return
