"""What one piece of work relies on, from its first look at the store to its commit.

Decided here and only here: when work that stores chunks takes a lease, what is looked at again before the commit, and
that work whose ground was taken away is done again. While it runs others may delete, or move to other packs, what it
chose to rely on. Nothing keeps them from it: whoever commits looks once more, after the head was read (see
``versions``), and when something is going or gone, the work is done again without it. What is there still costs
nothing the second time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from casstore.errors import ConflictError
from casstore.repo.leases import DEFAULT_TERM, Lease
from casstore.repo.live import LivePacks
from casstore.repo.store import Store
from casstore.repo.trash import DyingSet, dying
from casstore.repo.writer import OnPack, Writer

__all__ = ["ATTEMPTS", "GoneError", "Hold"]

ATTEMPTS = 4
"""How often work is done whose ground is taken away."""

_T = TypeVar("_T")


class GoneError(ConflictError):
    """Packs, or the manifest, that a version was about to rely on are going or gone."""

    def __init__(self, packs: int) -> None:
        super().__init__(
            f"data that this version shares with deleted ones was collected as garbage meanwhile ({packs} packs)",
            hint="nothing was committed: try again",
        )


class Hold:
    """What one upload, or the like, relies on. Use as a context manager: leaving it gives the lease back.

    The lease is taken when the first writer is asked for.
    """

    def __init__(
        self, store: Store, *, kind: str = "upload", user: str = "", dataset: str = "", term: int = DEFAULT_TERM
    ) -> None:
        self._store = store
        self._kind = kind
        self._user = user
        self._dataset = dataset
        self._term = term
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._dying: DyingSet | None = None
        self._final: dict[str, DyingSet] = {}
        self._used: dict[bytes, int] = {}

    @property
    def lease_id(self) -> str:
        """The id of the lease; empty while there is none."""
        return self._lease.id if self._lease is not None else ""

    @property
    def dying(self) -> DyingSet:
        """What this attempt must not rely on: what was being deleted when it began."""
        if self._dying is None:
            self._dying = dying(self._store.backend, self._final)
        return self._dying

    def writer(self, *, lanes: int, on_pack: OnPack | None = None) -> Writer:
        """Return a writer of chunks that relies on nothing that is being deleted."""
        with self._lock:
            if self._lease is None:
                self._lease = Lease.acquire(
                    self._store.backend, kind=self._kind, user=self._user, dataset=self._dataset, term=self._term
                )
        return self._store.writer(lanes=lanes, on_pack=on_pack, dying=self.dying)

    def rely(self, packs: Mapping[bytes, int]) -> None:
        """Note packs, with their sizes, that the version is going to need."""
        self._used.update(packs)

    def all_there(self, packs: Mapping[bytes, int]) -> bool:
        """Whether all of these packs are there, with these sizes, and none of them is being deleted."""
        return self.dying.packs.isdisjoint(packs) and not self._lost(packs)

    def check(self, manifest: bytes) -> None:
        """Raise ``GoneError`` when something is going or gone that the version with this manifest needs.

        To be called after the head was read. Where the lease was not held without a break, each pack is looked at.
        """
        going = dying(self._store.backend, self._final)
        lost = going.packs.intersection(self._used)
        whole = manifest not in going.manifests
        if not lost and whole and not (self._lease is not None and self._lease.confirm()):
            lost = self._lost(self._used)
            whole = self._store.has_manifest(manifest)
        if lost or not whole:
            raise GoneError(len(lost))

    def _lost(self, packs: Mapping[bytes, int]) -> frozenset[bytes]:
        return LivePacks(self._store.backend).missing(packs)

    def until_whole(self, work: Callable[[], _T], again: Callable[[], None] = lambda: None) -> _T:
        """Return what ``work`` returns; it is done again, after ``again``, when it ends in a ``GoneError``.

        The last of them comes through, after ``ATTEMPTS``.
        """
        for attempt in range(ATTEMPTS):
            self._dying = None
            self._used = {}
            if attempt:
                # What was moved is in other packs now.
                self._store.index.load(again=True)
                again()
            try:
                return work()
            except GoneError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give the lease back."""
        if self._lease is not None:
            self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
