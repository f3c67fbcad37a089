"""Leases: renewed, lost, listed, by the back end's clock; and the records of what is being deleted."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec
import pytest

from casstore.backend.base import Buffer, Condition, ObjectInfo
from casstore.backend.memory import MemoryBackend
from casstore.errors import FormatError, NotFoundError, StorageError
from casstore.format import record
from casstore.repo import layout
from casstore.repo.leases import MAX_TERM, Lease, LeaseRecord, bucket_time, list_leases, read_lease
from casstore.repo.trash import DyingSet, TrashRecord, TrashState, dying, read_trash


class Clocked(MemoryBackend):
    """Objects get the time that the test says it is; puts can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self.times: dict[str, float] = {}
        self.fails = False
        self.puts = 0

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        if self.fails:
            raise StorageError("down")
        tag = super().put(key, data, condition=condition)
        self.times[key] = self.time
        self.puts += 1
        return tag

    def stat(self, key: str) -> ObjectInfo:
        return msgspec.structs.replace(super().stat(key), mtime=self.times[key])

    def list(self, prefix: str, *, after: str = ""):
        for info in super().list(prefix, after=after):
            yield msgspec.structs.replace(info, mtime=self.times[info.key])


class Clock:
    """What the holder's machine shows."""

    def __init__(self) -> None:
        self.time = 50.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def backend() -> Clocked:
    return Clocked()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def acquire(backend: Clocked, clock: Clock, **more: object) -> Lease:
    return Lease.acquire(
        backend, kind="upload", user="ada", dataset="ds", term=30, heartbeat=False, clock=clock, **more
    )


def pass_time(backend: Clocked, clock: Clock, seconds: float) -> None:
    backend.time += seconds
    clock.time += seconds


def test_a_lease_says_who_and_since_when(backend: Clocked, clock: Clock) -> None:
    lease = acquire(backend, clock)
    (found,) = list_leases(backend)
    assert (found.id, found.begun, found.age, found.expired) == (lease.id, 1000.0, 0.0, False)
    assert found.record is not None
    assert (found.record.kind, found.record.user, found.record.dataset, found.record.term) == (
        "upload",
        "ada",
        "ds",
        30,
    )
    lease.release()
    assert list_leases(backend) == []
    assert list(backend.list("")) == []


def test_its_begin_stays_when_it_is_renewed(backend: Clocked, clock: Clock) -> None:
    lease = acquire(backend, clock)
    for _ in range(3):
        pass_time(backend, clock, 20)
        lease.renew()
    assert (lease.begun, lease.now, lease.lost) == (1000.0, 1060.0, False)
    pass_time(backend, clock, 10)
    (found,) = list_leases(backend)
    assert (found.begun, found.age, found.expired) == (1000.0, 10.0, False)
    assert lease.confirm()
    # One that starts later is younger, whatever the machines' clocks say.
    other = acquire(backend, Clock())
    assert [info.id for info in list_leases(backend)] == [lease.id, other.id]


def test_a_lease_runs_out(backend: Clocked, clock: Clock) -> None:
    lease = acquire(backend, clock)
    pass_time(backend, clock, 31)
    assert list_leases(backend)[0].expired
    assert lease.lost
    lease.renew()
    assert not list_leases(backend)[0].expired
    assert lease.lost, "others may have acted on it"
    assert not lease.confirm()


def test_a_pause_that_only_the_back_end_saw(backend: Clocked, clock: Clock) -> None:
    """A machine that was frozen with its clock."""
    lease = acquire(backend, clock)
    backend.time += 31
    assert not lease.lost
    assert not lease.confirm()


def test_a_clock_that_only_the_machine_saw_move(backend: Clocked, clock: Clock) -> None:
    lease = acquire(backend, clock)
    clock.time += 31
    assert lease.lost
    assert not lease.confirm()


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_lease_that_somebody_touched_is_lost_and_written_again(backend: Clocked, clock: Clock, change: str) -> None:
    lease = acquire(backend, clock)
    key = layout.lease_key(lease.id)
    if change == "removed":
        backend.delete([key])
    else:
        backend.put(key, [b"something else"])
    assert not lease.confirm()
    assert read_lease(backend, lease.id).renewed == 1
    assert not lease.confirm()
    lease.release()
    assert list(backend.list("")) == []


