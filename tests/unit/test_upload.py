from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.errors import IntegrityError, SourceError
from casstore.model import Entry, Flag, Kind
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.transfer import pipeline
from casstore.transfer.scan import Source
from casstore.transfer.statcache import StatCache
from casstore.transfer.upload import TreeResult, upload_tree


@pytest.fixture
def store() -> Store:
    return Store.open(MemoryBackend(), create=True)


@pytest.fixture
def cache(tmp_path: Path, store: Store) -> Iterator[StatCache]:
    cache = StatCache(str(tmp_path / "cache" / "stat.sqlite"), store.id)
    yield cache
    cache.close()


def contents(path: Path, dest: str = "") -> Source:
    return Source(os.fsencode(path), dest.encode(), contents=True)


def entries(store: Store, result: TreeResult) -> dict[bytes, Entry]:
    return {entry.path: entry for entry in store.tree(result.manifest).entries()}


def data(store: Store, result: TreeResult, path: bytes) -> bytes:
    tree = store.tree(result.manifest)
    entry = tree.lookup(path)
    assert entry is not None
    return b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))


def make(root: Path) -> dict[bytes, bytes]:
    """A tree with a bit of everything; returns the files' contents by path."""
    files = {
        b"top.bin": os.urandom(3_000_000),
        b"empty": b"",
        b"logs/joint.csv": b"t,q0,q1\n" * 20_000,
        b"logs/deep/er/x": b"x",
        b"name-\xff\xfe": b"not utf-8",
        b"big.bin": os.urandom(1 << 20) * 11 + b"tail",
        b"zeros": bytes(2 << 20),
    }
    for path, content in files.items():
        full = os.path.join(os.fsencode(root), path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as out:
            out.write(content)
    return files


def test_everything_arrives(tmp_path: Path, store: Store) -> None:
    root = tmp_path / "in"
    files = make(root)
    (root / "void").mkdir()
    (root / "link").symlink_to("../nowhere")
    os.link(root / "top.bin", root / "twin.bin")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    os.mkfifo(root / "pipe")
    result = upload_tree(store, [contents(root)])
    found = entries(store, result)
    for path, content in files.items():
        assert data(store, result, path) == content
        assert found[path].size == len(content)
    assert found[b"void"].kind == Kind.DIRECTORY
    assert (found[b"link"].kind, found[b"link"].target) == (Kind.SYMLINK, b"../nowhere")
    assert found[b"top.bin"].link == found[b"twin.bin"].link != 0
    assert found[b"top.bin"].content == found[b"twin.bin"].content
    assert found[b"run.sh"].mode == 0o755
    assert found[b"run.sh"].mtime_ns == (root / "run.sh").stat().st_mtime_ns
    assert b"pipe" not in found
    assert len(result.skipped) == 1 and "pipe" in result.skipped[0]
    assert verify_store(store).problems == []


def test_the_manifest_does_not_depend_on_threads(tmp_path: Path) -> None:
    make(tmp_path / "in")
    ids = set()
    for threads in (1, 2, 3, 8):
        store = Store.open(MemoryBackend(), create=True)
        ids.add(upload_tree(store, [contents(tmp_path / "in")], threads=threads).manifest)
    assert len(ids) == 1


def test_a_second_upload_stores_nothing(tmp_path: Path, store: Store) -> None:
    make(tmp_path / "in")
    first = upload_tree(store, [contents(tmp_path / "in")])
    second = upload_tree(store, [contents(tmp_path / "in")])
    assert (second.manifest, second.new_bytes, second.new_chunks) == (first.manifest, 0, 0)


def test_two_trees_share_chunks(tmp_path: Path, store: Store) -> None:
    shared = os.urandom(4 << 20)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared.bin").write_bytes(shared)
        (tmp_path / name / "own.bin").write_bytes(os.urandom(50_000))
    upload_tree(store, [contents(tmp_path / "a")])
    assert upload_tree(store, [contents(tmp_path / "b")]).new_bytes < 60_000


def test_one_inserted_byte_stores_at_most_three_chunks(tmp_path: Path, store: Store) -> None:
    root = tmp_path / "in"
    root.mkdir()
    content = bytearray(os.urandom(24 << 20))
    (root / "f").write_bytes(content)
    upload_tree(store, [contents(root)])
    content[9_000_000:9_000_000] = b"!"
    (root / "f").write_bytes(content)
    result = upload_tree(store, [contents(root)])
    assert result.new_chunks <= 3
    assert data(store, result, b"f") == content


def settle(root: Path) -> None:
    """Make the files older than the moment in which a change could go unseen."""
    time.sleep(0.6)


def test_unchanged_files_go_unread(tmp_path: Path, store: Store, cache: StatCache) -> None:
    root = tmp_path / "in"
    files = make(root)
    settle(root)
    first = upload_tree(store, [contents(root)], cache=cache)
    assert first.files_read == len(files)
    second = upload_tree(store, [contents(root)], cache=cache)
    assert (second.files_read, second.reused, second.manifest) == (0, len(files), first.manifest)
    (root / "empty").write_bytes(b"no more")
    (root / "logs" / "new").write_bytes(b"new")
    third = upload_tree(store, [contents(root)], cache=cache)
    assert third.files_read == 2
    assert data(store, third, b"empty") == b"no more"
    assert data(store, third, b"logs/new") == b"new"
    assert data(store, third, b"big.bin") == files[b"big.bin"]


def test_a_file_just_written_is_not_trusted(tmp_path: Path, store: Store, cache: StatCache) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "f").write_bytes(b"one")
    upload_tree(store, [contents(root)], cache=cache)
    before = (root / "f").stat()
    with open(root / "f", "r+b") as out:
        out.write(b"two")
    os.utime(root / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data(store, upload_tree(store, [contents(root)], cache=cache), b"f") == b"two"


def test_the_cache_is_not_believed_about_chunks_that_are_gone(tmp_path: Path, cache: StatCache) -> None:
    root = tmp_path / "in"
    make(root)
    settle(root)
    store = Store.open(MemoryBackend(), create=True)
    upload_tree(store, [contents(root)], cache=cache)
    for key in [info.key for info in store.backend.list("")]:
        if key != "store.json":
            store.backend.delete([key])
    fresh = Store.open(store.backend)
    result = upload_tree(fresh, [contents(root)], cache=cache)
    assert result.reused == 1  # the empty file, which needs no chunk
    assert verify_store(fresh).problems == []


def test_a_damaged_cache_is_passed_over(tmp_path: Path, store: Store) -> None:
    make(tmp_path / "in")
    path = tmp_path / "stat.sqlite"
    path.write_bytes(os.urandom(8192))
    cache = StatCache(str(path), store.id)
    assert upload_tree(store, [contents(tmp_path / "in")], cache=cache).totals.files == 7
    cache.close()


def test_an_unreadable_file_fails_the_upload(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "in")
    real = pipeline.open_deep

    def refuse(path: bytes, flags: int) -> int:
        if path.endswith(b"joint.csv"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(pipeline, "open_deep", refuse)
    with pytest.raises(SourceError, match=r"joint\.csv: Permission denied"):
        upload_tree(store, [contents(tmp_path / "in")])
    assert not list(store.backend.list("manifests/"))


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_a_file_that_changes_once_is_read_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "f").write_bytes(bytes(size))
    final = os.urandom(size + 10)
    real, changed = pipeline.open_deep, threading.Event()

    def change(path: bytes, flags: int) -> int:
        descriptor = real(path, flags)
        if not changed.is_set():
            changed.set()
            (root / "f").write_bytes(final)
        return descriptor

    monkeypatch.setattr(pipeline, "open_deep", change)
    assert data(store, upload_tree(store, [contents(root)]), b"f") == final


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_a_file_that_keeps_changing_is_refused(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "f").write_bytes(bytes(size))
    real = pipeline.open_deep

    def change(path: bytes, flags: int) -> int:
        with open(root / "f", "ab") as out:
            out.write(b"more")
        return real(path, flags)

    monkeypatch.setattr(pipeline, "open_deep", change)
    with pytest.raises(SourceError, match="changes while it is read"):
        upload_tree(store, [contents(root)])


def test_a_file_deleted_meanwhile_is_left_out(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    real = pipeline.open_deep

    def drop(path: bytes, flags: int) -> int:
        if path.endswith(b"/b"):
            os.unlink(path)
        return real(path, flags)

    monkeypatch.setattr(pipeline, "open_deep", drop)
    result = upload_tree(store, [contents(root)])
    assert set(entries(store, result)) == {b"a"}
    assert "deleted during the upload" in result.skipped[0]


def test_sparse_files_are_known_as_such(tmp_path: Path, store: Store) -> None:
    root = tmp_path / "in"
    root.mkdir()
    with open(root / "holes", "wb") as out:
        out.seek(5 << 20)
        out.write(b"end")
    if os.stat(root / "holes").st_blocks * 512 > 1 << 20:
        pytest.fail("this file system has no holes: the test needs one that has")
    result = upload_tree(store, [contents(root)])
    assert entries(store, result)[b"holes"].flags & Flag.SPARSE
    assert result.new_bytes < 100_000


def test_folders_of_any_depth(deep_path: Path, store: Store) -> None:
    root = deep_path / "in"
    root.mkdir()
    depth, name = 1200, b"folder-x"
    at = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        deeper = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    out = os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=at)
    os.write(out, b"deep down")
    os.symlink("leaf", "link", dir_fd=at)
    os.close(out)
    os.close(at)
    result = upload_tree(store, [contents(root)])
    path = b"/".join([name] * depth) + b"/leaf"
    assert len(path) > 4096 * 2
    assert data(store, result, path) == b"deep down"
    assert result.totals.directories == depth


def test_earlier_sources_win_and_folders_merge(tmp_path: Path, store: Store) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "same").write_text(name)
        (tmp_path / name / "sub" / "same").write_text(name)
        (tmp_path / name / "sub" / name).write_text(name)
    single = tmp_path / "file"
    single.write_text("single")
    result = upload_tree(
        store, [contents(tmp_path / "one"), contents(tmp_path / "two"), Source(os.fsencode(single), b"sub/new/file")]
    )
    assert set(entries(store, result)) == {
        b"same", b"sub", b"sub/one", b"sub/two", b"sub/same", b"sub/new", b"sub/new/file",
    }  # fmt: skip
    assert data(store, result, b"same") == data(store, result, b"sub/same") == b"one"
    assert data(store, result, b"sub/new/file") == b"single"


