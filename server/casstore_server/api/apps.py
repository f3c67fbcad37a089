"""The routes of apps, thin over ``services``.

Decided here and only here: paths and parameters, which are OSMO 6.2's. A body is a JSON string.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import PlainTextResponse, Response

from casstore.wire.app import AppDeleted, AppEdit, AppList, AppReply
from casstore_server.api.deps import Body, CallerDep, Limit, Names, Offset, Order, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.rules import rule
from casstore_server.services import apps

router = APIRouter(prefix="/api/app")

Version = Annotated[int | None, Query(ge=1, le=10**9)]


@router.get("", **rule("app:Read", reply=AppList))
def list_apps(  # FastAPI passes parameters by name
    services: ServicesDep,
    caller: CallerDep,
    users: Names = [],  # noqa: B006  # FastAPI copies defaults
    name: str | None = None,
    all_users: bool = False,
    limit: Limit = 20,
    offset: Offset = 0,
    order: Order = "DESC",
) -> Response:
    """A page of apps; without ``users`` and ``all_users`` the caller's own."""
    owners = () if all_users else users or (caller.user,)
    oldest_first = order.upper() == "ASC"
    return reply(
        apps.list_apps(services, owners=owners, name=name, limit=limit, offset=offset, oldest_first=oldest_first)
    )


@router.get("/user/{name}", **rule("app:Read", reply=AppReply))
def get(
    services: ServicesDep, name: str, version: Version = None, limit: Limit = 20, order: Order = "DESC"
) -> Response:
    """One app with its versions."""
    return reply(apps.get(services, name, number=version, limit=limit, oldest_first=order.upper() == "ASC"))


@router.get("/user/{name}/spec", **rule("app:Read", reply=str, media="text/plain"))
def spec(services: ServicesDep, name: str, version: Version = None) -> Response:
    """The workflow file of an app."""
    return PlainTextResponse(apps.spec(services, name, version))


@router.post("/user/{name}", **rule("app:Write", reply=AppEdit, body=str, errors=[409]))
def create(services: ServicesDep, caller: CallerDep, name: str, body: Body, description: str = "") -> Response:
    """Make an app."""
    return reply(apps.create(services, caller, name, description=description, text=decode(body, str)))


@router.patch("/user/{name}", **rule("app:Write", reply=AppEdit, body=str, errors=[409]))
def update(services: ServicesDep, caller: CallerDep, name: str, body: Body) -> Response:
    """Add a version to an app."""
    return reply(apps.update(services, caller, name, text=decode(body, str)))


@router.delete("/user/{name}", **rule("app:Write", reply=AppDeleted))
def delete(
    services: ServicesDep, caller: CallerDep, name: str, version: Version = None, all_versions: bool = False
) -> Response:
    """Delete one version of an app, or all."""
    return reply(apps.delete(services, caller, name, number=version, everything=all_versions))


@router.post("/user/{name}/rename", **rule("app:Write", reply=str, body=str, errors=[409]))
def rename(services: ServicesDep, caller: CallerDep, name: str, body: Body) -> Response:
    """Give an app another name."""
    return reply(apps.rename(services, caller, name, decode(body, str)))
