"""Nodes of trees from an object store: few requests, and nothing that is damaged stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.errors import IntegrityError, NotFoundError, StorageError
from casstore.format.index import Location
from casstore.repo import layout, nodes
from casstore.repo.nodes import WINDOW, Windows

PACK = bytes(range(32))
DATA = bytes(range(256)) * (WINDOW // 64)  # four windows


@pytest.fixture
def log() -> CallLog:
    return CallLog()


@pytest.fixture
def windows(log: CallLog) -> Windows:
    backend = MemoryBackend()
    backend.put(layout.pack_key(PACK), [DATA, b"end"])
    return Windows(TraceBackend(backend, log))


def place(offset: int, stored: int, pack_id: bytes = PACK) -> Location:
    return Location(pack_id, offset, stored, stored, 0)


def operations(log: CallLog) -> list[str]:
    return [call.operation for call in log.calls]


def test_neighbours_cost_one_read(windows: Windows, log: CallLog) -> None:
    for offset in range(0, WINDOW, 5000):
        stored = min(5000, WINDOW - offset)
        assert windows.read(place(offset, stored)) == DATA[offset : offset + stored]
    assert operations(log) == ["stat", "read"]
    assert windows.read(place(len(DATA), 3)) == b"end"
    assert operations(log) == ["stat", "read", "read"]


def test_what_crosses_two_windows_is_read_alone(windows: Windows, log: CallLog) -> None:
    assert windows.read(place(WINDOW - 1, 2)) == DATA[WINDOW - 1 : WINDOW + 1]
    assert operations(log) == ["read"]


@pytest.mark.parametrize("offset", [len(DATA) + 1, len(DATA) + WINDOW, 1 << 40])
def test_what_is_not_there(windows: Windows, offset: int) -> None:
    with pytest.raises(IntegrityError):
        windows.read(place(offset, 10))
    with pytest.raises(NotFoundError):
        windows.read(place(0, 10, bytes(32)))


def test_few_are_kept(windows: Windows, log: CallLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "KEPT", 2)
    for number in (0, 1, 0, 2, 0, 1):
        windows.read(place(number * WINDOW, 10))
    assert operations(log).count("read") == 4


def test_what_is_forgotten_is_read_again(windows: Windows, log: CallLog) -> None:
    windows.read(place(0, 10))
    windows.forget(place(5, 10))
    windows.forget(place(WINDOW, 10))
    windows.read(place(0, 10))
    assert operations(log) == ["stat", "read"] * 2


class _Gate(MemoryBackend):
    """Reads wait at a gate, and may fail behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.waits = threading.Event()
        self.reads = 0
        self.fail = False

    def read(self, key: str, offset: int, length: int) -> bytes:
        self.reads += 1
        self.waits.set()
        self.open.wait(30)
        if self.fail:
            raise StorageError("no")
        return super().read(key, offset, length)


@pytest.mark.parametrize("fail", [False, True])
def test_threads_share_one_read(fail: bool) -> None:
    backend = _Gate()
    backend.put(layout.pack_key(PACK), [DATA])
    backend.fail = fail
    windows = Windows(backend)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(windows.read, place(0, 10))
        backend.waits.wait(30)
        others = [pool.submit(windows.read, place(number, 10)) for number in range(3)]
        checks: list[Callable[[], object]] = [first.result, *(other.result for other in others)]
        backend.open.set()
        for check in checks:
            if fail:
                with pytest.raises(StorageError):
                    check()
            else:
                check()
    if not fail:
        assert backend.reads == 1
    backend.fail = False
    assert windows.read(place(0, 10)) == DATA[:10]
