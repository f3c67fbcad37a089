"""From object storage to a folder.

Decided here and only here: how one file is fetched (into a hidden file beside its target, whole and verified before
it takes its name), when a file that is there already is right, and how large objects are shared among threads.

A file gets the modification time of its object. That is how an interrupted download, run again with ``resume``, knows
a file whose tag says nothing about its bytes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterator
from functools import partial

from casstore.errors import CasstoreError, ConflictError, IntegrityError
from casstore.transfer.openfile import write_all
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.raw.crew import DEFAULT_THREADS, Crew, Stop, ends_all
from casstore.transfer.raw.listing import Found, Place, matcher, some
from casstore.transfer.raw.md5 import Tags, md5
from casstore.transfer.raw.names import local_name
from casstore.transfer.raw.result import Result, Tally
from casstore.transfer.safefs import Confined, local_error, show

__all__ = ["download"]

PIECE = 8 << 20
"""Bytes of one request, and what each thread has in memory."""


def download(
    place: Place,
    folder: str,
    *,
    regex: str | None = None,
    resume: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Result:
    """Fetch what is at a place into an existing folder; nothing is ever written outside of it.

    ``regex`` is matched from the start of names. What is in the way is replaced, unless ``resume`` finds it whole. One
    file that fails does not stop the others: look at the result. ``NotFoundError`` when there is nothing.
    """
    run = _Download(place, progress or Silent(), resume=resume)
    pattern = matcher(regex)
    try:
        root = Confined.open(os.path.realpath(folder))
    except OSError as error:
        raise local_error(error, folder) from None
    crew = Crew(threads or DEFAULT_THREADS, root.clone, put_away=Confined.close, stop=stop)
    with root, crew:
        for found in some(place.objects(), place.url):
            crew.check()
            if found.is_folder or (pattern is not None and not pattern.match(found.name)):
                continue
            run.tally.note(found.name, str(found.info.size), found.info.etag)
            run.progress.expect(1, found.info.size)
            with contextlib.closing(run.jobs(crew, root, found)) as jobs:
                for job in jobs:
                    crew.submit(job)
        run.progress.listed()
    return run.tally.result(digest=True)


class _Large:
    """An object that several threads fetch; whoever ends last completes it."""

    __slots__ = ("descriptor", "failed", "found", "left", "path", "temporary")

    def __init__(self, found: Found, path: bytes, descriptor: int, temporary: bytes, parts: int) -> None:
        self.found = found
        self.path = path
        self.descriptor = descriptor
        self.temporary = temporary
        self.left = parts
        self.failed: CasstoreError | None = None


class _Download:
    def __init__(self, place: Place, progress: Progress, *, resume: bool) -> None:
        self.client = place.client
        self.progress = progress
        self.tally = Tally()
        self._resume = resume
        self._tags = Tags(progress.warn)
        self._lock = threading.Lock()

    def jobs(self, crew: Crew[Confined], root: Confined, found: Found) -> Generator[partial[None]]:
        """What has to be done for one object."""
        if found.info.size <= PIECE:
            yield partial(self._small, crew, found)
            return
        begun: list[_Large] = []
        with self._told(found):
            path = local_name(found.name, found.info.key)
            if self._resume and self._is_whole(root, path, found):
                self._reuse(path, found)
                return
            descriptor, temporary = _begin(root, path)
            begun.append(_Large(found, path, descriptor, temporary, -(-found.info.size // PIECE)))
        submitted = 0
        for large in begun:  # one, or none when it failed
            try:
                for offset in range(0, found.info.size, PIECE):
                    yield partial(self._part, crew, large, offset)
                    submitted += 1
            finally:  # parts that nobody will fetch any more
                missing = -(-found.info.size // PIECE) - submitted
                if missing:
                    self._ended(root, large, missing, stopped=True)

    # --- in threads

    def _small(self, crew: Crew[Confined], found: Found, root: Confined) -> None:
        crew.check()
        with self._told(found):
            path = local_name(found.name, found.info.key)
            if self._resume and self._is_whole(root, path, found):
                self._reuse(path, found)
                return
            data = self._read(found, 0, found.info.size)
            expected = self._tags.expected(found.info.etag)
            if expected is not None and (digest := md5(data).hexdigest()) != expected:
                data = self._once_more(found, digest, expected)
            descriptor, temporary = _begin(root, path)
            try:
                try:
                    write_all(descriptor, [data], 0)
                    self._complete(root, found, path, descriptor, temporary)
                finally:
                    os.close(descriptor)
            except BaseException:
                _remove(root, temporary)
                raise
            self.progress.advance(found.info.size, new=found.info.size)
            self.progress.file_done(path)
            self.tally.done(found.info.size, transferred=found.info.size)

    def _part(self, crew: Crew[Confined], large: _Large, offset: int, root: Confined) -> None:
        try:
            if large.failed is None:
                crew.check()
                length = min(PIECE, large.found.info.size - offset)
                data = self._read(large.found, offset, length)
                write_all(large.descriptor, [data], offset)
                self.progress.advance(length, new=length)
        except BaseException as error:  # noqa: BLE001 - kept for whoever ends last
            problem = local_error(error, large.path) if isinstance(error, OSError) else error
            if not isinstance(problem, CasstoreError) or ends_all(problem):
                self._ended(root, large, 1, stopped=True)
                raise problem from None
            with self._lock:
                large.failed = large.failed or problem
        self._ended(root, large, 1)

    def _ended(self, root: Confined, large: _Large, parts: int, *, stopped: bool = False) -> None:
        """So many parts of a large object are done with; the last one completes it, or clears it away."""
        with self._lock:
            large.left -= parts
            if stopped:
                large.failed = large.failed or IntegrityError("the transfer was stopped")
            if large.left:
                return
        found = large.found
        try:
            if large.failed is not None:
                if not stopped:
                    self._failed(found, large.failed)
                return
            with self._told(found):
                self._check_large(root, large)
                self._complete(root, found, large.path, large.descriptor, large.temporary)
                large.temporary = b""
                self.progress.file_done(large.path)
                self.tally.done(found.info.size, transferred=found.info.size)
        finally:
            os.close(large.descriptor)
            if large.temporary:
                _remove(root, large.temporary)

    def _check_large(self, root: Confined, large: _Large) -> None:
        expected = self._tags.expected(large.found.info.etag)
        if expected is None:
            return
        written = root.open_file(large.temporary)  # the other descriptor is for writing alone
        try:
            digest = _md5_of(written)
        finally:
            os.close(written)
        if digest != expected:
            again = md5()
            for offset in range(0, large.found.info.size, PIECE):
                data = self._read(large.found, offset, min(PIECE, large.found.info.size - offset))
                again.update(data)
                write_all(large.descriptor, [data], offset)
            self._judge(large.found, digest, again.hexdigest(), expected)

    def _once_more(self, found: Found, digest: str, expected: str) -> bytes:
        data = self._read(found, 0, found.info.size)
        self._judge(found, digest, md5(data).hexdigest(), expected)
        return data

    def _judge(self, found: Found, first: str, second: str, expected: str) -> None:
        if second == expected:
            return  # the first reply was damaged on its way
        if first != second:
            raise IntegrityError(f"{show(found.info.key)}: its bytes were other ones each time they were read")
        self._tags.distrust()

    def _read(self, found: Found, offset: int, length: int) -> bytes:
        if not length:
            return b""
        data = self.client.read(found.info.key, offset=offset, length=length, if_match=found.info.etag or None).data
        if len(data) != length:
            raise IntegrityError(f"{show(found.info.key)}: {len(data)} bytes came where {length} were asked for")
        return data

    def _is_whole(self, root: Confined, path: bytes, found: Found) -> bool:
        try:
            there = root.open_file(path)
        except (OSError, CasstoreError):
            return False
        try:
            status = os.fstat(there)
            if status.st_size != found.info.size:
                return False
            expected = self._tags.expected(found.info.etag)
            if expected is not None and _md5_of(there) == expected:
                return True
            # Not its MD5: another content, or a tag that is none. The time says which.
            return expected is None and status.st_mtime_ns == _mtime_ns(found)
        finally:
            os.close(there)

    def _reuse(self, path: bytes, found: Found) -> None:
        self.progress.advance(found.info.size)
        self.progress.file_done(path)
        self.tally.done(found.info.size, transferred=0, reused=True)

    @staticmethod
    def _complete(root: Confined, found: Found, path: bytes, descriptor: int, temporary: bytes) -> None:
        if os.fstat(descriptor).st_size != found.info.size:
            raise IntegrityError(f"{show(found.info.key)}: the file on disk is not as long as the object")
        if found.info.mtime > 0:
            moment = _mtime_ns(found)
            os.utime(descriptor, ns=(moment, moment))
        root.rename(temporary, root, path)

    @contextlib.contextmanager
    def _told(self, found: Found) -> Iterator[None]:
        """Turn the failure of one file into an entry of the result; what ends all goes on."""
        try:
            yield
        except OSError as error:
            problem = local_error(error, found.name)
            if ends_all(problem):
                raise problem from None
            self._failed(found, problem)
        except CasstoreError as error:
            if ends_all(error):
                raise
            self._failed(found, error)

    def _failed(self, found: Found, error: CasstoreError) -> None:
        if isinstance(error, ConflictError) and show(found.info.key) not in error.message:
            error = type(error)(f"the key {show(found.info.key)!r}: {error.message}", hint=error.hint)
        self.tally.failed(found.info.key, error)
        self.progress.warn(error.message)


def _begin(root: Confined, path: bytes) -> tuple[int, bytes]:
    above = path.rpartition(b"/")[0]
    if above:
        root.makedirs(above)
    return root.create_temporary(above, mode=0o666)


def _remove(root: Confined, temporary: bytes) -> None:
    with contextlib.suppress(OSError, CasstoreError):
        root.remove(temporary)


def _mtime_ns(found: Found) -> int:
    return int(found.info.mtime * 1e6) * 1000


def _md5_of(descriptor: int) -> str:
    digest = md5()
    offset = 0
    while data := os.pread(descriptor, 1 << 20, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()
