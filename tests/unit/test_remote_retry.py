"""What is tried again, how long is waited, and when it is given up. No test waits: time is the test's."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import (
    AccessError,
    CancelledError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
    TransientError,
)
from casstore.remote import pause
from casstore.remote.base import Absent, Matches, Object, ObjectClient
from casstore.remote.local import LocalClient
from casstore.remote.retry import RetryClient, RetryPolicy
from casstore.testing.faults import Fault, FaultClient, FaultPlan


class Time:
    """A clock that moves when somebody sleeps, and a request takes ``cost`` seconds."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now = 1000.0
        self.cost = cost
        self.pauses: list[float] = []

    def clock(self) -> float:
        self.now += self.cost
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def retrying(inner: ObjectClient, time: Time | None = None, random: float = 1.0, **policy: Any) -> RetryClient:
    time = time or Time()
    return RetryClient(inner, RetryPolicy(**policy), clock=time.clock, sleep=time.sleep, random=lambda: random)


@pytest.fixture
def local(tmp_path: Path) -> LocalClient:
    return LocalClient(str(tmp_path), durable=False)


def faulty(inner: ObjectClient, times: int, fault: Fault = Fault.TRANSIENT, at: int = 1, **plan: Any) -> FaultClient:
    return FaultClient(inner, FaultPlan(at=at, times=times, fault=fault, **plan))


def test_every_operation_is_tried_again(local: LocalClient) -> None:
    def fresh() -> RetryClient:
        return retrying(faulty(local, 3))

    tag = fresh().put("a/b", [b"12", b"345"])
    assert fresh().head("a/b").etag == tag
    assert fresh().read("a/b", offset=1, length=2).data == b"23"
    assert [info.key for info in fresh().list("")] == ["a/b"]
    fresh().upload("c", io.BytesIO(b"stream"), size=6)
    assert local.read("c").data == b"stream"
    fresh().delete(iter(["a/b", "c"]))
    assert list(local.list("")) == []


def test_only_what_may_pass_is_tried_again(local: LocalClient) -> None:
    class Refusing(FaultClient):
        def head(self, key: str) -> Any:
            asked.append(key)
            raise AccessError("no")

    asked: list[str] = []
    with pytest.raises(AccessError):
        retrying(Refusing(local)).head("a")
    assert asked == ["a"]
    inner = FaultClient(local)
    with pytest.raises(NotFoundError):
        retrying(inner).head("a")
    assert inner.calls == 1
    inner = faulty(local, 9, Fault.ERROR_BEFORE)
    with pytest.raises(StorageError):
        retrying(inner).head("a")
    assert inner.calls == 1


def test_pauses_double_up_to_a_limit_and_are_drawn_from_zero(local: LocalClient) -> None:
    time = Time()
    with pytest.raises(TransientError, match="tried 8 times"):
        retrying(faulty(local, 99), time, longest_pause=2.0).head("a")
    assert time.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    time = Time()
    with pytest.raises(TransientError):
        retrying(faulty(local, 99), time, random=0.0).head("a")
    assert time.pauses == [0.0] * 7
    seen = set()
    client = RetryClient(faulty(local, 99), sleep=seen.add)
    with pytest.raises(TransientError):
        client.head("a")
    assert len(seen) == 7, "jitter"


class Asking(FaultClient):
    def __init__(self, inner: ObjectClient, pause: float) -> None:
        super().__init__(inner)
        self.pause = pause

    def head(self, key: str) -> Any:
        raise TransientError("busy", retry_after=self.pause)


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (3600.0, 60.0), (-5.0, 0.0), (0.0, 0.0)])
def test_a_pause_that_the_service_asks_for_is_kept_and_capped(local: LocalClient, asked: float, waited: float) -> None:
    time = Time()
    with pytest.raises(TransientError):
        retrying(Asking(local, asked), time, random=0.0, attempts=2).head("a")
    assert time.pauses == [waited]


