"""What was read before: verified, bounded, shared."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore import hashing
from casstore.cache.files import STEP, FileCache, content_id
from casstore.cache.frames import FrameCache
from casstore.cache.remote import RemoteCache
from casstore.cache.space import STALE, Space, parse_limit
from casstore.errors import StorageError
from casstore.format.index import Location
from casstore.model import Content

MIB = 1 << 20


def place(pack: int, offset: int, stored: int) -> Location:
    return Location(bytes([pack]) * 32, offset, stored, stored, 0)


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return Space(str(tmp_path / "cache"), 64 * MIB)


def test_frames_come_back(space: Space) -> None:
    cache = FrameCache(space)
    frames = {place(n % 3, 16 + 1000 * n, 1000): bytes([n + 1]) * 1000 for n in range(50)}
    for where, data in frames.items():
        assert cache.get(where) is None
        cache.put(where, data)
    assert all(cache.get(where) == data for where, data in frames.items())
    again = FrameCache(space)
    assert all(again.get(where) == data for where, data in frames.items())
    wanted = sorted(frames)
    assert again.get_many([*wanted, place(7, 16, 5)]) == [*(frames[where] for where in wanted), None]


def test_a_frame_is_found_only_where_it_is(space: Space) -> None:
    cache = FrameCache(space)
    cache.put_many([(place(1, 16, 4), b"abcd"), (place(1, 20, 4), b"efgh"), (place(1, 100_000, 3), b"ijk")])
    assert cache.get(place(1, 16, 8)) == b"abcdefgh", "whoever gets it verifies it"
    assert cache.get(place(1, 50, 4)) is None, "a hole"
    assert cache.get(place(1, 99_999, 5)) is None, "beyond the end"
    assert cache.get(place(1, 1 << 31, 5)) is None
    assert cache.get(place(2, 16, 4)) is None
    assert cache.get_many([place(1, 16, 4), place(1, 24, 100), place(1, 100_000, 3)]) == [b"abcd", None, b"ijk"]
    zeros = bytes(1000)
    cache.put(place(3, 16, 1000), zeros)
    assert cache.get(place(3, 16, 1000)) is None, "zeros are what a hole reads as"
    cache.put(place(3, 16, 1000), zeros[1:] + b"1")
    assert cache.get(place(3, 16, 1000)) == zeros[1:] + b"1"


def test_what_others_add_is_seen_and_written_over(space: Space) -> None:
    first, second = FrameCache(space), FrameCache(space)
    first.put(place(1, 16, 3), b"abc")
    assert second.get(place(1, 16, 3)) == b"abc"
    second.put(place(1, 50, 3), b"def")
    assert first.get(place(1, 50, 3)) == b"def"
    second.put(place(1, 16, 3), b"abd")
    assert first.get(place(1, 16, 3)) == b"abd"


def test_what_is_evicted_is_gone_at_once_and_can_be_put_again(space: Space) -> None:
    cache = FrameCache(space)
    cache.put(place(1, 16, 3), b"abc")
    assert space.shrink(0) > 0
    assert cache.get(place(1, 16, 3)) is None
    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()]
    assert not [path for path in held if space.root in path]
    cache.put(place(1, 50, 3), b"def")
    assert (cache.get(place(1, 16, 3)), cache.get(place(1, 50, 3))) == (None, b"def")


def test_frames_of_a_pack_that_is_read_stay(space: Space) -> None:
    cache = FrameCache(space)
    for pack in (1, 2):
        cache.put(place(pack, 16, 5000), bytes([pack]) * 5000)
        (path,) = Path(space.root).rglob(f"0{pack}" * 32)
        os.utime(path, (1000 + pack,) * 2)
    assert cache.get(place(1, 16, 3)) is not None
    space.shrink(space.usage() - 1)
    assert cache.get(place(1, 16, 3)) is not None
    assert cache.get(place(2, 16, 3)) is None


@pytest.mark.parametrize("broken", ["file", "folder"])
def test_a_cache_that_can_not_be_used_is_empty(space: Space, broken: str) -> None:
    cache = FrameCache(space)
    where = Path(space.root, "frames", "01", "01" * 32)
    if broken == "file":
        where.parent.parent.mkdir()
        where.parent.write_bytes(b"")
    else:
        where.mkdir(parents=True)
    cache.put(place(1, 16, 3), b"abc")
    assert cache.get(place(1, 16, 3)) is None


def test_many_threads_and_packs(space: Space) -> None:
    cache = FrameCache(space)
    rng = random.Random(4)
    frames = {place(rng.randrange(256), 16 + 64 * n, 64): rng.randbytes(64) for n in range(3000)}

    def work(item: tuple[Location, bytes]) -> bool:
        cache.put(*item)
        return cache.get(item[0]) == item[1]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, frames.items()))


def test_objects_are_verified_when_they_are_read(space: Space) -> None:
    cache = RemoteCache(space)
    data = b"the root of a manifest" * 100
    identity = hashing.digest(data)
    assert (cache.object(identity, 1 << 20), cache.mapped(identity, 1 << 20)) == (None, None)
    cache.keep(identity, data)
    mapped = cache.mapped(identity, 1 << 20)
    assert mapped is not None
    assert (cache.object(identity, 1 << 20), bytes(mapped)) == (data, data)
    assert (cache.object(identity, 100), cache.mapped(identity, 100)) == (None, None)
    cache.keep(identity, data)
    for read in (cache.object, cache.mapped):
        (path,) = Path(space.root, "objects").rglob(identity.hex())
        path.chmod(0o600)
        path.write_bytes(data[:-1] + b"?")
        assert read(identity, 1 << 20) is None
        assert not path.exists()
        cache.keep(identity, data)
        assert read(identity, 1 << 20) is not None
    path.chmod(0o600)
    path.write_bytes(b"")
    assert (cache.mapped(identity, 1 << 20), cache.object(identity, 1 << 20)) == (None, None)


def test_lists_of_segments(space: Space) -> None:
    cache = RemoteCache(space)
    ids = [bytes([n]) * 32 for n in range(5)]
    assert cache.segments("s") == []
    cache.note_segments("s", [])
    assert cache.segments("s") == []
    cache.note_segments("s", reversed(ids))
    assert (cache.segments("s"), cache.segments("t")) == (ids, [])
    path = Path(space.root, "stores", "s")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[32:], b"", whole[:5] + b"x" + whole[6:]):
        path.write_bytes(damaged)
        assert cache.segments("s") == []


def test_what_would_drive_out_the_rest_is_not_kept(space: Space) -> None:
    files = FileCache(space)
    assert not files.add(b"i" * 32, space.limit // 2 + 1, iter(()))
    assert files.admits(space.limit // 2)
    nothing = RemoteCache(Space(space.root, 0))
    nothing.frames.put(place(1, 16, 3), b"abc")
    nothing.keep(hashing.digest(b"x"), b"x")
    assert [path for path in Path(space.root).rglob("*") if path.is_file()] == []


def test_a_cache_that_can_not_be_made_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert RemoteCache.at(str(tmp_path / "file" / "x"), MIB) is None
    assert RemoteCache.at(str(tmp_path / "new" / "x"), MIB) is not None


def test_whole_files(space: Space) -> None:
    cache = FileCache(space)
    content = Content(0, b"r" * 36)
    identity = content_id(6, content)
    assert identity != content_id(6, Content(0, b"s" * 36))
    assert cache.open(identity, 6) is None
    assert cache.add(identity, 6, [b"abc", b"def"])
    descriptor = cache.open(identity, 6)
    assert descriptor is not None
    assert os.read(descriptor, 10) == b"abcdef"
    os.close(descriptor)
    assert not cache.add(identity, 7, [b"abc"]), "shorter than it should be"
    Path(cache.path(identity)).chmod(0o600)
    os.truncate(cache.path(identity), 3)
    assert cache.open(identity, 6) is None
    assert not os.path.exists(cache.path(identity))


def test_files_are_written_in_large_steps(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which makes reading them cheaper for the kernel; whatever the sizes of the pieces, and where a write is short."""
    rng = random.Random(2)
    wanted = rng.randbytes(3 * STEP + 12_345)
    cuts = sorted(rng.randrange(len(wanted)) for _ in range(40))
    pieces = [wanted[a:b] for a, b in zip([0, *cuts], [*cuts, len(wanted)], strict=True)]
    write, sizes = os.write, []

    def short(descriptor: int, view: memoryview) -> int:
        sizes.append(len(view))
        return write(descriptor, view[: 1000 if len(sizes) == 2 else None])

    monkeypatch.setattr("casstore.cache.files.os.write", short)
    assert FileCache(space).add(b"i" * 32, len(wanted), pieces)
    assert sizes == [STEP, STEP, STEP - 1000, STEP, 12_345]
    assert Path(FileCache(space).path(b"i" * 32)).read_bytes() == wanted
    assert not FileCache(space).add(b"j" * 32, 5, [b"123", b"45", b"6"])


