"""Datasets in the bucket of an OSMO of release 6.3 or older.

Decided here and only here: how such a bucket is read, and which objects a manifest may lead to.

    <path>/<dataset id>/hashes/<etag>             the bytes of one file, however many versions have it
    <path>/<dataset id>/manifests/<version>.json  the files of one version

The ids say nothing: names, tags and everything else were in the service's database. Manifests of deleted versions are
still there, and those of uploads that failed, too; only the service knew. An object is looked for where the manifests
are, so that a bucket which was copied elsewhere can be read; anything else that a manifest names was linked. A manifest
is no more to be trusted than anybody who could write to the bucket: linked objects are read only from the bucket
itself, from one that the same credential was configured for, and from where the user says.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from casstore.dataset.adopt.base import Buckets, Found
from casstore.dataset.adopt.manifest import ManifestEntry, read_list
from casstore.errors import AccessError, CasstoreError, FormatError, NotFoundError, UsageError
from casstore.remote.base import ObjectClient, RemoteInfo
from casstore.remote.urls import REMOTE_SCHEMES, parse_url, shown
from casstore.transfer.digests import Expected, plain_etag
from casstore.transfer.spool import ForeignFile

__all__ = ["Links", "Locate", "OsmoDataset", "OsmoVersion", "find_datasets"]

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z", re.ASCII)
_MANIFEST = re.compile(r"([1-9][0-9]{0,11})\.json\Z", re.ASCII)
_MAX_VERSIONS = 100_000


class Locate(Protocol):
    """Says where an object outside of a dataset is, if it may be read."""

    def locate(self, url: str) -> tuple[str, str]:
        """Return the bucket's URL and the key; ``UsageError`` or ``AccessError`` for what is not followed."""
        ...


class Links:
    """Which objects outside of a dataset may be read on the word of a manifest.

    ``follow``: URLs of prefixes that the user named.
    """

    def __init__(self, source: str, buckets: Buckets, follow: Sequence[str] = ()) -> None:
        self._credentials = buckets.credentials
        self._follow = [parse_url(url).url + "/" for url in follow]
        for url in self._follow:
            if url.partition(":")[0] not in REMOTE_SCHEMES:
                raise UsageError(f"{shown(url)} is not object storage", hint="only such links are followed")
        place = parse_url(source)
        self._bucket = place.bucket_url if place.scheme in REMOTE_SCHEMES else None
        self._own = self._find(place.profile) if self._bucket else None
        self._known: dict[str, bool] = {}

    def _find(self, profile: str) -> object:
        return self._credentials.find(profile) if self._credentials is not None else None

    def locate(self, url: str) -> tuple[str, str]:
        """Return the bucket's URL and the key; ``UsageError`` or ``AccessError`` for what is not followed."""
        place = parse_url(url)
        if place.scheme not in REMOTE_SCHEMES:
            raise UsageError("it is linked to something that is not object storage")
        bucket = place.bucket_url
        if bucket not in self._known:
            self._known[bucket] = bucket == self._bucket or (
                self._own is not None and self._own == self._find(place.profile)
            )
        if not self._known[bucket] and not any(place.url.startswith(prefix) for prefix in self._follow):
            raise AccessError(f"it is linked to {shown(place.url)}, outside of the bucket: see --follow")
        return bucket, place.prefix


class OsmoVersion:
    """One manifest: a ``Foreign``."""

    def __init__(self, dataset: OsmoDataset, number: int, info: RemoteInfo) -> None:
        self.dataset = dataset
        self.number = number
        self.info = info
        self.linked = 0
        self.checksum = ""

    @property
    def url(self) -> str:
        """The manifest."""
        return f"{self.dataset.client.url}/{self.info.key}"

    def entries(self) -> Iterator[Found]:
        """See ``Foreign.entries``."""
        checksum = hashlib.md5(usedforsecurity=False)
        self.linked = 0
        for number, entry in enumerate(read_list(self.dataset.client, self.info, ManifestEntry), 1):
            checksum.update(f"{entry.relative_path} {entry.etag}".encode("utf-8", "surrogatepass"))
            yield self._found(f"{self.url}, entry {number}", entry)
        self.checksum = checksum.hexdigest()

    def first(self) -> str | None:
        """Return the path of the first file, to tell this dataset from others; None when there is none to be read."""
        try:
            entry = next(read_list(self.dataset.client, self.info, ManifestEntry), None)
        except FormatError:
            return None
        return None if entry is None else entry.relative_path

    def _found(self, where: str, entry: ManifestEntry) -> Found:
        path = entry.relative_path.encode("utf-8", "surrogatepass")
        try:
            path = entry.relative_path.encode()
            etag = plain_etag(entry.etag)
            if not etag or entry.size < 0:
                return Found(where, None, path, "it has no ETag" if entry.size >= 0 else "its size is negative")
            own = self.dataset.own_object(entry.storage_path)
            if own is None:
                return self._linked(where, path, entry, etag)
        except UnicodeEncodeError:
            return Found(where, None, path, "the path is not valid text")
        except CasstoreError as error:
            return Found(where, None, path, error.message)
        found = self.dataset.object(own)
        if found is None:
            return Found(where, None, path, f"its object {self.dataset.client.url}/{own} is not there")
        if found.size != entry.size:
            return Found(where, None, path, f"its object has {found.size} bytes, not {entry.size}")
        # Of an object that was sent in parts the ETag may be the service's own: migrated datasets have those.
        expected = Expected(etag, state="-" in etag)
        mtime = int(found.mtime) * 10**9
        client = self.dataset.client
        return Found(where, ForeignFile(path, found.size, client.url, own, found.etag, 0o644, mtime, expected))

    def _linked(self, where: str, path: bytes, entry: ManifestEntry, etag: str) -> Found:
        bucket, key = self.dataset.links.locate(entry.storage_path)
        if not key:
            return Found(where, None, path, "it is linked to a bucket, not to an object")
        self.linked += 1
        mtime = int(self.info.mtime) * 10**9
        expected = Expected(etag, state=True)
        return Found(where, ForeignFile(path, entry.size, bucket, key, "", 0o644, mtime, expected))

    def provenance(self) -> dict[str, Any]:
        """See ``Foreign.provenance``. ``checksum`` is OSMO's own of the version."""
        return {
            "from": "osmo",
            "source": self.dataset.url,
            "dataset_id": self.dataset.id,
            "version": self.number,
            "manifest": self.url,
            "manifest_etag": self.info.etag,
            "checksum": self.checksum,
            "linked": self.linked,
        }


