"""Websockets on the one side, agents of groups on the other.

Decided here and only here: how a client's messages become frames and frames its messages, and that each direction is
read only as fast as its other end takes it: nothing is kept but what one message or frame holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Self

import msgspec
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from casstore.errors import CasstoreError, FormatError, ServiceError, UsageError
from casstore.structs import from_json
from casstore.wire.protocol import ErrorBody, to_exception
from casstore.wire.racing import first_of
from casstore.wire.router import CLOSE_ERROR, ERRORS, OUTPUT, RESIZE, Ended, StreamWish, WindowSize
from casstore_orchestrator import frames
from casstore_orchestrator.agent.attach import Request
from casstore_orchestrator.frames import HEADER_BYTES, MAX_DATA, Kind
from casstore_orchestrator.ports import RunKey
from casstore_server.services.context import Attaching
from casstore_server.services.sessions import Session, Sessions

__all__ = ["Attached", "close_with", "control", "datagrams", "run_program", "stream"]

ANSWER_SECONDS = 60.0
"""How long an agent may take to answer, and a client to say how large its terminal is."""
_MAX_REASON = 123
_log = logging.getLogger(__name__)


class Attached:
    """A connection to the agent of a run, of which a request was granted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, agents: Attaching | None, run: RunKey, request: Request) -> Self:
        """Ask the agent. Raises its refusal, or ``ServiceError``."""
        if agents is None:
            raise ServiceError("This server can't reach running tasks")
        made = await asyncio.to_thread(agents.attach, run)
        try:
            made.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=made, limit=4 * MAX_DATA)
        except BaseException:
            made.close()
            raise
        attached = cls(reader, writer)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(msgspec.json.encode(request) + b"\n")
                await attached._granted()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            await attached.close()
            raise ServiceError(f"Group {run.group} of {run.workflow_id} did not answer") from error
        except BaseException:
            await attached.close()
            raise
        return attached

    async def _granted(self) -> None:
        line = await self._reader.readuntil(b"\n")
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if answer.get("ok") is not True:
            body = ErrorBody(
                message=str(answer.get("error")), hint=answer.get("hint"), kind=answer.get("kind") or "conflict"
            )
            raise to_exception(409, msgspec.json.encode(body))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(self, frame: bytes) -> None:
        """Send a frame, once there is room. When nobody reads it any more it is dropped: what comes says why."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(frame)
            await self._writer.drain()

    async def send_data(self, data: bytes) -> None:
        """Send bytes of a stream, as many frames as it takes."""
        for start in range(0, len(data), MAX_DATA):
            await self.send(frames.encode(Kind.DATA, data[start : start + MAX_DATA]))

    async def receive(self) -> frames.Frame | None:
        """The next frame; None at the end. ``FormatError``."""
        try:
            kind, length = frames.parse_header(await self._reader.readexactly(HEADER_BYTES))
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def close(self) -> None:
        """End it; what the other side has not read yet may be lost."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def receive(ws: WebSocket) -> bytes:
    """The next message, whatever its kind. Raises ``WebSocketDisconnect``."""
    message = await ws.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    data: bytes | None = message.get("bytes")
    return data if data is not None else message["text"].encode()


async def close(ws: WebSocket, code: int = 1000, reason: str = "") -> None:
    """Close it, if it is not; a reason is cut where the protocol ends."""
    text = reason.encode("utf-8", "replace")[:_MAX_REASON].decode("utf-8", "ignore")
    with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
        if ws.application_state is not WebSocketState.DISCONNECTED:
            await ws.close(code, text)


async def close_with(ws: WebSocket, error: CasstoreError) -> None:
    """Close it so that the other side learns of an error."""
    text = f"{error.message} {error.hint}" if error.hint else error.message
    await close(ws, CLOSE_ERROR + error.http_status, text if len(text.encode()) <= _MAX_REASON else error.message)


