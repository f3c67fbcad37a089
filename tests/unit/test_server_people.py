"""Users, roles and tokens in the database, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from casstore.errors import CasstoreError, ConflictError, NotFoundError
from casstore_server.db import schema
from casstore_server.db.callers import PROVIDER, Callers
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.identity import People, Token
from casstore_server.db.store import Database


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        found = Database(open_database(tmp_path / "server.sqlite"))
    else:
        found = Database(open_postgres(request.getfixturevalue("postgres")()))
    yield found
    found.close()


@pytest.fixture
def people(database: Database) -> People:
    return People(database)


def token(user: str, name: str, *roles: str) -> Token:
    return Token(user, name, "", time.time(), time.time() + 3600, None, roles)


def together(*calls: Callable[[], object]) -> list[object]:
    """What each gives or raises when they are called at the same time."""
    found: list[object] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(at: int) -> None:
        start.wait()
        try:
            found[at] = calls[at]()
        except CasstoreError as error:
            found[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_users_come_go_and_come_again(people: People, database: Database) -> None:
    first = people.create("eve", by="ada", roles=["b", "a", "a"])
    assert [(one.role, one.by) for one in people.get("eve")[1]] == [("a", "ada"), ("b", "ada")]
    people.create("b_b", by="ada", roles=[])
    people.create("bob", by="ada", roles=["a"])
    assert people.page(start=0, count=10, prefix="b_")[0] == 1, "no pattern"
    assert [one.name for one in people.page(start=1, count=1)[1]] == ["b_b"]
    assert people.page(start=0, count=10, roles=["a", "b"])[0] == 2
    people.add_token(token("eve", "t", "a"), "digest")
    database.set_profile("eve", {"pool": "p"})
    people.delete("eve")
    for call in (people.get, people.delete):
        with pytest.raises(NotFoundError):
            call("eve")
    with pytest.raises(NotFoundError):
        people.give("eve", "a", by="x")
    with pytest.raises(NotFoundError):
        people.take("eve", "a")
    assert people.page(start=0, count=10)[0] == 2
    assert Callers(database).token(digest="digest") is None
    known = Callers(database).user("eve")
    assert known is not None
    assert known.disabled
    assert database.profile("eve").get("pool") is None
    again = people.create("eve", by="bob", roles=["c"])
    assert again.created > first.created
    assert [one.role for one in people.get("eve")[1]] == ["c"]
    with pytest.raises(ConflictError):
        people.create("eve", by="bob", roles=[])


def test_a_deleted_user_is_not_remembered(people: People) -> None:
    people.remember("gil", own=["a"], others=["p"], by=PROVIDER)
    assert {one.role: one.by for one in people.get("gil")[1]} == {"a": "gil", "p": PROVIDER}
    people.remember("gil", own=["b"], others=["q"], by=PROVIDER)
    assert [one.role for one in people.get("gil")[1]] == ["a", "p", "q"], "their own ones are given once"
    people.delete("gil")
    with pytest.raises(NotFoundError):
        people.remember("gil", own=["a"], others=["p"], by=PROVIDER)


def test_roles_from_elsewhere_are_lost_and_given_ones_are_not(people: People, database: Database) -> None:
    people.remember("gil", own=[], others=["p", "q", "s"], by=PROVIDER)
    people.give("gil", "r", by="ada")
    people.give("gil", "s", by="ada")
    callers = Callers(database)
    callers.lose("gil", {"p", "r", "s"})
    known = callers.user("gil")
    assert known is not None
    assert (known.roles, known.provided, known.owned) == ({"q", "r", "s"}, {"q"}, set())


def test_of_two_administrators_one_stays(people: People) -> None:
    """Each puts the other one out, at the same time: many times, since it is a race."""
    for number in range(20):
        one, other = f"a{number}", f"b{number}"
        people.create(one, by="x", roles=["osmo-admin"])
        people.create(other, by="x", roles=["osmo-admin"])
        if number:
            people.take(f"keeper{number - 1}", "osmo-admin")
        results = together(lambda: people.take(one, "osmo-admin"), lambda: people.delete(other))  # noqa: B023
        assert sum(isinstance(result, ConflictError) for result in results) == 1, results
        (left,) = people.page(start=0, count=9, roles=["osmo-admin"])[1]
        people.create(f"keeper{number}", by="x", roles=["osmo-admin"])
        people.take(left.name, "osmo-admin")


def test_what_two_make_at_once_is_there_once(people: People, database: Database) -> None:
    made = together(*[lambda: people.create("eve", by="x", roles=["a"])] * 4)
    assert sum(isinstance(one, ConflictError) for one in made) == 3
    made = together(*[lambda: people.add_token(token("eve", "t", "a"), f"{threading.get_ident()}")] * 4)
    assert sum(isinstance(one, ConflictError) for one in made) == 3
    together(*[lambda: people.remember("gil", own=["a"], others=["b"], by=PROVIDER)] * 4)
    together(*[lambda: people.give("eve", "b", by="x")] * 4)
    with database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(schema.user_role)).scalar_one() == 4
    with pytest.raises(NotFoundError):
        people.add_token(token("nobody", "t", "a"), "d")
    with pytest.raises(NotFoundError):
        people.delete_token("eve", "u")
