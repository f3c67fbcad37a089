"""What every back end and every wrapper must do: a test class to inherit from.

Decided here and only here: the promises of ``casstore.backend.base.Backend``, as tests. A module of tests
derives a class from ``BackendContract`` whose fixture ``backend`` gives an empty back end, and inherits every
test::

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path): ...

This is the only module of the package that imports pytest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence

import pytest

from casstore.backend.base import Absent, Backend, Buffer, Matches
from casstore.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
    UsageError,
)

__all__ = ["BackendContract"]

# Keys in their order. '-' and '.' sort before '/', digits and letters after it.
_ORDERED = ["a-b", "a-b.c/d", "a.b", "a/0", "a/b-c/x", "a/b.c", "a/b/c", "a/b0", "a0", "a_", "ab/c", "b", "b-/x"]

_ILLEGAL = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "a/../b",
    "a/./b",
    ".a",
    "a/.b",
    "-a",
    "a/-b",
    "a b",
    "a\n",
    "a\0",
    "ä",
    "a\\b",
    "a:b",
    "a%2e",
    "x" * 513,
]


class _BrokenSequence(Sequence[Buffer]):
    """Gives some buffers, then fails: a writer whose source fails half-way."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int | slice) -> Buffer:  # type: ignore[override]  # only single items are asked for
        if index == 2:
            raise ZeroDivisionError
        return b"some"


