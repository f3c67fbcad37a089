"""Services that answer for ever, or with more than they announce: each request ends, in bounded memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import FormatError, IntegrityError, StorageError, TransientError
from casstore.remote import pace
from casstore.remote.azure import AzureClient
from casstore.remote.base import Absent, ObjectClient
from casstore.remote.credentials import StorageCredential
from casstore.remote.gcs import GcsClient
from casstore.remote.s3 import S3Client
from casstore.testing.servers.scripted import Asked, Says, ScriptedServer

SERVICES = ("s3", "azure", "gcs")
SEEN = {"ETag": '"1"', "x-goog-generation": "1", "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}


def client_of(service: str, url: str) -> ObjectClient:
    credential = StorageCredential(access_key_id="id", access_key="c2VjcmV0", override_url=url)
    if service == "s3":
        return S3Client("box", url="s3://box", credential=credential)
    if service == "azure":
        return AzureClient("account", "box", url="azure://account/box", credential=credential)
    return GcsClient("box", url="gs://box", credential=credential)


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # Azure's library asks three times for what breaks off, with a second in between.
    monkeypatch.setattr("azure.storage.blob._download.time.sleep", lambda _: None)
    return str(request.param)


@pytest.fixture
def talking(service: str) -> Iterator[Callable[[Callable[[Asked], Says]], ObjectClient]]:
    opened: list[Any] = []

    def talk(answer: Callable[[Asked], Says]) -> ObjectClient:
        server = ScriptedServer(answer)
        client = client_of(service, server.url)
        opened.append((client, server))
        return client

    yield talk
    for client, server in opened:
        client.close()
        server.stop()


def ranged(asked: Asked, body: bytes, **more: Any) -> Says:
    """The object, whether a range was asked for or not."""
    headers = dict(SEEN)
    if "range" in asked.headers or "x-ms-range" in asked.headers:
        headers["Content-Range"] = f"bytes 0-{len(body) - 1}/{len(body)}"
        return Says(206, body, headers, **more)
    return Says(200, body, headers, **more)


# --- a byte now and then

CALLS: dict[str, Callable[[ObjectClient], object]] = {
    "read": lambda client: client.read("k"),
    "range": lambda client: client.read("k", offset=0, length=4000),
    "list": lambda client: list(client.list("")),
    "put": lambda client: client.put("k", [b"x"], condition=Absent()),
    "delete": lambda client: client.delete(["a", "b"]),
}


@pytest.mark.parametrize("call", ["read", "range", "list"])
def test_an_answer_that_drips_is_given_up(talking: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "READING", 0.15)
    client = talking(lambda asked: ranged(asked, b"<" + b" " * 3999, every=0.02))
    with pytest.raises(TransientError) as caught:
        CALLS[call](client)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("call", ["put", "delete", "read"])
def test_a_refusal_that_drips_is_given_up(talking: Any, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "READING", 0.15)
    monkeypatch.setattr(pace, "WRITING", 0.15)
    client = talking(lambda _: Says(403, b" " * 4000, every=0.02))
    with pytest.raises(TransientError):
        CALLS[call](client)


def test_headers_that_drip_are_given_up(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "READING", 0.15)
    stopped = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            try:
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 4000:
                    connection.sendall(bytes([byte]))
                    if stopped.wait(0.02):
                        return
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        client = client_of(service, f"http://127.0.0.1:{server.getsockname()[1]}")
        try:
            with pytest.raises(TransientError):
                client.head("k")
        finally:
            stopped.set()
            thread.join()
            client.close()


def test_what_keeps_coming_has_its_time(talking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none at first, and a second more with each byte; each look at the clock takes half of one."""
    monkeypatch.setattr(pace, "READING", 0.0)
    monkeypatch.setattr(pace, "RATE", 1)
    clock = count()
    monkeypatch.setattr(pace, "monotonic", lambda: next(clock) / 2)
    client = talking(lambda asked: ranged(asked, bytes(100)))
    assert client.read("k").data == bytes(100)


# --- more than is announced


def test_more_than_the_limit_is_not_taken(talking: Any) -> None:
    client = talking(lambda asked: ranged(asked, bytes(1000)))
    with pytest.raises(FormatError, match="1000 bytes; the limit is 999"):
        client.read("k", limit=999)
    assert client.read("k", limit=1000).data == bytes(1000)


def test_a_limit_holds_before_anything_has_come(talking: Any) -> None:
    """A tebibyte is announced, and nothing of it sent: whoever waits for it gets another error."""

    def answer(asked: Asked) -> Says:
        ranges = "range" in asked.headers or "x-ms-range" in asked.headers
        headers = {**SEEN, "Content-Range": f"bytes 0-{(1 << 40) - 1}/{1 << 40}"} if ranges else SEEN
        return Says(206 if ranges else 200, b"", headers, length=1 << 40)

    with pytest.raises(FormatError, match="the limit is 1000"):
        talking(answer).read("k", limit=1000)


def test_what_comes_beyond_the_announced_is_not_taken(talking: Any) -> None:
    def answer(asked: Asked) -> Says:
        said = ranged(asked, bytes(10))
        return Says(said.status, bytes(10) + b"x" * (8 << 20), said.headers, length=10)

    assert talking(answer).read("k", limit=10).data == bytes(10)


def test_pieces_without_end_are_not_taken(talking: Any) -> None:
    """A transfer encoding makes the announced length void."""
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"

    def answer(asked: Asked) -> Says:
        said = ranged(asked, bytes(10))
        headers = {**said.headers, "Transfer-Encoding": "chunked"}
        return Says(said.status, piece * 4 + b"0\r\n\r\n", headers, length=10)

    with pytest.raises((IntegrityError, StorageError)):
        talking(answer).read("k", limit=10)
