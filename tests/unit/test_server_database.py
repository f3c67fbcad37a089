"""Where the server's database is, and what is told about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.errors import StorageError, UsageError
from casstore_server.db.engine import open_postgres
from casstore_server.db.location import VARIABLE
from casstore_server.db.location import open_state as open_at
from casstore_server.db.store import Database
from casstore_server.keyring import find_private
from casstore_server.settings import Settings

SECRET = "hush-hush"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        socket_path=tmp_path / "s",
        state_dir=tmp_path,
        config_file=tmp_path / "config.yaml",
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        user="ada",
    )


def open_state(settings: Settings) -> Database:
    return open_at(settings, find_private(settings).database)


def configure(settings: Settings, value: str, mode: int = 0o600) -> None:
    settings.config_file.write_text(f"casstore: {{server: {value}}}")
    settings.config_file.chmod(mode)


def test_without_a_word_it_is_a_file_that_no_other_server_uses(settings: Settings) -> None:
    database = open_state(settings)
    assert settings.database.exists()
    assert not database.shared
    database.close()


def test_a_postgresql_of_the_configuration(settings: Settings, postgres: Callable[[], str]) -> None:
    configure(settings, f"{{database: '{postgres()}'}}", 0o644)
    database = open_state(settings)
    assert database.shared
    assert database.live_pools() == []
    assert not settings.database.exists()
    database.close()


def test_a_postgresql_of_the_environment_is_taken_out_of_it(
    settings: Settings, postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, postgres())
    database = open_state(settings)
    assert database.shared
    assert VARIABLE not in os.environ
    database.close()


def test_a_password_is_in_no_message_and_in_no_file_that_others_can_read(settings: Settings) -> None:
    url = f"postgresql://ada:{SECRET}@127.0.0.1:1/none"
    configure(settings, f"{{database: '{url}'}}", 0o644)
    with pytest.raises(UsageError, match="can be read by others"):
        open_state(settings)
    settings.config_file.chmod(0o600)
    with pytest.raises(StorageError, match="can't be used") as failed:
        open_state(settings)
    told = f"{failed.value.message} {failed.value.hint} {failed.value.__cause__} {settings}"
    assert "127.0.0.1:1/none" in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "url", [f"mysql://ada:{SECRET}@host/x", "postgresql", f"postgresql://ada:{SECRET}@host:port/x", "sqlite:///x"]
)
def test_what_is_no_url_of_a_postgresql(url: str) -> None:
    with pytest.raises(UsageError, match="postgresql://user@host/name") as failed:
        open_postgres(url)
    assert SECRET not in failed.value.message


@pytest.mark.parametrize("value", ["{databse: x}", "{database: 3}", "[x]"])
def test_what_is_wrong_in_the_configuration(settings: Settings, value: str) -> None:
    configure(settings, value)
    with pytest.raises(UsageError, match=r"casstore\.server"):
        open_state(settings)
