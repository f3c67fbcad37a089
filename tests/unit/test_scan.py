"""What sources make together: overlaps, collisions, strange names, and trees that change under the walk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.sources import parse_sources
from casstore.errors import SourceError
from casstore.model import Entry, Kind, sort_key
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.transfer import pipeline, scan, upload
from casstore.transfer.scan import Source
from casstore.transfer.upload import TreeResult, upload_tree


@pytest.fixture
def store() -> Store:
    return Store.open(MemoryBackend(), create=True)


def make(root: Path, *names: str | bytes) -> Path:
    """Files that hold their own path below ``root``; a name that ends in a slash is a folder."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        if path.endswith(b"/"):
            os.makedirs(path)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(os.fsencode(name) + b" in " + os.fsencode(root.name))
    return root


def contents(path: Path, dest: bytes = b"") -> Source:
    return Source(os.fsencode(path), dest, contents=True)


def named(path: Path, dest: bytes) -> Source:
    return Source(os.fsencode(path), dest)


def entries(store: Store, result: TreeResult) -> dict[bytes, Entry]:
    found = list(store.tree(result.manifest).entries())
    assert [entry.path for entry in found] == sorted((entry.path for entry in found), key=sort_key)
    return {entry.path: entry for entry in found}


def texts(store: Store, result: TreeResult) -> dict[bytes, bytes | None]:
    """Path -> content of files, target of links, None for folders. The store must be whole."""
    tree = store.tree(result.manifest)
    found: dict[bytes, bytes | None] = {}
    for path, entry in entries(store, result).items():
        data = b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))
        found[path] = {Kind.FILE: data, Kind.SYMLINK: entry.target}.get(Kind(entry.kind))
    assert verify_store(store).problems == []
    return found


# ---- several sources


def test_folders_of_the_same_name_from_different_places_merge(tmp_path: Path, store: Store) -> None:
    one = make(tmp_path / "1" / "data", "same", "one", "sub/one")
    two = make(tmp_path / "2" / "data", "same", "two", "sub/two")
    (one / "same").write_text("first")
    result = upload_tree(store, parse_sources([str(one), str(two)]))
    found = texts(store, result)
    assert set(found) == {b"data"} | {
        b"data/" + name for name in (b"same", b"one", b"two", b"sub", b"sub/one", b"sub/two")
    }
    assert found[b"data/same"] == b"first"
    assert result.skipped == ()


@pytest.mark.parametrize("first", ["contents", "file"])
def test_the_earlier_source_wins_whatever_it_is(tmp_path: Path, store: Store, first: str) -> None:
    folder = make(tmp_path / "folder", "x", "y")
    single = make(tmp_path / "single", "x") / "x"
    sources = [contents(folder), named(single, b"x")]
    if first == "file":
        sources.reverse()
    assert texts(store, upload_tree(store, sources))[b"x"] == (
        b"x in folder" if first == "contents" else b"x in single"
    )


def test_one_folder_twice_and_one_inside_the_other(tmp_path: Path, store: Store) -> None:
    root = make(tmp_path / "in", "a", "sub/b", "sub/deep/c", "void/")
    once = upload_tree(store, [contents(root)])
    twice = upload_tree(store, [contents(root), contents(root)])
    inside = upload_tree(store, [contents(root), contents(root / "sub", b"sub")])
    assert once.manifest == twice.manifest == inside.manifest
    beside = texts(store, upload_tree(store, parse_sources([str(root), str(root / "sub")])))
    assert {b"in/sub/b", b"sub/b", b"in/sub/deep/c", b"sub/deep/c", b"in/void"} <= set(beside)


