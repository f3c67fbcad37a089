"""Large objects on S3: uploads in parts.

Decided here and only here: how large parts are, how many are under way, how much memory a stream takes, and what
happens when one fails. An upload is completed or aborted: a service charges for parts that nobody sees.

A part that fails for the moment is sent again here. Whoever wraps a client in retries could only start over from the
first byte, and a stream can't be read twice.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from casstore.errors import CasstoreError, SourceError, StorageError, TransientError
from casstore.remote.base import Advance, Condition
from casstore.remote.body import cut

if TYPE_CHECKING:
    from casstore.remote.s3 import S3Client

__all__ = ["MEMORY", "THRESHOLD", "put_parts", "upload_stream"]

THRESHOLD: Final = 64 << 20
"""Bytes from which on a ``put`` goes in parts."""
PART: Final = 16 << 20
"""Bytes of a part, unless that would be more than ``MOST_PARTS``. All parts but the last have the same size: some
services insist on it."""
MOST_PARTS: Final = 10_000
MEMORY: Final = 80 << 20
"""Bytes of a stream that are in memory at a time, unless two parts take more."""
SENDERS: Final = 4
"""Parts of one object that are sent side by side."""
TRIES: Final = 5
PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 20.0
"""Seconds between two tries of a part: a random share of a time that doubles, or what the service asks for."""


def put_parts(client: S3Client, key: str, views: Sequence[memoryview], condition: Condition) -> str:
    """Store buffers as one object, in parts; returns its tag."""
    size = sum(map(len, views))
    with _Multipart(client, key, SENDERS) as upload:
        for part in cut(views, _part_size(size)):
            upload.send(part)
        return upload.complete(condition)


def upload_stream(client: S3Client, key: str, source: BinaryIO, size: int | None, advance: Advance | None) -> str:
    """Store a stream as one object; returns its tag. ``SourceError`` when it is not ``size`` bytes long."""
    part_size = _part_size(size or 0)
    first = _read_full(source, part_size)
    if len(first) < part_size:
        _check_size(len(first), size)
        etag = client.put_one(key, [memoryview(first)] if first else [])
        if advance is not None:
            advance(len(first))
        return etag
    senders = max(1, min(SENDERS, MEMORY // part_size - 1))
    with _Multipart(client, key, senders, advance) as upload:
        for part in _parts(source, first, part_size):
            if upload.parts == MOST_PARTS:
                raise StorageError(
                    f"{client.url}: a stream of more than {MOST_PARTS * part_size} bytes", hint="give its size"
                )
            upload.send([memoryview(part)])
        _check_size(upload.size, size)
        return upload.complete(None)


def _parts(source: BinaryIO, first: bytes, part_size: int) -> Iterator[bytes]:
    part = first
    while part:
        yield part
        part = _read_full(source, part_size) if len(part) == part_size else b""


def _read_full(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) == size or not data:
        return data
    pieces, got = [data], len(data)  # a pipe gives what it has
    while got < size and (data := source.read(size - got)):
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)


def _part_size(size: int) -> int:
    return max(PART, -(-size // (MOST_PARTS << 20)) << 20)


def _check_size(got: int, size: int | None) -> None:
    if size is not None and got != size:
        raise SourceError(f"the source gave {got} bytes instead of {size}", hint="it changed meanwhile: try again")


class _Multipart:
    """One upload in parts. Leaving it without ``complete`` aborts it."""

    def __init__(self, client: S3Client, key: str, senders: int, advance: Advance | None = None) -> None:
        self._client = client
        self._key = key
        self._advance = advance
        self._senders = senders
        self._done = False
        self._tags: list[Future[dict[str, Any]]] = []
        self.size = 0

    def __enter__(self) -> Self:
        checksum = {"ChecksumAlgorithm": "CRC32"} if self._client.on_aws else {}
        made = self._client.call("create_multipart_upload", self._key, **checksum)
        self._id: str = made["UploadId"]
        self._threads = ThreadPoolExecutor(self._senders, thread_name_prefix="casstore-part")
        return self

    def __exit__(self, *_: object) -> None:
        # A part that is still under way when the upload is aborted could stay behind.
        self._threads.shutdown(wait=True, cancel_futures=True)
        if not self._done:
            self._abort()

    @property
    def parts(self) -> int:
        """Parts that were taken so far."""
        return len(self._tags)

    def send(self, views: list[memoryview]) -> None:
        """Send a part in the background; waits while as many as may are under way."""
        if len(self._tags) >= self._senders:
            self._tags[-self._senders].result()
        self.size += sum(map(len, views))
        self._tags.append(self._threads.submit(self._send, len(self._tags) + 1, views))

    def _send(self, number: int, views: list[memoryview]) -> dict[str, Any]:
        for attempt in range(TRIES):
            try:
                body = self._client.body_of(views)
                sent = self._client.call("upload_part", self._key, UploadId=self._id, PartNumber=number, **body)
                break
            except TransientError as error:
                if attempt == TRIES - 1:
                    raise
                pause = error.retry_after or random.uniform(0, PAUSE * 2**attempt)  # noqa: S311 - no secret
                time.sleep(min(pause, LONGEST_PAUSE))
        if self._advance is not None:
            self._advance(sum(map(len, views)))
        tag = {"PartNumber": number, "ETag": sent["ETag"]}
        if "ChecksumCRC32" in body:
            tag["ChecksumCRC32"] = body["ChecksumCRC32"]
        return tag

    def complete(self, condition: Condition) -> str:
        """Make the object of the parts; returns its tag."""
        parts = [tag.result() for tag in self._tags]
        made = self._client.conditional(
            "complete_multipart_upload", self._key, condition, UploadId=self._id, MultipartUpload={"Parts": parts}
        )
        self._done = True
        return str(made.get("ETag", ""))

    def _abort(self) -> None:
        for _ in range(TRIES):
            with contextlib.suppress(CasstoreError):
                self._client.call("abort_multipart_upload", self._key, UploadId=self._id)
                return
