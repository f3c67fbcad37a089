"""What happens to every request before a route sees it, and to every reply after.

Decided here and only here: double slashes are collapsed (OSMO's client sends them), that no address has a NUL, which
PostgreSQL stores nowhere, how large a body may be, and that every error leaves as ``{message, error_code,
workflow_id}``. Who the caller is is found out once a route is (see ``api.rules``). Neither a token nor a name is
anything that a browser sends by itself, so that no page of another site can ask as somebody; through a gateway, which
may take cookies, no page of another origin changes anything.
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
from fastapi.routing import APIRoute
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
    WARNING_HEADER,
    ErrorBody,
    encode_warning,
    error_body,
)
from casstore.wire.v1 import BLOB_PATH, MAX_BLOB
from casstore_server.api.authenticate import Door
from casstore_server.api.rules import all_routes
from casstore_server.identity.failures import LoginError, TooManyError
from casstore_server.logs import request_id

__all__ = ["Edge", "handle_errors", "reply"]

_log = logging.getLogger(__name__)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_DRAINED = 4 * MAX_REQUEST_BYTES
_SLASHES = re.compile(r"/{2,}")


def reply(value: Any, *, warnings: Sequence[str] = (), status: int = 200) -> Response:
    """A JSON reply; ``warnings`` travel in a header."""
    headers = {WARNING_HEADER: encode_warning(list(warnings))} if warnings else {}
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json", headers=headers)


def refusal(error: CasstoreError, *, workflow_id: str | None = None) -> Response:
    """The reply that says what is wrong."""
    answer = reply(error_body(error, workflow_id=workflow_id), status=error.http_status)
    if isinstance(error, LoginError):
        answer.headers["www-authenticate"] = "Bearer"
    if isinstance(error, TooManyError):
        answer.headers["retry-after"] = str(error.seconds)
    return answer


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

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
            most = _most(scope["path"])
            if not length.isdigit() or int(length) > most:
                raise _TooLarge
            if "\0" in scope["path"] or b"%00" in scope["query_string"]:
                raise UsageError("The address of the request has a NUL character", hint="No name has one.")
            if scope["type"] == "websocket":
                _check_origin(headers)
            asking = self._door.asking(scope)
            if asking.vouched and scope["type"] == "http" and scope["method"] not in _READS:
                _check_site(headers, self._door)
            scope.setdefault("state", {}).update(asking=asking, caller=None)
        except CasstoreError as exc:
            await refusal(exc)(scope, receive, respond)
            return
        except _TooLarge:
            await _drain(receive)
            await _too_large()(scope, receive, respond)
            return
        await self._app(scope, _counted(receive, most), respond)


def _check_origin(headers: Headers) -> None:
    """Pages may open websockets to anywhere, and say from where they do: no page of another origin gets one."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
        raise AccessError("This server has no websockets for pages of other origins")


def _check_site(headers: Headers, door: Door) -> None:
    """A gateway may know a browser by a cookie, which goes along with what pages of other sites send, too."""
    origin = headers.get("origin")
    fits = origin is None or door.is_own(urlsplit(origin).netloc, headers)
    if not fits or headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        raise AccessError("This server changes nothing for pages of other origins")


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


def _most(path: str) -> int:
    """Bytes that a body may have: packs go to signed addresses."""
    return MAX_BLOB if BLOB_PATH.match(path) else MAX_REQUEST_BYTES


def _counted(receive: Receive, most: int) -> Receive:
    """Refuse a body that says it is small, or says nothing, and is not."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
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

    async def by_http(request: Request, exc: Exception) -> Response:
        if not isinstance(exc, HTTPException):
            raise exc
        if exc.status_code != 405:
            text = f"{exc.detail}: no such route here"
            return reply(ErrorBody(message=text, error_code="NOTFOUND", kind="not_found"), status=exc.status_code)
        allowed = ", ".join(_answered(request))
        text = f"{request.method} is nothing that this route answers; it answers {allowed}"
        done = reply(ErrorBody(message=text, error_code="USER", kind="usage"), status=405)
        done.headers["Allow"] = allowed
        return done

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
    return refusal(exc, workflow_id=request.path_params.get("workflow_id"))


def _answered(request: Request) -> list[str]:
    """The methods that the path of a request has: those of the first template that it fits."""
    found: set[str] = set()
    template = ""
    for route in all_routes(request.app.routes):
        if isinstance(route, APIRoute) and route.path_regex.match(request.url.path):
            template = template or route.path
            found |= (route.methods or set()) if route.path == template else set()
    return sorted(found)


def _first_problem(errors: Sequence[Mapping[str, Any]]) -> str:
    first = errors[0] if errors else {}
    if tuple(first.get("loc", ())) == ("path", "workflow_id"):
        return f"{str(first.get('input', ''))[:100]!r} is not the ID of a workflow"
    place = ".".join(str(part) for part in first.get("loc", ()) if part not in {"query", "path", "body"})
    said = str(first.get("msg", "not valid"))
    return f"{place}: {said}" if place else f"The body of the request can't be understood: {said}"
