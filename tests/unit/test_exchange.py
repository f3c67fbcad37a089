"""Areas for clients of OSMO 6.2, and work that outlives its request."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset.exchange.areas import OFFER_TERM, UPLOAD_TERM, Area, Areas
from casstore.errors import ConflictError, FormatError, PreconditionError, ServiceError
from casstore.format import record
from casstore.testing.foreign import osmo_etag
from casstore.transfer.digests import OSMO_PART, OsmoEtag
from casstore_server.services.jobs import Jobs


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def areas(backend: MemoryBackend) -> Areas:
    return Areas(backend)


def test_racing_uploads_get_numbers_of_their_own(areas: Areas) -> None:
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda n: areas.begin_upload("-robots", 5, user=f"u{n}"), range(24)))
    assert sorted(area.record.number for area in begun) == list(range(5, 29))
    assert len({area.record.id for area in begun}) == 24
    assert [area.record.number for area in areas.uploads("-robots")] == list(range(5, 29))
    assert areas.uploads("robots") == []
    found = areas.upload("-robots", 7)
    assert found is not None
    assert areas.upload("-robots", 4) is None


def test_of_several_one_removes_an_area(areas: Areas, backend: MemoryBackend) -> None:
    area = areas.begin_upload("robots", 1, user="ada")
    for number in range(30):
        backend.put(f"{area.hashes}/{number}", [b"x"])
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: areas.close(area), range(8))) == 1
    assert list(backend.list("")) == []
    with pytest.raises(PreconditionError):
        areas.touch(area)


def test_who_asks_for_an_offer_makes_it_last(areas: Areas, backend: MemoryBackend) -> None:
    manifest = bytes(32)
    assert areas.offer(manifest) is None
    begun = areas.begin_offer(manifest, "robots", 3, user="ada")
    assert areas.offer(manifest) is None
    areas.ready(begun, left_out=2)
    found = areas.offer(manifest)
    assert found is not None
    assert (found.record.left_out, found.manifest) == (2, f"{found.folder}/manifests/3.json")
    assert not areas.close(begun)
    assert areas.offer(bytes(31) + b"x") is None
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: areas.offer(manifest), range(32)))
    assert {area.record.id for area in together if area is not None} == {found.record.id}
    assert None not in together
    assert areas.sweep(time.time() + OFFER_TERM - 60) == 0
    assert areas.sweep(time.time() + OFFER_TERM + 60) == 1
    assert areas.offer(manifest) is None


def test_a_removal_that_stopped_is_taken_up(areas: Areas, backend: MemoryBackend) -> None:
    area = areas.begin_upload("robots", 1, user="ada")
    backend.put(f"{area.hashes}/x", [b"x"])
    stopped: Area = areas._change(area, closing=True)
    assert areas.upload("robots", 1) is None
    assert not areas.expired(time.time() + 60)
    assert areas.expired(time.time() + 3700) == [stopped.key]
    assert areas.sweep(time.time() + 3700) == 1
    assert list(backend.list("")) == []


def test_records_that_were_tampered_with(areas: Areas, backend: MemoryBackend) -> None:
    area = areas.begin_upload("robots", 1, user="ada")
    for change in (b"", b"{}", record.encode("lease", area.record)):
        backend.put(area.key, [change])
        with pytest.raises(FormatError):
            areas.upload("robots", 1)
    backend.put("exchange/uploads/strange", [b"x"])
    backend.put(f"{area.hashes}/x", [b"x"])
    later = time.time() + UPLOAD_TERM + 60
    assert areas.sweep(later) == 0
    assert areas.sweep_orphans(later - 120) == 0
    assert areas.sweep_orphans(later) == 1
    assert list(backend.list("")) == []


def test_objects_of_an_area_that_lasts_are_no_orphans(areas: Areas, backend: MemoryBackend) -> None:
    area = areas.begin_upload("robots", 1, user="ada")
    backend.put(f"{area.hashes}/x", [b"x"])
    assert areas.sweep_orphans(time.time() + 2 * UPLOAD_TERM) == 0
    assert len(list(backend.list("exchange/"))) == 2


def test_there_is_a_limit(areas: Areas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore.dataset.exchange.areas._MOST_UPLOADS", 2)
    areas.begin_upload("robots", 1, user="ada")
    areas.begin_upload("robots", 1, user="ada")
    with pytest.raises(ConflictError, match="under way"):
        areas.begin_upload("robots", 1, user="ada")


@pytest.mark.parametrize("size", [0, 1, OSMO_PART - 1, OSMO_PART, OSMO_PART + 1, 2 * OSMO_PART, 2 * OSMO_PART + 3])
@pytest.mark.parametrize("step", [100_003, 1 << 30])
def test_etags_are_those_of_osmo(size: int, step: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    found = OsmoEtag()
    for at in range(0, size, step):
        found.update(data[at : at + step])
    assert found.value() == osmo_etag(data)


def test_work_goes_on_without_its_request() -> None:
    jobs = Jobs(patience=0)
    go, calls = threading.Event(), []

    def work(stop: object) -> str:
        calls.append(1)
        assert go.wait(30)
        return "done"

    assert jobs.ask("a", work) is None
    assert jobs.ask("a", work) is None
    assert jobs.runs("a")
    go.set()
    jobs._patience = 30
    assert jobs.ask("a", work) == "done"
    assert calls == [1]
    assert not jobs.runs("a")
    jobs.close()
    with pytest.raises(ServiceError):
        jobs.ask("b", work)


def test_failures_are_told_once_and_can_be_tried_again() -> None:
    jobs = Jobs(patience=30)

    def fails(stop: object) -> str:
        raise ConflictError("no")

    with pytest.raises(ConflictError, match="no"):
        jobs.ask("a", fails)
    assert jobs.ask("a", lambda stop: "yes") == "yes"
    jobs.close()


def test_the_end_of_the_server_ends_work() -> None:
    jobs = Jobs(patience=0)
    begun = threading.Event()

    def work(stop: object) -> str:
        begun.set()
        while not stop():  # type: ignore[operator]
            pass
        return "stopped"

    assert jobs.ask("a", work) is None
    assert begun.wait(30)
    jobs.close()
