"""What happens to every request before a route sees it, and to every reply after.

Decided here and only here: double slashes are collapsed (OSMO's client sends them), who the caller is, how large a
body may be, and that every error leaves as ``{message, error_code, workflow_id}``.

On the unix socket the caller is the server's own user. On the loopback port the name is whatever ``x-osmo-user`` says
(OSMO's development login); that header, which no page can send to another origin without asking, and the check of
``Host`` keep web pages in a browser on the same machine out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casstore import __version__
from casstore.errors import AccessError, CasstoreError, UsageError
from casstore.wire.protocol import (
    MAX_REQUEST_BYTES,
    SERVICE_VERSION_HEADER,
    USER_HEADER,
    WARNING_HEADER,
    ErrorBody,
    encode_warning,
    error_body,
)
from casstore_server.identity.actions import EVERYTHING, Grants, Policy, grants_of
from casstore_server.logs import request_id
from casstore_server.services.context import Caller, Links

__all__ = ["Edge", "handle_errors", "reply"]

_log = logging.getLogger(__name__)
_OPEN = frozenset(
    {
        *("/health", "/ready", "/api/version", "/client/version", "/api/router/version"),
        *("/api/docs", "/api/openapi.json"),
    }
)
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}", re.ASCII)
_HOST = re.compile(r"(?:127(?:\.\d{1,3}){3}|localhost|\[::1\])(?::\d{1,5})?", re.ASCII)
_SCRAPER = Grants(policies=(Policy(("metrics:Read",)),))
_MAX_DRAINED = 4 * MAX_REQUEST_BYTES
_SLASHES = re.compile(r"/{2,}")


def reply(value: Any, *, warnings: Sequence[str] = (), status: int = 200) -> Response:
    """A JSON reply; ``warnings`` travel in a header."""
    headers = {WARNING_HEADER: encode_warning(list(warnings))} if warnings else {}
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json", headers=headers)


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, owner: str) -> None:
        self._app = app
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        scope["path"] = _SLASHES.sub("/", scope["path"])
        scope["raw_path"] = _SLASHES.sub("/", scope.get("raw_path", b"").decode("latin-1")).encode("latin-1")
        headers = Headers(scope=scope)
        respond = _with_version(send)
        try:
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
                raise _TooLarge
            if scope["type"] == "websocket":
                _check_origin(headers)
            scope.setdefault("state", {})["caller"] = self._caller(scope, headers)
        except CasstoreError as exc:
            await reply(error_body(exc), status=exc.http_status)(scope, receive, respond)
            return
        except _TooLarge:
            await _drain(receive)
            await _too_large()(scope, receive, respond)
            return
        await self._app(scope, _counted(receive), respond)

    def _caller(self, scope: Scope, headers: Headers) -> Caller | None:
        client = scope.get("client")
        if client is not None and client[0] == "unix":
            return Caller(self._owner)
        host = headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise AccessError(f"This server does not answer for the host '{host[:100]}'")
        name = headers.get(USER_HEADER, "")
        if not name and scope["path"] == "/metrics":
            return Caller("", grants=_SCRAPER)
        if not name and scope["path"] in _OPEN:
            return None
        if not name:
            raise AccessError(
                f"No user: the header {USER_HEADER} is missing",
                hint="Log in with: osmo login URL --method dev --username NAME",
            )
        if not _USER.fullmatch(name):
            raise UsageError("That is not a user name: letters, digits and . _ @ + - only")
        grants = EVERYTHING if name == self._owner else grants_of(["osmo-user"])
        return Caller(name, Links(f"http://{host}"), grants)


def _check_origin(headers: Headers) -> None:
    """Pages may open websockets to anywhere, and say from where they do: no page of another origin gets one."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
        raise AccessError("This server has no websockets for pages of other origins")


class _TooLarge(Exception):  # noqa: N818  # never leaves this module
    pass


def _too_large() -> Response:
    text = f"The request is larger than {MAX_REQUEST_BYTES} bytes"
    hint = "Put large files into a dataset and use it as an input."
    return reply(ErrorBody(message=text, error_code="USER", hint=hint, kind="usage"), status=413)


def _with_version(send: Send) -> Send:
    async def respond(message: Message) -> None:
        if message["type"] in {"http.response.start", "websocket.http.response.start"}:
            pair = (SERVICE_VERSION_HEADER.encode(), __version__.encode())
            message["headers"] = [*message.get("headers", []), pair]
        await send(message)

    return respond


def _counted(receive: Receive) -> Receive:
    """Refuse a body that says it is small, or says nothing, and is not."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_REQUEST_BYTES:
            await _drain(receive, message)
            raise _TooLarge
        return message

    return limited


async def _drain(receive: Receive, message: Message | None = None) -> None:
    """Read on, within reason: a client that is still sending does not read the reply."""
    total = 0
    while total < _MAX_DRAINED and (message is None or message.get("more_body", False)):
        message = await receive()
        total += len(message.get("body", b""))


def handle_errors(app: FastAPI) -> None:
    """Give every kind of failure its reply."""

    async def invalid(_: Request, exc: Exception) -> Response:
        if not isinstance(exc, RequestValidationError):
            raise exc
        return reply(ErrorBody(message=_first_problem(exc.errors()), error_code="SCHEMA", kind="usage"), status=422)

    async def by_http(_: Request, exc: Exception) -> Response:
        if not isinstance(exc, HTTPException):
            raise exc
        return reply(
            ErrorBody(message=f"{exc.detail}: no such route here", error_code="NOTFOUND"), status=exc.status_code
        )

    async def too_large(_: Request, exc: Exception) -> Response:
        _log.info("refused a body: %s", exc)
        return _too_large()

    async def by_database(request: Request, exc: Exception) -> Response:
        if not isinstance(exc, DatabaseError):
            raise exc
        if isinstance(exc, IntegrityError | ProgrammingError | DataError):  # our own mistake, not the disk's
            return await unexpected(request, exc)
        _log.error("%s %s failed: %s", request.method, request.url.path, exc.orig)
        text = f"The server's database can't be used: {exc.orig}"
        hint = "Look at its disk and its file, server.sqlite in the server's state folder; running tasks go on."
        return reply(ErrorBody(message=text, error_code="SERVER", hint=hint, kind="service"), status=500)

    async def unexpected(request: Request, exc: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
        text = f"Internal server error: {type(exc).__name__}"
        hint = f"Details are in the server's log, under [{request_id.get()}]."
        return reply(
            ErrorBody(message=text, error_code="SERVER", hint=hint, kind="service"),
            status=500,
        )

    app.add_exception_handler(CasstoreError, _on_purpose)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, by_http)
    app.add_exception_handler(_TooLarge, too_large)
    app.add_exception_handler(DatabaseError, by_database)
    app.add_exception_handler(Exception, unexpected)


async def _on_purpose(request: Request | WebSocket, exc: Exception) -> Response:
    if not isinstance(exc, CasstoreError):
        raise exc
    answer = reply(error_body(exc, workflow_id=request.path_params.get("workflow_id")), status=exc.http_status)
    if isinstance(request, WebSocket):
        await request.send_denial_response(answer)
    return answer


def _first_problem(errors: Sequence[Mapping[str, Any]]) -> str:
    first = errors[0] if errors else {}
    if tuple(first.get("loc", ())) == ("path", "workflow_id"):
        return f"{str(first.get('input', ''))[:100]!r} is not the ID of a workflow"
    place = ".".join(str(part) for part in first.get("loc", ()) if part not in {"query", "path", "body"})
    return f"{place}: {first.get('msg', 'not valid')}"
