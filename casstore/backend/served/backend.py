"""A back end without credentials of the bucket: a server checks what changes, data goes straight to and fro.

Decided here and only here: what is asked of the server and what goes to an address of its bucket. Packs, segments of
the index and roots of manifests are read at signed addresses; a pack is put at one, and is a pack when the server has
looked at it. Everything else is small and goes through the server, which decides whether it may. An address that no
longer works is asked for anew. A bucket that this machine can't reach is reached through the server.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from casstore.backend.base import (
    Absent,
    Buffer,
    Capabilities,
    Condition,
    Matches,
    Object,
    ObjectInfo,
    check_limit,
    validate_key,
    validate_prefix,
)
from casstore.backend.served.http import Http, Reply, UnreachableError
from casstore.backend.served.urls import Urls
from casstore.errors import (
    AccessError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    ServiceError,
    StorageError,
    TransientError,
    UsageError,
)
from casstore.remote.http_range import has_words, range_header
from casstore.structs import from_json
from casstore.wire.protocol import to_exception
from casstore.wire.v1 import (
    MAX_BLOB,
    MAX_KEYS,
    MAX_LISTED,
    DeleteBody,
    IndexBody,
    ObjectReply,
    ObjectsReply,
    PackBody,
    PackWish,
    Signed,
    UrlsBody,
    UrlsReply,
    Written,
    etag_header,
    etag_of,
)

__all__ = ["ServedBackend"]

MAX_WHOLE = 1 << 30
"""Bytes of an object that is read whole, at most."""
REFRESHES = 3
"""How often another address is asked for instead of one that does not work."""
_DATA = re.compile(r"(?:packs/[0-9a-f]{2}|manifests/[0-9a-f]{2}|index)/[0-9a-f]{64}\Z", re.ASCII)
_PACK = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{64})\Z", re.ASCII)
_SPENT = frozenset({400, 401, 403})
"""What services say of an address that is too old: which of these is up to the service."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)\Z", re.ASCII)
_T = TypeVar("_T")


