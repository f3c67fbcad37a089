"""The client of Google Cloud Storage: who asks, what is asked for, how answers are checked, and what errors become."""

from __future__ import annotations

import io
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import google.auth
import google.auth.exceptions
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
from casstore.remote import gcs, gcs_auth, parts
from casstore.remote.base import Absent, Matches
from casstore.remote.credentials import StorageCredential
from casstore.remote.gcs import GcsClient
from casstore.remote.gcs_auth import HmacSigner, find_endpoint
from casstore.remote.http_pool import make_pool
from casstore.testing.servers.gcs import GcsServer
from casstore.testing.servers.scripted import Asked, Says, ScriptedServer

SECRET = "canary-hmac-secret"
SEEN = {"x-goog-generation": "17", "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parts, "PAUSE", 0.0)


@contextmanager
def talking_to(answer: Callable[[Asked], Says]) -> Iterator[tuple[GcsClient, ScriptedServer]]:
    with ScriptedServer(answer) as server:
        credential = StorageCredential(access_key_id="GOOG1E", access_key=SECRET, override_url=server.url)
        client = GcsClient("box", url="gs://box", credential=credential)
        try:
            yield client, server
        finally:
            client.close()


# --- who asks, and where


@pytest.mark.parametrize(
    ("override", "environ", "expected"),
    [
        (None, {}, "https://storage.googleapis.com"),
        ("https://storage.example.com/", {}, "https://storage.example.com"),
        (None, {"STORAGE_EMULATOR_HOST": "localhost:9023"}, "http://localhost:9023"),
        (None, {"STORAGE_EMULATOR_HOST": "http://localhost:9023"}, "http://localhost:9023"),
        ("http://a:1", {"STORAGE_EMULATOR_HOST": "localhost:9023"}, "http://a:1"),
    ],
)
def test_endpoint(override: str | None, environ: dict[str, str], expected: str) -> None:
    assert find_endpoint(StorageCredential(override_url=override), environ) == expected


@pytest.mark.parametrize("override", ["ftp://a", "https://user:pw@a", "https://", "https://a?b=c"])
def test_endpoint_that_is_none(override: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_endpoint(StorageCredential(override_url=override), {})
    assert "pw" not in caught.value.message


def test_signature_is_that_of_the_documentation_s_algorithm() -> None:
    """Worked out step by step here, apart from the code that is tested."""
    import hashlib
    import hmac as mac

    headers = {"x-goog-if-generation-match": "0", "Content-Length": "1", "x-goog-meta-note": "two  words "}
    now = datetime(2026, 11, 21, 10, 30, 15, tzinfo=UTC)
    url = "https://storage.googleapis.com/box/a%20b"
    HmacSigner("GOOG1E", SECRET, "europe-west1").sign(
        "PUT", url, [("uploadId", "x/y"), ("partNumber", "2")], headers, now
    )
    canonical = (
        "PUT\n/box/a%20b\npartNumber=2&uploadId=x%2Fy\n"
        "host:storage.googleapis.com\nx-goog-content-sha256:UNSIGNED-PAYLOAD\nx-goog-date:20261121T103015Z\n"
        "x-goog-if-generation-match:0\nx-goog-meta-note:two words\n\n"
        "host;x-goog-content-sha256;x-goog-date;x-goog-if-generation-match;x-goog-meta-note\nUNSIGNED-PAYLOAD"
    )
    scope = "20261121/europe-west1/storage/goog4_request"
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"GOOG4-HMAC-SHA256\n20261121T103015Z\n{scope}\n{hashed}"
    key = ("GOOG4" + SECRET).encode()
    for part in (b"20261121", b"europe-west1", b"storage", b"goog4_request"):
        key = mac.new(key, part, hashlib.sha256).digest()
    signature = mac.new(key, text.encode(), hashlib.sha256).hexdigest()
    assert headers["Authorization"] == (
        f"GOOG4-HMAC-SHA256 Credential=GOOG1E/{scope},SignedHeaders=host;x-goog-content-sha256;x-goog-date;"
        f"x-goog-if-generation-match;x-goog-meta-note,Signature={signature}"
    )


@pytest.mark.parametrize(
    "key", ["{}", "{nonsense", '{"type": "service_account"}', '{"type": "external_account"}', "{" + SECRET]
)
def test_key_file_that_is_none(key: str) -> None:
    with pytest.raises(AccessError) as caught:
        GcsClient("box", url="gs://box", credential=StorageCredential(access_key_id="x", access_key=key))
    assert SECRET not in caught.value.message


def test_secret_without_an_id() -> None:
    with pytest.raises(AccessError) as caught:
        GcsClient("box", url="gs://box", credential=StorageCredential(access_key=SECRET))
    assert SECRET not in caught.value.message + (caught.value.hint or "")


class Tokens:
    """What google-auth finds on a machine."""

    def __init__(self, token: str, error: Exception | None = None) -> None:
        self.token = token
        self.error = error

    def before_request(self, request: Any, method: str, url: str, headers: dict[str, str]) -> None:
        if self.error is not None:
            raise self.error
        headers["Authorization"] = f"Bearer {self.token}"


def test_identity_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with GcsServer() as server:
        monkeypatch.setattr(gcs_auth, "ENDPOINT", server.url)
        monkeypatch.setattr(google.auth, "default", lambda **_: (Tokens(server.token), None))
        client = GcsClient(server.bucket(), url="gs://box")
        # Only Google's own hosts are shown the machine's identity; here the double stands for them.
        client._signer = gcs_auth._TokenSigner("gs://box", client._http, None)  # type: ignore[assignment]
        tag = client.put("a", [b"x"], condition=Absent())
        assert client.read("a").etag == tag
        client.close()


def test_another_endpoint_is_not_shown_the_identity_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google.auth, "default", lambda **_: (Tokens("machine-token"), None))
    with ScriptedServer(lambda _: Says(200, b"", SEEN)) as server:
        for credential in (StorageCredential(override_url=server.url), None):
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
            client = GcsClient("box", url="gs://box", credential=credential)
            client.put("a", [b"x"])
            client.close()
    assert all("authorization" not in asked.headers for asked in server.asked)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (google.auth.exceptions.RefreshError("no", retryable=False), AccessError),
        (google.auth.exceptions.RefreshError("no", retryable=True), TransientError),
        (google.auth.exceptions.TransportError("no"), TransientError),
        (google.auth.exceptions.DefaultCredentialsError("no " * 200), AccessError),
    ],
)
def test_no_token(monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[CasstoreError]) -> None:
    monkeypatch.setattr(google.auth, "default", lambda **_: (Tokens("", error), None))
    client = GcsClient("box", url="gs://box")
    with pytest.raises(expected) as caught:
        client.head("a")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 120
    client.close()


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:pw@proxy.example.com:3128")
    monkeypatch.setenv("no_proxy", "internal.example.com")
    assert type(make_pool("https://internal.example.com")).__name__ == "PoolManager"
    pool: Any = make_pool("https://storage.googleapis.com")
    assert (pool.proxy.host, pool.proxy.port, pool.proxy.auth) == ("proxy.example.com", 3128, None)
    assert pool.proxy_headers["proxy-authorization"].startswith("Basic ")


