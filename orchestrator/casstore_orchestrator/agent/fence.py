"""What is done for a run whose agent is gone, so that nothing of it is left.

Decided here and only here: what an agent that was killed can leave behind, and the order in which it is removed. To be
called with the lock of the run, by which it is certain that agent, supervisor and tasks have ended: the kernel ends the
tasks with their supervisor, and that one with the agent. A run is cleaned as often as need be: all of it may be gone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from casstore_orchestrator.agent.journal import Past
from casstore_orchestrator.folders import remove_tree
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.ports import RunKey, VersionMounts

__all__ = ["Cleaner"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cleaner:
    """Removes the traces of dead runs. ``sweep`` removes what their executor can have left on the machine."""

    homes: Homes
    mounts: VersionMounts | None = None
    sweep: Callable[[RunKey], None] = lambda _: None
    told: set[str] = field(default_factory=set)
    """Why sweeping failed since it last did not: an engine that is down is told of once, and not for each run."""

    def clean(self, run: RunKey, past: Past) -> None:
        """Remove mounts, homes and control groups. What can't be removed is told in the server's log."""
        folder = self.homes.mounts(run.workflow_id, run.group, run.placement)
        self._sweep(run)
        with _told(run):
            if self.mounts is not None:
                self.mounts.clear(folder)
            for path in folder.iterdir() if folder.is_dir() else ():
                path.rmdir()  # never more than the folders themselves: something may still be mounted there
            if folder.is_dir():
                folder.rmdir()
                with contextlib.suppress(OSError):  # another group's are in there
                    folder.parent.rmdir()
        for task, retry_id in sorted(past.attempts):
            with _told(run):
                remove_tree(self.homes.attempt(run.workflow_id, task, retry_id))

    def _sweep(self, run: RunKey) -> None:
        try:
            self.sweep(run)
        except Exception as error:  # noqa: BLE001 - as below
            if str(error) not in self.told:
                self.told.add(str(error))
                _log.warning("something of %s, and of others that end now, may be left behind: %s", run, error)
        else:
            self.told.clear()


@contextlib.contextmanager
def _told(run: RunKey) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what is left over must not keep the run from being over
        _log.warning("something of %s is left behind: %s", run, error)