def test_a_source_folder_keeps_its_name(tmp_path: Path, store: Store) -> None:
    make(tmp_path / "in")
    result = upload_tree(store, [Source(os.fsencode(tmp_path / "in"), b"renamed")])
    assert all(path == b"renamed" or path.startswith(b"renamed/") for path in entries(store, result))


def test_selecting_files_leaves_no_empty_folders(tmp_path: Path, store: Store) -> None:
    make(tmp_path / "in")
    (tmp_path / "in" / "void").mkdir()
    result = upload_tree(store, [contents(tmp_path / "in")], select=lambda path: path.endswith(b".csv"))
    assert set(entries(store, result)) == {b"logs", b"logs/joint.csv"}


def test_updating_a_version(tmp_path: Path, store: Store) -> None:
    make(tmp_path / "in")
    base = upload_tree(store, [contents(tmp_path / "in")])
    extra = tmp_path / "extra"
    (extra / "logs").mkdir(parents=True)
    (extra / "logs" / "joint.csv").write_text("new")
    result = upload_tree(
        store,
        [contents(extra)],
        base=store.tree(base.manifest),
        keep=lambda path: not path.startswith(b"logs/deep") and path != b"empty",
    )
    expected = set(entries(store, base)) - {b"empty", b"logs/deep", b"logs/deep/er", b"logs/deep/er/x"}
    assert set(entries(store, result)) == expected
    assert data(store, result, b"logs/joint.csv") == b"new"
    assert entries(store, result)[b"big.bin"] == entries(store, base)[b"big.bin"]


