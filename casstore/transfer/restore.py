"""Writing files back from their chunks, with all cores and bounded memory.

Decided here and only here: how the work of a download is spread over threads, and how one file is written. Small files
go in batches, each handled by one worker: what the batch needs is read together, then file after file is written. A
large file is cut into parts that several workers write into one descriptor. The modification time is set last: it
marks a file as complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from casstore.compression import MAX_RAW
from casstore.errors import CancelledError, CasstoreError, FormatError
from casstore.format.manifest import CHUNK_REF
from casstore.model import Buffer, Entry, Flag
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.fetch import Fetcher
from casstore.transfer.openfile import Target, at, found, set_attributes, write_all, zeros_id
from casstore.transfer.progress import Progress
from casstore.transfer.safefs import local_error, show
from casstore.transfer.stage import Landing

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["SMALL", "Counts", "Item", "Restorer"]

SMALL = 1 << 20
"""Files up to this size are written whole, many of them in one batch."""
BATCH_FILES = 512
PART_LOCAL, PART_REMOTE = 2 << 20, 16 << 20
"""Raw bytes that one job is about, at most: what the caches of a core hold, or what is worth a round trip."""
PART_MIN = 256 << 10
READERS = 16
"""Threads that wait for an object store, besides those that write files."""
_VECTORS = 512
SLOW_FILE = 100e-6
"""Seconds to write a small file from which on several threads write small files."""
SLOW_BATCHES = 4
"""Slow batches in a row that it takes: one may have been held up by something else."""

Ref: TypeAlias = tuple[bytes, int]


Item: TypeAlias = tuple[Entry, bool]
"""A file to write, and whether something is there that may have the right content already."""


@dataclass(slots=True)
class Counts:
    """What was done. ``written`` bytes went to disk; ``reused`` files were there already."""

    files: int = 0
    size: int = 0
    written: int = 0
    reused: int = 0

    def add(self, other: Counts) -> None:
        """Add another count to this one."""
        self.files += other.files
        self.size += other.size
        self.written += other.written
        self.reused += other.reused


class Part(NamedTuple):
    """A run of chunks of a large file, from ``offset``."""

    target: Target
    offset: int
    refs: Sequence[Ref]


Job: TypeAlias = Sequence[Item] | Part


class Restorer:
    """Threads that write files. ``small`` and ``large`` hand over work, ``drain`` waits, ``close`` ends it."""

    def __init__(
        self,
        store: Store,
        tree: Tree,
        landing: Landing,
        progress: Progress,
        *,
        threads: int,
        memory: int,
        mode_mask: int,
    ) -> None:
        self.store = store
        self.tree = tree
        self.landing = landing
        self.progress = progress
        self.mode_mask = mode_mask
        self.lost = landing.lost
        self.turns = _Turns()
        self._in_place = landing.in_place
        # What a job has in memory: frames, as much again read between them, and what was decoded.
        local = store.backend.capabilities.local
        most = PART_LOCAL if local else PART_REMOTE
        self.part_size = min(most, max(PART_MIN, memory // (3 * threads)))
        self.counts = Counts()
        self.deferred: list[Entry] = []
        self.lock = threading.Lock()
        self._targets: set[Target] = set()
        self._batch: list[Item] = []
        self._batch_size = 0
        self._jobs: queue.Queue[Job | None] = queue.Queue(maxsize=2 * threads)
        self._error: BaseException | None = None
        self.readers = None if local else _readers()
        self._workers = [_Worker(self) for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"casstore-download-{n}", daemon=True)
            for n, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    # --- for the planning thread

    def add(self, item: Item) -> None:
        """Have a file written."""
        entry, exists = item
        size = entry.size
        if (size > SMALL or (entry.flags and entry.flags & Flag.SPARSE and size)) and not (exists and self._in_place):
            self.add_large(entry, exists=exists)
            return
        self._batch.append(item)
        self._batch_size += size
        if self._batch_size >= self.part_size or len(self._batch) >= BATCH_FILES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch, self._batch_size = self._batch, [], 0
            self._submit(batch)

    def keep(self, entry: Entry, *, reused: bool = True) -> None:
        """Count a file that needs no writing."""
        self.count(Counts(files=1, size=entry.size, reused=int(reused)))
        self.progress.file_done(entry.path)

    def add_large(self, entry: Entry, *, exists: bool) -> None:
        """Have a file written in parts. ``exists``: chunks of what is there are used where they are right."""
        try:
            target = self._open_target(entry, exists=exists)
        except OSError as error:
            raise local_error(error, entry.path) from None
        with self.lock:
            self._targets.add(target)
        offset = size = 0
        refs: list[Ref] = []
        for ref in self.tree.chunks(entry):
            refs.append(ref)
            size += ref[1]
            if size >= self.part_size:
                self._submit_part(target, offset, refs)
                offset, size, refs = offset + size, 0, []
        if refs:
            self._submit_part(target, offset, refs)
        if offset + size != entry.size:
            raise FormatError(f"{show(entry.path)}: its chunks do not add up to its size")
        self.finish_part(target)

    def _open_target(self, entry: Entry, *, exists: bool) -> Target:
        landing = self.landing
        if landing.temporary is not None:
            old = -1
            if exists:
                with contextlib.suppress(OSError):  # whatever it is, it is replaced and not read
                    old = landing.root.open_file(entry.path)
            descriptor, temporary = landing.temporary.create_temporary()
            target = Target(entry, descriptor, temporary, old)
        elif exists:
            try:
                descriptor = landing.root.open_file(entry.path, write=True)
                if os.fstat(descriptor).st_nlink > 1:  # another name of it may be in the cache, or anywhere
                    os.close(descriptor)
                    raise OSError(errno.EMLINK, "a file with several names")
                target = Target(entry, descriptor, old=descriptor)
            except OSError:  # not to be opened, or no file at all: it is ours to replace
                landing.root.remove(entry.path)
                target = Target(entry, landing.root.create(entry.path))
        else:
            target = Target(entry, landing.root.create(entry.path))
        os.ftruncate(target.descriptor, entry.size)
        return target

    def _submit_part(self, target: Target, offset: int, refs: Sequence[Ref]) -> None:
        with self.lock:
            target.parts += 1
        self._submit(Part(target, offset, refs))

    def _submit(self, job: Job) -> None:
        while True:
            self.raise_error()
            try:
                self._jobs.put(job, timeout=0.2)
                return
            except queue.Full:
                continue

    def drain(self) -> None:
        """Wait until everything handed over so far is written; raises what went wrong with any file."""
        self._flush()
        with self._jobs.all_tasks_done:
            while self._jobs.unfinished_tasks and self._error is None:
                self._jobs.all_tasks_done.wait(0.2)
        self.raise_error()

    def raise_error(self) -> None:
        """Raise what went wrong in any worker."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop the workers; what is not complete is left without its modification time, or removed."""
        self._error = self._error or CancelledError("the download was stopped")
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()
        if self.readers is not None:
            self.readers.shutdown()
        for target in self._targets:
            target.close()
        self._targets.clear()

    # --- for the workers

    def _run(self, worker: _Worker) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    if isinstance(job, Part):
                        worker.write_part(job)
                    else:
                        worker.write_batch(job)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the files
                self._error = self._error or error
            self._jobs.task_done()

    def count(self, counts: Counts) -> None:
        """Add what a worker did to the sums."""
        with self.lock:
            self.counts.add(counts)
        self.progress.advance(counts.size, new=counts.written)

    def defer(self, entry: Entry) -> None:
        """Leave a large file for later, to be written in parts."""
        with self.lock:
            self.deferred.append(entry)

    def complete(self, descriptor: int, entry: Entry) -> None:
        """Give a file its attributes, the modification time last."""
        os.fchmod(descriptor, entry.mode & self.mode_mask)
        if entry.xattrs:
            set_attributes(descriptor, entry, self.progress)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def mode_of(self, entry: Entry) -> int:
        """Return the permission bits that an entry gets."""
        return entry.mode & self.mode_mask

    def finish_part(self, target: Target) -> None:
        """One holder of a large file less; the last one completes it."""
        with self.lock:
            target.parts -= 1
            if target.parts:
                return
        entry, landing = target.entry, self.landing
        try:
            self.complete(target.descriptor, entry)
            target.close()
            if target.temporary is not None and landing.temporary is not None:
                with landing.temporary.clone() as temporary, landing.root.clone() as root:
                    temporary.rename(target.temporary, root, entry.path)
        except OSError as error:
            raise local_error(error, entry.path) from None
        with self.lock:
            self._targets.discard(target)
        self.count(Counts(files=1, reused=0 if target.changed else 1))
        self.progress.file_done(entry.path)