class OsmoDataset:
    """One dataset of a bucket. ``url`` is its folder there. Close it after its entries were asked for."""

    def __init__(self, client: ObjectClient, prefix: str, dataset_id: str, links: Locate) -> None:
        self.client = client
        self.links = links
        self.prefix = prefix
        self.id = dataset_id
        self._objects: _Objects | None = None

    @property
    def url(self) -> str:
        """Its folder in the bucket, without a slash at the end."""
        return f"{self.client.url}/{self.prefix}".rstrip("/")

    def versions(self) -> list[OsmoVersion]:
        """Return what there is a manifest of, in the order of their numbers."""
        start = f"{self.prefix}manifests/"
        found: list[OsmoVersion] = []
        for info in self.client.list(start, recursive=False):
            match = _MANIFEST.match(info.key.removeprefix(start))
            if match:
                found.append(OsmoVersion(self, int(match[1]), info))
                if len(found) > _MAX_VERSIONS:
                    raise UsageError(f"{self.url} has more than {_MAX_VERSIONS} versions")
        return sorted(found, key=lambda version: version.number)

    def own_object(self, storage_path: str) -> str | None:
        """Return the key of an object of this dataset's own, or None for one that was linked."""
        head, _, name = storage_path.rpartition("/")
        if name and head.endswith(f"/{self.id}/hashes") and name not in {".", ".."}:
            return f"{self.prefix}hashes/{name}"
        return None

    def object(self, key: str) -> RemoteInfo | None:
        """Return one object of the dataset's own. Lists all of them at the first call."""
        if self._objects is None:
            self._objects = _Objects(self.client.list(f"{self.prefix}hashes/"))
        return self._objects.get(key)

    def close(self) -> None:
        """Forget the list of objects."""
        if self._objects is not None:
            self._objects.close()
            self._objects = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Objects:
    """A listing, on disk: there may be millions."""

    def __init__(self, listing: Iterator[RemoteInfo]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="casstore-listing-", ignore_cleanup_errors=True)
        self._db = sqlite3.connect(os.path.join(self._folder.name, "objects"), isolation_level=None)
        try:
            self._db.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                "CREATE TABLE object (key TEXT PRIMARY KEY, size INTEGER, mtime REAL, etag TEXT) WITHOUT ROWID; BEGIN;"
            )
            rows = ((info.key, info.size, info.mtime, info.etag) for info in listing if _is_text(info.key))
            self._db.executemany("INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?)", rows)
        except BaseException:
            self.close()
            raise

    def get(self, key: str) -> RemoteInfo | None:
        if not _is_text(key):
            return None
        row = self._db.execute("SELECT key, size, mtime, etag FROM object WHERE key = ?", (key,)).fetchone()
        return None if row is None else RemoteInfo(*row)

    def close(self) -> None:
        self._db.close()
        self._folder.cleanup()


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_datasets(source: str, buckets: Buckets, follow: Sequence[str] = ()) -> list[OsmoDataset]:
    """Return the datasets below a URL: those of OSMO's ``dataset_path``, or the one whose folder it is.

    ``NotFoundError`` when there are none.
    """
    client, path = buckets.open(source)
    links = Links(source, buckets, follow)
    prefix = f"{path}/" if path else ""
    own_name = parse_url(source).prefix.rpartition("/")[2]
    found: list[OsmoDataset] = []
    for folder in client.list(prefix, recursive=False):
        name = folder.key.removeprefix(prefix)
        if name == "manifests/" and _ID.match(own_name):
            found = [OsmoDataset(client, prefix, own_name, links)]
            break
        if name.endswith("/") and _ID.match(name[:-1]):
            found.append(OsmoDataset(client, folder.key, name[:-1], links))
    kept = [dataset for dataset in found if next(client.list(f"{dataset.prefix}manifests/"), None) is not None]
    if not kept:
        raise NotFoundError(
            f"there are no datasets of OSMO at {shown(source)}",
            hint="name the path that `osmo bucket list` of OSMO shows; below it is a folder for each dataset",
        )
    return kept
