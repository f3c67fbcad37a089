"""Interactive access: the requests that give out keys, and the websockets that they open.

Decided here and only here: paths and parameters (OSMO 6.2's), and how many connections there may be at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query, WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from casstore.errors import CasstoreError, NotFoundError, ServiceError
from casstore.wire.cluster import VersionReply
from casstore.wire.router import CLOSE_TIMEOUT, STREAM_KEY, PluginsReply, RouterReply
from casstore_server.api import bridge
from casstore_server.api.deps import CallerDep, ServicesDep, WorkflowId
from casstore_server.api.edge import reply
from casstore_server.api.rules import rule, socket_rule
from casstore_server.services import cluster, interactive
from casstore_server.services.context import Services
from casstore_server.services.sessions import Session

MAX_SOCKETS = 1024
"""Websockets at a time."""
PAIR_SECONDS = 60.0
"""How long a connection waits for its announcement."""
_log = logging.getLogger(__name__)

router = APIRouter()
Key = Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,128}$")]
Patience = Annotated[float, Query(alias="timeout", allow_inf_nan=False)]
Command = Annotated[str, Query(max_length=40_000)]


@router.get("/api/router/version", **rule("open", reply=VersionReply))
def version() -> Response:
    """The version of the wire; OSMO's clients take a cookie from here, and none is needed."""
    return reply(cluster.version())


@router.get("/api/plugins/configs", **rule("workflow:Read", reply=PluginsReply))
def plugins(services: ServicesDep) -> Response:
    """Plugins: rsync."""
    return reply(interactive.plugins(services))


@router.post(
    "/api/workflow/{workflow_id}/exec/task/{task}", **rule("workflow:Exec", reply=RouterReply, errors=[409, 410, 425])
)
def exec_task(
    services: ServicesDep, caller: CallerDep, workflow_id: WorkflowId, task: str, entry_command: Command = "/bin/bash"
) -> Response:
    """A key to run a program in a task."""
    return reply(interactive.program(services, caller, workflow_id, task, entry_command))


@router.post(
    "/api/workflow/{workflow_id}/exec/group/{group}",
    **rule("workflow:Exec", reply=dict[str, RouterReply], errors=[409, 410, 425]),
)
def exec_group(
    services: ServicesDep, caller: CallerDep, workflow_id: WorkflowId, group: str, entry_command: Command = "/bin/bash"
) -> Response:
    """Keys to run a program in every task of a group."""
    return reply(interactive.programs(services, caller, workflow_id, group, entry_command))


@router.post(
    "/api/workflow/{workflow_id}/portforward/{task}",
    **rule("workflow:Exec", reply=list[RouterReply], errors=[409, 410, 425]),
)
def forward(
    services: ServicesDep,
    caller: CallerDep,
    workflow_id: WorkflowId,
    task: str,
    task_ports: Annotated[list[int], Query(max_length=1000)] = [],  # noqa: B006  # FastAPI copies defaults
    use_udp: bool = False,
) -> Response:
    """Keys to reach ports of a task, in their order."""
    return reply(interactive.forward(services, caller, workflow_id, task, task_ports, udp=use_udp))


@router.post(
    "/api/workflow/{workflow_id}/rsync/task/{task}", **rule("workflow:Exec", reply=RouterReply, errors=[409, 410, 425])
)
def rsync(services: ServicesDep, caller: CallerDep, workflow_id: WorkflowId, task: str) -> Response:
    """A key to speak to the rsync daemon of a task."""
    return reply(interactive.sync(services, caller, workflow_id, task))


@router.post(
    "/api/workflow/{workflow_id}/webserver/{task}", **rule("workflow:Exec", reply=RouterReply, errors=[409, 410, 425])
)
def webserver(services: ServicesDep, caller: CallerDep, workflow_id: WorkflowId, task: str, task_port: int) -> Response:
    """A page of a task, for a browser."""
    return reply(interactive.web(services, caller, workflow_id, task, task_port))


@router.get("/api/router/webserver/{key}", **rule("workflow:Exec", reply=bool))
def webserver_alive(services: ServicesDep, key: Key) -> Response:
    """Whether a page is still there."""
    return reply(services.sessions.page(key.lower()) is not None)


@router.websocket("/api/router/exec/{workflow_id}/client/{key}", **socket_rule("workflow:Exec"))
async def exec_socket(ws: WebSocket, workflow_id: WorkflowId, key: Key) -> None:
    """A program's input and output."""

    async def work(services: Services) -> None:
        session = await asyncio.to_thread(services.sessions.take, key, "exec", workflow_id, _user(ws))
        await bridge.run_program(ws, services.agents, _known(session))

    await _serve(ws, work)


@router.websocket("/api/router/portforward/{workflow_id}/client/{key}", **socket_rule("workflow:Exec"))
async def forward_socket(ws: WebSocket, workflow_id: WorkflowId, key: Key, patience: Patience = PAIR_SECONDS) -> None:
    """A port's control connection (or its datagrams), or one of its connections."""
    await _serve(ws, lambda services: _forward(ws, services, "portforward", workflow_id, key, patience))


@router.websocket("/api/router/rsync/{workflow_id}/client/{key}", **socket_rule("workflow:Exec"))
async def rsync_socket(ws: WebSocket, workflow_id: WorkflowId, key: Key, patience: Patience = PAIR_SECONDS) -> None:
    """The control connection for rsync, or one of its connections."""
    await _serve(ws, lambda services: _forward(ws, services, "rsync", workflow_id, key, patience))


async def _forward(ws: WebSocket, services: Services, use: str, workflow_id: str, key: str, patience: float) -> None:
    sessions, user = services.sessions, _user(ws)
    if key.startswith(STREAM_KEY):
        found = await sessions.wait(key, use, workflow_id, user, min(max(patience, 1.0), PAIR_SECONDS))
        if found is None:
            await bridge.close(ws, CLOSE_TIMEOUT, "Router connection timeout")
            return
        await bridge.stream(ws, services.agents, found)
        return
    session = _known(await asyncio.to_thread(sessions.take, key, use, workflow_id, user))
    if session.request.attach == "udp":
        await bridge.datagrams(ws, services.agents, session)
    else:
        await bridge.control(ws, services.agents, session, sessions)


def _user(ws: WebSocket) -> str:
    user: str = ws.state.caller.user
    return user


def _known(session: Session | None) -> Session:
    if session is None:
        raise NotFoundError("This key is not known here, or was used", hint="Ask for another one.")
    return session


async def _serve(ws: WebSocket, work: Callable[[Services], Awaitable[None]]) -> None:
    """Serve a websocket; every way in which that ends closes it, with the reason where there is one."""
    slots: asyncio.Semaphore = ws.app.state.sockets
    await ws.accept()
    try:
        if slots.locked():
            raise ServiceError(f"There are {MAX_SOCKETS} interactive connections already")
        async with slots:
            await work(ws.app.state.services)
    except WebSocketDisconnect:
        return
    except CasstoreError as error:
        await bridge.close_with(ws, error)
    except Exception:  # noqa: BLE001 - one connection must not harm the others
        _log.exception("%s failed", ws.url.path)
        await bridge.close(ws, 1011, "Internal server error")
    else:
        await bridge.close(ws)
