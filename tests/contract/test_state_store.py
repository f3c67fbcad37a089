"""What every ``StateStore`` promises: in memory, on SQLite and on PostgreSQL, two of them open on the same state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from casstore.errors import NotFoundError
from casstore_orchestrator.pools import Resources
from casstore_orchestrator.records import GroupRecord, Held, TaskRecord, WorkflowRecord
from casstore_orchestrator.spec import GroupSpec, TaskSpec, WorkflowSpec
from casstore_orchestrator.statestore import Fence, LeaseLostError, StateStore, TaskNote, pool_lease
from casstore_orchestrator.status import WorkflowStatus
from casstore_orchestrator.testing import MemoryStateStore
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.store import Database

LEASE = pool_lease("default")


def record(number: int = 1, name: str = "wf", pool: str = "default") -> WorkflowRecord:
    task = TaskSpec(name="one", command=("true",), lead=True)
    return WorkflowRecord(
        name=name,
        uuid=f"{number:032x}",
        user="ada",
        pool=pool,
        spec=WorkflowSpec(name=name, groups=(GroupSpec(name="g", tasks=(task,)),)),
        groups=(GroupRecord(name="g", tasks=(TaskRecord(name="one", uuid="b" * 32, lead=True),)),),
        submit_time=float(number),
    )


class Stores:
    """``first`` and ``second`` are two servers' views of one state."""

    def __init__(self, kind: str, path: Path, postgres: Callable[[], Callable[[], str]], stack: ExitStack) -> None:
        self.first: StateStore
        self.second: StateStore
        if kind == "memory":
            self.first = self.second = self.memory = MemoryStateStore()
            return
        url = postgres()() if kind == "postgresql" else ""
        opened = [Database(open_postgres(url) if url else open_database(path / "server.sqlite")) for _ in range(2)]
        for database in opened:
            stack.callback(database.close)
        self.first, self.second = opened

    def notes(self, workflow_id: str) -> list[TaskNote]:
        if isinstance(self.first, Database):
            return [TaskNote(*row) for _, row in self.first.events(workflow_id)]
        return [note for name, note in self.memory.notes if name == workflow_id]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    with ExitStack() as stack:
        yield Stores(request.param, tmp_path, lambda: request.getfixturevalue("postgres"), stack)


def lease(store: StateStore, owner: str, now: float = 0.0, **options: Any) -> Fence | None:
    return store.keep_leases([LEASE], owner, now, now + 10, **options).get(LEASE)


def test_a_workflow_begins_in_the_transaction_that_stores_it(stores: Stores) -> None:
    note = TaskNote("one", 0, "SCHEDULING", "", 5.0)

    def begin(made: WorkflowRecord) -> WorkflowRecord:
        assert made.id == "wf-1"
        return replace(made, status=WorkflowStatus.RUNNING)

    made = stores.first.create(record(), begin, notes=lambda _old, _new: [note])
    assert made.status is WorkflowStatus.RUNNING
    assert stores.second.load("wf-1") == made == stores.second.load(made.uuid)
    assert stores.notes("wf-1") == [note]
    assert stores.first.create(record(2)).id == "wf-2"


def test_what_fails_changes_nothing(stores: Stores) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        stores.first.create(record(), fail)
    with pytest.raises(NotFoundError):
        stores.first.load("wf-1")
    made = stores.first.create(record())
    assert made.number == 1
    with pytest.raises(KeyError):
        stores.first.change("wf-1", fail)
    with pytest.raises(KeyError):
        stores.first.change("wf-1", lambda old: replace(old, tags=("x",)), notes=fail)
    with pytest.raises(NotFoundError):
        stores.first.change("wf-9", lambda old: old)
    assert stores.second.load("wf-1") == made


def test_live_is_what_has_not_ended_or_holds_something(stores: Stores) -> None:
    for number in (3, 1, 2):
        stores.first.create(record(number, f"w{number}"))
    stores.first.create(record(4, "other", "robots"))
    assert stores.second.live("default") == ["w1-1", "w2-1", "w3-1"] or isinstance(stores.first, MemoryStateStore)
    held = (Held("one", "p", "n", Resources(cpu=1, extras={"arm": 1})),)

    def end(old: WorkflowRecord, holds: tuple[Held, ...] = ()) -> WorkflowRecord:
        return replace(old, status=WorkflowStatus.COMPLETED, groups=(replace(old.groups[0], holds=holds),))

    stores.first.change("w1-1", end)
    stores.first.change("w2-1", lambda old: end(old, held))
    assert sorted(stores.second.live("default")) == ["w2-1", "w3-1"]
    assert sorted(stores.second.live_pools()) == ["default", "robots"]
    stores.first.change("w2-1", end)
    assert stores.second.live("default") == ["w3-1"]