# --- what errors become

ERRORS = [
    (404, "NoSuchKey", NotFoundError),
    (404, "NoSuchBucket", NotFoundError),
    (404, "", NotFoundError),
    (412, "PreconditionFailed", PreconditionError),
    (412, "", PreconditionError),
    (401, "AuthenticationRequired", AccessError),
    (403, "AccessDenied", AccessError),
    (403, "SignatureDoesNotMatch", AccessError),
    (400, "ExpiredToken", AccessError),
    (403, "", AccessError),
    (429, "SlowDown", TransientError),
    (503, "ServiceUnavailable", TransientError),
    (500, "InternalError", TransientError),
    (502, "", TransientError),
    (504, "", TransientError),
    (408, "RequestTimeout", TransientError),
    (400, "BadDigest", TransientError),
    (507, "", OutOfSpaceError),
    (400, "InvalidArgument", StorageError),
    (301, "", StorageError),
    (304, "", StorageError),
]


@pytest.mark.parametrize(("status", "code", "expected"), ERRORS)
def test_error(status: int, code: str, expected: type[CasstoreError], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "signature-that-was-refused"
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Details>{secret}\nline</Details></Error>".encode()
    bare = status == 304
    with talking_to(lambda _: Says(status, b"" if bare else text)) as (client, server):
        calls: list[Callable[[], object]] = [
            lambda: client.read("a"),
            lambda: client.read("a", offset=3, length=4),
            lambda: client.put("a", [b"x"]),
            lambda: client.put("a", [b"x"], condition=Absent()),
            lambda: list(client.list("")),
        ]
        if expected is not NotFoundError:
            calls += [lambda: client.delete(["a"]), lambda: client.put("a", [b"x"], condition=Matches("1"))]
        for call in calls:
            before = len(server.asked)
            with pytest.raises(expected) as caught:
                call()
            assert type(caught.value) is expected
            assert "\n" not in caught.value.message
            assert "gs://box" in caught.value.message
            assert len(server.asked) == before + 1, "a client tries once"
            assert secret not in caught.value.message
        signature = server.asked[0].headers["authorization"].rpartition("=")[2]
    for hidden in (secret, SECRET, signature):
        assert hidden not in caplog.text


@pytest.mark.parametrize(
    ("said", "expected"),
    [("7", 7.0), ("1e9", 300.0), ("-3", 0.0), ("soon", None), ("nan", None), (None, None)],
)
def test_service_says_when_to_come_back(said: str | None, expected: float | None) -> None:
    headers = {"Retry-After": said} if said else {}
    with talking_to(lambda _: Says(503, b"", headers)) as (client, _), pytest.raises(TransientError) as caught:
        client.put("a", [b"x"])
    assert caught.value.retry_after == expected


def test_replaced_object_is_gone() -> None:
    for code, expected in (("NoSuchKey", PreconditionError), ("NoSuchBucket", NotFoundError)):
        body = f"<Error><Code>{code}</Code></Error>".encode()
        with talking_to(lambda _, body=body: Says(404, body)) as (client, _), pytest.raises(expected):
            client.put("a", [b"x"], condition=Matches("5"))


def test_bucket_that_is_not_there() -> None:
    body = b"<Error><Code>NoSuchBucket</Code></Error>"
    with talking_to(lambda _: Says(404, body)) as (client, _), pytest.raises(NotFoundError, match="no such bucket"):
        client.delete(["a"])


def test_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    credential = StorageCredential(access_key_id="x", access_key=SECRET, override_url=f"http://127.0.0.1:{port}")
    client = GcsClient("box", url="gs://box", credential=credential)
    with pytest.raises(TransientError) as caught:
        client.head("a")
    assert caught.value.message == "gs://box/a: no connection to the endpoint"
    client.close()


# --- answers that are wrong

WRONG = [
    (Says(drop=True), TransientError),
    (Says(206, b"123", {**SEEN, "Content-Range": "bytes 0-4/9"}, length=5), TransientError),
    (Says(206, b"123", {**SEEN, "Content-Range": "bytes 0-2/3"}), IntegrityError),
    (Says(206, b"12345", {**SEEN, "Content-Range": "bytes 1-5/9"}), IntegrityError),
    (Says(206, b"123456", {**SEEN, "Content-Range": "bytes 0-5/9"}), IntegrityError),
    (Says(206, b"123456", {**SEEN, "Content-Range": "bytes 0-4/9"}), IntegrityError),
    (Says(206, b"12345", {**SEEN, "Content-Range": "nonsense"}), IntegrityError),
    (Says(206, b"12345", SEEN), IntegrityError),
    (Says(200, b"123456789", SEEN), IntegrityError),
    (Says(416, b"", {"Content-Range": "bytes */3"}), TransientError),
]


@pytest.mark.parametrize(("said", "expected"), WRONG)
def test_range_that_is_another(said: Says, expected: type[CasstoreError]) -> None:
    with (
        talking_to(lambda asked: said if asked.method == "GET" else Says(drop=True)) as (client, _),
        pytest.raises(expected),
    ):
        client.read("a", offset=0, length=5)


def test_whole_object_that_is_damaged() -> None:
    for said in (
        Says(200, b"12345", {**SEEN, "x-goog-hash": "crc32c=AAAAAA==,md5=abc"}),
        Says(200, b"123", SEEN, length=5),
    ):
        with talking_to(lambda _, said=said: said) as (client, _), pytest.raises(TransientError):
            client.read("a")


def test_object_without_a_length() -> None:
    said = Says(200, b"3\r\n123\r\n0\r\n\r\n", {**SEEN, "Transfer-Encoding": "chunked", "Content-Length": ""})
    with talking_to(lambda _: said) as (client, _), pytest.raises(StorageError):
        client.read("a")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><ListBucketResult>&a;</ListBucketResult>",
        b"<R><Contents><Key>a</Key><Size>-1</Size><LastModified>2026-11-21T10:00:00Z</LastModified></Contents></R>",
        b"<R><Contents><Key>a</Key><Size>1</Size><LastModified>yesterday</LastModified></Contents></R>",
        b"<R><IsTruncated>true</IsTruncated></R>",
        b"<R><IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken></R>",
        b"<R><CommonPrefixes><Prefix>elsewhere/</Prefix></CommonPrefixes></R>",
    ],
)
def test_listing_that_is_none(body: bytes) -> None:
    with talking_to(lambda _: Says(200, body)) as (client, _), pytest.raises(StorageError):
        list(client.list("x"))


