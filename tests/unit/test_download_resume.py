"""Continuing a download, repairing a folder, and failing without leaving half a result."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore.backend.file import FileBackend
from casstore.errors import CasstoreError, ConflictError, FormatError, IntegrityError
from casstore.format.manifest import CHUNK_REF
from casstore.model import Content, Entry, Kind, sort_key
from casstore.repo import layout
from casstore.repo.store import Store
from casstore.repo.tree import Tree, TreeBuilder
from casstore.transfer import stage
from casstore.transfer.download import download_tree
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

NOW = 1_700_000_000_123_456_789
LARGE = 9_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "store").mkdir()
    with Store.open(FileBackend(str(tmp_path / "store"), durable=False), create=True) as opened:
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub/deeper").mkdir(parents=True)
    for number in range(40):
        (root / f"sub/f{number:02d}").write_bytes(os.urandom(2000))
    (root / "sub/deeper/large").write_bytes(os.urandom(LARGE))
    (root / "medium").write_bytes(os.urandom(400_000))
    os.link(root / "medium", root / "sub/medium-again")
    (root / "link").symlink_to("sub/f00")
    for path in root.rglob("*"):
        os.utime(path, ns=(NOW, NOW), follow_symlinks=False)
    return root


def upload(store: Store, folder: Path) -> Tree:
    return store.tree(upload_tree(store, [Source(os.fsencode(folder), b"", contents=True)]).manifest)


def state(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


class StopError(Exception):
    pass


class StopAfter:
    """A progress that breaks the download off after some files."""

    def __init__(self, files: int) -> None:
        self._left = files

    def expect(self, files: int, size: int) -> None:
        pass

    def listed(self) -> None:
        pass

    def advance(self, size: int, *, new: int = 0) -> None:
        pass

    def file_done(self, path: bytes) -> None:
        self._left -= 1
        if self._left < 0:
            raise StopError

    def warn(self, message: str) -> None:
        pass


def staging(tmp_path: Path) -> Path:
    return tmp_path / ".out.casstore-partial"


@pytest.mark.parametrize("files", [0, 1, 7, 30, 41])
@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_download(store: Store, source: Path, tmp_path: Path, files: int, resume: bool) -> None:
    tree = upload(store, source)
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", progress=StopAfter(files), threads=1)
    assert not (tmp_path / "out").exists()
    assert (staging(tmp_path) / "tree").is_dir()
    stats = download_tree(store, tree, tmp_path / "out", resume=resume)
    assert state(tmp_path / "out") == state(source)
    assert (tmp_path / "out/medium").samefile(tmp_path / "out/sub/medium-again")
    assert stats.reused >= (files if resume else 0)
    assert resume or stats.reused == 0
    assert not staging(tmp_path).exists()


def test_interrupted_again_and_again(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    for _ in range(4):
        with pytest.raises(StopError):
            download_tree(store, tree, tmp_path / "out", progress=StopAfter(9), threads=1, resume=True)
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)


def test_half_a_large_file_is_continued_and_not_begun_again(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", progress=StopAfter(0))
    partial = staging(tmp_path) / "tree/sub/deeper/large"
    data = (source / "sub/deeper/large").read_bytes()
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    with open(partial, "wb") as file:
        file.write(data[: LARGE // 2])
        file.truncate(LARGE)
    stats = download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)
    assert stats.written < tree.totals.size - LARGE // 3


def test_leftovers_of_another_version_are_compared_and_not_trusted(store: Store, source: Path, tmp_path: Path) -> None:
    first = upload(store, source)
    with pytest.raises(StopError):
        download_tree(store, first, tmp_path / "out", progress=StopAfter(30), threads=1)
    # Same size, same time, other content.
    for number in range(40):
        (source / f"sub/f{number:02d}").write_bytes(os.urandom(2000))
        os.utime(source / f"sub/f{number:02d}", ns=(NOW, NOW))
    second = upload(store, source)
    assert second.id != first.id
    with pytest.raises(StopError):
        download_tree(store, second, tmp_path / "out", progress=StopAfter(3), threads=1, resume=True)
    download_tree(store, second, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)


@pytest.mark.parametrize("boots", [("a", "b"), ("a", ""), ("", "")])
def test_after_a_crash_of_the_machine_contents_are_compared(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boots: tuple[str, str]
) -> None:
    tree = upload(store, source)
    monkeypatch.setattr(stage, "_boot", lambda: boots[0])
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", progress=StopAfter(35), threads=1)
    monkeypatch.setattr(stage, "_boot", lambda: boots[1])
    # The size and the time made it to the disk, the blocks did not.
    victims = [path for path in (staging(tmp_path) / "tree").rglob("*") if path.is_file() and not path.is_symlink()]
    for path in victims[::2]:
        status = path.stat()
        with open(path, "r+b") as file:
            file.write(bytes(min(status.st_size, 1000)))
        os.utime(path, ns=(NOW, status.st_mtime_ns))
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", progress=StopAfter(2), threads=1, resume=True)
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifest": 3, "boot": null}', b"\xff" * 5000])
def test_a_damaged_state_is_not_trusted(store: Store, source: Path, tmp_path: Path, content: bytes) -> None:
    tree = upload(store, source)
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", progress=StopAfter(20), threads=1)
    assert json.loads((staging(tmp_path) / "state").read_bytes())["manifest"] == tree.id.hex()
    (staging(tmp_path) / "state").write_bytes(content)
    for path in (staging(tmp_path) / "tree/sub").glob("f*"):
        size = path.stat().st_size
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(NOW, NOW))
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)


def test_something_else_in_the_staging_folder_is_replaced(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", progress=StopAfter(20), threads=1)
    inner = staging(tmp_path) / "tree"
    for name in ("sub/f00", "sub/f01", "medium", "link", "sub/deeper/large", "sub/medium-again"):
        path = inner / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(outside)
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)
    assert outside.read_bytes() == b"untouched"


def test_a_process_that_is_killed(store: Store, source: Path, tmp_path: Path) -> None:
    """Killed at several moments, continued by another process each time."""
    tree = upload(store, source)
    code = r"""
