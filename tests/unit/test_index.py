from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.backend.registry import open_backend
from casstore.errors import FormatError, NotFoundError
from casstore.format.index import HEADER_SIZE, Location, Segment, encode
from casstore.repo import index as index_module
from casstore.repo.index import Index
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree


def some(count: int, seed: int = 0) -> list[tuple[bytes, Location]]:
    rng = random.Random(seed)
    packs = [hashing.digest(bytes([n, seed % 256])) for n in range(1 + count // 100)]
    return [
        (rng.randbytes(32), Location(rng.choice(packs), rng.randrange(1 << 25), rng.randrange(1, 1000), 1000, 1))
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 5000])
def test_every_chunk_is_found_and_no_other(count: int) -> None:
    records = some(count)
    segment = Segment(encode(records))
    for chunk_id, place in records:
        assert segment.contains(chunk_id)
        assert segment.locate(chunk_id) == place
    for _ in range(200):
        assert segment.locate(os.urandom(32)) is None
    assert dict(segment.items()) == dict(records)
    assert [key for key, _ in segment.items()] == sorted(dict(records))


def test_ids_that_differ_in_the_last_byte_only() -> None:
    stem = b"\xaa" * 31
    records = [(stem + bytes([n]), Location(bytes(32), n, 1, 1, 0)) for n in range(256)]
    segment = Segment(encode(records))
    assert all(segment.locate(chunk_id) == place for chunk_id, place in records)


def test_an_id_inside_the_fields_of_a_record_is_not_taken_for_one() -> None:
    # The fields behind an id can look like the start of another id: only whole records count.
    first = bytes(32)
    place = Location(b"\x01" * 32, 0, 0, 0, 0)
    segment = Segment(encode([(first, place), (bytes(31) + b"\x01", place)]))
    assert segment.locate(bytes(31) + b"\x02") is None
    assert segment.locate(first) == place


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: d[:HEADER_SIZE], lambda d: b"", lambda d: b"X" + d[1:]]
)
def test_damaged_segments_are_refused(damage) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatError):
        Segment(damage(encode(some(20))))


def test_an_index_finds_what_another_writer_published() -> None:
    backend = MemoryBackend()
    reader, writer = Index(backend), Index(backend)
    reader.load()
    (chunk_id, place), *_ = records = some(5)
    with pytest.raises(NotFoundError):
        reader.locate(chunk_id)
    writer.publish(records)
    assert reader.locate(chunk_id) == place


def test_small_segments_are_merged_and_nothing_is_lost() -> None:
    backend = MemoryBackend()
    index = Index(backend)
    everything: dict[bytes, Location] = {}
    for seed in range(40):
        records = some(30, seed)
        everything.update(records)
        index.publish(records)
    assert len(list(backend.list("index/"))) <= index_module.MERGE_ABOVE + 1
    fresh = Index(backend)
    assert all(fresh.locate(chunk_id) == place for chunk_id, place in everything.items())
    assert all(index.locate(chunk_id) == place for chunk_id, place in everything.items())


def test_writers_that_merge_at_the_same_time_lose_nothing() -> None:
    backend = MemoryBackend()
    batches = [some(20, seed) for seed in range(60)]

    def work(part: int) -> None:
        index = Index(backend)
        for batch in batches[part::4]:
            index.publish(batch)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = Index(backend)
    for batch in batches:
        for chunk_id, place in batch:
            assert fresh.locate(chunk_id) == place


def uploaded(tmp_path: Path) -> tuple[Path, bytes]:
    source = tmp_path / "in"
    source.mkdir()
    (source / "f").write_bytes(os.urandom(300_000))
    (source / "g").write_text("text " * 9000)
    store = Store.open(open_backend(f"file://{tmp_path}/store", create=True), create=True)
    result = upload_tree(store, [Source(os.fsencode(source), b"", contents=True)])
    store.close()
    return source, result.manifest


@pytest.mark.parametrize("how", ["lost", "flipped", "cut", "empty"])
def test_an_index_that_is_damaged_is_read_from_the_packs_instead(tmp_path: Path, how: str) -> None:
    source, manifest = uploaded(tmp_path)
    for path in (tmp_path / "store" / "index").iterdir():
        data = bytearray(path.read_bytes())
        data[-20] ^= 4
        path.unlink()
        if how != "lost":
            path.write_bytes({"flipped": data, "cut": data[:-1], "empty": b""}[how])
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        tree = store.tree(manifest)
        for name in ("f", "g"):
            entry = tree.lookup(name.encode())
            assert entry is not None
            chunks = b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))
            assert chunks == (source / name).read_bytes()
        # What is uploaded next finds everything, and the index on disk is whole again.
        (source / "h").write_bytes(os.urandom(5000))
        assert upload_tree(store, [Source(os.fsencode(source), b"", contents=True)]).new_chunks == 1
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        assert verify_store(store).problems == []
        assert sum(segment.records for segment in store.index.segments()) > 4


