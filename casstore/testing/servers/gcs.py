"""A double of Google Cloud Storage's XML API, in threads of this process, on loopback.

Decided here and only here: how the double behaves. The doubles that the registries have speak the JSON API, and look at
no generation: with them a compare-and-swap can't be tested. This one takes conditions on generations only, as the
service does (a write with If-Match or If-None-Match is an ordinary write), decides them under a lock, and checks every
signature, token and checksum.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.server
import itertools
import re
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import google_crc32c
import msgspec

from casstore.remote.credentials import StorageCredential
from casstore.remote.gcs_auth import ALGORITHM, key_of, signature_of, text_to_sign

__all__ = ["GcsServer"]

PAGE: Final = 1000
LEAST_PART: Final = 5 << 20
_AUTHORIZATION = re.compile(r"GOOG4-HMAC-SHA256 Credential=([^/]+)/(\S+),SignedHeaders=(\S+),Signature=([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))\Z")


class _Stored(msgspec.Struct, frozen=True):
    data: bytes
    generation: int
    time: float

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


class _Upload(msgspec.Struct):
    key: str
    parts: dict[int, _Stored]


class _Bucket(msgspec.Struct):
    objects: dict[str, _Stored]
    uploads: dict[str, _Upload]


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class GcsServer:
    """A running double: HMAC keys and tokens of its own, and buckets in memory."""

    def __init__(self) -> None:
        self.key_id = f"GOOG1E{secrets.token_hex(8).upper()}"
        self.secret = secrets.token_urlsafe(30)
        self.token = secrets.token_urlsafe(30)
        self.lock = threading.Lock()
        self.buckets: dict[str, _Bucket] = {}
        self._generations = itertools.count(int(time.time() * 1e6))
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._http = _Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def credential(self) -> StorageCredential:
        """What a client needs to talk to this server."""
        return StorageCredential(access_key_id=self.key_id, access_key=self.secret, override_url=self.url)

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"b-{uuid.uuid4().hex}"
        self.buckets[name] = _Bucket({}, {})
        return name

    def unfinished(self, bucket: str) -> int:
        """How many uploads in parts are open."""
        return len(self.buckets[bucket].uploads)

    def store(self, bucket: _Bucket, key: str, data: bytes, condition: str | None) -> _Stored:
        """Replace an object, if the condition on its generation holds."""
        with self.lock:
            found = bucket.objects.get(key)
            if condition is not None and condition != str(found.generation if found else 0):
                raise _RefusedError(412, "PreconditionFailed")
            stored = bucket.objects[key] = _Stored(data, next(self._generations), time.time())
            return stored

    def stop(self) -> None:
        """End the server."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Listener(http.server.ThreadingHTTPServer):
    request_queue_size = 1024  # as many connections as come at the same moment


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server_of: GcsServer

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        try:
            self._authenticate(parts.path, query)
            query = {name: value for name, value in query.items() if not name.startswith("X-Goog-")}
            name, _, key = parts.path[1:].partition("/")
            bucket = self.server_of.buckets.get(unquote(name))
            if bucket is None:
                raise _RefusedError(404, "NoSuchBucket")
            if not key:
                self._list(bucket, query)
            elif self.command in {"GET", "HEAD"}:
                self._read(bucket, unquote(key))
            else:
                self._write(bucket, unquote(key), query, body)
        except _RefusedError as error:
            text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{error.code}</Code></Error>"
            self._answer(error.status, text.encode())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - their names are given

    def _authenticate(self, path: str, query: Mapping[str, str]) -> None:
        if "X-Goog-Signature" in query:
            self._check_address(path, query)
            return
        said = self.headers.get("Authorization", "")
        if said == f"Bearer {self.server_of.token}":
            return
        match = _AUTHORIZATION.match(said)
        if match is None:
            raise _RefusedError(401, "AuthenticationRequired")
        key_id, scope, names, signature = match.groups()
        if key_id != self.server_of.key_id:
            raise _RefusedError(403, "InvalidAccessKeyId")
        signed = {name: self.headers.get(name, "") for name in names.split(";")}
        unsigned = {name.lower() for name in self.headers if name.lower().startswith("x-goog-")} - set(signed)
        expected = signature_of(self.server_of.secret, self.command, path, list(query.items()), signed, scope)
        if unsigned or "host" not in signed or expected != signature:
            raise _RefusedError(403, "SignatureDoesNotMatch")
        stamp = datetime.strptime(signed["x-goog-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs(stamp.timestamp() - time.time()) > 900 or not scope.startswith(signed["x-goog-date"][:8]):
            raise _RefusedError(403, "RequestTimeTooSkewed")

    def _check_address(self, path: str, query: Mapping[str, str]) -> None:
        """A signature in the query: for one object, one method, and a time."""
        asked = {name: value for name, value in query.items() if name != "X-Goog-Signature"}
        key_id, _, scope = asked["X-Goog-Credential"].partition("/")
        names = asked["X-Goog-SignedHeaders"].split(";")
        signed = {name: self.headers.get(name, "") for name in names}
        text = text_to_sign(
            ALGORITHM, self.command, path, [*asked.items()], signed, "UNSIGNED-PAYLOAD", asked["X-Goog-Date"], scope
        )
        right = hmac.digest(key_of(self.server_of.secret, scope), text.encode(), "sha256").hex()
        if key_id != self.server_of.key_id or right != query["X-Goog-Signature"] or "host" not in names:
            raise _RefusedError(403, "SignatureDoesNotMatch")
        begun = datetime.strptime(asked["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if time.time() > begun + int(asked["X-Goog-Expires"]):
            raise _RefusedError(400, "ExpiredToken")
        least = signed.get("x-goog-content-length-range", "")
        if least and not int(least.split(",")[0]) <= int(self.headers["Content-Length"]) <= int(least.split(",")[1]):
            raise _RefusedError(400, "EntityTooLarge")

    def _read(self, bucket: _Bucket, key: str) -> None:
        with self.server_of.lock:
            found = bucket.objects.get(key)
        condition = self.headers.get("x-goog-if-generation-match")
        if found is None:
            raise _RefusedError(404, "NoSuchKey")
        if condition is not None and condition != str(found.generation):
            raise _RefusedError(412, "PreconditionFailed")
        size = len(found.data)
        headers = {
            "x-goog-generation": str(found.generation),
            "x-goog-stored-content-length": str(size),
            "ETag": found.etag,
            "Last-Modified": email.utils.formatdate(found.time, usegmt=True),
            "x-goog-hash": f"crc32c={_crc(found.data)}",
        }
        match = _RANGE.match(self.headers.get("Range", ""))
        if match is None:
            self._answer(200, found.data, {"Content-Length": str(size), **headers})
            return
        start = max(0, size - int(match[3])) if match[3] else int(match[1])
        end = min(size, int(match[2]) + 1) if match[2] else size
        if start >= size:
            raise _RefusedError(416, "InvalidRange")
        self._answer(206, found.data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"})

    def _write(self, bucket: _Bucket, key: str, query: Mapping[str, str], body: bytes) -> None:
        said = self.headers.get("x-goog-hash")
        if said is not None and said != f"crc32c={_crc(body)}":
            raise _RefusedError(400, "BadDigest")
        condition = self.headers.get("x-goog-if-generation-match")
        if query and condition is not None:
            raise _RefusedError(400, "InvalidArgument")
        if "uploads" in query:
            upload = uuid.uuid4().hex
            bucket.uploads[upload] = _Upload(key, {})
            self._answer(200, f"<Result><UploadId>{upload}</UploadId></Result>".encode())
        elif "uploadId" in query:
            self._write_part(bucket, key, query, body)
        elif self.command == "PUT":
            stored = self.server_of.store(bucket, key, body, condition)
            self._answer(200, b"", {"ETag": stored.etag, "x-goog-generation": str(stored.generation)})
        elif self.command == "DELETE":
            with self.server_of.lock:
                gone = bucket.objects.pop(key, None)
            if gone is None:
                raise _RefusedError(404, "NoSuchKey")
            self._answer(204)
        else:
            raise _RefusedError(400, "InvalidArgument")

    def _write_part(self, bucket: _Bucket, key: str, query: Mapping[str, str], body: bytes) -> None:
        upload = bucket.uploads.get(query["uploadId"])
        if upload is None or upload.key != key:
            raise _RefusedError(404, "NoSuchUpload")
        if self.command == "PUT":
            part = upload.parts[int(query["partNumber"])] = _Stored(body, 0, time.time())
            self._answer(200, b"", {"ETag": part.etag})
            return
        del bucket.uploads[query["uploadId"]]
        if self.command == "DELETE":
            self._answer(204)
            return
        named = [(int(_text(part, "PartNumber")), _text(part, "ETag")) for part in ET.fromstring(body)]  # noqa: S314
        parts = [upload.parts[number] for number, tag in named if upload.parts[number].etag == tag]
        if len(parts) != len(named) or any(len(part.data) < LEAST_PART for part in parts[:-1]):
            raise _RefusedError(400, "InvalidPart")
        stored = self.server_of.store(bucket, key, b"".join(part.data for part in parts), None)
        self._answer(200, f"<Result><ETag>{escape(stored.etag)}</ETag></Result>".encode())

    def _list(self, bucket: _Bucket, query: Mapping[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after = query.get("continuation-token") or query.get("start-after", "")
        with self.server_of.lock:
            objects = sorted(bucket.objects.items(), key=lambda item: item[0].encode())
        found: dict[str, _Stored | None] = {}
        truncated = False
        for key, stored in objects:
            if not key.startswith(prefix):
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key[: cut + 1] if cut >= 0 else key
            if name.encode() <= after.encode() or name in found:
                continue
            if len(found) == PAGE:
                truncated = True
                break
            found[name] = None if cut >= 0 else stored
        text = [f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"]
        if truncated:
            text.append(f"<NextContinuationToken>{escape(list(found)[-1])}</NextContinuationToken>")
        for name, entry in found.items():
            if entry is None:
                text.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
            else:
                stamp = datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                text.append(
                    f"<Contents><Key>{escape(name)}</Key><Generation>{entry.generation}</Generation>"
                    f"<LastModified>{stamp}</LastModified><ETag>{escape(entry.etag)}</ETag>"
                    f"<Size>{len(entry.data)}</Size></Contents>"
                )
        body = f"<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>{''.join(text)}</ListBucketResult>"
        self._answer(200, body.encode())


def _crc(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def _text(item: ET.Element, name: str) -> str:
    return item.findtext(name) or ""
