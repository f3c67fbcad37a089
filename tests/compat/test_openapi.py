"""The OpenAPI document: that it is valid and linted, that it has every route with all that is sent and answered, and
that the page of it asks nobody else for anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from openapi_spec_validator import validate

from casstore.testing.http import Http
from casstore_server.api import describing
from casstore_server.api.app import assemble
from casstore_server.api.documents import JSON, document, operation_id
from casstore_server.api.rules import action_of, all_routes, told_of
from casstore_server.api.schemas import parts_of

if TYPE_CHECKING:
    from tests.compat.conftest import Server

LINTER = Path(__file__).parents[1] / "servers/openapi"
ROUTES = [route for route in all_routes(assemble().routes) if isinstance(route, APIRoute)]
SOCKETS = [route for route in all_routes(assemble().routes) if isinstance(route, APIWebSocketRoute)]


@cache
def made() -> dict[str, Any]:
    return document(list(all_routes(assemble().routes)))


def operations() -> dict[str, dict[str, Any]]:
    return {one["operationId"]: one for item in made()["paths"].values() for one in item.values()}


def test_it_is_valid() -> None:
    validate(made())


def test_it_is_the_same_each_time() -> None:
    assert json.dumps(made()) == json.dumps(document(list(all_routes(assemble().routes))))


def test_a_linter_has_nothing_to_say(tmp_path: Path) -> None:
    program = LINTER / "node_modules/@redocly/cli/bin/cli.js"
    if not program.exists() or shutil.which("node") is None:
        pytest.skip("the linter is not installed; scripts/setup dev installs it")
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(made(), indent=1))
    command = ["node", program, "lint", "--format=json", f"--config={LINTER / 'redocly.yaml'}", file]
    environment = os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert found.stdout, found.stderr
    said = json.loads(found.stdout)
    problems = [f"{one['severity']} {one['ruleId']}: {one['message']} {one['location']}" for one in said["problems"]]
    assert problems == []
    assert found.returncode == 0


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{'-'.join(route.methods)} {route.path}")
def test_every_route_says_what_it_answers_and_takes(route: APIRoute) -> None:
    told = told_of(route)
    assert told.reply is not None, "give rule(...) the type of the reply"
    takes = bool(route.dependant.body_params)
    reads = "_body" in {getattr(one.call, "__name__", "") for one in route.dependant.dependencies}
    assert (told.body is not None) == (reads or takes or told.body is bytes), "give rule(...) the type of the body"
    found = operations()[operation_id(route)]
    assert found["summary"]
    assert set(found["responses"]) >= {"200", "400", "403", "500"}
    for parameter in found.get("parameters", ()):
        assert parameter.get("description"), f"say in api.describing what {parameter['name']} is for"
    if action_of(route) == "open":
        assert found["security"] == []
    else:
        assert "401" in found["responses"]
    answer = found["responses"]["200"]["content"]
    assert set(answer) == {told.media, *told.also}
    assert answer[told.media]["schema"], "the reply has no schema"
    for name in re.findall(r"{(\w+)", route.path):
        assert name in {one["name"] for one in found["parameters"] if one["in"] == "path"}


def test_every_route_is_in_it_under_a_name_of_its_own() -> None:
    expected = {(route.path_format, method.lower()) for route in ROUTES for method in route.methods or ()}
    assert {(path, method) for path, item in made()["paths"].items() for method in item} == expected
    names = [operation_id(route) for route in ROUTES]
    assert sorted(names) == sorted(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


def test_websockets_are_told_in_its_words() -> None:
    assert SOCKETS
    for route in SOCKETS:
        assert f"`{route.path}`" in made()["info"]["description"]


def test_examples_are_what_they_are_examples_of() -> None:
    for kind, example in describing.EXAMPLES.items():
        msgspec.convert(example, kind)
    used = {part for route in ROUTES for one in (told_of(route).reply, told_of(route).body) for part in parts_of(one)}
    assert set(describing.EXAMPLES) <= used


def test_links_lead_to_what_takes_them() -> None:
    known = operations()
    for operation, links in describing.LINKS.items():
        assert operation in known
        for target, (parameter, _) in links.items():
            assert parameter in {one["name"] for one in known[target]["parameters"] if one["in"] == "path"}


def test_every_word_is_about_something() -> None:
    names = {one["name"] for operation in operations().values() for one in operation.get("parameters", ())}
    assert set(describing.PARAMETERS) <= names
    tags = {operation["tags"][0] for operation in operations().values()}
    assert {tag["name"] for tag in made()["tags"]} == tags


def test_it_is_served_to_everybody_and_names_nobody_else(server: Server) -> None:
    stranger = Http(server.port)
    found = stranger.get("/api/openapi.json")
    assert (found.status_code, found.headers["content-type"]) == (200, JSON)
    assert found.json() == json.loads(json.dumps(made()))
    page = stranger.get("/api/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page.text)
    assert "<script" not in page.text
    for name in operations():
        assert f'id="{name}"' in page.text
