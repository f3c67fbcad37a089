"""Checksums of local files are those of the versions that they would become."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.chunking.params import ChunkerParams
from casstore.errors import SourceError
from casstore.repo.store import FORMAT, Store, StoreConfig
from casstore.transfer import pipeline, upload
from casstore.transfer.checksum import checksum_path, checksum_sources
from casstore.transfer.download import download_tree
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

SMALL_CHUNKS = ChunkerParams(min=1024, avg=4096, max=16384)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "sub/empty").mkdir(parents=True)
    for number in range(300):
        (root / f"sub/{number}").write_bytes(os.urandom(number))
    (root / "large").write_bytes(os.urandom(12_000_000))
    (root / "text").write_text("the same line again and again\n" * 20_000)
    (root / "nothing").write_bytes(b"")
    (root / "link").symlink_to("sub/1")
    os.link(root / "text", root / "sub/text")
    (root / "text").chmod(0o600)
    return root


@pytest.mark.parametrize("chunker", [ChunkerParams(), SMALL_CHUNKS])
def test_it_is_the_checksum_of_the_version(folder: Path, chunker: ChunkerParams) -> None:
    config = StoreConfig(format=FORMAT, id="0" * 32, chunker=chunker.to_dict())
    sources = [Source(os.fsencode(folder), b"", contents=True)]
    with Store(MemoryBackend(), config) as store:
        uploaded = upload_tree(store, sources)
    found = checksum_sources(sources, chunker=chunker)
    assert (found.checksum, found.manifest, found.totals) == (uploaded.checksum, uploaded.manifest, uploaded.totals)
    assert checksum_path(str(folder), chunker=chunker) == uploaded.checksum.hex()
    assert found.new_bytes == 0


def test_reader_processes_find_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = checksum_path(folder)
    monkeypatch.setattr(pipeline, "READERS_FROM", 20)
    monkeypatch.setattr(pipeline, "BATCH_FILES", 16)
    monkeypatch.setattr(upload, "BATCH_FILES", 16)
    assert checksum_path(folder) == expected


def test_other_chunk_sizes_are_another_checksum(folder: Path) -> None:
    assert checksum_path(folder, chunker=SMALL_CHUNKS) != checksum_path(folder)


def test_a_download_has_the_checksum_of_its_version(folder: Path, tmp_path: Path) -> None:
    with Store.open(MemoryBackend(), create=True) as store:
        result = upload_tree(store, [Source(os.fsencode(folder), b"", contents=True)])
        download_tree(store, store.tree(result.manifest), tmp_path / "copy")
    assert checksum_path(tmp_path / "copy") == result.checksum.hex()


def test_the_spelling_of_the_path_makes_no_difference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checksum_path(folder)
    (tmp_path / "alias").symlink_to("data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (
        "data",
        "data/",
        "./data",
        "data/.",
        "elsewhere/../data",
        "data/sub/..",
        f"{folder}//",
        "alias",
        b"data",
    ):
        assert checksum_path(path) == expected
    monkeypatch.chdir(folder)
    assert checksum_path(".") == expected
    file = checksum_path("text")
    assert checksum_path("./sub/../text") == checksum_path(folder / "text") == file != expected
    assert checksum_path("sub/text") == file


def test_times_do_not_count_and_everything_else_does(folder: Path) -> None:
    before = checksum_path(folder)
    os.utime(folder / "large", ns=(1, 1))
    assert checksum_path(folder) == before
    seen = {before}
    for change in (
        lambda: (folder / "sub/7").chmod(0o755),
        lambda: (folder / "sub/8").write_bytes(b"changed"),
        lambda: (folder / "sub/9").rename(folder / "sub/9b"),
        (folder / "sub/empty").rmdir,
        lambda: ((folder / "link").unlink(), (folder / "link").symlink_to("sub/2")),
        (folder / "new").mkdir,
    ):
        change()
        seen.add(checksum_path(folder))
    assert len(seen) == 7


def test_a_missing_path_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing"):
        checksum_path(tmp_path / "missing")
