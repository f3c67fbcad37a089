"""The lease of a mount: what it shows is not collected as garbage while it runs.

Decided here and only here: when a mount takes its lease (once it can be used, so that nobody waits for it), and what
becomes of one that can't have any: where nothing may be written, a version that is deleted can be read until its space
is given back; from then on reads fail, and the log says why.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from casstore.backend.base import Backend
from casstore.errors import AccessError, CasstoreError, UsageError
from casstore.repo.leases import MAX_READS, Lease
from casstore_fuse.state import State

__all__ = ["KIND", "Guard"]

KIND = "mount"
"""What the lease says that it is."""
_DELAY = 0.5
"""Seconds in which those who mounted look into the folder, and want the processor for themselves."""
_PAUSE = 30.0
"""Seconds after which it is tried again to take a lease."""
_PATIENCE = 2.0
"""Seconds that an unmount waits until the lease is given back; one that is not runs out."""

_log = logging.getLogger("casstore.fuse")


class Guard:
    """Holds a lease on these manifests, from ``start`` to ``stop``."""

    def __init__(self, backend: Backend, title: str, manifests: Sequence[bytes], state: State) -> None:
        self._backend = backend
        self._title = title
        self._manifests = manifests
        self._state = state
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="casstore-guard", daemon=True)

    def start(self) -> None:
        """Take the lease, in a thread that goes on trying where the store can't be reached."""
        self._thread.start()

    def stop(self) -> None:
        """Give it back. Returns before long, whatever the store does."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        lease = self._acquire()
        if lease is None:
            return
        if not self._state.get("guarded"):  # a server before this one may have counted it
            self._state.count("guarded")
        self._stopped.wait()
        lease.release()

    def _acquire(self) -> Lease | None:
        if len(self._manifests) > MAX_READS:
            _log.warning("garbage collection is kept from %d of %d members", MAX_READS, len(self._manifests))
        told = ""
        self._stopped.wait(_DELAY)
        while not self._stopped.is_set():
            try:
                return Lease.acquire(self._backend, kind=KIND, dataset=self._title, reads=self._manifests)
            except (AccessError, UsageError) as error:
                _log.info("nothing keeps garbage collection from what is mounted: %s", error.message)
                return None
            except CasstoreError as error:
                if error.message != told:
                    told = error.message
                    _log.warning("no lease on what is mounted yet: %s", told)
            self._stopped.wait(_PAUSE)
        return None
