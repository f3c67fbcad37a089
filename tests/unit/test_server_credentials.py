"""Whose credentials the server finds for whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import AccessError, UsageError
from casstore.wire.credentials import Credential
from casstore_server.credentials import UserCredentials
from casstore_server.db.engine import open_database
from casstore_server.db.store import Database
from casstore_server.db.vault import SealedVault
from casstore_server.secrets import SecretBox, new_key

CONFIG = "auth: {data: {'s3://robots': {access_key_id: owner, access_key: from-config}}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(open_database(tmp_path / "server.sqlite"))
    yield made
    made.close()


def credentials_of(config: Path, database: Database) -> UserCredentials:
    key = new_key()
    vault = SealedVault(lambda: database, SecretBox(lambda: [key]))
    return UserCredentials(config, "ada", lambda: vault)


def data(key: str) -> Credential:
    return Credential(
        type="DATA", profile="s3://robots", payload={"access_key_id": "id", "access_key": key} if key else {}
    )


def found(credentials: UserCredentials, user: str) -> str | None:
    one = credentials.storage(user).find("s3://robots")
    return None if one is None else one.access_key


def test_config_yaml_is_its_owners(config: Path, database: Database) -> None:
    credentials = credentials_of(config, database)
    assert found(credentials, "ada") == "from-config"
    with pytest.raises(AccessError, match="bob has no credential for s3://robots"):
        found(credentials, "bob")


def test_the_identity_of_the_machine_is_for_the_owner_alone(config: Path, database: Database) -> None:
    credentials = credentials_of(config, database)
    config.unlink()
    assert found(credentials, "ada") is None
    elsewhere = Credential(type="DATA", profile="s3://robots", payload={"override_url": "http://127.0.0.1:1"})
    credentials.vault.put("ada", "mine", elsewhere)
    credentials.vault.put("bob", "his", elsewhere)
    assert found(credentials, "ada") == ""
    with pytest.raises(AccessError, match="bob has no credential for s3://robots"):
        found(credentials, "bob")


def test_the_vault_comes_first_and_what_only_names_a_profile_is_passed_over(config: Path, database: Database) -> None:
    credentials = credentials_of(config, database)
    credentials.vault.put("ada", "mine", data(""))
    assert found(credentials, "ada") == "from-config"
    credentials.vault.put("ada", "mine", data("from-vault"))
    credentials.vault.put("bob", "his", data("from-bob"))
    assert found(credentials, "ada") == "from-vault"
    assert found(credentials, "bob") == "from-bob"
    assert credentials.storage("ada").find("s3://other") is None


def test_what_changes_is_seen(config: Path, database: Database) -> None:
    credentials = credentials_of(config, database)
    config.write_text(CONFIG.replace("from-config", "changed"))
    assert found(credentials, "ada") == "changed"
    config.unlink()
    assert found(credentials, "ada") is None


def test_a_wrong_file_is_told_without_its_secrets(config: Path, database: Database) -> None:
    credentials = credentials_of(config, database)
    for text in (CONFIG.replace("from-config", "[hunter2]"), "- hunter2\n", "auth: hunter2\n"):
        config.write_text(text)
        with pytest.raises(UsageError) as caught:
            found(credentials, "ada")
        assert "hunter2" not in caught.value.message


def test_tasks_are_given_generic_ones_alone(config: Path, database: Database) -> None:
    credentials = credentials_of(config, database)
    credentials.vault.put("ada", "mine", data("x"))
    credentials.vault.put("ada", "hub", Credential(type="GENERIC", profile=None, payload={"k": "v"}))
    assert credentials.lookup("ada", "hub") == {"k": "v"}
    assert credentials.lookup("ada", "none") is None
    assert credentials.lookup("bob", "hub") is None
    with pytest.raises(AccessError, match="is a DATA credential"):
        credentials.lookup("ada", "mine")