def test_sources_with_equal_files_are_linked_once(tmp_path: Path, store: Store) -> None:
    """A file with two names seen through overlapping sources: more names than its link count says."""
    root = make(tmp_path / "in", "a")
    os.link(root / "a", root / "b")
    found = entries(store, upload_tree(store, parse_sources([str(root), str(root / "a"), str(root / "b")])))
    assert {entry.size for entry in found.values() if entry.kind == Kind.FILE} == {len("a in in")}
    assert found[b"a"].link == found[b"b"].link != 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_against_a_folder_of_another_source(tmp_path: Path, store: Store, order: int) -> None:
    one = make(tmp_path / "1", "x", "other")
    two = make(tmp_path / "2", "x/inner", "more")
    result = upload_tree(store, [contents(one), contents(two)][::order])
    found = texts(store, result)
    if order == 1:
        assert set(found) == {b"x", b"other", b"more"}
        assert found[b"x"] == b"x in 1"
    else:
        assert set(found) == {b"x", b"x/inner", b"other", b"more"}
    assert len(result.skipped) == 1
    assert "left out" in result.skipped[0]


def test_a_file_against_a_folder_of_the_base(tmp_path: Path, store: Store) -> None:
    base = upload_tree(store, [contents(make(tmp_path / "base", "x/inner", "y", "z"))])
    more = make(tmp_path / "more", "x", "y/inner")
    result = upload_tree(store, [contents(more)], base=store.tree(base.manifest))
    assert set(texts(store, result)) == {b"x", b"y", b"y/inner", b"z"}
    assert result.skipped == ()


def test_a_destination_inside_of_a_file_of_another_source(tmp_path: Path, store: Store) -> None:
    one = make(tmp_path / "1", "x")
    two = make(tmp_path / "2", "y")
    result = upload_tree(store, [contents(one), contents(two, b"x/deep")])
    assert set(texts(store, result)) == {b"x", b"x/deep", b"x/deep/y"}
    assert len(result.skipped) == 1


def test_merging_keeps_the_mode_of_the_first_folder(tmp_path: Path, store: Store) -> None:
    for name, mode in (("1", 0o700), ("2", 0o750)):
        make(tmp_path / name, f"sub/{name}")
        (tmp_path / name / "sub").chmod(mode)
    result = upload_tree(
        store, [contents(tmp_path / "1"), contents(tmp_path / "2"), named(tmp_path / "1" / "sub" / "1", b"sub/z")]
    )
    assert entries(store, result)[b"sub"].mode == 0o700


# ---- what a base brings


def test_links_of_a_base_and_of_new_files_stay_apart(tmp_path: Path, store: Store) -> None:
    """Both are numbered from 1 on: taken together, they are not one file."""
    old, new = make(tmp_path / "old", "a"), make(tmp_path / "new", "x")
    os.link(old / "a", old / "b")
    os.link(new / "x", new / "y")
    base = upload_tree(store, [contents(old)])
    result = upload_tree(store, [contents(new)], base=store.tree(base.manifest))
    found = entries(store, result)
    assert found[b"a"].link == found[b"b"].link != 0
    assert found[b"x"].link == found[b"y"].link != 0
    assert found[b"a"].link != found[b"x"].link
    again = upload_tree(store, [], base=store.tree(result.manifest))
    assert again.manifest == result.manifest


def test_links_survive_a_round_through_updates(tmp_path: Path, store: Store) -> None:
    bucket = Bucket(store, name="b", user="u")
    old, new = make(tmp_path / "old", "a"), make(tmp_path / "new", "x")
    os.link(old / "a", old / "b")
    os.link(new / "x", new / "y")
    bucket.upload("ds", [f"{old}/*"])
    bucket.update("ds", add=[f"{new}/*"])
    (tmp_path / "out").mkdir()
    bucket.download("ds", str(tmp_path / "out"))
    out = tmp_path / "out" / "ds"
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "a": "a in old", "b": "a in old", "x": "x in new", "y": "x in new",
    }  # fmt: skip
    assert (out / "a").stat().st_ino == (out / "b").stat().st_ino != (out / "x").stat().st_ino


# ---- names and paths

STRANGE = [
    b"new\nline", b"back\\slash", b"col:on", b" ", b"-dash", b"*", b"?", b"..x", b"...", b"\xff\xfe", b"\x01", b"~",
    "ä".encode(), "a\u0308".encode(), b"n" * 255, b"$HOME", b"%2e%2e", b"#", b"CON", b".hidden",
]  # fmt: skip