def test_a_lease_has_one_owner_until_it_expires(stores: Stores) -> None:
    first = lease(stores.first, "a")
    assert first is not None
    assert lease(stores.second, "b", 9.0) is None
    assert lease(stores.first, "a", 5.0) == first, "it is prolonged, and stays the same"
    assert lease(stores.second, "b", 14.0) is None
    taken = lease(stores.second, "b", 15.0)
    assert taken is not None
    assert taken.token > first.token
    assert lease(stores.first, "a", 16.0) is None


def test_a_lease_that_was_given_back_or_is_taken_by_force(stores: Stores) -> None:
    first = lease(stores.first, "a")
    stores.first.release_leases("a")
    second = lease(stores.second, "b")
    third = lease(stores.first, "a", force=True)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.token < second.token < third.token
    stores.second.release_leases("b")
    assert lease(stores.first, "a") == third, "nobody gives back what is not theirs"


def test_a_transaction_under_a_lost_lease_changes_nothing(stores: Stores) -> None:
    made = stores.first.create(record(), fence=lease(stores.first, "a"))
    fence = lease(stores.first, "a")
    changed = stores.first.change("wf-1", lambda old: replace(old, tags=("x",)), fence=fence)
    assert lease(stores.second, "b", 100.0) is not None
    for lost in (fence, Fence(pool_lease("none"), 1)):
        with pytest.raises(LeaseLostError):
            stores.first.change("wf-1", lambda old: replace(old, tags=("y",)), fence=lost, tell=True)
        with pytest.raises(LeaseLostError):
            stores.first.create(record(2), fence=lost)
    assert stores.second.load("wf-1") == changed != made
    assert stores.second.create(record(3)).number == 2
    assert stores.second.news([Fence(LEASE, 2)]) == []


def test_news_are_given_once_and_only_to_the_holder(stores: Stores) -> None:
    stores.first.create(record(), tell=True)
    stores.first.change("wf-1", lambda old: replace(old, tags=("x",)), tell=True)
    stores.first.create(record(2, "other", "robots"), tell=True)
    stores.first.create(record(3))
    fence = lease(stores.second, "b")
    assert fence is not None
    with pytest.raises(LeaseLostError):
        stores.first.news([Fence(LEASE, fence.token + 1)])
    assert stores.second.news([fence]) == ["wf-1"]
    assert stores.second.news([fence]) == []


def test_one_of_many_gets_a_lease(stores: Stores) -> None:
    together = threading.Barrier(8)

    def take(number: int) -> Fence | None:
        together.wait()
        return lease(stores.first if number % 2 else stores.second, f"o{number}")

    for now in range(5):
        stores.first.keep_leases([LEASE], "nobody", 0.0, -1.0, force=True)
        with ThreadPoolExecutor(8) as pool:
            won = [fence for fence in pool.map(take, range(8)) if fence is not None]
        assert len(won) == 1, now


def test_nothing_is_stored_under_a_lease_once_it_was_taken_away(stores: Stores) -> None:
    """Two owners take the lease from each other all the time, and write down the token that they did it with."""
    stores.first.create(record())
    done: list[int] = []
    failed: list[int] = []

    def work(number: int) -> None:
        store = stores.first if number % 2 else stores.second
        for _ in range(15):
            fence = lease(store, f"o{number}", force=True)

            def add(old: WorkflowRecord, token: int = fence.token if fence else 0) -> WorkflowRecord:
                return replace(old, tags=(*old.tags, f"{token:06d}"))

            try:
                store.change("wf-1", add, fence=fence)
                done.append(1)
            except LeaseLostError:
                failed.append(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    tokens = list(stores.second.load("wf-1").tags)
    assert tokens == sorted(tokens), "an older token never writes after a newer one"
    assert len(tokens) == len(done)
    assert len(done) + len(failed) == 60


def test_racing_changes_and_numbers_are_all_kept(stores: Stores) -> None:
    stores.first.create(record())

    def change(number: int) -> str:
        store = stores.first if number % 2 else stores.second
        store.change("wf-1", lambda old: replace(old, revision=old.revision + 1))
        return store.create(record(number + 10)).id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(change, range(32)))
    assert stores.first.load("wf-1").revision == 32
    assert sorted(ids) == sorted(f"wf-{number}" for number in range(2, 34))
