"""Connections through a server to a port, or the rsync daemon, of a running task.

Decided here and only here: how a connection is announced on the control websocket and carried by one of its own (an
empty message ends one direction), and that a lost control websocket is opened again, with longer and longer pauses,
until the server says that there is nothing to connect to any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from casstore.errors import CasstoreError, ServiceError, UsageError
from casstore.wire.racing import first_of
from casstore.wire.router import STREAM_KEY, RouterReply, StreamWish
from casstore_cli.client import Client
from casstore_cli.patience import pause
from casstore_cli.sockets import ClientConnection, ConnectionClosed, ConnectionLostError, failure, open_socket

__all__ = ["MAX_CONNECTIONS", "Control", "carry", "forward_datagrams", "serve_stream"]

MAX_CONNECTIONS = 200
"""Connections to one port at a time; more wait."""
_PIECE = 1 << 16
_QUEUED_DATAGRAMS = 512
_ADDRESS = struct.Struct(">4sH")

Tell = Callable[[str], None]


@dataclass
class Control:
    """The control websocket of one port. ``ask`` gives a new key from the server; it may take its time."""

    client: Client
    use: str
    workflow_id: str
    ask: Callable[[], RouterReply]
    tell: Tell
    seconds: float = 60.0

    def __post_init__(self) -> None:
        self._open: asyncio.Future[tuple[ClientConnection, RouterReply]] | None = None

    async def run(self, first: RouterReply, use: Callable[[ClientConnection], Awaitable[None]] | None = None) -> None:
        """Keep it open until the server refuses; raises that refusal. ``use`` runs on each, or it waits for its end."""
        found: RouterReply | None = first
        tries = 0
        while True:
            lost = False
            try:
                if found is None:
                    found = await asyncio.to_thread(self.ask)
                async with open_socket(self.client, found, self.use, self.workflow_id, seconds=self.seconds) as ws:
                    self._ready().set_result((ws, found))
                    if tries:
                        self.tell("The server is back, and so are the forwarded ports.")
                    tries = 0
                    await (use or _until_closed)(ws)
            except ConnectionClosed as closed:
                error = failure(closed)
                if error is not None and not isinstance(error, ConnectionLostError):
                    raise error from None
                lost = error is not None  # else the task has ended, most likely: the server will tell
            except ServiceError as error:
                if tries == 0:
                    self.tell(f"{error.message}; trying again")
            finally:
                self._open = None
            if lost:
                self.tell("The connection to the server was lost; connecting again.")
            found = None
            await asyncio.sleep(pause(tries))
            tries += 1

    def _ready(self) -> asyncio.Future[tuple[ClientConnection, RouterReply]]:
        if self._open is None:
            self._open = asyncio.get_running_loop().create_future()
        return self._open

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[ClientConnection]:
        """A websocket of its own for one connection; waits until the server can be reached."""
        control, found = await asyncio.wait_for(asyncio.shield(self._ready()), self.seconds)
        key = STREAM_KEY + uuid.uuid4().hex
        await control.send(msgspec.json.encode(StreamWish(key=key, cookie=found.cookie)))
        async with open_socket(self.client, found, self.use, self.workflow_id, key=key, seconds=self.seconds) as ws:
            yield ws


async def _until_closed(ws: ClientConnection) -> None:
    while True:
        await ws.recv()


async def carry(ws: ClientConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Move bytes both ways until both directions have ended. Raises what the server closed it with."""

    async def up() -> None:
        with contextlib.suppress(ConnectionClosed):  # whoever reads learns why
            while data := await reader.read(_PIECE):
                await ws.send(data)
            await ws.send(b"")
        await asyncio.Event().wait()

    async def down() -> None:
        try:
            while True:
                data = await ws.recv()
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    continue
                writer.write(data if isinstance(data, bytes) else data.encode())
                await writer.drain()
        except ConnectionClosed as closed:
            error = failure(closed)
            if error is not None:
                raise error from None

    await first_of(up(), down())


async def serve_stream(control: Control, host: str, port: int, tell: Tell) -> asyncio.Server:
    """Listen, and carry each connection. Raises ``UsageError`` when the address can't be had."""
    slots = asyncio.Semaphore(MAX_CONNECTIONS)
    told: set[str] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with slots, control.connection() as ws:
                await carry(ws, reader, writer)
        except CasstoreError as error:
            if error.message not in told:  # once, and not for each connection of a browser
                told.add(error.message)
                tell(error.message)
        except (OSError, TimeoutError, ConnectionClosed):
            pass  # the local side left, or the control connection did, which is told there
        except asyncio.CancelledError:
            writer.transport.abort()  # the command ends; Python 3.11 complains of a connection's task that is cancelled
        else:
            told.clear()
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass
            except asyncio.CancelledError:
                writer.transport.abort()

    family = socket.AF_UNSPEC if ":" in host else socket.AF_INET
    try:
        return await asyncio.start_server(connected, host, port, family=family, limit=2 * _PIECE)
    except (OSError, OverflowError) as exc:
        raise _not_listening(host, port, exc) from exc


def _not_listening(host: str, port: int, exc: Exception) -> UsageError:
    number = exc.errno if isinstance(exc, OSError) else None
    why = os.strerror(number) if number is not None and number > 0 else str(exc)
    return UsageError(f"Can't listen on {host}:{port}: {why}", hint="Choose another --port or --host.")


async def forward_datagrams(
    control: Control, first: RouterReply, host: str, port: int, tell: Callable[[int], None]
) -> None:
    """Listen for datagrams and forward them, until the server refuses. ``tell`` gets the local port."""
    waiting: asyncio.Queue[bytes] = asyncio.Queue(_QUEUED_DATAGRAMS)

    class Local(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            with contextlib.suppress(asyncio.QueueFull):  # dropped, as a network would
                waiting.put_nowait(_ADDRESS.pack(socket.inet_aton(addr[0]), addr[1]) + data)

    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_datagram_endpoint(Local, local_addr=(host, port), family=socket.AF_INET)
    except OSError as exc:
        raise _not_listening(host, port, exc) from exc
    tell(transport.get_extra_info("sockname")[1])

    async def use(ws: ClientConnection) -> None:
        async def up() -> None:
            while True:
                await ws.send(await waiting.get())

        async def down() -> None:
            while True:
                data = await ws.recv()
                if isinstance(data, bytes) and len(data) >= _ADDRESS.size:
                    address, number = _ADDRESS.unpack_from(data)
                    transport.sendto(data[_ADDRESS.size :], (socket.inet_ntoa(address), number))

        await first_of(up(), down())

    try:
        await control.run(first, use)
    finally:
        transport.close()
