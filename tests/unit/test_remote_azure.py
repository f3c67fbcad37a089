"""The client of Azure: where it looks for credentials, what it asks for, and what errors become."""

from __future__ import annotations

import base64
import io
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from casstore.errors import (
    AccessError,
    CasstoreError,
    IntegrityError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    SourceError,
    StorageError,
    TransientError,
    UsageError,
)
from casstore.remote import azure, parts
from casstore.remote.azure import AzureClient
from casstore.remote.azure_account import find_login
from casstore.remote.base import Absent, Matches
from casstore.remote.credentials import StorageCredential
from casstore.testing.servers.scripted import Asked, Says, ScriptedServer

KEY = base64.b64encode(b"canary-account-key").decode()
DATE = {"Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT", "ETag": '"0x1"'}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parts, "PAUSE", 0.0)


@contextmanager
def talking_to(answer: Callable[[Asked], Says]) -> Iterator[tuple[AzureClient, ScriptedServer]]:
    with ScriptedServer(answer) as server:
        credential = StorageCredential(access_key=KEY, override_url=server.url)
        client = AzureClient("account", "box", url="azure://account/box", credential=credential)
        try:
            yield client, server
        finally:
            client.close()


# --- where credentials come from

CONNECTION = f"DefaultEndpointsProtocol=https;AccountName=account;AccountKey={KEY};EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    ("secret", "override", "environ", "endpoint", "key", "signature"),
    [
        (KEY, None, {}, "https://account.blob.core.windows.net", KEY, ""),
        (CONNECTION, None, {}, "https://account.blob.core.windows.net", KEY, ""),
        (f"AccountKey={KEY};BlobEndpoint=http://[::1]:1/account;AccountName=account", None, {}, "http://[::1]:1/account",
         KEY, ""),
        (CONNECTION, "http://127.0.0.1:1", {}, "http://127.0.0.1:1/account", KEY, ""),
        (KEY, "https://account.blob.core.chinacloudapi.cn/", {}, "https://account.blob.core.chinacloudapi.cn", KEY, ""),
        (KEY, "http://127.0.0.1:1/other", {}, "http://127.0.0.1:1/other", KEY, ""),
        ("?sv=1&sig=abc%3D", None, {}, "https://account.blob.core.windows.net", "", "sv=1&sig=abc%3D"),
        (
            "BlobEndpoint=https://account.blob.core.windows.net;SharedAccessSignature=sv=1&sig=a",
            None, {}, "https://account.blob.core.windows.net", "", "sv=1&sig=a",
        ),
        ("", None, {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION}, "https://account.blob.core.windows.net", KEY, ""),
        ("", None, {"AZURE_STORAGE_KEY": KEY}, "https://account.blob.core.windows.net", KEY, ""),
        (
            "", None, {"AZURE_STORAGE_KEY": KEY, "AZURE_STORAGE_ACCOUNT": "other"},
            "https://account.blob.core.windows.net", "", "",
        ),
        (
            "", None, {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION.replace("=account;", "=other;")},
            "https://account.blob.core.windows.net", "", "",
        ),
        ("", None, {}, "https://account.blob.core.windows.net", "", ""),
    ],
)  # fmt: skip
def test_login(
    secret: str, override: str | None, environ: dict[str, str], endpoint: str, key: str, signature: str
) -> None:
    found = find_login("account", StorageCredential(access_key=secret, override_url=override), environ)
    assert (found.endpoint, found.key, found.signature) == (endpoint, key, signature)
    assert KEY not in repr(found)
    assert "sig=" not in repr(found)


@pytest.mark.parametrize(
    ("secret", "override", "expected"),
    [
        ("not-base-64!", None, AccessError),
        (CONNECTION.replace("=account;", "=other;"), None, AccessError),
        ("AccountName=account", None, AccessError),
        ("", "http://127.0.0.1:1", AccessError),
        (KEY, "ftp://somewhere", UsageError),
        (KEY, "https://user:pw@somewhere", UsageError),
        (KEY, "somewhere:10000", UsageError),
    ],
)
def test_credential_that_can_not_be_one(secret: str, override: str | None, expected: type[CasstoreError]) -> None:
    with pytest.raises(expected) as caught:
        find_login("account", StorageCredential(access_key=secret, override_url=override), {})
    assert "\n" not in caught.value.message
    for hidden in (KEY, "not-base-64!", "user:pw"):
        assert hidden not in caught.value.message + (caught.value.hint or "")


def test_no_credential_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity import CredentialUnavailableError

    class Nothing:
        def get_token(self, *_: object, **__: object) -> None:
            raise CredentialUnavailableError(message="nothing " * 100)

        def close(self) -> None:
            pass

    monkeypatch.setattr(azure, "_machine_identity", Nothing)
    client = AzureClient("account", "box", url="azure://account/box")
    with pytest.raises(AccessError) as caught:
        client.head("a")
    assert "osmo credential set" in (caught.value.hint or "")
    assert len(caught.value.message) < 200
    client.close()