def test_jitter_comes_on_top_of_what_is_asked_for(local: LocalClient) -> None:
    time = Time()
    with pytest.raises(TransientError):
        retrying(Asking(local, 5.0), time, random=0.5, attempts=2).head("a")
    assert time.pauses == [5.1]


def test_nothing_begins_after_the_deadline(local: LocalClient) -> None:
    time = Time(cost=10.0)
    inner = faulty(local, 10**6)
    with pytest.raises(TransientError, match=r"tried \d+ times in \d+ s") as caught:
        retrying(inner, time, attempts=10**6, deadline=100.0).head("a")
    assert sum(time.pauses) + 10.0 * (inner.calls - 1) <= 100.0
    assert caught.value.hint


def test_a_slow_request_before_the_first_failure_costs_nothing(local: LocalClient) -> None:
    time = Time()

    class Slow(FaultClient):
        def head(self, key: str) -> Any:
            time.now += 3600.0 if not self.hits else 0.0
            return super().head(key)

    local.put("a", [b"x"])
    inner = Slow(local, FaultPlan(at=1, times=3, fault=Fault.TRANSIENT))
    assert retrying(inner, time, deadline=60.0).head("a").size == 1


def test_a_pause_longer_than_the_deadline_is_not_begun(local: LocalClient) -> None:
    time = Time()
    with pytest.raises(TransientError):
        retrying(Asking(local, 50.0), time, deadline=49.0).head("a")
    assert time.pauses == []


# --- conditional puts whose reply is lost


