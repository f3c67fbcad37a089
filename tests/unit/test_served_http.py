"""Requests of the back end through a server: what is tried again and for how long, and to whom the login is shown."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from casstore.backend.served.http import Http, UnreachableError
from casstore.backend.served.urls import Urls
from casstore.errors import NotFoundError, ServiceError, TransientError, UsageError
from casstore.wire.v1 import Signed, UrlsReply

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer, port: int = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer(self)

        do_GET = do_PUT = do_POST = do  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    for name, value in {"Content-Length": str(len(body)), **said}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


class Clock:
    """Time passes where somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


def client(url: str, clock: Clock | None = None, **options: Any) -> Http:
    clock = clock or Clock()
    return Http(
        url, lambda: {"Authorization": "Bearer secret", "x-osmo-user": "ann"}, clock=clock, sleep=clock.sleep, **options
    )


def test_the_login_is_shown_to_the_server_alone() -> None:
    seen: list[tuple[str, Any]] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append((handler.path, dict(handler.headers)))
        say(handler, 200)

    with answering(answer) as server, answering(answer) as bucket:
        http = client(f"{server}/behind/a/proxy")
        http.server("GET", "/api/x")
        http.data("GET", f"{bucket}/pack?sig=1", headers={"Range": "bytes=0-1"}, limit=10)
        http.data("PUT", "/api/v1/bucket/b/blob/k?sig=2", headers={}, body=[b"a", memoryview(b"bc")], limit=10)
        http.close()
    assert [path for path, _ in seen] == [
        "/behind/a/proxy/api/x",
        "/pack?sig=1",
        "/behind/a/proxy/api/v1/bucket/b/blob/k?sig=2",
    ]
    shown = [{name.lower() for name in headers} & {"authorization", "x-osmo-user"} for _, headers in seen]
    assert [len(names) for names in shown] == [2, 0, 0]
    assert seen[2][1]["Content-Length"] == "3"


def test_what_passes_is_tried_again() -> None:
    answers = [503, 429, 502, 200]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        say(handler, answers.pop(0), b"x", Retry_After="7")

    clock = Clock()
    with answering(answer) as url:
        http = client(url, clock)
        assert http.server("POST", "/x", body=b"{}").status == 200
        http.close()
    assert len(clock.waited) == 3
    assert all(7 <= seconds < 8 for seconds in clock.waited)


def test_nothing_is_tried_for_ever() -> None:
    clock = Clock()
    with answering(lambda handler: say(handler, 503, b"busy")) as url:
        http = client(url, clock, patience=30.0)
        assert http.server("GET", "/x").data == b"busy"  # what the server said is told
        http.close()
    assert 100 < clock.now <= 131


@pytest.mark.parametrize("status", [400, 403, 404, 409, 500])
def test_what_does_not_pass_is_not_tried_again(status: int) -> None:
    clock = Clock()
    with answering(lambda handler: say(handler, status)) as url:
        http = client(url, clock)
        assert http.server("GET", "/x").status == status
        http.close()
    assert clock.waited == []


def test_a_bucket_that_fails_the_server_was_tried_by_it_already() -> None:
    clock = Clock()
    with answering(lambda handler: say(handler, 502, b'{"kind":"storage"}')) as url:
        http = client(url, clock)
        assert http.server("GET", "/x").status == 502
        http.close()
    assert clock.waited == []


def test_nobody_there_is_told_soon_and_who_was_there_is_waited_for() -> None:
    clock = Clock()
    with answering(lambda handler: say(handler, 200, b"ok")) as url:
        port = int(url.rpartition(":")[2])
    http = client(url, clock)
    with pytest.raises(UnreachableError, match="cannot connect"):
        http.server("GET", "/x")
    assert clock.now < 102
    with answering(lambda handler: say(handler, 200, b"ok", Connection="close"), port):
        assert http.server("GET", "/x").data == b"ok"
    revived = contextlib.ExitStack()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now > 150 and len(clock.waited) < 1000:
            clock.waited += [0.0] * 1000
            revived.enter_context(answering(lambda handler: say(handler, 200, b"again"), port))

    http._sleep = sleep
    with revived:
        assert http.server("GET", "/x").data == b"again"
        http.close()
    assert clock.now > 150


def test_an_answer_that_breaks_off_or_is_too_long() -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        say(handler, 200, b"abc", Content_Length="10")
        handler.close_connection = True

    clock = Clock()
    with answering(cut) as url:
        http = client(url, clock, patience=3.0)
        with pytest.raises(TransientError):
            http.data("GET", "/x", headers={}, limit=100)
        http.close()
    with answering(lambda handler: say(handler, 200, b"x" * 1000)) as url:
        http = client(url)
        with pytest.raises(ServiceError, match="1000 bytes"):
            http.data("GET", "/x", headers={}, limit=999)
        assert len(http.data("GET", "/x", headers={}, limit=1000).data) == 1000
        http.close()


@pytest.mark.parametrize("url", ["", "ftp://x", "https://", "x"])
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(UsageError):
        Http(url, dict)


# ---- addresses


def test_addresses_are_asked_for_together_and_used_while_they_last() -> None:
    asked: list[list[str]] = []
    clock = Clock()
    first, go = threading.Event(), threading.Event()

    def ask(keys: Any) -> UrlsReply:
        asked.append([*keys])
        if len(asked) == 1:
            first.set()
            go.wait(10)
        return UrlsReply([Signed(f"/{key}") for key in keys], [], 100.0)

    urls = Urls(ask, clock=clock)
    threads = [threading.Thread(target=urls.get, args=("0",))]
    threads[0].start()
    first.wait(10)
    threads += [threading.Thread(target=urls.get, args=(str(number),)) for number in range(1, 9)]
    for thread in threads[1:]:
        thread.start()
    while len(urls._next.keys) < 8:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert [len(keys) for keys in asked] == [1, 8]
    assert urls.get("5").url == "/5"
    assert len(asked) == 2
    clock.now += 81
    urls.get("5")
    assert len(asked) == 3
    urls.forget("5", urls.get("5"))
    urls.get("5")
    assert len(asked) == 4


def test_one_key_that_is_refused_spoils_no_other() -> None:
    def ask(keys: Any) -> UrlsReply:
        if "bad" in keys:
            raise NotFoundError("bad")
        return UrlsReply([Signed(key) for key in keys], [], 100.0)

    urls = Urls(ask)
    with urls._lock:
        urls._next.keys["bad"] = None
    assert urls.get("good").url == "good"
    with pytest.raises(NotFoundError):
        urls.get("bad")
