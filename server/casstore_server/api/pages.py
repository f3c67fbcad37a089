"""What the server says of its routes: the OpenAPI document, and a page of it for people.

Decided here and only here: how that page looks. It is whole: it asks nobody else for scripts, styles or fonts.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from casstore_server.api.documents import document
from casstore_server.api.rules import all_routes, rule

router = APIRouter()

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 13px/1.4 ui-monospace, monospace }
pre { overflow-x: auto; padding: .6rem; border: 1px solid #8884 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884 }
summary { cursor: pointer; padding: .3rem 0 }
summary b { display: inline-block; width: 4.5rem }
ul { margin: .5rem 0; padding-left: 1.2rem }
nav a { margin-right: 1rem }
details > :not(summary) { margin-left: 1rem }
"""
_CODE = re.compile(r"`([^`]*)`")


@router.get("/api/openapi.json", **rule("open", reply=dict[str, Any]))
def openapi(request: Request) -> Response:
    """The document of all routes."""
    return Response(_document(request), media_type="application/json")


@router.get("/api/docs", **rule("open", reply=str, media="text/html"))
def docs(request: Request) -> Response:
    """The document of all routes, as a page."""
    text = "\n".join(_page(msgspec.json.decode(_document(request))))
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


def _document(request: Request) -> bytes:
    """The document; made once for each application."""
    state = request.app.state
    found: bytes | None = getattr(state, "document", None)
    if found is None:
        found = state.document = msgspec.json.encode(document(list(all_routes(request.app.routes))))
    return found


def _page(found: Mapping[str, Any]) -> Iterator[str]:
    title = html.escape(f"{found['info']['title']} {found['info']['version']}")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
    yield from _markdown(found["info"]["description"])
    yield '<p>The same for programs: <a href="/api/openapi.json">openapi.json</a></p><nav>'
    yield from (f'<a href="#{html.escape(tag["name"])}">{html.escape(tag["name"])}</a>' for tag in found["tags"])
    yield "</nav>"
    for tag in found["tags"]:
        yield f'<h2 id="{html.escape(tag["name"])}">{html.escape(tag["name"])}</h2><p>{_inline(tag["description"])}</p>'
        for path, item in found["paths"].items():
            for method, operation in item.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(found, path, method, operation)
    yield "<h2>Shapes</h2>"
    for name, schema in found["components"]["schemas"].items():
        yield f'<details id="{html.escape(name)}"><summary><code>{html.escape(name)}</code></summary>'
        yield f"<p>{_inline(schema.get('description', ''))}</p>"
        yield f"<pre>{_json({key: value for key, value in schema.items() if key != 'description'})}</pre></details>"
    yield "</body></html>"


def _operation(found: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details id="{html.escape(operation["operationId"])}"><summary><b>{method.upper()}</b>'
    yield f"<code>{html.escape(path)}</code> {_inline(operation['summary'])}</summary>"
    yield from _markdown(operation["description"])
    if operation.get("parameters"):
        yield "<table><tr><th>Parameter</th><th>In</th><th>Form</th><th></th></tr>"
        for one in operation["parameters"]:
            yield f"<tr><td><code>{html.escape(one['name'])}</code></td><td>{one['in']}</td>"
            yield f"<td>{_form(one['schema'])}</td><td>{_inline(one['description'])}</td></tr>"
        yield "</table>"
    for media, said in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body, <code>{html.escape(media)}</code>: {_shape(said)}</p>"
        if "example" in said:
            yield f"<pre>{_json(said['example'])}</pre>"
    errors = []
    for status, answer in operation["responses"].items():
        if answer.get("$ref", "").startswith("#/components/responses/"):
            errors.append((status, found["components"]["responses"][answer["$ref"].rpartition("/")[2]]["description"]))
            continue
        shapes = " or ".join(
            f"<code>{html.escape(media)}</code> {_shape(said)}" for media, said in answer.get("content", {}).items()
        )
        yield f"<p>{status}: {_inline(answer['description'])}{f', {shapes}' if shapes else ''}</p>"
    listed = ", ".join(f'<abbr title="{html.escape(description)}">{status}</abbr>' for status, description in errors)
    yield f'<p>Errors, each with an <a href="#ErrorBody">ErrorBody</a>: {listed}</p></details>'


_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_LIMITS = {
    "minimum": "from {}",
    "maximum": "to {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "maxItems": "at most {}",
    "pattern": "like <code>{}</code>",
    "default": "<code>{}</code> without it",
}


def _form(schema: Mapping[str, Any]) -> str:
    """What a parameter may be, in words."""
    if "anyOf" in schema:
        return " or ".join(map(_form, schema["anyOf"]))
    if "enum" in schema:
        kind = " or ".join(f"<code>{_json(one, 0)}</code>" for one in schema["enum"])
    else:
        kind = (
            f"list of {_form(schema['items'])}" if "items" in schema else _WORDS.get(schema.get("type", ""), "anything")
        )
    limits = [
        text.format(html.escape(schema[name]) if isinstance(schema[name], str) else _json(schema[name], 0))
        for name, text in _LIMITS.items()
        if name in schema
    ]
    return ", ".join([kind, *limits])


def _shape(said: Mapping[str, Any]) -> str:
    schema = said.get("schema", {})
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    return f"<code>{_json(schema, 0)}</code>"


def _json(value: Any, indent: int = 2) -> str:
    text = msgspec.json.encode(value)
    return html.escape((msgspec.json.format(text, indent=indent) if indent else text).decode())


def _inline(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(text))


def _markdown(text: str) -> Iterator[str]:
    """As much of Markdown as the document has: paragraphs, headings and lists."""
    for block in re.split(r"\n{2,}", text.strip()):
        if block.startswith("## "):
            yield f"<h2>{_inline(block[3:])}</h2>"
        elif block.startswith("* "):
            items = re.split(r"^\* ", block, flags=re.MULTILINE)[1:]
            yield f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"
        else:
            yield f"<p>{_inline(block)}</p>"
