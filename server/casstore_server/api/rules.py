"""What each route asks of whoever calls it, and what it says of itself.

Decided here and only here: that every route has exactly one rule and that an application with a route that has none
does not start; that a right on a pool or a bucket is checked against the ``pool`` or ``bucket`` of the path; and that a
rule speaks before anything of the request is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from casstore_server.api.authenticate import authenticate, public_address
from casstore_server.identity.actions import Action, scope_kind

__all__ = ["STORAGE", "Told", "action_of", "all_routes", "check_rules", "rule", "socket_rule", "told_of"]


class Told(NamedTuple):
    """What a rule says of requests and replies; see ``rule``."""

    reply: Any = None
    body: Any = None
    media: str = "application/json"
    also: Mapping[str, Any] = MappingProxyType({})
    errors: Mapping[int, Any] = MappingProxyType({})


STORAGE = (502, 503, 507)
"""The statuses of errors of what reads or writes buckets."""
_NOTHING = Told()


def rule(
    action: Action,
    *,
    reply: Any = None,
    body: Any = None,
    media: str = "application/json",
    also: Mapping[str, Any] = MappingProxyType({}),
    errors: Sequence[int] | Mapping[int, Any] = (),
) -> dict[str, Any]:
    """For the decorator of a route: ``@router.get("/api/pool", **rule("pool:Read", reply=PoolsReply))``.

    ``reply`` and ``body`` are the types of what is answered and sent: ``NoneType`` answers null, a body that may be
    left out is ``... | None``, bytes are sent as they are. ``media`` is how the answer is written, ``also`` has the
    types of those that are written in other ways for whoever asks for them. ``errors`` are the statuses that this route
    may answer with besides those that every route has: ``documents.EVERYWHERE``, 401 where it takes a user, 404 where
    its path has names, ``STORAGE`` where one is a bucket's, and 422 where it has parameters. A mapping gives each the
    type of its reply, where that is not the body of an error.
    """
    others = errors if isinstance(errors, Mapping) else dict.fromkeys(errors)
    return {"dependencies": [Depends(_check(action, Told(reply, body, media, also, others)))]}


def socket_rule(action: Action) -> dict[str, Any]:
    """As ``rule``, for a websocket."""
    return {"dependencies": [Depends(_check(action))]}


def _check(action: Action, told: Told = _NOTHING) -> Callable[[HTTPConnection], Any]:
    kind = scope_kind(action)

    async def check_open(connection: HTTPConnection) -> None:
        public_address(connection)

    def check(connection: HTTPConnection) -> None:
        caller = authenticate(connection)
        name = connection.path_params.get(kind) if kind else None
        caller.require(action, **({kind: name} if kind and name is not None else {}))

    chosen: Callable[[HTTPConnection], Any] = check_open if action == "open" else check
    chosen.action, chosen.told = action, told  # type: ignore[attr-defined]  # what it is known by
    return chosen


def action_of(route: APIRoute | APIWebSocketRoute) -> Action | None:
    """The action of a route's rule; None when it has no rule, or more than one."""
    found = [action for action in map(_action, route.dependant.dependencies) if action is not None]
    return found[0] if len(found) == 1 else None


def _action(dependant: Dependant) -> Action | None:
    found: Action | None = getattr(dependant.call, "action", None)
    return found


def told_of(route: APIRoute) -> Told:
    """What a route's rule says of its requests and replies."""
    found = [getattr(dependant.call, "told", None) for dependant in route.dependant.dependencies]
    return next((told for told in found if told is not None), _NOTHING)


def all_routes(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """The routes, with those of routers in routers in their place."""
    for route in routes:
        inner: Any = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from all_routes(inner.routes)


def check_rules(routes: Iterable[BaseRoute]) -> None:
    """Raise ``RuntimeError`` naming a route that has no rule, or several."""
    for route in all_routes(routes):
        if isinstance(route, APIRoute | APIWebSocketRoute):
            if action_of(route) is None:
                raise RuntimeError(f"{route.path} must have one rule: see api.rules")
        else:
            raise RuntimeError(f"{getattr(route, 'path', route)} is a route without a rule: see api.rules")  # noqa: TRY004
