"""Apps in the database: names, versions, owners."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import AccessError, ConflictError, NotFoundError
from casstore_server.db.apps import Apps
from casstore_server.db.engine import open_database
from casstore_server.db.store import Database


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[Apps]:
    database = Database(open_database(tmp_path / "server.sqlite"))
    yield Apps(database)
    database.close()


def test_versions_count_up_and_equal_text_makes_none(apps: Apps) -> None:
    app, first = apps.create("sim", owner="ada", description="a simulation", text="one")
    assert (app.name, app.latest, first.number) == ("sim", 1, 1)
    assert apps.update("sim", user="ada", text="one")[1:] == (first, False)
    _, second, created = apps.update("sim", user="ada", text="two")
    assert (second.number, created) == (2, True)
    assert (apps.text("sim", None), apps.text("sim", 1)) == ("two", "one")
    found, versions = apps.find("sim", number=None, limit=10, oldest_first=True)
    assert (found.latest, [one.number for one in versions]) == (2, [1, 2])
    assert [one.number for one in apps.find("sim", number=1, limit=10, oldest_first=True)[1]] == [1]


def test_numbers_are_never_given_twice(apps: Apps) -> None:
    app, _ = apps.create("sim", owner="ada", description="", text="one")
    apps.update("sim", user="ada", text="two")
    assert apps.delete("sim", user="ada", number=2) == [2]
    with pytest.raises(NotFoundError, match="no version 2"):
        apps.text("sim", 2)
    assert apps.text("sim", None) == "one"
    assert [one.status for one in apps.find("sim", number=None, limit=9, oldest_first=True)[1]] == ["READY", "DELETED"]
    assert apps.update("sim", user="ada", text="three")[1].number == 3
    apps.check(app.uuid, 2)
    with pytest.raises(NotFoundError, match="no version 4"):
        apps.check(app.uuid, 4)


def test_a_deleted_app_frees_its_name(apps: Apps) -> None:
    apps.create("sim", owner="ada", description="", text="one")
    apps.update("sim", user="ada", text="two")
    with pytest.raises(ConflictError, match="an app sim already, of ada"):
        apps.create("sim", owner="bob", description="", text="other")
    assert apps.delete("sim", user="ada", number=None) == [1, 2]
    for call in (lambda: apps.text("sim", None), lambda: apps.delete("sim", user="ada", number=None)):
        with pytest.raises(NotFoundError, match="no app sim"):
            call()
    assert apps.page(owners=(), name=None, limit=9, offset=0, oldest_first=False) == []
    assert apps.create("sim", owner="bob", description="", text="other")[0].owner == "bob"


def test_only_its_owner_changes_an_app(apps: Apps) -> None:
    apps.create("sim", owner="ada", description="", text="one")
    for call in (
        lambda: apps.update("sim", user="bob", text="two"),
        lambda: apps.delete("sim", user="bob", number=None),
        lambda: apps.rename("sim", "mine", user="bob"),
    ):
        with pytest.raises(AccessError, match="belongs to ada"):
            call()
    apps.rename("sim", "world", user="ada")
    assert apps.text("world", 1) == "one"
    apps.create("sim", owner="bob", description="", text="x")
    with pytest.raises(ConflictError, match="world already"):
        apps.rename("sim", "world", user="bob")


def test_pages(apps: Apps) -> None:
    for number in range(5):
        apps.create(f"app_{number}", owner="ada" if number % 2 else "bob", description="", text="x")
    listed = apps.page(owners=(), name=None, limit=2, offset=1, oldest_first=False)
    assert [app.name for app in listed] == ["app_3", "app_2"]
    assert [app.name for app in apps.page(owners=["ada"], name=None, limit=9, offset=0, oldest_first=True)] == [
        "app_1",
        "app_3",
    ]
    assert [app.name for app in apps.page(owners=(), name="_4", limit=9, offset=0, oldest_first=True)] == ["app_4"]
    assert apps.page(owners=(), name="%", limit=9, offset=0, oldest_first=True) == []


def test_one_of_many_gets_a_name(apps: Apps) -> None:
    outcomes: list[str] = []

    def create(number: int) -> None:
        try:
            apps.create("sim", owner=f"user{number}", description="", text="x")
            outcomes.append("made")
        except ConflictError:
            outcomes.append("refused")

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] + ["refused"] * 7
