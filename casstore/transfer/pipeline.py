"""Reading, cutting, hashing and storing files with all cores and bounded memory.

Decided here and only here: how the work of an upload is spread over threads. Every worker does the whole way of a file
(read, cut, hash, compress, pack), so that many files need no hand-over. Cutting a single large file is sequential: the
worker that cuts it hands segments to workers that have nothing to do. Where there are very many small files, each
worker has a process do all but the packing. Buffers are made once and reused.

A file counts as read only if it was the same before and after: otherwise it is read again, a few times, and refused
in the end.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Sequence

from casstore.backend.base import Buffer
from casstore.chunking.base import Chunker
from casstore.errors import CancelledError, CasstoreError, SourceError
from casstore.format.manifest import CHUNK_REF
from casstore.model import Content
from casstore.repo.tree import ListBuilder
from casstore.repo.writer import Lane, Writer
from casstore.transfer.progress import Progress
from casstore.transfer.reader import READ_FLAGS
from casstore.transfer.readers import Reader
from casstore.transfer.scan import State, describe, open_deep, show, state_of

SEGMENT = 2 << 20
"""Bytes of a large file that are read and cut at once: few, because the first touch of fresh memory can be dear."""
SMALL = 1 << 20
"""Files up to this size are read whole, several of them in one job."""
BATCH_BYTES = 4 << 20
BATCH_FILES = 256
READERS_FROM = 4096
"""Small files after which an upload starts reader processes: fewer are done before those have started."""
ATTEMPTS = 3
"""How often a file that changes while it is read is tried."""


class Job:
    """One file to be read. ``content`` and ``state`` are set when ``done``; ``gone`` if it was deleted meanwhile."""

    __slots__ = ("content", "done", "gone", "path", "size", "state", "status")

    def __init__(self, path: bytes, status: os.stat_result) -> None:
        self.path = path
        self.status = status
        self.size = status.st_size
        self.state: State = state_of(status)
        self.content = Content()
        self.done = False
        self.gone = False


class _File:
    """A large file whose segments are stored by several workers and put together in order."""

    def __init__(self, writer: Writer) -> None:
        self.condition = threading.Condition()
        self.list = ListBuilder(writer)
        self.parts: dict[int, list[tuple[bytes, int]]] = {}
        self.next = 0
        self.open = 0

    def deliver(self, number: int, records: list[tuple[bytes, int]]) -> None:
        with self.condition:
            self.parts[number] = records
            while (part := self.parts.pop(self.next, None)) is not None:
                self.list.extend(part)
                self.next += 1
            self.open -= 1
            self.condition.notify_all()


class _Segment:
    __slots__ = ("buffer", "file", "lengths", "number")

    def __init__(self, file: _File, number: int, buffer: bytearray, lengths: Sequence[int]) -> None:
        self.file = file
        self.number = number
        self.buffer = buffer
        self.lengths = lengths


class Pipeline:
    """Threads that store files. ``submit`` jobs, wait for them in order with ``wait``, and ``close`` it in the end."""

    def __init__(self, writer: Writer, chunker: Chunker, progress: Progress, threads: int) -> None:
        self._writer = writer
        self._chunker = chunker
        self._progress = progress
        self._condition = threading.Condition()
        self._jobs: deque[list[Job]] = deque()
        self._segments: deque[_Segment] = deque()
        self._spare = [bytearray(SEGMENT + chunker.params.max) for _ in range(2)]
        self._idle = 0
        self._closed = False
        self._small = 0
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"casstore-upload-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, jobs: list[Job]) -> None:
        """Have these files stored, by one worker."""
        with self._condition:
            self._raise_error()
            self._jobs.append(jobs)
            self._small += len(jobs)
            self._condition.notify()

    def wait(self, job: Job) -> None:
        """Wait until this file is stored; raises what went wrong with any file."""
        with self._condition:
            while not job.done:
                self._raise_error()
                self._condition.wait()

    def close(self) -> None:
        """Stop the workers; jobs that were not begun are dropped, and those that were are left off."""
        with self._condition:
            self._closed = True
            self._jobs.clear()
            self._segments.clear()
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._spare.clear()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:  # by an interrupt: what a worker is at is of no use any more
            raise CancelledError("the upload was stopped")

    def _run(self) -> None:
        lane = self._writer.lane()
        buffer = bytearray(SEGMENT + self._chunker.params.max)
        reader: Reader | None = None
        try:
            while (task := self._next()) is not None:
                try:
                    if isinstance(task, _Segment):
                        self._store_segment(lane, task)
                    elif len(task) == 1 and task[0].size > SMALL:
                        buffer = self._store_large(lane, task[0], buffer)
                    else:
                        if reader is None and self._small > READERS_FROM:
                            reader = self._start_reader()
                        if reader is not None:
                            task = self._store_read(lane, task, reader)
                        self._store_small(lane, task, memoryview(buffer))
                except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the file
                    with self._condition:
                        self._error = self._error or error
                        self._condition.notify_all()
        finally:
            if reader is not None:
                reader.close()

    def _next(self) -> _Segment | list[Job] | None:
        """Wait for something to do; None when there will be nothing more."""
        with self._condition:
            self._idle += 1
            while not (self._segments or self._jobs or self._closed):
                self._condition.wait()
            self._idle -= 1
            if self._closed:
                return None
            return self._segments.popleft() if self._segments else self._jobs.popleft()

    def _finished(self, jobs: Sequence[Job]) -> None:
        with self._condition:
            for job in jobs:
                job.done = True
            self._condition.notify_all()

    # Small files: read whole by a process, or into the worker's buffer.

    def _start_reader(self) -> Reader | None:
        reader = Reader.start(self._chunker.params)
        if reader is None:
            self._small = -sys.maxsize  # not here: don't try again
        return reader

    def _store_read(self, lane: Lane, jobs: list[Job], reader: Reader) -> list[Job]:
        """Store what the process reads of these files; returns those that are still to be done."""
        reply = reader.read([(job.path, job.state) for job in jobs])
        if reply is None:
            return jobs
        before, handled = lane.new_bytes, 0
        done: list[Job] = []
        rest: list[Job] = []
        for job, chunks in zip(jobs, reply, strict=True):
            if chunks is None:
                rest.append(job)
                continue
            for chunk_id, raw, codec, offset, stored in chunks:
                lane.add_encoded(chunk_id, raw, codec, reader.view[offset : offset + stored])
            if len(chunks) == 1:
                job.content = Content(0, CHUNK_REF.pack(chunks[0][0], chunks[0][1]))
            elif chunks:
                records = ListBuilder(self._writer)
                records.extend((chunk[0], chunk[1]) for chunk in chunks)
                job.content = records.finish()
            handled += job.size
            done.append(job)
        self._progress.advance(handled, new=lane.new_bytes - before)
        self._finished(done)
        return rest

    def _store_small(self, lane: Lane, jobs: Sequence[Job], view: memoryview) -> None:
        handled = 0
        before = lane.new_bytes
        for job in jobs:
            self._raise_error()
            expected = job.size
            for attempt in range(ATTEMPTS):
                if self._store_small_file(lane, job, view):
                    break
                if attempt == ATTEMPTS - 1:
                    raise _unsteady(job)
            if job.size > expected:
                self._progress.expect(0, job.size - expected)
            handled += job.size
        self._progress.advance(handled, new=lane.new_bytes - before)
        self._finished(jobs)

    def _store_small_file(self, lane: Lane, job: Job, view: memoryview) -> bool:
        """Store one small file; False if it changed while it was read."""
        descriptor = _open(job)
        if descriptor < 0:
            return True
        try:
            room = min(job.size + 1, len(view))
            got = os.readv(descriptor, [view[:room]])
            while got < job.size and (more := os.readv(descriptor, [view[got:room]])):
                got += more
            status = os.fstat(descriptor)
        except OSError as error:
            raise describe(error, job.path) from None
        finally:
            os.close(descriptor)
        if got != job.size or state_of(status) != job.state:
            _look_again(job, status)
            return False
        data = view[:got]
        if got <= self._chunker.params.min:
            refs = CHUNK_REF.pack(lane.add(data), got) if got else b""
            job.content = Content(0, refs)
            return True
        chunks = ListBuilder(self._writer)
        chunks.extend(self._store_chunks(lane, data, self._chunker.cut(data, final=True)))
        job.content = chunks.finish()
        return True

    def _store_chunks(self, lane: Lane, data: Buffer, lengths: Sequence[int]) -> list[tuple[bytes, int]]:
        view = memoryview(data)
        records: list[tuple[bytes, int]] = []
        start = 0
        for length in lengths:
            end = start + length
            records.append((lane.add(view[start:end]), length))
            start = end
        return records

    # Large files: one worker reads and cuts, those that are idle help to store.

    def _store_large(self, lane: Lane, job: Job, buffer: bytearray) -> bytearray:
        expected, handled = job.size, 0
        for _ in range(ATTEMPTS):
            descriptor = _open(job)
            if descriptor < 0:
                break
            try:
                file = _File(self._writer)
                buffer = self._read_segments(lane, job, descriptor, file, buffer)
                self._help_until_done(lane, file)
                status = os.fstat(descriptor)
            except OSError as error:
                raise describe(error, job.path) from None
            finally:
                os.close(descriptor)
            if file.list.size == job.size and state_of(status) == job.state:
                job.content = file.list.finish()
                break
            _look_again(job, status)
            # What was read is read once more: the totals grow with the work.
            handled += file.list.size
            if handled + job.size > expected:
                self._progress.expect(0, handled + job.size - expected)
                expected = handled + job.size
        else:
            raise _unsteady(job)
        self._finished([job])
        return buffer

    def _read_segments(self, lane: Lane, job: Job, descriptor: int, file: _File, buffer: bytearray) -> bytearray:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        number = carried = total = 0
        while True:
            self._raise_error()
            filled, final = _fill(descriptor, buffer, carried)
            total += filled - carried
            if total > job.size:
                return buffer  # it grows: the caller sees that and starts again
            view = memoryview(buffer)
            lengths = self._chunker.cut(view[:filled], final=final)
            used = sum(lengths)
            with file.condition:
                file.open += 1
            segment = _Segment(file, number, buffer, lengths)
            spare = None if final else self._hand_over(segment)
            if spare is not None:
                spare[: filled - used] = view[used:filled]
                buffer = spare
            else:
                self._store_segment(lane, segment, own=True)
                buffer[: filled - used] = view[used:filled]
            view.release()
            carried = filled - used
            number += 1
            if final:
                return buffer

    def _hand_over(self, segment: _Segment) -> bytearray | None:
        """Give a segment to an idle worker and return another buffer, or None if there is neither."""
        with self._condition:
            if not self._spare or self._idle <= len(self._segments):
                return None
            self._segments.append(segment)
            self._condition.notify_all()
            return self._spare.pop()

    def _store_segment(self, lane: Lane, segment: _Segment, *, own: bool = False) -> None:
        before = lane.new_bytes
        records = self._store_chunks(lane, segment.buffer, segment.lengths)
        if not own:
            with self._condition:
                self._spare.append(segment.buffer)
        self._progress.advance(sum(segment.lengths), new=lane.new_bytes - before)
        segment.file.deliver(segment.number, records)

    def _help_until_done(self, lane: Lane, file: _File) -> None:
        while True:
            with self._condition:
                self._raise_error()
                segment = self._segments.popleft() if self._segments else None
            if segment is not None:
                self._store_segment(lane, segment)
                continue
            with file.condition:
                if not file.open:
                    return
                file.condition.wait(0.05)


def _fill(descriptor: int, buffer: bytearray, start: int) -> tuple[int, bool]:
    """Read until the buffer is full or the file ends; returns how much is filled, and whether the file ended."""
    view = memoryview(buffer)
    filled = start
    while filled < len(buffer):
        got = os.readv(descriptor, [view[filled:]])
        if not got:
            return filled, True
        filled += got
    return filled, False


def _open(job: Job) -> int:
    """Open a file, never through a link; -1 if it is gone."""
    try:
        return open_deep(job.path, READ_FLAGS)
    except FileNotFoundError:
        job.gone = True
        return -1
    except OSError as error:
        raise describe(error, job.path) from None


def _look_again(job: Job, status: os.stat_result) -> None:
    job.status = status
    job.size = status.st_size
    job.state = state_of(status)


def _unsteady(job: Job) -> CasstoreError:
    return SourceError(
        f"{show(job.path)} changes while it is read ({ATTEMPTS} attempts)",
        hint="wait until nothing writes to it, then upload again; nothing was committed",
    )
