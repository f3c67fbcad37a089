"""The key of a server's secrets: made, given, wrong, lost, changed; what is sealed with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from casstore.errors import AccessError, IntegrityError, NotFoundError, TransientError, UsageError
from casstore.vault import Vault
from casstore.wire.credentials import DATA, GENERIC, Credential
from casstore_server.credentials import Joined
from casstore_server.db import schema, sealed
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.store import Database
from casstore_server.db.vault import SealedVault
from casstore_server.keyring import find_private, open_box, rekey, take_up
from casstore_server.private import Private, box_of, handed, received
from casstore_server.secrets import KEY_VARIABLE, SecretBox, key_of, make_key_file, new_key, replace_key_file
from casstore_server.settings import Order, Settings

CANARY = "canary-77e1"
SECRET = Credential(type=GENERIC, profile=None, payload={"k": CANARY})


def data(profile: str = "s3://robots") -> Credential:
    return Credential(type=DATA, profile=profile, payload={"access_key_id": "me", "access_key": CANARY})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        socket_path=tmp_path / "s",
        state_dir=tmp_path,
        config_file=tmp_path / "config" / "config.yaml",
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        user="ada",
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    if request.param == "sqlite":
        found = Database(open_database(settings.database))
    else:
        found = Database(open_postgres(request.getfixturevalue("postgres")()))
    yield found
    found.close()


@pytest.fixture
def sqlite(settings: Settings) -> Iterator[Database]:
    found = Database(open_database(settings.database))
    yield found
    found.close()


def private(settings: Settings) -> Private:
    return find_private(settings)


def boxed() -> SecretBox:
    key = new_key()
    return SecretBox(lambda: [key])


# --- the key


def test_a_server_of_ones_own_makes_its_key(settings: Settings, sqlite: Database) -> None:
    box = open_box(private(settings), settings, sqlite)
    assert settings.own_key_file.stat().st_mode & 0o777 == 0o600
    assert open_box(private(settings), settings, sqlite).key_id == box.key_id


def test_a_key_that_is_gone_or_another_one_is_told(settings: Settings, sqlite: Database) -> None:
    open_box(private(settings), settings, sqlite)
    settings.own_key_file.unlink()
    with pytest.raises(NotFoundError, match="is gone"):
        open_box(private(settings), settings, sqlite)
    assert not settings.own_key_file.exists()
    make_key_file(settings.own_key_file)
    with pytest.raises(AccessError, match="sealed with another key") as caught:
        open_box(private(settings), settings, sqlite)
    assert settings.own_key_file.read_text().splitlines()[-1] not in f"{caught.value.message} {caught.value.hint}"


def test_servers_that_share_a_database_are_given_their_key(
    settings: Settings, postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(open_postgres(postgres()))
    with pytest.raises(UsageError, match=KEY_VARIABLE) as caught:
        open_box(private(settings), settings, database)
    assert "new-key" in str(caught.value.hint)
    key = new_key()
    monkeypatch.setenv(KEY_VARIABLE, key.line())
    given = private(settings)
    assert KEY_VARIABLE not in os.environ  # nothing that the server starts gets it
    assert key.line() not in repr(given)
    assert open_box(given, settings, database).key_id == key.id
    with pytest.raises(AccessError, match="another key"):
        open_box(Private(keys=(new_key().line(),)), settings, database)
    database.close()


def test_a_key_of_a_file_of_the_operators(settings: Settings, sqlite: Database, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere"
    given = replace(settings, secret_key_file=str(file))
    with pytest.raises(NotFoundError, match="elsewhere"):
        open_box(private(given), given, sqlite)
    make_key_file(file)
    open_box(private(given), given, sqlite)
    assert not settings.own_key_file.exists()


def test_what_is_secret_is_handed_on_in_memory() -> None:
    given = Private(database=f"postgresql://a:{CANARY}@h/x", keys=(CANARY,), key_file="/f")
    with handed(given) as descriptor:
        assert not os.get_inheritable(descriptor)
        assert received(os.dup(descriptor)) == given
        assert received(os.dup(descriptor)) == given
    assert CANARY not in repr(given)


# --- changing it


def order(settings: Settings, *, new: bool = False, discard: bool = False) -> Order:
    return Order(settings, "rekey", new=new, discard=discard)


def test_everything_gets_a_new_key_while_a_server_runs(settings: Settings, sqlite: Database) -> None:
    box = open_box(private(settings), settings, sqlite)
    vault = SealedVault(lambda: sqlite, box)
    for number in range(3):
        vault.put("ada", f"c{number}", SECRET)
    before = box.key_id
    done = rekey(order(settings, new=True))
    assert (done.secrets, done.changed, done.lost) == (3, 3, 0)
    assert done.key == box.key_id != before  # the running server has it at once
    assert [key.id for key in box.keys] == [done.key]
    assert vault.get("ada", "c1") == SECRET
    vault.put("ada", "c3", SECRET)
    assert rekey(order(settings)).changed == 0
    open_box(private(settings), settings, sqlite)


def test_a_key_that_is_given_is_changed_by_giving_two(settings: Settings, database: Database) -> None:
    old, new = new_key(), new_key()
    vault = SealedVault(lambda: database, SecretBox(lambda: [old]))
    sealed.check(database, SecretBox(lambda: [old]))
    vault.put("ada", "hub", SECRET)
    both = SecretBox(lambda: [new, old])
    sealed.check(database, both)
    assert sealed.reseal(database, both) == (new.id, 1, 1, 0)
    only = SecretBox(lambda: [new])
    sealed.check(database, only)
    assert SealedVault(lambda: database, only).get("ada", "hub") == SECRET
    with pytest.raises(AccessError):
        vault.get("ada", "hub")


def test_what_can_not_be_opened_stops_it_and_nothing_is_changed(settings: Settings, database: Database) -> None:
    old, other, new = new_key(), new_key(), new_key()
    sealed.check(database, SecretBox(lambda: [old]))
    SealedVault(lambda: database, SecretBox(lambda: [old])).put("ada", "a", SECRET)
    SealedVault(lambda: database, SecretBox(lambda: [other])).put("ada", "b", SECRET)
    box = SecretBox(lambda: [new, old])
    with pytest.raises(AccessError, match="credential ada b"):
        sealed.reseal(database, box)
    with database.reading() as connection:
        assert new.id not in {key_of(row) for row in connection.execute(select(schema.credential.c.sealed)).scalars()}
    assert sealed.discard(database, box) == (new.id, 1, 1, 1)
    assert list(SealedVault(lambda: database, box).names("ada")) == ["a"]


def test_a_lost_key_is_given_up(settings: Settings, sqlite: Database) -> None:
    SealedVault(lambda: sqlite, open_box(private(settings), settings, sqlite)).put("ada", "a", SECRET)
    settings.own_key_file.unlink()
    with pytest.raises(NotFoundError):
        rekey(order(settings))
    assert rekey(order(settings, new=True, discard=True)).lost == 1
    assert SealedVault(lambda: sqlite, open_box(private(settings), settings, sqlite)).names("ada") == {}


def test_a_key_of_the_environment_gets_no_new_one_in_a_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, new_key().line())
    with pytest.raises(UsageError, match=KEY_VARIABLE):
        rekey(order(settings, new=True))


def test_nothing_is_sealed_with_the_old_key_while_all_is_sealed_anew(database: Database) -> None:
    old, new = new_key(), new_key()
    keys = [old]
    box = SecretBox(lambda: tuple(keys))
    sealed.check(database, box)
    vault = SealedVault(lambda: database, box)
    stop = threading.Event()

    def busy(number: int) -> None:
        while not stop.is_set():
            vault.put("ada", f"c{number}", SECRET)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    keys.insert(0, new)
    sealed.reseal(database, box)
    keys.remove(old)
    stop.set()
    for thread in threads:
        thread.join()
    assert all(found == SECRET for found in vault.names("ada").values())
    sealed.check(database, box)


# --- credentials


def test_credentials_are_kept_sealed_in_their_place(database: Database) -> None:
    vault = SealedVault(lambda: database, boxed())
    assert vault.put("ada", "hub", SECRET) == []
    vault.put("eve", "hub", replace_payload(SECRET, "other"))
    assert vault.get("ada", "hub") == SECRET
    assert vault.get("ada", "none") is None
    table = schema.credential
    with database.writing() as connection:
        rows = connection.execute(select(table)).all()
        assert not [row for row in rows if CANARY.encode() in row.sealed]
        mine = next(row.sealed for row in rows if row.user == "ada")
        connection.execute(update(table).where(table.c.user == "eve").values(sealed=mine))
    with pytest.raises(IntegrityError, match="not where it was kept"):
        vault.get("eve", "hub")
    assert vault.remove("ada", "hub").payload == {}
    with pytest.raises(NotFoundError):
        vault.remove("ada", "hub")


def replace_payload(found: Credential, value: str) -> Credential:
    return Credential(type=found.type, profile=found.profile, payload={"k": value})


def test_there_is_one_credential_for_each_profile_of_a_user(database: Database) -> None:
    vault = SealedVault(lambda: database, boxed())
    vault.put("ada", "first", data())
    vault.put("eve", "hers", data())
    vault.put("ada", "more", data("gs://b"))
    assert vault.put("ada", "second", data()) == ["first"]
    assert list(vault.names("ada")) == ["more", "second"]
    assert vault.by_profile("ada", DATA, "s3://robots") == data()
    assert vault.by_profile("ada", DATA, "s3://none") is None
    assert list(vault.names("eve")) == ["hers"]


def test_another_process_reads_them_with_what_it_was_handed(settings: Settings, sqlite: Database) -> None:
    given = private(settings)
    box = open_box(given, settings, sqlite)
    SealedVault(lambda: sqlite, box).put("ada", "hub", SECRET)
    there = Joined(settings, given).credentials
    assert there.lookup("ada", "hub") == {"k": CANARY}
    replace_key_file(settings.own_key_file, [new_key(), *box.keys])
    sealed.reseal(sqlite, box)
    assert there.lookup("ada", "hub") == {"k": CANARY}


def test_where_there_is_no_database_nobody_has_credentials(settings: Settings) -> None:
    there = Joined(settings, private(settings)).credentials
    assert there.lookup("ada", "hub") is None
    assert not settings.database.exists()


def test_a_process_that_can_not_reach_the_database_says_so(settings: Settings) -> None:
    url = f"postgresql://ada:{CANARY}@127.0.0.1:1/none"
    there = Joined(settings, Private(database=url, keys=(new_key().line(),)), patience=0.01).credentials
    with pytest.raises(TransientError, match="can't be reached") as caught:
        there.lookup("ada", "hub")
    assert CANARY not in f"{caught.value} {caught.value.hint}"


def test_the_file_of_before_is_taken_up_and_gone(settings: Settings, sqlite: Database) -> None:
    folder = settings.config_file.parent
    file = Vault(str(folder))
    file.put("ada", "hub", SECRET)
    file.put("eve", "robots", data())
    box = box_of(Private(keys=(new_key().line(),)), settings)
    vault = SealedVault(lambda: sqlite, box)
    vault.put("ada", "hub", replace_payload(SECRET, "older"))
    assert take_up(folder, vault) == 2
    assert not Path(file.path).exists()
    assert vault.get("ada", "hub") == SECRET
    assert vault.get("eve", "robots") == data()
    assert take_up(folder, vault) == 0
