"""What a diff of two trees reports, against a plain comparison of their entries."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset.diff import Change, Diff, diff_trees
from casstore.model import Entry, Kind, sort_key
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree


class Counting(Store):
    """Counts the chunks that are read."""

    reads = 0

    def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
        self.reads += 1
        return super().read_chunk(chunk_id, raw)


@pytest.fixture
def store() -> Counting:
    return Counting.open(MemoryBackend(), create=True)  # type: ignore[return-value]  # it makes one of its class


@pytest.fixture
def upload(store: Counting, tmp_path: Path) -> Callable[[], Tree]:
    """Upload tmp/src as it is now and open its tree."""

    def upload() -> Tree:
        source = Source(os.fsencode(tmp_path / "src"), b"", contents=True)
        return store.tree(upload_tree(store, [source]).manifest)

    (tmp_path / "src").mkdir()
    return upload


def told(diff: Diff) -> list[tuple[object, ...]]:
    return [
        (c.status, c.path, *((c.old_path,) if c.old_path else ()), *((c.what,) if c.what else ())) for c in diff.changes
    ]


def test_every_kind_of_change(upload: Callable[[], Tree], tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name in ("same", "content", "mode", "gone", "moved", "moved-mode", "kind"):
        (src / name).write_text(name * 10)
    (src / "link").symlink_to("same")
    (src / "dir").mkdir()
    (src / "empty1").touch()
    old = upload()
    (src / "content").write_text("changed")
    (src / "mode").chmod(0o600)
    (src / "gone").unlink()
    (src / "moved").rename(src / "dir" / "there")
    (src / "moved-mode").rename(src / "a-mode")
    (src / "a-mode").chmod(0o755)
    (src / "kind").unlink()
    (src / "kind").symlink_to("same")
    (src / "link").unlink()
    (src / "link").symlink_to("content")
    (src / "new").write_text("new file")
    (src / "newdir").mkdir()
    (src / "empty1").rename(src / "empty2")
    os.utime(src / "same", (1, 1))
    diff = diff_trees(old, upload())
    assert told(diff) == [
        ("renamed", b"a-mode", b"moved-mode", ("mode",)),
        ("modified", b"content", ("content",)),
        ("removed", b"empty1"),
        ("added", b"empty2"),
        ("removed", b"gone"),
        ("modified", b"kind", ("type",)),
        ("modified", b"link", ("target",)),
        ("modified", b"mode", ("mode",)),
        ("added", b"new"),
        ("added", b"newdir"),
        ("renamed", b"dir/there", b"moved"),
    ]
    assert (diff.added, diff.removed, diff.modified, diff.renamed) == (3, 2, 4, 2)
    assert not diff.identical
    assert diff.new_bytes == len("changed") + len("new file")
    changes = {change.path: change for change in diff.changes}
    assert changes[b"content"] == Change("modified", b"content", Kind.FILE, None, ("content",), 70, 7)
    assert changes[b"gone"].old_size == 40
    assert changes[b"newdir"].kind == Kind.DIRECTORY


def test_equal_trees(upload: Callable[[], Tree], tmp_path: Path) -> None:
    (tmp_path / "src" / "a").write_text("x")
    old = upload()
    diff = diff_trees(old, upload())
    assert diff.identical
    assert (diff.shared_bytes, diff.new_bytes) == (1, 0)


def test_empty_trees(upload: Callable[[], Tree], tmp_path: Path) -> None:
    empty = upload()
    (tmp_path / "src" / "a").write_text("x")
    full = upload()
    assert told(diff_trees(empty, full)) == [("added", b"a")]
    assert told(diff_trees(full, empty)) == [("removed", b"a")]
    assert diff_trees(empty, empty).identical


def test_shared_bytes_are_counted_by_chunk(upload: Callable[[], Tree], tmp_path: Path) -> None:
    data = random.Random(7).randbytes(4 << 20)
    big = tmp_path / "src" / "big"
    big.write_bytes(data)
    old = upload()
    big.write_bytes(data[: 2 << 20] + b"inserted" + data[2 << 20 :])
    diff = diff_trees(old, upload())
    assert told(diff) == [("modified", b"big", ("content",))]
    assert 8 <= diff.new_bytes <= 1 << 20
    assert diff.shared_bytes + diff.new_bytes == len(data) + 8


def naive(old: Tree, new: Tree) -> dict[bytes, str]:
    def shape(entry: Entry) -> tuple[object, ...]:
        return entry.kind, entry.mode, entry.size, entry.content, entry.target

    before = {entry.path: shape(entry) for entry in old.entries()}
    after = {entry.path: shape(entry) for entry in new.entries()}
    found = dict.fromkeys(before.keys() - after.keys(), "removed")
    found |= dict.fromkeys(after.keys() - before.keys(), "added")
    return found | {path: "modified" for path in before.keys() & after.keys() if before[path] != after[path]}


def test_a_large_tree_is_compared_without_reading_what_is_shared(
    store: Counting, upload: Callable[[], Tree], tmp_path: Path
) -> None:
    chosen = random.Random(3)
    for number in range(6000):
        path = tmp_path / "src" / f"d{number % 40:02}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(number % 50))
    old = upload()
    for number in chosen.sample(range(6000), 6):
        path = tmp_path / "src" / f"d{number % 40:02}" / f"f{number}"
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_text("something else")
        else:
            path.with_name(f"f{number}-x").write_text(f"new {number}")
    new = upload()
    store.reads = 0
    diff = diff_trees(store.tree(old.id), store.tree(new.id))
    partial = store.reads
    assert {change.path: change.status for change in diff.changes} == naive(old, new)
    assert [change.path for change in diff.changes] == sorted((change.path for change in diff.changes), key=sort_key)
    store.reads = 0
    assert len(list(store.tree(old.id).entries())) == 6040
    assert partial < store.reads
