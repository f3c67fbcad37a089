"""A version in OSMO 6.2's layout, for a client that reads no other.

Decided here and only here: what such an offer holds (files alone: OSMO knows no symbolic links, no folders and no paths
that are not text), and how it is made: each content once, under a name that is known before it is read, its ETag as
OSMO computes it taken on the way. The manifest comes last, sorted as OSMO's client needs it to update a version.
"""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

import msgspec

from casstore import hashing
from casstore.dataset.adopt.base import Buckets
from casstore.dataset.adopt.manifest import ManifestEntry
from casstore.dataset.exchange.areas import Area, Areas
from casstore.dataset.summary import Version
from casstore.errors import CasstoreError
from casstore.model import Buffer, Content, Entry, Kind
from casstore.remote.base import ObjectClient
from casstore.repo.leases import Lease
from casstore.repo.tree import Tree
from casstore.transfer.digests import OSMO_PART, OsmoEtag
from casstore.transfer.progress import Progress
from casstore.transfer.ranges import Ranges

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket

__all__ = ["make_offer"]

_THREADS = 8
_AHEAD = 4 * _THREADS


class _OfferEntry(ManifestEntry, frozen=True):
    """An entry with the field that nobody uses and OSMO's client insists on."""

    url: str


def make_offer(
    bucket: Bucket, version: Version, buckets: Buckets, link: Callable[[str], str], progress: Progress
) -> Area:
    """Return an offer of a version: the one that is there, or one that is made now.

    ``link`` gives the link of HTTP for a URL. Raises what reading the store and writing to the bucket raise; then
    nothing is left.
    """
    areas = Areas(bucket.store.backend)
    found = areas.offer(version.manifest)
    if found is not None:
        return found
    with Lease.acquire(
        bucket.store.backend, kind="offer", user=bucket.user, dataset=version.dataset, reads=[version.manifest]
    ):
        area = areas.begin_offer(version.manifest, version.dataset, version.number, user=bucket.user)
        try:
            left_out = _Making(bucket, version, area, buckets, link, progress).run()
            return areas.ready(area, left_out=left_out)
        except BaseException:
            with contextlib.suppress(CasstoreError):
                areas.close(area)
            raise


class _Making:
    def __init__(
        self,
        bucket: Bucket,
        version: Version,
        area: Area,
        buckets: Buckets,
        link: Callable[[str], str],
        progress: Progress,
    ) -> None:
        self._tree: Tree = bucket.tree(version)
        self._ranges = Ranges(bucket.store)
        self._area = area
        self._url = f"{bucket.store.url}/{area.hashes}"
        self._client, self._prefix = buckets.open(f"{bucket.store.url}/{area.folder}")
        self._link = link
        self._progress = progress
        self._left_out = 0

    def run(self) -> int:
        with tempfile.TemporaryDirectory(prefix="casstore-offer-", ignore_cleanup_errors=True) as folder:
            db = sqlite3.connect(os.path.join(folder, "files"), isolation_level=None)
            try:
                db.executescript(
                    "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                    "CREATE TABLE file (path TEXT PRIMARY KEY, size INTEGER, object TEXT) WITHOUT ROWID;"
                    "CREATE TABLE object (name TEXT PRIMARY KEY, etag TEXT) WITHOUT ROWID; BEGIN;"
                )
                self._send_all(db)
                with open(os.path.join(folder, "manifest"), "w+b") as manifest:
                    self._write(db, manifest)
                    size = manifest.tell()
                    manifest.seek(0)
                    self._client.upload(
                        f"{self._prefix}/manifests/{self._area.record.number}.json", manifest, size=size
                    )
            finally:
                db.close()
                self._ranges.close()
        return self._left_out

    def _send_all(self, db: sqlite3.Connection) -> None:
        running: deque[tuple[str, Future[str]]] = deque()
        pending: set[str] = set()

        def take() -> None:
            name, future = running.popleft()
            db.execute("INSERT INTO object VALUES (?, ?)", (name, future.result()))
            pending.discard(name)

        with ThreadPoolExecutor(_THREADS, thread_name_prefix="offer") as pool:
            try:
                for path, entry in self._files():
                    name = _name_of(entry.content)
                    db.execute("INSERT INTO file VALUES (?, ?, ?)", (path, entry.size, name))
                    if name in pending or db.execute("SELECT 1 FROM object WHERE name = ?", (name,)).fetchone():
                        continue
                    pending.add(name)
                    running.append((name, pool.submit(self._send, name, entry)))
                    if len(running) >= _AHEAD:
                        take()
                while running:
                    take()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _files(self) -> Iterator[tuple[str, Entry]]:
        for entry in self._tree.entries():
            if entry.kind == Kind.FILE:
                try:
                    yield entry.path.decode(), entry
                    continue
                except UnicodeDecodeError:
                    pass
            elif entry.kind == Kind.DIRECTORY:
                continue
            self._left_out += 1

    def _send(self, name: str, entry: Entry) -> str:
        layout = self._ranges.layout(name, self._tree, entry.size, entry.content)
        etag = OsmoEtag()
        stream = _Stream(self._ranges.pieces(layout, self._ranges.step), etag, self._progress)
        _put(self._client, f"{self._prefix}/hashes/{name}", stream, entry.size)
        self._progress.file_done(entry.path)
        return etag.value()

    def _write(self, db: sqlite3.Connection, manifest: IO[bytes]) -> None:
        rows = db.execute("SELECT path, size, object, etag FROM file JOIN object ON object = name ORDER BY path")
        manifest.write(b"[\n")
        for number, (path, size, name, etag) in enumerate(rows):
            uri = f"{self._url}/{name}"
            entry = _OfferEntry(relative_path=path, storage_path=uri, size=size, etag=etag, url=self._link(uri))
            manifest.write((b",\n" if number else b"") + msgspec.json.encode(entry))
        manifest.write(b"\n]")


def _put(client: ObjectClient, key: str, stream: _Stream, size: int) -> None:
    if size <= OSMO_PART:
        client.put(key, [stream.read()])
    else:
        client.upload(key, io.BufferedReader(stream, OSMO_PART), size=size)


class _Stream(io.RawIOBase):
    """The pieces of a file as something to read from, which are counted and summed up on the way."""

    def __init__(self, pieces: Iterator[Buffer], etag: OsmoEtag, progress: Progress) -> None:
        self._pieces = pieces
        self._etag = etag
        self._progress = progress
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]  # the base takes any buffer
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
            self._etag.update(self._rest)
            self._progress.advance(len(self._rest))
        taken = min(len(buffer), len(self._rest))
        memoryview(buffer)[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


def _name_of(content: Content) -> str:
    """The name of an object: what its bytes are, without reading them."""
    return hashing.digest(bytes([content.depth]) + content.refs).hex()[:32]