def test_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "ANSWER", 1000)
    with talking_to(lambda _: Says(200, b"<R>" + b" " * 1000 + b"</R>")) as (client, _), pytest.raises(StorageError):
        list(client.list(""))


def test_put_without_a_generation() -> None:
    for generation in ("", "0", "abc"):
        with (
            talking_to(lambda _, said=generation: Says(200, b"", {"x-goog-generation": said})) as (client, _),
            pytest.raises(StorageError),
        ):
            client.put("a", [b"x"])


# --- what is asked for


def test_conditions_are_on_generations() -> None:
    with talking_to(lambda _: Says(200, b"", SEEN)) as (client, server):
        assert client.put("a", [b"x"], condition=Absent()) == "17"
        client.put("a", [b"x"], condition=Matches("12"))
        client.put("a", [b"x"])
        for stale in ("", "0", "nonsense", "-1", '"abc"'):
            with pytest.raises(PreconditionError):
                client.put("a", [b"x"], condition=Matches(stale))
    assert [asked.headers.get("x-goog-if-generation-match") for asked in server.asked] == ["0", "12", None]


@pytest.mark.parametrize(
    ("key", "path"),
    [("a/../b", "/box/a/%2E%2E/b"), ("./a", "/box/%2E/a"), ("a?b#c", "/box/a%3Fb%23c"), ("//a", "/box///a")],
)
def test_keys_are_not_resolved(key: str, path: str) -> None:
    with talking_to(lambda _: Says(200, b"", SEEN)) as (client, server):
        client.put(key, [b"x"])
    assert server.asked[0].path == path


