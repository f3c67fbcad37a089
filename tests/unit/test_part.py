"""Parts of versions as trees of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import IntegrityError, SourceError
from casstore.model import Entry, Kind
from casstore.repo.part import part_of
from casstore.repo.store import Store
from casstore.repo.tree import Tree


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    root = tmp_path_factory.mktemp("in")
    for number in range(700):
        path = root / f"d{number % 9}" / ("deep/er" if number % 2 else "flat") / f"f{number:03}.{'ab'[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * 50)
    (root / "large").write_bytes(bytes(range(256)) * 40_000)  # its chunks are listed in nodes
    (root / "link").symlink_to("d0")
    (root / "empty").mkdir()
    with Store.open(MemoryBackend(), create=True) as store:
        found = Bucket(store, name="b", user="u")
        found.upload("ds", [f"{root}/*"])
        yield found


@pytest.fixture(scope="module")
def tree(bucket: Bucket) -> Tree:
    return bucket.tree(bucket.resolve("ds"))


def expected(tree: Tree, pattern: str) -> list[Entry]:
    files = [e for e in tree.entries() if e.kind != Kind.DIRECTORY and re.match(pattern, e.path.decode())]
    above = {"/".join(e.path.decode().split("/")[:n]) for e in files for n in range(1, e.path.count(b"/") + 1)}
    return [e for e in tree.entries() if e in files or (e.kind == Kind.DIRECTORY and e.path.decode() in above)]


def part(bucket: Bucket, tree: Tree, pattern: str) -> Tree:
    return part_of(tree, bucket.store, lambda path: re.match(pattern, path.decode()) is not None)


@given(pattern=st.sampled_from([r".*\.a", r"d[0-3]/", "d5/deep/er/f0", "large", "link", ".*", r".*f69\d"]))
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_holds_what_is_wanted_and_the_folders_above(bucket: Bucket, tree: Tree, pattern: str) -> None:
    found = part(bucket, tree, pattern)
    wanted = expected(tree, pattern)
    assert list(found.entries()) == wanted
    assert found.totals.files == sum(entry.kind == Kind.FILE for entry in wanted)
    assert found.totals.size == sum(entry.size for entry in wanted)
    for entry in wanted:
        assert found.lookup(entry.path) == entry
        assert list(found.chunks(entry)) == list(tree.chunks(entry))
    assert found.lookup(b"empty") is None
    assert found.id == tree.id and part(bucket, tree, pattern).root == found.root


def test_lists_of_chunks_are_read_from_the_store(bucket: Bucket, tree: Tree) -> None:
    entry = part(bucket, tree, "large").lookup(b"large")
    assert entry is not None and entry.size == 256 * 40_000
    assert sum(length for _, length in part(bucket, tree, "large").chunks(entry)) == entry.size


def test_nothing_that_matches(bucket: Bucket, tree: Tree) -> None:
    with pytest.raises(SourceError, match="no file of the version matches"):
        part(bucket, tree, "nothing")


def test_what_can_not_be_read_is_no_smaller_part(tree: Tree, bucket: Bucket) -> None:
    class Broken:
        def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
            raise IntegrityError("damaged")

    broken = Tree(Broken(), tree.id, tree.root)
    with pytest.raises(IntegrityError, match="damaged"):
        part_of(broken, bucket.store, lambda _: True)
