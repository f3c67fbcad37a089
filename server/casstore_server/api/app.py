"""The application: routes, errors, and the edge around them.

Decided here and only here: how these are put together.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from casstore import __version__
from casstore_server.api import (
    apps,
    audit,
    auth,
    cluster,
    configs,
    credentials,
    datasets,
    following,
    login,
    pages,
    router,
    transfer,
    versions,
    workflows,
)
from casstore_server.api.authenticate import Door, make_logins
from casstore_server.api.documents import document
from casstore_server.api.edge import Edge, handle_errors
from casstore_server.api.gate import Gate, Wanted
from casstore_server.api.observe import Observed
from casstore_server.api.rules import all_routes, check_rules
from casstore_server.api.webproxy import WebProxy
from casstore_server.db.audit import AuditLog
from casstore_server.services.audit import Trail
from casstore_server.services.context import Services

__all__ = ["assemble", "create_app", "described"]


def assemble() -> FastAPI:
    """The routes, without anything behind them."""
    app = FastAPI(title="casstore", version=__version__, openapi_url=None)
    app.include_router(apps.router)
    app.include_router(auth.router)
    app.include_router(audit.router)
    app.include_router(cluster.router)
    app.include_router(credentials.router)
    app.include_router(configs.router)
    app.include_router(datasets.router)
    app.include_router(following.router)
    app.include_router(login.router)
    app.include_router(workflows.router)
    app.include_router(router.router)
    app.include_router(pages.router)
    app.include_router(transfer.router)
    app.include_router(versions.router)
    handle_errors(app)
    check_rules(app.routes)
    return app


def described() -> dict[str, Any]:
    """The OpenAPI document, without a server."""
    return document(list(all_routes(assemble().routes)))


def create_app(services: Services) -> ASGIApp:
    """The application over these services."""
    app = assemble()
    app.state.services = services
    app.state.logins = make_logins(services)
    app.state.sockets = asyncio.Semaphore(router.MAX_SOCKETS)
    door = Door(services.settings.identity, services.settings.host)
    trail = Trail(AuditLog(services.database), services.settings.identity.audit_days)
    gate = Gate(app, lambda: _clients(services))
    guarded = audit.Audited(Edge(gate, door), trail)
    return Observed(WebProxy(guarded, services, app.state.logins), services.observers)


def _clients(services: Services) -> Wanted:
    found = services.config.last_good().service.cli_config
    return Wanted(found.min_supported_version or "", found.latest_version or "", found.client_install_url or "")