@pytest.fixture(scope="module")
def double() -> Iterator[GcsServer]:
    with GcsServer() as server:
        yield server


@pytest.fixture
def client(double: GcsServer) -> Iterator[GcsClient]:
    bucket = double.bucket()
    found = GcsClient(bucket, url=f"gs://{bucket}", credential=double.credential)
    yield found
    found.close()


def test_large_put_without_a_condition_goes_in_parts(
    client: GcsClient, double: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "THRESHOLD", 12 << 20)
    monkeypatch.setattr(gcs, "PART", 5 << 20)
    data = bytes(range(251)) * (13 << 20 >> 7)
    tag = client.put("large", [data[:1000], data[1000:]])
    assert client.read("large").data == data
    assert client.head("large").etag == tag
    assert double.unfinished(client.url[5:]) == 0


def test_upload_whose_parts_fail_is_aborted(
    client: GcsClient, double: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = GcsClient._call

    def fail(self: GcsClient, method: str, key: str | None, **options: Any) -> Any:
        if dict(options.get("query", ())).get("partNumber") == "2":
            raise StorageError("no")
        return call(self, method, key, **options)

    monkeypatch.setattr(GcsClient, "_call", fail)
    with pytest.raises(StorageError, match="no"):
        client.upload("stream", io.BytesIO(bytes(20 << 20)))
    assert double.unfinished(client.url[5:]) == 0
    assert list(client.list("")) == []


def test_part_that_fails_for_the_moment_is_sent_again(client: GcsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    call, failed = GcsClient._call, set()

    def fail(self: GcsClient, method: str, key: str | None, **options: Any) -> Any:
        number = dict(options.get("query", ())).get("partNumber")
        if number and number not in failed:
            failed.add(number)
            raise TransientError("for the moment")
        return call(self, method, key, **options)

    monkeypatch.setattr(GcsClient, "_call", fail)
    data = bytes(range(250)) * 80_000
    client.upload("stream", io.BytesIO(data))
    assert len(failed) == 3
    assert client.read("stream").data == data


@pytest.mark.parametrize("size", [0, 5, 9 << 20, 100 << 20])
def test_stream_of_another_size(client: GcsClient, double: GcsServer, size: int) -> None:
    with pytest.raises(SourceError):
        client.upload("stream", io.BytesIO(bytes(20 << 20)), size=size)
    assert double.unfinished(client.url[5:]) == 0
    assert list(client.list("")) == []


def test_wrong_secret(double: GcsServer) -> None:
    for changed in ({"access_key": SECRET}, {"access_key_id": "GOOG1EOTHER"}):
        known = {"access_key_id": double.key_id, "access_key": double.secret}
        credential = StorageCredential(**{**known, **changed}, override_url=double.url)
        client = GcsClient(double.bucket(), url="gs://box", credential=credential)
        with pytest.raises(AccessError) as caught:
            client.put("a", [b"x"])
        assert "osmo credential set" in (caught.value.hint or "")
        client.close()


def test_closed(client: GcsClient) -> None:
    client.put("a", [b"x"])
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


def test_secrets_are_in_no_repr(client: GcsClient, double: GcsServer) -> None:
    for found in (client, client._signer, double.credential):
        assert double.secret not in repr(found)
