from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.chunking.params import ChunkerParams
from casstore.compression import decode
from casstore.hashing import digest
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.transfer import pipeline
from casstore.transfer import upload as upload_module
from casstore.transfer.readers import Reader
from casstore.transfer.scan import Source, state_of
from casstore.transfer.upload import TreeResult, upload_tree


def request(*paths: Path) -> list[tuple[bytes, tuple[int, int, int, int, int]]]:
    return [(os.fsencode(path), state_of(path.stat())) for path in paths]


def test_what_it_reads_is_what_is_there(tmp_path: Path) -> None:
    contents = [b"", b"x", os.urandom(9000), b"text " * 3000, os.urandom(400_000), b"t,q0\n" * 60_000]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    reader = Reader.start(ChunkerParams())
    assert reader is not None
    for _ in range(2):
        reply = reader.read(request(*paths))
        assert reply is not None
        for chunks, content in zip(reply, contents, strict=True):
            assert chunks is not None
            raw = [decode(codec, reader.view[at : at + stored], size) for _, size, codec, at, stored in chunks]
            assert b"".join(raw) == content
            assert [digest(part) for part in raw] == [chunk[0] for chunk in chunks]
    reader.close()


def test_what_it_can_not_read_is_left_to_the_upload(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("f")
    wanted = request(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"123456")
    missing = (os.fsencode(tmp_path / "missing"), wanted[0][1])
    link = (os.fsencode(tmp_path / "link"), state_of((tmp_path / "f").stat()))
    reader = Reader.start(ChunkerParams())
    assert reader is not None
    assert reader.read([*wanted, missing, link]) == [None, None, None]
    reader.close()


def test_a_dead_process_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    reader = Reader.start(ChunkerParams())
    assert reader is not None
    os.kill(reader._process.pid, signal.SIGKILL)
    reader._process.wait()
    assert reader.read(request(tmp_path / "f")) is None
    reader.close()


def upload(root: Path) -> tuple[Store, TreeResult]:
    store = Store.open(MemoryBackend(), create=True)
    return store, upload_tree(store, [Source(os.fsencode(root), b"", contents=True)])


@pytest.mark.parametrize("how", ["works", "dies", "does not start"])
def test_the_manifest_does_not_depend_on_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(700):
        size = 60_000 if number % 50 == 0 else 700
        (root / f"f{number}").write_bytes((b"%d," % (number % 400)) * (size // 4))
    _, expected = upload(root)
    monkeypatch.setattr(pipeline, "READERS_FROM", 0)
    monkeypatch.setattr(upload_module, "BATCH_FILES", 16)
    if how == "dies":
        real, calls = Reader.read, []

        def die(self: Reader, wanted):  # type: ignore[no-untyped-def]
            calls.append(1)
            if len(calls) == 5:  # in the middle
                self._process.kill()
            return real(self, wanted)

        monkeypatch.setattr(Reader, "read", die)
    if how == "does not start":
        monkeypatch.setattr(sys, "executable", "")
    store, result = upload(root)
    assert (result.manifest, result.new_chunks) == (expected.manifest, expected.new_chunks)
    assert verify_store(store).clean
