"""Where the records of workflows live, as the scheduler asks for it.

Decided here and only here: what is one transaction, what makes it void (a lost lease), and who is told of it. Nothing
here performs I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from casstore.errors import ConflictError

from .records import WorkflowRecord

__all__ = [
    "Fence",
    "LeaseLostError",
    "Notes",
    "StateStore",
    "TaskNote",
    "no_notes",
    "pool_lease",
    "pool_of",
]


class LeaseLostError(ConflictError):
    """Somebody else holds the lease now: whoever gets this must do nothing more in its name."""


class Fence(NamedTuple):
    """A lease as its holder knows it. ``token`` grows by each change of hands."""

    name: str
    token: int


def pool_lease(pool: str) -> str:
    """The name of the lease whose holder does everything for the workflows of a pool."""
    return f"pool/{pool}"


def pool_of(fence: Fence) -> str:
    """The pool of such a lease."""
    return fence.name.removeprefix("pool/")


class TaskNote(NamedTuple):
    """Something that happened to a task, for people to read; ``at`` in seconds since the epoch."""

    task: str
    retry_id: int
    reason: str
    message: str
    at: float


Notes = Callable[[WorkflowRecord, WorkflowRecord], "Sequence[TaskNote]"]
"""What people are told of a change, by the record before and after it."""


def no_notes(_before: WorkflowRecord, _after: WorkflowRecord) -> Sequence[TaskNote]:
    """Nothing."""
    return ()


class StateStore(Protocol):
    """Where the records of workflows live. Every method is one transaction; safe to call from any thread of any
    process.

    A ``fence`` makes a transaction one that happens only while the lease is still its holder's: otherwise
    ``LeaseLostError``, with nothing changed. ``tell`` notes in the same transaction that the holder of the pool's
    lease has to look at the workflow (``news``). Functions that are passed have no effects: they may be called again.
    """

    def create(
        self,
        record: WorkflowRecord,
        begin: Callable[[WorkflowRecord], WorkflowRecord] = lambda record: record,
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """Store a new workflow and allot its number: ``begin`` of the record with ``number`` and ``id`` is stored."""

    def load(self, workflow_id: str) -> WorkflowRecord:
        """The record of this id or uuid; ``NotFoundError``."""

    def change(
        self,
        workflow_id: str,
        fn: Callable[[WorkflowRecord], WorkflowRecord],
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """Replace a record by ``fn`` of it, and store ``notes`` of both; gives the new one."""

    def live(self, pool: str) -> list[str]:
        """The ids of the workflows of a pool that are ``live``, the oldest first."""

    def live_pools(self) -> list[str]:
        """The pools that have live workflows."""

    def keep_leases(
        self, names: Sequence[str], owner: str, now: float, until: float, *, force: bool = False
    ) -> dict[str, Fence]:
        """Take or prolong leases up to ``until``: those that are free, ``owner``'s already, or expired at ``now``.

        Gives those that are ``owner``'s now. ``force``: whoever holds them, because it is known to be gone.
        """

    def release_leases(self, owner: str) -> None:
        """Give all leases of an owner back, for anybody to take at once."""

    def news(self, fences: Sequence[Fence]) -> list[str]:
        """The ids of the workflows that were changed with ``tell`` in the pools of these leases; each is given once.

        ``LeaseLostError`` when one of the leases is lost; the news stay for its new holder then.
        """
