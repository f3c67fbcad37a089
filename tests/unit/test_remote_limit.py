"""One budget of bytes and requests for all clients of a process."""

from __future__ import annotations

import concurrent.futures
import io
import threading
from pathlib import Path

import pytest

from casstore.errors import UsageError
from casstore.remote import limit
from casstore.remote.limit import Budget, LimitClient, budget_of_process
from casstore.remote.local import LocalClient
from casstore.testing.faults import Fault, FaultClient, FaultPlan


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_shared", None)
    monkeypatch.delenv("CASSTORE_REMOTE_MEMORY", raising=False)
    monkeypatch.delenv("CASSTORE_REMOTE_REQUESTS", raising=False)


def test_never_more_than_the_budget() -> None:
    budget = Budget(100, 3)
    seen: list[tuple[int, int]] = []

    def take(size: int) -> None:
        with budget.share(size):
            seen.append(budget.used)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(take, [10, 60, 100, 250, 0, 40] * 100))
    assert budget.used == (0, 0)
    assert len(seen) == 600
    assert all(size <= 100 or running == 1 for size, running in seen)
    assert max(running for _, running in seen) <= 3
    assert max(size for size, _ in seen) == 250, "larger than the budget goes alone"


def start(budget: Budget, size: int, order: list[int], hold: threading.Event) -> threading.Thread:
    def run() -> None:
        with budget.share(size):
            order.append(size)
            hold.wait()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_large_request_is_not_kept_waiting_by_small_ones() -> None:
    budget, order, hold = Budget(100, 8), [], threading.Event()
    threads = [start(budget, 60, order, hold)]
    while budget.used != (60, 1):
        pass
    threads.append(start(budget, 90, order, hold))
    while len(budget._waiting) != 1:
        pass
    threads.append(start(budget, 1, order, hold))
    while len(budget._waiting) != 2:
        pass
    assert order == [60]
    hold.set()
    for thread in threads:
        thread.join()
    assert order[0] == 60
    assert order.index(90) < 3
    assert budget.used == (0, 0)


def test_an_error_gives_back_what_it_had(tmp_path: Path) -> None:
    budget = Budget(10, 1)
    client = LimitClient(LocalClient(str(tmp_path), durable=False), budget)
    for _ in range(3):
        with pytest.raises(Exception, match="does not exist"):
            client.read("missing")
        with pytest.raises(ZeroDivisionError), budget.share(7):
            _ = 1 / 0
    assert budget.used == (0, 0)


def test_a_listing_holds_nothing_between_two_objects(tmp_path: Path) -> None:
    budget = Budget(10, 1)
    client = LimitClient(LocalClient(str(tmp_path), durable=False), budget)
    for key in ("a", "b", "c"):
        client.put(key, [b"x"])
    found = client.list("")
    assert [client.read(info.key).data for info in found] == [b"x"] * 3
    next(client.list(""))
    assert budget.used == (0, 0)


def test_all_clients_share_and_all_operations_count(tmp_path: Path) -> None:
    stalling = FaultClient(LocalClient(str(tmp_path), durable=False), FaultPlan(at=1, fault=Fault.STALL))
    first = LimitClient(stalling)
    other = LimitClient(LocalClient(str(tmp_path), durable=False))
    budget = budget_of_process()
    thread = threading.Thread(target=lambda: first.upload("a", io.BytesIO(b"12345"), size=5))
    thread.start()
    assert stalling.wait_stalled(30)
    assert budget.used == (5, 1)
    other.put("b", [b"x"])
    assert budget.used == (5, 1)
    stalling.release()
    thread.join()
    assert budget.used == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"), [("100", 100), ("64KiB", 65536), ("1g", 1 << 30), (" 3 MB ", 3 << 20), ("2T", 2 << 40)]
)
def test_what_is_set_wins(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv("CASSTORE_REMOTE_MEMORY", text)
    monkeypatch.setenv("CASSTORE_REMOTE_REQUESTS", "1000")
    assert budget_of_process().memory == expected
    assert budget_of_process().requests == 1000
    assert budget_of_process() is budget_of_process()


@pytest.mark.parametrize("name", ["CASSTORE_REMOTE_MEMORY", "CASSTORE_REMOTE_REQUESTS"])
@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "1e9", "10XB"])
def test_what_is_set_wrongly_is_told(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(UsageError, match=name):
        budget_of_process()


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, expected in ((1 << 40, 256 << 20), (1 << 30, 128 << 20), (1 << 20, 32 << 20)):
        monkeypatch.setattr(limit, "_shared", None)
        monkeypatch.setattr(limit, "_memory_of_process", lambda memory=memory: memory)
        assert budget_of_process().memory == expected
        assert budget_of_process().requests == 64


def test_the_memory_of_this_machine_is_known() -> None:
    assert limit._memory_of_process() > 64 << 20
