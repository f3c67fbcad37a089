"""Which packs are there: how few requests it takes to know, and that the answer is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from casstore import hashing
from casstore.backend.base import Backend
from casstore.backend.file import FileBackend
from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.format.index import Location
from casstore.format.pack import PackKind
from casstore.repo import layout, live
from casstore.repo.live import LivePacks
from casstore.repo.packs import PackBuilder


def fill(backend: Backend, packs: int) -> list[Location]:
    """Store packs of two chunks; return where the chunks are."""
    places = []
    for number in range(packs):
        builder = PackBuilder(PackKind.DATA)
        for half in range(2):
            data = b"%d-%d" % (number, half) * 50
            builder.append(hashing.digest(data), len(data), 0, data)
        sealed = builder.seal()
        backend.put(layout.pack_key(sealed.pack_id), sealed.parts)
        places += [place for _, place in sealed.places]
    return places


@pytest.mark.parametrize("whole", [4000, 100, 1], ids=["all at once", "some at once", "part by part"])
def test_a_thousand_packs_take_few_requests(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LISTED_WHOLE", whole)
    inner = MemoryBackend()
    places = fill(inner, 600)
    gone = {place.pack_id for place in places[::7]}
    inner.delete(layout.pack_key(pack_id) for pack_id in gone)
    log = CallLog()
    packs = LivePacks(TraceBackend(inner, log))
    for place in places:
        assert packs.holds(place) == (place.pack_id not in gone)
    assert packs.dead == gone
    assert packs.lost == gone
    assert packs.used.keys() == {place.pack_id for place in places} - gone
    # What is not listed may be newer than the listing: it is looked at before anything is said about it.
    assert {call.key for call in log.calls if call.operation == "stat"} == {
        layout.pack_key(pack_id) for pack_id in gone
    }
    assert len(log.calls) <= len(gone) + (1 if whole == 4000 else 257)
    assert packs.used == {pack_id: inner.stat(layout.pack_key(pack_id)).size for pack_id in packs.used}


def test_one_pack_of_a_large_store_takes_two_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LISTED_WHOLE", 3)
    inner = MemoryBackend()
    places = fill(inner, 50)
    log = CallLog()
    packs = LivePacks(TraceBackend(inner, log))
    assert all(packs.holds(place) for place in sorted(places)[-2:])
    assert len(log.calls) == 2


def test_a_pack_that_is_newer_than_the_listing_is_not_dead() -> None:
    backend = MemoryBackend()
    old = fill(backend, 1)[0]
    packs = LivePacks(backend)
    assert packs.holds(old)
    new = next(place for place in fill(backend, 2) if place.pack_id != old.pack_id)
    assert packs.holds(new)
    assert packs.dead == set()


@pytest.mark.parametrize("local", [True, False])
def test_a_pack_that_is_too_short_is_dead(tmp_path: Path, local: bool) -> None:
    backend: Backend = FileBackend(str(tmp_path), durable=False) if local else MemoryBackend()
    first, second = fill(backend, 1)
    key = layout.pack_key(first.pack_id)
    data = backend.get(key).data
    for size in (0, 15, second.offset, second.offset + second.stored):
        backend.put(key, [data[:size]])
        packs = LivePacks(backend)
        assert not packs.holds(second)
        assert packs.dead == packs.lost == {first.pack_id}
    backend.put(key, [data])
    assert LivePacks(backend).holds(second)
    backend.close()


def test_what_is_relied_on_is_not_forgotten() -> None:
    backend = MemoryBackend()
    first, second = fill(backend, 1)
    key = layout.pack_key(first.pack_id)
    backend.put(key, [backend.get(key).data[: second.offset + 100]])
    packs = LivePacks(backend)
    assert packs.holds(first)
    assert not packs.holds(second)
    assert packs.lost == set()


@pytest.mark.parametrize("count", [3, 100])
def test_missing(count: int) -> None:
    backend = MemoryBackend()
    used = {place.pack_id: backend.stat(layout.pack_key(place.pack_id)).size for place in fill(backend, count)}
    assert LivePacks(backend).missing(used) == set()
    short, gone = list(used)[:2]
    backend.put(layout.pack_key(short), [b"short"])
    backend.delete([layout.pack_key(gone)])
    assert LivePacks(backend).missing(used) == {short, gone}


def test_what_is_being_deleted_is_not_relied_on() -> None:
    backend = MemoryBackend()
    place = fill(backend, 1)[0]
    packs = LivePacks(backend, {place.pack_id})
    assert not packs.holds(place)
    assert packs.dead == set()


def test_a_pack_that_was_written_is_there() -> None:
    packs = LivePacks(MemoryBackend())
    pack_id = bytes(32)
    assert not packs.holds(Location(pack_id, 16, 100, 100, 0))
    packs.stored(pack_id, 1000)
    assert packs.holds(Location(pack_id, 16, 100, 100, 0))
    assert packs.lost == set()
