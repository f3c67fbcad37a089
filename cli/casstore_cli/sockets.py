"""Websockets to a server: the same one that requests go to.

Decided here and only here: how they are opened (over the unix socket of the user's own server, or to the address that
the server names), and which error each way of closing means. Nothing hangs on pongs: a reader may take its time, and a
server that is gone is noticed by TCP.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec

from casstore.errors import AccessError, CasstoreError, ConflictError, NotFoundError, ServiceError, UsageError
from casstore.structs import from_json
from casstore.wire.protocol import to_exception
from casstore.wire.router import CLOSE_ERROR, MAX_MESSAGE, Ended, RouterReply, socket_path
from casstore_cli.client import Client, ConnectionLostError

try:
    from websockets.asyncio.client import ClientConnection, connect, unix_connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
except ImportError:
    raise UsageError(
        "Interactive access needs the package websockets", hint="Install it with: pip install 'casstore[workflow]'"
    ) from None

__all__ = [
    "ClientConnection",
    "ConnectionClosed",
    "ConnectionLostError",
    "ended",
    "failure",
    "open_socket",
]

_KINDS: Mapping[int, type[CasstoreError]] = {
    HTTPStatus.BAD_REQUEST: UsageError,
    HTTPStatus.FORBIDDEN: AccessError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.GONE: ConflictError,
    HTTPStatus.TOO_EARLY: ConflictError,
}


@contextlib.asynccontextmanager
async def open_socket(
    client: Client, found: RouterReply, use: str, workflow_id: str, *, key: str | None = None, seconds: float = 60.0
) -> AsyncIterator[ClientConnection]:
    """Connect with the reply's key, or one of our own. Raises what the server said, or ``ServiceError``."""
    ws = await _connect(client, found, use, workflow_id, key=key, seconds=seconds)
    try:
        yield ws
        await ws.close()
    finally:
        ws.transport.abort()  # also where there is no time for a farewell
        await ws.wait_closed()


async def _connect(
    client: Client, found: RouterReply, use: str, workflow_id: str, *, key: str | None, seconds: float
) -> ClientConnection:
    path = socket_path(use, workflow_id, key or found.key)
    headers = {**client.headers(), "Cookie": found.cookie} if found.cookie else client.headers()
    options: dict[str, Any] = {
        "additional_headers": headers,
        "user_agent_header": None,
        "compression": None,
        "open_timeout": seconds,
        "ping_timeout": None,
        "close_timeout": 2,
        "max_size": 4 * MAX_MESSAGE,
        "max_queue": 8,
    }
    at = found.router_address or client.target.display
    try:
        if client.target.socket_path is not None:
            return await unix_connect(client.target.socket_path, f"ws://localhost/{path}", **options)
        if urlsplit(found.router_address).scheme not in {"ws", "wss"}:
            raise ServiceError(f"The server names '{found.router_address}' as the address to connect to")
        made = await connect(f"{found.router_address.rstrip('/')}/{path}", proxy=None, **options)
    except InvalidStatus as exc:
        raise to_exception(max(exc.response.status_code, 400), bytes(exc.response.body or b"")) from exc
    except TimeoutError as exc:
        raise ServiceError(f"No connection to {at} within {seconds:g} seconds") from exc
    except (OSError, InvalidHandshake, InvalidURI, EOFError) as exc:
        raise ConnectionLostError(f"Cannot connect to {at}: {' '.join(str(exc).split())}") from exc
    made.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return made


def failure(closed: ConnectionClosed) -> CasstoreError | None:
    """The error that the end of a websocket stands for; None for a regular end."""
    if closed.rcvd is None or closed.rcvd.code in {1001, 1006, 1011, 1012, 1013}:
        return ConnectionLostError("The connection to the server was lost")
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if code == 1000:
        return None
    kind = _KINDS.get(code - CLOSE_ERROR, ServiceError)
    return kind(reason or f"The server closed the connection with code {code}")


def ended(closed: ConnectionClosed) -> Ended:
    """How a program ended whose websocket was closed regularly; servers of OSMO do not tell."""
    reason = closed.rcvd.reason if closed.rcvd is not None else ""
    try:
        return from_json(reason, Ended)
    except msgspec.MsgspecError:
        return Ended(exit=0)
