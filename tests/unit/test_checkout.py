"""Folders that versions were downloaded to: what is changed in them, and how they become another version."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from casstore.backend.file import FileBackend
from casstore.cache.files import FileCache
from casstore.cache.space import Space
from casstore.dataset import Bucket, DownloadResult
from casstore.dataset import checkout as checkouts
from casstore.errors import CasstoreError, ConflictError, IntegrityError, NotFoundError
from casstore.model import Entry
from casstore.repo.store import Store
from casstore.transfer import survey as surveys
from casstore.transfer import update as updates
from casstore.transfer.checkouts import Checkouts
from casstore.transfer.download import Cached
from casstore.transfer.fetch import Fetcher
from casstore.transfer.progress import Silent

NOW = 1_700_000_000_123_456_789


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    (tmp_path / "store").mkdir()
    with Store.open(FileBackend(str(tmp_path / "store"), durable=False), create=True) as opened:
        yield Bucket(opened, name="b", user="u", state_dir=str(tmp_path / "state"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub/deeper").mkdir(parents=True)
    (root / "empty").mkdir()
    for number in range(20):
        write(root / f"sub/f{number:02d}", os.urandom(2000))
    write(root / "sub/deeper/large", os.urandom(3_000_000))
    write(root / "medium", os.urandom(400_000))
    write(root / "run", b"#!/bin/sh\n", 0o755)
    os.link(root / "medium", root / "sub/medium-again")
    (root / "link").symlink_to("sub/f00")
    (tmp_path / "here").mkdir()
    return root


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(NOW, NOW))


def upload(bucket: Bucket, source: Path) -> int:
    return bucket.upload("ds", [f"{source}/*"]).version.number


def download(bucket: Bucket, tmp_path: Path, **options: object) -> DownloadResult:
    return checkouts.download(bucket, "ds", str(tmp_path / "here"), **options)  # type: ignore[arg-type]


def state(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = (path.read_bytes(), status.st_mtime_ns)
        found[str(path.relative_to(root))] = (status.st_mode, content)
    return found


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """What would tell of any write."""
    return {
        str(path.relative_to(root)): (path.lstat().st_ino, path.lstat().st_ctime_ns)
        for path in root.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def changes(bucket: Bucket, folder: Path, **options: object) -> list[tuple[str, str, tuple[str, ...]]]:
    found = checkouts.status(bucket, str(folder), **options)  # type: ignore[arg-type]
    return [(one.status, os.fsdecode(one.path), one.what) for one in found.changes]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that a survey reads."""
    found: list[bytes] = []
    real = surveys._Surveyor._compare

    def compare(self: surveys._Surveyor, descriptor: int, entry: Entry) -> bool:
        found.append(entry.path)
        return real(self, descriptor, entry)

    monkeypatch.setattr(surveys._Surveyor, "_compare", compare)
    return found


@pytest.fixture
def here(bucket: Bucket, source: Path, tmp_path: Path) -> Path:
    upload(bucket, source)
    download(bucket, tmp_path)
    return tmp_path / "here/ds"


def test_a_fresh_download_is_clean_and_nothing_is_read(bucket: Bucket, here: Path, reads: list[bytes]) -> None:
    assert changes(bucket, here) == []
    assert reads == []
    found = checkouts.status(bucket, str(here))
    assert (found.version.number, found.unfinished, found.regexes) == (1, False, None)
    assert [path.name for path in here.parent.iterdir()] == ["ds"]


def test_verify_reads_all(bucket: Bucket, here: Path, reads: list[bytes]) -> None:
    assert changes(bucket, here, verify=True) == []
    assert len(reads) == 24


def test_what_was_changed(bucket: Bucket, here: Path, reads: list[bytes]) -> None:
    write(here / "sub/f01", os.urandom(2000))  # of the same size and time
    (here / "sub/f02").write_bytes(b"short")
    (here / "sub/f03").unlink()
    (here / "run").chmod(0o644)
    (here / "new").write_bytes(b"")
    (here / "folder/below").mkdir(parents=True)
    (here / "link").unlink()
    (here / "link").symlink_to("sub/f01")
    shutil.rmtree(here / "empty")
    (here / "empty").write_bytes(b"now a file")
    shutil.rmtree(here / "sub/deeper")
    os.mkfifo(here / "pipe")
    assert changes(bucket, here) == [
        ("modified", "empty", ("type",)),
        ("added", "folder", ()),
        ("modified", "link", ("target",)),
        ("added", "new", ()),
        ("added", "pipe", ()),
        ("modified", "run", ("mode",)),
        ("removed", "sub/deeper", ()),
        ("modified", "sub/f01", ("content",)),
        ("modified", "sub/f02", ("content",)),
        ("removed", "sub/f03", ()),
    ]
    assert set(reads) == {b"sub/f01", b"run"}


