"""The OpenAPI document of the routes, made from the routes themselves.

Decided here and only here: that paths, parameters and their limits come from the signatures of the routes, requests and
replies from the types that their rules name, errors from the statuses that they name and those that every route has;
and what an operation is called. What people read about each of them is in ``describing``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from types import NoneType
from typing import Any, Final, NamedTuple

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import BaseRoute

from casstore import __version__
from casstore.wire.protocol import SERVICE_VERSION_HEADER, WARNING_HEADER, ErrorBody
from casstore_server.api import describing
from casstore_server.api.observe import REQUEST_ID
from casstore_server.api.rules import STORAGE, Told, action_of, told_of
from casstore_server.api.schemas import BINARY, Schemas, parts_of, prose

__all__ = ["EVERYWHERE", "JSON", "document", "operation_id"]

JSON: Final = "application/json"
EVERYWHERE: Final = frozenset({400, 403, 413, 429, 500, 503})
"""The statuses of errors with which every route may answer."""
_NAMED: Final = frozenset({401})
"""Those of every route that needs a user."""


class _Operation(NamedTuple):
    path: str
    method: str
    route: APIRoute
    told: Told
    found: dict[str, Any]
    """What FastAPI says of it."""


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document of these routes, as JSON may be written. The same routes give the same document."""
    operations = list(_operations(routes))
    schemas = Schemas(
        [operation.told.body for operation in operations],
        [kind for operation in operations for kind in (operation.told.reply, *operation.told.errors.values())]
        + [ErrorBody],
    )
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, schemas)
    tags = sorted({operation["tags"][0] for item in paths.values() for operation in item.values()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "casstore",
            "version": __version__,
            "summary": "Versioned datasets and gang-scheduled workflows",
            "description": describing.ABOUT + _websockets(routes),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "the server that this document comes from"}],
        "security": [{name: []} for name in describing.SECURITY],
        "tags": [{"name": tag, "description": describing.TAGS[tag]} for tag in tags],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {
            "schemas": schemas.components(),
            "responses": {_response_name(status): _error(status, schemas) for status in sorted(_errors(operations))},
            "headers": _HEADERS,
            "securitySchemes": describing.SECURITY,
        },
    }


def operation_id(route: APIRoute) -> str:
    """What an operation is called, for good: clients are generated with it."""
    if route.operation_id is not None:
        return route.operation_id
    module = route.endpoint.__module__.rpartition(".")[2]
    return f"{module}_{route.endpoint.__name__}"


def _operations(routes: Iterable[BaseRoute]) -> Iterator[_Operation]:
    documented = [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]
    found = get_openapi(title="", version="", routes=documented)
    definitions = found.get("components", {}).get("schemas", {})
    for route in documented:
        for method in sorted(route.methods or ()):
            operation = found["paths"][route.path_format][method.lower()]
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _plain(parameter["schema"], definitions)
            yield _Operation(route.path_format, method.lower(), route, told_of(route), operation)


