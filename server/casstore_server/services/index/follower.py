"""The index as the server's services use it: kept close behind the buckets, by whoever of several servers comes first.

Decided here and only here: how old an answer from the index may be, when a bucket is looked at and by whom, and what is
said when it can't be.

- What is changed through this server is in the index before the change is answered: ``changed``.
- What others do in a bucket is found by looking. Where that takes no more than ``CHEAP`` (a folder of this
  machine with some hundred datasets) it is done for each list. Elsewhere looks take no more than one part in ``SHARE``
  of the time, and are ``PAUSE`` apart at least, or ``IDLE`` when nobody asks.
- One server looks at a time, which has a lease for that; the others see what it writes.
- A bucket that can't be reached is answered for from the index, with a warning that says how old that is.

Nothing here decides about data: whoever reads or changes a dataset asks its bucket.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from casstore.dataset import Bucket
from casstore.errors import CancelledError, CasstoreError, IntegrityError, NotFoundError
from casstore.repo import layout
from casstore_orchestrator.records import WorkflowRecord
from casstore_server.config import BucketConfig, Watched
from casstore_server.db import index
from casstore_server.db.store import Database
from casstore_server.services.index.looking import Looked, look, refresh
from casstore_server.services.index.outputs import written
from casstore_server.stores import Stores

__all__ = ["CHEAP", "IDLE", "PAUSE", "SHARE", "Fresh", "Index"]

CHEAP = 0.05
"""Seconds of CPU that a look may take to be done for each list."""
SHARE = 20
PAUSE = 10.0
IDLE = 600.0
"""Seconds."""
_PATIENCE_FIRST = 45.0
_PATIENCE = 2.0
"""Seconds that a request waits for a look: the first one at a bucket, and any other."""
_LEASE_S = 60.0
_POLL_S = 1.0
_WRITTEN_S = 5.0
_STALE = 3
"""So many times its usual age is told of."""
_LOOKERS = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fresh:
    """A bucket as far as the index knows it. ``url`` is that of its store. ``warning`` is empty or a sentence."""

    name: str
    id: int
    url: str
    warning: str = ""


@dataclass(slots=True)
class _Followed:
    """A bucket by its address. Moments of ``time.monotonic``, but ``looked_at``, which is of ``time.time``."""

    address: str
    turn: threading.Lock = field(default_factory=threading.Lock)
    id: int | None = None
    url: str = ""
    store: str = ""
    local: bool = False
    looked_at: float | None = None
    cost: float | None = None
    begun: float = 0.0
    asked: float = 0.0
    written: float = 0.0
    progress: Looked | None = None
    error: CasstoreError | None = None
    job: Future[None] | None = None

    @property
    def cheap(self) -> bool:
        """Whether it is looked at for each list."""
        return self.local and self.cost is not None and self.cost <= CHEAP

    @property
    def pause(self) -> float:
        """Seconds between looks while somebody asks."""
        return max(PAUSE, SHARE * (self.cost or 0.0))


class Index:
    """The index of all declared buckets; safe to use from any thread. ``start`` follows them, ``close`` ends that."""

    def __init__(self, database: Database, stores: Stores, config: Watched) -> None:
        self._database = database
        self._stores = stores
        self._config = config
        self._lock = threading.RLock()
        self._followed: dict[str, _Followed] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner = uuid.uuid4().hex[:16]

    def start(self) -> None:
        """Follow the buckets from now on."""
        self._thread = threading.Thread(target=self._follow, name="index", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all looks."""
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    # ---- what is asked

    def changed(self, bucket: str, *names: str) -> None:
        """Index what was just changed in a bucket, before that is answered: datasets by their names or ids.

        Never raises: what could not be indexed now is found by the next look.
        """
        try:
            opened, followed = self._opened(bucket)
            try:
                bucket_id = self._id_of(followed, opened)
                refresh(self._database, opened, bucket_id, self._names(opened, bucket_id, names))
            except IntegrityError:
                pass  # written down as damage
            except CasstoreError as error:
                self._put_off(followed, names, error)
        except Exception:  # noqa: BLE001 - the change itself is done
            _log.exception("bucket %s: %s could not be indexed", bucket, ", ".join(names))

    def workflow_changed(self, old: WorkflowRecord, new: WorkflowRecord) -> None:
        """Index what tasks that have ended have written, soon."""
        for ref in written(old, new):
            self._submit(self.changed, ref.bucket or self._config.last_good().default_bucket, ref.name)

    def fresh(self, bucket: str) -> Fresh:
        """A bucket for a list, looked at if that is due. Raises what opening it raises while nothing is known of it."""
        declared = self._declared(bucket)
        followed = self._follower(declared)
        followed.asked = arrived = time.monotonic()
        self._recall(followed)
        if not followed.store:
            with contextlib.suppress(CasstoreError):  # the look says so
                self._id_of(followed, self._stores.open(bucket, ""))
        if followed.cheap:
            self._look_now(bucket, followed, arrived)
        else:
            self._look_if_due(bucket, followed)
        if followed.id is None:
            self._id_of(followed, self._stores.open(bucket, ""))
        return Fresh(bucket, followed.id or 0, followed.url, self._warning(bucket, followed))

    def current(self, bucket: str, name: str, *, whole: bool = False) -> Fresh:
        """A bucket of which one dataset is known as the bucket has it at this moment, or with a warning as it was.

        ``whole``: its deleted versions too. ``IntegrityError`` when it is damaged.
        """
        followed = self._follower(self._declared(bucket))
        followed.asked = time.monotonic()
        try:
            opened = self._stores.open(bucket, "")
        except CasstoreError as error:
            return self._without(bucket, followed, error)
        try:
            refresh(self._database, opened, self._id_of(followed, opened), [name], whole=whole)
        except IntegrityError:
            raise
        except CasstoreError as error:
            return self._without(bucket, followed, error)
        return Fresh(bucket, followed.id or 0, followed.url)

    def _without(self, bucket: str, followed: _Followed, error: CasstoreError) -> Fresh:
        """A bucket that can't be reached, if anything is known of it; otherwise ``error`` is raised."""
        self._recall(followed)
        if followed.id is None:
            raise error
        return Fresh(bucket, followed.id, followed.url, _away(bucket, error, followed.looked_at))

    # ---- looks

    def _look_if_due(self, bucket: str, followed: _Followed) -> None:
        age = None if followed.looked_at is None else time.time() - followed.looked_at
        if age is not None and age <= followed.pause + _POLL_S:
            return
        with self._lock:
            job = followed.job
            if job is None or job.done():
                job = followed.job = self._submit(self._look_now, bucket, followed, time.monotonic())
        if job is not None:
            wait([job], _PATIENCE if age is not None else _PATIENCE_FIRST)

    def _submit(self, work: Callable[..., None], *values: object) -> Future[None] | None:
        """Have something done by a thread of ours; None at the end."""
        with self._lock:
            if self._ended.is_set():
                return None
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="look")
            return self._pool.submit(work, *values)

    def _look_now(self, bucket: str, followed: _Followed, arrived: float) -> None:
        """Look at a bucket, unless somebody has begun to since ``arrived``. What goes wrong is in ``followed``."""
        with followed.turn:
            if followed.begun > arrived:
                return
            followed.begun = time.monotonic()
            try:
                self._look(bucket, followed)
                followed.error = None
            except CancelledError:
                pass
            except CasstoreError as error:
                if followed.error is None or followed.error.message != error.message:
                    _log.warning("bucket %s can't be indexed: %s", bucket, error.message)
                followed.error = error
            except Exception:  # noqa: BLE001 - there is the log for it
                _log.exception("bucket %s can't be indexed", bucket)
                followed.error = CasstoreError("the server failed to index it; its log says why")
            finally:
                followed.progress = None

    def _look(self, bucket: str, followed: _Followed) -> None:
        opened = self._stores.open(bucket, "")
        bucket_id = self._id_of(followed, opened)
        names = [f"index/{bucket_id}"]
        owner = f"{self._owner}-{bucket_id}"

        leased = not followed.cheap

        def keep(state: Looked | None = None) -> bool:
            followed.progress = state
            now = time.time()
            return not leased or bool(self._database.keep_leases(names, owner, now, now + _LEASE_S))

        def tell(state: Looked) -> None:
            if not keep(state):
                raise CancelledError("another server looks at the bucket by now")

        if not keep():
            self._recall(followed)
            return  # another server does
        try:
            began, cpu = time.time(), time.thread_time()
            clock = time.perf_counter()
            done = look(self._database, opened, bucket_id, tell=tell, stop=self._ended.is_set)
            cost = (time.thread_time() - cpu) if followed.local else time.perf_counter() - clock
            self._note(followed, began, cost, changed=done.versions > 0)
        finally:
            if leased:
                self._database.release_leases(owner)

    def _note(self, followed: _Followed, began: float, cost: float, *, changed: bool) -> None:
        first = followed.cost is None or followed.looked_at is None
        # The first look reads everything, and what it takes says nothing of the next.
        followed.looked_at, followed.cost = began, 0.0 if first and changed else cost
        if changed or first or not followed.cheap or began - followed.written > _WRITTEN_S:
            followed.written = began
            with self._database.writing() as connection:
                index.looked(connection, followed.id or 0, began, followed.cost)

    def _follow(self) -> None:
        while not self._ended.is_set():
            for name, declared in self._config.last_good().buckets.items():
                followed = self._follower(declared)
                try:
                    self._recall(followed)
                    if (followed.id is not None or followed.asked) and self._is_due(followed):
                        self._look_now(name, followed, time.monotonic())
                except Exception:  # noqa: BLE001 - the others are followed on
                    _log.exception("bucket %s can't be followed", name)
            self._wake.wait(_POLL_S)

    def _is_due(self, followed: _Followed) -> bool:
        """Whether it is time for a look that nobody waits for."""
        now = time.monotonic()
        idle = now - followed.asked > IDLE if followed.asked else True
        pause = IDLE if idle or followed.cheap else followed.pause
        if followed.error is not None or followed.looked_at is None:
            return now - followed.begun > pause
        return time.time() - followed.looked_at > pause

    # ---- what is known

    def _declared(self, bucket: str) -> BucketConfig:
        declared = self._config.last_good().buckets.get(bucket)
        if declared is None:
            self._stores.open(bucket, "")  # which says so
            raise NotFoundError(f"there is no bucket '{bucket}'")
        return declared

    def _follower(self, declared: BucketConfig) -> _Followed:
        with self._lock:
            found = self._followed.get(declared.url)
            if found is None:
                found = self._followed[declared.url] = _Followed(declared.url)
            return found

    def _opened(self, bucket: str) -> tuple[Bucket, _Followed]:
        declared = self._declared(bucket)
        return self._stores.open(bucket, ""), self._follower(declared)

    def _id_of(self, followed: _Followed, opened: Bucket) -> int:
        """The row of a bucket that could be opened, made when there is none for this store."""
        store = opened.store
        if followed.id is None or followed.store != store.id:
            with self._database.writing() as connection:
                followed.id = index.clear(connection, followed.address, store.url, store.id)
            followed.url, followed.store = store.url, store.id
            followed.local = store.backend.capabilities.local
            followed.looked_at = None
            self._recall(followed)
        return followed.id

    def _recall(self, followed: _Followed) -> None:
        """Take over what another server, or an earlier one, has written down."""
        with self._database.reading() as connection:
            row = index.bucket_at(connection, followed.address)
        if row is None or (followed.store and row.store != followed.store):
            followed.id = followed.looked_at = None  # lost, and made anew
            return
        followed.id, followed.url = row.id, row.url
        if row.looked_at is not None and (followed.looked_at is None or row.looked_at > followed.looked_at):
            followed.looked_at = row.looked_at
            followed.cost = row.cost if followed.cost is None else followed.cost

    def _names(self, opened: Bucket, bucket_id: int, names: Sequence[str]) -> list[str]:
        """These names, and the names of datasets with these ids: as known until now, and as they are now."""
        ids = [text for text in names if layout.is_dataset_id(text)]
        if not ids:
            return list(names)
        with self._database.reading() as connection:
            found = [*names, *index.names_of(connection, bucket_id, ids)]
        for text in ids:
            with contextlib.suppress(NotFoundError, IntegrityError):
                found.append(opened.refs.read_head(text)[0].name)
        return found

    def _put_off(self, followed: _Followed, names: Sequence[str], error: CasstoreError) -> None:
        _log.warning("%s could not be indexed yet: %s", ", ".join(names), error.message)
        with self._database.writing() as connection:
            for name in names:
                index.forget(connection, followed.id or 0, name)

    def _warning(self, bucket: str, followed: _Followed) -> str:
        if followed.looked_at is None and followed.error is None:
            state = followed.progress
            so_far = "" if state is None else f": {state.done} of {state.names} datasets so far"
            return f"Bucket {bucket} is being indexed{so_far}; not all of it is shown yet"
        if followed.error is not None:
            return _away(bucket, followed.error, followed.looked_at)
        age = time.time() - (followed.looked_at or 0)
        if not followed.cheap and age > _STALE * followed.pause:
            return f"What is shown of bucket {bucket} is from {_ago(age)} ago"
        with self._database.reading() as connection:
            damaged = index.problems(connection, [followed.id or 0]).get(followed.id or 0, 0)
        if damaged:
            some = "1 dataset" if damaged == 1 else f"{damaged} datasets"
            return f"In bucket {bucket} {some} can't be read whole: run osmo dataset verify"
        return ""


def _away(bucket: str, error: CasstoreError, looked_at: float | None) -> str:
    when = "not complete" if looked_at is None else f"from {_ago(time.time() - looked_at)} ago"
    return f"Bucket {bucket} can't be reached, and what is shown of it is {when}: {error.message}"


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}s"
    return f"{max(0, int(seconds))} seconds"
