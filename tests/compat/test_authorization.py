"""Who may do what, for every route there is: the routes are asked for, so that none is forgotten.

A route that is new has to be written down in ``ROUTES``, with the right that it takes; then it is tried as each of
``PEOPLE``, on what is theirs and on what is others', in pools and buckets where they have rights and where not.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from casstore.testing.http import Http, Reply
from casstore_server.api.app import assemble, create_app
from casstore_server.api.rules import action_of, all_routes, check_rules, rule
from casstore_server.db.identity import People
from casstore_server.identity.actions import Action, Policy, Role, grants_of
from casstore_server.run import answering
from tests.compat.conftest import HELLO, Server

READ, CREATE, CHANGE, EXEC = "workflow:Read", "workflow:Create", "workflow:Change", "workflow:Exec"
LOOK, STORE = "dataset:Read", "dataset:Write"
ROUTES: Final[dict[str, str]] = {
    "GET /api/app": "app:Read",
    "GET /api/app/user/{name}": "app:Read",
    "GET /api/app/user/{name}/spec": "app:Read",
    "POST /api/app/user/{name}": "app:Write",
    "PATCH /api/app/user/{name}": "app:Write",
    "DELETE /api/app/user/{name}": "app:Write",
    "POST /api/app/user/{name}/rename": "app:Write",
    "GET /api/auth/access_token": "token:Own",
    "POST /api/auth/access_token/{name}": "token:Own",
    "DELETE /api/auth/access_token/{name}": "token:Own",
    "GET /api/auth/access_tokens/{name}/roles": "token:Own",
    "GET /api/auth/access_token/{name}/roles": "token:Own",
    "GET /api/auth/user/{user}/access_token": "token:Manage",
    "POST /api/auth/user/{user}/access_token/{name}": "token:Manage",
    "DELETE /api/auth/user/{user}/access_token/{name}": "token:Manage",
    "GET /api/auth/user": "user:Read",
    "POST /api/auth/user": "user:Manage",
    "GET /api/auth/user/{user}": "user:Read",
    "DELETE /api/auth/user/{user}": "user:Manage",
    "GET /api/auth/user/{user}/roles": "user:Read",
    "POST /api/auth/user/{user}/roles": "user:Manage",
    "DELETE /api/auth/user/{user}/roles/{role}": "user:Manage",
    "GET /api/auth/login": "open",
    "GET /api/auth/keys": "open",
    "POST /api/auth/jwt/access_token": "open",
    "GET /api/auth/jwt/access_token": "open",
    "GET /api/auth/jwt/refresh_token": "open",
    "POST /api/auth/jwt/refresh_token": "open",
    "GET /api/v1/audit": "audit:Read",
    "GET /health": "open",
    "GET /ready": "open",
    "GET /metrics": "metrics:Read",
    "GET /api/version": "open",
    "GET /client/version": "open",
    "GET /api/router/version": "open",
    "GET /api/openapi.json": "open",
    "GET /api/docs": "open",
    "GET /api/v1/server": "server:Read",
    "POST /api/v1/server/end-tasks": "server:Manage",
    "GET /api/profile/settings": "profile:Own",
    "POST /api/profile/settings": "profile:Own",
    "GET /api/pool": "pool:Read",
    "GET /api/pool_quota": "pool:Read",
    "GET /api/resources": "pool:Read",
    "GET /api/resources/{node}": "pool:Read",
    "GET /api/configs/backend": "pool:Read",
    "GET /api/credentials": "credential:Own",
    "POST /api/credentials/{name}": "credential:Own",
    "DELETE /api/credentials/{name}": "credential:Own",
    "GET /api/configs/history": "config:Read",
    "POST /api/configs/history/rollback": "config:Write",
    "POST /api/configs/history/{kind}/revision/{revision}/tags": "config:Write",
    "DELETE /api/configs/history/{kind}/revision/{revision}": "config:Write",
    "GET /api/configs/diff": "config:Read",
    "GET /api/configs/pool/{name}/platform": "config:Read",
    "GET /api/configs/pool/{name}/platform/{platform}": "config:Read",
    "PUT /api/configs/pool/{name}/platform/{platform}": "config:Write",
    "PUT /api/configs/pool/{name}/rename": "config:Write",
    "PUT /api/configs/pool/{name}/platform/{platform}/rename": "config:Write",
    "GET /api/configs/{kind}": "config:Read",
    "GET /api/configs/{kind}/{name}": "config:Read",
    "PUT /api/configs/{kind}": "config:Write",
    "PUT /api/configs/{kind}/{name}": "config:Write",
    "PATCH /api/configs/{kind}": "config:Write",
    "PATCH /api/configs/{kind}/{name}": "config:Write",
    "POST /api/configs/{kind}/{name}": "config:Write",
    "DELETE /api/configs/{kind}/{name}": "config:Write",
    "GET /api/bucket": LOOK,
    "GET /api/bucket/list_dataset": LOOK,
    "GET /api/bucket/{bucket}/location": LOOK,
    "GET /api/bucket/{bucket}/query": LOOK,
    "POST /api/bucket/{bucket}/dataset/{name}": STORE,
    "POST /api/bucket/{bucket}/dataset/{name}/migrate": LOOK,
    "GET /api/bucket/{bucket}/dataset/{name}": LOOK,
    "GET /api/bucket/{bucket}/dataset/{name}/info": LOOK,
    "DELETE /api/bucket/{bucket}/dataset/{name}": "dataset:Delete",
    "POST /api/bucket/{bucket}/dataset/{name}/attribute": STORE,
    "POST /api/bucket/{bucket}/dataset/{name}/collect": STORE,
    "POST /api/bucket/{bucket}/dataset/{name}/recollect": STORE,
    "GET /api/v1/bucket/{bucket}": LOOK,
    "GET /api/v1/bucket/{bucket}/object/{key:path}": LOOK,
    "PUT /api/v1/bucket/{bucket}/object/{key:path}": LOOK,
    "GET /api/v1/bucket/{bucket}/stat/{key:path}": LOOK,
    "GET /api/v1/bucket/{bucket}/objects": LOOK,
    "POST /api/v1/bucket/{bucket}/objects/delete": LOOK,
    "POST /api/v1/bucket/{bucket}/urls": LOOK,
    "POST /api/v1/bucket/{bucket}/packs": STORE,
    "POST /api/v1/bucket/{bucket}/index": STORE,
    "GET /api/v1/bucket/{bucket}/blob/{key:path}": "open",
    "PUT /api/v1/bucket/{bucket}/blob/{key:path}": "open",
    "GET /api/v1/bucket/{bucket}/diff": LOOK,
    "GET /api/v1/bucket/{bucket}/dataset/{name}/version/{tag}/lineage": LOOK,
    "GET /api/v1/bucket/{bucket}/dataset/{name}/version/{tag}/files": LOOK,
    "GET /api/v1/bucket/{bucket}/dataset/{name}/version/{tag}/file/{path:path}": LOOK,
    "HEAD /api/v1/bucket/{bucket}/dataset/{name}/version/{tag}/file/{path:path}": LOOK,
    "POST /api/v1/bucket/{bucket}/dataset/{name}/commit": STORE,
    "GET /api/v1/bucket/{bucket}/gc/plan": "bucket:Manage",
    "GET /api/users": READ,
    "GET /api/tag": READ,
    "GET /api/task": READ,
    "GET /api/workflow": READ,
    "GET /api/workflow/{workflow_id}": READ,
    "GET /api/workflow/{workflow_id}/task/{task_name}": READ,
    "GET /api/workflow/{workflow_id}/spec": READ,
    "GET /api/workflow/{workflow_id}/logs": READ,
    "GET /api/workflow/{workflow_id}/error_logs": READ,
    "GET /api/workflow/{workflow_id}/events": READ,
    "POST /api/v1/workflow/{workflow_id}/logs": READ,
    "POST /api/v1/workflow/{workflow_id}/error_logs": READ,
    "POST /api/v1/workflow/{workflow_id}/events": READ,
    "GET /api/plugins/configs": READ,
    "POST /api/pool/{pool}/workflow": CREATE,
    "POST /api/v1/pool/{pool}/workflow": CREATE,
    "POST /api/pool/{pool}/workflow/{workflow_id}/restart": CREATE,
    "POST /api/workflow/{workflow_id}/cancel": CHANGE,
    "POST /api/workflow/{workflow_id}/tag": CHANGE,
    "POST /api/workflow/{workflow_id}/exec/task/{task}": EXEC,
    "POST /api/workflow/{workflow_id}/exec/group/{group}": EXEC,
    "POST /api/workflow/{workflow_id}/portforward/{task}": EXEC,
    "POST /api/workflow/{workflow_id}/rsync/task/{task}": EXEC,
    "POST /api/workflow/{workflow_id}/webserver/{task}": EXEC,
    "GET /api/router/webserver/{key}": EXEC,
    "WEBSOCKET /api/router/exec/{workflow_id}/client/{key}": EXEC,
    "WEBSOCKET /api/router/portforward/{workflow_id}/client/{key}": EXEC,
    "WEBSOCKET /api/router/rsync/{workflow_id}/client/{key}": EXEC,
}
"""Every route, and the right that it takes."""

WORK = (READ, CREATE, CHANGE, EXEC, "pool:Read")
DATA = (LOOK, STORE, "dataset:Delete", "bucket:Manage")
DECLARED: Final = {
    role.name: role
    for role in (
        Role("works-here", "", (Policy(WORK, ("pool/default",)),)),
        Role("works-elsewhere", "", (Policy(WORK, ("pool/gpu*", "pool/def")),)),
        Role("leads-here", "", (Policy((*WORK, "workflow:Manage"), ("pool/default",)),)),
        Role("stores-here", "", (Policy(DATA, ("bucket/def*",)),)),
        Role("stores-elsewhere", "", (Policy(DATA, ("bucket/other", "bucket/default2")),)),
    )
}


class Person(NamedTuple):
    """Somebody with roles; ``None``: nobody."""

    name: str
    roles: tuple[str, ...] | None
    disabled: bool = False


PEOPLE: Final = (
    Person("nobody", None),
    Person("gone", ("osmo-admin",), disabled=True),
    Person("roleless", ()),
    Person("stores-elsewhere", ("stores-elsewhere",)),
    Person("works-elsewhere", ("works-elsewhere",)),
    Person("viewer", ("osmo-viewer",)),
    Person("stores-here", ("stores-here",)),
    Person("works-here", ("works-here",)),
    Person("other", ("osmo-user",)),
    Person("leader", ("leads-here",)),
    Person("owner", ("osmo-user",)),
    Person("admin", ("osmo-admin",)),
)
REFUSED = re.compile(r"has no right|is another user's|belongs to|is disabled")
QUERY = {
    "POST /api/workflow/{workflow_id}/webserver/{task}": "task_port=80",
    "POST /api/workflow/{workflow_id}/portforward/{task}": "task_ports=80",
    "DELETE /api/app/user/{name}": "all_versions=true",
}
BODY: dict[str, Any] = {
    "POST /api/app/user/{name}": HELLO,
    "PATCH /api/app/user/{name}": HELLO,
    "POST /api/app/user/{name}/rename": "tool",
    "POST /api/pool/{pool}/workflow": {"file": "nothing that is a workflow"},
    "POST /api/v1/pool/{pool}/workflow": {"file": "nothing that is a workflow", "uuid": "0" * 32},
    "POST /api/v1/workflow/{workflow_id}/logs": {"places": {}},
    "POST /api/v1/workflow/{workflow_id}/error_logs": {"places": {}},
    "POST /api/v1/workflow/{workflow_id}/events": {"places": {}},
}
ASK_FOR_MORE = {
    "PUT /api/v1/bucket/{bucket}/object/{key:path}": STORE,
    "POST /api/v1/bucket/{bucket}/objects/delete": STORE,
    "POST /api/v1/bucket/{bucket}/urls": STORE,
}
"""Routes of which the service asks for more, for some of what is sent."""


def routes(app: FastAPI) -> list[tuple[str, Action | None]]:
    found = []
    for route in all_routes(app.routes):
        assert isinstance(route, APIRoute | APIWebSocketRoute)
        methods = sorted(route.methods or ()) if isinstance(route, APIRoute) else ["WEBSOCKET"]
        found += [(f"{method} {route.path}", action_of(route)) for method in methods]
    return found


def test_every_route_is_written_down_with_its_right() -> None:
    assert dict(routes(assemble())) == ROUTES


def test_no_route_is_there_twice() -> None:
    names = [name for name, _ in routes(assemble())]
    assert len(names) == len(set(names))


def test_an_application_with_a_route_that_has_no_rule_does_not_start() -> None:
    app = FastAPI(openapi_url=None)
    router = APIRouter()
    router.add_api_route("/api/forgotten", lambda: None)
    app.include_router(router)
    with pytest.raises(RuntimeError, match="/api/forgotten must have one rule"):
        check_rules(app.routes)
    twice = FastAPI(openapi_url=None)
    both = {"dependencies": [*rule("pool:Read")["dependencies"], *rule("open")["dependencies"]]}
    twice.add_api_route("/api/twice", lambda: None, **both)
    with pytest.raises(RuntimeError, match="/api/twice must have one rule"):
        check_rules(twice.routes)
    mounted = FastAPI(openapi_url=None)
    mounted.mount("/files", FastAPI())
    with pytest.raises(RuntimeError, match="/files is a route without a rule"):
        check_rules(mounted.routes)


class World(NamedTuple):
    port: int
    workflow: str


@pytest.fixture
def world(server: Server, tmp_path: Path) -> Iterator[World]:
    people = People(server.services.database)
    for person in PEOPLE:
        if person.roles is not None:
            people.create(person.name, by="ada", roles=person.roles)
        if person.disabled:
            people.create("spare", by="ada", roles=["osmo-admin"])
            people.delete(person.name)
    services = replace(server.services, roles=lambda: DECLARED)
    with answering(create_app(services), tmp_path / "m", port=0) as port:
        owner = Http(port, {"x-osmo-user": "owner"})
        made = owner.post("/api/pool/default/workflow", json={"file": HELLO})
        assert made.status_code == 200, made.text
        server.finish(made.json()["name"])
        yield World(port, made.json()["name"])


def expected(name: str, person: Person) -> int:
    """200 for whoever is let in."""
    method, _, path = name.partition(" ")
    action: Any = ROUTES[name]
    if action == "open":
        return 200
    if person.roles is None:
        return 200 if action == "metrics:Read" else 401
    grants = grants_of(person.roles, DECLARED)
    here = {"pool": "default" if "{pool}" in path else None, "bucket": "default" if "{bucket}" in path else None}
    if person.disabled or not grants.may(action, **here):
        return 403
    if "{workflow_id}" in path and method != "WEBSOCKET":
        if not grants.may(READ, pool="default"):
            return 404
        manages = person.name == "owner" or grants.may("workflow:Manage", pool="default")
        if action in {CHANGE, EXEC} and not (grants.may(action, pool="default") and manages):
            return 403
    others = action == "app:Write" and name != "POST /api/app/user/{name}" and person.name != "owner"
    return 403 if others and not grants.may("app:Manage") else 200


def outcome(reply: Reply) -> int:
    text = reply.text
    if reply.status_code == 401 or (reply.status_code == 403 and (not text or REFUSED.search(text))):
        return reply.status_code
    return 404 if reply.status_code == 404 and "There is no workflow" in text else 200


def ask(world: World, name: str, person: Person) -> int:
    method, _, template = name.partition(" ")
    headers = {} if person.roles is None else {"x-osmo-user": person.name}
    values = {"workflow_id": world.workflow, "pool": "default", "bucket": "default", "name": "tool", "user": "spare"}
    values |= {"task": "one", "task_name": "one", "group": "one-group", "kind": "nothing", "key": "0" * 32}
    path = re.sub(r"\{(\w+)(:path)?\}", lambda found: values.get(found[1], "1"), template)
    if name in QUERY:
        path += f"?{QUERY[name]}"
    if method == "WEBSOCKET":
        return upgrade(world.port, path, headers)
    if template.startswith("/api/app/user"):
        Http(world.port, {"x-osmo-user": "owner"}).post("/api/app/user/tool", json=HELLO)
    body = json.dumps(BODY[name]).encode() if name in BODY else None
    return outcome(Http(world.port, headers).ask(method, path, body=body))


def upgrade(port: int, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    more = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    connection.request("GET", path, headers=headers | more | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    status = connection.getresponse().status
    connection.close()
    return 200 if status == 101 else status


def test_each_person_at_each_route(world: World) -> None:
    wrong = []
    for name in ROUTES:
        for person in PEOPLE:
            if name == "POST /api/v1/server/end-tasks" and person.name == "admin":
                continue  # nothing would run afterwards
            found, wanted = ask(world, name, person), expected(name, person)
            more = ASK_FOR_MORE.get(name)
            if more and wanted == 200 and found == 403:
                wanted = 200 if grants_of(person.roles or (), DECLARED).may(more, bucket="default") else 403  # type: ignore[arg-type]  # an action
            if found != wanted:
                wrong.append(f"{person.name}: {name}: {found}, not {wanted}")
    assert wrong == []
