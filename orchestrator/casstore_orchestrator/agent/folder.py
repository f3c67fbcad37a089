"""The folder of a run (one placement of a group), by which servers and agents find each other.

Decided here and only here: the layout, what the lock and the tombstone of a run mean, and how a socket is reached whose
path is too long for the system.

    <workflow>.<group>.<placement>/start     what to run; there before an agent is started
    <workflow>.<group>.<placement>/lock      locked (flock) as long as anything of the run is alive
    <workflow>.<group>.<placement>/journal   see ``journal``; there once an agent has begun
    <workflow>.<group>.<placement>/socket    where the agent answers
    <workflow>.<group>.<placement>/log       what went wrong in the agent itself
    closed/<workflow>.<group>.<placement>    the run is over

An agent begins only while it holds the lock, and only if there is neither a journal nor a tombstone: so a run begins
once. Whoever finds nobody alive takes the lock, and then writes the tombstone before anything is removed: so whoever
comes later, with an order to begin that was on its way for however long, begins nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from casstore.errors import FormatError, NotFoundError
from casstore.structs import from_json
from casstore.wire.local import MAX_SOCKET_PATH
from casstore_orchestrator.folders import remove_tree
from casstore_orchestrator.pools import Resources
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.records import WorkflowRecord

__all__ = ["VERSION", "Lock", "RunFolder", "Runs", "Start"]

VERSION = 1
"""Of everything that servers and agents say to each other: folder, journal and protocol, and what can stand in them. To
be raised when an older server or agent would not understand an event or an order.
"""
KEEP_CLOSED = 30 * 86400.0
"""Seconds for which a tombstone is kept: far longer than an order to begin can be on its way."""
_MAX_START = 256 << 20
_MAX_LOG = 1 << 20
_HIGH_FD = 64
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)\.([A-Za-z][A-Za-z0-9_-]*)\.([1-9][0-9]{0,17})")
_CLOSED = "closed"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is told to run; ``limits`` are those of each task."""

    version: int = VERSION
    group: str
    placement: int
    record: WorkflowRecord
    limits: dict[str, Resources]

    @classmethod
    def of(cls, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources]) -> Start:
        """What an agent of this run is told."""
        return cls(group=run.group, placement=run.placement, record=record, limits=dict(limits))


class _Version(msgspec.Struct, frozen=True):
    version: int = 0


class Lock:
    """The lock of a run, held until ``release`` or the end of the last process that has the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        """Give up our part of it; idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Runs:
    """All runs of a state folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: RunKey) -> RunFolder:
        """The folder of a run, which need not exist."""
        return RunFolder(self.root, run)

    def named(self, name: str) -> RunFolder:
        """The folder with this name. ``NotFoundError`` for what can't be one."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise NotFoundError(f"{name!r} is not the name of a run")
        return RunFolder(self.root, RunKey(match[1], match[2], int(match[3])))

    def all(self) -> list[RunKey]:
        """The runs that have a folder."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(self.named(name).run for name in os.listdir(self.root) if _NAME.fullmatch(name))
        return []

    def sweep(self) -> None:
        """Remove the tombstones that nobody can need any more."""
        oldest = time.time() - KEEP_CLOSED
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / _CLOSED) as found:
            for entry in found:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.unlink(entry.path)


class RunFolder:
    """The folder of one run."""

    def __init__(self, root: Path, run: RunKey) -> None:
        name = f"{run.workflow_id}.{run.group}.{run.placement:d}"
        if not _NAME.fullmatch(name):
            raise NotFoundError(f"{name!r} is not the name of a run")
        self.run = run
        self.path = root / name
        self._tombstone = root / _CLOSED / name

    @property
    def name(self) -> str:
        """The name among the runs."""
        return self.path.name

    @property
    def journal(self) -> Path:
        """Where the journal is, once an agent has begun."""
        return self.path / "journal"

    @property
    def begun(self) -> bool:
        """Whether an agent has begun, at any time."""
        return self.journal.exists()

    @property
    def closed(self) -> bool:
        """Whether the run is over for good."""
        return self._tombstone.exists()

    def close(self) -> None:
        """Put up the tombstone; only with the lock. Idempotent."""
        self._tombstone.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tombstone.touch(mode=0o600)

    def put(self, start: Start) -> None:
        """Write down what to run, unless it is written down already."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self.path / "start"
        if target.exists():
            return
        draft = self.path / f"start.{os.getpid()}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(start))
        draft.replace(target)

    def start(self) -> Start:
        """What to run. ``FormatError`` when it can't be read by this version."""
        try:
            with open(self.path / "start", "rb") as file:
                data = file.read(_MAX_START)
            version = from_json(data, _Version).version
            if version != VERSION:
                raise FormatError(f"the run was written by another version ({version}, this one is {VERSION})")
            return from_json(data, Start)
        except (OSError, msgspec.MsgspecError) as error:
            raise FormatError(f"what the run is about can't be read: {error}") from None

    def lock(self, *, make: bool = True) -> Lock | None:
        """Take the lock; None when somebody holds it, or there is no folder and ``make`` is not set."""
        if make:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = self.path / "lock"
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # removed just now
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # High, so that it is in nobody's way when it is handed on to other processes.
            lock = Lock(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD))
        except BlockingIOError:
            return None
        finally:
            os.close(descriptor)
        if not self.has(lock):  # removed just now
            lock.release()
            return None
        return lock

    def has(self, lock: Lock) -> bool:
        """Whether this is still the folder that the lock was taken in."""
        try:
            held, there = os.fstat(lock.descriptor), os.stat(self.path / "lock")
        except OSError:
            return False
        return (held.st_dev, held.st_ino) == (there.st_dev, there.st_ino)

    def listen(self) -> socket.socket:
        """Answer at the socket of the run; only with the lock."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path / "socket")
            with self._address() as address:
                listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return listener

    def connect(self) -> socket.socket:
        """Connect to the agent; ``OSError`` when none answers."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._address() as address:
                connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection

    def open_log(self) -> int:
        """A descriptor for the log of the agent."""
        return os.open(self.path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def log_full(self) -> bool:
        """Whether the log of the agent has reached its limit."""
        try:
            return os.stat(self.path / "log").st_size >= _MAX_LOG
        except OSError:
            return True

    def last_words(self) -> str:
        """The last line of the log of the agent; empty when there is none."""
        with contextlib.suppress(OSError), open(self.path / "log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read(4096).decode("utf-8", "replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            _, logged, text = last.partition(" ERROR ")
            return text.partition(": ")[2] if logged else last
        return ""

    def remove(self) -> None:
        """Remove the folder; only with the lock, and after ``close``."""
        remove_tree(self.path)

    @contextlib.contextmanager
    def _address(self) -> Iterator[str]:
        direct = str(self.path / "socket")
        if len(os.fsencode(direct)) <= MAX_SOCKET_PATH or not os.path.isdir("/proc/self/fd"):
            yield direct
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/socket"
        finally:
            os.close(descriptor)