def test_an_upload_that_stores_nothing_new_makes_known_what_it_relies_on(tmp_path: Path) -> None:
    """The packs are there, of an upload that was interrupted before it published them."""
    source, manifest = uploaded(tmp_path)
    for path in (tmp_path / "store" / "index").iterdir():
        path.unlink()
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        assert upload_tree(store, [Source(os.fsencode(source), b"", contents=True)]).new_chunks == 0
    assert len([*(tmp_path / "store" / "index").iterdir()]) == 1
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        assert verify_store(store).problems == []
        assert store.has_manifest(manifest)


def test_one_segment_of_several_is_lost(tmp_path: Path) -> None:
    source, manifest = uploaded(tmp_path)
    first = {path.name for path in (tmp_path / "store" / "index").iterdir()}
    (source / "h").write_bytes(os.urandom(5000))
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        upload_tree(store, [Source(os.fsencode(source), b"", contents=True)])
    for name in first:
        (tmp_path / "store" / "index" / name).unlink()
    with Store.open(open_backend(f"file://{tmp_path}/store")) as store:
        tree = store.tree(manifest)
        assert {entry.path for entry in tree.entries()} == {b"f", b"g"}
        for entry in tree.entries():
            assert len(b"".join(bytes(c) for c in store.read_chunks(list(tree.chunks(entry))))) == entry.size


@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_segment_goes_when_something_is_published(tmp_path: Path, remote: bool) -> None:
    backend = MemoryBackend() if remote else open_backend(f"file://{tmp_path}/s", create=True)
    records = some(20)
    Index(backend).publish(records)
    (info,) = backend.list("index/")
    backend.put(info.key, [backend.get(info.key).data[:-1] + b"\1"])
    index = Index(backend)
    index.publish(records)
    assert info.key not in [found.key for found in backend.list("index/")]
    for found in (index, Index(backend)):
        assert all(found.locate(chunk_id) == place for chunk_id, place in records)


def test_no_segment_has_a_name_again() -> None:
    backend = MemoryBackend()
    names: set[str] = set()
    for _ in range(5):
        Index(backend).publish(some(20))
        fresh = {info.key for info in backend.list("index/")} - names
        assert len(fresh) == 1
        names |= fresh


def test_every_place_of_a_chunk_survives_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who merges may not know which of the packs is going to be deleted."""
    backend = MemoryBackend()
    chunk = bytes([7]) * 32
    places = [Location(bytes([number]) * 32, 16, 100, 100, 0) for number in range(4)]
    monkeypatch.setattr(index_module, "MERGE_ABOVE", 1)
    for place in places:
        Index(backend).publish([(chunk, place), *some(5)])
    assert len([*backend.list("index/")]) == 1
    index = Index(backend)
    index.load()
    assert sorted(index.places(chunk)) == places
    index.tidy({places[0].pack_id, places[2].pack_id})
    again = Index(backend)
    again.load()
    assert sorted(again.places(chunk)) == [places[1], places[3]]
    assert len(list(again.places(some(5)[0][0]))) == 1, "the same place is kept once"


def test_a_merge_that_says_nothing_new_does_not_remove_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    records = some(20)
    index = Index(backend)
    index.publish(records)
    monkeypatch.setattr(index_module, "MERGE_ABOVE", 1)
    index.publish(records[:5])  # merged with the first, it is the first
    assert all(Index(backend).locate(chunk_id) == place for chunk_id, place in records)


def test_a_large_segment_that_is_far_away_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    from casstore.repo import segments

    backend = MemoryBackend()
    for seed in range(10):
        Index(backend).publish(some(200, seed))
    monkeypatch.setattr(segments, "_PART", 1000)
    fresh = Index(backend)
    for seed in range(10):
        for chunk_id, place in some(200, seed):
            assert fresh.locate(chunk_id) == place


def test_a_segment_that_arrives_damaged_is_sent_again_under_another_name() -> None:
    inner = MemoryBackend()
    backend = FaultBackend(inner, FaultPlan(1, Fault.FLIP, operations=frozenset({"put"}), bit=999))
    records = some(20)
    Index(backend).publish(records)
    assert backend.hits == 1
    fresh = Index(inner)
    assert all(fresh.locate(chunk_id) == place for chunk_id, place in records)
    assert len(list(inner.list("index/"))) == 1
    broken = FaultBackend(MemoryBackend(), FaultPlan(1, Fault.FLIP, times=9, operations=frozenset({"put"}), bit=999))
    with pytest.raises(FormatError):
        Index(broken).publish(records)
