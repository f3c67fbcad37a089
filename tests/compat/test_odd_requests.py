"""Requests that are no proper HTTP, or that only a broken client sends: each is answered, errors in their one form."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from casstore.testing.http import Http

if TYPE_CHECKING:
    from tests.compat.conftest import Server

USER = {"x-osmo-user": "ada"}
databases = pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)


def talk(server: Server, request: bytes) -> tuple[int, dict[str, str], Any]:
    """What comes for these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as made:
        made.sendall(request)
        said = b""
        while piece := made.recv(65536):
            said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body else None


def written(target: str, method: str = "GET", *, more: str = "") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-osmo-user: ada\r\nConnection: close\r\n{more}\r\n"
    return head.encode("latin-1")


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"GET /api/pool HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: x\r\n\r\n",
        b"GET /api/pool HTTP/1.1\r\nx-osmo-user: a\0b\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /api/pool HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * (600 << 10),  # more than is read without its end
    ],
)
def test_what_is_no_http_is_answered_as_every_error_is(server: Server, request_: bytes) -> None:
    status, headers, body = talk(server, request_)
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert headers["x-osmo-service-version"]
    assert headers["x-request-id"]
    assert (body["error_code"], body["kind"]) == ("USER", "usage")
    assert "\n" not in body["message"]


def test_an_address_may_be_long(server: Server) -> None:
    status, _, body = talk(server, written("/api/bucket/default/query?command=" + "%F0%9F%A4%96" * 30_000))
    assert status == 400
    assert "command" not in body["message"]
    assert talk(server, written("/api/workflow?" + "users=someone&" * 200))[0] == 200
    assert talk(server, written("/api/workflow?" + "users=someone&" * 201))[0] == 422


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "BREW"])
def test_a_method_that_is_not_there(server: Server, method: str) -> None:
    status, headers, body = talk(server, written("/api/workflow", method))
    assert status == 405
    assert headers["allow"] == "GET"
    if method != "HEAD":
        assert body["error_code"] == "USER"
        assert method in body["message"]
    assert talk(server, written("/api/app/user/x", "PUT"))[1]["allow"] == "DELETE, GET, PATCH, POST"


@pytest.mark.parametrize("target", ["/", "/api", "/api/", "/api/pool/default", "/API/pool", "*"])
def test_a_path_that_is_not_there(server: Server, target: str) -> None:
    status, _, body = talk(server, written(target))
    assert (status, body["error_code"], body["kind"]) == (404, "NOTFOUND", "not_found")


def test_a_slash_behind_a_path_leads_to_it(server: Server) -> None:
    status, headers, _ = talk(server, written("/api/workflow/?limit=1"))
    assert (status, headers["location"]) == (307, "http://127.0.0.1/api/workflow?limit=1")


@databases
@pytest.mark.parametrize(
    "target",
    [
        "/api/workflow?name=%00",
        "/api/workflow?users=a%00b",
        "/api/workflow?tags=%00",
        "/api/task?nodes=%00",
        "/api/app?name=%00",
        "/api/app/user/a%00b",
        "/api/workflow/hello%00",
        "/api/auth/user?id_prefix=%00",
        "/api/auth/user/a%00b",
        "/api/configs/history?name=%00",
        "/api/v1/audit?resource=%00",
        "/api/bucket/list_dataset?user=%00",
    ],
)
def test_a_nul_is_in_no_address(server: Server, target: str) -> None:
    status, _, body = talk(server, written(target))
    assert (status, body["error_code"]) == (400, "USER")
    assert "NUL" in body["message"]


@databases
def test_a_nul_is_in_no_text_of_a_body(server: Server) -> None:
    http = Http(server.port, USER)
    for method, path, body in (
        ("POST", "/api/app/user/x?description=x", "workflow:\0"),
        ("POST", "/api/pool/default/workflow", {"file": "a\0b"}),
        ("POST", "/api/auth/user", {"id": "a\0b"}),
        ("PATCH", "/api/configs/service", {"configs_dict": {"service_base_url": "\0"}}),
        ("POST", "/api/bucket/default/dataset/robots", {"metadata": {"a\0": 1}}),
        ("POST", "/api/profile/settings", {"pool": "\0"}),
    ):
        reply = http.ask(method, path, body=json.dumps(body).encode())
        assert (reply.status_code, reply.json()["error_code"]) == (400, "USER"), reply.text
    app = http.post(
        "/api/app/user/x", {"description": "x"}, json="# \\u0000 is fine: it is six characters\nworkflow: {}"
    )
    assert app.status_code == 200, app.text


@databases
@pytest.mark.parametrize(
    ("target", "statuses"),
    [
        ("/api/workflow?limit=99999999999999999999", {200}),
        ("/api/workflow?offset=99999999999999999999", {422}),
        ("/api/workflow?name=%ff%fe%ed%a0%80", {200}),
        ("/api/workflow?name=%25_%5c", {200}),
        ("/api/workflow?submitted_after=9999-12-31T23:59:59-14:00", {200, 400}),
        ("/api/workflow?submitted_after=0001-01-01T00:00:00%2b14:00", {200, 400}),
        ("/api/workflow?app=x:99999999999999999999", {400}),
        ("/api/task?started_before=0001-01-01", {200, 400}),
        ("/api/app/user/x?version=99999999999999999999", {422}),
        ("/api/workflow/hello-99999999999999999999999", {404}),
        ("/api/workflow/hello-1/logs?retry_id=99999999999999999999", {404}),
        ("/api/workflow/hello-1/task/one?retry_id=99999999999999999999", {404}),
        ("/api/workflow/hello-1/logs?last_n_lines=99999999999999999999", {404, 400}),
        ("/api/auth/user?start_index=99999999999999999999", {422}),
        ("/api/configs/history?revision=99999999999999999999", {422}),
        ("/api/v1/audit?older_than=99999999999999999999", {422}),
        ("/api/v1/audit?after=0001-01-01T00:00:00%2b14:00", {200, 400}),
        ("/api/bucket/default/dataset/x/info?count=99999999999999999999", {422}),
        ("/api/bucket/list_dataset?latest_after=9999-12-31T23:59:59-14:00", {200, 400}),
    ],
)
def test_values_at_and_beyond_every_edge(server: Server, target: str, statuses: set[int]) -> None:
    status, _, body = talk(server, written(target))
    assert status in statuses, body


@databases
def test_bodies_that_are_odd(server: Server) -> None:
    http = Http(server.port, USER)
    path = "/api/pool/default/workflow"
    for body in (
        b'{"file": "\\ud800"}',
        b'{"file": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"[" * 100_000,
        b'{"file": 1e999}',
    ):
        reply = http.post(path, content=body)
        assert (reply.status_code, reply.json()["error_code"]) == (400, "USER"), body[:40]
    found = http.post(path, {"validation_only": "True"}, json={"file": "workflow: {}", "unknown": [1], "file2": None})
    assert found.json()["error_code"] == "USAGE"