def test_a_failed_renewal_is_no_loss(backend: Clocked, clock: Clock) -> None:
    lease = acquire(backend, clock)
    backend.fails = True
    pass_time(backend, clock, 20)
    with pytest.raises(StorageError):
        lease.renew()
    assert not lease.lost
    assert not lease.confirm(), "nobody can tell"
    backend.fails = False
    assert lease.confirm()


def test_the_heartbeat_renews_and_survives_failures() -> None:
    class Beats(Clocked):
        def __init__(self) -> None:
            super().__init__()
            self.beats = 0
            self.third = threading.Event()

        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            self.beats += 1
            if self.beats == 2:
                raise StorageError("it passes")
            if self.beats > 3:
                self.third.set()
            return super().put(key, data, condition=condition)

    backend = Beats()
    with Lease.acquire(backend, kind="upload", term=1) as lease:
        assert backend.third.wait(30)
        assert read_lease(backend, lease.id).renewed >= 1
    assert list(backend.list("")) == []


def test_what_time_it_is(backend: Clocked) -> None:
    assert bucket_time(backend) == 1000.0
    assert list(backend.list("")) == []


GOOD = LeaseRecord(
    id="0" * 32, kind="upload", user="u", host="h", pid=1, dataset="d", term=30, started_at="now", write_id="w"
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 100,
        b"x" * (65 << 10),
        record.encode("lease", msgspec.structs.replace(GOOD, id="1" * 32)),
        record.encode("lease", msgspec.structs.replace(GOOD, term=0)),
        record.encode("lease", msgspec.structs.replace(GOOD, term=MAX_TERM + 1)),
        record.encode("lease", msgspec.structs.replace(GOOD, user="u" * 300)),
        record.encode("lease", msgspec.structs.replace(GOOD, begun=-1.0)),
        record.encode("trash", GOOD),
    ],
)
def test_a_lease_that_can_not_be_read_counts_for_long_but_not_for_ever(backend: Clocked, data: bytes) -> None:
    key = layout.lease_key(GOOD.id)
    backend.put(key, [data])
    with pytest.raises(FormatError, match=f"^{key}"):
        read_lease(backend, GOOD.id)
    (found,) = list_leases(backend, now=backend.time + MAX_TERM)
    assert (found.record, found.expired) == (None, False)
    assert found.begun < backend.time
    assert list_leases(backend, now=backend.time + MAX_TERM + 1)[0].expired


def test_a_time_that_lies_ahead_does_not_make_a_lease_younger(backend: Clocked) -> None:
    backend.put(layout.lease_key(GOOD.id), [record.encode("lease", msgspec.structs.replace(GOOD, begun=9e9))])
    (found,) = list_leases(backend)
    assert found.begun == 1000.0


# ---- what is being deleted


def plant(backend: MemoryBackend, state: TrashState, number: int, **lists: list[str]) -> None:
    value = TrashRecord(id=f"{number:032x}", state=state, created_at="now", write_id="w", **lists)
    backend.put(layout.trash_key(value.id), [record.encode("trash", value)])


def test_what_is_marked_is_not_dying_yet() -> None:
    backend = MemoryBackend()
    assert dying(backend) == DyingSet(frozenset(), frozenset())
    plant(backend, TrashState.MARKED, 1, packs=["aa" * 32])
    plant(backend, TrashState.DELETING, 2, packs=["bb" * 32], manifests=["cc" * 32])
    plant(backend, TrashState.DELETED, 3, packs=["dd" * 32])
    found = dying(backend)
    assert found.packs == {bytes.fromhex("bb" * 32), bytes.fromhex("dd" * 32)}
    assert found.manifests == {bytes.fromhex("cc" * 32)}
    final: dict[str, DyingSet] = {}
    for _ in range(2):
        assert dying(backend, final) == found
        assert [value.packs for value in final.values()] == [{bytes.fromhex("dd" * 32)}]
        backend.put(layout.trash_key(f"{3:032x}"), [b"not looked at again"])
    plant(backend, TrashState.DELETING, 2)
    assert dying(backend, final).packs == {bytes.fromhex("dd" * 32)}


@pytest.mark.parametrize("data", [b"", b"x" * (9 << 20), record.encode("lease", GOOD)])
def test_a_record_that_can_not_be_read_stops_a_commit(data: bytes) -> None:
    """Nobody can tell what it lists."""
    backend = MemoryBackend()
    backend.put(layout.trash_key("0" * 32), [data])
    with pytest.raises(FormatError, match=f"trash/{'0' * 32}"):
        dying(backend)
    with pytest.raises(NotFoundError):
        read_trash(backend, "1" * 32)