def test_what_was_touched_is_read_once(
    bucket: Bucket, here: Path, reads: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casstore.transfer.checkouts._RACY_NS", 0)
    os.utime(here / "sub/f01")
    write(here / "sub/f02", os.urandom(2000))
    for _ in range(3):
        assert changes(bucket, here) == [("modified", "sub/f02", ("content",))]
    assert sorted(reads) == [b"sub/f01", b"sub/f02"]
    write(here / "sub/f02", os.urandom(2000))
    changes(bucket, here)
    assert len(reads) == 3


def test_what_was_touched_just_now_is_not_remembered(bucket: Bucket, here: Path, reads: list[bytes]) -> None:
    os.utime(here / "sub/f01")
    changes(bucket, here)
    changes(bucket, here)
    assert reads == [b"sub/f01"] * 2


def test_a_folder_that_was_moved(bucket: Bucket, here: Path, tmp_path: Path, reads: list[bytes]) -> None:
    here.rename(tmp_path / "elsewhere")
    assert changes(bucket, tmp_path / "elsewhere") == []
    assert reads == []
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "copy", symlinks=True)
    with pytest.raises(NotFoundError, match="is not known"):
        checkouts.status(bucket, str(tmp_path / "copy"))


def test_another_folder_in_its_place(bucket: Bucket, here: Path, tmp_path: Path) -> None:
    shutil.rmtree(here)
    (tmp_path / "in-between").mkdir()  # takes the inode, where the file system gives it again
    here.mkdir()
    (here / "mine").write_bytes(b"mine")
    with pytest.raises(NotFoundError, match="is not known"):
        checkouts.status(bucket, str(here))
    with pytest.raises(ConflictError, match="is not empty"):
        download(bucket, tmp_path)


def test_a_copy_in_its_place_is_known(bucket: Bucket, here: Path, tmp_path: Path, reads: list[bytes]) -> None:
    shutil.copytree(here, tmp_path / "copy", symlinks=True)
    shutil.rmtree(here)
    (tmp_path / "copy").rename(here)
    assert changes(bucket, here) == []
    assert len(reads) == 24


