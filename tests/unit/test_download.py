"""Downloading a version to a folder: what is restored, and how it appears."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore import hashing
from casstore.backend.file import FileBackend
from casstore.backend.memory import MemoryBackend
from casstore.errors import ConflictError, NotFoundError, OutOfSpaceError, UsageError
from casstore.format.manifest import CHUNK_REF
from casstore.model import Content, Entry, Flag, Kind, sort_key
from casstore.repo.store import Store
from casstore.repo.tree import Tree, TreeBuilder
from casstore.transfer import restore
from casstore.transfer.download import DownloadStats, download_tree
from casstore.transfer.scan import Source
from casstore.transfer.stage import staging_name
from casstore.transfer.upload import upload_tree

NOW = 1_700_000_000_123_456_789


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        backend: FileBackend | MemoryBackend = MemoryBackend()
    else:
        (tmp_path / "store").mkdir()
        backend = FileBackend(str(tmp_path / "store"), durable=False)
    with Store.open(backend, create=True) as opened:
        yield opened


class Recorder:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.files = self.size = self.advanced = self.new = 0
        self.done: list[bytes] = []
        self.warnings: list[str] = []
        self.complete = False

    def expect(self, files: int, size: int) -> None:
        self.files += files
        self.size += size

    def listed(self) -> None:
        self.complete = True

    def advance(self, size: int, *, new: int = 0) -> None:
        self.advanced += size
        self.new += new

    def file_done(self, path: bytes) -> None:
        self.done.append(path)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def upload(store: Store, folder: Path) -> Tree:
    result = upload_tree(store, [Source(os.fsencode(folder), b"", contents=True)])
    return store.tree(result.manifest)


def build(store: Store, entries: dict[bytes, Entry | bytes]) -> Tree:
    """Store a version made by hand; ``bytes`` stand for a file with this content, one chunk."""
    with store.writer(lanes=1) as writer:
        lane = writer.lane()
        builder = TreeBuilder(writer)
        for path in sorted(entries, key=sort_key):
            entry = entries[path]
            if not isinstance(entry, Entry):
                refs = CHUNK_REF.pack(lane.add(entry), len(entry)) if entry else b""
                entry = Entry(path, Kind.FILE, 0o644, NOW, len(entry), Content(0, refs))
            builder.add(entry)
        manifest = builder.finish()
    return store.tree(manifest)


def state(root: Path, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Everything about a tree that a download restores."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, bytes] = {}
    top = os.fsencode(root)
    for parent, folders, files in os.walk(top):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            relative = os.path.relpath(path, top)
            same = inodes.setdefault(status.st_ino, relative)
            found[relative] = (status.st_mode, status.st_mtime_ns if times else 0, content, same)
    return found


def make_everything(root: Path) -> None:
    root.mkdir()
    (root / "empty-folder").mkdir()
    (root / "a/b/c").mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "a/one").write_bytes(b"1")
    (root / "a/b/medium").write_bytes(os.urandom(700_000))
    (root / "a/b/c/large").write_bytes(os.urandom(11_000_000))
    (root / "text").write_text("line\n" * 100_000)
    (root / "zeros").write_bytes(bytes(3_000_000))
    os.link(root / "a/one", root / "second-name")
    os.link(root / "a/b/c/large", root / "a/large-again")
    (root / "link").symlink_to("a/one")
    (root / "a/b/up").symlink_to("../../text")
    (root / "dangling").symlink_to("nowhere")
    (root / "to-folder").symlink_to("a/b")
    Path(os.fsdecode(os.path.join(os.fsencode(root), b"\xff\xfe name\n"))).write_bytes(b"odd")
    for number in range(1200):
        (root / f"a/b/f{number:04d}").write_bytes(b"%d" % number)
    (root / "a/one").chmod(0o755)
    (root / "text").chmod(0o400)
    (root / "zeros").chmod(0o666)
    (root / "a/b/c").chmod(0o500)
    (root / "empty-folder").chmod(0o777)
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(NOW, NOW + len(str(path))), follow_symlinks=False)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_tree_comes_back_as_it_was(store: Store, tmp_path: Path, threads: int) -> None:
    make_everything(tmp_path / "source")
    tree = upload(store, tmp_path / "source")
    progress = Recorder()
    stats = download_tree(store, tree, tmp_path / "out", progress=progress, threads=threads)
    assert state(tmp_path / "out") == state(tmp_path / "source")
    assert stats.files == tree.totals.files == progress.files == len(progress.done) == len(set(progress.done))
    assert stats.bytes == tree.totals.size == progress.size == progress.advanced
    assert stats.written == progress.new == tree.totals.size - 11_000_000 - 1
    assert stats.reused == 0
    assert (stats.directories, stats.symlinks) == (tree.totals.directories, tree.totals.symlinks)
    assert progress.complete
    assert progress.warnings == []
    assert sorted(os.listdir(tmp_path)) in (["out", "source"], ["out", "source", "store"])
    # What came back uploads to the very same version.
    assert upload(store, tmp_path / "out").id == tree.id


def test_an_empty_version_becomes_an_empty_folder(store: Store, tmp_path: Path) -> None:
    assert download_tree(store, build(store, {}), tmp_path / "out") == DownloadStats()
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(store: Store, tmp_path: Path, umask: int) -> None:
    modes = (0o000, 0o200, 0o444, 0o600, 0o644, 0o666, 0o755, 0o777)
    entries: dict[bytes, Entry | bytes] = {b"d%o" % m: Entry(b"d%o" % m, Kind.DIRECTORY, m, NOW) for m in modes}
    entries |= {b"f%o" % m: Entry(b"f%o" % m, Kind.FILE, m, NOW) for m in modes}
    tree = build(store, entries)
    before = os.umask(umask)
    try:
        download_tree(store, tree, tmp_path / "out")
    finally:
        os.umask(before)
    for mode in modes:
        assert stat.S_IMODE((tmp_path / f"out/f{mode:o}").stat().st_mode) == mode
        assert stat.S_IMODE((tmp_path / f"out/d{mode:o}").stat().st_mode) == mode


def test_setuid_and_setgid_need_an_option(store: Store, tmp_path: Path) -> None:
    tree = build(
        store,
        {
            b"d": Entry(b"d", Kind.DIRECTORY, 0o7755, NOW),
            b"d/f": Entry(b"d/f", Kind.FILE, 0o6755, NOW),
        },
    )
    download_tree(store, tree, tmp_path / "plain")
    assert stat.S_IMODE((tmp_path / "plain/d/f").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "plain/d").stat().st_mode) == 0o1755
    download_tree(store, tree, tmp_path / "special", special_bits=True)
    assert stat.S_IMODE((tmp_path / "special/d/f").stat().st_mode) == 0o6755
    assert stat.S_IMODE((tmp_path / "special/d").stat().st_mode) == 0o7755


def test_holes_come_back_as_holes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with open(tmp_path / "source/sparse", "wb") as file:
        file.write(os.urandom(100_000))
        file.seek(50_000_000)
        file.write(b"end")
        file.truncate(80_000_000)
    if (tmp_path / "source/sparse").stat().st_blocks * 512 > 10_000_000:
        pytest.skip("this file system has no holes")
    tree = upload(store, tmp_path / "source")
    assert tree.lookup(b"sparse").flags & Flag.SPARSE
    stats = download_tree(store, tree, tmp_path / "out")
    assert (tmp_path / "out/sparse").read_bytes() == (tmp_path / "source/sparse").read_bytes()
    assert (tmp_path / "out/sparse").stat().st_blocks * 512 < 10_000_000
    assert stats.written < 1_000_000
    # Continuing repairs what is not a hole any more, and what is one by mistake.
    with open(tmp_path / "out/sparse", "r+b") as file:
        file.write(bytes(100_000))
        file.seek(60_000_000)
        file.write(b"garbage")
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert (tmp_path / "out/sparse").read_bytes() == (tmp_path / "source/sparse").read_bytes()


def test_extended_attributes(store: Store, tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, b"user.probe", b"x")
    except OSError:
        pytest.skip("this file system has no user attributes")
    wanted = {b"user.colour": b"\0blue\xff", b"security.capability": b"\1\0\0\2", b"user.a\0b": b"x"}
    tree = build(store, {b"f": Entry(b"f", Kind.FILE, 0o644, NOW, xattrs=wanted)})
    progress = Recorder()
    download_tree(store, tree, tmp_path / "out", progress=progress)
    assert os.listxattr(tmp_path / "out/f") == ["user.colour"]
    assert os.getxattr(tmp_path / "out/f", "user.colour") == b"\0blue\xff"
    assert (tmp_path / "out/f").stat().st_mtime_ns == NOW
    assert len(progress.warnings) == 1
    assert "security.capability" in progress.warnings[0]


def test_parents_that_the_manifest_forgot_are_made(store: Store, tmp_path: Path) -> None:
    download_tree(store, build(store, {b"a/b/c/file": b"x"}), tmp_path / "out")
    assert (tmp_path / "out/a/b/c/file").read_bytes() == b"x"


def test_one_chunk_in_many_files_is_read_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casstore.transfer import fetch

    content = os.urandom(5000)
    tree = build(store, {b"f%03d" % number: content for number in range(300)})
    decoded: list[bytes] = []
    real = fetch.decode_frame

    def counting(chunk_id: bytes, *args: object) -> object:
        decoded.append(chunk_id)
        return real(chunk_id, *args)

    monkeypatch.setattr(fetch, "decode_frame", counting)
    download_tree(store, tree, tmp_path / "out")
    assert decoded == [hashing.digest(content)]
    assert all((tmp_path / f"out/f{number:03d}").read_bytes() == content for number in range(300))


def test_selection(store: Store, tmp_path: Path) -> None:
    tree = build(
        store,
        {
            b"a": Entry(b"a", Kind.DIRECTORY, 0o750, NOW),
            b"a/b": Entry(b"a/b", Kind.DIRECTORY, 0o710, NOW),
            b"a/b/keep.txt": b"keep",
            b"a/b/drop.bin": b"drop",
            b"c": Entry(b"c", Kind.DIRECTORY, 0o755, NOW),
            b"c/drop.bin": b"drop",
            b"link.txt": Entry(b"link.txt", Kind.SYMLINK, 0o777, NOW, target=b"a/b/keep.txt"),
            b"out.bin": Entry(b"out.bin", Kind.SYMLINK, 0o777, NOW, target=b"/etc/passwd"),
        },
    )
    stats = download_tree(store, tree, tmp_path / "out", select=lambda path: path.endswith(b".txt"))
    assert sorted(state(tmp_path / "out")) == [b"a", b"a/b", b"a/b/keep.txt", b"link.txt"]
    assert stat.S_IMODE((tmp_path / "out/a/b").stat().st_mode) == 0o710
    assert (tmp_path / "out/a").stat().st_mtime_ns == NOW
    assert (stats.files, stats.directories, stats.symlinks) == (1, 2, 1)


def test_hard_links_become_copies_where_there_are_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_everything(tmp_path / "source")
    tree = upload(store, tmp_path / "source")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    progress = Recorder()
    stats = download_tree(store, tree, tmp_path / "out", progress=progress)
    assert (tmp_path / "out/a/large-again").read_bytes() == (tmp_path / "source/a/b/c/large").read_bytes()
    assert (tmp_path / "out/second-name").read_bytes() == b"1"
    assert (tmp_path / "out/a/b").stat().st_mtime_ns == (tmp_path / "source/a/b").stat().st_mtime_ns
    assert len(progress.warnings) == 1
    assert stats.bytes == tree.totals.size


# --- the destination


def test_an_existing_empty_folder_keeps_its_mode(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o700)
    download_tree(store, build(store, {b"f": b"x"}), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert os.listdir(tmp_path / "out") == ["f"]


def test_a_folder_with_content_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="not empty") as caught:
        download_tree(store, build(store, {b"f": b"x"}), tmp_path / "out")
    assert "--resume" in caught.value.hint
    assert os.listdir(tmp_path / "out") == ["mine"]
    assert not (tmp_path / ".out.casstore-partial").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_or_link_as_destination_is_refused(store: Store, tmp_path: Path, resume: bool) -> None:
    tree = build(store, {b"f": b"x"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(ConflictError):
            download_tree(store, tree, tmp_path / name, resume=resume)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_missing_parent_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        download_tree(store, build(store, {}), tmp_path / "missing/out")


@pytest.mark.parametrize("spelling", ["out", "./out", "out/", "sub/../out", "sub/.."])
def test_destinations_relative_to_the_current_folder(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    if spelling == "sub/..":
        with pytest.raises(ConflictError, match="not empty"):
            download_tree(store, build(store, {b"f": b"x"}), spelling)
        return
    download_tree(store, build(store, {b"f": b"x"}), spelling)
    assert (here / "out/f").read_bytes() == b"x"


def test_a_very_long_name_of_the_destination(store: Store, tmp_path: Path) -> None:
    assert len(staging_name(b"n" * 255)) <= 255
    assert staging_name(b"n" * 255) != staging_name(b"n" * 254)
    download_tree(store, build(store, {b"f": b"x"}), tmp_path / ("n" * 255))
    assert (tmp_path / ("n" * 255) / "f").read_bytes() == b"x"


def test_two_downloads_to_one_place_do_not_mix(store: Store, tmp_path: Path) -> None:
    tree = build(store, {b"f": b"x", b"g": b"y"})

    class Second(Recorder):
        def file_done(self, path: bytes) -> None:
            for resume in (False, True):
                with pytest.raises(ConflictError, match="another download"):
                    download_tree(store, tree, tmp_path / "out", resume=resume)
            super().file_done(path)

    progress = Second()
    download_tree(store, tree, tmp_path / "out", progress=progress)
    assert sorted(progress.done) == [b"f", b"g"]


def test_a_staging_folder_of_somebody_else_is_not_used(store: Store, tmp_path: Path) -> None:
    (tmp_path / ".out.casstore-partial").mkdir()
    (tmp_path / ".out.casstore-partial").chmod(0o777)
    with pytest.raises(ConflictError, match="somebody else"):
        download_tree(store, build(store, {b"f": b"x"}), tmp_path / "out", resume=True)


def test_content_that_appears_meanwhile_is_not_replaced(store: Store, tmp_path: Path) -> None:
    class Intruder(Recorder):
        def file_done(self, path: bytes) -> None:
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out/precious").write_bytes(b"mine")

    with pytest.raises(ConflictError):
        download_tree(store, build(store, {b"f": b"x"}), tmp_path / "out", progress=Intruder())
    assert os.listdir(tmp_path / "out") == ["precious"]


def test_a_parent_that_can_not_be_written_to(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose destination is a mount: files go into the folder itself, one by one, whole."""
    from casstore.transfer.stage import Landing

    monkeypatch.setattr(Landing, "_may_write_parent", lambda _self: False)
    make_everything(tmp_path / "source")
    tree = upload(store, tmp_path / "source")
    (tmp_path / "out").mkdir()
    download_tree(store, tree, tmp_path / "out")
    assert state(tmp_path / "out") == state(tmp_path / "source")
    assert sorted(os.listdir(tmp_path)) in (["out", "source"], ["out", "source", "store"])


