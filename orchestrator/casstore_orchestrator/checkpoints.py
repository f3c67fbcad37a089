"""Checkpoints: folders of a running task, stored again and again beside its command.

Decided here and only here: when a checkpoint is taken, what of a folder belongs to it while the command goes on
writing, and what the log says. A checkpoint is a copy of the folder first, made on this machine, and stored from there:
a version of a dataset, or objects that appear whole. A file that changes while it is copied is copied again, and while
it goes on changing the copy of the time before stands for it, so that no half-written file is ever stored. What is the
same as the last time is not stored again.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from casstore.errors import CancelledError, CasstoreError, SourceError, UsageError

from .folders import copy_bytes, copy_tree, local_path, remove_tree, size_text
from .ports import DataStore, UrlStore
from .provenance import Producer
from .spec import Checkpoint
from .transfers import Say, Stop, repeat

__all__ = ["Checkpoints", "Place"]

Place = Callable[[str], tuple[Path, str]]
"""Where what a task sees at an absolute path lies on the host: a folder of ours, and the path below it, which is the
task's: no link in it may be followed.
"""

_TRIES = 3
_PAUSE = 0.1
"""Seconds between two tries to copy a file that changes."""
_SETTLED_NS = 20_000_000
"""A file changed more recently may change again without its times showing it."""
_MAX_DEPTH = 100
_JOIN = 30.0

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A copy of a folder, in ``root``. ``changing``: files of which there is no whole copy of now."""

    root: Path
    files: dict[str, Signature] = field(default_factory=dict)
    changing: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one run of a task.

    ``start`` when its command begins, ``stop`` once it ended, whatever the reason; then ``last``, unless the task was
    ended from outside. ``folder`` is where the copies lie: on the host, where the task does not see it.
    """

    items: Sequence[Checkpoint]
    folder: Path
    place: Place
    producer: Producer
    data: DataStore
    urls: UrlStore | None
    file_urls: bool
    say: Say
    over: Stop = field(default_factory=Stop)
    threads: list[threading.Thread] = field(default_factory=list)
    stored: dict[int, _Snapshot] = field(default_factory=dict)

    def start(self) -> None:
        """Begin: the first checkpoint is taken after one ``frequency``."""
        for index, item in enumerate(self.items):
            thread = threading.Thread(target=self._loop, args=(index, item), name=f"checkpoint {index}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End the loops; what one of them is storing just now is given up. Does nothing the second time."""
        self.over.set("the command ended")
        for thread in self.threads:
            thread.join(_JOIN)
        self.threads.clear()

    def last(self, stop: Stop, producer: Producer) -> None:
        """Store every folder as the command left it; raises what its last try raised."""
        self.producer = producer
        for index, item in enumerate(self.items):
            self._take(index, item, stop, last=True)

    def _loop(self, index: int, item: Checkpoint) -> None:
        while not self.over.wait(item.frequency):
            try:
                self._take(index, item, self.over, last=False)
            except CancelledError:
                return
            except (CasstoreError, OSError) as error:
                self.say(f"The checkpoint of {item.path} failed: {error}. The next one is in {item.frequency:g} s")

    def _take(self, index: int, item: Checkpoint, stop: Stop, *, last: bool) -> None:
        before = self.stored.get(index)
        target = self.folder / str(index) / ("b" if before is not None and before.root.name == "a" else "a")
        remove_tree(target)
        target.mkdir(parents=True)
        found = _copy(self.place(item.path), target, before, item.regex, stop, last=last)
        for name in found.changing[:_TRIES]:
            self.say(f"  {name} changes while it is read: its last whole copy, if any, is taken")
        if not found.files:
            if last:
                self.say(f"Checkpoint of {item.path}: there is nothing in it")
            return
        if before is not None and before.files == found.files:
            if last:
                self.say(f"Checkpoint of {item.path}: nothing has changed since the last one")
            return
        self.say(f"Checkpointing data from {item.path} to {item.target}...")
        work = partial(self._store, item, target, stop)
        what = f"Checkpointing {item.path}"
        name = repeat(work, what, say=self.say, stop=stop) if last else work()
        self.stored[index] = found
        size = size_text(sum(found.sizes))
        self.say(f"Checkpointing data from {item.path} to {name} finished: {len(found.files)} files, {size}")

    def _store(self, item: Checkpoint, source: Path, stop: Stop) -> str:
        """Where it was stored, for people to read."""
        producer = self.producer
        if item.dataset is not None:
            made = self.data.publish(
                item.dataset,
                producer.user,
                [f"{source}/*"],
                regex=None,
                metadata={},
                labels={},
                origin=producer.metadata(),
                provenance={**producer.provenance(), "checkpoint": item.path},
                stop=stop,
            )
            return made.version.ref
        url = item.url or ""
        if self.urls is not None and not url.startswith("file:"):
            self.urls.upload(url, producer.user, source, regex=None, again=True, tell=self.say, stop=stop)
            return url
        target = local_path(url) if self.file_urls else None
        if target is None:
            msg = f"{url} can't be written here"
            raise UsageError(msg, hint="Name a dataset instead.")
        copy_tree(source, target, stop=stop, replace=True)
        return url