# --- what errors become

ERRORS = [
    (404, "BlobNotFound", NotFoundError),
    (404, "ContainerNotFound", NotFoundError),
    (404, "", NotFoundError),
    (409, "BlobAlreadyExists", PreconditionError),
    (412, "ConditionNotMet", PreconditionError),
    (412, "LeaseIdMissing", StorageError),
    (403, "AuthenticationFailed", AccessError),
    (403, "AuthorizationFailure", AccessError),
    (403, "AuthorizationPermissionMismatch", AccessError),
    (401, "NoAuthenticationInformation", AccessError),
    (409, "BlobImmutableDueToPolicy", AccessError),
    (503, "ServerBusy", TransientError),
    (500, "InternalError", TransientError),
    (500, "OperationTimedOut", TransientError),
    (502, "", TransientError),
    (408, "", TransientError),
    (429, "TooManyRequests", TransientError),
    (400, "Md5Mismatch", TransientError),
    (400, "InvalidBlockList", TransientError),
    (400, "InvalidResourceName", StorageError),
    (409, "BlobArchived", StorageError),
    (501, "NotImplemented", StorageError),
    (507, "", OutOfSpaceError),
    (302, "", StorageError),
]


@pytest.mark.parametrize(("status", "code", "expected"), ERRORS)
def test_error(status: int, code: str, expected: type[CasstoreError], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "signature-that-was-refused"
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{secret}\nline</Message></Error>".encode()
    headers = {"x-ms-error-code": code} if code else {}

    def answer(asked: Asked) -> Says:
        return Says(status, text, {**headers, "Content-Type": "application/xml"})

    with talking_to(answer) as (client, server):
        calls: list[Callable[[], object]] = [
            lambda: client.head("a"),
            lambda: client.read("a"),
            lambda: client.read("a", offset=3, length=4),
            lambda: client.put("a", [b"x"]),
            lambda: client.put("a", [b"x"], condition=Absent()),
            lambda: list(client.list("")),
            lambda: list(client.list("", recursive=False)),
        ]
        if expected is not NotFoundError:
            calls += [lambda: client.delete(["a"]), lambda: client.delete(["a", "b"])]
        for call in calls:
            before = len(server.asked)
            with pytest.raises(expected) as caught:
                call()
            assert type(caught.value) is expected
            assert "\n" not in caught.value.message
            assert "azure://account/box" in caught.value.message
            assert len(server.asked) == before + 1, "a client tries once"
            assert secret not in caught.value.message
            assert caught.value.__suppress_context__
        sent = server.asked[0].headers["authorization"]
    for hidden in (secret, KEY, sent):
        assert hidden not in caplog.text


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({"Retry-After": "7"}, 7.0), ({"x-ms-retry-after-ms": "1500"}, 1.5), ({"Retry-After": "9e9"}, 300.0), ({}, None)],
)
def test_service_says_when_to_come_back(headers: dict[str, str], expected: float | None) -> None:
    with (
        talking_to(lambda _: Says(503, b"", {**headers, "x-ms-error-code": "ServerBusy"})) as (client, _),
        pytest.raises(TransientError) as caught,
    ):
        client.put("a", [b"x"])
    assert caught.value.retry_after == expected


def test_replaced_blob_is_gone() -> None:
    """Some services answer a swap of a blob that is not there with 404."""

    def answer(asked: Asked) -> Says:
        exists = asked.method == "GET" and "restype=container" in asked.path
        return Says(200, b"", DATE) if exists else Says(404, b"", {"x-ms-error-code": "BlobNotFound"})

    with talking_to(answer) as (client, _), pytest.raises(PreconditionError):
        client.put("a", [b"x"], condition=Matches("0x1"))


def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    credential = StorageCredential(access_key=KEY, override_url=f"http://127.0.0.1:{port}")
    client = AzureClient("account", "box", url="azure://account/box", credential=credential)
    with pytest.raises(TransientError) as caught:
        client.head("a")
    assert caught.value.message == "azure://account/box/a: no connection to the service"
    client.close()


def test_connection_that_drops() -> None:
    with talking_to(lambda _: Says(drop=True)) as (client, _):
        for call in (lambda: client.head("a"), lambda: client.put("a", [b"x"]), lambda: list(client.list(""))):
            with pytest.raises(TransientError):
                call()


def test_answer_that_makes_no_sense() -> None:
    for said in (Says(200, b"<html>"), Says(200), Says(206, b"12345", {**DATE, "Content-Range": "nonsense"})):
        with talking_to(lambda _, said=said: said) as (client, _):
            for call in (
                lambda: client.read("a", offset=0, length=5),
                lambda: list(client.list("")),
            ):
                with pytest.raises((StorageError, IntegrityError)):
                    call()


def test_another_range_than_was_asked_for() -> None:
    said = Says(206, b"123", {**DATE, "Content-Range": "bytes 0-2/100"})
    with talking_to(lambda _: said) as (client, _), pytest.raises(IntegrityError):
        client.read("a", offset=0, length=5)


