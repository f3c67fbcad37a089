"""What every client of an object storage service must do: a test class to inherit from.

Decided here and only here: the promises of ``casstore.remote.base.ObjectClient``, as tests. A module of tests derives a
class from ``ClientContract`` whose fixture ``client`` gives an empty bucket, and inherits every test. Services differ:
what one can't do is said by the attributes at the head of the class.
"""

from __future__ import annotations

import concurrent.futures
import io
import time
from collections.abc import Sequence
from typing import ClassVar

import pytest

from casstore.errors import FormatError, IntegrityError, NotFoundError, PreconditionError
from casstore.model import Buffer
from casstore.remote.base import Absent, Condition, Matches, ObjectClient, RemoteInfo

__all__ = ["ClientContract"]

# In the order of their UTF-8 bytes.
_KEYS = [
    " leading space",
    "#fragment?query=1&x=2",
    "%41 is no A",
    "+plus+ and space",
    ".hidden",
    "a%2Fb",
    "a/.b/..c",
    "a//double//slash",
    "a/b",
    "a:b;c,d=e@f!g$h'i(j)k*",
    "back\\slash",
    'quote"<>&[]{}|^`~',
    "x" * 700,
    "ä/ö/ü",
    "日本語/キー",
    "\U0001f600/emoji",
]


class _BrokenStream(io.RawIOBase):
    """Gives some bytes, then fails: a file on a disk that dies."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            raise ZeroDivisionError
        got = min(self._left, size if size >= 0 else self._left, 1 << 20)
        self._left -= got
        return bytes(got)


class _SlowStream(io.RawIOBase):
    """Gives less than is asked for, as a pipe does."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, 300_000) if size >= 0 else 300_000)


