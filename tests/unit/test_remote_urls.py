"""URLs of storage: what they name, and what is refused."""

from __future__ import annotations

import pytest

from casstore.errors import UsageError
from casstore.remote.urls import StorageUrl, parse_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", StorageUrl(scheme="s3", profile="s3://bucket", bucket="bucket", prefix="")),
        ("S3://bucket/", StorageUrl(scheme="s3", profile="s3://bucket", bucket="bucket", prefix="")),
        ("s3://b.c-d/a/b/", StorageUrl(scheme="s3", profile="s3://b.c-d", bucket="b.c-d", prefix="a/b")),
        ("s3://b1/a b/ü/100%/x@y", StorageUrl(scheme="s3", profile="s3://b1", bucket="b1", prefix="a b/ü/100%/x@y")),
        ("gs://my_bucket/p", StorageUrl(scheme="gs", profile="gs://my_bucket", bucket="my_bucket", prefix="p")),
        (
            "azure://account/container/p/q",
            StorageUrl(scheme="azure", profile="azure://account", account="account", bucket="container", prefix="p/q"),
        ),
        (
            "tos://tos.example.com/bucket/p",
            StorageUrl(
                scheme="tos",
                profile="tos://tos.example.com/bucket",
                endpoint="tos.example.com",
                bucket="bucket",
                prefix="p",
            ),
        ),
        (
            "swift://swift.example.com:8080/AUTH_me/container/p",
            StorageUrl(
                scheme="swift",
                profile="swift://swift.example.com:8080/AUTH_me",
                endpoint="swift.example.com:8080",
                account="AUTH_me",
                bucket="container",
                prefix="p",
            ),
        ),
        ("file:///data/a%20b/", StorageUrl(scheme="file", profile="file://", bucket="", prefix="data/a b")),
        ("file:///", StorageUrl(scheme="file", profile="file://", bucket="", prefix="")),
    ],
)
def test_parse(text: str, expected: StorageUrl) -> None:
    found = parse_url(text)
    assert found == expected
    assert parse_url(found.url) == expected
    if found.scheme != "file":
        assert found.url == f"{found.bucket_url}/{found.prefix}".rstrip("/")


HOSTILE = [
    "",
    "s3",
    "/plain/path",
    "s3:bucket",
    "s3:/bucket",
    "s3://",
    "s3:///",
    "s3:///path",
    "s3://b//x",
    "s3://b/x//",
    "s3://b/x//y",
    "s3://b/../c",
    "s3://b/x/..",
    "s3://b/./x",
    "s3://..",
    "s3://.",
    "s3://-b",
    "s3://b.",
    "s3://b..c",
    "s3://b c",
    "s3://b:80/x",
    "s3://bü",
    "s3://AKIA:secret/with/slash@bucket/x",
    "s3://AKIA@bucket/x",
    "s3://:secret@bucket",
    "s3://bucket?versionId=secret",
    "s3://bucket/x?X-Amz-Signature=secret",
    "s3://bucket/x#frag",
    "s3://bucket/%2e%2e/x",
    "s3://bucket/a%2Fb",
    "s3://%62ucket",
    "s3://bucket/a,b",
    "s3://bucket/a;b",
    "s3://bucket/*",
    "s3://bucket/a\\..\\b",
    "s3://bucket/a\nb",
    "s3://bucket/\x1b[31m",
    "s3://bucket/a\0",
    "s3://bucket/\u202etxt",
    "s3://bucket/\ud800",
    "s3://bucket/" + "x" * 1025,
    "s3://bucket/" + "ü" * 600,
    "s3://" + "b" * 300,
    "s3://" + "b/" * 100_000,
    "azure://account",
    "azure://account/",
    "azure://account//x",
    "azure://account/%24root",
    "tos://endpoint",
    "tos://user:secret@endpoint/bucket",
    "tos://end point/bucket",
    "tos://endpoint:port/bucket",
    "tos://[::1]/bucket",
    "tos://host../bucket",
    "swift://endpoint/account",
    "swift://end/acc/..",
    "file://host/x",
    "file:relative",
    "file:///a?b",
    "file:///a#b",
    "file:///a/%2e%2e/b",
    "file:///a/../b",
    "file:///a%00b",
    "file:///a%zz",
    "http://bucket/x",
    "https://user:secret@host/x",
    "hf://x/y",
    "memory://x",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:40])
def test_hostile(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    told = caught.value.message
    assert told.isprintable()
    assert len(told) < 400
    assert "secret" not in told + (caught.value.hint or "")
    assert type(caught.value) is UsageError
