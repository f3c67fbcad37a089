"""References: the bytes of pointers, who may rely on them, where they may lead, and how what they lead to is read."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.cache.remote import RemoteCache
from casstore.compression import RAW, REFERENCE
from casstore.errors import AccessError, FormatError, IntegrityError, UsageError
from casstore.format.index import Location, Segment, encode, merge
from casstore.format.pack import HEADER_SIZE, TRAILER_SIZE, PackKind, parse_footer, tail_size, verify_frames
from casstore.format.reference import LEAST, MAX_POINTER, Pointer, encode_pointer, parse_pointer, pointer_problem
from casstore.remote.credentials import StorageCredential
from casstore.repo import layout
from casstore.repo.gc.live import LiveChunks
from casstore.repo.gc.repack import Mover
from casstore.repo.gc.shares import needed_bytes
from casstore.repo.packs import PackBuilder, read_footer
from casstore.repo.references import READ_MAX, References, allowed_prefixes
from casstore.repo.repair.frames import salvage
from casstore.repo.store import Store
from casstore.testing.foreign import MemoryBuckets, MemoryClient
from casstore.transfer.fetch import Fetcher

VECTOR: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "reference-v1.json").read_text())
BUCKET = "s3://lab"
GOOD = Pointer(BUCKET, "data/a.bin", '"etag"', 4096)


class Credentials:
    """Profiles that the user has a credential for."""

    def __init__(self, *profiles: str) -> None:
        self.profiles = profiles

    def find(self, profile: str) -> StorageCredential | None:
        return StorageCredential() if profile in self.profiles else None


# ---- the bytes


def test_the_golden_vector() -> None:
    pointer = Pointer(**VECTOR["pointer"])
    data = bytes.fromhex(VECTOR["pointer bytes"])
    assert encode_pointer(pointer) == data
    assert parse_pointer(data, 5000) == pointer
    form, zero, *lengths, offset = struct.unpack_from("<BBHHHQ", data)
    texts = [pointer.bucket.encode(), pointer.key.encode(), pointer.etag.encode()]
    assert (form, zero, lengths, offset) == (1, 0, [len(text) for text in texts], 1 << 33)
    assert data[16:] == b"".join(texts)


def test_the_golden_pack() -> None:
    pack_id, pack = bytes.fromhex(VECTOR["pack"]["id"]), bytes.fromhex(VECTOR["pack"]["bytes"])
    tail = tail_size(pack[-TRAILER_SIZE:])
    footer = parse_footer(pack_id, pack[:HEADER_SIZE], pack[-tail:], len(pack))
    assert [frame.codec for frame in footer.records] == [REFERENCE, RAW]
    assert footer.records[0].raw == 5000
    assert verify_frames(footer.records, pack) == []
    for bit in range(8 * footer.records[0].offset, 8 * (footer.records[0].offset + footer.records[0].stored)):
        broken = bytearray(pack)
        broken[bit // 8] ^= 1 << bit % 8
        assert verify_frames(footer.records, bytes(broken)) == [footer.records[0].chunk_id]
    builder = PackBuilder(PackKind.DATA)
    for frame in footer.records:
        builder.append(frame.chunk_id, frame.raw, frame.codec, pack[frame.offset : frame.offset + frame.stored])
    assert builder.seal().pack_id == pack_id


BAD_POINTERS = {
    "a local file": GOOD._replace(bucket="file:///etc"),
    "a web address": GOOD._replace(bucket="http://169.254.169.254"),
    "a secure web address": GOOD._replace(bucket="https://example.com/bucket"),
    "no scheme": GOOD._replace(bucket="lab"),
    "no bucket": GOOD._replace(bucket=""),
    "a path in the bucket": GOOD._replace(bucket=f"{BUCKET}/data"),
    "a slash at its end": GOOD._replace(bucket=f"{BUCKET}/"),
    "another spelling": GOOD._replace(bucket="S3://lab"),
    "a user": GOOD._replace(bucket="s3://me:secret@lab"),
    "a query": GOOD._replace(bucket="s3://lab?x=y"),
    "a long bucket": GOOD._replace(bucket="s3://" + "x" * 600),
    "no key": GOOD._replace(key=""),
    "a long key": GOOD._replace(key="x" * 1025),
    "a key that leaves": GOOD._replace(key="data/../../other/secret"),
    "a key with a dot": GOOD._replace(key="./data"),
    "a key with a line": GOOD._replace(key="a\r\nHost: other"),
    "no ETag": GOOD._replace(etag=""),
    "an ETag with a line": GOOD._replace(etag='"a"\r\nX: y'),
    "an ETag with a space": GOOD._replace(etag="a b"),
    "an ETag that is not ASCII": GOOD._replace(etag="ä"),
    "a long ETag": GOOD._replace(etag="x" * 257),
    "an offset beyond all": GOOD._replace(offset=(1 << 62) - 4095),
}


@pytest.mark.parametrize("title", BAD_POINTERS)
def test_what_a_pointer_can_not_say(title: str) -> None:
    with pytest.raises(FormatError):
        parse_pointer(encode_pointer(BAD_POINTERS[title]), LEAST)


def test_damaged_pointers() -> None:
    data = encode_pointer(GOOD)
    assert parse_pointer(data, LEAST) == GOOD
    for wrong in (
        data[:-1],
        data + b"x",
        b"\x02" + data[1:],
        data[:1] + b"\x01" + data[2:],
        data[:16],
        b"",
        b"\xff" * 99,
    ):
        with pytest.raises(FormatError):
            parse_pointer(wrong, LEAST)
    with pytest.raises(FormatError):
        parse_pointer(data, LEAST - 1)
    with pytest.raises(FormatError):
        parse_pointer(data + bytes(MAX_POINTER), LEAST * 2)
    rng = random.Random(1)
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            found = parse_pointer(broken, LEAST)
        except FormatError:
            continue
        assert pointer_problem(*found[:3]) is None


@pytest.mark.parametrize(
    ("kind", "stored", "raw"),
    [(PackKind.META, 100, LEAST), (PackKind.DATA, 100, LEAST - 1), (PackKind.DATA, 3000, 5000)],
)
def test_frames_that_are_no_references(kind: PackKind, stored: int, raw: int) -> None:
    builder = PackBuilder(kind)
    builder.append(bytes(32), raw, REFERENCE, bytes(stored))
    sealed = builder.seal()
    with pytest.raises(FormatError, match="impossible reference"):
        parse_footer(sealed.pack_id, bytes(sealed.parts[0][:HEADER_SIZE]), bytes(sealed.parts[1]), sealed.size)


def test_a_codec_of_a_later_version_is_named() -> None:
    builder = PackBuilder(PackKind.DATA)
    builder.append(bytes(32), 100, 3, bytes(100))
    sealed = builder.seal()
    with pytest.raises(FormatError, match="unknown codec 3") as refused:
        parse_footer(sealed.pack_id, bytes(sealed.parts[0][:HEADER_SIZE]), bytes(sealed.parts[1]), sealed.size)
    assert "newer" in (refused.value.hint or "")
    segment = Segment(encode([(bytes(32), Location(bytes(32), 16, 100, 100, 3))]))
    with pytest.raises(FormatError, match="codec 3") as refused:
        segment.locate(bytes(32))
    assert "newer" in (refused.value.hint or "")


def test_the_index_keeps_every_reference() -> None:
    chunk, pack = hashing.digest(b"chunk"), hashing.digest(b"pack")
    places = [Location(pack, 100 * n, 90, 5000, REFERENCE) for n in range(1, 4)]
    copies = [Location(pack, 1000 * n, 5000, 5000, RAW) for n in (2, 1)]
    one = Segment(encode([(chunk, place) for place in [*places, *copies]]))
    assert sorted(one.places(chunk)) == sorted([*places, copies[0]])
    two = Segment(encode([(chunk, place) for place in places[:2]]))
    assert sorted(Segment(merge([one, two])).places(chunk)) == sorted(one.places(chunk))


# ---- where they lead


@pytest.mark.parametrize(
    ("bucket", "key", "profiles", "allowed", "fine"),
    [
        ("s3://lab", "a/b", [], [], False),
        ("s3://lab", "a/b", ["s3://lab"], [], True),
        ("s3://lab", "a/b", ["s3://other", "gs://lab"], [], False),
        ("s3://lab", "a/b", [], ["s3://lab"], True),
        ("s3://lab", "a/b", [], ["s3://lab/a"], True),
        ("s3://lab", "a/b", [], ["s3://lab/a/b/"], True),
        ("s3://lab", "ab", [], ["s3://lab/a"], False),
        ("s3://lab-2", "a", [], ["s3://lab"], False),
        ("gs://lab", "a", [], ["s3://lab"], False),
        ("azure://account/lab", "a", ["azure://account"], [], True),
        ("azure://account/lab", "a", [], ["azure://account/lab"], True),
        ("tos://evil.example/lab", "a", [], ["tos://evil.example/lab"], False),
        ("tos://tos.example/lab", "a", ["tos://tos.example/lab"], [], True),
        ("swift://evil.example/account/lab", "a", ["s3://lab"], [], False),
    ],
)
def test_only_where_the_user_allows(
    bucket: str, key: str, profiles: list[str], allowed: list[str], *, fine: bool
) -> None:
    opened: list[str] = []

    def opener(url: str, credentials: object) -> Any:
        opened.append(url)
        client = MemoryClient(bucket)
        client.store(key, b"x" * LEAST, '"etag"')
        return client, ""

    references = References(Credentials(*profiles), allowed_prefixes(allowed), opener)
    pointer = Pointer(bucket, key, '"etag"', 0)
    if fine:
        assert references.read(pointer, LEAST) == b"x" * LEAST
        references.confirm(pointer)
        assert opened == [bucket]
    else:
        for ask in (lambda: references.read(pointer, LEAST), lambda: references.confirm(pointer)):
            with pytest.raises(AccessError) as refused:
                ask()
            assert f"{bucket}/{key}" in refused.value.message
            assert "credential" in (refused.value.hint or "")
        assert opened == [], "not even a client is made"
    references.close()


def test_what_can_be_allowed() -> None:
    assert allowed_prefixes(["S3://lab/data/"]) == ("s3://lab/data",)
    for wrong in ("file:///etc", "http://example.com", "lab", "s3://"):
        with pytest.raises(UsageError):
            allowed_prefixes([wrong])


# ---- reading


class World:
    """A store that refers to objects of one bucket."""

    def __init__(self) -> None:
        self.buckets = MemoryBuckets()
        self.lab = self.buckets.bucket(BUCKET)
        self.backend = MemoryBackend()
        self.rng = random.Random(7)
        self.store = self.open()

    def open(self) -> Store:
        references = References(Credentials(BUCKET), (), self.buckets)
        return Store.open(self.backend, create=True, references=references)

    def object(self, key: str, sizes: list[int]) -> list[bytes]:
        chunks = [self.rng.randbytes(size) for size in sizes]
        self.lab.store(key, b"".join(chunks))
        return chunks

    def refer(self, key: str, chunks: list[bytes]) -> list[tuple[bytes, int]]:
        """Adopt an object that is these chunks; their ids and lengths."""
        etag = self.lab.head(key).etag
        self.lab.log.clear()
        at, found = 0, []
        with self.store.writer(lanes=1) as writer:
            lane = writer.lane()
            for chunk in chunks:
                found.append((lane.refer(chunk, Pointer(BUCKET, key, etag, at)), len(chunk)))
                at += len(chunk)
            writer.flush()
        return found

    def keep(self, chunks: list[bytes]) -> int:
        """Store chunks as an upload does; how many were new."""
        with self.store.writer(lanes=1) as writer:
            lane = writer.lane()
            for chunk in chunks:
                lane.add(chunk)
            writer.flush()
            return writer.new_chunks


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.store.close()


def test_neighbours_are_one_read(world: World) -> None:
    chunks = world.object("a", [50_000] * 20)
    refs = world.refer("a", chunks)
    fetcher = Fetcher(world.store)
    fetcher.load(refs)
    assert [bytes(fetcher.take(*ref)) for ref in refs] == chunks
    assert world.lab.log == [("read", "a")]
    world.lab.log.clear()
    assert [bytes(data) for data in world.store.read_chunks(refs)] == chunks
    assert world.lab.log == [("read", "a")]
    fetcher.close()


def test_what_was_followed_is_kept_and_verified_again(world: World, tmp_path: Path) -> None:
    chunks = world.object("a", [50_000, 4096, 1 << 20, 70_000])
    refs = world.refer("a", chunks)

    def read(fill: bool) -> tuple[int, int]:
        store = world.open()
        store.use(RemoteCache.at(str(tmp_path / "cache"), 1 << 30))
        fetcher = Fetcher(store, fill=fill)
        fetcher.load(refs)
        assert [bytes(fetcher.take(*ref)) for ref in refs] == chunks
        fetcher.keep()
        return fetcher.fetched, fetcher.cached

    size = sum(map(len, chunks))
    assert read(fill=False) == (size, 0)
    assert read(fill=True) == (size, 0)
    world.lab.log.clear()
    assert read(fill=False) == (0, size)
    assert world.lab.log == []
    (kept,) = [path for path in (tmp_path / "cache/frames").rglob("*") if path.stat().st_size > size]
    with open(kept, "r+b") as file:
        file.seek(os.lseek(file.fileno(), 0, os.SEEK_DATA) + 5000)
        file.write(b"?" * 5000)
    fetched, cached = read(fill=True)
    assert 0 < fetched < size and fetched + cached == size
    assert read(fill=True) == (0, size)


def test_a_read_is_bounded(world: World) -> None:
    chunks = world.object("a", [1 << 20] * 20)
    refs = world.refer("a", chunks)
    assert [bytes(data) for data in world.store.read_chunks(refs)] == chunks
    assert len(world.lab.log) == -(-(20 << 20) // READ_MAX)


def test_chunks_here_and_there_in_one_order(world: World) -> None:
    here = [world.rng.randbytes(9000) for _ in range(4)]
    there = world.object("a", [5000] * 4)
    world.keep(here)
    refs = world.refer("a", there)
    mixed = [pair for both in zip(here, there, strict=True) for pair in both]
    wanted = [(hashing.digest(chunk), len(chunk)) for chunk in mixed]
    assert [bytes(data) for data in world.store.read_chunks(wanted)] == mixed
    fetcher = Fetcher(world.store)
    fetcher.load(wanted)
    assert [bytes(fetcher.take(*ref)) for ref in wanted] == mixed
    fetcher.load([(refs[0][0], 5001)])
    with pytest.raises(IntegrityError, match="another length"):
        fetcher.take(refs[0][0], 5001)
    fetcher.close()


@pytest.mark.parametrize("what", ["changed", "removed", "shorter"])
def test_an_object_that_is_not_what_it_was(world: World, what: str) -> None:
    chunks = world.object("a", [5000, 6000])
    refs = world.refer("a", chunks)
    etag = world.lab.head("a").etag
    if what == "changed":
        world.lab.store("a", b"x" * 11_000)
    elif what == "shorter":
        world.lab.store("a", chunks[0], etag)
    else:
        world.lab.delete(["a"])
    word = "removed" if what == "removed" else "changed"
    with pytest.raises(IntegrityError, match=f"s3://lab/a was {word} since it was adopted") as lost:
        list(world.store.read_chunks(refs))
    assert "adopt the data again" in (lost.value.hint or "")
    fetcher = Fetcher(world.store)
    fetcher.load(refs)
    with pytest.raises(IntegrityError, match=f"s3://lab/a was {word} since it was adopted"):
        fetcher.take(*refs[1])
    fetcher.close()


def test_other_bytes_under_the_same_tag(world: World) -> None:
    refs = world.refer("a", world.object("a", [5000]))
    world.lab.store("a", b"x" * 5000, world.lab.head("a").etag)
    with pytest.raises(IntegrityError, match="s3://lab/a was changed"):
        list(world.store.read_chunks(refs))


def test_another_object_with_the_same_chunk_serves(world: World) -> None:
    chunks = world.object("a", [5000, 6000])
    world.lab.store("b", b"".join(chunks))
    refs = world.refer("a", chunks)
    assert world.refer("b", chunks) == refs
    for gone, left in (("a", "b"), ("b", "a")):
        world.lab.delete([gone])
        assert [bytes(data) for data in world.store.read_chunks(refs)] == chunks, left
        world.lab.store(gone, b"".join(chunks))


def test_a_store_without_permission_follows_nothing(world: World) -> None:
    refs = world.refer("a", world.object("a", [5000]))
    with Store.open(world.backend) as store, pytest.raises(AccessError, match="s3://lab/a"):
        list(store.read_chunks(refs))


def test_a_node_is_never_referred_to(world: World) -> None:
    refs = world.refer("a", world.object("a", [5000]))
    with pytest.raises(IntegrityError, match="part of a tree"):
        world.store.read_chunk(refs[0][0])
    assert world.lab.log == []


# ---- who relies on them


def test_an_upload_relies_on_nothing_that_is_only_referred_to(world: World) -> None:
    chunks = world.object("a", [5000, 6000])
    refs = world.refer("a", chunks)
    with world.store.writer(lanes=1) as writer:
        assert not writer.known(refs[0][0])
        assert writer.present(refs[0][0])
    assert world.keep(chunks) == 2
    assert world.keep(chunks) == 0
    world.lab.delete(["a"])
    assert [bytes(data) for data in world.store.read_chunks(refs)] == chunks, "what is stored is preferred"
    assert world.store.locate(refs[0][0]).codec != REFERENCE


def test_what_is_stored_is_not_referred_to(world: World) -> None:
    chunks = world.object("a", [5000, 6000])
    world.keep(chunks[:1])
    refs = world.refer("a", chunks)
    assert [world.store.locate(chunk_id).codec == REFERENCE for chunk_id, _ in refs] == [False, True]


def test_an_object_is_referred_to_once_for_each_of_its_chunks(world: World) -> None:
    (chunk,) = world.object("a", [5000])
    world.lab.store("a", chunk * 3)
    refs = world.refer("a", [chunk] * 3)
    assert len(list(world.store.index.places(refs[0][0]))) == 1


def test_tiny_chunks_are_not_referred_to(world: World) -> None:
    with world.store.writer(lanes=1) as writer, pytest.raises(ValueError, match="4096"):
        writer.lane().refer(b"tiny", GOOD)


def test_interrupted_work_is_taken_up_without_being_relied_on(world: World) -> None:
    chunks = world.object("a", [5000])
    refs = world.refer("a", chunks)
    places = [(refs[0][0], world.store.locate(refs[0][0]))]
    for info in list(world.backend.list(layout.INDEX)):
        world.backend.delete([info.key])
    world.store = world.open()
    with world.store.writer(lanes=1) as writer:
        writer.adopt(places)
        assert not writer.known(refs[0][0])
        assert writer.present(refs[0][0])
        writer.lane().add(chunks[0])
        writer.flush()
        assert writer.new_chunks == 1


# ---- collecting and repairing


def _live(refs: list[tuple[bytes, int]]) -> LiveChunks:
    live = LiveChunks()
    for chunk_id, _ in refs:
        live.add(chunk_id)
    return live


def test_a_collection_keeps_all_references_until_the_chunk_is_stored(world: World) -> None:
    chunks = world.object("a", [5000])
    world.lab.store("b", chunks[0])
    refs = world.refer("a", chunks)
    first = set(world.store.index.pack_ids())
    world.refer("b", chunks)
    packs = set(world.store.index.pack_ids())
    assert needed_bytes(world.store.index.segments(), _live(refs), packs).keys() == packs
    assert needed_bytes(world.store.index.segments(), _live([]), packs) == {}
    world.keep(chunks)
    stored = world.store.locate(refs[0][0]).pack_id
    assert stored not in packs
    now = set(world.store.index.pack_ids())
    assert needed_bytes(world.store.index.segments(), _live(refs), now).keys() == {stored}
    assert needed_bytes(world.store.index.segments(), _live(refs), first).keys() == first


def test_references_are_moved_as_they_are(world: World) -> None:
    chunks = world.object("a", [5000, 6000])
    world.lab.store("b", b"".join(chunks))
    refs = world.refer("a", chunks)
    world.refer("b", chunks)
    old = sorted(world.store.index.pack_ids())
    mover = Mover(world.store, old)
    for pack_id in old:
        footer = read_footer(world.backend, pack_id)
        mover.move(pack_id, footer.kind, footer.records)
    mover.finish()
    world.backend.delete([layout.pack_key(pack_id) for pack_id in old])
    world.store.index.tidy(old)
    assert world.lab.log == [], "nothing is read of what they lead to"
    assert len(list(world.store.index.places(refs[0][0]))) == 2
    world.lab.delete(["a"])
    store = world.open()
    assert [bytes(data) for data in store.read_chunks(refs)] == chunks


def test_readers_find_references_that_were_moved(world: World) -> None:
    chunks = world.object("a", [5000, 6000])
    refs = world.refer("a", chunks)
    (old,) = world.store.index.pack_ids()
    with_fetcher, with_store = world.open(), world.open()
    fetcher = Fetcher(with_fetcher)
    with_store.index.load()
    mover = Mover(world.store, [old])
    footer = read_footer(world.backend, old)
    mover.move(old, footer.kind, footer.records)
    mover._builders[PackKind.DATA].salt()  # another pack than the old one
    mover.finish()
    world.backend.delete([layout.pack_key(old)])
    world.store.index.tidy([old])
    fetcher.load(refs)
    assert [bytes(fetcher.take(*ref)) for ref in refs] == chunks
    assert [bytes(data) for data in with_store.read_chunks(refs)] == chunks
    fetcher.close()


def test_a_reader_falls_back_on_a_reference_when_the_chunk_is_collected(world: World) -> None:
    chunks = world.object("a", [5000])
    refs = world.refer("a", chunks)
    world.keep(chunks)
    store = world.open()
    store.index.load()
    stored = store.locate(refs[0][0]).pack_id
    world.backend.delete([layout.pack_key(stored)])
    fetcher = Fetcher(store)
    fetcher.load(refs)
    assert bytes(fetcher.take(*refs[0])) == chunks[0]
    assert [bytes(data) for data in store.read_chunks(refs)] == chunks
    fetcher.close()


def test_the_whole_references_of_a_damaged_pack_are_salvaged(world: World) -> None:
    chunks = world.object("a", [5000, 6000, 7000])
    world.refer("a", chunks)
    (pack_id,) = world.store.index.pack_ids()
    key = layout.pack_key(pack_id)
    data = bytearray(world.backend.get(key).data)
    data[HEADER_SIZE] ^= 2  # the form of the first pointer
    world.backend.put(key, [bytes(data)])
    builder, known = salvage(world.backend, pack_id, world.store.index.segments())
    assert (len(builder), known) == (2, 3)
    data[-20] ^= 1  # and the table of contents
    world.backend.put(key, [bytes(data)])
    builder, known = salvage(world.backend, pack_id, world.store.index.segments())
    assert len(builder) == 2
