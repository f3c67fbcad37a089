"""What is written down of the mounts of a user, for the commands that come after.

Decided here and only here: where a mount is described, when it counts as alive, and what becomes of one whose
processes were all killed. A mount is known by its folder's path:

    <runtime>/mounts/<hash>.json         the record
    <runtime>/mounts/<hash>-<pid>.page   the page that its servers share: see ``state``
    <runtime>/mounts/<hash>.lower        where the version itself is mounted, below a writable folder
    <runtime>/mounts/<hash>.lock         held by whoever is mounting there
    <state>/mounts/<hash>.log            what went wrong
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator

import msgspec

from casstore.errors import CasstoreError, ConflictError, StorageError
from casstore.structs import from_json
from casstore_fuse import mounted
from casstore_fuse.mounting import unmount
from casstore_fuse.state import State

__all__ = ["Record", "Registry", "namespace", "ours", "started_at", "take_away"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One mount. A collection has no version and no manifest: 0 and "".

    ``pid`` is its supervisor's, ``clock`` when that one began (in ticks since boot), ``started`` the same for people;
    ``ready`` once it can be used. ``layer`` is the folder of its changes, for a writable one, and ``lower`` where its
    version is mounted. ``namespace`` is that of the processes, which have other numbers elsewhere; 0 when unknown.
    """

    path: str
    bucket: str
    dataset: str
    version: int
    manifest: str
    pid: int
    clock: int
    started: str
    log: str
    namespace: int = 0
    ready: bool = False
    layer: str | None = None
    lower: str | None = None

    def __str__(self) -> str:
        return f"{self.dataset}:{self.version}" if self.version else self.dataset

    @property
    def here(self) -> bool:
        """Whether its processes can be seen from here."""
        return self.namespace in {0, namespace()}

    @property
    def alive(self) -> bool:
        """Whether its supervisor still is there, as far as can be seen."""
        return not self.here or started_at(self.pid) == self.clock


class Registry:
    """The mounts of one user. Safe among processes."""

    def __init__(self, runtime: str, state: str) -> None:
        self.runtime, self.state_dir = runtime, state
        self._runtime = os.path.join(runtime, "mounts")
        self._state = os.path.join(state, "mounts")

    def key(self, path: str) -> str:
        """Return the name under which a folder's mount is known."""
        return hashlib.sha256(os.fsencode(path)).hexdigest()[:24]

    def log_file(self, path: str) -> str:
        """Return where a mount's log is."""
        return os.path.join(self._state, f"{self.key(path)}.log")

    def layer(self, path: str) -> str:
        """Return the folder for the changes that are made in a writable mount at this folder."""
        return os.path.join(self._state, f"{self.key(path)}.layer")

    def lower(self, path: str) -> str:
        """Return where the version below a writable mount is mounted."""
        return os.path.join(self._runtime, f"{self.key(path)}.lower")

    def page(self, path: str, pid: int) -> str:
        """Return where the page of a mount is."""
        return os.path.join(self._runtime, f"{self.key(path)}-{pid}.page")

    def make(self) -> None:
        """Make the folders, for this user alone."""
        for folder in (self._runtime, self._state):
            try:
                os.makedirs(folder, mode=0o700, exist_ok=True)
            except OSError as error:
                raise StorageError(f"can't make the folder {folder}: {error.strerror}") from None

    def put(self, record: Record) -> None:
        """Write a record, in place of an older one of the same folder."""
        temporary = f"{self._file(record.path)}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(record))
        os.replace(temporary, self._file(record.path))

    def get(self, path: str) -> Record | None:
        """Return the record of the mount at a folder."""
        return self._read(self._file(path))

    def all(self) -> list[Record]:
        """Return all records, by path."""
        try:
            names = [name for name in os.listdir(self._runtime) if name.endswith(".json")]
        except OSError:
            return []
        found = (self._read(os.path.join(self._runtime, name)) for name in names)
        return sorted((record for record in found if record is not None), key=lambda record: record.path)

    def remove(self, record: Record) -> None:
        """Forget a mount; a later one at the same folder stays."""
        current = self.get(record.path)
        if current is not None and (current.pid, current.clock) == (record.pid, record.clock):
            with contextlib.suppress(OSError):
                os.unlink(self._file(record.path))
        with contextlib.suppress(OSError):
            os.unlink(self.page(record.path, record.pid))

    def state(self, record: Record) -> State | None:
        """Return the page of a mount, None when it is gone."""
        try:
            return State.open(self.page(record.path, record.pid))
        except (OSError, CasstoreError):
            return None

    @contextlib.contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """Hold a folder while something is mounted at it, or its changes are looked at; ``ConflictError`` if it is
        held.
        """
        self.make()
        name = os.path.join(self._runtime, f"{self.key(path)}.lock")
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConflictError(f"another command is busy with {path}", hint="try again when it is done") from None
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked off may have it open, too
            os.close(descriptor)

    def clear(self) -> list[Record]:
        """Take away the mounts whose processes are gone, and return their records.

        What can't be taken away stays written down.
        """
        return [record for record in self.all() if not self._is_whole(record) and self._clear(record)]

    @staticmethod
    def _is_whole(record: Record) -> bool:
        # Somebody may have unmounted the upper one of two: nobody can reach the version below it.
        if not record.ready or record.lower is None or mounted.at(record.lower) is None:
            return record.alive
        return record.alive and ours(record) is not None

    def _clear(self, record: Record) -> bool:
        alive = record.alive
        try:
            take_away(record, lazy=True)
        except CasstoreError:
            return False
        self.remove(record)
        return not alive

    def _file(self, path: str) -> str:
        return os.path.join(self._runtime, f"{self.key(path)}.json")

    @staticmethod
    def _read(file: str) -> Record | None:
        try:
            with open(file, "rb") as opened:
                return from_json(opened.read(1 << 20), Record)
        except (OSError, msgspec.MsgspecError):
            return None


def ours(record: Record) -> mounted.MountPoint | None:
    """Return what is mounted at the folder of a record, if it is what the record speaks of."""
    point = mounted.at(record.path)
    if point is None or record.layer is None:
        return point if point is not None and point.kind == mounted.KIND else None
    if point.kind == "overlay" and f"upperdir={record.layer}/upper" in point.options.split(","):
        return point
    return point if point.kind.startswith("fuse.fuse-overlayfs") or point.source == "fuse-overlayfs" else None


def take_away(record: Record, *, lazy: bool) -> None:
    """Unmount what a record speaks of, as far as it is there. ``ConflictError`` when it is in use."""
    if ours(record) is not None:
        unmount(record.path, lazy=lazy)
    if record.lower is not None:
        lower = mounted.at(record.lower)
        if lower is not None and lower.kind == mounted.KIND:
            unmount(record.lower, lazy=True)
        with contextlib.suppress(OSError):
            os.rmdir(record.lower)


def namespace() -> int:
    """Return what tells apart the namespaces of processes; 0 when nothing does."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def started_at(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 when there is none (a dead one that waits for its
    parent is none).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        return 0 if fields[0] in {b"Z", b"X"} else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0
