"""The parts that adoption is made of: digests, order, merging, and what is remembered."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.adopt import base as adopt
from casstore.errors import ConflictError, FormatError, IntegrityError, NotFoundError, SourceError
from casstore.model import Content, sort_key
from casstore.repo.store import Store
from casstore.testing.foreign import MemoryBuckets, osmo_etag
from casstore.transfer import memo as memos
from casstore.transfer.digests import Check, Checker, Expected, plain_etag
from casstore.transfer.memo import Memo
from casstore.transfer.spool import ForeignFile, ForeignFolder, Spool

rng = random.Random(1)
DATA = rng.randbytes((21 << 20) + 5)


def verdict(data: bytes, expected: Expected | None, etag: str = "", pieces: int = 1_000_003) -> Check:
    checker = Checker(expected, len(data))
    for at in range(0, len(data), pieces):
        checker.update(memoryview(data)[at : at + pieces])
    return checker.verdict(etag)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("part", [5 << 20, 7 << 20, 8 << 20, 11 << 20, 15 << 20, 16 << 20, len(DATA) // 2 + 1])
def test_etags_of_parts_of_any_plausible_size(part: int) -> None:
    etag = osmo_etag(DATA, part)
    assert "-" in etag
    assert verdict(DATA, Expected(etag)) is Check.PARTS
    with pytest.raises(IntegrityError, match="not those that were recorded"):
        verdict(DATA[:-1] + b"x", Expected(etag))


def test_etags_of_parts_of_a_size_that_nobody_guesses() -> None:
    etag = osmo_etag(DATA, 1_234_567)
    with pytest.raises(IntegrityError):
        verdict(DATA, Expected(etag))
    assert verdict(DATA, Expected(etag, state=True), f'"{etag}"') is Check.STATE


def test_what_counts_as_proof() -> None:
    text = b"one\r\ntwo\r\n"
    assert verdict(b"", Expected(md5(b""))) is Check.MD5
    assert verdict(b"x", Expected(md5(b"x"))) is Check.MD5
    assert verdict(b"x", None) is Check.NONE
    assert verdict(text, Expected(md5(b"one\ntwo\n"), text=True)) is Check.TEXT
    assert verdict(text, Expected(md5(text), text=True)) is Check.MD5
    for expected, etag in [
        (Expected(md5(b"one\ntwo\n")), ""),
        (Expected("0x8DC"), '"0x8DC"'),
        (Expected("0x8DC", state=True), '"0x8DD"'),
        (Expected(md5(b"y")), f'"{md5(b"y")}"'),
        (Expected(md5(b"y") + "-1", state=True), ""),
        (Expected(md5(b"y") + "-99999"), ""),
        (Expected(""), ""),
    ]:
        with pytest.raises(IntegrityError):
            verdict(text, expected, etag)
    assert verdict(text, Expected("0x8DC", state=True), '"0x8DC"') is Check.STATE
    assert verdict(b"a\0\r\n", Expected(md5(b"a\0\r\n"), text=True)) is Check.MD5


def test_line_ends_between_blocks_are_left_as_dvc_leaves_them() -> None:
    data = b"a" * ((1 << 20) - 1) + b"\r\nrest\r\n"
    wanted = md5(data[:-2] + b"\n")
    for pieces in (4096, 1 << 20, 1 << 22):
        assert verdict(data, Expected(wanted, text=True), pieces=pieces) is Check.TEXT


def test_plain_etags() -> None:
    assert plain_etag('"ABCDEF0123456789ABCDEF0123456789-2"') == "abcdef0123456789abcdef0123456789-2"
    assert plain_etag('W/"0x8DCAB"') == "0x8DCAB"


def test_the_order_of_a_version() -> None:
    names = [b"a.b", b"a/z", b"a-b/c", b"a/b/c", b"z", b"\xff/x", b"a/b.c", b"0"]
    with Spool() as spool:
        for name in names:
            spool.add(ForeignFile(name, 1, "s3://b", "k", expected=Expected("e")))
        spool.add(ForeignFolder(b"a/b", 0o700, 5))
        spool.add(ForeignFolder(b"empty/one"))
        entries = list(spool.entries())
    paths = [entry.path for entry in entries]
    assert paths == sorted(paths, key=sort_key)
    assert set(paths) == {*names, b"a", b"a-b", b"a/b", b"\xff", b"empty", b"empty/one"}
    assert all(isinstance(entry, ForeignFolder) == (entry.path not in names) for entry in entries)
    assert entries[paths.index(b"z")] == ForeignFile(b"z", 1, "s3://b", "k", expected=Expected("e"))


def test_one_path_is_one_thing() -> None:
    with Spool() as spool:
        spool.add(ForeignFile(b"a/b", 1, "", ""))
        for entry in (
            ForeignFile(b"a", 1, "", ""),
            ForeignFile(b"a/b", 1, "", ""),
            ForeignFile(b"a/b/c", 1, "", ""),
            ForeignFolder(b"a/b"),
            ForeignFolder(b"../x"),
            ForeignFile(b"big", 1 << 60, "", ""),
        ):
            with pytest.raises(FormatError):
                spool.add(entry)
        assert [entry.path for entry in spool.entries()] == [b"a", b"a/b"]
        assert (spool.files, spool.size) == (1, 1)


def test_what_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ForeignFile(b"p", 5, "s3://b", "k", "etag")
    for other in (file._replace(key="j"), file._replace(etag="x"), file._replace(size=6), file._replace(etag="")):
        with Memo(str(tmp_path), "source", "store") as memo:
            memo.put(file, Content(0, b"refs"), 5, Check.MD5)
            assert memo.get(other) is None
    with Memo(str(tmp_path), "source", "store") as memo:
        assert memo.get(file._replace(path=b"elsewhere")) == (Content(0, b"refs"), 5, Check.MD5)
        with pytest.raises(ConflictError):
            Memo(str(tmp_path), "source", "store")
        with Memo(str(tmp_path), "source", "store", exclusive=False) as other_one:
            assert other_one.get(file) is None
    for where in ((str(tmp_path), "other", "store"), (str(tmp_path), "source", "x"), (None, "source", "store")):
        with Memo(*where) as memo:
            assert memo.get(file) is None
    monkeypatch.setattr(memos, "_LARGEST", 0)
    with Memo(str(tmp_path), "source", "store") as memo:
        assert memo.get(file) is None
    for path in (tmp_path / "sources").glob("*.sqlite"):
        path.write_bytes(b"no database at all" * 1000)
    monkeypatch.setattr(memos, "_LARGEST", 1 << 30)
    with Memo(str(tmp_path), "source", "store") as memo:
        memo.put(file, Content(0, b"refs"), 5, Check.MD5)
        assert memo.get(file) is not None


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> MemoryBuckets:
    services = MemoryBuckets()
    monkeypatch.setattr(adopt, "open_objects", services)
    return services


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    store = Store.open(MemoryBackend(), create=True)
    return Bucket(store, name="lab", user="kim", cache_dir=str(tmp_path / "cache"))


def paths(bucket: Bucket, name: str = "DS") -> list[str]:
    return [os.fsdecode(entry.path) for entry in bucket.entries(name)]


def test_objects_over_a_version(services: MemoryBuckets, bucket: Bucket, tmp_path: Path) -> None:
    """A folder gives way to a file with all that is in it, and a file to a folder."""
    for name in ("top/x/deep/er", "top/x/y", "top/f", "keep"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_text(name)
    (tmp_path / "src" / "top").chmod(0o750)
    bucket.upload("DS", [f"{tmp_path}/src/*"])
    remote = services.bucket("s3://b")
    remote.store("p/top/x", b"now a file")
    remote.store("p/top/f/now", b"a folder")
    bucket.update("DS", add=["s3://b/p/*"])
    assert paths(bucket) == ["keep", "top", "top/f", "top/x", "top/f/now"]
    top = bucket.tree(bucket.resolve("DS")).lookup(b"top")
    assert top is not None and top.mode == 0o750
    bucket.update("DS", remove="top", add=["s3://b/p/top/x:new"])
    assert paths(bucket) == ["keep", "new", "new/x"]
    bucket.update("DS", add=["s3://b/p/top/x", str(tmp_path / "src" / "top" / "x")])
    assert paths(bucket) == ["keep", "new", "x", "new/x"]


def test_objects_that_were_read_are_not_read_again(services: MemoryBuckets, bucket: Bucket) -> None:
    remote = services.bucket("s3://b")
    for number in range(5):
        remote.store(f"p/{number}", b"%d" % number)
    assert bucket.upload("DS", ["s3://b/p"]).created
    remote.store("p/3", b"new")
    del remote.log[:]
    assert bucket.upload("DS", ["s3://b/p"]).created
    assert [key for what, key in remote.log if what == "read"] == ["p/3"]
    assert not bucket.upload("DS", ["s3://b/p"]).created


def test_objects_that_can_not_be(services: MemoryBuckets, bucket: Bucket) -> None:
    remote = services.bucket("s3://b")
    remote.store("p/a/../../x", b"x")
    with pytest.raises(SourceError, match="leaves the dataset"):
        bucket.upload("DS", ["s3://b/p"])
    remote.delete(["p/a/../../x"])
    remote.store("p/a", b"x")
    remote.store("p/a/b", b"x")
    with pytest.raises(SourceError, match="a file has the path of a folder"):
        bucket.upload("DS", ["s3://b/p"])
    remote.store("q/folder/", b"")
    remote.store("q/wrong/", b"content")
    with pytest.raises(SourceError, match="ends in a slash"):
        bucket.upload("DS", ["s3://b/q"])
    remote.delete(["q/wrong/"])
    bucket.upload("DS", ["s3://b/q"])
    assert paths(bucket) == ["q", "q/folder"]
    with pytest.raises(NotFoundError, match="nothing at"):
        bucket.upload("DS", ["s3://b/nowhere"])


def test_an_object_that_changes_after_the_listing(
    services: MemoryBuckets, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = services.bucket("s3://b")
    remote.store("p/a", b"before")
    listing = remote.list

    def list_then_change(*args: object, **options: object) -> list[object]:
        found = list(listing(*args, **options))  # type: ignore[arg-type]
        remote.store("p/a", b"after!")
        return found

    monkeypatch.setattr(remote, "list", lambda *args, **options: iter(list_then_change(*args, **options)))
    with pytest.raises(SourceError, match="s3://b/p/a: it was changed since it was looked at"):
        bucket.upload("DS", ["s3://b/p"])
    with pytest.raises(NotFoundError):
        bucket.resolve("DS")
