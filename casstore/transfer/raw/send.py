"""From local files to object storage.

Decided here and only here: how one file is sent, and what makes sure that it arrived. A small file is read whole and
its tag compared; a large one is sent in parts and the size of the object compared. A file that changes while it is
read is a failure. Doing the same again replaces objects by equal ones, so it can be done again at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import partial

from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError, SourceError, UsageError
from casstore.remote.urls import MAX_PATH
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.raw.crew import DEFAULT_THREADS, Crew, Stop, ends_all
from casstore.transfer.raw.listing import Place, matcher
from casstore.transfer.raw.md5 import Tags, md5
from casstore.transfer.raw.names import key_of
from casstore.transfer.raw.result import Result, Tally
from casstore.transfer.raw.sources import LocalFile, Source, open_file, walk
from casstore.transfer.safefs import show

__all__ = ["upload"]

SMALL = 8 << 20
"""Bytes of a file that is read at once; each thread has one in memory."""


def upload(
    place: Place,
    sources: Sequence[Source],
    *,
    regex: str | None = None,
    resume: bool = False,
    follow: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Result:
    """Store files below a place, replacing what is there under their names.

    ``regex`` is matched from the start of names. ``resume`` leaves alone what is there with the same size and MD5.
    ``follow`` says whether links to files are followed. One file that fails does not stop the others: look at the
    result. ``SourceError`` for a folder that can't be read.
    """
    run = _Upload(place, progress or Silent(), resume=resume, follow=follow)
    crew: Crew[None] = Crew(threads or DEFAULT_THREADS, lambda: None, put_away=lambda _: None, stop=stop)
    with crew:
        for file in walk(sources, matcher(regex), left_out=run.left_out, follow=follow):
            crew.submit(partial(run.send, crew, file))
        run.progress.listed()
    return run.tally.result(digest=False)


class _Upload:
    def __init__(self, place: Place, progress: Progress, *, resume: bool, follow: bool) -> None:
        self.client = place.client
        self.base = place.base
        self.progress = progress
        self.tally = Tally()
        self._resume = resume
        self._follow = follow
        self._tags = Tags(progress.warn)

    def left_out(self, line: str) -> None:
        """Something that is no file."""
        self.tally.left_out(line)
        self.progress.warn(f"left out: {line}")

    def send(self, crew: Crew[None], file: LocalFile, _: None) -> None:
        """Send one file; its failure is noted, what ends all is raised."""
        crew.check()
        try:
            self._send(crew, file)
        except OSError as error:
            self._failed(file, SourceError(f"{show(file.path)} can't be read: {error.strerror}"))
        except CasstoreError as error:
            if ends_all(error):
                raise
            self._failed(file, error)

    def _send(self, crew: Crew[None], file: LocalFile) -> None:
        key = self.base + key_of(file.name)
        if len(key.encode()) > MAX_PATH:
            raise FormatError(f"{show(file.path)}: its key would have more than {MAX_PATH} bytes")
        descriptor = open_file(file, follow=self._follow)
        with open(descriptor, "rb", buffering=0) as source:
            before = os.fstat(descriptor)
            size = before.st_size
            self.progress.expect(1, size)
            if self._resume and self._is_there(key, descriptor, size):
                self.progress.advance(size)
                self.tally.done(size, transferred=0, reused=True)
            else:
                if size <= SMALL:
                    self._put(crew, file, key, descriptor, size)
                else:

                    def advance(count: int) -> None:
                        crew.check()
                        self.progress.advance(count, new=count)

                    tag = self.client.upload(key, source, size=size, advance=advance)
                    self._check_size(key, size, tag)
                after = os.fstat(descriptor)
                if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
                    raise SourceError(f"{show(file.path)} changed while it was read", hint="upload it again")
                self.tally.done(size, transferred=size)
        self.progress.file_done(file.name)

    def _put(self, crew: Crew[None], file: LocalFile, key: str, descriptor: int, size: int) -> None:
        data = bytearray()
        while len(data) <= size and (block := os.pread(descriptor, min(1 << 20, size + 1 - len(data)), len(data))):
            data += block
        if len(data) != size:
            raise SourceError(f"{show(file.path)} changed while it was read", hint="upload it again")
        crew.check()
        tag = self.client.put(key, [data])
        self.progress.advance(size, new=size)
        expected = self._tags.expected(tag)
        if expected is not None and md5(bytes(data)).hexdigest() != expected:
            # The tag is not the digest of what was sent: damage on the way, or a tag that is no digest.
            there = self.client.read(key, length=size).data if size else b""
            if there != data:
                raise IntegrityError(f"{show(key)}: what was stored is not what was sent", hint="upload it again")
            self._tags.distrust()

    def _check_size(self, key: str, size: int, tag: str) -> None:
        found = self.client.head(key)
        if found.size != size and found.etag == tag:
            raise IntegrityError(f"{show(key)}: {found.size} bytes were stored where {size} were sent")

    def _is_there(self, key: str, descriptor: int, size: int) -> bool:
        try:
            found = self.client.head(key)
        except (NotFoundError, UsageError):
            return False
        expected = self._tags.expected(found.etag)
        if found.size != size or expected is None:
            return False
        digest, offset = md5(), 0
        while data := os.pread(descriptor, 1 << 20, offset):
            digest.update(data)
            offset += len(data)
        return digest.hexdigest() == expected

    def _failed(self, file: LocalFile, error: CasstoreError) -> None:
        self.tally.failed(os.fsdecode(file.path), error)
        with contextlib.suppress(Exception):
            self.progress.warn(error.message)
