"""Which clients are served, by the version that they say they have.

Decided here and only here: that clients older than the operator wants (``cli_config`` of the SERVICE configs) are
refused with 400, that others for which there is a newer one are told so with every reply, that a client which says
nothing, or nothing that is a version, is as good as any, and that whatever helps to install another one
(``/client/...``) is for all.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casstore.wire.protocol import (
    CLIENT_VERSION_HEADER,
    WARNING_HEADER,
    ErrorBody,
    decode_warning,
    encode_warning,
)
from casstore_server.api.edge import reply

__all__ = ["Gate", "Wanted"]

FRESH_S: Final = 2.0
"""Seconds for which what the operator wants is known."""
_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:\..*)?", re.ASCII)

_Number = tuple[int, int, int]


class Wanted(NamedTuple):
    """Versions of clients, empty for none in particular: the oldest that is served, and the newest that there is, with
    the address of a script that installs it.
    """

    oldest: str = ""
    newest: str = ""
    install: str = ""


class Gate:
    """An application for clients that are new enough. ``wanted`` may read: it is asked in a thread, now and then."""

    def __init__(self, app: ASGIApp, wanted: Callable[[], Wanted]) -> None:
        self._app = app
        self._ask = wanted
        self._wanted = Wanted()
        self._until = -1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        said = Headers(scope=scope).get(CLIENT_VERSION_HEADER, "") if scope["type"] == "http" else ""
        version = _number(said)
        if version is None or scope["path"].startswith("/client/"):
            await self._app(scope, receive, send)
            return
        if time.monotonic() >= self._until:
            self._wanted = await asyncio.to_thread(self._ask)
            self._until = time.monotonic() + FRESH_S
        oldest, newest = _number(self._wanted.oldest), _number(self._wanted.newest)
        if oldest is not None and version < oldest:
            await self._refusal(version)(scope, receive, send)
        elif newest is not None and version < newest:
            await self._app(scope, receive, _warning(send, self._notice(version)))
        else:
            await self._app(scope, receive, send)

    def _refusal(self, version: _Number) -> ASGIApp:
        text = (
            f"Your client is out of date: it is {_text(version)}, and this server takes {self._wanted.oldest} and newer"
        )
        body = ErrorBody(message=f"{text}. {self._how()}", error_code="OSMO_ERROR", kind="usage")
        return reply(body, status=400)

    def _notice(self, version: _Number) -> str:
        return f"There is a newer client, {self._wanted.newest}; yours is {_text(version)}. {self._how()}"

    def _how(self) -> str:
        if self._wanted.install:
            return f"Update it with: curl -fsSL {self._wanted.install} | bash"
        return "Update it as its documentation says."


def _number(text: str) -> _Number | None:
    """A version as numbers that can be compared; what comes behind the third says which build it is."""
    found = _VERSION.fullmatch(text)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


def _text(version: _Number) -> str:
    return ".".join(map(str, version))


def _warning(send: Send, text: str) -> Send:
    async def warning(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            others = decode_warning(headers.get(WARNING_HEADER, ""))
            headers[WARNING_HEADER] = encode_warning([text, *others])
        await send(message)

    return warning
