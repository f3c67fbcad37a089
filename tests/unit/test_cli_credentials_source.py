"""Credentials of object storage from config.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from casstore.config import load_config
from casstore.errors import UsageError
from casstore.remote.configured import ConfiguredCredentials, profile_key, stored_form
from casstore.remote.credentials import StorageCredential
from casstore_cli.credentials import ConfigCredentials, forget_data, keep_data, local_profiles

CANARY = "canary-7f3a"


def write(home: Path, text: str, mode: int = 0o600) -> Path:
    path = home / ".config/osmo/config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_credential_as_osmo_stores_it_is_found(isolated_home: Path) -> None:
    write(
        isolated_home,
        "auth:\n  data:\n    s3://robots/:\n      access_key_id: me\n      access_key: hidden\n"
        "      region: eu-west-1\n      override_url: http://localhost:9000\n      endpoint: s3://robots\n",
    )
    found = ConfigCredentials().find("s3://robots")
    assert found == StorageCredential(
        access_key_id="me", access_key="hidden", region="eu-west-1", override_url="http://localhost:9000"
    )
    assert ConfigCredentials().find("s3://other") is None


def test_no_file_means_ambient_credentials() -> None:
    assert ConfigCredentials().find("s3://robots") is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (f"access_key_id: 12\n      access_key: {CANARY}", "access_key_id must be a text"),
        (f"access_key_id: {CANARY}", "access_key_id without access_key"),
        (f"access_key: {CANARY}\n      addressing_style: both", "addressing_style must be one of"),
        (f"access_key: {CANARY}\n      override_url: ftp://x", "override_url must be"),
        (f"access_key: {CANARY}\n      override_url: http://{CANARY}@x", "override_url must be"),
        (f"access_key: {CANARY}\n      override_url: http://x:port", "override_url must be"),
    ],
)
def test_a_wrong_credential_names_the_key_and_no_value(isolated_home: Path, fields: str, named: str) -> None:
    write(isolated_home, f"auth:\n  data:\n    s3://robots:\n      {fields}\n    s3://fine: {{access_key: x}}\n")
    source = ConfigCredentials()
    with pytest.raises(UsageError) as caught:
        source.find("s3://robots")
    assert named in caught.value.message
    assert "auth.data.s3://robots" in caught.value.message
    assert CANARY not in caught.value.message + str(caught.value.hint)
    assert source.find("s3://fine") is not None  # a mistake elsewhere is no hindrance


@pytest.mark.parametrize("text", ["auth: []", "auth: {data: text}", "auth: {data: {'s3://robots': [1]}}"])
def test_a_wrong_shape_is_a_usage_error(isolated_home: Path, text: str) -> None:
    write(isolated_home, text)
    with pytest.raises(UsageError, match="must be a mapping"):
        ConfigCredentials().find("s3://robots")


def test_a_file_that_others_can_read_is_warned_about_once(isolated_home: Path) -> None:
    path = write(isolated_home, "auth: {data: {'s3://robots': {access_key: x}}}", 0o644)
    said: list[str] = []
    source = ConfigCredentials(warn=said.append)
    source.find("s3://robots")
    source.find("s3://robots")
    assert len(said) == 1
    assert "chmod 600" in said[0]
    path.chmod(0o600)
    ConfigCredentials(warn=said.append).find("s3://robots")
    assert len(said) == 1


def test_a_file_without_secrets_may_be_read_by_anybody(isolated_home: Path) -> None:
    write(isolated_home, "casstore: {user: me}", 0o644)
    said: list[str] = []
    assert ConfigCredentials(warn=said.append).find("s3://robots") is None
    assert said == []


def test_keeping_one_leaves_the_rest_of_the_file(isolated_home: Path) -> None:
    path = write(
        isolated_home, "other: 1\nauth:\n  token: t\n  data:\n    s3://a/: {access_key: old}\ncasstore: {user: me}\n"
    )
    keep_data("s3://a", StorageCredential(access_key_id="id", access_key="new", region="r"))
    raw = load_config().raw
    assert raw["other"] == 1
    assert raw["auth"] == {
        "token": "t",
        "data": {"s3://a": {"access_key_id": "id", "access_key": "new", "region": "r"}},
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert local_profiles() == ["s3://a"]
    assert forget_data("s3://a/")
    assert not forget_data("s3://a")
    assert local_profiles() == []
    assert load_config().raw["casstore"] == {"user": "me"}


def test_a_profile_is_compared_without_its_last_slash() -> None:
    assert profile_key("S3://Bucket/") == "s3://Bucket"
    assert ConfiguredCredentials({"auth": {"data": {"azure://acc/": {"access_key": "k"}}}}, "f").find("azure://acc")


def test_what_is_stored_is_read_again() -> None:
    credential = StorageCredential(access_key_id="i", access_key="k", session_token="t", addressing_style="path")
    source = ConfiguredCredentials({"auth": {"data": {"s3://b": stored_form(credential)}}}, "f")
    assert source.find("s3://b") == credential
    assert "'k'" not in repr(source) + repr(source.find("s3://b"))