@pytest.mark.parametrize("size", [0, 5, 9 << 20])
def test_a_lost_reply_is_no_conflict(local: LocalClient, size: int) -> None:
    data = [b"x" * (size // 2), b"y" * (size - size // 2)]
    inner = faulty(local, 1, Fault.LOST, operations=frozenset({"put"}))
    tag = retrying(inner).put("a", data, condition=Absent())
    assert local.head("a").etag == tag
    inner = faulty(local, 1, Fault.LOST, operations=frozenset({"put"}))
    new = retrying(inner).put("a", [*data, b"more"], condition=Matches(tag))
    assert local.read("a").data == b"".join(data) + b"more"
    assert local.head("a").etag == new
    assert inner.calls == 2


@pytest.mark.parametrize("theirs", [b"other", b"ours!", b"longer than ours"])
def test_a_lost_reply_is_a_conflict_where_another_has_won(local: LocalClient, theirs: bytes) -> None:
    class Overtaken(FaultClient):
        def put(self, key: str, data: Any, *, condition: Any = None) -> str:
            if not self.calls:
                local.put(key, [theirs])
            return super().put(key, data, condition=condition)

    inner = Overtaken(local, FaultPlan(at=1, fault=Fault.TRANSIENT))
    with pytest.raises(PreconditionError):
        retrying(inner).put("a", [b"ours."], condition=Absent())
    assert local.read("a").data == theirs


def test_a_conflict_at_once_is_one_whatever_is_there(local: LocalClient) -> None:
    local.put("a", [b"same"])
    inner = FaultClient(local)
    with pytest.raises(PreconditionError):
        retrying(inner).put("a", [b"same"], condition=Absent())
    assert inner.calls == 1


def test_an_object_that_changes_while_it_is_compared_is_another_s(local: LocalClient) -> None:
    class Changing(FaultClient):
        def read(self, key: str, **options: Any) -> Object:
            local.put("a", [b"theirs"])
            return super().read(key, **options)

    inner = Changing(local, FaultPlan(at=1, fault=Fault.LOST))
    with pytest.raises(PreconditionError):
        retrying(inner).put("a", [b"ours"], condition=Absent())


def test_comparing_survives_failures_too(local: LocalClient) -> None:
    inner = faulty(local, 3, at=3, operations=frozenset({"put", "head", "read"}))

    class Lost(FaultClient):
        pass

    outer = Lost(inner, FaultPlan(at=1, fault=Fault.LOST))
    assert retrying(outer).put("a", [b"ours"], condition=Absent()) == local.head("a").etag
    assert inner.hits == 3


# --- streams, listings, deletions, reads


def test_a_stream_is_read_again_from_where_it_was(local: LocalClient) -> None:
    class Breaking(FaultClient):
        tries = 0

        def upload(self, key: str, source: Any, *, size: Any = None, advance: Any = None) -> str:
            self.tries += 1
            if self.tries < 4:
                advance(len(source.read(self.tries * 10)))
                raise TransientError("cut")
            return local.upload(key, source, size=size, advance=advance)

    told: list[int] = []
    source = io.BytesIO(b"skipped" + b"x" * 100)
    source.seek(7)
    retrying(Breaking(local)).upload("a", source, size=100, advance=told.append)
    assert local.read("a").data == b"x" * 100
    assert sum(told) == 100
    assert min(told) > 0


def test_a_stream_that_can_not_be_read_again_is_sent_once(local: LocalClient) -> None:
    class Pipe(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b""

        def seekable(self) -> bool:
            return False

    inner = faulty(local, 1)
    with pytest.raises(TransientError):
        retrying(inner).upload("a", Pipe())  # type: ignore[arg-type]  # what is asked of it is there
    assert inner.calls == 1


@pytest.mark.parametrize("recursive", [True, False])
def test_a_listing_goes_on_where_it_broke_off(local: LocalClient, recursive: bool) -> None:
    for number in range(30):
        local.put(f"{number % 10}/{number:02}", [b"x"])
    expected = [info.key for info in local.list("", recursive=recursive)]
    for at in range(1, len(expected) + 2):
        inner = faulty(local, 2, at=at)
        assert [info.key for info in retrying(inner).list("", recursive=recursive)] == expected
        assert inner.hits == 2


def test_a_listing_that_moves_has_all_its_attempts_again(local: LocalClient) -> None:
    for number in range(20):
        local.put(f"{number:02}", [b"x"])

    class Flaky(FaultClient):
        def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Any:
            for number, info in enumerate(local.list(prefix, after=after, recursive=recursive)):
                if number:
                    raise TransientError("cut")
                yield info

    assert len(list(retrying(Flaky(local), attempts=2).list(""))) == 20


def test_a_listing_that_stands_still_ends(local: LocalClient) -> None:
    local.put("a", [b"x"])
    inner = faulty(local, 10**6, at=2)
    found = retrying(inner).list("")
    assert next(found).key == "a"
    with pytest.raises(TransientError, match="tried 8 times"):
        next(found)


def test_deletion_goes_in_batches(local: LocalClient) -> None:
    keys = [f"{number:04}" for number in range(1500)]
    for key in keys:
        local.put(key, [b"x"])
    inner = faulty(local, 1, Fault.LOST, at=2)
    retrying(inner).delete(iter(keys))
    assert inner.calls == 3
    assert list(local.list("")) == []


def test_a_short_reply_is_asked_for_once_more(local: LocalClient) -> None:
    class Short(FaultClient):
        tries = 0

        def read(self, key: str, **options: Any) -> Object:
            self.tries += 1
            if self.tries == 1:
                raise IntegrityError("too short")
            return super().read(key, **options)

    local.put("a", [b"content"])
    assert retrying(Short(local)).read("a").data == b"content"
    with pytest.raises(IntegrityError):
        retrying(local).read("a", offset=3, length=100)


def test_closing_ends_the_pauses_of_others(local: LocalClient) -> None:
    client = RetryClient(Asking(local, 60.0))
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            client.head("a")
        except StorageError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in failed] == [StorageError]


def test_an_interrupt_ends_all_pauses(local: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause, "_interrupted", False)
    client = RetryClient(Asking(local, 60.0))
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            client.head("a")
        except CancelledError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    pause.interrupt()
    thread.join(30)
    assert not thread.is_alive()
    assert len(failed) == 1
    with pytest.raises(CancelledError):
        pause.pause(60.0)
    monkeypatch.setattr(pause, "_interrupted", False)
    assert not pause.pause(0.0)