def test_a_missing_source_is_one_clear_line(tmp_path: Path, store: Store) -> None:
    with pytest.raises(SourceError, match="nowhere: No such file or directory"):
        upload_tree(store, [contents(tmp_path / "nowhere")])


def packs(store: Store) -> list[str]:
    return [info.key for info in store.backend.list("packs/")]


@pytest.mark.parametrize("how", ["lost", "cut short"])
@pytest.mark.parametrize("cached", [True, False])
def test_nothing_is_committed_over_packs_that_are_gone(
    tmp_path: Path, store: Store, cache: StatCache, how: str, cached: bool
) -> None:
    root = tmp_path / "in"
    files = make(root)
    settle(root)
    first = upload_tree(store, [contents(root)], cache=cache)
    old = packs(store)
    for key in old:
        data_of_pack = store.backend.get(key).data
        store.backend.delete([key])
        if how == "cut short":
            store.backend.put(key, [data_of_pack[:60]])  # shorter than any pack: a listing shows it
    fresh = Store.open(store.backend)
    second = upload_tree(fresh, [contents(root)], cache=cache if cached else None)
    assert second.manifest == first.manifest
    assert second.new_chunks > 0
    # A pack that was cut short may stay behind, but nothing needs it.
    assert {problem.where for problem in verify_store(Store.open(store.backend)).problems} <= (
        set() if how == "lost" else set(old)
    )
    for path, content in files.items():
        assert data(Store.open(store.backend), second, path) == content


def test_an_update_of_a_version_that_lost_data_is_refused(tmp_path: Path, store: Store) -> None:
    root = tmp_path / "in"
    make(root)
    base = upload_tree(store, [contents(root)])
    tree = store.tree(base.manifest)
    list(tree.entries())
    wanted = next(iter(tree.chunks(tree.lookup(b"top.bin"))))[0]  # type: ignore[arg-type]
    store.backend.delete([f"packs/{(pack := store.locate(wanted).pack_id.hex())[:2]}/{pack}"])
    (tmp_path / "more").write_text("more")
    with pytest.raises(IntegrityError, match="has lost data"):
        upload_tree(store, [Source(os.fsencode(tmp_path / "more"), b"more")], base=tree)
