"""Ranges of files: what is cut, kept, shared among threads and refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.dataset import Bucket
from casstore.errors import IntegrityError, StorageError
from casstore.format.manifest import CHUNK_REF
from casstore.model import Content, Entry
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.transfer.ranges import Layout, Ranges

DATA = random.Random(4).randbytes(3 << 20)


class Place:
    """A store with one file, its calls counted, and made to fail where a test says so."""

    def __init__(self, root: Path) -> None:
        (root / "in").mkdir()
        (root / "in" / "x").write_bytes(DATA)
        self.log = CallLog()
        self.faults = FaultBackend(MemoryBackend())
        self.store = Store.open(TraceBackend(self.faults, self.log), create=True)
        bucket = Bucket(self.store, name="b", user="u")
        bucket.upload("ds", [f"{root}/in/*"])
        self.tree = bucket.tree(bucket.resolve("ds"))
        entry = self.tree.lookup(b"x")
        assert entry is not None
        self.entry: Entry = entry
        self.log.clear()

    def layout(self, ranges: Ranges) -> Layout:
        return ranges.layout(b"x", self.tree, self.entry.size, self.entry.content)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.store.close()


def joined(pieces: list[memoryview]) -> bytes:
    return b"".join(pieces)


def test_ranges_are_cut_at_the_end_and_kept(place: Place) -> None:
    ranges = Ranges(place.store)
    layout = place.layout(ranges)
    assert ranges.cached(layout, 10, 20) is None
    assert joined(ranges.read(layout, len(DATA) - 5, 100)) == DATA[-5:]
    assert ranges.read(layout, len(DATA), 100) == ranges.read(layout, 7, 0) == []
    assert joined(ranges.read(layout, 0, 10, also=(0, 1 << 20))) == DATA[:10]
    before = place.log.count("read")
    assert joined(ranges.cached(layout, 1000, 1 << 19) or []) == DATA[1000 : 1000 + (1 << 19)]
    assert joined(ranges.read(layout, 5, 1 << 19)) == DATA[5 : 5 + (1 << 19)]
    assert place.log.count("read") == before
    ranges.close()


def test_memory_is_bounded(place: Place) -> None:
    ranges = Ranges(place.store, memory=1 << 20)
    layout = place.layout(ranges)
    assert joined(ranges.read(layout, 0, len(DATA))) == DATA
    assert ranges._held <= 1 << 20
    assert ranges.cached(layout, 0, len(DATA)) is None
    assert ranges.cached(layout, len(DATA) - 1000, 1000) is not None
    ranges.close()


def test_what_several_threads_want_is_read_once(place: Place) -> None:
    ranges = Ranges(place.store)
    layout = place.layout(ranges)
    place.log.clear()
    place.faults._plan = FaultPlan(place.faults.calls + 1, Fault.STALL, operations=frozenset({"read"}), prefix="packs/")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ranges.read, layout, 0, len(DATA))
        assert place.faults.wait_stalled(30)
        others = [pool.submit(ranges.read, layout, 1000 * number, 5000) for number in range(3)]
        place.faults.release()
        assert joined(first.result()) == DATA
        for number, other in enumerate(others):
            assert joined(other.result()) == DATA[1000 * number :][:5000]
    # In one read for each pack, whose number is the uploader's choice.
    assert place.log.bytes("read", "packs/") < 1.01 * len(DATA)
    ranges.close()


def test_who_waits_for_a_read_that_fails_reads_by_itself(place: Place) -> None:
    ranges = Ranges(place.store)
    layout = place.layout(ranges)
    started, go_on = threading.Event(), threading.Event()
    read = place.store.backend.read

    def failing(key: str, offset: int, length: int) -> bytes:
        place.store.backend.read = read  # type: ignore[method-assign]
        started.set()
        go_on.wait(30)
        raise StorageError("the first one fails")

    place.store.backend.read = failing  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ranges.read, layout, 0, 5000)
        assert started.wait(30)
        second = pool.submit(ranges.read, layout, 0, 5000)
        go_on.set()
        with pytest.raises(StorageError):
            first.result()
        assert joined(second.result()) == DATA[:5000]
    ranges.close()


def test_damage_spoils_no_other_range(place: Place) -> None:
    ranges = Ranges(place.store)
    layout = place.layout(ranges)
    chunk_id, raw = layout.chunk(3)
    wrong = Layout(layout.ids[:], layout.begins[:])
    wrong.ids[3 * 32 : 4 * 32] = hashing.digest(b"not in the store")
    bad, good = ranges.read_many([(wrong, wrong.begins[3], 5), (layout, 0, 5)])
    assert isinstance(bad, IntegrityError)
    assert isinstance(good, list)
    assert joined(good) == DATA[:5]
    with pytest.raises(IntegrityError):
        ranges.read(wrong, wrong.begins[3] - 1, 5)
    assert len(chunk_id) == 32
    assert raw > 5
    ranges.close()


def test_a_chunk_of_another_length_is_refused_from_memory_too(place: Place) -> None:
    ranges = Ranges(place.store)
    layout = place.layout(ranges)
    chunk_id, raw = layout.chunk(0)
    assert joined(ranges.read(layout, 0, raw)) == DATA[:raw]
    for length in (raw - 1, raw + 1):
        content = Content(0, CHUNK_REF.pack(chunk_id, length))
        lying = ranges.layout(length, place.tree, length, content)
        assert ranges.cached(lying, 0, 10) is None
        with pytest.raises(IntegrityError, match="another length"):
            ranges.read(lying, 0, 10)
    ranges.close()


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1, 1])
def test_a_list_that_is_not_as_long_as_its_file_is_refused(place: Place, size: int) -> None:
    ranges = Ranges(place.store)
    with pytest.raises(IntegrityError, match="the list of a file's chunks is"):
        ranges.layout("k", place.tree, size, place.entry.content)
    ranges.close()


def test_lists_are_kept_as_long_as_there_is_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore.transfer.ranges.RECORDS", 2 * (len(DATA) >> 16))
    ranges = Ranges(place.store)
    for key in range(10):
        ranges.layout(key, place.tree, place.entry.size, place.entry.content)
    assert 1 <= len(ranges._layouts) < 10
    assert list(ranges._layouts)[-1] == 9
    assert ranges._records == sum(len(layout.begins) for layout in ranges._layouts.values())
    ranges.close()


def test_a_whole_file_in_pieces(place: Place) -> None:
    ranges = Ranges(place.store)
    assert b"".join(bytes(piece) for piece in ranges.pieces(place.layout(ranges), 100_000)) == DATA
    assert ranges._held == 0
    ranges.close()


def test_an_empty_file(place: Place) -> None:
    ranges = Ranges(place.store)
    empty = ranges.layout("e", place.tree, 0, Content())
    assert (empty.size, ranges.read(empty, 0, 10)) == (0, [])
    ranges.close()
