"""Azure Blob Storage, through azure-storage-blob.

Decided here and only here: what each operation of a client is on Azure. A tag is the blob's ETag without its quotes;
conditions are If-Match and If-None-Match, atomic at the service, for large blobs on the commit of the list of blocks.
Blocks that were never committed are no part of a blob, and the service drops them after a week.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, BinaryIO

import requests.adapters
import urllib3.exceptions
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobBlock, BlobClient, ContainerClient

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
from casstore.remote.azure_account import find_login
from casstore.remote.azure_errors import is_missing_blob, translated, translated_reply
from casstore.remote.base import Absent, Advance, Condition, Matches, Object, RemoteInfo, check_limit
from casstore.remote.body import cut, size_of, views_of
from casstore.remote.credentials import StorageCredential
from casstore.remote.pace import paced
from casstore.remote.parts import persist, read_parts, send_parts

__all__ = ["AzureClient"]

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_SINGLE = 32 << 20  # up to here one request; packs are smaller
_PART = 8 << 20
_CHANGES = 16  # times that an object may be replaced while its end is looked for
_MOST_PARTS = 50_000
_AT_ONCE = 4
_THREADS = 8
_CONNECTIONS = 64
_BATCH = 256  # what the service takes in one request
_PAGE = 5000
_GET = 256 << 20

_MISUNDERSTOOD = (AttributeError, LookupError, TypeError, ValueError)
"""What Azure's library raises for an answer that lacks a header, or holds what is no number or date."""

_NUMBER = re.compile(r"[0-9]{1,18}\Z")
_TOTAL = re.compile(r"/([0-9]{1,18})\Z")
_TAG = re.compile(r"[\x21\x23-\x7e]{1,256}\Z")


