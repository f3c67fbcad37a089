"""The routes by which clients log in.

Decided here and only here: paths and parameters, which are OSMO 6.2's.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from casstore.errors import UsageError
from casstore.wire.auth import Jwt, LoginReply, TokenRequest
from casstore_server.api.authenticate import naming
from casstore_server.api.deps import Body, decode
from casstore_server.api.edge import reply
from casstore_server.api.rules import rule
from casstore_server.identity.logins import Logins
from casstore_server.services import audit

router = APIRouter(prefix="/api/auth")

Secret = Annotated[str, Query(max_length=1000)]


def _logins(request: Request) -> Logins:
    found: Logins = request.app.state.logins
    return found


@router.get("/login", **rule("open", reply=LoginReply, errors=(503,)))
def login(request: Request) -> Response:
    """The identity provider that users log in at; nothing where there is none."""
    return reply(_logins(request).provider_reply())


@router.get("/keys", **rule("open", reply=dict[str, list[dict[str, str]]]))
def keys(request: Request) -> Response:
    """The public keys of this server's id tokens (JSON Web Key Set)."""
    found = reply(_logins(request).bearers.public())
    found.headers["cache-control"] = "public, max-age=60"
    return found


@router.post("/jwt/access_token", **rule("open", reply=Jwt, body=TokenRequest, errors=(401, 403)))
def exchange(request: Request, body: Body) -> Response:
    """An id token for a personal token."""
    return _exchanged(request, decode(body, TokenRequest).token)


@router.get("/jwt/access_token", **rule("open", reply=Jwt, errors=(401, 403)), deprecated=True)
def exchange_by_get(request: Request, access_token: Secret) -> Response:
    """The same as OSMO's older clients ask for it: the token is in the address."""
    return _exchanged(request, access_token)


@router.post("/jwt/refresh_token", **rule("open", reply=Jwt, errors=(400,)))
@router.get(
    "/jwt/refresh_token", operation_id="login_refresh_by_get", **rule("open", reply=Jwt, errors=(400,)), deprecated=True
)
def refresh() -> Response:
    """OSMO's tasks ask here for tokens of their own: here they have none, for they never ask the server."""
    raise UsageError(
        "This server gives no tokens to tasks", hint="Give a task a personal token as a credential, if it needs one."
    )


def _exchanged(request: Request, token: str) -> Response:
    logins = _logins(request)
    with naming():
        known = logins.exchange(token, request.state.asking)
    audit.note(user=known.user.name, token=known.name)
    made = logins.bearers.issue(known)
    found = reply(Jwt(token=made.token, expires_at=made.expires_at))
    found.headers["cache-control"] = "no-store"
    return found
