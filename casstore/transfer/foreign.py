"""Taking files over from object storage: read in ranges, checked, cut and stored, in bounded memory.

Decided here and only here: how the work is spread over threads, and what becomes of a file that can't be read. Each
thread takes a file whole; the ranges of a large one are fetched ahead by others. Everything is read from the state of
the object that its ETag names: one that is changed in between is a problem of that file. A problem of one file does not
stop the work: all are found in one go, and the caller decides what they mean. Nothing here commits a version.

Instead of being copied, an object may be referred to: it is read all the same, for its digests, and its chunks are
stored as pointers to the state of it that was read. Chunks that are hardly longer than a pointer are copied.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import msgspec

from casstore.chunking.fastcdc import FastCDCChunker
from casstore.errors import (
    AccessError,
    CancelledError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
)
from casstore.format.manifest import MAX_FILE
from casstore.format.reference import LEAST, Pointer, pointer_problem
from casstore.model import Content, Entry, Kind, sort_key
from casstore.remote.base import ObjectClient
from casstore.repo.hold import Hold
from casstore.repo.store import Store, workers
from casstore.repo.tree import ListBuilder, Tree, TreeBuilder
from casstore.repo.writer import Lane, Writer
from casstore.transfer.digests import Check, Checker
from casstore.transfer.memo import Memo, identity
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.session import is_stored, writing
from casstore.transfer.spool import UNKNOWN, ForeignFile, ForeignFolder
from casstore.transfer.upload import TreeResult

__all__ = ["MAX_PROBLEMS", "Clients", "Problem", "Taken", "take_over"]

SEGMENT = 2 << 20
"""Bytes of one range."""
AHEAD = 3
"""Ranges of one file that are fetched before they are needed."""
MAX_WAITING = 4096
"""Entries that may wait for the files before them."""
MAX_PROBLEMS = 1000
"""Problems after which it is not worth going on."""
_LEAST_THREADS = 8

_T = TypeVar("_T")

Clients: TypeAlias = Callable[[str], ObjectClient]
"""Returns the client for the URL of a bucket."""


class Problem(msgspec.Struct, frozen=True):
    """Why one file can't be taken over. ``url`` is where it should be, or the document that names it."""

    path: bytes
    url: str
    message: str


class Referred(msgspec.Struct):
    """What was not copied: files and bytes of them, and by bucket the longest prefix that all of their keys have."""

    files: int = 0
    size: int = 0
    prefixes: dict[str, str] = {}

    def add(self, file: ForeignFile, size: int) -> None:
        """Count one more."""
        self.files += 1
        self.size += size
        folder = file.key[: file.key.rfind("/") + 1]
        known = self.prefixes.get(file.bucket, folder)
        while not folder.startswith(known):
            known = known[: known.rstrip("/").rfind("/") + 1]
        self.prefixes[file.bucket] = known

    @property
    def urls(self) -> list[str]:
        """Where all of it is."""
        return sorted(f"{bucket}/{prefix}" for bucket, prefix in self.prefixes.items())


class Taken(msgspec.Struct, frozen=True):
    """What came of it. ``result`` is None when there were problems and they were not to be skipped.

    ``checks``: for how many files what was compared.
    """

    result: TreeResult | None
    problems: tuple[Problem, ...]
    checks: dict[Check, int]
    referred: Referred


class _Refused(Exception):  # noqa: N818 - not an error of ours: it is turned into a problem
    """One file can't be taken over; the others can."""


class _Job:
    __slots__ = ("content", "done", "file", "problem", "size", "verdict")

    def __init__(self, file: ForeignFile) -> None:
        self.file = file
        self.size = file.size
        self.content = Content()
        self.verdict = Check.NONE
        self.problem: str | None = None
        self.done = False


class _Waiting(msgspec.Struct):
    """An entry on its way into the manifest: complete, or with the job that its content comes from."""

    entry: Entry
    job: _Job | None = None


