"""The network that fails on demand does what a test tells it, and nothing else."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from casstore.testing.proxy import NetFault, NetProxy, NetRule, Passed

BODY = bytes(range(256)) * 2000


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: list[tuple[str, bytes]]

    def log_message(self, *_: Any) -> None:
        pass

    def _take(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.received.append((self.path, body))
        return body

    def do_GET(self) -> None:
        self._take()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_HEAD(self) -> None:
        self._take()
        self.send_response(200)
        self.send_header("Content-Length", "12345")
        self.end_headers()

    def do_PUT(self) -> None:
        size = len(self._take())
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        text = b"%d" % size
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text))


@pytest.fixture
def proxy() -> Iterator[NetProxy]:
    Handler.received = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with NetProxy(f"http://127.0.0.1:{server.server_address[1]}") as found:
        yield found
    server.shutdown()
    server.server_close()
    thread.join()


def ask(
    proxy: NetProxy, method: str = "GET", target: str = "/x", body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.headers)
    finally:
        connection.close()


def rule(fault: NetFault, **fields: Any) -> NetRule:
    return NetRule(fault=fault, **fields)


def test_what_is_not_hit_passes_as_it_is(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.RESET, part="/other"))
    assert ask(proxy)[:2] == (206, BODY)
    assert ask(proxy, "PUT", "/p", b"x" * 300_000)[:2] == (200, b"300000")
    assert ask(proxy, "HEAD")[2]["Content-Length"] == "12345"
    assert Handler.received == [("/x", b""), ("/p", b"x" * 300_000), ("/x", b"")]
    assert proxy.passed == [Passed("GET", "/x", None), Passed("PUT", "/p", None), Passed("HEAD", "/x", None)]
    assert proxy.hits == 0


def test_a_rule_names_its_requests(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.ANSWER, method="GET", part="/a", at=2, times=2, status=429))
    statuses = [ask(proxy, method, target)[0] for method, target in [("GET", "/a"), ("HEAD", "/a"), ("GET", "/b")]]
    statuses += [ask(proxy, "GET", "/a")[0] for _ in range(3)]
    assert statuses == [206, 200, 206, 429, 429, 206]
    assert proxy.hits == 2
    proxy.follow()
    assert ask(proxy, "GET", "/a")[0] == 206
    assert proxy.hits == 0


def test_an_answer_of_its_own(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.ANSWER, status=503, headers={"Retry-After": "7"}, body=b"busy"))
    status, body, headers = ask(proxy, "PUT", "/p", b"x" * 100_000)
    assert (status, body, headers["Retry-After"]) == (503, b"busy", "7")
    assert Handler.received == []


@pytest.mark.parametrize("after", [0, 1, 70_000])
def test_connections_break(proxy: NetProxy, after: int) -> None:
    for fault, expected in (
        (NetFault.RESET, ConnectionError),
        (NetFault.TRUNCATE, http.client.IncompleteRead),
        (NetFault.LOST, ConnectionError),
    ):
        proxy.follow(rule(fault, after=after))
        with pytest.raises(expected):
            ask(proxy)
        assert len(Handler.received) == 1, fault
        Handler.received.clear()
        assert ask(proxy)[1] == BODY
        Handler.received.clear()


def test_a_request_that_is_cut_does_not_arrive(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.CUT, after=1000))
    with pytest.raises(ConnectionError):
        ask(proxy, "PUT", "/p", b"x" * 1000)
    assert Handler.received == []


def test_a_lost_reply_is_of_something_done(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.LOST))
    with pytest.raises(ConnectionError):
        ask(proxy, "PUT", "/p", b"done")
    assert Handler.received == [("/p", b"done")]


@pytest.mark.parametrize("after", [-1, 0, 1000])
def test_what_stands_still_is_let_go(proxy: NetProxy, after: int) -> None:
    proxy.follow(rule(NetFault.STALL, after=after))
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(ask(proxy)[1]))
    thread.start()
    assert proxy.wait_stalled(30)
    assert ask(proxy)[1] == BODY
    assert got == []
    proxy.release()
    thread.join(30)
    assert got == [BODY]


def test_the_end_lets_go_what_stands_still(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.STALL_SEND, after=10))
    failed: list[type[BaseException]] = []

    def send() -> None:
        try:
            ask(proxy, "PUT", "/p", b"x" * 100)
        except (OSError, http.client.HTTPException) as error:
            failed.append(type(error))

    thread = threading.Thread(target=send)
    thread.start()
    assert proxy.wait_stalled(30)
    proxy.close()
    thread.join(30)
    assert len(failed) == 1
    assert Handler.received == []


def test_bytes_and_headers_that_lie(proxy: NetProxy) -> None:
    proxy.follow(rule(NetFault.FLIP, after=5), rule(NetFault.RANGE, at=2), rule(NetFault.THROTTLE, at=3, after=60_000))
    flipped = ask(proxy)[1]
    assert [at for at in range(len(BODY)) if flipped[at] != BODY[at]] == [5]
    assert ask(proxy)[2]["Content-Range"] == f"bytes 1-{len(BODY)}/{len(BODY)}"
    assert ask(proxy)[1] == BODY
    assert proxy.hits == 3


def test_an_announced_body_is_asked_for(proxy: NetProxy) -> None:
    assert ask(proxy, "PUT", "/p", b"x" * 10, Expect="100-continue")[1] == b"10"
