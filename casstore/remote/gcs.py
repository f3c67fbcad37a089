"""Google Cloud Storage, through its XML API.

Decided here and only here: what each operation of a client is on this service, and what is checked of the answers. A
tag is the generation of the object, a number that each write changes; conditions are on generations, and the service
decides them atomically. Uploads in parts know no conditions: what has one goes in one request, however large.

No library stands between, but google-auth for tokens. google-cloud-storage speaks the JSON API, which does not take the
HMAC keys that OSMO's credentials are; obstore takes no keys with empty parts, and does not say for how long the service
asks to wait.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import chain, islice
from typing import BinaryIO, Final, NamedTuple
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

import google_crc32c
import urllib3

from casstore.errors import (
    CasstoreError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
    TransientError,
    UsageError,
)
from casstore.model import Buffer
from casstore.remote.base import Absent, Advance, Condition, Matches, Object, RemoteInfo, check_limit
from casstore.remote.body import Body, cut, size_of, views_of
from casstore.remote.credentials import StorageCredential
from casstore.remote.gcs_auth import find_endpoint, find_signer
from casstore.remote.gcs_errors import code_of, lost_connection, refused
from casstore.remote.http_pool import make_pool
from casstore.remote.http_range import empty_range, has_words, range_header
from casstore.remote.parts import persist, read_parts, send_parts

__all__ = ["GcsClient"]

THRESHOLD: Final = 64 << 20
"""Bytes from which on a ``put`` without a condition goes in parts."""
PART: Final = 16 << 20
STREAM_PART: Final = 8 << 20
MOST_PARTS: Final = 10_000
SENDERS: Final = 4
"""Parts of one object that are sent side by side."""
THREADS: Final = 16
DELETES: Final = 1000
"""Keys that are deleted side by side before the next are looked at."""
JOINED: Final = 1 << 20
ERROR: Final = 64 << 10
ANSWER: Final = 16 << 20
"""Bytes of an answer that is not an object, at most."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")
_GENERATION = re.compile(r"[1-9][0-9]{0,18}\Z")


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: bytes


