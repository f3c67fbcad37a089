"""A mount that outlives its server.

Decided here and only here: what happens when the process that answers the kernel dies. The supervisor does nothing
but hold the mount's descriptor and wait: while it is held, the kernel keeps the mount and the requests in it, and a
new server goes on where the other one stopped; on kernels that can send again what was taken and not answered (6.9),
no reader notices. On others, whoever had asked would wait for ever, where not even SIGKILL ends that: there the mount
goes with its server, and so does one that libfuse made. A server that dies again and again, one that says that it
can't serve, and the end of the supervisor itself take the mount away, so that none is left that answers nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from casstore.errors import CasstoreError
from casstore_fuse.abi import InitFlag
from casstore_fuse.mounting import unmount
from casstore_fuse.state import State

__all__ = ["RefusedError", "supervise"]

_log = logging.getLogger("casstore.fuse")

PATIENCE = 5
"""Deaths of servers within ``WINDOW`` seconds after which the mount is given up."""
WINDOW = 60.0
REFUSED = 3
"""Exit code of a server after which there is no other."""
_PR_SET_PDEATHSIG = 1

Serve = Callable[[int], None]
"""Answers the kernel until the mount is gone. Given the number of servers that died before."""


class RefusedError(Exception):
    """A server can't serve, and another one could not either. Its reason was told already."""


def supervise(
    descriptor: int | None, path: str, state: State, serve: Serve, *, release: Callable[[], None] | None = None
) -> int:
    """Run ``serve`` in child processes until the mount is gone; returns the exit code of the last one. Without a
    ``descriptor`` of the mount there is only one of them.

    SIGTERM, SIGINT and SIGHUP unmount, lazily where the mount is in use: what is open then stays readable until it is
    closed. ``release`` unmounts, where that takes more than unmounting ``path``. To be called by a process without
    other threads.
    """
    stopping = gone = False
    child = 0
    take_away = release or (lambda: unmount(path, lazy=True))

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            with contextlib.suppress(CasstoreError):
                take_away()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    deaths: list[float] = []
    try:
        while True:
            child = os.fork()
            if not child:
                _child(serve, len(deaths))
            code = os.waitstatus_to_exitcode(_wait(child))
            if code == 0:
                gone = True  # and by now the place may be somebody else's
                return 0
            if stopping or code == REFUSED:
                return code
            if descriptor is None or (state.flags and InitFlag.HAS_RESEND not in InitFlag(state.flags)):
                _log.error("the server of %s died, and nobody can take over: the mount is gone", path)
                return code
            state.count("restarts")
            deaths.append(time.monotonic())
            if len(deaths) >= PATIENCE and deaths[-1] - deaths[-PATIENCE] < WINDOW:
                return code
    finally:
        if not gone:
            with contextlib.suppress(CasstoreError):
                take_away()
        if descriptor is not None:
            os.close(descriptor)


def _wait(child: int) -> int:
    while True:
        with contextlib.suppress(InterruptedError):
            return os.waitpid(child, 0)[1]


def _child(serve: Serve, deaths: int) -> None:
    """Serve, and end: never returns into the supervisor's code."""
    code = 1
    try:
        # A server without its supervisor would keep a mount that nobody can stop.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        serve(deaths)
        code = 0
    except RefusedError:
        code = REFUSED
    except BaseException:  # noqa: BLE001 - whatever it was, the process ends here
        _log.exception("the server of a mount failed")
    finally:
        os._exit(code)