class ClientContract:
    """The tests."""

    KEYS: ClassVar[Sequence[str]] = _KEYS
    """Keys that the service takes, in order."""
    MANY = 1100
    """More keys than one page of a listing has."""
    LARGE = 70 << 20
    """Bytes of a ``put`` that goes in parts."""
    STREAM = 40 << 20
    """Bytes of a stream that goes in parts."""
    SWAPS_LARGE = True
    """The server looks at the tag when it completes an object of many parts."""
    THREADS = 16

    @pytest.fixture
    def client(self) -> ObjectClient:
        """A client of an empty bucket; to be overridden."""
        raise NotImplementedError

    def unfinished(self, client: ObjectClient) -> int:
        """How many uploads the service still has open; to be overridden where that can be asked."""
        return 0

    # --- objects

    def test_put_and_read(self, client: ObjectClient) -> None:
        tag = client.put("a/b", [b"hello ", bytearray(b"wor"), b"", memoryview(b"ld")])
        found = client.read("a/b")
        assert (found.data, found.etag) == (b"hello world", tag)
        assert isinstance(found.data, bytes)
        assert client.head("a/b").etag == tag
        assert tag

    @pytest.mark.parametrize("data", [[], [b""], [b"", bytearray(), memoryview(b"")]], ids=["none", "one", "many"])
    def test_empty_object(self, client: ObjectClient, data: list[Buffer]) -> None:
        tag = client.put("empty", data)
        assert client.read("empty").data == b""
        assert client.read("empty").etag == tag
        assert client.read("empty", offset=0, length=0).data == b""
        assert client.head("empty").size == 0
        with pytest.raises(IntegrityError):
            client.read("empty", offset=0, length=1)
        with pytest.raises(IntegrityError):
            client.read("empty", offset=-1)

    def test_head_says_what_a_listing_says(self, client: ObjectClient) -> None:
        before = time.time()
        client.put("a/b", [b"123"])
        info = client.head("a/b")
        assert (info.key, info.size) == ("a/b", 3)
        assert before - 120 < info.mtime < time.time() + 120
        (listed,) = client.list("a/")
        assert (listed.key, listed.size, listed.etag) == (info.key, info.size, info.etag)
        assert abs(listed.mtime - info.mtime) < 2

    def test_replaced_object(self, client: ObjectClient) -> None:
        first = client.put("a", [b"a longer first state"])
        second = client.put("a", [b"second"])
        assert first != second
        assert client.read("a").data == b"second"
        assert client.read("a", offset=0, length=6, if_match=second).data == b"second"
        with pytest.raises(PreconditionError):
            client.read("a", offset=0, length=6, if_match=first)
        with pytest.raises(PreconditionError):
            client.read("a", if_match=first)

    @pytest.mark.parametrize("number", range(len(_KEYS)))
    def test_any_key(self, client: ObjectClient, number: int) -> None:
        if number >= len(self.KEYS):
            pytest.skip("this service takes fewer of these keys")
        key = self.KEYS[number]
        tag = client.put(key, [b"content"], condition=Absent())
        assert client.read(key).data == b"content"
        assert client.read(key, offset=3, length=2).data == b"te"
        assert client.head(key).key == key
        assert [info.key for info in client.list("")] == [key]
        assert [info.key for info in client.list(key)] == [key]
        client.put(key, [b"other"], condition=Matches(tag))
        client.upload(key, io.BytesIO(b"third"))
        assert client.read(key).data == b"third"
        client.delete([key])
        assert list(client.list("")) == []

    def test_missing(self, client: ObjectClient) -> None:
        client.put("a/b/present", [b"x"])
        for key in ("missing", "a", "a/b", "a/b/", "a/b/presen", "a/b/present/x"):
            for call in (
                lambda key=key: client.read(key),
                lambda key=key: client.read(key, offset=0, length=1),
                lambda key=key: client.read(key, offset=-1, length=1),
                lambda key=key: client.read(key, offset=0, length=0),
                lambda key=key: client.head(key),
            ):
                with pytest.raises(NotFoundError) as caught:
                    call()
                assert "\n" not in caught.value.message
        client.delete(["missing", "a/b"])
        assert [info.key for info in client.list("")] == ["a/b/present"]

    # --- ranges

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, 10, b"0123456789"),
            (0, None, b"0123456789"),
            (0, 0, b""),
            (3, 4, b"3456"),
            (3, None, b"3456789"),
            (9, 1, b"9"),
            (10, 0, b""),
            (10, None, b""),
            (-1, 1, b"9"),
            (-3, None, b"789"),
            (-10, 10, b"0123456789"),
            (-10, None, b"0123456789"),
            (-10, 0, b""),
            (-4, 2, b"67"),
        ],
    )
    def test_range(self, client: ObjectClient, offset: int, length: int | None, expected: bytes) -> None:
        tag = client.put("key", [b"01234", b"56789"])
        found = client.read("key", offset=offset, length=length)
        assert (found.data, found.etag) == (expected, tag)

    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            (0, 11),
            (10, 1),
            (11, 0),
            (11, None),
            (12, 5),
            (-11, 1),
            (-11, 11),
            (-11, None),
            (-1, 2),
            (5, 1 << 50),
            (1 << 62, 1),
            (0, -1),
        ],
    )
    def test_range_that_is_not_there(self, client: ObjectClient, offset: int, length: int | None) -> None:
        client.put("key", [b"0123456789"])
        with pytest.raises(IntegrityError):
            client.read("key", offset=offset, length=length)

    def test_at_most(self, client: ObjectClient) -> None:
        tag = client.put("key", [b"0123456789"])
        client.put("empty", [])
        for limit in (10, 11, 1 << 40):
            found = client.read("key", limit=limit, if_match=tag)
            assert (found.data, found.etag) == (b"0123456789", tag)
        for limit in (9, 1, 0):
            with pytest.raises(FormatError, match=f"10 bytes; the limit is {limit}"):
                client.read("key", limit=limit)
        assert client.read("empty", limit=0).data == b""
        assert client.read("key", offset=7, limit=3).data == b"789"
        assert client.read("key", offset=-3, limit=3).data == b"789"
        assert client.read("key", offset=1, length=2, limit=2).data == b"12"
        for offset, length in ((6, None), (-4, None), (1, 4)):
            with pytest.raises(FormatError):
                client.read("key", offset=offset, length=length, limit=3)
        with pytest.raises(NotFoundError):
            client.read("missing", limit=1)

    # --- conditions

    def test_put_where_no_object_is(self, client: ObjectClient) -> None:
        tag = client.put("a", [b"first"], condition=Absent())
        with pytest.raises(PreconditionError):
            client.put("a", [b"second"], condition=Absent())
        assert client.read("a").data == b"first"
        assert client.read("a").etag == tag
        client.delete(["a"])
        client.put("a", [b"third"], condition=Absent())
        assert client.read("a").data == b"third"

    def test_compare_and_swap(self, client: ObjectClient) -> None:
        tag = client.put("a", [b"0"])
        new = client.put("a", [b"1"], condition=Matches(tag))
        with pytest.raises(PreconditionError):
            client.put("a", [b"2"], condition=Matches(tag))
        assert client.read("a").data == b"1"
        client.put("a", [b"3"], condition=Matches(new))
        with pytest.raises(PreconditionError):
            client.put("missing", [b"4"], condition=Matches(new))
        assert [info.key for info in client.list("")] == ["a"]

    def test_the_tag_of_a_head_and_of_a_listing_can_be_swapped(self, client: ObjectClient) -> None:
        client.put("a", [b"0"])
        client.put("a", [b"1"], condition=Matches(client.head("a").etag))
        (info,) = client.list("")
        client.put("a", [b"2"], condition=Matches(info.etag))
        assert client.read("a").data == b"2"

    # --- large objects

    def test_large_put(self, client: ObjectClient) -> None:
        block = bytes(range(256)) * 4096
        data: list[Buffer] = [b"start", *[memoryview(block)] * (self.LARGE // len(block)), b"end"]
        size = sum(map(len, data))
        tag = client.put("large", data, condition=Absent())
        info = client.head("large")
        assert (info.size, info.etag) == (size, tag)
        assert client.read("large", offset=0, length=9).data == b"start\0\1\2\3"
        assert client.read("large", offset=-4, length=4).data == b"\xffend"
        middle = self.LARGE // 2 // len(block) * len(block)
        assert client.read("large", offset=5 + middle, length=1 << 20, if_match=tag).data == block
        for condition in (Absent(), Matches('"other"')) if self.SWAPS_LARGE else (Absent(),):
            with pytest.raises(PreconditionError):
                client.put("large", data, condition=condition)
        assert client.head("large").etag == tag
        assert self.unfinished(client) == 0
        client.put("large", [*data, b"x"], condition=Matches(tag))
        assert client.head("large").size == size + 1

    def test_large_put_over_anything(self, client: ObjectClient) -> None:
        block = bytes(range(256)) * 4096
        data: list[Buffer] = [b"start", *[memoryview(block)] * (self.LARGE // len(block)), b"end"]
        client.put("large", [b"before"])
        tag = client.put("large", data)
        info = client.head("large")
        assert (info.size, info.etag) == (sum(map(len, data)), tag)
        middle = self.LARGE // 2 // len(block) * len(block)
        assert client.read("large", offset=5 + middle, length=1 << 20, if_match=tag).data == block
        assert client.read("large", offset=-4, length=4).data == b"\xffend"
        assert self.unfinished(client) == 0

    @pytest.mark.parametrize("known", [True, False], ids=["size", "no-size"])
    @pytest.mark.parametrize("size", [0, 1, 1_000_000, None], ids=["0", "1", "1000000", "parts"])
    def test_upload(self, client: ObjectClient, size: int | None, known: bool) -> None:
        data = (bytes(range(251)) * (self.STREAM // 251 + 1))[: self.STREAM if size is None else size]
        told: list[int] = []
        tag = client.upload("stream", io.BytesIO(data), size=len(data) if known else None, advance=told.append)
        info = client.head("stream")
        assert (info.size, info.etag) == (len(data), tag)
        assert sum(told) == len(data)
        assert client.read("stream").data == data
        assert self.unfinished(client) == 0

    def test_upload_of_a_pipe(self, client: ObjectClient) -> None:
        data = bytes(range(253)) * 100_000
        client.upload("stream", _SlowStream(data))  # type: ignore[arg-type]  # what is asked of it is there
        assert client.read("stream").data == data

    @pytest.mark.parametrize("size", [0, 3 << 20, None], ids=["0", "3MiB", "parts"])
    def test_source_that_fails_leaves_nothing(self, client: ObjectClient, size: int | None) -> None:
        client.put("other", [b"x"])
        source = _BrokenStream(self.STREAM if size is None else size)
        with pytest.raises(ZeroDivisionError):
            client.upload("stream", source)  # type: ignore[arg-type]
        assert [info.key for info in client.list("")] == ["other"]
        assert self.unfinished(client) == 0

    def test_source_that_fails_leaves_what_was_there(self, client: ObjectClient) -> None:
        client.put("stream", [b"before"])
        with pytest.raises(ZeroDivisionError):
            client.upload("stream", _BrokenStream(self.STREAM))  # type: ignore[arg-type]
        assert client.read("stream").data == b"before"

    # --- listing

    def test_list(self, client: ObjectClient) -> None:
        for key in reversed(self.KEYS):
            client.put(key, [key.encode()])
        infos = list(client.list(""))
        assert [info.key for info in infos] == list(self.KEYS)
        assert [info.size for info in infos] == [len(key.encode()) for key in self.KEYS]
        assert [info.key for info in client.list("a/")] == [key for key in self.KEYS if key.startswith("a/")]
        assert [info.key for info in client.list("a")] == [key for key in self.KEYS if key.startswith("a")]
        assert list(client.list("nothing/")) == []
        for after in self.KEYS:
            assert [info.key for info in client.list("", after=after)] == [key for key in self.KEYS if key > after]

    def test_list_folders(self, client: ObjectClient) -> None:
        for key in ("a", "a-b", "a/b", "a/c/d", "a/c/e", "a/d", "a0", "b/x"):
            client.put(key, [b"12"])

        def listed(prefix: str, after: str = "") -> list[str]:
            return [info.key for info in client.list(prefix, after=after, recursive=False)]

        assert listed("") == ["a", "a-b", "a/", "a0", "b/"]
        assert listed("a/") == ["a/b", "a/c/", "a/d"]
        assert listed("a/c") == ["a/c/"]
        assert listed("", after="a-b") == ["a/", "a0", "b/"]
        assert listed("", after="a/") == ["a0", "b/"]
        assert listed("a/", after="a/c/") == ["a/d"]
        (folder,) = [info for info in client.list("", recursive=False) if info.key == "b/"]
        assert folder == RemoteInfo("b/", 0, folder.mtime, "")

    def test_many(self, client: ObjectClient) -> None:
        keys = [f"many/{number % 7}/{number:05}" for number in range(self.MANY)]
        with concurrent.futures.ThreadPoolExecutor(self.THREADS) as pool:
            list(pool.map(lambda key: client.put(key, [b"x"]), keys))
        keys.sort()
        assert [info.key for info in client.list("many/")] == keys
        assert [info.key for info in client.list("many/", after=keys[20])] == keys[21:]
        assert [info.key for info in client.list("many/", recursive=False)] == [f"many/{n}/" for n in range(7)]
        client.delete(iter([*keys[5:], "many/not there", keys[6]]))
        assert [info.key for info in client.list("")] == keys[:5]

    # --- many threads

    @pytest.mark.parametrize("swap", [False, True])
    def test_one_winner(self, client: ObjectClient, swap: bool) -> None:
        condition: Condition = Absent()
        for step in range(3):

            def race(number: int, condition: Condition = condition) -> str | None:
                try:
                    return client.put("raced", [b"%d" % number], condition=condition)
                except PreconditionError:
                    return None

            with concurrent.futures.ThreadPoolExecutor(self.THREADS) as pool:
                won = [tag for tag in pool.map(race, range(step * 100, step * 100 + self.THREADS)) if tag]
            assert len(won) == 1
            assert client.head("raced").etag == won[0]
            if swap:
                condition = Matches(won[0])
            else:
                client.delete(["raced"])
