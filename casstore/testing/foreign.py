"""Buckets of other tools, for tests: object storage in memory, and OSMO 6.2's layout in it.

Decided here and only here: what such a bucket looks like, byte for byte as OSMO's client writes it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from casstore.errors import IntegrityError, NotFoundError, PreconditionError
from casstore.model import Buffer
from casstore.remote.base import Absent, Advance, Condition, Matches, Object, ObjectClient, RemoteInfo, check_limit
from casstore.remote.credentials import CredentialSource

__all__ = ["MemoryBuckets", "MemoryClient", "OsmoFolder", "osmo_etag"]

PART = 8 << 20
MTIME = 1_780_000_000.0


def osmo_etag(data: bytes, part: int = PART) -> str:
    """The ETag that OSMO's client computes, or with another ``part`` that of S3."""
    if len(data) <= part:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    sums = [hashlib.md5(data[at : at + part], usedforsecurity=False).digest() for at in range(0, len(data), part)]
    return f"{hashlib.md5(b''.join(sums), usedforsecurity=False).hexdigest()}-{len(sums)}"


class MemoryClient:
    """An ``ObjectClient`` over a dictionary. Thread-safe. ``log`` has every call that reads: what, and the key."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._lock = threading.Lock()
        self.log: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        """See ``ObjectClient.url``."""
        return self._url

    def _find(self, key: str) -> tuple[bytes, str]:
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise NotFoundError(f"{self._url}/{key} does not exist")
        return found

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient.head``."""
        self.log.append(("head", key))
        data, etag = self._find(key)
        return RemoteInfo(key, len(data), MTIME, etag)

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient.read``."""
        self.log.append(("read", key))
        data, etag = self._find(key)
        if if_match not in (None, etag):
            raise PreconditionError(f"{self._url}/{key} was changed meanwhile")
        start = offset if offset >= 0 else len(data) + offset
        end = len(data) if length is None else start + length
        if start < 0 or end > len(data):
            raise IntegrityError(f"{self._url}/{key} has {len(data)} bytes; {length} from {offset} were asked for")
        check_limit(f"{self._url}/{key}", end - start, limit)
        return Object(data[start:end], etag)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient.put``."""
        return self.store(key, b"".join(data), condition=condition)

    def store(self, key: str, data: bytes, etag: str | None = None, condition: Condition = None) -> str:
        """Put an object, with an ETag of your own if you like."""
        tag = etag or f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        with self._lock:
            now = self._objects.get(key)
            if isinstance(condition, Absent) and now is not None:
                raise PreconditionError(f"{key} exists already")
            if isinstance(condition, Matches) and (now is None or now[1] != condition.etag):
                raise PreconditionError(f"{key} was changed meanwhile")
            self._objects[key] = (data, tag)
        return tag

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient.upload``."""
        return self.store(key, source.read())

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient.list``."""
        self.log.append(("list", prefix))
        last = ""
        with self._lock:
            found = sorted(self._objects.items(), key=lambda item: item[0].encode())
        for key, (data, etag) in found:
            if not key.startswith(prefix) or key <= after:
                continue
            folder, slash, _ = key.removeprefix(prefix).partition("/")
            if slash and not recursive:
                if folder != last:
                    yield RemoteInfo(prefix + folder + "/", 0, 0.0, "")
                last = folder
                continue
            yield RemoteInfo(key, len(data), MTIME, etag)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient.delete``."""
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)

    def close(self) -> None:
        """See ``ObjectClient.close``."""


class MemoryBuckets:
    """Buckets by name; calling it opens a URL, as ``casstore.remote.open.open_objects`` does."""

    def __init__(self) -> None:
        self.clients: dict[str, MemoryClient] = {}

    def bucket(self, url: str) -> MemoryClient:
        """The bucket with this URL, made when it is new."""
        return self.clients.setdefault(url, MemoryClient(url))

    def __call__(self, url: str, credentials: CredentialSource | None = None) -> tuple[ObjectClient, str]:
        """Return the client of the bucket that a URL is in, and the path in it."""
        scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.partition("/")
        return self.bucket(f"{scheme}://{bucket}"), prefix.strip("/")


class OsmoFolder:
    """One dataset in the layout of OSMO 6.2, written as its client does."""

    def __init__(self, client: ObjectClient, path: str, dataset_id: str | None = None, url: str | None = None) -> None:
        """``url`` is the bucket as OSMO called it; by default as the client does."""
        self.client = client
        self.id = dataset_id or base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        self.prefix = f"{path}/{self.id}" if path else self.id
        self.storage = f"{url or client.url}/{self.prefix}"
        self.checksums: dict[int, str] = {}
        """OSMO's checksum of each version."""

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        """Upload one file, unless an object with its ETag is there, and return its entry."""
        etag = osmo_etag(data)
        key = f"{self.prefix}/hashes/{etag}"
        try:
            self.client.head(key)
        except NotFoundError:
            self.client.put(key, [data])
        return self.described(path, f"{self.storage}/hashes/{etag}", len(data), etag)

    @staticmethod
    def described(path: str, storage_path: str, size: int, etag: str) -> dict[str, Any]:
        """An entry of a manifest."""
        url = "https://" + storage_path.partition("://")[2]
        return {"relative_path": path, "storage_path": storage_path, "url": url, "size": size, "etag": etag}

    def version(self, number: int, files: Mapping[str, bytes], more: Sequence[dict[str, Any]] = ()) -> None:
        """Upload a version; ``more`` are entries as they are."""
        self.manifest(number, [*(self.entry(path, data) for path, data in files.items()), *more])

    def manifest(self, number: int, entries: Sequence[Any]) -> None:
        """Write a manifest, and nothing else."""
        texts = [f"{entry['relative_path']} {entry['etag']}" for entry in entries if isinstance(entry, dict)]
        text = "".join(texts).encode("utf-8", "surrogatepass")
        self.checksums[number] = hashlib.md5(text, usedforsecurity=False).hexdigest()
        self.raw_manifest(number, ("[" + ",\n".join(json.dumps(entry) for entry in entries) + "]").encode())

    def raw_manifest(self, number: int, data: bytes) -> None:
        """Write bytes in the place of a manifest."""
        self.client.put(f"{self.prefix}/manifests/{number}.json", [data])

    def info(self, name: str, numbers: Iterable[int], **more: Any) -> dict[str, Any]:
        """What ``osmo dataset info NAME -t json`` of OSMO prints."""
        return {
            "name": name,
            "id": self.id,
            "bucket": "lab",
            "created_by": "alex@lab",
            "created_date": "2026-02-01T10:00:00",
            "hash_location": f"{self.storage}/hashes",
            "hash_location_size": 1,
            "labels": {},
            "type": "DATASET",
            "versions": [self.info_version(name, number) for number in numbers],
            **more,
        }

    def info_version(self, name: str, number: int, **more: Any) -> dict[str, Any]:
        """One version in it."""
        return {
            "name": name,
            "version": str(number),
            "status": "READY",
            "created_by": "alex@lab",
            "created_date": f"2026-02-{number:02}T10:00:00.250000",
            "last_used": "2026-03-01T10:00:00",
            "size": 1,
            "checksum": self.checksums.get(number, ""),
            "location": "https://" + self.storage.partition("://")[2],
            "uri": f"{self.storage}/manifests/{number}.json",
            "metadata": {},
            "tags": [],
            "collections": [],
            **more,
        }
