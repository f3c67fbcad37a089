"""Who is at the other end of a connection.

Decided here and only here: that the unix socket serves its owner alone (the kernel says who connects), and
what the application learns of a connection: its client is ``("unix", <uid>)`` or ``(<address>, <port>)``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CheckedProtocol"]

_CREDENTIALS = struct.Struct("3i")
_log = logging.getLogger(__name__)


class CheckedProtocol(H11Protocol):
    """HTTP/1.1 that closes a unix connection of anybody but the server's own user (and root)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base does
        """Check the peer before anything is read."""
        peer: Any = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            uid = _CREDENTIALS.unpack(raw)[1]
            super().connection_made(transport)
            if uid not in {os.getuid(), 0}:
                _log.warning("refused a connection of user %d", uid)
                transport.abort()
                return
            self.client = ("unix", uid)
            return
        super().connection_made(transport)
