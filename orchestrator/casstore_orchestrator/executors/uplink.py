"""The way out of a group's network: slirp4netns, an unprivileged router in a process of its own.

Decided here and only here: how it is started and ended. It sits on the group's bridge as one more machine, with the
addresses ``GATEWAY`` and ``RESOLVER``, and makes ordinary connections of this machine of what tasks send beyond their
group. This machine's loopback can't be reached through it. It ends when the descriptor closes that ``Uplink`` holds, so
it never outlives whoever started the group.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Sequence

from casstore.errors import ServiceError
from casstore_orchestrator.executors.network import NETWORK, UPLINK, find_router

__all__ = ["Uplink"]

_READY_SECONDS = 20.0


class Uplink:
    """One running router."""

    def __init__(self, pid: int, hold: Sequence[int] = ()) -> None:
        """Put the router into the network namespace of process ``pid``; back once its interface ``UPLINK`` is there.

        ``hold``: descriptors that it keeps open. ``ServiceError`` when it can't be.
        """
        ready, telling = os.pipe()
        listening, self._end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    find_router(),
                    "--disable-host-loopback",
                    f"--cidr={NETWORK}",
                    "--mtu=65520",
                    f"--ready-fd={telling}",
                    f"--exit-fd={listening}",
                    str(pid),
                    UPLINK,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[telling, listening, *hold],
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._end)
            raise ServiceError(f"the way out of a group can't be opened: {error}") from error
        finally:
            os.close(telling)
            os.close(listening)
        try:
            if not select.select([ready], [], [], _READY_SECONDS)[0] or not os.read(ready, 1):
                raise ServiceError(f"the way out of a group can't be opened: {self._last_words()}")
        except ServiceError:
            self.close()
            raise
        finally:
            os.close(ready)

    def close(self) -> None:
        """End it; idempotent."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1
        with contextlib.suppress(OSError):
            self._process.terminate()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            self._process.terminate()
        said = b"" if self._process.stderr is None else self._process.stderr.read(4096)
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "slirp4netns did not say why"
