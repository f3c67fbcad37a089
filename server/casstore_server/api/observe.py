"""The outermost layer: every request gets an id, and whoever watches the server is told of it.

Decided here and only here: where the id comes from (``x-request-id``, if it is a plain one, so that a proxy's id is
kept) and that the reply has it too; and that requests are told apart by the template of their route, never by what a
caller wrote.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casstore_server.logs import request_id
from casstore_server.observing import Asked, Observers

__all__ = ["REQUEST_ID", "Observed"]

REQUEST_ID = "x-request-id"
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observed:
    """An application whose requests are told to ``observers``."""

    def __init__(self, app: ASGIApp, observers: Observers) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        number = given if _PLAIN.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (REQUEST_ID.encode(), number.encode())]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        began = time.perf_counter()
        token = request_id.set(number)
        try:
            with self._observers.during(scope) as tell:
                try:
                    await self._app(scope, receive, respond)
                finally:
                    tell(_asked(scope, status, time.perf_counter() - began))
        finally:
            request_id.reset(token)


def _asked(scope: Scope, status: int, seconds: float) -> Asked:
    method = "WEBSOCKET" if scope["type"] == "websocket" else str(scope.get("method", ""))
    route: Any = scope.get("route")
    caller = scope.get("state", {}).get("caller")
    return Asked(
        method=method if method in _METHODS or method == "WEBSOCKET" else "OTHER",
        route=str(getattr(route, "path", "")),
        status=status,
        seconds=seconds,
        user=caller.user if caller is not None else "",
    )