class AzureClient:
    """An ``ObjectClient`` for one container of one account."""

    def __init__(self, account: str, container: str, *, url: str, credential: StorageCredential | None = None) -> None:
        self._url = url
        self._client, self._identity = self._connect(account, container, credential)
        self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="azure")
        self._batches = True
        self._closed = False

    def _connect(
        self, account: str, container: str, credential: StorageCredential | None
    ) -> tuple[ContainerClient, Any]:
        login = find_login(account, credential)
        identity: Any = None
        proof: Any
        if login.key:
            proof = AzureNamedKeyCredential(account, login.key)
        elif login.signature:
            proof = AzureSasCredential(login.signature)
        else:
            proof = identity = _machine_identity()
        transport = RequestsTransport(connection_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS)
        transport.open()
        session: Any = transport.session
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(pool_connections=4, pool_maxsize=_CONNECTIONS))
        client = ContainerClient(
            login.endpoint,
            container,
            credential=proof,
            transport=transport,
            retry_total=0,
            logging_enable=False,
            max_single_put_size=_SINGLE,
            max_single_get_size=_GET,
        )
        return client, identity

    @property
    def url(self) -> str:
        """``azure://account/container``."""
        return self._url

    def _blob(self, key: str) -> BlobClient:
        self._check_open()
        if not key or "\\" in key:  # the service takes a backslash for a slash
            raise UsageError(f"{self._url}: a blob's name can't be empty or hold a backslash")
        return self._client.get_blob_client(key)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self._url} is closed")

    @contextlib.contextmanager
    def _talking(self, key: str = "") -> Iterator[None]:
        """Only the store's own errors leave this block."""
        try:
            yield
        except AzureError as error:
            self._check_open()
            raise translated(error, self._url, key) from None
        except urllib3.exceptions.HTTPError:  # not all that a raw answer raises becomes one of Azure's
            self._check_open()
            raise TransientError(f"{self._url}/{key}".rstrip("/") + ": the connection broke") from None
        except _MISUNDERSTOOD as error:
            self._check_open()
            raise StorageError(f"{self._url}: the service's answer makes no sense ({type(error).__name__})") from None

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient``."""
        blob = self._blob(key)
        with self._talking(key):
            return _info(key, blob.get_blob_properties())

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient``."""
        for _ in range(_CHANGES):
            try:
                return self._read(key, offset, length, if_match, limit)
            except PreconditionError:
                if if_match is not None or offset >= 0:
                    raise  # only a read from the end asks for the state that it has seen
        raise TransientError(f"{self._url}/{key} changes all the time")

    def _read(
        self, key: str, offset: int, length: int | None, if_match: str | None, limit: int | None = None
    ) -> Object:
        if length is not None and length < 0:
            raise self._too_short(key)
        if offset < 0 or length == 0:  # the service knows no ranges from the end, and no empty ones
            info = self.head(key)
            if if_match is not None and info.etag != if_match:
                raise PreconditionError(f"{self._url}/{key} has changed")
            if_match = info.etag
            offset += info.size if offset < 0 else 0
            if offset < 0 or offset > info.size or (length is not None and offset + length > info.size):
                raise self._too_short(key)
            if length == 0 or offset == info.size:
                return Object(b"", info.etag)
        blob = self._blob(key)
        whole = not offset and length is None
        with self._talking(key):
            try:
                reply = blob.download_blob(
                    None if whole else offset,
                    length,
                    max_concurrency=1,
                    decompress=False,
                    raw_response_hook=lambda reply: self._check_length(key, reply, offset, length, limit),
                    **self._condition(key, if_match),
                )
                data = reply.readall()
            except Exception as error:
                if getattr(error, "status_code", None) != 416:
                    raise
                data = None
        if data is None:
            if length is None and self.head(key).size == offset:
                return self._read(key, offset, 0, if_match)
            raise self._too_short(key)
        if length is not None and len(data) < length:
            raise self._too_short(key)
        if len(data) != (reply.size if length is None else length):
            raise IntegrityError(f"{self._url}/{key}: the service sent {len(data)} bytes, not those asked for")
        return Object(data, _tag(reply.properties.etag))

    def _check_length(self, key: str, reply: Any, offset: int, length: int | None, limit: int | None) -> None:
        """Look at what is announced, before the library takes it into memory: all that comes, however much."""
        http = reply.http_response
        if not 200 <= http.status_code < 300:
            return
        where = f"{self._url}/{key}"
        try:
            announced = http.headers.get("Content-Length", "")
            # With a transfer encoding, more could come than is announced.
            if not _NUMBER.match(announced) or "Transfer-Encoding" in http.headers:
                raise StorageError(f"{where}: the service does not say how long it is")
            if length is not None and int(announced) > length:
                raise IntegrityError(f"{where}: the service sent more bytes than were asked for")
            total = _TOTAL.search(http.headers.get("Content-Range", ""))
            follows = int(total[1]) - offset if total and length is None else 0
            check_limit(where, max(int(announced), follows), limit)
        except CasstoreError:
            http.internal_response.close()
            raise

    def _too_short(self, key: str) -> IntegrityError:
        return IntegrityError(f"{self._url}/{key} is shorter than it should be")

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient``."""
        views, size = views_of(data), size_of(data)
        blob = self._blob(key)
        options = self._put_condition(key, condition)
        try:
            if size <= _SINGLE:
                return self._put_single(blob, key, b"".join(views), options)
            part = max(_PART, -(-size // _MOST_PARTS))
            runs = cut(views, part)
            return self._put_blocks(blob, key, (b"".join(run) for run in runs), options)
        except NotFoundError:
            if isinstance(condition, Matches) and self._container_exists():
                raise PreconditionError(f"{self._url}/{key} is not there any more") from None
            raise

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient``."""
        blob = self._blob(key)
        parts = read_parts(source, size, _PART, most=_MOST_PARTS)
        first = list(islice(parts, 2))
        if len(first) == 1:
            tag = persist(lambda: self._put_single(blob, key, first[0], {}))
            if advance is not None:
                advance(len(first[0]))
            return tag
        return self._put_blocks(blob, key, chain(first, parts), {}, advance)

    def _put_single(self, blob: BlobClient, key: str, data: bytes, options: dict[str, Any]) -> str:
        with self._talking(key):
            # validate_content: the service checks an MD5 of what it got.
            reply = blob.upload_blob(data, length=len(data), overwrite=True, validate_content=True, **options)
        return _tag(str(reply["etag"]))

    def _put_blocks(
        self,
        blob: BlobClient,
        key: str,
        parts: Iterable[bytes],
        options: dict[str, Any],
        advance: Advance | None = None,
    ) -> str:
        # Nobody else's blocks of the same blob have these names; all names of a blob's blocks have one length.
        write = uuid.uuid4().hex

        def stage(number: int, part: bytes) -> str:
            name = f"{write}-{number:06}"
            with self._talking(key):
                blob.stage_block(name, part, length=len(part), validate_content=True)
            return name

        names = send_parts(self._pool, parts, stage, at_once=_AT_ONCE, advance=advance)

        def commit() -> str:
            with self._talking(key):
                reply = blob.commit_block_list([BlobBlock(name) for name in names], **options)
            return _tag(str(reply["etag"]))

        return commit() if options else persist(commit)

    def _condition(self, key: str, tag: str | None) -> dict[str, Any]:
        if tag is None:
            return {}
        if not _TAG.match(tag):
            raise PreconditionError(f"{self._url}/{key} has changed")
        return {"etag": f'"{tag}"', "match_condition": MatchConditions.IfNotModified}

    def _put_condition(self, key: str, condition: Condition) -> dict[str, Any]:
        if isinstance(condition, Absent):
            return {"match_condition": MatchConditions.IfMissing}
        return self._condition(key, condition.etag if isinstance(condition, Matches) else None)

    def _container_exists(self) -> bool:
        with self._talking():
            return self._client.exists()

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient``.

        The service can't be told where to begin: what is not after ``after`` goes over the line and is passed over.
        """
        self._check_open()
        options: dict[str, Any] = {"name_starts_with": prefix or None, "results_per_page": _PAGE}
        found: Any
        if recursive:
            found = self._client.list_blobs(include=["metadata"], **options)
        else:
            found = self._client.walk_blobs(include=["metadata"], delimiter="/", **options)
        pages = found.by_page()
        last, floor = b"", after.encode()
        while True:
            self._check_open()
            with self._talking():
                page = next(pages, None)
                if page is None:
                    return
                infos = [_info(item.name, item) for item in page if not _is_marker(item)]
            # Within a page, folders come first; among pages, the service keeps the order.
            for key, info in sorted((info.key.encode(), info) for info in infos):
                if key <= last and last:
                    raise StorageError(
                        f"{self._url} does not list its blobs in the order of their names",
                        hint="an account with a hierarchical namespace does that; use one without",
                    )
                last = key
                if key > floor:
                    yield info

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient``."""
        self._check_open()
        left = iter(keys)
        while batch := list(islice(left, _BATCH)):
            if len(batch) == 1 or not self._batches:
                futures = [self._pool.submit(self._delete_one, key) for key in batch]
                concurrent.futures.wait(futures)
                for future in futures:
                    future.result()
            else:
                self._delete_batch(batch)

    def _delete_one(self, key: str) -> None:
        with self._talking(key):
            try:
                self._blob(key).delete_blob()
            except AzureError as error:
                if not is_missing_blob(error):
                    raise

    def _delete_batch(self, batch: Sequence[str]) -> None:
        with self._talking():
            replies = list(self._client.delete_blobs(*batch, raise_on_any_failure=False))
        if len(replies) != len(batch):
            # A service that says less than it should has perhaps no batches: one by one from now on.
            self._batches = False
            self.delete(batch)
            return
        for key, reply in zip(batch, replies, strict=True):
            if not (200 <= reply.status_code < 300 or is_missing_blob(reply)):
                raise translated_reply(reply, self._url, key)

    def close(self) -> None:
        """See ``ObjectClient``."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown(wait=True)
            self._client.close()
            if self._identity is not None:
                self._identity.close()


class _Adapter(requests.adapters.HTTPAdapter):
    """Connections whose answers keep the pace, through a proxy or not."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = paced(self.poolmanager.pool_classes_by_scheme)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        if proxy not in self.proxy_manager:
            made = super().proxy_manager_for(proxy, **options)
            made.pool_classes_by_scheme = paced(made.pool_classes_by_scheme)
        return self.proxy_manager[proxy]


def _machine_identity() -> Any:
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - slow to import, and seldom needed

    return DefaultAzureCredential(retry_total=1, process_timeout=_CONNECT_SECONDS)


def _tag(etag: str | None) -> str:
    return (etag or "").strip('"')


def _is_marker(item: Any) -> bool:
    """Where names are a hierarchy, folders are listed as empty blobs."""
    return (getattr(item, "metadata", None) or {}).get("hdi_isfolder") == "true"


def _info(key: str, item: Any) -> RemoteInfo:
    modified = getattr(item, "last_modified", None)
    if modified is None:
        return RemoteInfo(key, 0, 0.0, "")
    return RemoteInfo(key, item.size, modified.timestamp(), _tag(item.etag))
