"""An upload that is stopped ends at once, whatever its threads are at."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.errors import CancelledError
from casstore.repo.store import Store
from casstore.transfer import pipeline
from casstore.transfer.pipeline import Job, Pipeline
from casstore.transfer.progress import Silent


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SEGMENT", 1 << 20)
    begun, go_on = threading.Event(), threading.Event()
    segments: list[int] = []
    real = Pipeline._store_chunks

    def slow(self: Pipeline, lane: Any, data: Any, lengths: Any) -> Any:
        segments.append(sum(lengths))
        begun.set()
        assert go_on.wait(60)
        return real(self, lane, data, lengths)

    monkeypatch.setattr(Pipeline, "_store_chunks", slow)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(8 << 20))
    store = Store.open(MemoryBackend(), create=True)
    with store.writer(lanes=1) as writer:
        pipe = Pipeline(writer, FastCDCChunker(store.chunker), Silent(), threads=1)
        pipe.submit([Job(os.fsencode(path), path.stat())])
        assert begun.wait(60)
        stopping = threading.Thread(target=pipe.close)
        stopping.start()
        while not pipe._closed:
            stopping.join(0.01)
        go_on.set()
        stopping.join(60)
        assert not stopping.is_alive()
    assert len(segments) == 1


def test_a_segment_that_was_dropped_is_not_waited_for() -> None:
    store = Store.open(MemoryBackend(), create=True)
    with store.writer(lanes=1) as writer:
        pipe = Pipeline(writer, FastCDCChunker(store.chunker), Silent(), threads=1)
        file = pipeline._File(writer)
        file.open = 1  # handed over, and dropped by close()
        pipe.close()
        with pytest.raises(CancelledError):
            pipe._help_until_done(writer.lane(), file)