def test_strange_names(tmp_path: Path, store: Store) -> None:
    root = make(tmp_path / "in", *STRANGE, *(b"d" + name[:200] + b"/" + name for name in STRANGE))
    found = texts(store, upload_tree(store, parse_sources([f"{root}/*"])))
    for name in STRANGE:
        assert found[name] == name + b" in in"
        assert found[b"d" + name[:200] + b"/" + name] == b"d" + name[:200] + b"/" + name + b" in in"


def test_a_folder_with_a_strange_name_as_a_source(tmp_path: Path, store: Store) -> None:
    for name in STRANGE:
        root = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"top-" + name[:200])))
        make(root, b"file")
        assert set(texts(store, upload_tree(store, parse_sources([str(root)])))) == {
            b"top-" + name[:200], b"top-" + name[:200] + b"/file",
        }  # fmt: skip
        assert set(texts(store, upload_tree(store, parse_sources([f"{root}/*"])))) == {b"file"}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("in", "in"), ("in/", "in"), ("in///", "in"), ("./in", "in"), ("in/.", "in"), ("in/sub/..", "in"),
        ("other/../in", "in"),
        (".", "here"), ("./", "here"), ("in/sub/../sub", "sub"), ("../here/in", "in"),
        ("in/*", ""), ("in//*", ""), ("./in/./*", ""), ("in/sub/../*", ""),
    ],
)  # fmt: skip
def test_paths_with_dots_and_slashes(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, argument: str, expected: str
) -> None:
    here = make(tmp_path / "here", "in/file", "in/sub/deep", "other/")
    monkeypatch.chdir(here)
    tops = {path.partition(b"/")[0] for path in texts(store, upload_tree(store, parse_sources([argument])))}
    assert tops == ({os.fsencode(expected)} if expected else {b"file", b"sub"})


@pytest.mark.parametrize("argument", ["link", "link/", "link/*", "chain", "chain/*"])
def test_a_source_that_is_a_link_to_a_folder(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    make(tmp_path / "real", "file", "sub/inner")
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "chain").symlink_to("link")
    monkeypatch.chdir(tmp_path)
    found = texts(store, upload_tree(store, parse_sources([argument])))
    prefix = b"" if argument.endswith("*") else argument.rstrip("/").encode() + b"/"
    assert {path.removeprefix(prefix) for path in found if path.startswith(prefix)} - {b""} == {
        b"file", b"sub", b"sub/inner", b"up",
    }  # fmt: skip
    assert found[prefix + b"up"] == b".."


def test_a_source_that_is_a_link_to_a_file(tmp_path: Path, store: Store) -> None:
    make(tmp_path, "real")
    (tmp_path / "link").symlink_to("real")
    result = upload_tree(store, parse_sources([str(tmp_path / "link")]))
    assert entries(store, result)[b"link"].kind == Kind.FILE


def test_links_in_circles_are_kept_as_links(tmp_path: Path, store: Store) -> None:
    root = make(tmp_path / "in", "sub/")
    (root / "self").symlink_to("self")
    (root / "sub" / "up").symlink_to("..")
    found = texts(store, upload_tree(store, [contents(root)]))
    assert found == {b"self": b"self", b"sub": None, b"sub/up": b".."}
    with pytest.raises(SourceError):
        parse_sources([str(root / "self")])


def test_a_large_flat_folder(tmp_path: Path, store: Store) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(20_000):
        (root / f"{number}").touch()
    names = [entry.path for entry in store.tree(upload_tree(store, [contents(root)]).manifest).entries()]
    assert names == sorted(b"%d" % number for number in range(20_000))
    shutil.rmtree(root)


# ---- trees that change under the walk


def during_walk(
    monkeypatch: pytest.MonkeyPatch, folder: Path, change: Callable[[], object], *, times: int = 1
) -> list[int]:
    """Do ``change`` just before a folder is listed, that is after it was seen; returns how often."""
    real = scan.open_deep
    done: list[int] = []

    def open_deep(path: bytes, flags: int, **more: Any) -> int:
        if path == os.fsencode(folder) and len(done) < times:
            done.append(1)
            change()
        return real(path, flags, **more)

    monkeypatch.setattr(scan, "open_deep", open_deep)
    return done


