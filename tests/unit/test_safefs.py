"""Writing confined to one folder."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from casstore.errors import AccessError, ConflictError, FormatError, OutOfSpaceError, StorageError
from casstore.transfer.safefs import Confined, check_name, local_error, show


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "top").mkdir()
    return tmp_path / "top"


def write(confined: Confined, path: bytes, data: bytes, mode: int = 0o600) -> None:
    descriptor = confined.create(path, mode)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"/", b"x" * 256])
def test_illegal_names_are_refused(name: bytes) -> None:
    with pytest.raises(FormatError):
        check_name(name)


@pytest.mark.parametrize("name", [b"a", b"...", b"..a", b"a\\b", b"\xff\xfe", b"CON", b"a:b", b"x" * 255, b" ", b"\n"])
def test_strange_but_legal_names_are_written_as_they_are(folder: Path, name: bytes) -> None:
    with Confined.open(os.fsencode(folder)) as confined:
        write(confined, check_name(name), b"content")
    assert os.listdir(os.fsencode(folder)) == [name]


BAD_PATHS = [
    b"",
    b"..",
    b"../x",
    b"a/../x",
    b"a/../../x",
    b"/x",
    b"/",
    b"//x",
    b"a//x",
    b"a/./x",
    b"./x",
    b"a/",
    b"a\0/x",
    b"a/x\0",
    b"a/" + b"y" * 256,
    b"z" * 256 + b"/x",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_are_not_plain_are_refused_by_every_method(folder: Path, path: bytes) -> None:
    (folder / "a").mkdir()
    (folder / "file").write_bytes(b"old")
    before = sorted(str(p) for p in folder.parent.rglob("*"))
    with Confined.open(str(folder)) as confined:
        for action in (
            lambda: confined.create(path),
            lambda: confined.open_file(path),
            lambda: confined.mkdir(path),
            lambda: confined.symlink(b"a", path),
            lambda: confined.link(b"file", path),
            lambda: confined.link(path, b"new"),
            lambda: confined.rename(b"file", confined, path),
            lambda: confined.rename(path, confined, b"new"),
            lambda: confined.remove(path),
            lambda: confined.stat(path),
            lambda: confined.set_times(path, 1),
            lambda: confined.set_mode(path, 0o777),
            lambda: confined.readlink(path),
        ):
            with pytest.raises(FormatError):
                action()
    assert sorted(str(p) for p in folder.parent.rglob("*")) == before


def test_no_method_goes_through_a_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (folder / "file").write_bytes(b"old")
    (folder / "link").symlink_to(outside)
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to("../link")
    with Confined.open(str(folder)) as confined:
        for prefix in (b"link", b"deep/link", b"deep/link/sub"):
            for action in (
                lambda p=prefix: confined.create(p + b"/x"),
                lambda p=prefix: confined.open_file(p + b"/secret"),
                lambda p=prefix: confined.mkdir(p + b"/x"),
                lambda p=prefix: confined.makedirs(p + b"/x/y"),
                lambda p=prefix: confined.symlink(b"a", p + b"/x"),
                lambda p=prefix: confined.link(b"file", p + b"/x"),
                lambda p=prefix: confined.link(p + b"/secret", b"mine"),
                lambda p=prefix: confined.rename(b"file", confined, p + b"/x"),
                lambda p=prefix: confined.rename(p + b"/secret", confined, b"mine"),
                lambda p=prefix: confined.remove(p + b"/secret"),
                lambda p=prefix: confined.stat(p + b"/secret"),
                lambda p=prefix: confined.set_times(p + b"/secret", 1),
                lambda p=prefix: confined.set_mode(p + b"/secret", 0o777),
            ):
                with pytest.raises(OSError) as caught:
                    action()
                assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
        with pytest.raises(OSError):
            confined.open_file(b"link")
        with pytest.raises(OSError):
            confined.set_mode(b"link", 0o777)
        with pytest.raises(FileExistsError):
            confined.mkdir(b"link")
    assert [p.name for p in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert stat.S_IMODE(outside.stat().st_mode) != 0o777


def test_the_folder_itself_must_not_be_a_link(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(OSError):
        Confined.open(str(folder.parent / "link"))


def test_creating_never_overwrites(folder: Path) -> None:
    target = folder.parent / "target"
    (folder / "file").write_bytes(b"old")
    (folder / "dangling").symlink_to(target)
    with Confined.open(str(folder)) as confined:
        for path in (b"file", b"dangling"):
            with pytest.raises(FileExistsError):
                confined.create(path)
    assert (folder / "file").read_bytes() == b"old"
    assert not target.exists()


def test_a_fifo_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with Confined.open(str(folder)) as confined, pytest.raises(OSError):
        confined.open_file(b"fifo")


def test_a_temporary_file_replaces_a_link_and_not_its_target(folder: Path) -> None:
    target = folder.parent / "target"
    target.write_bytes(b"untouched")
    (folder / "name").symlink_to(target)
    with Confined.open(str(folder)) as confined:
        descriptor, path = confined.create_temporary()
        os.write(descriptor, b"new")
        os.close(descriptor)
        confined.rename(path, confined, b"name")
    assert target.read_bytes() == b"untouched"
    assert not (folder / "name").is_symlink()
    assert (folder / "name").read_bytes() == b"new"


def test_attributes_of_links_files_and_folders(folder: Path) -> None:
    with Confined.open(str(folder)) as confined:
        confined.makedirs(b"a/b/c")
        write(confined, b"a/b/c/file", b"x")
        confined.symlink(b"file", b"a/b/c/link")
        confined.link(b"a/b/c/file", b"second")
        confined.set_mode(b"a/b/c/file", 0o640)
        confined.set_mode(b"a/b", 0o711)
        for path, when in ((b"a/b/c/link", 1_000_000_007), (b"a/b/c/file", 2_000_000_009), (b"a/b", 3_000_000_001)):
            confined.set_times(path, when)
        assert confined.readlink(b"a/b/c/link") == b"file"
        assert confined.stat(b"missing") is None
    assert os.lstat(folder / "a/b/c/link").st_mtime_ns == 1_000_000_007
    assert os.lstat(folder / "second").st_mtime_ns == 2_000_000_009
    assert stat.S_IMODE(os.lstat(folder / "second").st_mode) == 0o640
    assert os.lstat(folder / "a/b").st_mtime_ns == 3_000_000_001
    assert stat.S_IMODE(os.lstat(folder / "a/b").st_mode) == 0o711


def test_bits_of_a_folder_that_are_to_be_kept_stay(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a").chmod(0o2770)
    with Confined.open(str(folder)) as confined:
        confined.set_mode(b"a", 0o755, keep=stat.S_ISGID)
        assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o2755
        confined.set_mode(b"a", 0o755)
        assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o755


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_very_deep_trees_with_a_bounded_number_of_descriptors(deep_path: Path) -> None:
    before = open_descriptors()
    depth = 3000
    with Confined.open(str(deep_path)) as confined:
        path = b""
        for level in range(depth):
            path = path + b"/d%d" % (level % 7) if path else b"d0"
            assert confined.mkdir(path)
            assert open_descriptors() <= before + 40
        assert len(path) > 4096
        write(confined, path + b"/file", b"deep")
        # From the top again, with nothing cached, and once more from a thread of its own.
        with confined.clone() as other:
            descriptor = other.open_file(path + b"/file")
            assert os.read(descriptor, 10) == b"deep"
            os.close(descriptor)
            assert open_descriptors() <= before + 80
        while path:
            confined.set_times(path, 5_000_000_000)
            path = path.rpartition(b"/")[0]
    assert open_descriptors() == before
    assert (deep_path / "d0").stat().st_mtime_ns == 5_000_000_000


def test_long_components_beyond_path_max(deep_path: Path) -> None:
    path = b"/".join([b"n" * 255] * 20)
    with Confined.open(str(deep_path)) as confined:
        confined.makedirs(path)
        write(confined, path + b"/" + b"f" * 255, b"long")
        assert confined.stat(path + b"/" + b"f" * 255).st_size == 4


def test_the_cache_survives_directories_being_pushed_out(folder: Path) -> None:
    with Confined(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), cached=2) as confined:
        for number in range(10):
            confined.makedirs(b"%d/x/y/z" % number)
        for _ in range(2):
            for number in range(10):
                path = b"%d/x/y/z/file" % number
                if confined.stat(path) is None:
                    write(confined, path, b"%d" % number)
                confined.link(path, b"%d/second%d" % (number, _))
                confined.rename(b"%d/second%d" % (number, _), confined, b"%d/x/renamed" % ((number + 1) % 10))
    for number in range(10):
        assert (folder / f"{number}/x/y/z/file").read_bytes() == b"%d" % number
        assert (folder / f"{(number + 1) % 10}/x/renamed").read_bytes() == b"%d" % number


def test_a_folder_that_is_replaced_by_a_link_meanwhile_is_not_followed(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    with Confined.open(str(folder)) as confined:
        confined.mkdir(b"a")
        write(confined, b"a/first", b"1")
        (folder / "a").rename(folder / "moved")
        (folder / "a").symlink_to(outside)
        # The directory that was opened is still the one that is written to.
        write(confined, b"a/second", b"2")
        with confined.clone() as other, pytest.raises(OSError):
            other.create(b"a/third")
    assert list(outside.iterdir()) == []
    assert sorted(p.name for p in (folder / "moved").iterdir()) == ["first", "second"]


def test_threads_with_clones(folder: Path) -> None:
    failures: list[BaseException] = []

    def work(confined: Confined, number: int) -> None:
        try:
            with confined:
                for index in range(200):
                    confined.makedirs(b"%d/%d" % (index % 50, number))
                    write(confined, b"%d/%d/%d" % (index % 50, number, index), b"x")
        except BaseException as error:
            failures.append(error)

    with Confined.open(str(folder)) as confined:
        threads = [threading.Thread(target=work, args=(confined.clone(), n)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sum(1 for p in folder.rglob("*") if p.is_file()) == 600


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, OutOfSpaceError),
        (errno.EDQUOT, OutOfSpaceError),
        (errno.EACCES, AccessError),
        (errno.EROFS, AccessError),
        (errno.ENOTDIR, ConflictError),
        (errno.ELOOP, ConflictError),
        (errno.EEXIST, ConflictError),
        (errno.EIO, StorageError),
    ],
)
def test_errors_name_the_path(number: int, kind: type[Exception]) -> None:
    error = local_error(OSError(number, os.strerror(number)), b"some/file")
    assert type(error) is kind
    assert "some/file" in error.message
    assert os.strerror(number) in error.message


def test_messages_are_one_harmless_line() -> None:
    shown = show(b"a\nb\x1b[31m\xff" + b"x" * 1000)
    assert shown.isprintable()
    assert len(shown) < 400
    assert "\\xff" in shown