def _plain(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema of a parameter without what says nothing: titles, and that it may be null, which no text is."""
    if isinstance(schema, list):
        return [_plain(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    kept = {key: _plain(value, definitions) for key, value in schema.items() if key not in {"title", "description"}}
    choices = [one for one in kept.pop("anyOf", ()) if one != {"type": "null"}]
    if len(choices) == 1:
        return choices[0] | kept
    return kept | ({"anyOf": choices} if choices else {})


def _described(operation: _Operation, schemas: Schemas) -> dict[str, Any]:
    route, told = operation.route, operation.told
    name, action = operation_id(route), action_of(route)
    summary, _, more = prose(inspect.getdoc(route.endpoint) or "").partition("\n")
    rest = [" ".join(more.split())] if more.strip() else []
    rest.append("Needs no user." if action in {None, "open"} else describing.may(str(action)))
    found: dict[str, Any] = {
        "operationId": name,
        "tags": [describing.tag_of(operation.path)],
        "summary": summary.rstrip("."),
        "description": "\n\n".join(rest),
    }
    if action == "open":
        found["security"] = []
    if parameters := [_parameter(name, one) for one in operation.found.get("parameters", ())]:
        found["parameters"] = parameters
    if told.body is not None:
        found["requestBody"] = _body(told.body, schemas)
    found["responses"] = dict(_responses(operation, schemas, asks=bool(parameters)))
    return found


def _responses(operation: _Operation, schemas: Schemas, *, asks: bool) -> Iterator[tuple[str, Any]]:
    told = operation.told
    done = _answer("As asked", told.reply, told.media, schemas)
    done["content"] |= {media: {"schema": schemas.of(kind)} for media, kind in told.also.items()}
    if links := describing.LINKS.get(operation_id(operation.route)):
        done["links"] = {
            target: {"operationId": target, "parameters": {parameter: expression}}
            for target, (parameter, expression) in links.items()
        }
    yield "200", done
    statuses = EVERYWHERE | set(told.errors)
    statuses |= set() if action_of(operation.route) == "open" else _NAMED
    statuses |= {422} if asks else set()
    statuses |= {404} if "{" in operation.path else set()
    statuses |= set(STORAGE) if "{bucket}" in operation.path else set()
    for status in sorted(statuses):
        kind = told.errors.get(status)
        if status == HTTPStatus.NOT_MODIFIED:
            yield str(status), {"description": "It is what it was."}
        elif kind is not None or status < 400:
            phrase = describing.ERRORS.get(status, HTTPStatus(status).phrase)
            yield str(status), _answer(phrase, told.reply if kind is None else kind, told.media, schemas)
        else:
            yield str(status), {"$ref": f"#/components/responses/{_response_name(status)}"}


def _parameter(operation: str, found: dict[str, Any]) -> dict[str, Any]:
    name, schema = found["name"], found["schema"]
    if schema.get("default") in ("", []):
        del schema["default"]
    parameter = {"name": name, "in": found["in"], "required": found["required"], "schema": schema}
    parameter["description"] = describing.parameter(operation, name)
    return parameter


def _body(kind: Any, schemas: Schemas) -> dict[str, Any]:
    parts = [one for one in parts_of(kind) if one is not NoneType]
    required = len(parts) == len(parts_of(kind))
    if parts == [bytes]:
        return {"required": required, "content": {"application/octet-stream": {"schema": dict(BINARY)}}}
    said: dict[str, Any] = {"schema": schemas.of(parts[0] if len(parts) == 1 else kind)}
    if (example := describing.EXAMPLES.get(parts[0])) is not None:
        said["example"] = example
    return {"required": required, "content": {JSON: said}}


def _answer(description: str, kind: Any, media: str, schemas: Schemas) -> dict[str, Any]:
    said: dict[str, Any] = {"schema": {} if kind is None else schemas.of(kind)}
    if media == JSON and (example := describing.EXAMPLES.get(kind)) is not None:
        said["example"] = example
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    return {"description": description, "headers": headers, "content": {media: said}}


_HEADERS: Final[dict[str, Any]] = {
    SERVICE_VERSION_HEADER: {
        "description": "The version of the server.",
        "required": True,
        "schema": {"type": "string"},
    },
    REQUEST_ID: {
        "description": "What this request is called in the server's log: that of the request, or a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    WARNING_HEADER: {
        "description": "Something to tell the user: lines of text, in base64.",
        "schema": {"type": "string", "contentEncoding": "base64"},
    },
}

_MORE_HEADERS: Final[dict[int, dict[str, Any]]] = {
    401: {"WWW-Authenticate": {"description": "How to say who asks.", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}}},
}


def _errors(operations: Iterable[_Operation]) -> frozenset[int]:
    named = {status for operation in operations for status in operation.told.errors if status >= 400}
    return EVERYWHERE | _NAMED | {404, 422} | named


def _response_name(status: int) -> str:
    return re.sub("[^A-Za-z]", "", HTTPStatus(status).phrase.title())


def _error(status: int, schemas: Schemas) -> dict[str, Any]:
    said = {"schema": schemas.of(ErrorBody), "example": describing.error_example(status)}
    headers: dict[str, Any] = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS}
    headers |= _MORE_HEADERS.get(status, {})
    return {"description": describing.ERRORS[status], "headers": headers, "content": {JSON: said}}


def _websockets(routes: Iterable[BaseRoute]) -> str:
    lines = [
        f"* `{route.path}`: {prose(inspect.getdoc(route.endpoint) or '')}"
        for route in routes
        if isinstance(route, APIWebSocketRoute)
    ]
    return describing.WEBSOCKETS + "\n".join(lines) + "\n" if lines else ""
