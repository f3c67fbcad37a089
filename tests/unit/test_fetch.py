"""Reading many chunks from an object store: side by side, few requests, and once more where one is damaged."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.errors import IntegrityError
from casstore.repo import packs
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.transfer.fetch import Fetcher

READS = frozenset({"read"})


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    monkeypatch.setattr(packs, "PACK_TARGET", 64 << 10)
    monkeypatch.setattr(packs, "PACK_LEAST", 64 << 10)
    rng = random.Random(3)
    data = [rng.randbytes(20_000) for _ in range(20)]
    return {hashing.digest(chunk): chunk for chunk in data}


@pytest.fixture
def objects(chunks: dict[bytes, bytes]) -> MemoryBackend:
    backend = MemoryBackend()
    with Store.open(backend, create=True).writer(lanes=1) as writer:
        lane = writer.lane()
        for data in chunks.values():
            lane.add(data)
        writer.flush()
    return backend


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(8) as found:
        yield found


def refs(chunks: dict[bytes, bytes]) -> list[tuple[bytes, int]]:
    return [(chunk_id, len(data)) for chunk_id, data in chunks.items()]


class _Together(MemoryBackend):
    """Reads of packs return when several of them are under way."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(together, timeout=30)

    def read(self, key: str, offset: int, length: int) -> bytes:
        if key.startswith("packs/"):
            self.barrier.wait()
        return super().read(key, offset, length)


def test_reads_go_side_by_side(objects: MemoryBackend, chunks: dict[bytes, bytes], pool: Executor) -> None:
    found = list(objects.list("packs/"))
    assert 2 <= len(found) <= 8
    backend = _Together(len(found))
    for info in objects.list(""):
        backend.put(info.key, [objects.get(info.key).data])
    fetcher = Fetcher(Store.open(backend), pool)
    fetcher.load(refs(chunks))
    for chunk_id, data in chunks.items():
        assert fetcher.take(chunk_id, len(data)) == data
    fetcher.close()


@pytest.mark.parametrize("fault", [Fault.FLIP, Fault.TRUNCATE])
@pytest.mark.parametrize("times", [1, 1000])
def test_a_damaged_frame_is_read_once_more(
    objects: MemoryBackend, chunks: dict[bytes, bytes], fault: Fault, times: int, pool: Executor
) -> None:
    for at in range(1, 4):
        backend = FaultBackend(objects, FaultPlan(at, fault, times=times, operations=READS, prefix="packs/", bit=9999))
        fetcher = Fetcher(Store.open(backend), pool)
        fetcher.load(refs(chunks))
        reads, damaged = backend.calls, 0
        for chunk_id, data in chunks.items():
            try:
                assert fetcher.take(chunk_id, len(data)) == data
            except IntegrityError as error:
                damaged += 1
                assert "damaged" in error.message
                with pytest.raises(IntegrityError):
                    fetcher.take(chunk_id, len(data))
        assert backend.hits >= 1
        assert backend.calls > reads
        assert bool(damaged) == (times > 1)
        fetcher.close()
