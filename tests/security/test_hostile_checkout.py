"""Crafted versions and prepared folders, where a folder becomes another version: nothing outside is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.errors import CasstoreError, ConflictError, UsageError
from casstore.format.manifest import CHUNK_REF
from casstore.model import Content, Entry, Kind, sort_key
from casstore.repo.store import Store
from casstore.repo.tree import Tree, TreeBuilder
from casstore.transfer.download import download_tree
from casstore.transfer.safefs import Confined
from casstore.transfer.survey import Looker, survey
from casstore.transfer.update import _unlink, update_tree

NOW = 1_700_000_000_000_000_000


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(MemoryBackend(), create=True) as opened:
        yield opened


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A folder with things that must stay as they are, and room for a destination in ``in/``."""
    (tmp_path / "in").mkdir()
    (tmp_path / "outside/sub").mkdir(parents=True)
    for name in ("victim", "outside/victim", "outside/a", "outside/sub/a"):
        (tmp_path / name).write_bytes(b"precious")
    return tmp_path


def watch(yard: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(yard.rglob("*")):
        if path.relative_to(yard).parts[0] == "in":
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_nlink, content, status.st_ctime_ns)
    return found


def craft(store: Store, entries: dict[bytes, bytes | str | None]) -> Tree:
    """A version of files (bytes), links (str) and folders (None), without any check of what they mean."""
    made: list[Entry] = []
    with store.writer(lanes=1) as writer:
        for path, what in entries.items():
            if what is None:
                made.append(Entry(path, Kind.DIRECTORY, 0o755, NOW))
            elif isinstance(what, str):
                made.append(Entry(path, Kind.SYMLINK, 0o777, NOW, target=what.encode()))
            else:
                chunk_id = writer.lane().add(what)
                writer.flush()
                content = Content(0, CHUNK_REF.pack(chunk_id, len(what)))
                made.append(Entry(path, Kind.FILE, 0o644, NOW, len(what), content))
        builder = TreeBuilder(writer)
        for entry in sorted(made, key=lambda entry: sort_key(entry.path)):
            builder.add(entry)
        return store.tree(builder.finish())


def update(store: Store, base: Tree, target: Tree, dest: Path, **options: object) -> None:
    update_tree(store, [base], target, str(dest), look=Looker(), begin=lambda: None, **options)  # type: ignore[arg-type]


def test_a_new_version_turns_a_folder_into_a_link_and_writes_through_it(store: Store, yard: Path) -> None:
    base = craft(store, {b"d": None, b"d/a": b"one"})
    download_tree(store, base, str(yard / "in/ds"))
    before = watch(yard)
    for target in ("../../outside", str(yard / "outside"), "../.."):
        crafted = craft(store, {b"d": target, b"d/a": b"two", b"d/victim": b"two"})
        with pytest.raises(CasstoreError):
            update(store, base, crafted, yard / "in/ds", force=True, unsafe_links=True)
        with pytest.raises(UsageError, match="lead out"):
            update(store, base, craft(store, {b"d": target}), yard / "in/ds", force=True)
        assert watch(yard) == before


@pytest.mark.parametrize("force", [True, False])
def test_links_in_the_folder_lead_nowhere(store: Store, yard: Path, force: bool) -> None:
    """Where folders of the version were, the folder has links: below them nothing is read, removed or written."""
    base = craft(store, {b"d": None, b"d/sub": None, b"d/a": b"one", b"d/sub/a": b"one", b"e": b"one"})
    dest = yard / "in/ds"
    download_tree(store, base, str(dest))
    (dest / "d/a").unlink()
    (dest / "d/sub/a").unlink()
    (dest / "d/sub").rmdir()
    (dest / "d").rmdir()
    (dest / "d").symlink_to(yard / "outside")
    (dest / "e").unlink()
    (dest / "e").symlink_to(yard / "victim")
    before = watch(yard)
    target = craft(store, {b"d": None, b"d/sub": None, b"d/sub/a": b"two", b"e": b"two"})
    if force:
        update(store, base, target, dest, force=True)
        assert (dest / "e").read_bytes() == (dest / "d/sub/a").read_bytes() == b"two"
        assert not (dest / "d").is_symlink()
    else:
        with pytest.raises(ConflictError, match="modified d"):
            update(store, base, target, dest)
    assert watch(yard) == before


def test_removing_does_not_follow_links(store: Store, yard: Path) -> None:
    (yard / "in/d").symlink_to(yard / "outside")
    before = watch(yard)
    with Confined.open(str(yard / "in")) as root:
        for path in (b"d/victim", b"d/sub/a", b"d/nothing", b"nothing/at/all"):
            assert not _unlink(root, path)
        for path in (b"../victim", b"/victim", b"d/../../victim", b""):
            with pytest.raises(CasstoreError):
                _unlink(root, path)
    assert watch(yard) == before


def test_a_survey_opens_nothing_that_blocks_or_leads_away(store: Store, yard: Path) -> None:
    base = craft(store, {b"fifo": b"one", b"link": b"precious", b"folder": b"one", b"d": None, b"d/a": b"precious"})
    dest = yard / "in/ds"
    dest.mkdir()
    os.mkfifo(dest / "fifo")
    (dest / "link").symlink_to(yard / "victim")
    (dest / "folder").mkdir()
    (dest / "d").symlink_to(yard / "outside")
    with Confined.open(str(dest)) as root:
        found = survey(root, base, look=Looker())
    assert [(change.path, change.what) for change in found] == [
        (b"d", ("type",)), (b"fifo", ("type",)), (b"folder", ("type",)), (b"link", ("type",)),
    ]  # fmt: skip


def test_a_device_or_a_fifo_is_replaced_and_not_written_to(store: Store, yard: Path) -> None:
    base = craft(store, {b"a": b"one"})
    dest = yard / "in/ds"
    download_tree(store, base, str(dest))
    (dest / "a").unlink()
    os.mkfifo(dest / "a")
    update(store, base, craft(store, {b"a": b"two"}), dest, force=True)
    assert (dest / "a").read_bytes() == b"two"
