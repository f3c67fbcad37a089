"""Web pages of tasks under host names of their own: ``http://<key>.localhost:<port>/``.

Decided here and only here: that the key in the name is what opens a page (a browser sends no user with it; nobody can
guess it, and pages of one name can't reach another's), how long it is good, at most as long as whoever it was given to
is let in, and which headers are changed on the way.
Browsers resolve every name below ``localhost`` to this machine. A program in a task takes requests for ``localhost``
with the port that it listens on, so that is what it gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator

import h11
from fastapi import WebSocket
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response as Handshake
from websockets.uri import parse_uri

from casstore.errors import CasstoreError
from casstore.wire.racing import first_of
from casstore.wire.router import MAX_MESSAGE
from casstore_orchestrator import frames
from casstore_orchestrator.frames import MAX_DATA, Kind
from casstore_server.api.bridge import Attached, close, close_with
from casstore_server.identity.logins import Logins
from casstore_server.services.context import Services
from casstore_server.services.sessions import Session

__all__ = ["WebProxy"]

_HOST = re.compile(r"([0-9a-f]{32})\.localhost(?::\d{1,5})?", re.ASCII | re.IGNORECASE)
_HOPS = frozenset({"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"})
_log = logging.getLogger(__name__)


class WebProxy:
    """Answers for the names of tasks' pages; everything else goes on to the application."""

    def __init__(self, app: ASGIApp, services: Services, logins: Logins) -> None:
        self._app = app
        self._services = services
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = None
        if scope["type"] in {"http", "websocket"}:
            found = _HOST.fullmatch(Headers(scope=scope).get("host", ""))
        if found is None:
            await self._app(scope, receive, send)
            return
        session = await asyncio.to_thread(self._page, found[1].lower())
        if session is None:
            text = "This page is not known, or was not used for a while: ask for another one."
            await PlainTextResponse(text, status_code=404)(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(session, scope, receive, send)
        else:
            await self._websocket(session, WebSocket(scope, receive, send))

    def _page(self, key: str) -> Session | None:
        """What is behind a key, as long as whoever it was given to is let in."""
        session = self._services.sessions.page(key)
        return session if session is not None and self._logins.lets_in(session.user) else None

    async def _http(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with await Attached.open(self._services.agents, session.run, session.request) as attached:
                await _exchange(session.request.port, attached, scope, receive, sending)
        except CasstoreError as error:
            if not begun:
                await PlainTextResponse(f"{error.message}\n", status_code=502)(scope, receive, send)
        except h11.ProtocolError as error:
            if not begun:
                text = f"What listens on port {session.request.port} does not speak HTTP: {error}\n"
                await PlainTextResponse(text, status_code=502)(scope, receive, send)

    async def _websocket(self, session: Session, ws: WebSocket) -> None:
        try:
            async with await Attached.open(self._services.agents, session.run, session.request) as attached:
                await _Socket(ws, attached, session.request.port).run()
        except WebSocketDisconnect:
            return
        except CasstoreError as error:
            await close_with(ws, error)
        except InvalidHandshake as error:
            _log.info("a websocket of a task was refused: %s", error)
            await close(ws, 1008, "The task refused this websocket")


def _passed_on(scope: Scope, port: int) -> list[tuple[bytes, bytes]]:
    """The headers of a request as the program in the task gets them."""
    headers = Headers(scope=scope)
    own = headers.get("host", "")
    passed = [(b"host", f"localhost:{port}".encode()), (b"x-forwarded-host", own.encode())]
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in _HOPS or key in {"host", "x-forwarded-host"} or key.startswith("sec-websocket-"):
            continue
        if key in {"origin", "referer"}:
            value = value.replace(f"//{own}".encode(), f"//localhost:{port}".encode())  # noqa: PLW2901
        passed.append((name, value))
    return passed


def _target(scope: Scope) -> str:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return (path + (b"?" + query if query else b"")).decode("latin-1")


async def _exchange(port: int, attached: Attached, scope: Scope, receive: Receive, send: Send) -> None:
    """One request and its reply, both as they come, on a connection of their own."""
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_DATA)
    headers = [*_passed_on(scope, port), (b"connection", b"close")]
    if any(name.lower() == b"transfer-encoding" for name, _ in scope["headers"]):
        headers.append((b"transfer-encoding", b"chunked"))
    request = h11.Request(method=scope["method"], target=_target(scope), headers=headers)
    await attached.send_data(conn.send(request) or b"")

    async def body() -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if message.get("body"):
                await attached.send_data(conn.send(h11.Data(data=message["body"])) or b"")
            more = message.get("more_body", False)
        await attached.send_data(conn.send(h11.EndOfMessage()) or b"")
        while (await receive())["type"] != "http.disconnect":
            pass  # whoever asked has gone: so may the answer

    async def answer() -> None:
        async for event in _events(conn, attached):
            if isinstance(event, h11.Response):
                kept = [(name, value) for name, value in event.headers if name.decode("latin-1") not in _HOPS]
                await send({"type": "http.response.start", "status": event.status_code, "headers": kept})
            elif isinstance(event, h11.Data):
                await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    await first_of(body(), answer())


async def _events(conn: h11.Connection, attached: Attached) -> AsyncIterator[object]:
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            frame = await attached.receive()
            conn.receive_data(frame[1] if frame is not None and frame[0] is Kind.DATA else b"")
            continue
        if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
            return
        yield event


class _Socket:
    """A websocket of a browser, and one to the task."""

    def __init__(self, ws: WebSocket, attached: Attached, port: int) -> None:
        self._ws = ws
        self._attached = attached
        scope = ws.scope
        wanted = scope["subprotocols"] or None
        self._conn = ClientProtocol(
            parse_uri(f"ws://localhost:{port}{_target(scope)}"), subprotocols=wanted, max_size=MAX_MESSAGE
        )
        self._headers = _passed_on(scope, port)
        self._parts: list[bytes] = []
        self._text = False

    async def _flush(self) -> None:
        for data in self._conn.data_to_send():
            await (self._attached.send_data(data) if data else self._attached.send(frames.encode(Kind.EOF)))

    async def run(self) -> None:
        """Shake hands with the task, then with the browser, and carry messages both ways."""
        request = self._conn.connect()
        for name, value in self._headers:
            key = name.decode("latin-1")
            if key.lower() not in {"host", "connection", "upgrade"}:
                request.headers[key] = value.decode("latin-1")
        self._conn.send_request(request)
        await self._flush()
        await self._answers(until_open=True)
        if self._conn.handshake_exc is not None:
            raise self._conn.handshake_exc
        await self._ws.accept(subprotocol=self._conn.subprotocol)
        await self._told()
        await first_of(self._up(), self._answers())
        await close(self._ws)

    async def _up(self) -> None:
        while True:
            message = await self._ws.receive()
            if message["type"] == "websocket.disconnect":
                with contextlib.suppress(Exception):  # it may be closing already
                    self._conn.send_close(1000)
                    await self._flush()
                return
            if message.get("text") is not None:
                self._conn.send_text(message["text"].encode())
            else:
                self._conn.send_binary(message["bytes"])
            await self._flush()

    async def _answers(self, *, until_open: bool = False) -> None:
        while frame := await self._attached.receive():
            if frame[0] is not Kind.DATA:
                break
            self._conn.receive_data(frame[1])
            await self._flush()
            if until_open:
                if self._conn.state.name != "CONNECTING" or self._conn.handshake_exc is not None:
                    return
            elif await self._told():
                return

    async def _told(self) -> bool:
        """Pass on what has arrived whole; whether that was the end."""
        for event in self._conn.events_received():
            if isinstance(event, Handshake) or not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.CLOSE:
                await close(self._ws, self._conn.close_code or 1000, self._conn.close_reason or "")
                return True
            if event.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                if event.opcode is not Opcode.CONT:
                    self._text = event.opcode is Opcode.TEXT
                self._parts.append(bytes(event.data))
                if event.fin:
                    data, self._parts = b"".join(self._parts), []
                    await (self._ws.send_text(data.decode()) if self._text else self._ws.send_bytes(data))
        return False
