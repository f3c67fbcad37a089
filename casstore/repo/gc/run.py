"""A collection from its lease to its report.

Decided here and only here: what one run does, and that there is one at a time. The lease is courtesy and saves work:
two collections at once lose nothing, see ``gc.sweep``. One whose process has ended on this machine is passed over, so
that a run that was killed can be repeated at once.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from casstore.errors import ConflictError, IntegrityError
from casstore.repo import layout, trash
from casstore.repo.gc.find import Dropped
from casstore.repo.gc.mark import KIND, gather, mark
from casstore.repo.gc.plan import Facts, Plan, Rules, make_plan
from casstore.repo.gc.sweep import Swept, sweep
from casstore.repo.gc.watch import Watcher
from casstore.repo.leases import Clock, Lease, LeaseInfo, list_leases
from casstore.repo.refs import Refs
from casstore.repo.store import Store
from casstore.repo.trash import TrashState

__all__ = ["Collector", "Outcome"]

_LOOKS = 3
"""How often a store is looked at while others collect."""


@dataclass(slots=True)
class Outcome:
    """What a run did: how much it marked, and what it deleted."""

    marked_packs: int = 0
    marked_size: int = 0
    records: list[str] = field(default_factory=list)
    swept: Swept = field(default_factory=Swept)
    leftovers: int = 0


class Collector:
    """Collects the garbage of one store. Use as a context manager: it holds a lease unless it is only to look.

    ``clock`` returns the back end's time in seconds since the epoch; that of the lease if it is not given.
    """

    def __init__(
        self,
        store: Store,
        *,
        rules: Rules | None = None,
        user: str = "",
        watcher: Watcher | None = None,
        look: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._refs = Refs(store.backend)
        self._rules = rules or Rules()
        self._user = user
        self._watcher = watcher or Watcher()
        self._look = look
        self._clock = clock
        self._lease: Lease | None = None
        self._facts: Facts | None = None

    def __enter__(self) -> Self:
        if not self._look:
            self._lease = Lease.acquire(self._store.backend, kind=KIND, user=self._user)
            try:
                self._be_alone(self._lease)
            except BaseException:
                self._lease.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease is not None:
            self._lease.release()

    def _be_alone(self, own: Lease) -> None:
        others = list_leases(self._store.backend, now=own.now)
        running = [
            lease for lease in others if lease.record is not None and lease.record.kind == KIND and lease.id != own.id
        ]
        ended = [lease for lease in running if lease.expired or _has_ended(lease)]
        self._store.backend.delete([layout.lease_key(lease.id) for lease in ended])
        for lease in running:
            if lease not in ended and (lease.begun, lease.id) < (own.begun, own.id) and lease.record is not None:
                record = lease.record
                raise ConflictError(
                    f"another collection runs: {record.user or 'somebody'} on {record.host}, since {record.started_at}",
                    hint="wait until it is done; `osmo store leases` shows whether it still runs",
                )

    @property
    def now(self) -> float:
        """The back end's clock, in seconds since the epoch."""
        if self._clock is not None:
            return self._clock()
        if self._lease is None:
            return time.time()
        self._lease.renew()
        return self._lease.now

    def plan(self, dropped: Dropped = ()) -> Plan:
        """Look at everything and return what is to be done, with the versions of ``dropped`` taken for deleted.

        ``IntegrityError`` when a version that counts can't be read.
        """
        self._facts = self._gather(dropped)
        return make_plan(self._facts, self._rules)

    def _gather(self, dropped: Dropped) -> Facts:
        for _ in range(_LOOKS):
            before = self._collections()
            try:
                return gather(self._store, self._refs, self._watcher, now=self.now, dropped=dropped)
            except IntegrityError:
                # What was deleted and collected by somebody else while this one looked is no damage.
                if self._collections() == before:
                    raise
        raise ConflictError("another collection deletes while this one looks", hint="run it again when it is done")

    def _collections(self) -> dict[str, TrashState]:
        return {listed.record.id: listed.record.state for listed in trash.list_trash(self._store.backend)}

    def run(self, plan: Plan) -> Outcome:
        """Do what a plan says. What is interrupted is taken up by the next run."""
        outcome = Outcome()
        if plan.marks:
            outcome.records = mark(self._store, self._refs, plan, self._watcher)
            outcome.marked_packs = len(plan.dead) + len(plan.sparse)
            outcome.marked_size = plan.frees
        due = [marked.id for marked in plan.due]
        if self._rules.grace <= 0:
            due += outcome.records
        if due:
            outcome.swept = sweep(
                self._store,
                self._refs,
                due,
                self._rules,
                self._watcher,
                now=self.now,
                needed=self._needed_again(plan),
            )
        self._store.index.tidy(self._facts.absent if self._facts else ())
        self._store.backend.delete(plan.leftovers)
        outcome.leftovers = len(plan.leftovers)
        return outcome

    def _needed_again(self, plan: Plan) -> set[bytes]:
        """What is on a record, and was found to be needed when this plan was made."""
        facts = self._facts
        if facts is None:
            return set()
        packs = {
            pack.pack_id for pack in facts.packs if pack.needed and pack.needed >= plan.rules.repack_below * pack.size
        }
        return packs | {manifest.manifest_id for manifest in facts.manifests if manifest.needed}


def _has_ended(lease: LeaseInfo) -> bool:
    """Whether the process that held a lease has ended, or is this one, as far as this machine can tell."""
    record = lease.record
    if record is None or record.host != socket.gethostname():
        return False
    if record.pid == os.getpid():
        return True
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