def test_a_folder_that_vanishes_is_left_out_and_said(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "in", "a", "gone/x", "stays/y")
    done = during_walk(monkeypatch, root / "gone", lambda: shutil.rmtree(root / "gone"))
    result = upload_tree(store, [contents(root)])
    assert done
    assert {b"a", b"stays", b"stays/y"} <= set(texts(store, result)) <= {b"a", b"gone", b"stays", b"stays/y"}
    assert ["gone was deleted" in message for message in result.skipped] == [True]


@pytest.mark.parametrize("with_select", [False, True])
def test_a_source_that_vanishes_is_an_error(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, *, with_select: bool
) -> None:
    root = make(tmp_path / "in", "a")
    during_walk(monkeypatch, root, lambda: shutil.rmtree(root))
    with pytest.raises(SourceError, match="No such file"):
        upload_tree(store, [contents(root)], select=(lambda _: True) if with_select else None)
    assert not list(store.backend.list("manifests/"))


@pytest.mark.parametrize("other", ["file", "link"])
def test_a_folder_that_becomes_something_else_is_an_error(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Above all, a link in its place is not followed: that could lead anywhere."""
    root = make(tmp_path / "in", "a", "sub/x")
    make(tmp_path / "secret", "key")

    def replace() -> None:
        shutil.rmtree(root / "sub")
        if other == "file":
            (root / "sub").write_text("x")
        else:
            (root / "sub").symlink_to(tmp_path / "secret")

    done = during_walk(monkeypatch, root / "sub", replace)
    with pytest.raises(SourceError, match="sub"):
        upload_tree(store, [contents(root)])
    assert done
    assert not list(store.backend.list("manifests/"))


def test_an_unreadable_folder_is_an_error(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "in", "a", "locked/x")

    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    during_walk(monkeypatch, root / "locked", refuse)
    with pytest.raises(SourceError, match="locked: Permission denied") as caught:
        upload_tree(store, [contents(root)])
    assert caught.value.hint


def test_a_file_with_two_names_that_grows_is_taken_from_one_look(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both names were listed before it grew: an old size with new content could never be read again."""
    root = make(tmp_path / "in", "a")
    os.link(root / "a", root / "b")
    real, grown = pipeline.open_deep, []

    def grow(path: bytes, flags: int) -> int:
        if not grown:
            grown.append(1)
            with open(root / "a", "ab") as out:
                out.write(b" and more")
        return real(path, flags)

    monkeypatch.setattr(pipeline, "open_deep", grow)
    found = texts(store, upload_tree(store, [contents(root)]))
    assert found == {b"a": b"a in in and more", b"b": b"a in in and more"}


def test_a_file_whose_first_name_vanishes_is_read_by_the_other(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "in", "a")
    os.link(root / "a", root / "b")
    real = pipeline.open_deep

    def drop(path: bytes, flags: int) -> int:
        if path.endswith(b"/a"):
            os.unlink(path)
        return real(path, flags)

    monkeypatch.setattr(pipeline, "open_deep", drop)
    result = upload_tree(store, [contents(root)])
    assert texts(store, result) == {b"b": b"a in in"}


def test_a_file_larger_than_any_is_refused(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "in", "a")
    monkeypatch.setattr(upload, "MAX_FILE", 5)
    with pytest.raises(SourceError, match="too large"):
        upload_tree(store, [contents(root)])


# ---- selecting


def test_selecting_with_what_is_no_file(tmp_path: Path, store: Store) -> None:
    """A folder in which only a pipe fits the pattern is as empty as any."""
    root = make(tmp_path / "in", "keep/x.csv", "drop/y.bin", "pipes/")
    os.mkfifo(root / "pipes" / "z.csv")
    result = upload_tree(store, [contents(root)], select=lambda path: path.endswith(b".csv"))
    assert set(texts(store, result)) == {b"keep", b"keep/x.csv"}