class GcsClient:
    """One bucket. See ``ObjectClient``.

    ``credential`` holds an HMAC key, or the JSON of a service account's key in ``access_key``; without one, google-auth
    finds one. Its ``override_url``, or STORAGE_EMULATOR_HOST, is another endpoint, to which the machine's identity is
    not shown.
    """

    def __init__(self, bucket: str, *, url: str, credential: StorageCredential | None = None) -> None:
        self._url = url.rstrip("/")
        endpoint = find_endpoint(credential)
        self._http = make_pool(endpoint)
        self._signer = find_signer(self._url, credential, endpoint, self._http)
        self._base = f"{endpoint}/{quote(bucket, safe='')}"
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="casstore-gcs")
        self._closed = False

    def __repr__(self) -> str:
        return f"GcsClient({self._url!r})"

    @property
    def url(self) -> str:
        """The bucket as a URL."""
        return self._url

    # --- requests

    def _call(
        self,
        method: str,
        key: str | None,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | Body = b"",
        part: tuple[int, int | None, int | None] | None = None,
    ) -> _Answer:
        """Send one request. ``part``: offset, length and limit of what is read of an object, if it is."""
        if self._closed:
            raise StorageError(f"{self._url} is closed")
        if key == "":
            raise UsageError(f"{self._url}: the name of an object can't be empty")
        what = self._name(key)
        target = f"{self._base}/{_quoted(key)}" if key is not None else self._base
        sent = {"Accept-Encoding": "gzip", "User-Agent": "casstore", **(headers or {})}
        if method in {"PUT", "POST"}:
            sent["Content-Length"] = str(len(body))
        self._signer.sign(method, target, query, sent)
        try:
            reply = self._http.request(
                method,
                f"{target}?{urlencode(query, quote_via=quote, safe='-._~')}" if query else target,
                body=body if len(body) else None,  # type: ignore[arg-type]  # whatever has `read`
                headers=sent,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                if 200 <= reply.status < 300:
                    data = self._object(what, reply, *part) if part else self._small(what, method, reply)
                    return _Answer(reply.status, reply.headers, data)
                code = code_of(b"" if method == "HEAD" else reply.read(ERROR, decode_content=False))
            finally:
                reply.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if self._closed:
                raise StorageError(f"{self._url} is closed") from None
            raise lost_connection(error, what) from None
        if reply.status == 416:
            raise _UnsatisfiableError(f"{what} is too short")
        raise refused(reply.status, code, reply.headers, what)

    def _small(self, what: str, method: str, reply: urllib3.BaseHTTPResponse) -> bytes:
        data = b"" if method == "HEAD" else reply.read(ANSWER + 1, decode_content=False)
        if len(data) > ANSWER:
            raise StorageError(f"{what}: the service's answer is too long")
        announced = _number(reply.headers.get("Content-Length"))
        if method != "HEAD" and announced is not None and len(data) < announced:
            raise TransientError(f"{what}: the connection was closed amid the answer")
        return data

    def _object(
        self, what: str, reply: urllib3.BaseHTTPResponse, offset: int, length: int | None, limit: int | None
    ) -> bytes:
        """Receive the bytes, if they are those that were asked for. The last ``-offset`` bytes, if it is negative."""
        whole = offset == 0 and length is None
        if whole:
            announced = _number(reply.headers.get("Content-Length"))
            if announced is None:
                raise StorageError(f"{what}: the service does not say how long it is")
        else:
            match = _RANGE.match(reply.headers.get("Content-Range") or "")
            if reply.status != 206 or match is None:
                raise IntegrityError(f"{what}: the service did not send the range that was asked for")
            start, end, size = (int(number) for number in match.groups())
            first = size + offset if offset < 0 else offset
            last = size - 1 if length is None or offset < 0 else first + length - 1
            if start != first or end > last:
                raise IntegrityError(f"{what}: the service sent another range than was asked for")
            if end < last:
                raise IntegrityError(f"{what} is too short")
            announced = end + 1 - start
        check_limit(what, announced, limit)
        data = reply.read(announced, decode_content=False) if announced else b""
        if len(data) < announced:
            raise TransientError(f"{what}: the connection was closed amid the answer")
        if reply.read(1, decode_content=False):
            raise IntegrityError(f"{what}: the service sent more bytes than it announced")
        if whole:
            _check(what, data, reply.headers.get("x-goog-hash") or "")
        return data

    def _name(self, key: str | None) -> str:
        return self._url if key is None else f"{self._url}/{key}"

    # --- reading

    def head(self, key: str) -> RemoteInfo:
        """Return what is known of an object without its bytes."""
        return self._head(key, None)

    def _head(self, key: str, if_match: str | None) -> RemoteInfo:
        headers = self._call("HEAD", key, headers=self._matching(key, if_match)).headers
        size = _number(headers.get("x-goog-stored-content-length") or headers.get("Content-Length"))
        try:
            mtime = email.utils.parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp()
        except ValueError:
            mtime = None
        if size is None or mtime is None:
            raise StorageError(f"{self._name(key)}: the service's answer makes no sense")
        return RemoteInfo(key, size, mtime, headers.get("x-goog-generation", ""))

    def _matching(self, key: str, tag: str | None) -> dict[str, str]:
        if tag is None:
            return {}
        if not _GENERATION.match(tag):
            raise PreconditionError(f"{self._name(key)} has changed meanwhile")
        return {"x-goog-if-generation-match": tag}

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """Return a range, or the whole object."""
        if not has_words(offset, length):
            return empty_range(self._name(key), self._head(key, if_match), offset, length)
        headers = self._matching(key, if_match)
        if (asked := range_header(offset, length)) is not None:
            headers["Range"] = asked
        try:
            found = self._call("GET", key, headers=headers, part=(offset, length, limit))
        except _UnsatisfiableError:
            return empty_range(self._name(key), self._head(key, if_match), offset, length)
        data = found.data if length is None else found.data[:length]  # of a suffix, its first bytes
        return Object(data, found.headers.get("x-goog-generation", ""))

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """Yield the objects below a prefix, a page of 1000 at a time."""
        query = {"list-type": "2", "prefix": prefix}
        if after:
            query["start-after"] = after
        if not recursive:
            query["delimiter"] = "/"
        last, floor, token = b"", after.encode(), None
        while True:
            page = self._xml(self._call("GET", None, query=sorted(query.items())).data)
            infos = [self._info(item) for item in page.iter("Contents")]
            infos += [RemoteInfo(_text(item, "Prefix"), 0, 0.0, "") for item in page.iter("CommonPrefixes")]
            for key, info in sorted((info.key.encode(), info) for info in infos):
                if not info.key.startswith(prefix) or (last and key < last):
                    raise StorageError(f"{self._url}: the service lists what was not asked for")
                if key > floor and key != last:
                    yield info
                last = key
            if _text(page, "IsTruncated") != "true":
                return
            if (following := _text(page, "NextContinuationToken")) in {"", token}:
                raise StorageError(f"{self._url}: the listing does not end")
            token = query["continuation-token"] = following

    def _xml(self, data: bytes) -> ET.Element:
        try:
            if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
                raise ValueError
            found = ET.fromstring(data)  # noqa: S314 - without a document type, entities can't be defined
        except (ET.ParseError, ValueError):
            raise StorageError(f"{self._url}: the service's answer makes no sense") from None
        for element in found.iter():
            element.tag = element.tag.rpartition("}")[2]
        return found

    def _info(self, item: ET.Element) -> RemoteInfo:
        size = _number(_text(item, "Size"))
        try:
            mtime = datetime.fromisoformat(_text(item, "LastModified")).timestamp()
        except ValueError:
            mtime = None
        if size is None or mtime is None:
            raise StorageError(f"{self._url}: the service's answer makes no sense")
        return RemoteInfo(_text(item, "Key"), size, mtime, _text(item, "Generation"))

    # --- writing

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """Store an object: in one request, or in parts when it is large and may replace anything."""
        views, size = views_of(data), size_of(data)
        if size > THRESHOLD and condition is None:
            runs = cut(views, max(PART, -(-size // MOST_PARTS)))
            return self._put_parts(key, (Body(run) for run in runs))
        return self._put_one(key, views, condition)

    def _put_one(self, key: str, views: Sequence[memoryview], condition: Condition = None) -> str:
        body = Body(views)
        headers = {"x-goog-hash": f"crc32c={_checksum(body)}", "Content-Type": "application/octet-stream"}
        if isinstance(condition, Absent):
            headers["x-goog-if-generation-match"] = "0"
        elif isinstance(condition, Matches):
            headers |= self._matching(key, condition.etag)
        try:
            found = self._call("PUT", key, headers=headers, body=b"".join(views) if len(body) <= JOINED else body)
        except NotFoundError as error:
            # No bucket, or no object to be replaced: it has gone.
            if not isinstance(condition, Matches) or error.hint:
                raise
            raise PreconditionError(f"{self._name(key)} is not there any more") from None
        return self._generation(key, found)

    def _generation(self, key: str, found: _Answer) -> str:
        tag = found.headers.get("x-goog-generation", "")
        if not _GENERATION.match(tag):
            raise StorageError(f"{self._name(key)}: the service does not say what generation it wrote")
        return tag

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """Store a stream: five parts of it are in memory at most."""
        parts = read_parts(source, size, STREAM_PART, most=MOST_PARTS)
        first = list(islice(parts, 2))
        if len(first) > 1:
            return self._put_parts(key, (Body([memoryview(part)]) for part in chain(first, parts)), advance)
        tag = persist(lambda: self._put_one(key, views_of(first)))
        if advance is not None:
            advance(len(first[0]))
        return tag

    def _put_parts(self, key: str, parts: Iterable[Body], advance: Advance | None = None) -> str:
        made = self._call("POST", key, query=[("uploads", "")], headers={"Content-Type": "application/octet-stream"})
        upload = _text(self._xml(made.data), "UploadId")
        if not upload:
            raise StorageError(f"{self._name(key)}: the service's answer makes no sense")

        def send(number: int, part: Body) -> str:
            query = [("partNumber", str(number + 1)), ("uploadId", upload)]
            headers = {"x-goog-hash": f"crc32c={_checksum(part)}"}
            return self._call("PUT", key, query=query, headers=headers, body=part).headers.get("ETag", "")

        try:
            tags = send_parts(self._pool, parts, send, at_once=SENDERS, advance=advance)
            return self._complete(key, upload, tags)
        except BaseException:
            # What is not aborted is stored and paid for, and nobody sees it.
            with contextlib.suppress(CasstoreError):
                persist(lambda: self._call("DELETE", key, query=[("uploadId", upload)]))
            raise

    def _complete(self, key: str, upload: str, tags: Sequence[str]) -> str:
        root = ET.Element("CompleteMultipartUpload")
        for number, tag in enumerate(tags, 1):
            part = ET.SubElement(root, "Part")
            ET.SubElement(part, "PartNumber").text = str(number)
            ET.SubElement(part, "ETag").text = tag
        found = self._call("POST", key, query=[("uploadId", upload)], body=ET.tostring(root))
        if "x-goog-generation" in found.headers:
            return self._generation(key, found)
        # The answer names the object's ETag alone: the generation is that of the object, if it is still the same.
        written = _text(self._xml(found.data), "ETag").strip('"')
        seen = self._call("HEAD", key)
        return self._generation(key, seen) if seen.headers.get("ETag", "").strip('"') == written else ""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects side by side: this API has no request for many."""
        left = iter(keys)
        while batch := list(islice(left, DELETES)):
            if self._closed:
                raise StorageError(f"{self._url} is closed")
            for done in [self._pool.submit(self._delete, key) for key in batch]:
                done.result()

    def _delete(self, key: str) -> None:
        try:
            self._call("DELETE", key)
        except NotFoundError as error:
            if error.hint:  # the bucket
                raise

    def close(self) -> None:
        """Release connections."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown(wait=True)
            self._http.clear()


class _UnsatisfiableError(IntegrityError):
    """The range begins behind the end of the object."""


def _quoted(key: str) -> str:
    # Parts "." and ".." would be resolved on the way if they were not hidden.
    parts = (part.replace(".", "%2E") if part in {".", ".."} else quote(part, safe="-._~") for part in key.split("/"))
    return "/".join(parts)


def _text(item: ET.Element, name: str) -> str:
    return item.findtext(name) or ""


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,19}", text) else None


def _checksum(body: Body) -> str:
    crc = 0
    body.seek(0)
    while block := body.read_block():
        crc = google_crc32c.extend(crc, bytes(block))
    body.seek(0)
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _check(what: str, data: bytes, said: str) -> None:
    expected = dict(item.strip().partition("=")[::2] for item in said.split(",")).get("crc32c")
    if expected is not None and expected != _checksum(Body(views_of([data]))):
        raise TransientError(f"{what}: the bytes were damaged on their way")