class ServedBackend:
    """A ``Backend`` over one bucket of a server. It owns ``http``."""

    def __init__(self, http: Http, bucket: str) -> None:
        self._http = http
        self._bucket = bucket
        self._path = f"/api/v1/bucket/{quote(bucket, safe='')}"
        self._urls = Urls(self._ask)
        self._direct = True
        self._reached = False
        self._closed = False
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The bucket's place on the server."""
        return f"{self._http.base}/{self._bucket}"

    @property
    def capabilities(self) -> Capabilities:
        """The server keeps conditions, and the index."""
        return Capabilities(conditional_put=True, local=False, registers=True)

    # ---- through the server

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """See ``Backend.get``."""
        self._check(key)
        if _DATA.match(key):
            data = self._fetch(key, 0, None, limit)
            return Object(data, key.rpartition("/")[2])
        query = "" if limit is None else f"?{urlencode({'limit': limit})}"
        found = self._server("GET", f"/object/{quote(key)}{query}")
        check_limit(f"{self.url}/{key}", len(found.data), limit)
        return Object(found.data, etag_of(found.headers.get("etag", "")))

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        self._check(key)
        found = self._decoded(self._server("GET", f"/stat/{quote(key)}"), ObjectReply)
        return ObjectInfo(key, found.size, found.mtime)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``."""
        validate_prefix(prefix)
        self._check_open()
        return self._list(prefix, after)

    def _list(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        while True:
            query = urlencode({"prefix": prefix, "after": after, "count": MAX_LISTED})
            page = self._decoded(self._server("GET", f"/objects?{query}"), ObjectsReply)
            for key, size, mtime in page.objects:
                if not key.startswith(prefix) or key <= after:
                    raise ServiceError(f"{self.url}: the server lists what was not asked for")
                after = key
                yield ObjectInfo(validate_key(key), size, mtime)
            if not page.more or not page.objects:
                return

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``."""
        self._check(key)
        if isinstance(condition, Matches) and not condition.etag:
            raise PreconditionError(f"{self.url}: no state of {key} has an empty tag")
        views = [memoryview(part).cast("B") for part in data]
        pack = _PACK.match(key)
        if pack is not None:
            return self._put_pack(pack[1], key, views, condition)
        headers = {}
        if isinstance(condition, Absent):
            headers["If-None-Match"] = "*"
        elif condition is not None:
            headers["If-Match"] = etag_header(condition.etag)
        found = self._server("PUT", f"/object/{quote(key)}", headers, b"".join(views))
        return self._decoded(found, Written).etag

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``. ``AccessError`` for what clients of a server don't delete."""
        named = [self._check(key) for key in keys]
        for start in range(0, len(named), MAX_KEYS):
            self._post("/objects/delete", DeleteBody(named[start : start + MAX_KEYS]))

    def register(self, packs: Iterable[bytes]) -> None:
        """See ``Registers.register``."""
        self._post("/index", IndexBody([pack_id.hex() for pack_id in packs]))

    def local_path(self, key: str) -> str | None:
        """Return None: there are no files."""
        self._check(key)
        return None

    def close(self) -> None:
        """See ``Backend.close``."""
        if not self._closed:
            self._closed = True
            self._http.close()

    def _post(self, path: str, body: msgspec.Struct) -> Reply:
        return self._server("POST", path, {"Content-Type": "application/json"}, msgspec.json.encode(body))

    def _server(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Reply:
        self._check_open()
        found = self._http.server(method, self._path + path, headers=headers, body=body)
        if found.status != 200:
            raise to_exception(max(found.status, 400), found.data)
        return found

    def _decoded(self, found: Reply, kind: type[_T]) -> _T:
        try:
            return from_json(found.data, kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ServiceError(f"{self.url}: the server's reply can't be understood: {error}") from None

    # ---- data

    def _ask(self, keys: Sequence[str]) -> UrlsReply:
        return self._decoded(self._post("/urls", UrlsBody(read=[*keys], direct=self._direct)), UrlsReply)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        self._check(key)
        if not has_words(offset, length):
            size = self.stat(key).size
            if length == 0 and -size <= offset <= size:
                return b""
            raise self._short(key)
        if not _DATA.match(key):
            data = self.get(key).data
            begin = offset if offset >= 0 else len(data) + offset
            if begin < 0 or begin + length > len(data):
                raise self._short(key)
            return data[begin : begin + length]
        if offset < 0:  # Azure takes no ranges from the end
            offset += self.stat(key).size
            if offset < 0:
                raise self._short(key)
        return self._fetch(key, offset, length, None)

    def _fetch(self, key: str, offset: int, length: int | None, limit: int | None) -> bytes:
        """Read a range at an address, or all of an object."""
        for attempt in range(REFRESHES + 1):
            address = self._urls.get(key)
            headers = dict(address.headers)
            if (asked := range_header(offset, length)) is not None:
                headers["Range"] = asked
            most = MAX_WHOLE if length is None else length
            found = self._at(address, "GET", headers, (), max(most, 1 << 16) if limit is None else limit + (1 << 16))
            if found is None or (found.status in _SPENT and attempt < REFRESHES):
                self._urls.forget(key, address)
                continue
            return self._received(key, found, offset, length, limit)
        raise StorageError(f"{self.url}: {key} can't be reached")

    def _at(
        self, address: Signed, method: str, headers: Mapping[str, str], body: Sequence[Buffer], limit: int
    ) -> Reply | None:
        """Send a request to an address; None when nobody is there, and from now on the server is asked instead."""
        own = address.url.startswith("/")
        try:
            found = self._http.data(method, address.url, headers=headers, body=body, limit=limit)
        except UnreachableError:
            if own or (self._reached and self._direct):
                raise
            self._direct = False
            self._urls.clear()
            return None
        self._reached = self._reached or not own
        return found

    def _received(self, key: str, found: Reply, offset: int, length: int | None, limit: int | None) -> bytes:
        if found.status == 404:
            raise NotFoundError(f"{self.url}: {key} does not exist")
        if found.status == 416:
            raise self._short(key)
        if found.status not in {200, 206}:
            raise self._refused(key, found)
        if offset == 0 and length is None:
            check_limit(f"{self.url}/{key}", len(found.data), limit)
            return found.data
        match = _RANGE.match(found.headers.get("content-range", ""))
        if found.status != 206 or match is None:
            raise IntegrityError(f"{self.url}: another range of {key} came than was asked for")
        start, end = int(match[1]), int(match[2])
        if start != offset or end + 1 - start != length or len(found.data) != length:
            raise self._short(key)
        return found.data

    def _put_pack(self, pack: str, key: str, views: Sequence[memoryview], condition: Condition) -> str:
        if isinstance(condition, Matches):
            raise UsageError(f"{key} is never changed")
        size = sum(len(view) for view in views)
        if not 0 < size <= MAX_BLOB:
            raise UsageError(f"{key} has {size} bytes; through a server packs have at most {MAX_BLOB}")
        fresh = isinstance(condition, Absent)
        for attempt in range(REFRESHES + 1):
            wish = UrlsBody(write=[PackWish(pack=pack, size=size)], direct=self._direct)
            address = self._decoded(self._post("/urls", wish), UrlsReply).write[0]
            headers = {"Content-Type": "application/octet-stream"} if address.url.startswith("/") else {}
            if fresh and not address.incoming:
                headers["If-None-Match"] = "*"
            found = self._at(address, "PUT", {**headers, **address.headers}, views, 1 << 20)
            spent = _SPENT if address.incoming else {403}
            if found is None or (found.status in spent and attempt < REFRESHES):
                continue
            if found.status not in {200, 201, 204}:
                raise to_exception(found.status, found.data) if not address.incoming else self._refused(key, found)
            if not address.incoming:
                return self._decoded(found, Written).etag
            body = PackBody(pack=pack, incoming=address.incoming, fresh=fresh)
            return self._decoded(self._post("/packs", body), Written).etag
        raise StorageError(f"{self.url}: {key} can't be stored")

    def _refused(self, key: str, found: Reply) -> Exception:
        """The error for an address that does not work although it is new. What a service says may hold the address."""
        text = f"{self.url}: the bucket refused {key} (status {found.status})"
        if found.status in _SPENT:
            return AccessError(
                text, hint="Its credentials on the server may not do this, or the server's clock is wrong."
            )
        return TransientError(text) if found.status >= 500 else StorageError(text)

    def _short(self, key: str) -> IntegrityError:
        return IntegrityError(f"{self.url}: {key} is too short")

    def _check(self, key: str) -> str:
        validate_key(key)
        self._check_open()
        return key

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.url} was closed")
