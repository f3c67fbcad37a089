"""Attempts whose first process is a script of ours, started on this machine as it is.

Decided here and only here: how such a script is started, and that its end is the attempt's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from casstore.errors import ServiceError
from casstore_orchestrator.executors.loop import Loop
from casstore_orchestrator.executors.running import Attempt, close_all, open_channel
from casstore_orchestrator.ports import LogSink, TaskLaunch

__all__ = ["start_companion"]


def start_companion(
    loop: Loop,
    launch: TaskLaunch,
    log: LogSink,
    *,
    script: str,
    told: BinaryIO,
    cwd: Path,
    hold: Sequence[int] = (),
) -> tuple[Attempt, Callable[[], None]]:
    """Start ``script``, a file beside this one, with what it is ``told``, which is closed in any case.

    ``hold``: descriptors that it keeps open. Gives the attempt, to be attached, and what to do when its control socket
    ends. ``ServiceError``.
    """
    (log_read, log_write), (ours, theirs) = open_channel()
    fds = [theirs.fileno(), told.fileno(), *hold]
    path = str(Path(__file__).resolve().with_name(script))
    try:
        process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", path, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=log_write,
            stderr=log_write,
            pass_fds=fds,
            cwd=cwd,
            env={},
            start_new_session=True,
        )
    except OSError as error:
        close_all(log_read, ours)
        raise ServiceError(f"task {launch.name} can't be prepared: {error}") from error
    finally:
        close_all(log_write, theirs, told)
    attempt = Attempt(loop, launch, log, log_read, ours)

    def ended() -> None:
        process.wait()
        attempt.mark_gone()

    return attempt, ended
