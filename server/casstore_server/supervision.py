"""Telling systemd how the server is.

Decided here and only here: that it is told through ``NOTIFY_SOCKET``, and that what the server starts does not learn of
that: a task could otherwise say that the server is ready.
"""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify"]

_address: str | None = None


def notify(state: str) -> None:
    """Say ``READY=1`` or ``STOPPING=1`` to whoever supervises us, if anybody does."""
    global _address  # noqa: PLW0603  # it is taken out of the environment once
    _address = os.environ.pop("NOTIFY_SOCKET", None) or _address
    if not _address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + _address[1:] if _address.startswith("@") else _address)
        channel.send(state.encode())
