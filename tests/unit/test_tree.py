from __future__ import annotations

import os
import random

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.errors import FormatError, NotFoundError
from casstore.format import manifest
from casstore.model import Content, Entry, Flag, Kind, Totals, sort_key
from casstore.repo import layout
from casstore.repo.store import Store
from casstore.repo.tree import ListBuilder, TreeBuilder, _rewrapped


@pytest.fixture
def store() -> Store:
    return Store.open(MemoryBackend(), create=True)


def build(store: Store, entries: list[Entry]) -> bytes:
    with store.writer(lanes=1) as writer:
        builder = TreeBuilder(writer)
        for entry in sorted(entries, key=lambda entry: sort_key(entry.path)):
            builder.add(entry)
        return builder.finish()


def file(path: bytes, seed: int = 0, **more: object) -> Entry:
    chunk = seed.to_bytes(32, "big")
    return Entry(path, Kind.FILE, 0o644, seed, 10, Content(0, chunk + (10).to_bytes(4, "little")), **more)  # type: ignore[arg-type]


def many() -> list[Entry]:
    entries: list[Entry] = []
    for folder in range(30):
        entries.append(Entry(b"d%02d" % folder, Kind.DIRECTORY, 0o755))
        entries += [file(b"d%02d/f%04d" % (folder, n), n + 1) for n in range(120)]
        entries.append(Entry(b"d%02d/deep" % folder, Kind.DIRECTORY, 0o700))
        entries += [file(b"d%02d/deep/x%d" % (folder, n), n) for n in range(3)]
    entries += [file(b"d1", 7), file(b"d-x", 8), file(b"zz", 9), file(b"\xff\xfe", 1)]
    return entries


def test_entries_come_back_in_order(store: Store) -> None:
    entries = many()
    tree = store.tree(build(store, entries))
    assert list(tree.entries()) == sorted(entries, key=lambda entry: sort_key(entry.path))
    assert tree.totals.files == sum(entry.kind == Kind.FILE for entry in entries)
    assert len(tree.root.children) > 1


def test_listing_and_looking_up(store: Store) -> None:
    entries = many()
    tree = store.tree(build(store, entries))
    folders = {entry.path for entry in entries if entry.kind == Kind.DIRECTORY} | {b""}
    for folder in folders:
        assert [e.path for e in tree.listdir(folder)] == sorted(e.path for e in entries if e.parent == folder)
    for entry in entries:
        assert tree.lookup(entry.path) == entry
    for path in (b"d00/nothing", b"d", b"d00/f", b"zzz", b"\0", b"d00/deep/x3", b"d99/x"):
        assert tree.lookup(path) is None
    with pytest.raises(NotFoundError):
        list(tree.listdir(b"zz"))


def test_a_subtree(store: Store) -> None:
    entries = many()
    tree = store.tree(build(store, entries))
    inside = [e for e in entries if e.path == b"d07" or e.path.startswith(b"d07/")]
    assert {e.path for e in tree.entries(b"d07")} == {e.path for e in inside}
    assert [e.path for e in tree.entries(b"zz")] == [b"zz"]
    with pytest.raises(NotFoundError):
        list(tree.entries(b"nope"))


def test_all_fields_survive(store: Store) -> None:
    entries = [
        Entry(b"dir", Kind.DIRECTORY, 0o1777, 1),
        file(b"dir/file", 3, link=4, flags=int(Flag.SPARSE), xattrs={b"user.b": b"2", b"user.a": b"\0"}),
        Entry(b"dir/link", Kind.SYMLINK, 0o777, -5, target=b"../\xffelsewhere"),
    ]
    assert list(store.tree(build(store, entries)).entries()) == entries


def test_a_change_leaves_the_other_leaves_alone(store: Store) -> None:
    entries = many()
    before = store.tree(build(store, entries))
    entries[500] = file(entries[500].path, 12345)
    after = store.tree(build(store, entries))
    assert before.id != after.id
    assert before.checksum != after.checksum
    assert len(set(after.nodes()) - set(before.nodes())) == 1


def test_the_checksum_ignores_times_and_the_id_does_not(store: Store) -> None:
    one = store.tree(build(store, [file(b"a", 1)]))
    entry = file(b"a", 1)
    other = store.tree(build(store, [Entry(b"a", Kind.FILE, 0o644, 999, 10, entry.content)]))
    third = store.tree(build(store, [Entry(b"a", Kind.FILE, 0o755, 1, 10, entry.content)]))
    assert one.checksum == other.checksum != third.checksum
    assert len({one.id, other.id, third.id}) == 3


def test_an_empty_tree(store: Store) -> None:
    tree = store.tree(build(store, []))
    assert list(tree.entries()) == list(tree.listdir()) == []
    assert tree.lookup(b"x") is None


