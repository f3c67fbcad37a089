"""The routes about credentials, thin over ``services``.

Decided here and only here: paths, and that a body that is not one of OSMO's three is answered with 422.
"""

from __future__ import annotations

from types import NoneType

import msgspec
from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from casstore.structs import from_json
from casstore.wire.credentials import CredentialBody, CredentialList
from casstore_server.api.deps import Body, CallerDep, ServicesDep
from casstore_server.api.edge import reply
from casstore_server.api.rules import STORAGE, rule
from casstore_server.services import credentials

router = APIRouter()


@router.get("/api/credentials", **rule("credential:Own", reply=CredentialList))
def list_all(services: ServicesDep, caller: CallerDep) -> Response:
    """The caller's credentials, without their secrets."""
    return reply(credentials.list_all(services, caller))


@router.post(
    "/api/credentials/{name}", **rule("credential:Own", reply=NoneType, body=CredentialBody, errors=[409, *STORAGE])
)
def put(services: ServicesDep, caller: CallerDep, name: str, body: Body, validate: bool = True) -> Response:
    """Keep a credential, in place of the one that had this name or this profile. ``validate`` is ours."""
    gone = credentials.put(services, caller, name, _decoded(body), validate=validate)
    return reply(None, warnings=[f"Credential {other} was for the same profile: it is gone." for other in gone])


@router.delete("/api/credentials/{name}", **rule("credential:Own", reply=CredentialList))
def delete(services: ServicesDep, caller: CallerDep, name: str) -> Response:
    """Forget a credential."""
    return reply(credentials.delete(services, caller, name))


def _decoded(body: bytes) -> CredentialBody:
    """The body; what is wrong with it names fields, and never a value."""
    try:
        found = from_json(body, CredentialBody)
    except msgspec.ValidationError as exc:
        raise RequestValidationError([{"loc": ("body",), "msg": str(exc)}]) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise RequestValidationError([{"loc": ("body",), "msg": "this is not JSON"}]) from None
    if sum(part is not None for part in msgspec.structs.astuple(found)) != 1:
        raise RequestValidationError([{"loc": ("body",), "msg": "exactly one kind of credential must be given"}])
    return found