class BackendContract:
    """The tests."""

    THREADS = 32
    """They race in the tests of conditions."""
    MANY = 1100
    """Objects in a long listing: more than a page of any service has."""
    OPEN = 150
    """Objects that are read in turn: more than a back end keeps open."""

    @pytest.fixture
    def backend(self) -> Backend:
        """An empty back end; to be overridden."""
        raise NotImplementedError

    # --- objects

    def test_put_get(self, backend: Backend) -> None:
        tag = backend.put("packs/ab/abc", [b"hello ", bytearray(b"wor"), memoryview(b"ld")])
        found = backend.get("packs/ab/abc")
        assert found.data == b"hello world"
        assert isinstance(found.data, bytes)
        assert found.etag == tag
        assert backend.stat("packs/ab/abc").size == 11

    @pytest.mark.parametrize("parts", [[], [b""], [b"", memoryview(b""), bytearray()]], ids=["none", "one", "many"])
    def test_empty_object(self, backend: Backend, parts: list[Buffer]) -> None:
        tag = backend.put("a/empty", parts)
        assert backend.get("a/empty").data == b""
        assert backend.get("a/empty").etag == tag
        assert backend.read("a/empty", 0, 0) == b""
        assert backend.stat("a/empty").size == 0
        assert [info.key for info in backend.list("a/")] == ["a/empty"]

    def test_get_of_at_most(self, backend: Backend) -> None:
        tag = backend.put("a/b", [b"0123456789"])
        backend.put("a/empty", [])
        for limit in (10, 11, 1 << 40, None):
            found = backend.get("a/b", limit=limit)
            assert (found.data, found.etag) == (b"0123456789", tag)
        for limit in (9, 1, 0):
            with pytest.raises(FormatError, match=f"10 bytes; the limit is {limit}"):
                backend.get("a/b", limit=limit)
        assert backend.get("a/empty", limit=0).data == b""
        with pytest.raises(NotFoundError):
            backend.get("a/missing", limit=1)
        assert backend.get("a/b").data == b"0123456789"

    def test_replace(self, backend: Backend) -> None:
        first = backend.put("a", [b"a longer first state"])
        second = backend.put("a", [b"second"])
        assert first != second
        assert backend.get("a").data == b"second"
        assert backend.get("a").etag == second
        assert backend.read("a", 0, 6) == b"second"
        assert backend.stat("a").size == 6

    @pytest.mark.parametrize("key", ["packs/ab/x", "head"])
    def test_replaced_object_is_not_read_from_a_cache(self, backend: Backend, key: str) -> None:
        backend.put(key, [b"first"])
        assert backend.read(key, 0, 5) == b"first"
        backend.put(key, [b"other"])
        assert backend.read(key, 0, 5) == b"other"
        backend.delete([key])
        with pytest.raises(NotFoundError):
            backend.read(key, 0, 5)

    def test_buffers_may_be_reused_after_put(self, backend: Backend) -> None:
        buffer = bytearray(b"original")
        backend.put("a", [memoryview(buffer)])
        buffer[:] = b"changed!"
        assert backend.get("a").data == b"original"

    def test_large_put_of_many_buffers(self, backend: Backend) -> None:
        block = bytes(range(256)) * 32
        parts: list[Buffer] = []
        for number in range(2500):
            parts.append(number.to_bytes(4, "little"))
            parts.append(memoryview(block)[: number * 3])
        parts.insert(1000, b"")
        whole = b"".join(parts)
        assert len(whole) > 8 * 1024 * 1024
        backend.put("packs/00/large", parts)
        assert backend.stat("packs/00/large").size == len(whole)
        assert backend.get("packs/00/large").data == whole
        assert backend.read("packs/00/large", 5_000_000, 100_000) == whole[5_000_000:5_100_000]

    def test_very_large_object_keeps_its_tag(self, backend: Backend) -> None:
        parts: list[Buffer] = [bytes(1024 * 1024)] * 20
        tag = backend.put("packs/00/huge", parts)
        assert backend.get("packs/00/huge").etag == tag
        other = backend.put("packs/00/huge", [*parts, b"x"], condition=Matches(tag))
        assert other != tag
        with pytest.raises(PreconditionError):
            backend.put("packs/00/huge", parts, condition=Matches(tag))

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, 10, b"0123456789"),
            (0, 0, b""),
            (10, 0, b""),
            (3, 4, b"3456"),
            (9, 1, b"9"),
            (-1, 1, b"9"),
            (-10, 10, b"0123456789"),
            (-10, 0, b""),
            (-4, 2, b"67"),
        ],
    )
    @pytest.mark.parametrize("key", ["packs/ab/x", "head"])
    def test_read_range(self, backend: Backend, key: str, offset: int, length: int, expected: bytes) -> None:
        backend.put(key, [b"01234", b"56789"])
        assert backend.read(key, offset, length) == expected

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, 11), (10, 1), (11, 0), (-11, 1), (-11, 11), (-1, 2), (5, 1 << 50), (1 << 62, 1), (0, -1)],
    )
    @pytest.mark.parametrize("key", ["packs/ab/x", "head"])
    def test_read_too_short(self, backend: Backend, key: str, offset: int, length: int) -> None:
        backend.put(key, [b"0123456789"])
        with pytest.raises(IntegrityError):
            backend.read(key, offset, length)

    def test_stat(self, backend: Backend) -> None:
        before = time.time()
        backend.put("a/b", [b"123"])
        info = backend.stat("a/b")
        assert (info.key, info.size) == ("a/b", 3)
        # File systems and object stores round: some to whole seconds, and clocks differ.
        assert before - 120 < info.mtime < time.time() + 120
        (listed,) = backend.list("a/")
        assert (listed.key, listed.size) == (info.key, info.size)
        assert abs(listed.mtime - info.mtime) < 1.5

    def test_the_state_of_an_object_is_another_one_when_it_was_replaced(self, backend: Backend) -> None:
        states = set()
        for data in (b"one", b"two"):
            backend.put("a/b", [data])
            (listed,) = backend.list("a/")
            assert listed.state == backend.stat("a/b").state
            states.add(listed.state)
        assert states == {""} or len(states - {""}) == 2

    @pytest.mark.parametrize("key", ["missing", "a/missing", "a/b/missing", "file/below", "a"])
    def test_missing(self, backend: Backend, key: str) -> None:
        backend.put("a/b/present", [b"x"])
        backend.put("file", [b"x"])
        calls: list[Callable[[], object]] = [
            lambda: backend.get(key),
            lambda: backend.read(key, 0, 0),
            lambda: backend.stat(key),
        ]
        for call in calls:
            with pytest.raises(NotFoundError) as caught:
                call()
            assert "\n" not in caught.value.message
        assert backend.local_path(key) is None
        backend.delete([key])
        assert [info.key for info in backend.list("")] == ["a/b/present", "file"]

    def test_delete(self, backend: Backend) -> None:
        for key in ("a/b/1", "a/b/2", "a/3", "c"):
            backend.put(key, [b"x"])
        backend.delete(iter(["a/b/1", "nothing/there", "a/b/1", "c"]))
        assert [info.key for info in backend.list("")] == ["a/3", "a/b/2"]
        with pytest.raises(NotFoundError):
            backend.get("c")
        backend.delete([])
        backend.delete(["a/b/2"])
        backend.put("a/b", [b"a key where a folder was"])
        assert backend.get("a/b").data == b"a key where a folder was"
        backend.put("a/b2/x", [b"again"], condition=Absent())

    def test_deleted_key_can_be_created_again(self, backend: Backend) -> None:
        tag = backend.put("a/b", [b"x"], condition=Absent())
        backend.delete(["a/b"])
        with pytest.raises(PreconditionError):
            backend.put("a/b", [b"y"], condition=Matches(tag))
        backend.put("a/b", [b"z"], condition=Absent())
        assert backend.get("a/b").data == b"z"

    @pytest.mark.parametrize("key", _ILLEGAL)
    def test_illegal_key(self, backend: Backend, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: backend.get(key),
            lambda: backend.read(key, 0, 1),
            lambda: backend.put(key, [b"x"]),
            lambda: backend.put(key, [b"x"], condition=Absent()),
            lambda: backend.stat(key),
            lambda: backend.delete([key]),
            lambda: backend.local_path(key),
        ]
        for call in calls:
            with pytest.raises(UsageError):
                call()
        assert list(backend.list("")) == []

    @pytest.mark.parametrize("key", ["x" * 200, "A-Z_0.9", "a" + "/a" * 255])
    def test_legal_key(self, backend: Backend, key: str) -> None:
        backend.put(key, [b"x"], condition=Absent())
        assert backend.get(key).data == b"x"
        assert [info.key for info in backend.list("")] == [key]

    def test_local_path(self, backend: Backend) -> None:
        backend.put("packs/ab/x", [b"content"])
        path = backend.local_path("packs/ab/x")
        assert (path is not None) == backend.capabilities.local
        if path is not None:
            with open(path, "rb") as file:
                assert file.read() == b"content"

    # --- listing

    def test_list_order(self, backend: Backend) -> None:
        assert sorted(_ORDERED) == _ORDERED
        for key in reversed(_ORDERED):
            backend.put(key, [b"x"])
        assert [info.key for info in backend.list("")] == _ORDERED
        assert [info.key for info in backend.list("a/")] == [key for key in _ORDERED if key.startswith("a/")]
        assert [info.key for info in backend.list("a/b/")] == ["a/b/c"]
        assert list(backend.list("nothing/")) == []
        assert list(backend.list("b/")) == []

    def test_list_after(self, backend: Backend) -> None:
        for key in _ORDERED:
            backend.put(key, [b"x"])
        for after in [*_ORDERED, "", "a", "a/", "a/b", "a/b/", "a/b/zzz", "a/z", "a-", "zzz"]:
            expected = [key for key in _ORDERED if key > after]
            assert [info.key for info in backend.list("", after=after)] == expected, after
            expected = [key for key in expected if key.startswith("a/")]
            assert [info.key for info in backend.list("a/", after=after)] == expected, after

    def test_list_many(self, backend: Backend) -> None:
        keys = sorted(f"index/{number % 7}/{number:x}" for number in range(self.MANY))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: backend.put(key, [key.encode()]), keys))
        assert [info.key for info in backend.list("")] == keys
        assert [info.key for info in backend.list("index/3/")] == [k for k in keys if k.startswith("index/3/")]
        assert [info.key for info in backend.list("index/", after=keys[-51])] == keys[-50:]
        assert {info.key: info.size for info in backend.list("")} == {key: len(key) for key in keys}
        # A listing may be left anywhere, also in the middle of a page and right before the next one.
        for seen in (1, 500, 999, 1000, 1001):
            listing = iter(backend.list(""))
            assert [info.key for info in itertools.islice(listing, seen)] == keys[:seen]
            if isinstance(listing, Generator):
                listing.close()
                assert next(listing, None) is None
        backend.delete(keys[5:])
        assert [info.key for info in backend.list("")] == keys[:5]

    @pytest.mark.parametrize("prefix", ["a", "/", "/a/", "a//", "../", "a/../", "./", ".tmp/", "-/"])
    def test_illegal_prefix(self, backend: Backend, prefix: str) -> None:
        with pytest.raises(UsageError):
            list(backend.list(prefix))

    def test_list_can_be_left_early(self, backend: Backend) -> None:
        for number in range(20):
            backend.put(f"a/{number:02}", [b"x"])
        assert next(iter(backend.list("a/", after="a/10"))).key == "a/11"
        assert [info.key for info in itertools.islice(backend.list(""), 2)] == ["a/00", "a/01"]

    def test_list_while_it_changes(self, backend: Backend) -> None:
        keys = [f"{number % 3}/{number:03}" for number in range(60)]
        for key in keys:
            backend.put(key, [b"x"])
        seen = set()
        for number, info in enumerate(backend.list("")):
            seen.add(info.key)
            if number == 5:
                backend.delete(["2/059", "0/003"])
                backend.put("1/new", [b"x"])
        # What was there all the time is seen; what came or went meanwhile may or may not be.
        assert set(keys) - {"2/059", "0/003"} <= seen <= {*keys, "1/new"}

    # --- failing puts

    @pytest.mark.parametrize("broken", [_BrokenSequence(), [b"x", "not bytes"], [b"x", None], [[b"x"]]])
    def test_failing_put_leaves_nothing(self, backend: Backend, broken: Sequence[Buffer]) -> None:
        for condition in (None, Absent()):
            with pytest.raises((ZeroDivisionError, TypeError)):
                backend.put("a/b", broken, condition=condition)
            assert list(backend.list("")) == []
        tag = backend.put("a/b", [b"kept"])
        for replacing in (None, Absent(), Matches(tag)):
            with pytest.raises((ZeroDivisionError, TypeError, PreconditionError)):
                backend.put("a/b", broken, condition=replacing)
            assert backend.get("a/b").data == b"kept"

    # --- conditions

    def test_absent(self, backend: Backend) -> None:
        tag = backend.put("a/b", [b"first"], condition=Absent())
        with pytest.raises(PreconditionError):
            backend.put("a/b", [b"first"], condition=Absent())
        with pytest.raises(PreconditionError):
            backend.put("a/b", [b"second"], condition=Absent())
        assert backend.get("a/b").data == b"first"
        assert backend.get("a/b").etag == tag

    def test_matches(self, backend: Backend) -> None:
        with pytest.raises(PreconditionError):
            backend.put("a/b", [b"x"], condition=Matches("0" * 64))
        assert list(backend.list("")) == []
        first = backend.put("a/b", [b"first"])
        second = backend.put("a/b", [b"second"], condition=Matches(first))
        assert backend.get("a/b").etag == second
        for stale in (first, "", "nonsense", "0" * 64):
            with pytest.raises(PreconditionError):
                backend.put("a/b", [b"third"], condition=Matches(stale))
        assert backend.get("a/b").data == b"second"

    def test_racing_absent_has_one_winner_per_step(self, backend: Backend) -> None:
        steps = 8
        won: list[list[int]] = [[] for _ in range(steps)]

        def contend(number: int, step: int) -> None:
            try:
                backend.put(f"versions/{step}", [b"by %d" % number], condition=Absent())
            except PreconditionError:
                return
            won[step].append(number)

        self._race(steps, contend)
        assert [len(winners) for winners in won] == [1] * steps
        for step, (winner,) in enumerate(won):
            assert backend.get(f"versions/{step}").data == b"by %d" % winner

    def test_racing_matches_has_one_winner_per_step(self, backend: Backend) -> None:
        steps = 8
        tags = [backend.put("head", [b"start"])]
        won: list[list[tuple[int, str]]] = [[] for _ in range(steps)]

        def contend(number: int, step: int) -> None:
            if step:
                (_, tag) = won[step - 1][0]
            else:
                tag = tags[0]
            try:
                new = backend.put("head", [b"%d by %d" % (step, number)], condition=Matches(tag))
            except PreconditionError:
                return
            won[step].append((number, new))

        self._race(steps, contend)
        assert [len(winners) for winners in won] == [1] * steps
        assert backend.get("head").data == b"%d by %d" % (steps - 1, won[-1][0][0])
        assert backend.get("head").etag == won[-1][0][1]

    def test_no_update_is_lost(self, backend: Backend) -> None:
        backend.put("counter", [b"0"])
        each, threads = 5, 8

        def count(_: int) -> None:
            for _ in range(each):
                while True:
                    found = backend.get("counter")
                    try:
                        # Each write is unlike any other, as records are: a retry tells its own by that.
                        number = b"%d %s" % (int(found.data.split()[0]) + 1, os.urandom(8).hex().encode())
                        backend.put("counter", [number], condition=Matches(found.etag))
                    except PreconditionError:
                        continue
                    break

        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(count, range(threads)))
        assert backend.get("counter").data.split()[0] == b"%d" % (each * threads)

    def _race(self, steps: int, contend: Callable[[int, int], None]) -> None:
        """Let all threads do every step at the same time."""
        barrier = threading.Barrier(self.THREADS)

        def run(number: int) -> None:
            for step in range(steps):
                barrier.wait(timeout=60)
                contend(number, step)
                barrier.wait(timeout=60)

        with concurrent.futures.ThreadPoolExecutor(self.THREADS) as pool:
            list(pool.map(run, range(self.THREADS)))

    # --- readers and writers at once

    @pytest.mark.parametrize("key", ["packs/ab/x", "head"])
    def test_readers_see_whole_states(self, backend: Backend, key: str) -> None:
        size, states = 200_000, 60
        backend.put(key, [bytes([0]) * size])
        done = threading.Event()

        def check() -> int:
            reads = 0
            while not done.is_set() or not reads:
                whole = backend.get(key).data
                assert len(whole) == size
                assert len(set(whole)) == 1
                part = backend.read(key, -size, size)
                assert len(set(part)) == 1
                assert backend.stat(key).size == size
                assert [info.key for info in backend.list("")] == [key]
                reads += 1
            return reads

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(check) for _ in range(3)]
            try:
                for state in range(1, states):
                    backend.put(key, [bytes([state]) * (size // 4)] * 4)
            finally:
                done.set()
            assert all(reader.result() for reader in readers)
        assert backend.read(key, 0, 1) == bytes([states - 1])

    def test_put_and_delete_in_one_folder(self, backend: Backend) -> None:
        """Deletes that leave a folder empty do not get in the way of puts into it."""

        def churn(number: int) -> None:
            for round_ in range(25):
                key = f"a/b/{number}"
                backend.put(key, [b"%d" % round_], condition=Absent())
                assert backend.get(key).data == b"%d" % round_
                backend.delete([key])

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(churn, range(6)))
        assert list(backend.list("")) == []

    def test_reads_of_many_objects_at_once(self, backend: Backend) -> None:
        objects = {f"packs/{n % 16:02x}/{n}": os.urandom(100 + n) for n in range(self.OPEN)}
        for key, data in objects.items():
            backend.put(key, [data])

        def read_all(start: int) -> None:
            keys = list(objects)
            for key in keys[start:] + keys[:start]:
                data = objects[key]
                assert backend.read(key, 10, 50) == data[10:60]
                assert backend.read(key, -20, 20) == data[-20:]

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(read_all, [self.OPEN * n // 4 for n in range(4)]))

    # --- the back end itself

    def test_url(self, backend: Backend) -> None:
        assert "://" in backend.url
        assert backend.capabilities.conditional_put

    def test_closed(self, backend: Backend) -> None:
        backend.put("packs/ab/x", [b"x"])
        assert backend.read("packs/ab/x", 0, 1) == b"x"
        backend.close()
        backend.close()
        calls: list[Callable[[], object]] = [
            lambda: backend.get("packs/ab/x"),
            lambda: backend.read("packs/ab/x", 0, 1),
            lambda: backend.put("b", [b"x"]),
            lambda: backend.stat("packs/ab/x"),
            lambda: list(backend.list("")),
            lambda: backend.delete(["packs/ab/x"]),
        ]
        for call in calls:
            with pytest.raises(StorageError):
                call()

    def test_errors_are_the_store_s_own(self, backend: Backend) -> None:
        """A key below another key: a bucket can hold both, a file system can't. Never another class of
        error.
        """
        backend.put("a", [b"file"])
        possible = True
        with contextlib.suppress(StorageError):
            possible = False
            backend.put("a/b", [b"below"])
            possible = True
        assert backend.get("a").data == b"file"
        if possible:
            assert backend.get("a/b").data == b"below"
        else:
            assert [info.key for info in backend.list("")] == ["a"]
