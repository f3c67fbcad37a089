"""Reading buckets into the index all over again.

Decided here and only here: that a rebuild which was interrupted is gone on with, unless it is to begin anew; that lists
go on from what there is meanwhile; and that one bucket which can't be read does not keep the others from it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import msgspec

from casstore.dataset import Bucket
from casstore.errors import CancelledError, CasstoreError, NotFoundError
from casstore_server.config import Watched
from casstore_server.db import index
from casstore_server.db.store import Database
from casstore_server.services.index.looking import Looked, look
from casstore_server.stores import Stores, local_folder

__all__ = ["Rebuilt", "rebuild"]

_LEASE_S = 60.0
_POLL_S = 0.5


class Rebuilt(msgspec.Struct, kw_only=True):
    """How far a bucket has come. ``before``: so many of its ``datasets`` were done by a rebuild that was interrupted.
    ``versions`` counts those that were read. ``problems``: what can't be read whole, by the name of its dataset.
    ``error``: why the bucket itself can't be read.
    """

    bucket: str
    datasets: int = 0
    done: int = 0
    before: int = 0
    versions: int = 0
    seconds: float = 0.0
    waiting: bool = False
    problems: dict[str, str] = {}
    error: str | None = None


def rebuild(
    database: Database,
    stores: Stores,
    config: Watched,
    names: Sequence[str],
    *,
    anew: bool,
    tell: Callable[[Rebuilt], None],
    stop: Event,
) -> list[Rebuilt]:
    """Rebuild the index of these buckets, of all that are declared when none is named.

    ``tell`` is called as it goes on. ``NotFoundError`` for a bucket that is not declared; ``CancelledError`` after
    ``stop``: what was done until then is kept.
    """
    declared = config.last_good().buckets
    for name in names:
        if name not in declared:
            stores.open(name, "")
            raise NotFoundError(f"there is no bucket '{name}'")
    found = []
    for name in dict.fromkeys(names) or declared:
        folder = local_folder(declared[name].url)
        if not names and not declared[name].declared and folder is not None and not Path(folder).exists():
            continue  # the bucket that everybody has, and nobody has used
        state = Rebuilt(bucket=name)
        found.append(state)
        try:
            _rebuild(database, stores.open(name, ""), declared[name].url, state, anew=anew, tell=tell, stop=stop)
        except CancelledError:
            raise
        except CasstoreError as error:
            state.error = error.message
        tell(state)
    return found


def _rebuild(
    database: Database,
    bucket: Bucket,
    address: str,
    state: Rebuilt,
    *,
    anew: bool,
    tell: Callable[[Rebuilt], None],
    stop: Event,
) -> None:
    with database.writing() as connection:
        bucket_id = index.clear(connection, address, bucket.store.url, bucket.store.id)
    lease, owner = f"index/{bucket_id}", f"rebuild-{uuid.uuid4().hex}"
    _take(database, lease, owner, state, tell, stop)
    try:
        began, clock = time.time(), time.perf_counter()
        with database.writing() as connection:
            round_ = int(index.begin_round(connection, bucket_id, began, anew=anew).round)

        def told(looked: Looked) -> None:
            now = time.time()
            if not database.keep_leases([lease], owner, now, now + _LEASE_S):
                raise CancelledError("another process indexes the bucket by now")
            state.datasets, state.done, state.versions = looked.names, looked.done, looked.versions
            state.problems, state.seconds = looked.problems, time.perf_counter() - clock
            state.before = looked.before
            tell(state)

        told(look(database, bucket, bucket_id, round_=round_, tell=told, stop=stop.is_set))
        with database.writing() as connection:
            index.end_round(connection, bucket_id)
            index.looked(connection, bucket_id, began, 0.0)
    finally:
        database.release_leases(owner)


def _take(
    database: Database, lease: str, owner: str, state: Rebuilt, tell: Callable[[Rebuilt], None], stop: Event
) -> None:
    """Wait until nobody else indexes the bucket."""
    while True:
        now = time.time()
        if database.keep_leases([lease], owner, now, now + _LEASE_S):
            state.waiting = False
            return
        if not state.waiting:
            state.waiting = True
            tell(state)
        if stop.wait(_POLL_S):
            raise CancelledError("interrupted")