def take_over(
    store: Store,
    entries: Iterable[ForeignFile | ForeignFolder],
    clients: Clients,
    *,
    memo: Memo,
    base: Tree | None = None,
    state_dir: str | None = None,
    dataset: str = "",
    hold: Hold | None = None,
    skip_damaged: bool = False,
    refer: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Taken:
    """Store the files that ``entries`` names, in the order of a version, and return the tree that they make.

    ``base``: its entries are below these. ``refer``: what can be referred to is not copied. ``hold``: see
    ``upload_tree``. Raises what is no problem of one file: the store's errors, and those of a service that can't be
    reached. What was stored so far serves the next attempt.
    """
    count = threads or min(16, max(_LEAST_THREADS, workers()))
    with writing(store, lanes=count, state_dir=state_dir, dataset=dataset, hold=hold) as writer:
        takeover = _Takeover(store, writer, clients, memo, progress or Silent(), skip_damaged=skip_damaged, refer=refer)
        return takeover.run(_over(entries, base), count)


def _over(
    entries: Iterable[ForeignFile | ForeignFolder], base: Tree | None
) -> Iterator[ForeignFile | ForeignFolder | Entry]:
    """Merge the entries of a base under others; of equal paths, and of a file and a folder, the base's gives way."""
    below = base.entries() if base is not None else iter(())
    old = next(below, None)
    hidden: set[bytes] = set()
    for entry in entries:
        key = sort_key(entry.path)
        while old is not None and sort_key(old.path) < key:
            if not _is_hidden(old, hidden):
                yield old
            old = next(below, None)
        if old is not None and old.path == entry.path:
            if isinstance(entry, ForeignFolder) and old.kind == Kind.DIRECTORY:
                entry = old  # type: ignore[assignment]  # noqa: PLW2901 - a folder keeps its mode and time
            elif old.kind == Kind.DIRECTORY:
                hidden.add(old.path)
            old = next(below, None)
        yield entry
    while old is not None:
        if not _is_hidden(old, hidden):
            yield old
        old = next(below, None)


def _is_hidden(entry: Entry, hidden: set[bytes]) -> bool:
    """Whether a folder above this entry gave way to a file. A folder comes before everything that is in it."""
    if not hidden or entry.parent not in hidden:
        return False
    if entry.kind == Kind.DIRECTORY:
        hidden.add(entry.path)
    return True


class _Takeover:
    def __init__(
        self,
        store: Store,
        writer: Writer,
        clients: Clients,
        memo: Memo,
        progress: Progress,
        *,
        skip_damaged: bool,
        refer: bool,
    ) -> None:
        self._store = store
        self._writer = writer
        self._clients = clients
        self._memo = memo
        self._progress = progress
        self._skip_damaged = skip_damaged
        self._refer = refer
        self._referred = Referred()
        self._builder = TreeBuilder(writer)
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[bytes, _Job] = {}
        self._problems: list[Problem] = []
        self._checks: Counter[Check] = Counter()
        self._read = self._reused = 0

    def run(self, entries: Iterator[ForeignFile | ForeignFolder | Entry], threads: int) -> Taken:
        self._pool = _Pool(self._store, self._writer, self._clients, self._progress, threads, refer=self._refer)
        try:
            for entry in entries:
                self._waiting.append(self._prepare(entry))
                while self._waiting and (self._is_ready(self._waiting[0]) or len(self._waiting) > MAX_WAITING):
                    self._finish_first()
                if len(self._problems) >= MAX_PROBLEMS:
                    break
            else:
                self._progress.listed()
                while self._waiting:
                    self._finish_first()
        finally:
            self._pool.close()
        if self._problems and (not self._skip_damaged or len(self._problems) >= MAX_PROBLEMS):
            self._writer.flush()
            return Taken(None, tuple(self._problems), dict(self._checks), self._referred)
        manifest = self._builder.finish()
        result = TreeResult(
            manifest,
            self._builder.checksum,
            self._builder.totals,
            self._writer.new_bytes,
            self._writer.new_chunks,
            self._read,
            self._reused,
        )
        return Taken(result, tuple(self._problems), dict(self._checks), self._referred)

    def _prepare(self, entry: ForeignFile | ForeignFolder | Entry) -> _Waiting:
        if isinstance(entry, Entry):
            if not is_stored(self._store, self._writer, entry.content, entry.size, referred=True):
                raise IntegrityError(
                    f"{_show(entry.path)} of the version to start from has lost data",
                    hint="see `osmo dataset verify`; remove or replace that file in the update",
                )
            return _Waiting(entry)
        if isinstance(entry, ForeignFolder):
            return _Waiting(Entry(entry.path, Kind.DIRECTORY, entry.mode, entry.mtime_ns))
        shell = Entry(entry.path, Kind.FILE, entry.mode, entry.mtime_ns, max(0, entry.size))
        known = self._memo.get(entry)
        if known is not None:
            content, size, verdict = known
            # What was read from this state of this object is referred to there, if it is referred to at all.
            if is_stored(self._store, self._writer, content, size, referred=self._refer):
                self._count(entry, size)
                self._checks[verdict] += 1
                self._reused += 1
                self._progress.advance(size)
                return _Waiting(msgspec.structs.replace(shell, size=size, content=content))
        key = identity(entry)
        job = self._running.get(key) if key is not None else None
        if job is None:
            job = _Job(entry)
            if key is not None:
                self._running[key] = job
            self._pool.submit(job)
        return _Waiting(shell, job)

    def _count(self, file: ForeignFile, size: int) -> None:
        if self._refer and size >= LEAST:
            self._referred.add(file, size)

    @staticmethod
    def _is_ready(waiting: _Waiting) -> bool:
        return waiting.job is None or waiting.job.done

    def _finish_first(self) -> None:
        waiting = self._waiting[0]
        job = waiting.job
        if job is not None:
            self._pool.wait(job)
        self._waiting.popleft()
        entry = waiting.entry
        if job is None:
            self._builder.add(entry)
        elif job.problem is not None:
            # The job stays known: other files with the same object have the same problem, and need not find out.
            self._problems.append(Problem(entry.path, job.file.url, job.problem))
            return
        else:
            self._builder.add(msgspec.structs.replace(entry, size=job.size, content=job.content))
            self._checks[job.verdict] += 1
            self._count(job.file, job.size)
            self._read += 1
            key = identity(job.file)
            if key is not None and self._running.pop(key, None) is not None:
                self._memo.put(job.file, job.content, job.size, job.verdict)
        if entry.kind == Kind.FILE:
            self._progress.file_done(entry.path)


class _Pool:
    """The threads that read and store."""

    def __init__(
        self, store: Store, writer: Writer, clients: Clients, progress: Progress, threads: int, *, refer: bool
    ) -> None:
        self._writer = writer
        self._refer = refer
        self._clients = clients
        self._progress = progress
        self._chunker = FastCDCChunker(store.chunker)
        self._condition = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._ranges = ThreadPoolExecutor(threads, thread_name_prefix="casstore-range")
        self._threads = [
            threading.Thread(target=self._run, name=f"casstore-takeover-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: _Job) -> None:
        """Have a file taken over."""
        with self._condition:
            self._raise_error()
            self._jobs.append(job)
            self._condition.notify()

    def wait(self, job: _Job) -> None:
        """Wait until it is done; raises what stops everything."""
        with self._condition:
            while not job.done:
                self._raise_error()
                self._condition.wait()

    def close(self) -> None:
        """Stop; what was not begun is dropped."""
        with self._condition:
            self._closed = True
            self._jobs.clear()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._ranges.shutdown(cancel_futures=True)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise CancelledError("the work was stopped")

    def _run(self) -> None:
        lane = self._writer.lane()
        buffer = bytearray(SEGMENT + self._chunker.params.max)
        while True:
            with self._condition:
                while not (self._jobs or self._closed):
                    self._condition.wait()
                if self._closed:
                    return
                job = self._jobs.popleft()
            try:
                try:
                    self._take(lane, job, buffer)
                except _Refused as refused:
                    job.problem = str(refused)
            except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the file
                with self._condition:
                    self._error = self._error or error
            with self._condition:
                job.done = self._error is None
                self._condition.notify_all()

    def _take(self, lane: Lane, job: _Job, buffer: bytearray) -> None:
        file = job.file
        client = _asked(lambda: self._clients(file.bucket))
        etag = file.etag
        if not etag or file.size == UNKNOWN:
            info = _asked(lambda: client.head(file.key))
            if file.size not in (UNKNOWN, info.size):
                raise _Refused(f"it has {info.size} bytes there, not {file.size}")
            if info.size > MAX_FILE:
                raise _Refused(f"it is larger than {MAX_FILE} bytes")
            if etag and etag != info.etag:
                raise _Refused("it was changed since it was listed")
            job.size, etag = info.size, info.etag
        problem = pointer_problem(file.bucket, file.key, etag) if self._refer else None
        if problem is not None:
            raise _Refused(f"it can't be referred to: {problem}")
        checker = Checker(file.expected, job.size)
        chunks = ListBuilder(self._writer)
        view = memoryview(buffer)
        filled = taken = at = 0
        for data in self._segments(client, file.key, etag, job.size):
            checker.update(data)
            taken += len(data)
            view[filled : filled + len(data)] = data
            filled += len(data)
            before, start = lane.new_bytes, 0
            for length in self._chunker.cut(view[:filled], final=taken == job.size):
                chunk = view[start : start + length]
                if self._refer and length >= LEAST:
                    chunks.add(lane.refer(chunk, Pointer(file.bucket, file.key, etag, at + start)), length)
                else:
                    chunks.add(lane.add(chunk), length)
                start += length
            at += start
            self._progress.advance(len(data), new=lane.new_bytes - before)
            # In one buffer, over itself: a copy of what is left, which is less than a chunk.
            view[: filled - start] = bytes(view[start:filled])
            filled -= start
        try:
            job.verdict = checker.verdict(etag)
        except IntegrityError as error:
            raise _Refused(error.message) from None
        job.content = chunks.finish()

    def _segments(self, client: ObjectClient, key: str, etag: str, size: int) -> Iterator[bytes]:
        """Yield the bytes of an object in order, some ranges fetched ahead."""
        if size <= SEGMENT:
            if size:
                yield _asked(lambda: client.read(key, offset=0, length=size, if_match=etag or None).data)
            return
        offsets = iter(range(0, size, SEGMENT))
        ahead: deque[Future[bytes]] = deque()

        def fetch(offset: int) -> bytes:
            length = min(SEGMENT, size - offset)
            return client.read(key, offset=offset, length=length, if_match=etag or None).data

        def start() -> None:
            offset = next(offsets, None)
            if offset is not None:
                ahead.append(self._ranges.submit(fetch, offset))

        try:
            for _ in range(AHEAD):
                start()
            while ahead:
                self._check_open()
                data = _asked(ahead.popleft().result)
                start()
                yield data
        finally:
            for future in ahead:
                future.cancel()
            for future in ahead:
                with contextlib.suppress(BaseException):
                    future.result()

    def _check_open(self) -> None:
        with self._condition:
            self._raise_error()


def _asked(ask: Callable[[], _T]) -> _T:
    """Ask the source for something about one file; what only this file has to do with is a ``_Refused``."""
    try:
        return ask()
    except NotFoundError:
        raise _Refused("it is not there") from None
    except PreconditionError:
        raise _Refused("it was changed since it was looked at") from None
    except (AccessError, IntegrityError) as error:
        raise _Refused(error.message) from None


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