def _copy(
    place: tuple[Path, str], target: Path, before: _Snapshot | None, regex: str | None, stop: Stop, *, last: bool
) -> _Snapshot:
    """A copy of a folder (or of one file) that its task may be changing; an empty one of what is not there."""
    made = _Snapshot(target)
    pattern = re.compile(regex) if regex else None
    base, relative = place
    top = _open_below(base, relative)
    if top is None:
        return made
    try:
        if stat.S_ISREG(os.fstat(top).st_mode):
            parent = _open_below(base, os.path.dirname(relative))
            if parent is not None:
                try:
                    _copy_one(made, before, parent, os.path.basename(relative), os.path.basename(relative), stop, last)
                finally:
                    os.close(parent)
            return made
        for folder, name, below in _walk(top, "", 0):
            stop.check()
            if pattern is not None and not pattern.match(below):
                continue
            (target / below).parent.mkdir(parents=True, exist_ok=True)
            _copy_one(made, before, folder, name, below, stop, last)
    finally:
        os.close(top)
    return made


def _open_below(base: Path, relative: str) -> int | None:
    """Open what lies at ``relative`` without following any link in it; None when there is nothing."""
    current = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in relative.split("/"):
        if part in {"", "."}:
            continue
        try:
            found = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=current)
        except FileNotFoundError:
            return None
        except OSError as error:
            msg = f"{relative!r} can't be read: a part of it is a link, or no folder ({error.strerror})"
            raise SourceError(msg, hint="Name the folder itself: links are not followed.") from None
        finally:
            os.close(current)
        current = found
    return current


def _walk(folder: int, prefix: str, depth: int) -> Iterator[tuple[int, str, str]]:
    """(open folder, name, path below the top) of every file and link."""
    if depth > _MAX_DEPTH:
        msg = f"{prefix!r} is more than {_MAX_DEPTH} folders deep"
        raise SourceError(msg)
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        below = f"{prefix}{name}"
        try:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                yield folder, name, below
                continue
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it has gone meanwhile
        try:
            yield from _walk(inner, f"{below}/", depth + 1)
        finally:
            os.close(inner)


def _copy_one(
    made: _Snapshot, before: _Snapshot | None, folder: int, name: str, below: str, stop: Stop, last: bool
) -> None:
    place = made.root / below
    for number in range(_TRIES):
        if number:
            stop.wait(_PAUSE)
            stop.check()
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                place.symlink_to(os.readlink(name, dir_fd=folder))
                made.files[below] = _signature(info)
                return
            if not stat.S_ISREG(info.st_mode):
                return
            whole = _copy_file(made, before, folder, name, below, stop, last=last)
        except FileNotFoundError:
            return  # it has gone meanwhile
        if whole:
            return
    made.changing.append(below)
    if before is not None and below in before.files:
        os.link(before.root / below, place, follow_symlinks=False)
        made.files[below] = before.files[below]


def _copy_file(
    made: _Snapshot, before: _Snapshot | None, folder: int, name: str, below: str, stop: Stop, *, last: bool
) -> bool:
    """Whether the copy is whole: nobody wrote meanwhile."""
    place = made.root / below
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        info = os.fstat(reader)
        if not stat.S_ISREG(info.st_mode):
            return False
        if not last and time.time_ns() - info.st_mtime_ns < _SETTLED_NS:
            return False
        if before is not None and before.files.get(below) == _signature(info):
            os.link(before.root / below, place, follow_symlinks=False)
        else:
            writer = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                copy_bytes(reader, writer, stop)
                os.fchmod(writer, stat.S_IMODE(info.st_mode) & 0o777 | 0o400)
                os.utime(writer, ns=(info.st_atime_ns, info.st_mtime_ns))
            finally:
                os.close(writer)
            if _signature(os.fstat(reader)) != _signature(info):
                place.unlink()
                return False
    finally:
        os.close(reader)
    made.files[below] = _signature(info)
    made.sizes.append(info.st_size)
    return True


def _signature(info: os.stat_result) -> Signature:
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