def test_against_any_version(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    (source / "sub/f00").write_bytes(b"newer")
    upload(bucket, source)
    assert changes(bucket, here, against=bucket.resolve("ds", "2")) == [("modified", "sub/f00", ("content",))]
    assert changes(bucket, source, against=bucket.resolve("ds", "2")) == []


def test_an_update_touches_only_what_differs(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    before = stamps(here)
    write(source / "sub/f01", os.urandom(2000))
    (source / "sub/f02").unlink()
    shutil.rmtree(source / "sub/deeper")
    write(source / "sub/deeper", b"a file in its place")
    (source / "empty").rmdir()
    (source / "one/two").mkdir(parents=True)
    write(source / "one/two/three", b"three")
    os.utime(source / "sub/f05", ns=(NOW + 1, NOW + 1))
    upload(bucket, source)
    (here / "mine").write_bytes(b"mine")
    result = download(bucket, tmp_path)
    (here / "mine").unlink()
    assert state(here) == state(source)
    assert (result.files, result.reused, result.removed) == (24, 21, 2)
    after = stamps(here)
    assert {path for path in after if before.get(path) != after[path]} == {
        "sub/f01", "sub/f05", "sub/deeper", "one/two/three",
    }  # fmt: skip
    assert before["sub/f05"][0] == after["sub/f05"][0]  # not written, but for its time
    assert checkouts.status(bucket, str(here)).version.number == 2
    assert changes(bucket, here) == []


def test_back_to_an_older_version(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    first = state(source)
    shutil.rmtree(source / "sub")
    write(source / "sub", b"a file")
    upload(bucket, source)
    download(bucket, tmp_path)
    assert state(here) == state(source)
    download(bucket, tmp_path, tag="1")
    assert state(here) == first
    assert (here / "medium").samefile(here / "sub/medium-again")


def test_the_same_version_again_brings_back_what_is_missing(
    bucket: Bucket, here: Path, source: Path, tmp_path: Path
) -> None:
    shutil.rmtree(here / "sub")
    (here / "link").unlink()
    result = download(bucket, tmp_path)
    assert state(here) == state(source)
    assert result.files - result.reused == 22
    assert download(bucket, tmp_path).new_bytes == 0


def test_local_changes_stop_an_update(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    write(source / "sub/f01", os.urandom(2000))
    (source / "sub/f02").unlink()
    write(source / "new", b"theirs")
    upload(bucket, source)
    for name in ("sub/f02", "sub/f03", "new"):
        (here / name).write_bytes(b"mine")
    (here / "unknown").write_bytes(b"mine")
    before = stamps(here)
    with pytest.raises(ConflictError) as stopped:
        download(bucket, tmp_path)
    assert "3 local changes" in stopped.value.message
    assert "added new, modified sub/f02, modified sub/f03" in stopped.value.message
    assert "--force" in (stopped.value.hint or "")
    assert stamps(here) == before
    assert checkouts.status(bucket, str(here)).version.number == 1
    download(bucket, tmp_path, force=True)
    assert (here / "unknown").read_bytes() == b"mine"
    (here / "unknown").unlink()
    assert state(here) == state(source)


def test_local_changes_that_are_those_of_the_new_version(
    bucket: Bucket, source: Path, here: Path, tmp_path: Path
) -> None:
    write(source / "sub/f01", b"both")
    write(source / "new", b"both")
    upload(bucket, source)
    write(here / "sub/f01", b"both")
    write(here / "new", b"both")
    download(bucket, tmp_path)
    assert state(here) == state(source)


def test_a_folder_of_the_user_where_a_file_is_to_be(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "sub/deeper")
    write(source / "sub/deeper", b"a file")
    upload(bucket, source)
    (here / "sub/deeper/mine").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(ConflictError, match="in the way"):
            download(bucket, tmp_path, force=force)
    assert (here / "sub/deeper/large").exists()
    (here / "sub/deeper/mine").unlink()
    download(bucket, tmp_path)
    assert state(here) == state(source)


def test_links_are_not_followed(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    """Somebody put a link where a folder was: what it leads to is neither compared, written nor removed."""
    outside = tmp_path / "outside"
    shutil.copytree(here / "sub", outside, copy_function=shutil.copy2)
    shutil.rmtree(here / "sub")
    (here / "sub").symlink_to(outside)
    before = stamps(outside)
    assert ("modified", "sub", ("type",)) in changes(bucket, here)
    shutil.rmtree(source / "sub/deeper")
    (source / "sub/f01").unlink()
    write(source / "sub/f02", b"new")
    upload(bucket, source)
    with pytest.raises(ConflictError, match="modified sub"):
        download(bucket, tmp_path)
    download(bucket, tmp_path, force=True)
    assert stamps(outside) == before
    assert not (here / "sub").is_symlink()
    assert state(here) == state(source)


@pytest.mark.parametrize("steps", range(12))
def test_an_update_that_stops_anywhere_is_completed_by_the_next(
    bucket: Bucket, source: Path, here: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write(source / f"sub/f{number:02d}", os.urandom(2000))
        (source / f"sub/f{number + 10:02d}").unlink()
    write(source / "sub/deeper/large", os.urandom(2_000_000))
    upload(bucket, source)

    class StopError(Exception):
        pass

    left = steps

    def step() -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise StopError
        return True

    real = updates._unlink
    with monkeypatch.context() as patched:
        patched.setattr(updates, "_unlink", lambda root, path: step() and real(root, path))

        class Watch(Silent):
            def file_done(self, path: bytes) -> None:
                step()

        with pytest.raises(StopError):
            download(bucket, tmp_path, progress=Watch(), threads=1)
    found = checkouts.status(bucket, str(here))
    assert found.unfinished
    assert all(one.status == "removed" for one in found.changes)
    # And then to a third version, with a local change in between.
    write(source / "sub/f00", b"third")
    third = upload(bucket, source)
    write(here / "sub/f19", b"mine")
    with pytest.raises(ConflictError, match=r"1 local change .*: modified sub/f19"):
        download(bucket, tmp_path)
    write(here / "sub/f19", (source / "sub/f19").read_bytes())
    download(bucket, tmp_path)
    assert state(here) == state(source)
    found = checkouts.status(bucket, str(here))
    assert (found.version.number, found.unfinished, found.changes) == (third, False, ())


def test_a_part_of_a_version(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    upload(bucket, source)
    here = tmp_path / "here/ds"
    download(bucket, tmp_path, regex="sub/f0")
    assert changes(bucket, here) == []
    (here / "medium").write_bytes(b"mine")
    assert changes(bucket, here) == [("added", "medium", ())]
    (here / "medium").unlink()
    download(bucket, tmp_path, regex="run")
    assert sorted(path.name for path in here.iterdir()) == ["run", "sub"]
    assert checkouts.status(bucket, str(here)).regexes == ("sub/f0", "run")
    (source / "sub/f03").unlink()
    write(source / "run", b"newer", 0o755)
    upload(bucket, source)
    download(bucket, tmp_path, regex="run")
    assert sorted(path.name for path in (here / "sub").iterdir()) == [f"f0{n}" for n in range(10) if n != 3]
    assert changes(bucket, here) == []
    download(bucket, tmp_path)
    assert state(here) == state(source)
    assert changes(bucket, here) == []


def test_hard_links_and_folders_that_nobody_may_write_to(
    bucket: Bucket, source: Path, here: Path, tmp_path: Path
) -> None:
    first = state(source)
    write(source / "medium", os.urandom(400_000))
    (source / "sub/f01").unlink()
    (source / "sub/deeper/empty").mkdir()
    (source / "sub/deeper").chmod(0o555)
    (source / "sub").chmod(0o555)
    upload(bucket, source)
    download(bucket, tmp_path)
    assert state(here) == state(source)
    assert (here / "medium").samefile(here / "sub/medium-again")
    assert (here / "medium").stat().st_nlink == 2
    download(bucket, tmp_path, tag="1")
    assert state(here) == first
    assert (here / "medium").samefile(here / "sub/medium-again")
    for folder in ("sub", "sub/deeper"):
        (source / folder).chmod(0o755)


def test_another_dataset_and_a_deleted_version(bucket: Bucket, source: Path, here: Path, tmp_path: Path) -> None:
    write(source / "new", b"new")
    upload(bucket, source)
    bucket.delete("ds", tag="1")
    with pytest.raises(NotFoundError, match="was deleted"):
        checkouts.status(bucket, str(here))
    download(bucket, tmp_path)  # the manifest is still there until garbage is collected
    assert state(here) == state(source)
    bucket.rename("ds", "old")
    bucket.upload("ds", [f"{source}/sub/*"])
    with pytest.raises(ConflictError, match="not empty and holds ds:2"):
        download(bucket, tmp_path)
    assert checkouts.status(bucket, str(here)).version.dataset == "old"


def test_resume_is_remembered_too(bucket: Bucket, source: Path, tmp_path: Path) -> None:
    upload(bucket, source)
    here = tmp_path / "here/ds"
    shutil.copytree(source, here, symlinks=True)
    (here / "sub/f00").write_bytes(b"wrong")
    with pytest.raises(ConflictError, match="not empty"):
        download(bucket, tmp_path)
    write(here / "sub/f01", os.urandom(2000))  # of the same size and time: kept without a look
    download(bucket, tmp_path, resume=True)
    assert changes(bucket, here) == [("modified", "sub/f01", ("content",))]
    download(bucket, tmp_path, force=True)
    assert changes(bucket, here) == []
    assert state(here) == state(source)


def test_a_damaged_memory_is_no_memory(bucket: Bucket, here: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "state").glob("checkouts.sqlite*"):
        path.write_bytes(b"no database" * 1000)
    with pytest.raises(NotFoundError, match="is not known"):
        checkouts.status(bucket, str(here))
    with pytest.raises(CasstoreError, match="is not empty"):
        download(bucket, tmp_path)


def test_a_download_in_between(
    bucket: Bucket, source: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source / "new", b"new")
    upload(bucket, source)
    real = surveys.survey

    def survey(*arguments: object, **options: object) -> object:
        with Checkouts(bucket.state_dir) as known:
            found = known.find(str(here))
            assert found is not None
            known.put(str(here), msgspec.structs.replace(found, version=7))
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(updates, "survey", survey)
    with pytest.raises(ConflictError, match="came between"):
        download(bucket, tmp_path)
    assert not (here / "new").exists()


# --- the cache


@pytest.fixture
def files(tmp_path: Path) -> FileCache:
    return FileCache(Space(str(tmp_path / "cache"), 1 << 30))


def test_files_come_from_the_cache(
    bucket: Bucket, source: Path, tmp_path: Path, files: FileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, source)
    result = download(bucket, tmp_path, cached=Cached(files, fill=True))
    assert (result.cached, result.files) == (0, 24)
    assert state(tmp_path / "here/ds") == state(source)
    (tmp_path / "there").mkdir()

    def take(self: Fetcher, chunk_id: bytes, raw: int) -> bytes:
        raise IntegrityError("the store is not to be asked")

    monkeypatch.setattr(Fetcher, "take", take)
    result = checkouts.download(bucket, "ds", str(tmp_path / "there"), cached=Cached(files))
    assert state(tmp_path / "there/ds") == state(source)
    assert result.cached == 23  # and the other name of one of them


def test_links_into_the_cache(
    bucket: Bucket, source: Path, tmp_path: Path, files: FileCache, reads: list[bytes]
) -> None:
    upload(bucket, source)
    download(bucket, tmp_path, cached=Cached(files, link=True))
    here = tmp_path / "here/ds"
    large = (here / "sub/deeper/large").stat()
    assert (large.st_nlink, large.st_mode & 0o777) == (2, 0o444)
    assert (here / "run").stat().st_nlink == 1  # it has to be executable
    assert (here / "run").stat().st_mode & 0o777 == 0o755
    assert (here / "medium").samefile(here / "sub/medium-again")
    assert changes(bucket, here, files=files) == []
    assert reads == []
    (tmp_path / "there").mkdir()
    checkouts.download(bucket, "ds", str(tmp_path / "there"), cached=Cached(files, link=True))
    assert (tmp_path / "there/ds/sub/f00").samefile(here / "sub/f00")
    before = stamps(here)
    write(source / "sub/f01", b"newer")
    upload(bucket, source)
    download(bucket, tmp_path, cached=Cached(files, link=True))
    after = stamps(here)
    assert (here / "sub/f01").read_bytes() == b"newer"
    assert (tmp_path / "there/ds/sub/f01").read_bytes() != b"newer"
    assert {path for path in after if before[path] != after[path]} == {"sub/f01"}
    assert changes(bucket, here, files=files) == []
    Space(str(tmp_path / "cache"), 1 << 30).shrink(0)
    assert (here / "sub/f02").stat().st_nlink == 2  # of the other folder
    assert changes(bucket, here) == []
    (here / "sub/f02").unlink()
    (here / "sub/f02").write_bytes(b"mine")
    assert changes(bucket, here) == [("modified", "sub/f02", ("content",))]


@pytest.mark.parametrize("other", [True, False])
def test_a_stopped_download_of_links_is_continued_without_writing_through_them(
    bucket: Bucket, source: Path, tmp_path: Path, files: FileCache, other: bool
) -> None:
    upload(bucket, source)
    (tmp_path / "there").mkdir()
    checkouts.download(bucket, "ds", str(tmp_path / "there"), cached=Cached(files, link=True))

    class StopError(Exception):
        pass

    class Watch(Silent):
        left = 20

        def file_done(self, path: bytes) -> None:
            self.left -= 1
            if self.left == 0:
                raise StopError

    with pytest.raises(StopError):
        download(bucket, tmp_path, cached=Cached(files, link=True), progress=Watch())
    if other:
        for path in source.rglob("*"):
            if path.is_file() and not path.is_symlink():
                write(path, os.urandom(path.stat().st_size), path.stat().st_mode & 0o777)
        upload(bucket, source)
    before = stamps(tmp_path / "there")
    contents = state(tmp_path / "there")
    download(bucket, tmp_path, resume=True)
    assert state(tmp_path / "here/ds") == state(source)
    assert state(tmp_path / "there") == contents
    assert {path: inode for path, (inode, _) in before.items()} == {
        path: inode for path, (inode, _) in stamps(tmp_path / "there").items()
    }


def test_a_damaged_chunk_never_gets_into_the_cache(
    bucket: Bucket, source: Path, tmp_path: Path, files: FileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, source)

    def take(self: Fetcher, chunk_id: bytes, raw: int) -> bytes:
        raise IntegrityError("damaged")

    monkeypatch.setattr(Fetcher, "take", take)
    with pytest.raises(IntegrityError, match="damaged"):
        download(bucket, tmp_path, cached=Cached(files, fill=True))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".evict"] == []
    assert not (tmp_path / "here/ds").exists()


def test_a_cached_file_that_is_cut_short(bucket: Bucket, source: Path, tmp_path: Path, files: FileCache) -> None:
    upload(bucket, source)
    download(bucket, tmp_path, cached=Cached(files, fill=True))
    for path in (tmp_path / "cache/files").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.truncate(path, path.stat().st_size // 2)
    shutil.rmtree(tmp_path / "here/ds")
    result = download(bucket, tmp_path, cached=Cached(files))
    assert state(tmp_path / "here/ds") == state(source)
    assert result.cached == 0
