"""Clients that are too old, and those for which there is a newer one."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from casstore_server.api.edge import reply
from casstore_server.api.gate import Gate, Wanted


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    warnings = ["one of its own"] if request.url.path == "/warned" else []
    await reply({"path": request.url.path}, warnings=warnings)(scope, receive, send)


def ask(wanted: Wanted, version: str | None, path: str = "/api/pool") -> tuple[int, dict[str, str], Any]:
    headers = [] if version is None else [(b"x-osmo-client-version", version.encode("latin-1"))]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers, "server": ("x", 1)}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    asyncio.run(Gate(inner, lambda: wanted)(scope, receive, send))
    start = sent[0]
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, msgspec.json.decode(sent[1]["body"])


def warning(headers: dict[str, str]) -> list[str]:
    return base64.b64decode(headers.get("x-osmo-warning", "")).decode().splitlines()


LIMITS = Wanted("6.0.0", "6.2.0", "https://example.org/install.sh")


@pytest.mark.parametrize("version", ["5.9.9", "5.9.9.abcdef", "0.0.1"])
def test_a_client_that_is_too_old_is_refused_in_one_line(version: str) -> None:
    status, _, body = ask(LIMITS, version)
    assert status == 400
    assert body["error_code"] == "OSMO_ERROR"
    assert version[:5] in body["message"]
    assert "6.0.0" in body["message"]
    assert "curl -fsSL https://example.org/install.sh" in body["message"]
    assert "\n" not in body["message"]


def test_one_for_which_there_is_a_newer_is_served_and_told() -> None:
    status, headers, body = ask(LIMITS, "6.1.9")
    assert (status, body) == (200, {"path": "/api/pool"})
    (line,) = warning(headers)
    assert "6.2.0" in line
    assert "6.1.9" in line


def test_the_notice_comes_before_other_warnings() -> None:
    _, headers, _ = ask(LIMITS, "6.0.0", "/warned")
    notice, own = warning(headers)
    assert "6.2.0" in notice
    assert own == "one of its own"


@pytest.mark.parametrize(
    "version", ["6.2.0", "6.10.0", "7.0.0.abc", None, "", "soon", "5", "5.0", "-1.0.0", "\xb2.0.0"]
)
def test_what_is_new_enough_or_says_nothing_is_served_silently(version: str | None) -> None:
    status, headers, _ = ask(LIMITS, version)
    assert status == 200
    assert "x-osmo-warning" not in headers


def test_what_helps_to_install_another_client_is_for_all() -> None:
    assert ask(LIMITS, "1.0.0", "/client/version")[0] == 200
    assert ask(LIMITS, "1.0.0", "/clients")[0] == 400


@pytest.mark.parametrize("wanted", [Wanted(), Wanted("", "", "x"), Wanted("soon", "later", "")])
def test_without_limits_every_client_is_served(wanted: Wanted) -> None:
    status, headers, _ = ask(wanted, "0.0.1")
    assert status == 200
    assert "x-osmo-warning" not in headers
