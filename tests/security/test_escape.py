"""Crafted versions and prepared folders: nothing is ever written outside of the destination."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.errors import CasstoreError, ConflictError, FormatError, UsageError
from casstore.format.manifest import CHUNK_REF, Group, NodeRef, Row, encode_leaf, encode_root
from casstore.model import Content, Entry, Kind, Totals, sort_key
from casstore.repo.store import Store
from casstore.repo.tree import Tree, TreeBuilder
from casstore.transfer.download import download_tree
from casstore.transfer.links import leads_out
from casstore.transfer.safefs import Confined
from casstore.transfer.stage import Landing

NOW = 1_700_000_000_000_000_000
PAYLOAD = b"written by a crafted version"


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(MemoryBackend(), create=True) as opened:
        yield opened


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A folder with things that must stay as they are, and room for a destination in ``in/``."""
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_bytes(b"precious")
    (tmp_path / "victim").write_bytes(b"precious")
    os.utime(tmp_path / "victim", ns=(1, 1))
    return tmp_path


def watch(yard: Path) -> dict[str, tuple[object, ...]]:
    """Everything in the yard but the destination."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(yard.rglob("*")):
        if "in" in path.relative_to(yard).parts[:1]:
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_nlink, content, status.st_mtime_ns if path.is_file() else 0)
    return found


def file_of(store: Store, path: bytes, data: bytes = PAYLOAD, **more: object) -> Entry:
    with store.writer(lanes=1) as writer:
        chunk_id = writer.lane().add(data)
        writer.flush()
    content = Content(0, CHUNK_REF.pack(chunk_id, len(data)))
    return Entry(path, Kind.FILE, 0o777, NOW, len(data), content, **more)


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, NOW, target=target)


def folder(path: bytes) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o777, NOW)


def craft(store: Store, entries: list[Entry]) -> Tree:
    """Build a version of these entries without any check of what they mean."""
    with store.writer(lanes=1) as writer:
        builder = TreeBuilder(writer)
        for entry in sorted(entries, key=lambda entry: sort_key(entry.path)):
            builder.add(entry)
        return store.tree(builder.finish())


class Unchecked:
    """A tree whose entries did not go through the checks of the manifest: what if one of those had a hole?"""

    def __init__(self, entries: list[Entry]) -> None:
        self.id = b"\0" * 32
        self.totals = Totals()
        self._entries = entries

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries)

    def chunks(self, entry: Entry) -> Iterator[tuple[bytes, int]]:
        yield from CHUNK_REF.iter_unpack(entry.content.refs)


NAMES = [
    b"..",
    b"../victim",
    b"../outside/new",
    b"../../victim",
    b"a/../../victim",
    b"a/../../outside/new",
    b"/victim",
    b"//victim",
    b"./victim",
    b"a//b",
    b"a/./b",
    b"a/",
    b".",
    b"",
    b"a/..",
    b"\0",
    b"victim\0",
    b"a\0b/c",
    b"x" * 256,
    b"d" * 300 + b"/x",
]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "second name"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("checked", [True, False])
def test_crafted_names(store: Store, yard: Path, name: bytes, kind: str, checked: bool) -> None:
    absolute = os.fsencode(yard / "outside/new") if name == b"//victim" else name
    extra: list[Entry] = []
    if kind == "file":
        entry = file_of(store, absolute)
    elif kind == "folder":
        entry = folder(absolute)
    elif kind == "link":
        entry = link(absolute, b"x")
    else:
        extra, entry = [file_of(store, b"0", link=1)], file_of(store, absolute, link=1)
    before = watch(yard)
    if checked and name == b"/victim":
        # The builder keeps folder and name apart, so that nothing of the slash is stored.
        download_tree(store, craft(store, [*extra, entry]), yard / "in/out", unsafe_links=True)
        assert "victim" in os.listdir(yard / "in/out")
        assert watch(yard) == before
        return

    def attack() -> None:
        entries = [*extra, entry]
        tree = craft(store, entries) if checked else Unchecked(entries)
        download_tree(store, tree, yard / "in/out", unsafe_links=True)  # type: ignore[arg-type]  # a stand-in

    with pytest.raises(CasstoreError):
        attack()
    assert watch(yard) == before
    assert not (yard / "in/out").exists()


def test_a_name_with_a_slash_inside_of_one_component(store: Store, yard: Path) -> None:
    """A leaf made by hand, as no builder would make it."""
    before = watch(yard)
    for directory, name in ((b"", b"../victim"), (b"a", b"b/../../victim"), (b"..", b"victim"), (b"/", b"victim")):
        data = encode_leaf([Group(directory, [Row(name, 1, 0o644, 0, 0, 0, b"", b"", 0, 0, None)])])
        with store.writer(lanes=1) as writer:
            node = writer.put_node(data)
            root = encode_root(
                hashing.digest(b""), Totals(1, 0, 0, 0), 0, [NodeRef(directory, name, node, len(data), 1)]
            )
            tree_id = writer.put_manifest(root)
        with pytest.raises(FormatError):
            download_tree(store, store.tree(tree_id), yard / "in/out")
    assert watch(yard) == before


@pytest.mark.parametrize("target", ["../outside", "../../outside", "/absolute", ".", "inner"])
@pytest.mark.parametrize("shape", ["file", "folder", "deep", "link", "second name"])
def test_a_link_and_then_something_written_through_it(store: Store, yard: Path, target: str, shape: str) -> None:
    pointed = os.fsencode(yard / "outside") if target == "/absolute" else target.encode()
    entries = [link(b"a", pointed), folder(b"inner")]
    if shape == "file":
        entries.append(file_of(store, b"a/victim"))
    elif shape == "folder":
        entries.append(folder(b"a/new"))
    elif shape == "deep":
        entries += [folder(b"a/b"), folder(b"a/b/c"), file_of(store, b"a/b/c/new")]
    elif shape == "link":
        entries.append(link(b"a/new", b"x"))
    else:
        entries += [file_of(store, b"0", link=1), file_of(store, b"a/new", link=1)]
    before = watch(yard)
    tree = craft(store, entries)
    for resume in (False, True, True):
        with pytest.raises(FormatError, match="symbolic link"):
            download_tree(store, tree, yard / "in/out", unsafe_links=True, resume=resume)
    assert watch(yard) == before
    assert not (yard / "in/out").exists()


@pytest.mark.parametrize("first", ["file", "link"])
def test_a_folder_that_is_a_file_too(store: Store, yard: Path, first: str) -> None:
    before = watch(yard)
    own = file_of(store, b"a") if first == "file" else link(b"a", b"b")
    tree = craft(store, [own, file_of(store, b"a/x")])
    with pytest.raises((ConflictError, FormatError)):
        download_tree(store, tree, yard / "in/out")
    assert watch(yard) == before
    assert not (yard / "in/out").exists()


PREPARED = ["folder", "deep", "file", "second", "symlink"]


@pytest.mark.parametrize("what", PREPARED)
def test_links_that_were_there_before(store: Store, yard: Path, what: str) -> None:
    """Somebody prepared the destination, and the download is told to go on with it."""
    out = yard / "in/out"
    out.mkdir()
    (out / "something").write_bytes(b"")
    tree = craft(
        store,
        [
            folder(b"a"),
            folder(b"a/b"),
            file_of(store, b"a/b/victim"),
            file_of(store, b"victim", link=1),
            file_of(store, b"victim2", link=1),
            link(b"victim3", b"victim"),
        ],
    )
    if what == "folder":
        (out / "a").symlink_to(yard / "outside")
        (yard / "outside/b").mkdir()
    elif what == "deep":
        (out / "a").mkdir()
        (out / "a/b").symlink_to("../../../outside")
    else:
        name = {"file": "victim", "second": "victim2", "symlink": "victim3"}[what]
        (out / name).symlink_to(yard / "victim")
    before = watch(yard)
    if what in ("folder", "deep"):
        with pytest.raises(ConflictError, match="in the way"):
            download_tree(store, tree, out, resume=True)
    else:
        # The link itself is replaced; what it points to is not touched.
        download_tree(store, tree, out, resume=True)
        assert (out / "victim").read_bytes() == (out / "victim2").read_bytes() == PAYLOAD
        assert os.readlink(out / "victim3") == "victim"
    assert watch(yard) == before


def test_a_prepared_staging_folder(store: Store, yard: Path) -> None:
    tree = craft(store, [file_of(store, b"victim")])
    staging = yard / "in/.out.casstore-partial"
    before = watch(yard)
    staging.symlink_to(yard / "outside")
    for resume in (True, False):
        with pytest.raises(ConflictError):
            download_tree(store, tree, yard / "in/out", resume=resume)
    staging.unlink()
    staging.mkdir(mode=0o700)
    (staging / "tree").symlink_to(yard / "outside")
    with pytest.raises(ConflictError):
        download_tree(store, tree, yard / "in/out", resume=True)
    (staging / "state").unlink(missing_ok=True)
    (staging / "state").symlink_to(yard / "victim")
    download_tree(store, tree, yard / "in/out")  # cleared away: the links themselves, not what is behind them
    assert (yard / "in/out/victim").read_bytes() == PAYLOAD
    assert watch(yard) == before


def test_a_folder_that_becomes_a_link_during_the_download(store: Store, yard: Path) -> None:
    entries = [folder(b"a"), *(file_of(store, b"a/f%03d" % n, b"%d" % n) for n in range(40))]
    tree = craft(store, entries)
    out = yard / "in/out"
    out.mkdir()
    (out / "there").write_bytes(b"")

    class Swap:
        def __getattr__(self, name: str) -> object:
            return lambda *_, **__: None

        def file_done(self, path: bytes) -> None:
            if not (out / "a").is_symlink():
                (out / "a").rename(out / "moved")
                (out / "a").symlink_to(yard / "outside")

    before = watch(yard)
    with pytest.raises(CasstoreError):
        download_tree(store, tree, out, resume=True, progress=Swap(), threads=1)  # type: ignore[arg-type]  # a stand-in
    assert watch(yard) == before


# --- file systems that take different names for the same


class Folding(Confined):
    """Plays a file system that ignores case."""

    def component(self, name: bytes) -> bytes:
        return super().component(name).lower()


COLLISIONS = [
    ([b"Readme", b"README"], "case"),
    ([b"a/X", b"a/x"], "case"),
    ([b"Dir/file", b"dir/file"], "case of folders"),
    (["caf\u00e9".encode(), "cafe\u0301".encode()], "normalisation"),
    ([b"STRASSE", "stra\u00dfe".encode()], "full case folding"),
]


@pytest.mark.parametrize(("names", "_why"), COLLISIONS, ids=[why for _, why in COLLISIONS])
@pytest.mark.parametrize("resume", [False, True])
def test_collisions_are_refused_and_not_overwritten(
    store: Store, yard: Path, monkeypatch: pytest.MonkeyPatch, names: list[bytes], _why: str, resume: bool
) -> None:
    real = Landing._probe

    def probe(self: Landing) -> None:
        real(self)
        self.folds = True

    monkeypatch.setattr(Landing, "_probe", probe)
    out = yard / "in/out"
    if resume:
        out.mkdir()
        (out / "there").write_bytes(b"")
    parents = {name.rpartition(b"/")[0] for name in names} - {b""}
    entries = [file_of(store, name, name) for name in names] + [folder(name) for name in parents]
    with pytest.raises(ConflictError, match="the same to the file system"):
        download_tree(store, craft(store, entries), out, resume=resume)
    # Names that differ in more than that are no collision.
    download_tree(store, craft(store, [file_of(store, b"One"), file_of(store, b"two")]), out, resume=resume)
    assert {"One", "two"} <= set(os.listdir(out))


@pytest.mark.parametrize("names", [[b"Readme", b"README"], [b"Dir/file", b"dir/file"], [b"l/X", b"l/x"]])
def test_collisions_that_no_probe_foresaw(
    store: Store, yard: Path, monkeypatch: pytest.MonkeyPatch, names: list[bytes]
) -> None:
    """Only some folders of a file system may fold names: creating a file is exclusive all the same."""
    real = Landing._keep

    def keep(self: Landing, confined: Confined) -> Confined:
        folding = Folding(os.dup(confined.descriptor))
        confined.close()
        return real(self, folding)

    entries = [link(name, b"x") if name.startswith(b"l") else file_of(store, name, name) for name in names]
    entries += [folder(name) for name in {name.rpartition(b"/")[0] for name in names} - {b""}]
    monkeypatch.setattr(Landing, "_keep", keep)
    with pytest.raises(ConflictError):
        download_tree(store, craft(store, entries), yard / "in/out")
    assert not (yard / "in/out").exists()


def test_names_that_are_strange_elsewhere_are_plain_here(store: Store, yard: Path) -> None:
    names = [
        b"CON",
        b"nul.txt",
        b"a:stream",
        b"back\\slash",
        b"..\\up",
        b"trailing. ",
        b"\xff\xfe",
        b"-rf",
        b"~",
        b"$(x)",
    ]
    download_tree(store, craft(store, [file_of(store, name) for name in names]), yard / "in/out")
    assert sorted(os.listdir(os.fsencode(yard / "in/out"))) == sorted(names)


# --- symbolic links that lead out

LEADING_OUT = [
    {b"a": b"/etc"},
    {b"a": b"/"},
    {b"a": b".."},
    {b"a/b": b"../.."},
    {b"a/b": b"../../x"},
    {b"a/b": b"c/../../.."},
    {b"a": b"./../x"},
    {b"a": b"x//../../y"},
    # Each for itself looks as if it stayed inside.
    {b"deep/er/l": b"../..", b"m": b"deep/er/l/../x"},
    {b"l": b".", b"m": b"l/l/../x"},
    {b"d/l": b"..", b"m": b"d/l/l2/x", b"l2": b".."},
    {b"a": b"b/..", b"b": b"/tmp/x"},
    {b"a": b"b/c", b"b": b"c", b"c": b".."},
]
STAYING = [
    {b"a": b"b"},
    {b"a": b"."},
    {b"a/b": b".."},
    {b"a/b": b"../x/../y"},
    {b"a/b/c": b"../../x"},
    {b"a": b"nowhere/at/all"},
    {b"a": b"a"},
    {b"a": b"b", b"b": b"a"},
    {b"a": b"b/b/b", b"b": b"."},
    {b"a": b"...", b"b": b"..x"},
    {b"l": b"x/y", b"m": b"l/../../z"},
]


@pytest.mark.parametrize("links", LEADING_OUT, ids=str)
def test_links_that_lead_out(store: Store, yard: Path, links: dict[bytes, bytes]) -> None:
    assert any(leads_out(path, links) for path in links)
    tree = craft(store, [link(path, target) for path, target in links.items()])
    with pytest.raises(UsageError, match="lead out"):
        download_tree(store, tree, yard / "in/out")
    assert os.listdir(yard / "in") == []
    lying = Unchecked([link(path, target) for path, target in links.items()])
    with pytest.raises(UsageError, match="lead out"):
        download_tree(store, lying, yard / "in/out")  # type: ignore[arg-type]  # a stand-in
    assert not (yard / "in/out").exists()


@pytest.mark.parametrize("links", STAYING, ids=str)
def test_links_that_stay(store: Store, yard: Path, links: dict[bytes, bytes]) -> None:
    assert not any(leads_out(path, links) for path in links)
    download_tree(store, craft(store, [link(path, target) for path, target in links.items()]), yard / "in/out")
    for path, target in links.items():
        assert os.readlink(os.fsencode(yard / "in/out") + b"/" + path) == target


PART = st.sampled_from([b"a", b"b", b"c", b"..", b"."])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    links=st.dictionaries(
        st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join),
        st.lists(PART, min_size=1, max_size=6).map(b"/".join),
        min_size=1,
        max_size=5,
    )
)
def test_links_against_the_kernel(tmp_path_factory: pytest.TempPathFactory, links: dict[bytes, bytes]) -> None:
    """What is said to stay inside does, by the judgement of the system that follows the links."""
    links = {path: target for path, target in links.items() if not any(path.startswith(p + b"/") for p in links)}
    top = os.path.realpath(os.fsencode(tmp_path_factory.mktemp("links")))
    for path, target in links.items():
        os.makedirs(os.path.dirname(top + b"/" + path), exist_ok=True)
        os.symlink(target, top + b"/" + path)
    for path in links:
        try:
            resolved = os.path.realpath(top + b"/" + path, strict=True)
        except OSError:
            continue  # dangling or a loop: leads nowhere
        inside = resolved == top or resolved.startswith(top + b"/")
        assert inside or leads_out(path, links)


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_impossible_targets(store: Store, yard: Path, target: bytes) -> None:
    with pytest.raises(CasstoreError):
        download_tree(store, craft(store, [link(b"l", target)]), yard / "in/out", unsafe_links=True)
    assert not (yard / "in/out").exists()


def test_a_target_that_is_too_long(store: Store, yard: Path) -> None:
    with pytest.raises(CasstoreError, match="too long"):
        download_tree(store, craft(store, [link(b"l", b"x" * 5000)]), yard / "in/out")


# --- extreme values


@pytest.mark.parametrize("mtime", [0, -1, -(2**62), 2**62, 2**63 - 1, -(2**63)])
def test_extreme_times(store: Store, yard: Path, mtime: int) -> None:
    entries = [
        Entry(b"d", Kind.DIRECTORY, 0o755, mtime),
        Entry(b"d/f", Kind.FILE, 0o644, mtime),
        Entry(b"d/l", Kind.SYMLINK, 0o777, mtime, target=b"f"),
    ]
    tree = craft(store, entries)
    download_tree(store, tree, yard / "in/out")
    # The file system may not know that time; then the content decides, and the file is complete all the same.
    assert download_tree(store, tree, yard / "in/out", resume=True).reused == 1