def test_entries_out_of_order_are_refused(store: Store) -> None:
    with store.writer(lanes=1) as writer:
        builder = TreeBuilder(writer)
        builder.add(file(b"b"))
        for path in (b"a", b"b"):
            with pytest.raises(FormatError, match="out of order"):
                builder.add(file(path))


@pytest.mark.parametrize("count", [0, 1, 64, 65, 66, 71, 300, 5000, 40_000])
def test_chunk_lists_of_any_length(store: Store, count: int) -> None:
    rng = random.Random(count)
    chunks = [(rng.randbytes(32), rng.randrange(1, 1 << 18)) for _ in range(count)]
    with store.writer(lanes=1) as writer:
        builder = ListBuilder(writer)
        builder.extend(chunks)
        content = builder.finish()
        size = builder.size
        again = ListBuilder(writer)
        again.extend(chunks)
        assert again.finish() == content
        writer.flush()
    entry = Entry(b"f", Kind.FILE, 0o644, 0, size, content)
    assert list(store.tree(build(store, [entry])).chunks(entry)) == chunks
    assert len(content.refs) <= 64 * 40


def test_a_change_inside_a_long_list_changes_few_nodes(store: Store) -> None:
    rng = random.Random(5)
    chunks = [(rng.randbytes(32), 80_000) for _ in range(14_000)]
    nodes: list[set[bytes]] = []
    for version in (chunks, [*chunks[:7000], (os.urandom(32), 5), *chunks[7000:]]):
        with store.writer(lanes=1) as writer:
            builder = ListBuilder(writer)
            builder.extend(version)
            entry = Entry(b"f", Kind.FILE, 0o644, 0, builder.size, builder.finish())
            writer.flush()
        nodes.append(set(store.tree(build(store, [entry])).list_nodes(entry)))
    assert len(nodes[0]) > 40
    assert len(nodes[1] - nodes[0]) <= 3


HOSTILE = [b"", b".", b"..", b"a/b", b"/", b"nul\0"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: bytes) -> None:
    row = manifest.Row(name, 2, 0o755, 0, 0, 0, b"", b"", 0, 0, None)
    with pytest.raises(FormatError):
        manifest.decode_leaf(manifest.encode_leaf([manifest.Group(b"", [row])]))
    if name and name != b"a/b":
        good = manifest.Row(b"x", 2, 0o755, 0, 0, 0, b"", b"", 0, 0, None)
        with pytest.raises(FormatError):
            manifest.decode_leaf(manifest.encode_leaf([manifest.Group(b"top/" + name, [good])]))


@pytest.mark.parametrize(
    "row",
    [
        manifest.Row(b"x", 9, 0o644, 0, 0, 0, b"", b"", 0, 0, None),
        manifest.Row(b"x", 1, 0o644, 0, 5, 0, b"", b"", 0, 0, None),
        manifest.Row(b"x", 1, 0o644, 0, 5, 0, b"12345", b"", 0, 0, None),
        manifest.Row(b"x", 1, 0o644, 0, -1, 0, b"", b"", 0, 0, None),
        manifest.Row(b"x", 1, 0o644, 0, 0, 99, b"", b"", 0, 0, None),
        manifest.Row(b"x", 2, 0o100644, 0, 0, 0, b"", b"", 0, 0, None),
        manifest.Row(b"x", 3, 0o644, 0, 4, 0, b"", b"t", 0, 0, None),
    ],
)
def test_impossible_entries_are_refused(row: manifest.Row) -> None:
    with pytest.raises(FormatError):
        manifest.decode_leaf(manifest.encode_leaf([manifest.Group(b"", [row])]))


def test_another_root_of_the_same_tree(store: Store) -> None:
    entries = [Entry(b"f%05d" % number, Kind.FILE, 0o644) for number in range(20_000)]
    with store.writer() as writer:
        builder = TreeBuilder(writer)
        for entry in entries:
            builder.add(entry)
        ids = [builder.finish()]
        while True:
            data = store.backend.get(layout.manifest_key(ids[-1])).data
            other = _rewrapped(writer, data)
            if other == data:
                break
            ids.append(writer.put_manifest(other))
    assert len(set(ids)) == len(ids) == manifest.MAX_DEPTH + 1 - store.tree(ids[0]).root.depth
    for manifest_id in ids:
        tree = store.tree(manifest_id)
        assert tree.checksum == builder.checksum
        assert tree.totals == builder.totals
        assert tree.lookup(b"f12345") == entries[12_345]
    assert list(store.tree(ids[-1]).entries()) == entries
    assert _rewrapped(NoNodes(), EMPTY) == EMPTY


class NoNodes:
    """A sink that nothing may be put into."""

    def put_node(self, data: bytes) -> bytes:
        raise AssertionError

    def put_manifest(self, data: bytes) -> bytes:
        raise AssertionError


EMPTY = manifest.encode_root(b"\0" * 32, Totals(), 0, [])
