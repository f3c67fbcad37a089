"""S3 and the services that speak it, over boto3.

Decided here and only here: which requests carry the operations of ``ObjectClient``, and what is checked of the answers.
How boto3 is configured is in ``s3_connect``, what an error means in ``s3_errors``; large objects go through
``s3_multipart``.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Final

from casstore.errors import IntegrityError, NotFoundError, PreconditionError, StorageError, TransientError
from casstore.model import Buffer
from casstore.remote import s3_multipart
from casstore.remote.base import Absent, Advance, Condition, Matches, Object, RemoteInfo, check_limit
from casstore.remote.body import Body, size_of, views_of
from casstore.remote.credentials import StorageCredential
from casstore.remote.http_range import empty_range, has_words, range_header
from casstore.remote.s3_connect import connect
from casstore.remote.s3_errors import CODES_OF_NO_BATCH_DELETE, code_of, library_error, service_error

__all__ = ["S3Client"]

BATCH: Final = 1000
"""Keys that one request deletes."""
DELETERS: Final = 8
"""Threads that delete one by one where the service has no batches."""
IN_ONE_PIECE: Final = 1 << 20
"""Bodies up to this are joined and sent with their headers; larger ones are announced first (100-continue)."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffe\uffff]")


class S3Client:
    """One bucket. See ``ObjectClient``.

    ``endpoint`` is the service's address where it is not AWS, or None for the credential's ``override_url``, boto3's
    own settings (``AWS_ENDPOINT_URL_S3``, a profile) and AWS, in this order. Without a credential boto3 finds one: the
    environment, a profile, the machine's identity.
    """

    def __init__(
        self, bucket: str, *, url: str, endpoint: str | None = None, credential: StorageCredential | None = None
    ) -> None:
        self._bucket = bucket
        self._url = url.rstrip("/")
        self._secrets = (credential.access_key, credential.session_token) if credential else ()
        self._client, self.on_aws, self._errors = connect(self._url, endpoint, credential)
        self._batches = True
        self._bare_tags: bool | None = None  # whether a swap needs them without quotes; None until it is known

    def __repr__(self) -> str:
        return f"S3Client({self._url!r})"

    @property
    def url(self) -> str:
        """The bucket as a URL."""
        return self._url

    # --- reading

    def head(self, key: str) -> RemoteInfo:
        """Return what is known of an object without its bytes."""
        return self._head(key, None)

    def _head(self, key: str, if_match: str | None) -> RemoteInfo:
        condition = {} if if_match is None else {"IfMatch": if_match}
        found = self.call("head_object", key, **condition)
        return _info(key, found.get("ContentLength"), found.get("LastModified"), self.tag_of(found))

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
        wanted: dict[str, str] = {}
        if (asked := range_header(offset, length)) is not None:
            wanted["Range"] = asked
        if if_match is not None:
            wanted["IfMatch"] = if_match
        try:
            found = self.call("get_object", key, **wanted)
        except _UnsatisfiableError:
            return empty_range(self._name(key), self._head(key, if_match), offset, length)
        body = found["Body"]
        try:
            announced = self._announced(key, found, ranged="Range" in wanted, offset=offset, length=length)
            check_limit(self._name(key), announced, limit)
            data = self._receive(key, body, announced)
        finally:
            body.close()
        if length is not None and len(data) != length:
            data = data[:length]  # of a suffix, its first bytes
        return Object(data, self.tag_of(found))

    def _announced(self, key: str, found: dict[str, Any], *, ranged: bool, offset: int, length: int | None) -> int:
        """Return how many bytes come, if they are those that were asked for."""
        announced = found.get("ContentLength")
        if not ranged:
            if announced is None:
                raise StorageError(f"{self._name(key)}: the service does not say how long it is")
            return int(announced)
        match = _RANGE.match(found.get("ContentRange") or "")
        if match is None:
            raise IntegrityError(f"{self._name(key)}: the service did not send the range that was asked for")
        start, end = int(match[1]), int(match[2])
        size = None if match[3] == "*" else int(match[3])
        expected = -offset if offset < 0 else length if length is not None else end + 1 - start
        if offset < 0 and (size is not None and start != size + offset):
            raise IntegrityError(f"{self._name(key)} is too short")
        if (offset >= 0 and start != offset) or (length is None and offset >= 0 and size not in {None, end + 1}):
            raise IntegrityError(f"{self._name(key)}: the service sent another range than was asked for")
        if end + 1 - start != expected:
            raise IntegrityError(f"{self._name(key)} is too short")
        if announced not in {None, expected}:
            raise IntegrityError(f"{self._name(key)}: the service sent another number of bytes than was asked for")
        return expected

    def _receive(self, key: str, body: Any, announced: int) -> bytes:
        try:
            data: bytes = body.read(announced + 1) if announced < 1 << 12 else body.read(announced)
        except self._errors as error:
            raise library_error(error, self._name(key)) from None
        if len(data) < announced:
            raise TransientError(f"{self._name(key)}: the connection was closed amid the answer")
        if len(data) > announced:
            raise IntegrityError(f"{self._name(key)}: the service sent more bytes than it announced")
        return data

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """Yield the objects below a prefix, a page of 1000 at a time."""
        request: dict[str, Any] = {"Prefix": prefix}
        if after:
            request["StartAfter"] = after
        if not recursive:
            request["Delimiter"] = "/"
        token = None
        while True:
            page = self.call("list_objects_v2", None, **request)
            infos = [
                _info(item["Key"], item.get("Size"), item.get("LastModified"), self.tag_of(item))
                for item in page.get("Contents") or []
            ]
            folders = page.get("CommonPrefixes") or []
            infos += [RemoteInfo(item["Prefix"], 0, 0.0, "") for item in folders]
            infos.sort(key=_key_of)
            for info in infos:
                if not info.key.startswith(prefix):
                    raise StorageError(f"{self._url}: the service lists what was not asked for")
                if info.key > after:
                    yield info
            if not page.get("IsTruncated"):
                return
            if (following := page.get("NextContinuationToken")) is None or following == token:
                raise StorageError(f"{self._url}: the listing does not end")
            token = request["ContinuationToken"] = following

    # --- writing

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """Store an object: in one request, or in parts when it is large."""
        if size_of(data) > (s3_multipart.THRESHOLD if condition is None else s3_multipart.CONDITIONAL):
            return s3_multipart.put_parts(self, key, views_of(data), condition)
        return self.put_one(key, views_of(data), condition)

    def put_one(
        self, key: str, views: Sequence[memoryview], condition: Condition = None, *, named_by_hash: bool = True
    ) -> str:
        """Store an object in one request."""
        body = self.body_of(views, named_by_hash=named_by_hash)
        return self.tag_of(self.conditional("put_object", key, condition, **body))

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """Store a stream: at most ``s3_multipart.MEMORY`` bytes of it are in memory."""
        return s3_multipart.upload_stream(self, key, source, size, advance)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, 1000 with one request where the service has it."""
        batch = []
        for key in keys:
            batch.append(key)
            if len(batch) == BATCH:
                self._delete(batch)
                batch = []
        if batch:
            self._delete(batch)

    def _delete(self, keys: Sequence[str]) -> None:
        batch = keys
        if len(keys) > 1 and self._batches:
            # XML has no way to write these: they go one by one.
            batch = [key for key in keys if _CONTROL.search(key)]
            named = [key for key in keys if not _CONTROL.search(key)]
            try:
                found = self.call("delete_objects", None, Delete={"Objects": _named(named), "Quiet": True})
            except _NoBatchesError:
                self._batches = False
                batch = keys
            else:
                self._raise_first(found.get("Errors") or [])
        if len(batch) == 1:
            self._delete_one(batch[0])
        elif batch:
            with ThreadPoolExecutor(DELETERS, thread_name_prefix="casstore-delete") as threads:
                for _ in threads.map(self._delete_one, batch):
                    pass

    def _delete_one(self, key: str) -> None:
        try:
            self.call("delete_object", key)
        except NotFoundError as error:
            if error.hint:  # the bucket, not the object
                raise

    def _raise_first(self, errors: Sequence[dict[str, Any]]) -> None:
        failed = [error for error in errors if error.get("Code") not in {"NoSuchKey", "NoSuchVersion", "NotFound"}]
        if failed:
            answer = _Answer({"Error": failed[0]})
            error = service_error(answer, self._name(str(failed[0].get("Key", ""))[:200]), secrets=self._secrets)
            if len(failed) > 1:
                error.message += f" (and {len(failed) - 1} other objects were not deleted)"
                error.args = (error.message,)
            raise error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # --- requests, for this module and for multipart uploads

    @staticmethod
    def tag_of(answer: Mapping[str, Any]) -> str:
        """Return the tag in an answer, always in one form: some services leave the quotes away in some answers."""
        tag = str(answer.get("ETag") or "")
        return tag if not tag or tag.startswith(('"', "W/")) else f'"{tag}"'

    def body_of(self, views: Sequence[memoryview], *, named_by_hash: bool = True) -> dict[str, Any]:
        """Return the parameters of a request that sends these bytes. All that a ``put`` sends in more than one piece
        is named by its hash; what ``upload`` sends is not.

        AWS compares a CRC-32 with what has arrived. Other services are not asked to: many know only older checksums.
        """
        size = sum(map(len, views))
        body: dict[str, Any] = {
            "Body": b"".join(views) if size <= IN_ONE_PIECE else Body(views, named_by_hash=named_by_hash)
        }
        if self.on_aws:
            check = 0
            for view in views:
                check = zlib.crc32(view, check)
            body["ChecksumCRC32"] = base64.b64encode(check.to_bytes(4, "big")).decode()
        return body

    def conditional(self, operation: str, key: str, condition: Condition, **request: Any) -> Any:
        """Make a request that writes only where a condition holds."""
        if isinstance(condition, Absent):
            request["IfNoneMatch"] = "*"
        elif isinstance(condition, Matches):
            request["IfMatch"] = condition.etag.strip('"') if self._bare_tags else condition.etag
        try:
            answer = self.call(operation, key, **request)
        except PreconditionError:
            if not isinstance(condition, Matches) or self._bare_tags is not None or not self._is(key, condition.etag):
                raise
            # Ceph's gateway compares what it is told with a tag that has no quotes. This is found out by an object that
            # is in the state that was expected, and still refused; the second request has the same condition.
            if isinstance(body := request.get("Body"), Body):
                body.seek(0)
            answer = self.call(operation, key, **{**request, "IfMatch": condition.etag.strip('"')})
            self._bare_tags = True
        except NotFoundError as error:
            if isinstance(condition, Matches) and error.hint is None:
                raise PreconditionError(f"{self._name(key)} is gone") from None
            raise
        if isinstance(condition, Matches) and self._bare_tags is None:
            self._bare_tags = False
        return answer

    def _is(self, key: str, etag: str) -> bool:
        try:
            return self._head(key, None).etag == etag
        except NotFoundError:
            return False

    def call(self, operation: str, key: str | None, **request: Any) -> Any:
        """Make one request, once. Raises our errors."""
        if key is not None:
            request["Key"] = key
        method: Callable[..., Any] = getattr(self._client, operation)
        try:
            return method(Bucket=self._bucket, **request)
        except self._errors as error:
            if not isinstance(getattr(error, "response", None), dict):
                raise library_error(error, self._name(key)) from None
            code = code_of(error)
            if operation == "get_object" and code in {"InvalidRange", "416"}:
                raise _UnsatisfiableError from None
            if operation == "delete_objects" and code in CODES_OF_NO_BATCH_DELETE:
                raise _NoBatchesError from None
            raise service_error(
                error,
                self._name(key),
                conditional="IfNoneMatch" in request or "IfMatch" in request,
                secrets=self._secrets,
            ) from None

    def _name(self, key: str | None) -> str:
        return self._url if key is None else f"{self._url}/{key.encode('unicode_escape').decode()}"


class _UnsatisfiableError(Exception):
    """No byte of the range is in the object."""


class _NoBatchesError(Exception):
    """The service does not delete several objects with one request."""


class _Answer:
    """An error inside of a reply, in the shape of an error that is a reply."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = response


def _key_of(info: RemoteInfo) -> str:
    return info.key  # the order of code points is that of UTF-8


def _named(keys: Sequence[str]) -> list[dict[str, str]]:
    return [{"Key": key} for key in keys]


def _info(key: str, size: Any, modified: Any, etag: Any) -> RemoteInfo:
    try:
        return RemoteInfo(key, int(size), modified.timestamp() if modified else 0.0, etag or "")
    except (TypeError, ValueError):
        raise StorageError("the service does not say how long an object is") from None
