"""Requests and replies about interactive access: running a program in a task, reaching its ports, rsync.

Decided here and only here: the field names of these shapes, the paths of the websockets, and what the messages on them
look like. OSMO's own, with additions that its clients do not see: ``pipes`` in a reply says that a program can have
pipes instead of a terminal; ``Pipes`` and ``Term`` in the first message ask for that, and for a kind of terminal; the
reason of a regular close says how the program ended.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "CLOSE_ERROR",
    "CLOSE_TIMEOUT",
    "ERRORS",
    "MAX_MESSAGE",
    "OUTPUT",
    "RESIZE",
    "STREAM_KEY",
    "Ended",
    "PluginsReply",
    "RouterReply",
    "RsyncModule",
    "RsyncPlugin",
    "StreamWish",
    "WindowSize",
    "socket_path",
]

MAX_MESSAGE = 1 << 20
"""The longest message that is read, in bytes."""
RESIZE = b"\0RESIZE:"
"""What comes before a ``WindowSize`` in a message that is no input."""
OUTPUT, ERRORS = b"\x01", b"\x02"
"""With pipes: the first byte of a message, for what was written to the standard output or error."""
STREAM_KEY = "PORTFORWARD-"
"""How the keys of single connections begin."""
CLOSE_TIMEOUT = 4000
"""Nobody was at the other side within the time."""
CLOSE_ERROR = 4000
"""An error closes with this plus the status that an HTTP reply would have had; its text is the reason."""


class RouterReply(msgspec.Struct, kw_only=True):
    """Where to connect. ``router_address`` is empty on a unix socket: then it is the same socket. ``url`` (ours) is the
    address of a task's page.
    """

    router_address: str
    key: str
    cookie: str = ""
    pipes: bool = False
    url: str | None = None


class RsyncModule(msgspec.Struct, kw_only=True):
    """A folder of a task that rsync reaches besides its workspace."""

    path: str
    writable: bool


class RsyncPlugin(msgspec.Struct, kw_only=True):
    """``client_upload_rate_limit`` in bytes a second, 0 is none; the daemon's times in seconds."""

    enabled: bool
    allowed_paths: dict[str, RsyncModule]
    client_upload_rate_limit: int
    daemon_debounce_delay: float
    daemon_poll_interval: float
    daemon_reconcile_interval: float


class PluginsReply(msgspec.Struct, kw_only=True):
    """What OSMO calls plugins."""

    rsync: RsyncPlugin


class WindowSize(msgspec.Struct, kw_only=True, rename="pascal", omit_defaults=True):
    """The first message of a program's connection, and after ``RESIZE`` the new size of the terminal."""

    rows: int = 0
    cols: int = 0
    term: str = "xterm"
    pipes: bool = False


class StreamWish(msgspec.Struct, kw_only=True):
    """On the control connection of a forwarded port: a connection with this key will come."""

    key: str
    cookie: str = ""


class Ended(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The reason with which a program's connection is closed. ``with_task``: it ended because its task did."""

    exit: int
    with_task: bool = False


def socket_path(use: str, workflow_id: str, key: str) -> str:
    """The path of a websocket; ``use`` is exec, portforward or rsync."""
    return f"api/router/{use}/{workflow_id}/client/{key}"
