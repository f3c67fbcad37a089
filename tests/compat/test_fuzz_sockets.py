"""Websockets of the router with what no client sends, and no agent: they end with a code that is documented, never with
that of a failure, and the server goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from casstore.testing.http import Http
from casstore_orchestrator import frames
from casstore_orchestrator.frames import Kind

if TYPE_CHECKING:
    from tests.compat.conftest import Server

PATIENCE = 30.0
USER = {"x-osmo-user": "ada"}
ENDED = {CloseCode.NORMAL_CLOSURE, CloseCode.INVALID_DATA, CloseCode.MESSAGE_TOO_BIG}
"""Codes of the protocol that a client may bring about; its own are 4000 and 4400 to 4499, and 4500 to 4599 are those of
an agent that does not do as agents do.
"""
SIZE = json.dumps({"Rows": 24, "Cols": 80}).encode()
WISH = json.dumps({"key": "PORTFORWARD-" + "0" * 32, "cookie": ""}).encode()

message = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100),
    st.sampled_from([SIZE, WISH, b"", b"{}", b"null", b"[" * 100_000, b"\0RESIZE:", b"\0RESIZE:" + SIZE]),
    st.sampled_from([b'{"Rows": 1e400}', b'{"Rows": -1, "Cols": 99999999}', b'{"Pipes": true}', b"x" * 70_000]),
    st.builds(lambda key: json.dumps({"key": key}), st.text(max_size=200)),
)
frame = st.one_of(
    st.binary(max_size=40),
    st.builds(frames.encode, st.sampled_from(Kind), st.binary(max_size=70)),
    st.just(frames.encode(Kind.DATA, b"x" * frames.MAX_DATA)),
    st.just(b"\x00\xff\xff\xff\xff"),
)
granted = st.sampled_from(
    [b'{"ok": true}\n', b'{"ok": true}\n', b'{"ok": false, "error": "no"}\n', b"{}\n", b"[]\n", b"", b"x\n"]
)


class Agents:
    """Agents that answer what they are told to, whatever they are asked, and leave."""

    def __init__(self) -> None:
        self.answer = b""
        self.threads: list[threading.Thread] = []

    def attach(self, run: Any) -> socket.socket:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._talk, args=(theirs, self.answer))
        thread.start()
        self.threads.append(thread)
        return ours

    def _talk(self, theirs: socket.socket, answer: bytes) -> None:
        with theirs, contextlib.suppress(OSError):
            theirs.settimeout(PATIENCE)
            while b"\n" not in theirs.recv(65536):
                pass
            theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(65536):
                pass

    def close(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE)


@pytest.fixture
def agents(server: Server) -> Iterator[Agents]:
    made = Agents()
    object.__setattr__(server.services, "agents", made)
    assert server.submit()["name"] == "hello-1"
    for task in server.gang("hello-1").tasks.values():
        assert task.started.wait(PATIENCE)
    yield made
    made.close()


def opened(server: Server, path: str) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{server.port}{path}",
        additional_headers=USER,
        compression=None,
        max_size=None,
        close_timeout=PATIENCE,
    )


def ended(ws: ClientConnection, messages: list[bytes | str]) -> tuple[int, str]:
    """The code and the reason with which it ends, once all was sent and everything read."""
    with contextlib.suppress(ConnectionClosed):
        for one in messages:
            ws.send(one)
    try:
        while True:
            ws.recv(timeout=PATIENCE)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None, "it was cut"
        return closed.rcvd.code, closed.rcvd.reason


def key(server: Server, use: str, *, udp: bool) -> str:
    http = Http(server.port, USER)
    if use == "exec":
        reply = http.post("/api/workflow/hello-1/exec/task/one", {"entry_command": "/bin/bash"})
    elif use == "rsync":
        reply = http.post("/api/workflow/hello-1/rsync/task/one")
    else:
        reply = http.post("/api/workflow/hello-1/portforward/one", {"task_ports": 8000, "use_udp": udp})
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return str((found[0] if isinstance(found, list) else found)["key"])


ONE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.slow
@ONE
@given(
    use=st.sampled_from(["exec", "portforward", "rsync"]),
    udp=st.booleans(),
    grant=granted,
    said=st.lists(frame, max_size=4),
    messages=st.lists(message, max_size=4),
)
@example(use="exec", udp=False, grant=b'{"ok": true}\n', said=[frames.encode(Kind.EXIT, b"")], messages=[SIZE])
@example(use="exec", udp=False, grant=b'{"ok": true}\n', said=[frames.encode(Kind.DATA, b"x")], messages=[SIZE, b""])
@example(use="portforward", udp=True, grant=b'{"ok": true}\n', said=[], messages=[b"x" * 70_000])
@example(use="portforward", udp=False, grant=b'{"ok": true}\n', said=[], messages=[WISH, WISH])
def test_whatever_is_said_a_websocket_ends_as_documented(
    server: Server,
    agents: Agents,
    caplog: pytest.LogCaptureFixture,
    use: str,
    udp: bool,
    grant: bytes,
    said: list[bytes],
    messages: list[bytes | str],
) -> None:
    agents.answer = grant + b"".join(said)
    first = [SIZE] if use == "exec" and not messages else []
    caplog.clear()
    with (
        caplog.at_level(logging.ERROR),
        opened(server, f"/api/router/{use}/hello-1/client/{key(server, use, udp=udp)}") as ws,
    ):
        code, reason = ended(ws, [*first, *messages])
    assert code in ENDED or code == 4000 or 4400 <= code < 4600, (code, reason)
    assert not caplog.records


@pytest.mark.slow
@ONE
@given(
    use=st.sampled_from(["exec", "portforward", "rsync", "", "webserver"]),
    workflow=st.one_of(st.just("hello-1"), st.text("abc-1./%\x7f", max_size=20)),
    name=st.one_of(st.just("0" * 32), st.just("PORTFORWARD-" + "0" * 32), st.text("ab-/_%.", max_size=140)),
    query=st.one_of(st.just("?timeout=1"), st.text("timeout=&-1enaif.", max_size=20).map(lambda text: "?" + text)),
)
@example(use="portforward", workflow="hello-1", name="PORTFORWARD-1", query="?timeout=nan")
@example(use="portforward", workflow="hello-1", name="PORTFORWARD-1", query="?timeout=inf")
@example(use="portforward", workflow="hello-1", name="PORTFORWARD-1", query="?timeout=-1e999")
def test_whatever_is_asked_for_is_refused_as_documented(
    server: Server, caplog: pytest.LogCaptureFixture, use: str, workflow: str, name: str, query: str
) -> None:
    if name.startswith("PORTFORWARD-") and query != "?timeout=1":
        query = query if query in {"?timeout=nan", "?timeout=inf", "?timeout=-1e999"} else "?timeout=1"
    caplog.clear()
    path = f"/api/router/{use}/{workflow}/client/{name}{query}".replace("#", "")
    with caplog.at_level(logging.ERROR):
        try:
            with opened(server, path) as ws:
                code, reason = ended(ws, [])
        except InvalidStatus as refused:
            assert 400 <= refused.response.status_code < 500
        else:
            assert code == 4000 or 4400 <= code < 4500 or code == CloseCode.POLICY_VIOLATION, (code, reason)
    assert not caplog.records
