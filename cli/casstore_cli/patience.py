"""Going on when a server was away.

Decided here and only here: how long is waited between two tries and in all, what is said meanwhile, and that a server
of the user's own that was killed is started again, but not one that was stopped.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from casstore.errors import ServiceError
from casstore_cli import output
from casstore_cli.client import Client, NotLetInError

__all__ = ["pause", "persistently"]

PATIENCE_S = 600.0
"""How long a server may be away."""
_MAX_DOUBLINGS = 5
_STEP_S = 1.0
_T = TypeVar("_T")


def pause(tries: int) -> float:
    """Seconds before the next try: soon at first, because servers are restarted; half a minute in the end."""
    return float(2 ** min(tries, _MAX_DOUBLINGS)) * (0.25 + random.random() / 4)  # noqa: S311  no secret


def persistently(client: Client, ask: Callable[[], _T], *, hint: str) -> _T:
    """What ``ask`` gives once the server is back. It was just lost. Anything ends it at once but a server that can't be
    reached or can't answer, or is asked by too many who come back at the same time.

    Raises ``ServiceError``, with ``hint``, when the server stays away.
    """
    begun = time.monotonic()
    where = client.target.display
    output.message(f"The connection to the server at {where} was lost; waiting for it. Ctrl-C ends this.")
    tries = 0
    while True:
        try:
            if tries:
                _start_again(client)
            found = ask()
        except (ServiceError, NotLetInError) as error:
            if error.http_status == HTTPStatus.UNAUTHORIZED:
                raise
            if time.monotonic() - begun >= PATIENCE_S:
                raise ServiceError(
                    f"{error.message} (for {PATIENCE_S / 60:g} minutes; nobody tries any more)", hint=hint
                ) from error
        else:
            output.message("The server is back.")
            return found
        _wait(where, begun, pause(tries))
        tries += 1


def _wait(where: str, begun: float, seconds: float) -> None:
    """Sleep; on a terminal, with a line that counts."""
    end = time.monotonic() + seconds
    shows = sys.stderr.isatty()
    try:
        while (left := end - time.monotonic()) > 0:
            if shows:
                sys.stderr.write(f"\rwaiting for {output.escape(where)}: {time.monotonic() - begun:.0f} s\x1b[K")
                sys.stderr.flush()
            time.sleep(min(left, _STEP_S))
    finally:
        if shows:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _start_again(client: Client) -> None:
    """Start our own server when it was killed: one that was stopped takes its socket away."""
    path = client.target.socket_path
    if path is not None and os.path.exists(path):
        from casstore_cli.login import connect

        connect()
