"""The routes about configs, thin over ``services.configs``.

Decided here and only here: paths and parameters (OSMO 6.2's), and which type takes which method.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import NoneType
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from casstore.errors import NotFoundError, UsageError
from casstore.wire.config import ConfigChange, ConfigHistory, DiffReply, Rollback, TagsChange, parse_type
from casstore_server.api.deps import Body, CallerDep, ServicesDep, decode
from casstore_server.api.edge import reply
from casstore_server.api.rules import rule
from casstore_server.db.configs import HistoryFilter
from casstore_server.services import configs

router = APIRouter()
Kind = Annotated[str, Path(pattern=r"^[A-Za-z_]{1,32}$")]
Name = Annotated[str, Path(min_length=1, max_length=64)]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
Time = Annotated[str | None, Query(max_length=64)]
_READ = rule("config:Read", reply=dict[str, Any] | list[Any], errors=[404])
_CHANGE = rule("config:Write", reply=NoneType, body=ConfigChange, errors=[400, 404, 409])
_REMOVE = rule("config:Write", reply=NoneType, body=ConfigChange | None, errors=[400, 404, 409])
_PUT = frozenset({
    "BACKEND_TEST", "DATASET", "GROUP_TEMPLATE", "POD_TEMPLATE", "POOL", "RESOURCE_VALIDATION", "ROLE", "SERVICE",
    "WORKFLOW",
})  # fmt: skip
_PATCH_ALL = frozenset({"DATASET", "SERVICE", "WORKFLOW"})
_PATCH_ONE = frozenset({"BACKEND_TEST", "DATASET", "POOL"})


@router.get("/api/configs/history", **rule("config:Read", reply=ConfigHistory))
def history(
    services: ServicesDep,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(gt=0, le=1000)] = 20,
    order: Annotated[str, Query(pattern="^(ASC|DESC|asc|desc)$")] = "ASC",
    config_types: Annotated[list[str], Query(max_length=50)] = [],  # noqa: B006  # FastAPI copies defaults
    name: Annotated[str | None, Query(max_length=255)] = None,
    revision: Annotated[int | None, Query(gt=0, le=2**31 - 1)] = None,
    tags: Annotated[list[str], Query(max_length=50)] = [],  # noqa: B006  # as above
    created_before: Time = None,
    created_after: Time = None,
    at_timestamp: Time = None,
    omit_data: bool = False,
) -> Response:
    """Revisions of configs."""
    if at_timestamp is not None and (created_before is not None or created_after is not None):
        raise UsageError("at_timestamp can't be given with created_before or created_after")
    wanted = HistoryFilter(
        kinds=[parse_type(kind) for kind in config_types],
        name=name,
        revision=revision,
        tags=tags,
        before=_seconds(created_before, "created_before"),
        after=_seconds(created_after, "created_after"),
        at=_seconds(at_timestamp, "at_timestamp"),
        limit=limit,
        offset=offset,
        descending=order.upper() == "DESC",
        data=not omit_data,
    )
    return reply(configs.history(services, wanted))


@router.post(
    "/api/configs/history/rollback", **rule("config:Write", reply=NoneType, body=Rollback, errors=[400, 404, 409])
)
def rollback(services: ServicesDep, caller: CallerDep, body: Body) -> Response:
    """Make a revision that is as an old one was."""
    wanted = decode(body, Rollback)
    return reply(None, warnings=configs.rollback(services, caller, parse_type(wanted.config_type), wanted))


@router.post(
    "/api/configs/history/{kind}/revision/{revision}/tags",
    **rule("config:Write", reply=NoneType, body=TagsChange, errors=[400, 404]),
)
def tags(services: ServicesDep, kind: Kind, revision: Number, body: Body) -> Response:
    """Change the tags of a revision."""
    configs.tag(services, parse_type(kind), revision, decode(body, TagsChange))
    return reply(None)


@router.delete(
    "/api/configs/history/{kind}/revision/{revision}", **rule("config:Write", reply=NoneType, errors=[404, 409])
)
def forget(services: ServicesDep, caller: CallerDep, kind: Kind, revision: Number) -> Response:
    """Take a revision out of the history."""
    configs.forget(services, caller, parse_type(kind), revision)
    return reply(None)


@router.get("/api/configs/diff", **rule("config:Read", reply=DiffReply, errors=[404]))
def diff(
    services: ServicesDep,
    config_type: Annotated[str, Query(max_length=40)],
    first_revision: Annotated[int, Query(gt=0, le=2**31 - 1)],
    second_revision: Annotated[int, Query(gt=0, le=2**31 - 1)],
) -> Response:
    """Two revisions, secrets masked."""
    return reply(configs.diff(services, parse_type(config_type), first_revision, second_revision))


@router.get("/api/configs/pool/{name}/platform", **_READ)
def platforms(services: ServicesDep, caller: CallerDep, name: Name) -> Response:
    """The platforms of a pool."""
    return reply(configs.show_one(services, caller, "POOL", name).get("platforms") or {})


@router.get("/api/configs/pool/{name}/platform/{platform}", **_READ)
def platform(services: ServicesDep, caller: CallerDep, name: Name, platform: Name) -> Response:
    """A platform of a pool."""
    found = configs.show_one(services, caller, "POOL", name).get("platforms") or {}
    if platform not in found:
        raise NotFoundError(f"Pool {name} has no platform {platform}")
    return reply(found[platform])


@router.put("/api/configs/pool/{name}/platform/{platform}", **_CHANGE)
def put_platform(services: ServicesDep, caller: CallerDep, name: Name, platform: Name, body: Body) -> Response:
    """Set a platform of a pool."""
    change = decode(body, ConfigChange)
    change.configs_dict, change.configs = {"platforms": {platform: change.configs}}, None
    return reply(None, warnings=configs.patch(services, caller, "POOL", name, change))


@router.put("/api/configs/pool/{name}/rename", **_CHANGE)
def rename(services: ServicesDep, caller: CallerDep, name: Name, body: Body) -> Response:
    """Give a pool another name."""
    return reply(None, warnings=configs.rename(services, caller, name, "", decode(body, ConfigChange)))


@router.put("/api/configs/pool/{name}/platform/{platform}/rename", **_CHANGE)
def rename_platform(services: ServicesDep, caller: CallerDep, name: Name, platform: Name, body: Body) -> Response:
    """Give a platform another name."""
    return reply(None, warnings=configs.rename(services, caller, name, platform, decode(body, ConfigChange)))


@router.get("/api/configs/{kind}", **_READ)
def show(services: ServicesDep, caller: CallerDep, kind: Kind) -> Response:
    """All configs of a type."""
    return reply(configs.show(services, caller, parse_type(kind)))


@router.get("/api/configs/{kind}/{name}", **_READ)
def show_one(services: ServicesDep, caller: CallerDep, kind: Kind, name: Name) -> Response:
    """One config."""
    return reply(configs.show_one(services, caller, parse_type(kind), name))


@router.put("/api/configs/{kind}", **_CHANGE)
def put(services: ServicesDep, caller: CallerDep, kind: Kind, body: Body) -> Response:
    """Set the configs that are given; others of the type stay."""
    return _changed(services, caller, kind, "", body, _PUT, configs.put)


@router.put("/api/configs/{kind}/{name}", **_CHANGE)
def put_one(services: ServicesDep, caller: CallerDep, kind: Kind, name: Name, body: Body) -> Response:
    """Set one config."""
    return _changed(services, caller, kind, name, body, _PUT - {"SERVICE", "WORKFLOW"}, configs.put)


@router.patch("/api/configs/{kind}", **_CHANGE)
def patch(services: ServicesDep, caller: CallerDep, kind: Kind, body: Body) -> Response:
    """Change fields (RFC 7396)."""
    return _changed(services, caller, kind, "", body, _PATCH_ALL, configs.patch)


@router.patch("/api/configs/{kind}/{name}", **_CHANGE)
def patch_one(services: ServicesDep, caller: CallerDep, kind: Kind, name: Name, body: Body) -> Response:
    """Change fields of one config (RFC 7396)."""
    return _changed(services, caller, kind, name, body, _PATCH_ONE, configs.patch)


@router.post("/api/configs/{kind}/{name}", **_CHANGE)
def post_one(services: ServicesDep, caller: CallerDep, kind: Kind, name: Name, body: Body) -> Response:
    """Change fields of a backend."""
    return _changed(services, caller, kind, name, body, frozenset({"BACKEND"}), configs.patch)


@router.delete("/api/configs/{kind}/{name}", **_REMOVE)
def remove(services: ServicesDep, caller: CallerDep, kind: Kind, name: Name, body: Body) -> Response:
    """Take a config away."""
    kinds = _PUT - {"SERVICE", "WORKFLOW"} | {"BACKEND"}
    return _changed(services, caller, kind, name, body or b"{}", kinds, configs.remove)


def _changed(
    services: ServicesDep, caller: CallerDep, kind: str, name: str, body: bytes, kinds: frozenset[str], work: Any
) -> Response:
    found = parse_type(kind)
    if found not in kinds:
        raise UsageError(f"This can't be done with configs of type {found}")
    change = decode(body, ConfigChange)
    return reply(None, warnings=work(services, caller, found, name, change))


def _seconds(text: str | None, what: str) -> float | None:
    """A time in ISO 8601; without a zone it is UTC."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{what} is not a time such as 2026-01-31T12:00:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
