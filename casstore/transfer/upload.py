"""Uploading a tree: from local files, and perhaps a version to start from, to a manifest in the store.

Decided here and only here: what is read and what is reused, and the order in which entries reach the manifest. Nothing
here commits a version; that is the caller's one conditional write, after this returned.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Sequence

import msgspec

from casstore import hashing
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.errors import IntegrityError, SourceError
from casstore.format.manifest import MAX_FILE
from casstore.model import Content, Entry, Flag, Kind, Totals
from casstore.repo.hold import Hold
from casstore.repo.store import Store, workers
from casstore.repo.tree import Tree, TreeBuilder
from casstore.repo.writer import Writer
from casstore.transfer.pipeline import BATCH_BYTES, BATCH_FILES, SMALL, Job, Pipeline
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.scan import (
    RACY_NS,
    Item,
    Listing,
    Scanner,
    Select,
    Source,
    describe,
    read_link,
    show,
    state_of,
)
from casstore.transfer.session import carry_over, is_stored, writing
from casstore.transfer.statcache import SLICE, CachedTree, Known, StatCache

MAX_WAITING = 20_000
"""Entries that may wait for the files before them; bounds the memory that a slow large file costs."""
HOLES = 64 << 10
"""Bytes that a file must have less on disk than its size to count as sparse."""


class TreeResult(msgspec.Struct, frozen=True):
    """What an upload made. ``new_bytes`` are stored bytes, ``new_chunks`` data chunks; ``reused`` files went unread."""

    manifest: bytes
    checksum: bytes
    totals: Totals
    new_bytes: int = 0
    new_chunks: int = 0
    files_read: int = 0
    reused: int = 0
    skipped: tuple[str, ...] = ()


class _Slice(msgspec.Struct):
    """Files of one directory that go into the stat cache together, once all of them are done."""

    path: bytes
    known: dict[bytes, Known]
    fresh: dict[bytes, Known]
    changed: bool = False


class _Inode(msgspec.Struct):
    """A file with several names: its number in the manifest, the names not seen yet, and the entry of the first one."""

    number: int
    left: int
    entry: Entry | None = None


class _Waiting(msgspec.Struct):
    """An entry on its way into the manifest."""

    item: Item
    entry: Entry | None = None
    job: Job | None = None
    inode: _Inode | None = None
    first: bool = False
    link: int = 0
    folder: _Slice | None = None
    closes: bool = False


def upload_tree(
    store: Store,
    sources: Sequence[Source],
    *,
    base: Tree | None = None,
    keep: Select | None = None,
    select: Select | None = None,
    cache: StatCache | None = None,
    state_dir: str | None = None,
    dataset: str = "",
    hold: Hold | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> TreeResult:
    """Store a tree and return its manifest.

    ``base``: its entries are under the sources; ``keep(path)`` false drops one of them. ``select(path)`` false leaves a
    source's file out. ``cache`` lets unchanged files go unread. ``state_dir`` is where the journal is kept that lets an
    interrupted upload be continued; packs that earlier ones left are adopted. ``hold`` learns what the tree relies on,
    and says before a commit whether it is still there.

    Raises ``SourceError`` for a file that can't be read or keeps changing, and the store's errors. Nothing is
    committed, and what was stored so far serves the next attempt.
    """
    progress = progress or Silent()
    cache = cache or StatCache(None, store.id)
    key = _key(sources) if base is None and select is None else None
    if key is not None:
        known = _unchanged(store, sources, key, cache, hold)
        if known is not None:
            totals = Totals(*known.totals)
            progress.expect(totals.files, totals.size)
            progress.listed()
            progress.advance(totals.size)
            return TreeResult(known.manifest, known.checksum, totals, reused=totals.files, skipped=known.skipped)
    scanner = Scanner(sources, base=base, keep=keep, select=select)
    with writing(store, lanes=threads or workers(), state_dir=state_dir, dataset=dataset, hold=hold) as writer:
        upload = _Upload(store, writer, scanner, cache, progress, threads or workers())
        result = upload.run()
        used = sorted(writer.packs.used.items())
    if key is not None and upload.signature is not None:
        totals = result.totals
        sums = (totals.files, totals.directories, totals.symlinks, totals.size)
        kept = CachedTree(result.manifest, result.checksum, sums, result.skipped, used)
        cache.keep_tree(key, upload.signature, kept)
    return result


def _unchanged(
    store: Store, sources: Sequence[Source], key: bytes, cache: StatCache, hold: Hold | None
) -> CachedTree | None:
    """Return what came of these sources the last time, if nothing was touched since and all of it is there."""
    if not cache.has_tree(key):
        return None
    signature = Scanner(sources).signature()
    known = cache.tree(key, signature) if signature else None
    if known is None or not store.has_manifest(known.manifest):
        return None
    packs = dict(known.packs)
    own = Hold(store) if hold is None else hold
    if known.manifest in own.dying.manifests or not own.all_there(packs):
        return None
    own.rely(packs)
    return known


def _key(sources: Sequence[Source]) -> bytes:
    return hashing.digest(repr([(s.path, s.dest, s.contents) for s in sources]).encode())


class _Upload:
    def __init__(
        self,
        store: Store,
        writer: Writer,
        scanner: Scanner,
        cache: StatCache,
        progress: Progress,
        threads: int,
    ) -> None:
        self._store = store
        self._writer = writer
        self._scanner = scanner
        self._cache = cache
        self._progress = progress
        self._threads = threads
        self._builder = TreeBuilder(writer)
        self._waiting: deque[_Waiting] = deque()
        self._batch: list[Job] = []
        self._batch_size = 0
        self._inodes: dict[tuple[int, int], _Inode] = {}
        self._base_links: dict[int, int] = {}
        self._links = 0
        self._read = self._reused = 0
        self._signature = scanner.new_signature()
        self.signature: bytes | None = None

    def run(self) -> TreeResult:
        self._pipeline = Pipeline(self._writer, FastCDCChunker(self._store.chunker), self._progress, self._threads)
        try:
            for listing in self._scanner.walk():
                self._take(listing)
            self._progress.listed()
            self._submit()
            while self._waiting:
                self._finish_first()
        finally:
            self._pipeline.close()
        manifest = self._builder.finish()
        self.signature = self._signature.digest()
        return TreeResult(
            manifest,
            self._builder.checksum,
            self._builder.totals,
            self._writer.new_bytes,
            self._writer.new_chunks,
            self._read,
            self._reused,
            tuple(self._scanner.skipped),
        )

    def _take(self, listing: Listing) -> None:
        part: list[Item] = []
        self._signature.begin(listing.path)
        for item in listing.items:
            if item.status is not None:
                self._signature.add(item.path.rpartition(b"/")[2], item.status)
            part.append(item)
            if len(part) == SLICE:
                self._take_slice(listing, part)
                part = []
        if part:
            self._take_slice(listing, part)

    def _take_slice(self, listing: Listing, items: list[Item]) -> None:
        folder: _Slice | None = None
        if listing.pure is not None:
            first, last = (item.path.rpartition(b"/")[2] for item in (items[0], items[-1]))
            known = self._cache.folder(listing.pure, first, last)
            folder = _Slice(listing.pure, known, {})
        # Before any of them may be told to be done: an upload that is done again must not pass its total.
        sizes = [i.status.st_size for i in items if i.status is not None and stat.S_ISREG(i.status.st_mode)]
        self._progress.expect(len(sizes), sum(sizes))
        for item in items:
            waiting = self._prepare(item, folder)
            if waiting is not None:
                waiting.closes = item is items[-1]
                self._waiting.append(waiting)
        while self._waiting and (self._is_done(self._waiting[0]) or len(self._waiting) > MAX_WAITING):
            if not self._is_done(self._waiting[0]):
                self._submit()
            self._finish_first()

    def _prepare(self, item: Item, folder: _Slice | None) -> _Waiting | None:
        status = item.status
        if status is None:
            return _Waiting(item, self._base_entry(item), folder=folder)
        mode = status.st_mode & 0o7777
        kind = status.st_mode & 0o170000
        if kind == stat.S_IFDIR:
            return _Waiting(item, Entry(item.path, Kind.DIRECTORY, mode, status.st_mtime_ns), folder=folder)
        if kind == stat.S_IFLNK:
            try:
                target = read_link(item.real)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise describe(error, item.real) from None
            entry = Entry(item.path, Kind.SYMLINK, 0o777, status.st_mtime_ns, target=target)
            return _Waiting(item, entry, folder=folder)
        return self._prepare_file(item, status, folder)

    def _base_entry(self, item: Item) -> Entry:
        """Return an entry that comes from no local file."""
        entry = item.base or Entry(item.path, Kind.DIRECTORY, 0o755)
        if not carry_over(self._store, self._writer, entry.content, entry.size):
            raise IntegrityError(
                f"{show(entry.path)} of the version to start from has lost data",
                hint="see `osmo dataset verify`; remove or replace that file in the update",
            )
        if not entry.link:
            return entry
        # The base numbered its inodes for itself: its numbers may not meet those of the files that are added.
        number = self._base_links.get(entry.link)
        if number is None:
            number = self._base_links[entry.link] = self._new_link()
        return msgspec.structs.replace(entry, link=number)

    def _new_link(self) -> int:
        self._links += 1
        return self._links

    def _prepare_file(self, item: Item, status: os.stat_result, folder: _Slice | None) -> _Waiting:
        waiting = _Waiting(item, folder=folder)
        if status.st_size > MAX_FILE:
            raise SourceError(f"{show(item.real)} is too large: {status.st_size} bytes of at most {MAX_FILE}")
        if status.st_nlink > 1 and self._is_another_name(waiting, status):
            self._progress.advance(status.st_size)
            return waiting
        known = folder.known.get(item.path.rpartition(b"/")[2]) if folder else None
        if (
            known is not None
            and known.state == state_of(status)
            and self._is_stored(Content(known.depth, known.refs), status.st_size)
        ):
            waiting.entry = _file_entry(item.path, status, Content(known.depth, known.refs), waiting.link)
            self._reused += 1
            self._progress.advance(status.st_size)
            if folder:
                folder.fresh[item.path.rpartition(b"/")[2]] = known
            return waiting
        waiting.job = job = Job(item.real, status)
        if folder:
            folder.changed = True
        if status.st_size > SMALL:
            self._submit()
            self._pipeline.submit([job])
        else:
            self._batch.append(job)
            self._batch_size += status.st_size
            if self._batch_size >= BATCH_BYTES or len(self._batch) >= BATCH_FILES:
                self._submit()
        return waiting

    def _is_another_name(self, waiting: _Waiting, status: os.stat_result) -> bool:
        """Number an inode that has several names; whether another one of them came before this."""
        key = status.st_dev, status.st_ino
        inode = self._inodes.get(key)
        first = inode is None
        if inode is None:
            inode = self._inodes[key] = _Inode(self._new_link(), status.st_nlink)
        inode.left -= 1
        if not inode.left:
            del self._inodes[key]  # no name is left to come
        waiting.inode, waiting.first, waiting.link = inode, first, inode.number
        return not first

    def _submit(self) -> None:
        if self._batch:
            self._pipeline.submit(self._batch)
            self._batch, self._batch_size = [], 0

    def _is_stored(self, content: Content, size: int) -> bool:
        return is_stored(self._store, self._writer, content, size)

    @staticmethod
    def _is_done(waiting: _Waiting) -> bool:
        return waiting.job is None or waiting.job.done

    def _finish_first(self) -> None:
        waiting = self._waiting[0]
        if waiting.job is not None:
            self._pipeline.wait(waiting.job)
        self._waiting.popleft()
        entry = waiting.entry or self._file_of(waiting)
        if entry is not None:
            self._builder.add(entry)
            if waiting.inode is not None:
                waiting.inode.entry = entry
            if entry.kind == Kind.FILE:
                self._progress.file_done(entry.path)
        if waiting.closes and waiting.folder is not None:
            self._keep(waiting.folder, waiting.item)

    def _file_of(self, waiting: _Waiting) -> Entry | None:
        job = waiting.job
        if job is None:
            same = waiting.inode.entry if waiting.inode else None
            if same is not None:
                # Everything from the first name: the file may have changed since this one was listed.
                return msgspec.structs.replace(same, path=waiting.item.path)
            job = self._read_now(waiting.item)
        if job.gone:
            self._signature.spoilt = True
            self._scanner.skipped.append(f"{show(job.path)} was deleted during the upload: left out")
            return None
        self._read += 1
        if job.status is not waiting.item.status:
            self._signature.spoilt = True
        if waiting.folder is not None and job.state[3] < self._signature.now - RACY_NS:
            name = waiting.item.path.rpartition(b"/")[2]
            waiting.folder.fresh[name] = Known(job.state, job.content.depth, job.content.refs)
        return _file_entry(waiting.item.path, job.status, job.content, waiting.link)

    def _read_now(self, item: Item) -> Job:
        """Read a file whose other name was deleted before it could be read."""
        if item.status is None:
            raise SourceError(f"{show(item.real)} can't be read", hint="upload again")
        job = Job(item.real, item.status)
        self._pipeline.submit([job])
        self._pipeline.wait(job)
        return job

    def _keep(self, folder: _Slice, last: Item) -> None:
        if folder.changed or len(folder.fresh) != len(folder.known):
            names = sorted({*folder.fresh, *folder.known, last.path.rpartition(b"/")[2]})
            self._cache.keep_folder(folder.path, names[0], names[-1], folder.fresh)


def _file_entry(path: bytes, status: os.stat_result, content: Content, link: int) -> Entry:
    sparse = status.st_size - status.st_blocks * 512 >= HOLES
    return Entry(
        path,
        Kind.FILE,
        status.st_mode & 0o7777,
        status.st_mtime_ns,
        status.st_size,
        content,
        link=link,
        flags=Flag.SPARSE if sparse else 0,
    )