def test_a_full_disk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = build(store, {b"big": os.urandom(1000)})

    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) == 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(restore.os, "write", full)
        with pytest.raises(OutOfSpaceError, match="big") as caught:
            download_tree(store, tree, tmp_path / "out")
    assert "--resume" in caught.value.hint
    assert not (tmp_path / "out").exists()
    download_tree(store, tree, tmp_path / "out", resume=True)
    assert (tmp_path / "out/big").stat().st_size == 1000


def test_too_little_space_is_told_before(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casstore.transfer import download

    real = os.fstatvfs

    class Nearly:
        def __init__(self, descriptor: int) -> None:
            self.f_frsize, self.f_bavail = real(descriptor).f_frsize, 0

    monkeypatch.setattr(download.os, "fstatvfs", Nearly)
    progress = Recorder()
    download_tree(store, build(store, {b"f": b"x"}), tmp_path / "out", progress=progress)
    assert "free" in progress.warnings[0]


# --- symbolic links


def link(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, NOW, target=target)


def test_links_that_lead_out_are_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    entries: dict[bytes, Entry | bytes] = {b"l%d" % n: link(b"l%d" % n, b"../../etc/%d" % n) for n in range(8)}
    tree = build(store, {**entries, b"file": b"x", b"inside": link(b"inside", b"file")})
    with pytest.raises(UsageError, match=r"l0 -> \.\./\.\./etc/0") as caught:
        download_tree(store, tree, tmp_path / "out")
    assert "and 3 more" in caught.value.message
    assert "--unsafe-links" in caught.value.hint
    assert not any("out" in name for name in os.listdir(tmp_path))
    download_tree(store, tree, tmp_path / "out", unsafe_links=True)
    assert os.readlink(tmp_path / "out/l3") == "../../etc/3"
    assert os.lstat(tmp_path / "out/l3").st_mtime_ns == NOW


def test_deep_trees(store: Store, deep_path: Path) -> None:
    """3,000 levels, far beyond what one system call takes."""
    path = b""
    entries: dict[bytes, Entry | bytes] = {}
    for level in range(3000):
        path = path + b"/d%d" % (level % 10) if path else b"d0"
        entries[path] = Entry(path, Kind.DIRECTORY, 0o755, NOW + level)
        if level % 500 == 0:
            entries[path + b"/file"] = b"level %d" % level
    entries[path + b"/file"] = b"bottom"
    assert len(path) > 8000
    tree = build(store, entries)
    stats = download_tree(store, tree, deep_path / "out")
    assert stats.directories == 3000
    # Started again, and continued.
    descriptor = os.open(deep_path / "out", os.O_RDONLY)
    try:
        for name in path.split(b"/"):
            below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        assert os.fstat(descriptor).st_mtime_ns == NOW + 2999
        assert os.stat(b"file", dir_fd=descriptor).st_size == 6
    finally:
        os.close(descriptor)
    assert download_tree(store, tree, deep_path / "out", resume=True).reused == stats.files
    # A stale staging folder of this depth is cleared away.
    (deep_path / "out").rename(deep_path / ".out.casstore-partial")
    download_tree(store, build(store, {b"f": b"x"}), deep_path / "out")
    assert os.listdir(deep_path / "out") == ["f"]


def test_long_names_and_long_paths(store: Store, deep_path: Path) -> None:
    folder = b"/".join([b"n" * 255] * 18)
    tree = build(store, {folder + b"/" + b"f" * 255: b"x"})
    assert len(folder) > 4096
    assert download_tree(store, tree, deep_path / "out").files == 1
    assert download_tree(store, tree, deep_path / "out", resume=True).reused == 1


def test_descriptors_and_threads_are_given_back(store: Store, tmp_path: Path) -> None:
    import threading

    make_everything(tmp_path / "source")
    tree = upload(store, tmp_path / "source")
    download_tree(store, tree, tmp_path / "warm")
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    download_tree(store, tree, tmp_path / "out")
    download_tree(store, tree, tmp_path / "out", resume=True)
    with pytest.raises(ConflictError):
        download_tree(store, tree, tmp_path / "out")
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_its_budget(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "source").mkdir()
    (tmp_path / "store").mkdir()
    block = os.urandom(1 << 20)
    with open(tmp_path / "source/large", "wb") as file:
        file.writelines(number.to_bytes(4, "big") + block[4:] for number in range(300))
    with Store.open(FileBackend(str(tmp_path / "store"), durable=False), create=True) as store:
        tree = upload(store, tmp_path / "source")
    code = """
import resource, sys
from casstore.backend.file import FileBackend
from casstore.repo.store import Store
from casstore.transfer.download import download_tree
store = Store.open(FileBackend(sys.argv[1]))
tree = store.tree(bytes.fromhex(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
download_tree(store, tree, sys.argv[3], memory=32 << 20, threads=4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "store"), tree.id.hex(), str(tmp_path / "out")]
    grown = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    assert grown < 48 << 10
