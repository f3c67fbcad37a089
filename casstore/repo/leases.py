"""Leases: who is storing something that no version refers to yet, and who reads a version for long.

Decided here and only here: how long a lease lasts, how it is renewed, and when it counts as lost. ``leases/<id>`` is
renewed by compare-and-swap at a third of its term. Ages are differences of two times of objects, so of the back end's
clock alone. A lease keeps the garbage collector away from what was stored since it began; nothing that is committed
depends on it. One that was lost, or was not renewed for longer than its term, stays so: whoever holds it must look at
everything before it commits. The holder's own clock counts the time that the machine was suspended.

A reader's lease names manifests. As long as it lasts a collection keeps what they refer to, also when those versions
were deleted, and nothing else for its sake. It is courtesy: a reader whose lease was not seen has reads that fail.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import Self

import msgspec

from casstore.backend.base import Absent, Backend, Condition, Matches, ObjectInfo
from casstore.errors import CasstoreError, FormatError, NotFoundError, PreconditionError, StorageError
from casstore.format import record
from casstore.repo import layout
from casstore.repo.limits import bounded_object
from casstore.repo.records import now as time_text
from casstore.repo.records import write_id

__all__ = [
    "DEFAULT_TERM",
    "MAX_READS",
    "MAX_TERM",
    "Lease",
    "LeaseInfo",
    "LeaseRecord",
    "bucket_time",
    "list_leases",
    "read_lease",
    "read_manifests",
]

DEFAULT_TERM = 300
"""Seconds that a lease lasts unless it is renewed."""
MAX_TERM = 24 * 3600
"""Seconds of a term, at most; a lease that can't be read counts as long as that."""
MAX_LEASE = 64 << 10
"""Bytes of a lease, at most."""
_RENEWALS = 3
"""How often a lease is renewed in a term."""
_PATIENCE = 5.0
"""Seconds that a release waits for a renewal that is under way."""
MAX_READS = 512
"""Manifests that one lease names, at most."""
_MAX_TEXT = 256
_MANIFEST = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)
_CLOCK = "clock"
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Clock = Callable[[], float]


class LeaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``leases/<id>``. ``kind`` says what is done (``upload``, ``gc``), ``term`` is in seconds.

    ``begun`` is the time of the object when it was first written, by the back end's clock, in seconds since the epoch;
    None until the first renewal, when the object's own time is that. ``started_at`` is for people. ``renewed`` counts.
    ``reads``: of a reader, the manifests in hex.
    """

    id: str
    kind: str
    user: str
    host: str
    pid: int
    dataset: str
    term: int
    started_at: str
    write_id: str
    begun: float | None = None
    renewed: int = 0
    reads: list[str] | msgspec.UnsetType = msgspec.UNSET


class LeaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as others see it. All times are of the back end's clock, in seconds.

    ``record`` is None for one that can't be read: it counts as one of the longest term.
    """

    id: str
    record: LeaseRecord | None
    begun: float
    age: float
    expired: bool

    @property
    def reads(self) -> list[bytes] | None:
        """The manifests that a reader reads; None when it is none."""
        if self.record is None or self.record.reads is msgspec.UNSET:
            return None
        return [bytes.fromhex(manifest) for manifest in self.record.reads]