def test_a_file_whose_source_fails_is_not_kept(space: Space) -> None:
    def pieces():
        yield b"abc"
        raise StorageError("gone")

    cache = FileCache(space)
    with pytest.raises(StorageError):
        cache.add(b"i" * 32, 6, pieces())
    assert cache.open(b"i" * 32, 6) is None
    assert [path for path in Path(space.root).rglob("*") if path.is_file()] == []


def test_the_limit_holds_and_the_oldest_goes_first(tmp_path: Path) -> None:
    space = Space(str(tmp_path / "cache"), 4 * MIB)
    cache = FileCache(space)
    rng = random.Random(2)
    for number in range(32):
        identity = bytes([number]) * 32
        assert cache.add(identity, MIB // 2, [rng.randbytes(MIB // 2)])
        os.utime(cache.path(identity), (1000 + number,) * 2)
        assert space.usage() <= 4 * MIB + MIB // 2
    held = [number for number in range(32) if os.path.exists(cache.path(bytes([number]) * 32))]
    assert held == list(range(held[0], 32))
    assert len(held) >= 6


def test_what_is_used_stays(tmp_path: Path) -> None:
    space = Space(str(tmp_path / "cache"), MIB)
    cache = FileCache(space)
    for number in range(4):
        cache.add(bytes([number]) * 32, MIB // 4, [b"x" * (MIB // 4)])
        os.utime(cache.path(bytes([number]) * 32), (1000 + number,) * 2)
    descriptor = cache.open(bytes(32), MIB // 4)
    assert descriptor is not None
    os.close(descriptor)
    assert os.stat(cache.path(bytes(32))).st_mtime > 1000 + STALE
    cache.add(b"n" * 32, MIB // 4, [b"x" * (MIB // 4)])
    space.shrink()
    assert os.path.exists(cache.path(bytes(32)))
    assert not os.path.exists(cache.path(bytes([1]) * 32))


def test_leftovers_of_crashed_writers_are_removed(space: Space) -> None:
    os.makedirs(f"{space.root}/files")
    for name, age in (("old", 10**6), ("young", 0)):
        path = Path(space.root, "files", f".tmp-{name}")
        path.write_bytes(b"x")
        os.utime(path, (os.stat(path).st_mtime - age,) * 2)
    space.usage()
    assert [path.name for path in Path(space.root, "files").iterdir()] == [".tmp-young"]


FILLER = """
import os, sys
from casstore.cache.files import FileCache
from casstore.cache.space import Space
space = Space(sys.argv[1], 4 << 20)
cache = FileCache(space)
for number in range(60):
    cache.add(os.urandom(32), 1 << 18, [os.urandom(1 << 18)])
"""


def test_processes_share_the_limit(tmp_path: Path) -> None:
    root = str(tmp_path / "cache")
    processes = [subprocess.Popen([sys.executable, "-c", FILLER, root]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    space = Space(root, 4 * MIB)
    # Each may have written a twentieth, and one file, since somebody looked.
    assert space.usage() <= 4 * MIB + 3 * (4 * MIB // 20 + MIB // 4)


def test_a_cache_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cache"):
        Space(str(tmp_path / "file" / "x"), MIB)


def test_sizes() -> None:
    assert [parse_limit(text) for text in ("0", "10", "2K", "1.5M", "20GiB", "1 tb")] == [
        0,
        10,
        2048,
        3 * MIB // 2,
        20 << 30,
        1 << 40,
    ]
    for text in ("", "x", "-1", "5Q"):
        with pytest.raises(ValueError):
            parse_limit(text)
