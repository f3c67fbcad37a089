"""Who changed what: written down at the edge of the application, where nothing is missed, and shown.

Decided here and only here: which requests are written down: those that change something (by their method), those that
are refused, and logins with a personal token; before the reply leaves. Keys of the router never are. What clients of
the store exchange with a bucket while they upload (objects, packs, addresses) is not: what comes of it is a version,
which names who made it.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from casstore.wire.audit import AuditReply
from casstore_server.api.deps import Limit, ServicesDep
from casstore_server.api.edge import reply
from casstore_server.api.rules import action_of, rule
from casstore_server.db.audit import NewAudit
from casstore_server.identity.caller import Caller
from casstore_server.logs import request_id
from casstore_server.services import audit

__all__ = ["Audited", "router"]

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSALS: Final = frozenset({401, 403, 429})
_LOGIN: Final = "/api/auth/jwt/access_token"
_PARTS: Final = re.compile(r"/api/v1/bucket/\{bucket\}/(?:object|objects|urls|packs|index|blob)(?:/|$)")
_SECRET: Final = frozenset({"key"})

router = APIRouter()
Text = Annotated[str | None, Query(max_length=512)]
Moment = Annotated[str | None, Query(max_length=40)]


@router.get("/api/v1/audit", **rule("audit:Read", reply=AuditReply))
def entries(  # FastAPI passes parameters by name
    services: ServicesDep,
    user: Text = None,
    action: Text = None,
    outcome: Text = None,
    resource: Text = None,
    after: Moment = None,
    before: Moment = None,
    older_than: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Limit = 100,
) -> Response:
    """Who changed what and who was refused, the newest first; ``resource`` is the beginning of a path."""
    return reply(
        audit.page(
            services,
            user=user,
            action=action,
            outcome=outcome,
            resource=resource,
            after=after,
            before=before,
            older_than=older_than,
            limit=limit,
        )
    )


class Audited:
    """An application whose changes and refusals are written down."""

    def __init__(self, app: ASGIApp, trail: audit.Trail) -> None:
        self._app = app
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        notes = audit.collecting()

        async def respond(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                await self._told(scope, int(message["status"]), notes)
            await send(message)

        await self._app(scope, receive, respond)

    async def _told(self, scope: Scope, status: int, notes: dict[str, str]) -> None:
        outcome = _outcome(scope, status)
        if outcome is None or not self._trail.wants(outcome, _address(scope), notes):
            return
        await asyncio.to_thread(self._trail.write, _entry(scope, status, outcome, notes))


def _outcome(scope: Scope, status: int) -> str | None:
    """What is written down; None when it is nothing."""
    if status in _REFUSALS:
        return audit.REFUSED
    path = str(getattr(scope.get("route"), "path", ""))
    reads = scope["type"] == "websocket" or scope["method"] in _READS
    if reads or not path or _PARTS.match(path) or (_action(scope) == "open" and path != _LOGIN):
        return None
    if status >= 500:
        return audit.FAILED
    return audit.DONE if status < 400 else None


def _action(scope: Scope) -> str:
    route: Any = scope.get("route")
    return action_of(route) or "" if isinstance(route, APIRoute | APIWebSocketRoute) else ""


def _address(scope: Scope) -> str:
    asking = scope.get("state", {}).get("asking")
    client = scope.get("client")
    return asking.address if asking is not None else str(client[0]) if client else ""


def _entry(scope: Scope, status: int, outcome: str, notes: dict[str, str]) -> NewAudit:
    caller: Caller | None = scope.get("state", {}).get("caller")
    template = str(getattr(scope.get("route"), "path", ""))
    resource = template or str(scope["path"])
    for name, value in scope.get("path_params", {}).items():
        for form in (f"{{{name}}}", f"{{{name}:path}}"):
            resource = resource.replace(form, "***" if name in _SECRET else str(value))
    detail = {"method": scope.get("method", "WEBSOCKET"), "status": str(status), **notes}
    detail.pop("", None)
    return NewAudit(
        at=time.time(),
        user=caller.user if caller is not None else detail.pop("user", ""),
        token=caller.token if caller is not None else detail.pop("token", None),
        action="login" if template == _LOGIN else _action(scope),
        resource=resource,
        outcome=outcome,
        address=_address(scope),
        request_id=request_id.get(),
        detail=msgspec.json.encode(detail).decode(),
    )
