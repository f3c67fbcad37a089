"""The routes about pools, nodes, buckets, profiles and the server itself, thin over ``services``.

Decided here and only here: paths and parameters: OSMO 6.2's, and ``/api/v1`` for our own.
"""

from __future__ import annotations

from types import NoneType

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from casstore.errors import NotFoundError
from casstore.wire.cluster import (
    BackendsReply,
    BucketsReply,
    PoolsReply,
    ProfileChange,
    ProfileReply,
    QuotaReply,
    ResourcesReply,
    ServerReply,
    TasksEnded,
    VersionReply,
)
from casstore_server.api.deps import Body, CallerDep, Names, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.rules import rule
from casstore_server.services import cluster, readiness

router = APIRouter()


@router.get("/health", **rule("open", reply=dict[str, str]))
def health() -> Response:
    """Whether the server answers."""
    return reply({"status": "OK"})


@router.get("/ready", **rule("open", reply=readiness.Readiness, errors={503: readiness.Readiness}))
def ready(services: ServicesDep) -> Response:
    """Whether the server can do its work: 200, or 503 with what is wrong."""
    found = readiness.check(services)
    return reply(found, status=200 if found.status == "OK" else 503)


@router.get("/metrics", **rule("metrics:Read", reply=str, media="text/plain", errors=[404]))
def metrics(services: ServicesDep) -> Response:
    """Figures for Prometheus."""
    if services.metrics is None:
        raise NotFoundError(
            "This server has no metrics",
            hint="They are there once they are installed (pip install 'casstore[metrics]') and not switched off.",
        )
    return Response(services.metrics.render(), media_type=services.metrics.content_type)


@router.get("/api/version", **rule("open", reply=VersionReply))
def version() -> Response:
    """The version of the wire."""
    return reply(cluster.version())


@router.get("/client/version", **rule("open", reply=VersionReply, also={"text/plain": str}))
def client_version(request: Request) -> Response:
    """The version of the wire, for scripts that install clients: as text where that is accepted."""
    found = cluster.version()
    if "text/plain" in request.headers.get("accept", ""):
        return PlainTextResponse(f"{found.major}.{found.minor}.{found.revision}")
    return reply(found)


@router.get("/api/v1/server", **rule("server:Read", reply=ServerReply))
def server(services: ServicesDep) -> Response:
    """The server itself: product version, process, isolation, how much is running."""
    return reply(cluster.server(services))


@router.post("/api/v1/server/end-tasks", **rule("server:Manage", reply=TasksEnded))
def end_tasks(services: ServicesDep) -> Response:
    """End everything that runs; it begins again with the next server."""
    return reply(cluster.end_tasks(services))


@router.get("/api/profile/settings", **rule("profile:Own", reply=ProfileReply))
def profile(services: ServicesDep, caller: CallerDep) -> Response:
    """The caller's settings."""
    return reply(cluster.profile(services, caller))


@router.post("/api/profile/settings", **rule("profile:Own", reply=NoneType, body=ProfileChange, errors=[404]))
def change_profile(services: ServicesDep, caller: CallerDep, body: Body) -> Response:
    """Change the caller's settings."""
    cluster.change_profile(services, caller, decode(body, ProfileChange))
    return reply(None)


@router.get("/api/pool", **rule("pool:Read", reply=PoolsReply, errors=[404]))
def pools(services: ServicesDep, caller: CallerDep, pools: Names = [], all_pools: bool = False) -> Response:  # noqa: B006  # FastAPI copies defaults
    """Pools with their platforms."""
    return reply(cluster.pools(services, caller, () if all_pools else pools))


@router.get("/api/pool_quota", **rule("pool:Read", reply=QuotaReply, errors=[404]))
def quota(services: ServicesDep, caller: CallerDep, pools: Names = [], all_pools: bool = False) -> Response:  # noqa: B006  # FastAPI copies defaults
    """Pools with their use of GPUs."""
    return reply(cluster.quota(services, caller, () if all_pools else pools))


@router.get("/api/resources", **rule("pool:Read", reply=ResourcesReply, errors=[404]))
def resources(
    services: ServicesDep,
    caller: CallerDep,
    pools: Names = [],  # noqa: B006  # FastAPI copies defaults
    platforms: Names = [],  # noqa: B006  # FastAPI copies defaults
    all_pools: bool = False,
) -> Response:
    """Nodes."""
    return reply(cluster.resources(services, caller, () if all_pools else pools, platforms))


@router.get("/api/resources/{node}", **rule("pool:Read", reply=ResourcesReply))
def resource(services: ServicesDep, caller: CallerDep, node: str) -> Response:
    """One node."""
    return reply(cluster.resources(services, caller, node_name=node))


@router.get("/api/bucket", **rule("dataset:Read", reply=BucketsReply))
def buckets(services: ServicesDep, caller: CallerDep, default_only: bool = False) -> Response:
    """Buckets."""
    return reply(cluster.buckets(services, caller, default_only=default_only))


@router.get("/api/configs/backend", **rule("pool:Read", reply=BackendsReply))
def backends(services: ServicesDep, caller: CallerDep) -> Response:
    """Where workflows run."""
    return reply(cluster.backends(services, caller))


@router.get("/api/users", **rule("workflow:Read", reply=list[str]))
def users(services: ServicesDep, caller: CallerDep) -> Response:
    """Everybody who has submitted a workflow."""
    return reply(cluster.users(services, caller))
