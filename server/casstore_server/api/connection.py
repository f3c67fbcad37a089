"""Who is at the other end of a connection.

Decided here and only here: that the unix socket serves its owner alone (the kernel says who connects), what the
application learns of a connection (its client is ``("unix", <uid>)`` or ``(<address>, <port>)``), how long the line and
the headers of a request may be and what is said of one that is no HTTP, and when the other end counts as gone: when its
kernel no longer answers. A reader that takes its time is no reason to end a websocket, so nothing hangs on its pongs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import uuid
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from casstore import __version__
from casstore.wire.protocol import SERVICE_VERSION_HEADER, ErrorBody
from casstore_server.api.observe import REQUEST_ID

__all__ = ["CheckedProtocol", "CheckedWebSocket"]

CLOSE_SECONDS = 3600.0
"""How long a client may take to read what came before the end of a websocket."""
MAX_HEAD = 512 << 10
"""Bytes of a request before its body: no parameter that is allowed is too long for it, whatever it is written in."""
_CREDENTIALS = struct.Struct("3i")
_log = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.websocket")
_quiet.setLevel(logging.WARNING)


class CheckedProtocol(H11Protocol):
    """HTTP/1.1 that closes a unix connection of anybody but the server's own user (and root)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = h11.Connection(h11.SERVER, MAX_HEAD)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base does
        """Check the peer before anything is read."""
        uid = _peer(transport)
        super().connection_made(transport)
        if uid is None:
            return
        if uid not in {os.getuid(), 0}:
            _log.warning("refused a connection of user %d", uid)
            transport.abort()
            return
        self.client = ("unix", uid)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not understood as every other error is answered: no layer of the application sees it."""
        body = msgspec.json.encode(
            ErrorBody(
                message=f"{msg.rstrip('.')}, or its address and headers have more than {MAX_HEAD} bytes",
                error_code="USER",
                kind="usage",
            )
        )
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            (SERVICE_VERSION_HEADER, __version__),
            (REQUEST_ID, uuid.uuid4().hex),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class CheckedWebSocket(WebSocketsSansIOProtocol):
    """A websocket on a connection that ``CheckedProtocol`` has let in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSE_SECONDS
        self.logger = self.conn.logger = _quiet  # what it tells of each opening is its address, with keys and tokens

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base does
        """Tell the application who it is."""
        uid = _peer(transport)
        super().connection_made(transport)
        if uid is not None:
            self.client = ("unix", uid)
            return
        made: Any = transport.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6)):
                made.setsockopt(socket.IPPROTO_TCP, option, value)


def _peer(transport: asyncio.Transport) -> int | None:
    """The user at the other end of a unix socket."""
    peer: Any = transport.get_extra_info("socket")
    if peer.family != socket.AF_UNIX:
        return None
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