def _readers() -> Executor:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load, and local stores never need it

    return ThreadPoolExecutor(READERS, thread_name_prefix="casstore-read")


class _Turns:
    """Whether several threads write small files at once.

    Where creating a file takes less time than handing the interpreter from thread to thread, they only hinder each
    other: one writes while the others read ahead. Where the file system is slow, all of them write.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slow = 0

    @contextlib.contextmanager
    def take(self, files: int) -> Iterator[None]:
        """Wait for the turn to write this many files, if there are turns."""
        if self._slow >= SLOW_BATCHES:
            yield
            return
        with self._lock:
            start = time.perf_counter()
            yield
            slow = time.perf_counter() - start > files * SLOW_FILE
            self._slow = self._slow + 1 if slow and files else 0


class _Worker:
    """What one thread works with."""

    def __init__(self, owner: Restorer) -> None:
        self._owner = owner
        self._fetcher = Fetcher(owner.store, owner.readers)
        self._root = owner.landing.root.clone()
        self._temporary = owner.landing.temporary.clone() if owner.landing.temporary is not None else None

    def close(self) -> None:
        self._fetcher.close()
        self._root.close()
        if self._temporary is not None:
            self._temporary.close()

    # --- small files

    def write_batch(self, items: Sequence[Item]) -> None:
        """Write these files, those that exist only if their content is another."""
        counts = Counts()
        todo: list[tuple[Item, Sequence[Ref]]] = []
        wanted: list[Ref] = []
        for item in items:
            entry, exists = item
            if exists and self._is_same(entry):
                counts.files += 1
                counts.reused += 1
                counts.size += entry.size
                self._owner.progress.file_done(entry.path)
            elif entry.size > SMALL:
                self._owner.defer(entry)
            else:
                refs = self._refs(entry)
                wanted += refs
                todo.append((item, refs))
        self._fetcher.load(wanted)
        with self._owner.turns.take(len(todo)):
            for item, refs in todo:
                entry = item[0]
                try:
                    self._write_small(entry, item[1], refs)
                except OSError as error:
                    raise local_error(error, entry.path) from None
                except CasstoreError as error:
                    raise at(entry, error) from None
        counts.files += len(todo)
        counts.written = sum(item[0].size for item, _ in todo)
        counts.size += counts.written
        self._owner.count(counts)

    def _refs(self, entry: Entry) -> Sequence[Ref]:
        depth, refs = entry.content.depth, entry.content.refs
        if depth == 0 and len(refs) == CHUNK_REF.size:
            return (CHUNK_REF.unpack(refs),)  # most files have one chunk
        return tuple(self._owner.tree.chunks(entry))

    def _write_small(self, entry: Entry, exists: bool, refs: Sequence[Ref]) -> None:
        # Everything is verified before the file is made: one that can't be right never appears.
        take = self._fetcher.take
        data = [take(chunk_id, raw) for chunk_id, raw in refs]
        owner, path = self._owner, entry.path
        mode = entry.mode & owner.mode_mask
        if self._temporary is not None:
            descriptor, name = self._temporary.create_temporary(mode=mode)
        else:
            if exists:
                self._root.remove(path)
            descriptor, name = self._root.create(path, mode), b""
        try:
            if len(data) != 1 or os.write(descriptor, data[0]) != len(data[0]):
                write_all(descriptor, data, 0)
            if mode & owner.lost or entry.xattrs:
                owner.complete(descriptor, entry)
            else:
                mtime = entry.mtime_ns
                os.utime(descriptor, ns=(mtime, mtime))
        finally:
            os.close(descriptor)
        if self._temporary is not None:
            self._temporary.rename(name, self._root, path)
        owner.progress.file_done(path)

    def _is_same(self, entry: Entry) -> bool:
        """Whether a file with exactly this content is there; if so, it gets its times and mode."""
        try:
            descriptor = self._root.open_file(entry.path)
        except OSError:
            return False  # it can't be read, or is none: replaced, or refused where it is
        try:
            status = os.fstat(descriptor)
            if status.st_size != entry.size:
                return False
            wanted = entry.mode & self._owner.mode_mask, entry.mtime_ns
            if status.st_nlink > 1 and (not entry.link or (stat.S_IMODE(status.st_mode), status.st_mtime_ns) != wanted):
                return False  # another name of it may be outside: its attributes are not ours to change
            offset = 0
            for chunk_id, raw in self._owner.tree.chunks(entry):
                if found(descriptor, offset, chunk_id, raw) is None:
                    return False
                offset += raw
            if offset != entry.size:
                return False
            self._owner.complete(descriptor, entry)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    # --- parts of large files

    def write_part(self, part: Part) -> None:
        """Write one part, and complete the file if it was the last."""
        target = part.target
        entry = target.entry
        try:
            written = self._write_runs(target, part)
            self._owner.finish_part(target)
        except OSError as error:
            raise local_error(error, entry.path) from None
        except CasstoreError as error:
            raise at(entry, error) from None
        self._owner.count(Counts(size=sum(raw for _, raw in part.refs), written=written))

    def _write_runs(self, target: Target, part: Part) -> int:
        """Write the chunks of a part that are not there yet; returns the bytes that were written."""
        pieces: list[tuple[int, bytes, int, Buffer | None]] = []
        offset = part.offset
        in_place = target.old == target.descriptor
        sparse = target.entry.flags & Flag.SPARSE and not in_place
        for chunk_id, raw in part.refs:
            here, offset = offset, offset + raw
            if sparse and raw <= MAX_RAW and chunk_id == zeros_id(raw):
                continue
            present = found(target.old, here, chunk_id, raw) if target.old >= 0 else None
            if present is None or not in_place:
                pieces.append((here, chunk_id, raw, present))
        self._fetcher.load((chunk_id, raw) for _, chunk_id, raw, data in pieces if data is None)
        run: list[Buffer] = []
        start = end = written = 0
        for here, chunk_id, raw, data in pieces:
            if here != end or len(run) >= _VECTORS:
                write_all(target.descriptor, run, start)
                start, run = here, []
            run.append(self._fetcher.take(chunk_id, raw) if data is None else data)
            end = here + raw
            written += raw
        write_all(target.descriptor, run, start)
        if written:
            target.changed = True
        return written