import os, sys, time
from casstore.backend.file import FileBackend
from casstore.repo.store import Store
from casstore.transfer.download import download_tree
from casstore.transfer.progress import Silent
class Slow(Silent):
    def file_done(self, path):
        os.write(1, b"done\n")
        time.sleep(0.01)
store = Store.open(FileBackend(sys.argv[1]))
tree = store.tree(bytes.fromhex(sys.argv[2]))
download_tree(store, tree, sys.argv[3], resume=True, progress=Slow(), threads=2)
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "store"), tree.id.hex(), str(tmp_path / "out")]
    for files in (1, 5, 9):
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            done = [process.stdout.readline() for _ in range(files)]
            process.send_signal(signal.SIGKILL)
        assert done == [b"done\n"] * files
        assert not (tmp_path / "out").exists()
    stats = download_tree(store, tree, tmp_path / "out", resume=True)
    assert stats.reused >= 9
    assert state(tmp_path / "out") == state(source)


# --- into a folder with content


def test_a_complete_folder_costs_no_reading(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = upload(store, source)
    download_tree(store, tree, tmp_path / "out")
    (tmp_path / "out/mine").write_bytes(b"mine")
    from casstore.transfer import fetch

    monkeypatch.setattr(fetch, "decode_frame", None)
    stats = download_tree(store, tree, tmp_path / "out", resume=True)
    assert (stats.reused, stats.written) == (stats.files, 0)
    assert (tmp_path / "out/mine").read_bytes() == b"mine"
    assert not staging(tmp_path).exists()


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_content(path: Path) -> None:
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(status.st_size // 2)
        file.write(b"damage")


def damage_size(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_longer(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def damage_mode(path: Path) -> None:
    path.chmod(0o604)


def damage_time(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def damage_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def damage_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [
    damage_missing,
    damage_content,
    damage_size,
    damage_longer,
    damage_mode,
    damage_time,
    damage_link,
    damage_fifo,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_differs_is_repaired(store: Store, source: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    tree = upload(store, source)
    download_tree(store, tree, tmp_path / "out")
    for name in ("sub/f03", "sub/deeper/large"):
        damage(tmp_path / "out" / name)
    stats = download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)
    if damage in (damage_mode, damage_time):
        assert stats.written == 0
    elif damage is damage_content:
        assert stats.written >= LARGE
    assert stats.files == tree.totals.files
    assert not staging(tmp_path).exists()


def test_directories_and_links_are_repaired(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    download_tree(store, tree, tmp_path / "out")
    (tmp_path / "out/link").unlink()
    (tmp_path / "out/link").symlink_to("elsewhere")
    (tmp_path / "out/sub/medium-again").unlink()
    (tmp_path / "out/sub/medium-again").write_bytes(b"another inode")
    (tmp_path / "out/sub/deeper").chmod(0o000)
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)
    assert (tmp_path / "out/medium").samefile(tmp_path / "out/sub/medium-again")


@pytest.mark.parametrize(("there", "wanted"), [("folder", "file"), ("file", "folder"), ("folder", "link")])
def test_another_kind_in_the_way_is_refused(store: Store, tmp_path: Path, there: str, wanted: str) -> None:
    made = tmp_path / "made"
    made.mkdir()
    if wanted == "folder":
        (made / "x").mkdir()
    elif wanted == "file":
        (made / "x").write_bytes(b"x")
    else:
        (made / "x").symlink_to("y")
    tree = upload(store, made)
    out = tmp_path / "out"
    out.mkdir()
    if there == "folder":
        (out / "x").mkdir()
        (out / "x/precious").write_bytes(b"mine")
    else:
        (out / "x").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="x"):
        download_tree(store, tree, out, resume=True)
    assert (out / "x/precious").read_bytes() == b"mine" if there == "folder" else (out / "x").read_bytes() == b"mine"
    assert not staging(tmp_path).exists()


def test_other_names_of_a_file_outside_are_not_touched(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    download_tree(store, tree, tmp_path / "out")
    outside = tmp_path / "outside"
    outside.write_bytes((source / "sub/f05").read_bytes())
    outside.chmod(0o600)
    os.utime(outside, ns=(5, 5))
    for name in ("sub/f05", "sub/f06", "sub/deeper/large"):
        (tmp_path / "out" / name).unlink()
        os.link(outside, tmp_path / "out" / name)
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert state(tmp_path / "out") == state(source)
    assert outside.read_bytes() == (source / "sub/f05").read_bytes()
    assert (stat.S_IMODE(outside.stat().st_mode), outside.stat().st_mtime_ns) == (0o600, 5)


def test_an_interrupted_repair_leaves_no_temporary_files(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_bytes(b"mine")
    with pytest.raises(StopError):
        download_tree(store, tree, tmp_path / "out", resume=True, progress=StopAfter(5), threads=1)
    assert not staging(tmp_path).exists()
    done = state(source)
    for name, found in state(tmp_path / "out").items():
        if (tmp_path / "out" / name).is_file() and name != "mine":
            assert found == done[name], "a file appeared before it was whole"
    download_tree(store, tree, tmp_path / "out", resume=True)
    (tmp_path / "out/mine").unlink()
    assert {k: v[2] for k, v in state(tmp_path / "out").items()} == {k: v[2] for k, v in done.items()}


# --- damaged stores


def packs_of(store: Store, tree: Tree) -> set[bytes]:
    return {
        store.locate(chunk_id).pack_id
        for entry in tree.entries()
        if entry.kind == Kind.FILE
        for chunk_id, _ in tree.chunks(entry)
    }


def damage_chunk(store: Store, tree: Tree, path: bytes) -> bytes:
    """Flip a bit in the middle of this file; returns the id of the chunk."""
    chunks = list(tree.chunks(tree.lookup(path)))
    chunk_id = chunks[len(chunks) // 2][0]
    place = store.locate(chunk_id)
    with open(store.backend.local_path(layout.pack_key(place.pack_id)), "r+b") as file:
        file.seek(place.offset + place.stored // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))
    return chunk_id


@pytest.mark.parametrize("name", ["sub/f17", "medium", "sub/deeper/large"])
def test_a_flipped_bit_fails_the_download_and_names_the_file(
    store: Store, source: Path, tmp_path: Path, name: str
) -> None:
    tree = upload(store, source)
    chunk_id = damage_chunk(store, tree, name.encode())
    with pytest.raises(IntegrityError) as caught:
        download_tree(store, tree, tmp_path / "out")
    assert name in caught.value.message
    assert chunk_id.hex() in caught.value.message
    assert layout.PACKS in caught.value.message
    assert not (tmp_path / "out").exists()
    # What was written before is right, to the last byte, or not marked as complete.
    for found in (staging(tmp_path) / "tree").rglob("*"):
        if found.is_file() and not found.is_symlink() and found.stat().st_mtime_ns == NOW:
            assert found.read_bytes() == (source / found.relative_to(staging(tmp_path) / "tree")).read_bytes()
    # All others can still be had.
    download_tree(store, tree, tmp_path / "out", select=lambda path: path not in (name.encode(), b"sub/medium-again"))
    assert not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_missing_packs_are_reported(store: Store, source: Path, tmp_path: Path, how: str) -> None:
    tree = upload(store, source)
    for pack_id in packs_of(store, tree):
        path = store.backend.local_path(layout.pack_key(pack_id))
        if how == "missing":
            os.unlink(path)
        else:
            os.truncate(path, 0 if how == "empty" else 100)
    with pytest.raises(IntegrityError, match=r"sub/|medium"):
        download_tree(store, tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_chunks_that_nobody_stored(store: Store, tmp_path: Path) -> None:
    for size in (10, 3_000_000):
        refs = CHUNK_REF.pack(b"\1" * 32, size)
        tree = build(
            store, [Entry(b"sub", Kind.DIRECTORY), Entry(b"sub/x", Kind.FILE, size=size, content=Content(0, refs))]
        )
        with pytest.raises(IntegrityError, match=r"sub/x.*not in the store"):
            download_tree(store, tree, tmp_path / "out")


def test_lengths_that_lie(store: Store, tmp_path: Path) -> None:
    with store.writer(lanes=1) as writer:
        chunk_id = writer.lane().add(b"ten bytes!")
        writer.flush()
    for size in (9, 11, 2_000_000, 16 << 20):
        refs = CHUNK_REF.pack(chunk_id, size)
        tree = build(store, [Entry(b"x", Kind.FILE, size=size, content=Content(0, refs))])
        with pytest.raises(IntegrityError, match="x"):
            download_tree(store, tree, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_pack_that_moved_meanwhile_is_found_again(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    with Store.open(FileBackend(str(tmp_path / "store"), durable=False)) as other:
        packs = packs_of(store, tree)
        chunks = {c for e in tree.entries() if e.kind == Kind.FILE for c, _ in tree.chunks(e)}
        data = [bytes(store.read_chunk(chunk_id)) for chunk_id in sorted(chunks)]
        # Stored again in another order, so that the packs are others, and the old index is dropped.
        old = [info.key for info in other.backend.list(layout.INDEX)]
        meta = [
            (node, other.locate(node))
            for node in {*tree.nodes(), *(n for e in tree.entries() for n in tree.list_nodes(e))}
        ]
        other.backend.delete(old)
        other.index._complete = True  # else it would find the old packs again by their footers
        other.index.load(again=True)
        with other.writer(lanes=1) as writer:
            lane = writer.lane()
            for item in data:
                lane.add(item)
            writer.adopt(meta)
            writer.flush()
        other.backend.delete(layout.pack_key(pack_id) for pack_id in packs)
    download_tree(store, tree, tmp_path / "out")
    assert state(tmp_path / "out") == state(source)


def build(store: Store, entries: list[Entry]) -> Tree:
    with store.writer(lanes=1) as writer:
        builder = TreeBuilder(writer)
        for entry in sorted(entries, key=lambda entry: sort_key(entry.path)):
            builder.add(entry)
        return store.tree(builder.finish())


def test_names_of_one_file_that_differ_are_refused(store: Store, tmp_path: Path) -> None:
    with store.writer(lanes=1) as writer:
        lane = writer.lane()
        first, second = lane.add(b"first"), lane.add(b"other")
        writer.flush()
    tree = build(
        store,
        [
            Entry(b"a", Kind.FILE, size=5, content=Content(0, CHUNK_REF.pack(first, 5)), link=1),
            Entry(b"b", Kind.FILE, size=5, content=Content(0, CHUNK_REF.pack(second, 5)), link=1),
        ],
    )
    with pytest.raises(FormatError, match="can't be one file"):
        download_tree(store, tree, tmp_path / "out")


def test_every_failure_has_a_next_step(store: Store, source: Path, tmp_path: Path) -> None:
    tree = upload(store, source)
    damage_chunk(store, tree, b"medium")
    with pytest.raises(CasstoreError) as caught:
        download_tree(store, tree, tmp_path / "out")
    assert caught.value.hint
    assert "\n" not in caught.value.message