async def run_program(ws: WebSocket, agents: Attaching | None, session: Session) -> None:
    """Run what the session says, with the size and kind of terminal that the first message asks for."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            first = _window(await receive(ws))
    except TimeoutError:
        raise UsageError("The size of the terminal did not come") from None
    size = None if first.pipes else (_cells(first.rows), _cells(first.cols))
    request = msgspec.structs.replace(session.request, terminal=size, term=first.term)
    async with await Attached.open(agents, session.run, request) as attached:
        await first_of(_to_program(ws, attached, pipes=first.pipes), _from_program(ws, attached, pipes=first.pipes))


def _cells(number: int) -> int:
    return min(max(number, 0), 65535)


def _window(data: bytes) -> WindowSize:
    try:
        return from_json(data, WindowSize)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"The size of the terminal can't be understood: {error}") from None


async def _to_program(ws: WebSocket, attached: Attached, *, pipes: bool) -> None:
    while True:
        data = await receive(ws)
        if not data:
            await attached.send(frames.encode(Kind.EOF))
        elif not pipes and data.startswith(RESIZE):
            size = _window(data[len(RESIZE) :])
            await attached.send(frames.resize(_cells(size.rows), _cells(size.cols)))
        else:
            await attached.send_data(data)


async def _from_program(ws: WebSocket, attached: Attached, *, pipes: bool) -> None:
    while frame := await attached.receive():
        kind, data = frame
        if kind is Kind.EXIT:
            code, with_task = frames.exit_status(data)
            ended = Ended(exit=code, with_task=with_task)
            await close(ws, 1000, msgspec.json.encode(ended).decode())
            return
        if kind in {Kind.DATA, Kind.ERRORS}:
            mark = (ERRORS if kind is Kind.ERRORS else OUTPUT) if pipes else b""
            await ws.send_bytes(mark + data)
    await close(ws, 1000, msgspec.json.encode(Ended(exit=137, with_task=True)).decode())


async def stream(ws: WebSocket, agents: Attaching | None, session: Session) -> None:
    """Connect one TCP connection, or one to rsync: an empty message ends a direction, and both ended the whole."""
    async with await Attached.open(agents, session.run, session.request) as attached:
        finished = asyncio.Event()
        await first_of(_to_stream(ws, attached, finished), _from_stream(ws, attached, finished))
        finished.set()


async def _to_stream(ws: WebSocket, attached: Attached, finished: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while data := await receive(ws):
            await attached.send_data(data)
        await attached.send(frames.encode(Kind.EOF))
    finished.set()
    while True:  # until it is closed
        await receive(ws)


async def _from_stream(ws: WebSocket, attached: Attached, finished: asyncio.Event) -> None:
    said = b""
    while frame := await attached.receive():
        kind, data = frame
        if kind is Kind.DATA:
            await ws.send_bytes(data)
        elif kind is Kind.ERRORS:
            said = (said + data)[-_MAX_REASON:]
        elif kind is Kind.EOF:
            await ws.send_bytes(b"")
            await finished.wait()
            break
        elif kind is Kind.EXIT:
            break
    await close(ws, 1000, said.decode("utf-8", "replace").strip())


async def control(ws: WebSocket, agents: Attaching | None, session: Session, sessions: Sessions) -> None:
    """Take the announcements of single connections, until the client leaves or the task ends."""
    watch = Request(attach="watch", task=session.request.task, retry_id=session.request.retry_id)
    async with await Attached.open(agents, session.run, watch) as attached:

        async def announcements() -> None:
            while True:
                try:
                    wish = from_json(await receive(ws), StreamWish)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise UsageError(f"The announcement of a connection can't be understood: {error}") from None
                sessions.announce(wish.key, session)

        async def task() -> None:
            while await attached.receive():
                pass
            await close(ws, 1000, f"Task {session.request.task} has ended")

        await first_of(announcements(), task())


async def datagrams(ws: WebSocket, agents: Attaching | None, session: Session) -> None:
    """Forward the datagrams of one port: each message is an address and a datagram."""
    async with await Attached.open(agents, session.run, session.request) as attached:

        async def there() -> None:
            while True:
                data = await receive(ws)
                if len(data) > frames.MAX_PAYLOAD:
                    raise FormatError("That is too long for a datagram")
                await attached.send(frames.encode(Kind.DATA, data))

        async def back() -> None:
            while frame := await attached.receive():
                await ws.send_bytes(frame[1])
            await close(ws, 1000, f"Task {session.request.task} has ended")

        await first_of(there(), back())