# --- what is asked for


def test_conditions_and_checksums_are_sent() -> None:
    with talking_to(lambda _: Says(201, b"", DATE)) as (client, server):
        assert client.put("a", [b"x"], condition=Absent()) == "0x1"
        client.put("a", [b"x"], condition=Matches("0x7"))
        client.put("a", [b"x"])
        with pytest.raises(PreconditionError):
            client.put("a", [b"x"], condition=Matches('no "tag" at all'))
    assert [asked.headers.get("if-none-match") for asked in server.asked] == ["*", None, None]
    assert [asked.headers.get("if-match") for asked in server.asked] == [None, '"0x7"', None]
    assert {asked.headers["content-md5"] for asked in server.asked} == {"ndTkYSaMgDT1yFZOFVxnpg=="}


def test_the_condition_of_a_large_put_is_on_the_list_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "_SINGLE", 10)
    monkeypatch.setattr(azure, "_PART", 4)
    with talking_to(lambda _: Says(201, b"", DATE)) as (client, server):
        client.put("a", [b"0123", b"456789", b"abcde"], condition=Matches("0x7"))
    *blocks, last = server.asked
    assert sorted(asked.body for asked in blocks) == [b"0123", b"4567", b"89ab", b"cde"]
    assert all("comp=block&" in f"{asked.path}&" and "if-match" not in asked.headers for asked in blocks)
    assert "comp=blocklist" in last.path
    assert last.headers["if-match"] == '"0x7"'
    names = [base64.b64decode(name.partition(b"<")[0]) for name in last.body.split(b"<Latest>")[1:]]
    assert len(names) == 4
    assert names == sorted(names)


def test_a_part_that_fails_for_the_moment_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "_PART", 4)
    failed: list[bytes] = []

    def answer(asked: Asked) -> Says:
        if asked.body not in failed and len(failed) < 3:
            failed.append(asked.body)
            return Says(503, b"", {"x-ms-error-code": "ServerBusy"})
        return Says(201, b"", DATE)

    told: list[int] = []
    with talking_to(answer) as (client, _):
        assert client.upload("a", io.BytesIO(b"0123456789"), advance=told.append) == "0x1"
    assert len(failed) == 3
    assert sum(told) == 10


@pytest.mark.parametrize("size", [2, 3, 9, 11, 100])
def test_stream_of_another_size(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(azure, "_PART", 4)
    with talking_to(lambda _: Says(201, b"", DATE)) as (client, server), pytest.raises(SourceError):
        client.upload("a", io.BytesIO(b"0123456789"), size=size)
    assert not [asked for asked in server.asked if "comp=block&" not in f"{asked.path}&"], "nothing is made of it"


def test_listing_in_another_order_is_refused() -> None:
    def page(*names: str, following: str = "") -> bytes:
        blobs = "".join(
            f"<Blob><Name>{name}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified>"
            f"<Etag>0x1</Etag><Content-Length>1</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name in names
        )
        text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{following}</NextMarker></EnumerationResults>"
        return f"<?xml version='1.0'?>{text}".encode()

    def answer(asked: Asked) -> Says:
        body = page("a", "c") if "marker=" in asked.path else page("b", "d", following="2")
        return Says(200, body, {"Content-Type": "application/xml"})

    with talking_to(answer) as (client, _):
        listing = client.list("")
        assert [next(listing).key, next(listing).key] == ["b", "d"]
        with pytest.raises(StorageError, match="order"):
            next(listing)


def test_folders_of_a_hierarchy_are_no_blobs() -> None:
    blob = (
        "<Blob><Name>{}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 10:00:00 GMT</Last-Modified><Etag>0x1</Etag>"
        "<Content-Length>0</Content-Length><BlobType>BlockBlob</BlobType></Properties><Metadata>{}</Metadata></Blob>"
    )
    blobs = blob.format("a", "<hdi_isfolder>true</hdi_isfolder>") + blob.format("a/b", "")
    text = f"<?xml version='1.0'?><EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
    with talking_to(lambda _: Says(200, text.encode(), {"Content-Type": "application/xml"})) as (client, _):
        assert [info.key for info in client.list("")] == ["a/b"]


@pytest.mark.parametrize("key", ["", "a\\b"])
def test_names_that_azure_does_not_have(key: str) -> None:
    with talking_to(lambda _: Says(200)) as (client, server), pytest.raises(UsageError):
        client.head(key)
    assert server.asked == []


def test_closed() -> None:
    with talking_to(lambda _: Says(200)) as (client, server):
        client.close()
        client.close()
        for call in (
            lambda: client.head("a"),
            lambda: client.read("a"),
            lambda: client.put("a", [b"x"]),
            lambda: client.upload("a", io.BytesIO(b"x")),
            lambda: list(client.list("")),
            lambda: client.delete(["a"]),
        ):
            with pytest.raises(StorageError):
                call()
    assert server.asked == []
