"""Interactive connections to the tasks of a running group.

Decided here and only here: what follows on a connection after the line that asks for a task.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Protocol

from casstore_orchestrator.ports import RunningTask

__all__ = ["Access", "serve"]


class Access(Protocol):
    """What an interactive connection may reach; safe to use from any thread."""

    def task(self, name: str, retry_id: int | None = None) -> RunningTask:
        """The newest run of a task of this group.

        ``NotFoundError`` for a task of another group, ``ConflictError`` when it does not run now, or that attempt is
        over.
        """

    def note(self, task: str, text: str) -> None:
        """A line of our own in the log of the task's newest attempt (``[task][osmo] text``)."""


def serve(connection: socket.socket, header: Mapping[str, object], access: Access) -> None:
    """Serve one connection, in a thread of its own, until it is over. The caller closes the connection.

    ``header`` is the JSON object of the first line, with ``attach`` in it: untrusted. No byte after that line has been
    read.
    """
    refusal = {"error": "this version can't connect to running tasks", "hint": "Read the task's log instead."}
    connection.sendall(json.dumps(refusal).encode() + b"\n")