class Lease:
    """A lease that this process holds. Thread-safe. Release it, or use it as a context manager."""

    def __init__(self, backend: Backend, first: LeaseRecord, clock: Clock) -> None:
        """Use ``acquire``."""
        self._backend = backend
        self._record = first
        self._key = layout.lease_key(first.id)
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._broken = False
        self._etag = ""
        self._asked = 0.0
        self._time = 0.0

    @classmethod
    def acquire(
        cls,
        backend: Backend,
        *,
        kind: str,
        user: str = "",
        dataset: str = "",
        term: int = DEFAULT_TERM,
        reads: Iterable[bytes] | None = None,
        heartbeat: bool = True,
        clock: Clock | None = None,
    ) -> Lease:
        """Write a new lease and, with ``heartbeat``, renew it in the background until it is released.

        ``reads``: it is a reader's, of these manifests (of the first ``MAX_READS``).
        ``clock`` returns the seconds that have passed since any moment, those of a suspension included.
        """
        first = LeaseRecord(
            id=layout.new_id(),
            kind=kind[:_MAX_TEXT],
            user=user[:_MAX_TEXT],
            host=socket.gethostname()[:_MAX_TEXT],
            pid=os.getpid(),
            dataset=dataset[:_MAX_TEXT],
            term=min(MAX_TERM, max(1, term)),
            started_at=time_text(),
            write_id=write_id(),
            reads=msgspec.UNSET if reads is None else [one.hex() for one in islice(reads, MAX_READS)],
        )
        lease = cls(backend, first, clock or (lambda: time.clock_gettime(_BOOT_CLOCK)))
        lease._begin()
        if heartbeat:
            lease._thread = threading.Thread(target=lease._beat, name="casstore-lease", daemon=True)
            lease._thread.start()
        return lease

    def _begin(self) -> None:
        self._asked = self._clock()
        self._etag = self._put(self._record, Absent())
        self._time = self._written() or time.time()
        self._record = msgspec.structs.replace(self._record, begun=self._time)

    @property
    def id(self) -> str:
        """The random id of the lease."""
        return self._record.id

    @property
    def begun(self) -> float:
        """When the lease began, by the back end's clock, in seconds since the epoch."""
        return self._record.begun or self._time

    @property
    def now(self) -> float:
        """The back end's clock at the last renewal, in seconds since the epoch."""
        return self._time

    @property
    def lost(self) -> bool:
        """Whether others may have taken this lease for one that had run out, at any time since it began."""
        return self._broken or self._clock() - self._asked > self._record.term

    def renew(self) -> None:
        """Renew the lease now. Raises what the back end raises, except for a lease that is lost: see ``lost``."""
        with self._lock:
            self._renew()

    def _renew(self) -> None:
        asked = self._clock()
        late = asked - self._asked > self._record.term
        changed = msgspec.structs.replace(self._record, renewed=self._record.renewed + 1, write_id=write_id())
        try:
            self._etag = self._put(changed, Matches(self._etag))
        except (NotFoundError, PreconditionError):
            # Removed as run out, most likely. A new one keeps others away from what is stored from now on.
            self._broken = True
            if self._stop.is_set():
                return
            changed = msgspec.structs.replace(changed, write_id=write_id())
            self._etag = self._put(changed, None)
        before, self._time = self._time, self._written() or self._time
        self._broken = self._broken or late or self._time - before > self._record.term
        self._record, self._asked = changed, asked

    def _written(self) -> float | None:
        """Return the time of the object; None, and the lease is lost, when it was removed the moment it was there."""
        try:
            return self._backend.stat(self._key).mtime
        except NotFoundError:
            self._broken = True
            return None

    def confirm(self) -> bool:
        """Renew the lease and return whether it was never lost; False also where it can't be renewed."""
        try:
            self.renew()
        except CasstoreError:
            return False
        return not self.lost

    def release(self) -> None:
        """Stop renewing and remove the lease. What can't be removed runs out."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
            self._thread = None
        with contextlib.suppress(CasstoreError):
            self._backend.delete([self._key])

    def _beat(self) -> None:
        pause = self._record.term / _RENEWALS
        while not self._stop.wait(pause):
            pause = self._record.term / _RENEWALS
            try:
                self.renew()
            except CasstoreError:
                # It may pass; whether it lasted too long is asked when something is committed.
                pause /= _RENEWALS

    def _put(self, value: LeaseRecord, condition: Condition) -> str:
        data = record.encode("lease", value)
        try:
            return self._backend.put(self._key, [data], condition=condition)
        except (PreconditionError, StorageError):
            # Its reply may have got lost: the write id makes it like no other.
            with contextlib.suppress(CasstoreError):
                found = self._backend.get(self._key, limit=len(data))
                if found.data == data:
                    return found.etag
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def bucket_time(backend: Backend) -> float:
    """Return the back end's clock, in seconds since the epoch: the time of an object that is written for it."""
    with Lease.acquire(backend, kind=_CLOCK, term=1, heartbeat=False) as lease:
        return lease.now


def list_leases(backend: Backend, *, now: float | None = None) -> list[LeaseInfo]:
    """Return all leases, the oldest first. ``now`` is the back end's clock, which is asked when it is not given."""
    if now is None:
        now = bucket_time(backend)
    found: list[LeaseInfo] = []
    for info in backend.list(layout.LEASES):
        with contextlib.suppress(NotFoundError):
            lease = _info(backend, info, now)
            if lease is not None:
                found.append(lease)
    return sorted(found, key=lambda lease: (lease.begun, lease.id))


def _info(backend: Backend, info: ObjectInfo, now: float) -> LeaseInfo | None:
    name = info.key.removeprefix(layout.LEASES)
    age = max(0.0, now - info.mtime)
    try:
        value = read_lease(backend, name)
    except FormatError:
        return LeaseInfo(id=name, record=None, begun=info.mtime - MAX_TERM, age=age, expired=age > MAX_TERM)
    if value.kind == _CLOCK and age <= value.term:
        return None  # somebody asks what time it is
    begun = info.mtime if value.begun is None else min(value.begun, info.mtime)
    return LeaseInfo(id=name, record=value, begun=begun, age=age, expired=age > value.term)


def read_manifests(backend: Backend, *, now: float | None = None) -> list[bytes]:
    """Return the manifests that somebody reads now, by leases that last."""
    leases = list_leases(backend, now=now)
    return sorted({manifest for lease in leases if not lease.expired for manifest in lease.reads or ()})


def read_lease(backend: Backend, lease_id: str) -> LeaseRecord:
    """Return a lease. ``NotFoundError``; ``FormatError``, which names the key."""
    key = layout.lease_key(lease_id)
    try:
        found = record.decode("lease", bounded_object(backend, key, MAX_LEASE).data, LeaseRecord)
    except FormatError as error:
        raise FormatError(f"{key}: {error.message}", hint=error.hint) from None
    texts = (found.kind, found.user, found.host, found.dataset, found.started_at, found.write_id)
    begun = found.begun
    reads = [] if found.reads is msgspec.UNSET else found.reads
    if (
        found.id != lease_id
        or not 1 <= found.term <= MAX_TERM
        or max(map(len, texts)) > _MAX_TEXT
        or (begun is not None and not begun >= 0)
        or len(reads) > MAX_READS
        or not all(map(_MANIFEST.match, reads))
    ):
        raise FormatError(f"{key} can't be right")
    return found
