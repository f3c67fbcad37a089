"""Buckets that somebody made to do harm: every one is refused in words, with little memory, and soon."""

from __future__ import annotations

import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from casstore import hashing
from casstore.backend.base import Object, ObjectInfo, check_limit
from casstore.backend.memory import MemoryBackend
from casstore.compression import RAW, ZSTD
from casstore.errors import CasstoreError
from casstore.format import index, manifest, record
from casstore.format.index import Location
from casstore.format.manifest import CHUNK_REF, NODE_REF, Group, NodeRef, Row, encode_inner, encode_leaf
from casstore.format.pack import PackKind, check_of, encode_record, encode_tail, header
from casstore.model import DatasetType, Entry, Head, Kind, Totals, VersionRecord
from casstore.repo import layout
from casstore.repo.store import Store, StoreConfig
from casstore.repo.tree import ChecksumBuilder
from casstore.repo.verify import verify_store, verify_tree
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

CONFIG = StoreConfig(
    format=1, id="00" * 16, chunker={"algorithm": "fastcdc-2020-nc1", "min": 64, "avg": 256, "max": 1024}
)
NOWHERE = b"\x11" * 32
MISSING = b"\x33" * 32
TIB = 1 << 40


class Vast(MemoryBackend):
    """A bucket with objects that claim a size nobody can read; whoever tries fails the test."""

    def __init__(self) -> None:
        super().__init__()
        self.vast: dict[str, int] = {}

    def _claimed(self, info: ObjectInfo) -> ObjectInfo:
        return ObjectInfo(info.key, self.vast.get(info.key, info.size), info.mtime)

    def stat(self, key: str) -> ObjectInfo:
        return self._claimed(super().stat(key))

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return map(self._claimed, super().list(prefix, after=after))

    def get(self, key: str, *, limit: int | None = None) -> Object:
        check_limit(key, self.vast.get(key, 0), limit)
        assert key not in self.vast, f"{key} was taken into memory whole"
        return super().get(key, limit=limit)

    def read(self, key: str, offset: int, length: int) -> bytes:
        assert length <= 64 << 20, f"{length} bytes of {key} were taken into memory"
        return super().read(key, offset, length)


class Craft:
    """Writes the objects of a store, with nothing that keeps them from being wrong."""

    def __init__(self) -> None:
        self.backend = Vast()
        self.frames: list[tuple[bytes, int, int, bytes]] = []
        self.put(layout.STORE, record.encode("store", CONFIG))

    def put(self, key: str, data: bytes) -> str:
        self.backend.put(key, [data])
        return key

    def chunk(self, data: bytes, *, raw: int | None = None) -> bytes:
        packed = zstandard.ZstdCompressor(level=3).compress(data)
        codec, stored = (ZSTD, packed) if len(packed) < len(data) else (RAW, data)
        self.frames.append((hashing.digest(data), len(data) if raw is None else raw, codec, stored))
        return hashing.digest(data)

    def pack(self) -> list[tuple[bytes, Location]]:
        """Write the chunks so far; returns where they are."""
        body, footer, at = bytearray(header(PackKind.META)), bytearray(), []
        for chunk_id, raw, codec, stored in self.frames:
            at.append((chunk_id, len(body), len(stored), raw, codec))
            footer += encode_record(chunk_id, len(stored), raw, codec, check_of(codec, stored))
            body += stored
        pack_id, tail = encode_tail(PackKind.META, footer)
        self.put(layout.pack_key(pack_id), bytes(body + tail))
        self.frames.clear()
        return [(chunk_id, Location(pack_id, *place)) for chunk_id, *place in at]

    def segment(self, data: bytes) -> str:
        return self.put(layout.index_key(hashing.digest(data)), data)

    def tree(
        self,
        children: list[NodeRef],
        *,
        depth: int = 0,
        totals: tuple[int, int, int, int] | None = None,
        checksum: bytes = NOWHERE,
    ) -> None:
        """Write everything, and a root over these nodes."""
        if self.frames:
            self.segment(index.encode(self.pack()))
        sums = totals or (sum(child.count for child in children), 0, 0, 0)
        self.manifest(manifest.encode_root(checksum, Totals(*sums), depth, children))

    def manifest(self, data: bytes) -> str:
        return self.put(layout.manifest_key(hashing.digest(data)), data)

    def leaf(self, *groups: Group) -> NodeRef:
        data = encode_leaf(groups)
        first = groups[0]
        count = sum(len(group.rows) for group in groups)
        return NodeRef(first.directory, first.rows[0].name, self.chunk(data), len(data), count)

    def inner(self, *children: NodeRef) -> NodeRef:
        data = encode_inner(children)
        first, count = children[0], sum(child.count for child in children)
        return NodeRef(first.directory, first.name, self.chunk(data), len(data), min(count, (1 << 63) - 1))

    def raw_leaf(self, data: bytes, *, count: int = 1, length: int | None = None) -> None:
        """A tree whose only leaf has these bytes."""
        self.tree([NodeRef(b"", b"a", self.chunk(data), len(data) if length is None else length, count)])

    def file(self, size: int, depth: int, refs: bytes) -> None:
        self.tree([self.leaf(Group(b"", [row(b"a", 1, size=size, depth=depth, refs=refs)]))], totals=(1, 0, 0, size))


def row(name: bytes, kind: int = 1, **more: Any) -> Row:
    fields: dict[str, Any] = {
        "mode": 0o644, "mtime_ns": 0, "size": 0, "depth": 0, "refs": b"",
        "target": b"t" if kind == 3 else b"", "link": 0, "flags": 0, "xattrs": None,
    }  # fmt: skip
    return Row(name, kind, **{**fields, **more})


def names(*paths: bytes, kind: int = 1) -> list[Row]:
    return [row(path, kind) for path in paths]


CASES: dict[str, Callable[[Craft], object]] = {}


def case(make: Callable[[Craft], object]) -> Callable[[Craft], object]:
    CASES[make.__name__.replace("_", " ")] = make
    return make


# ---- trees


@case
def inner_nodes_that_share_their_children(craft: Craft) -> None:
    node = craft.leaf(Group(b"", names(b"a")))
    for level in range(8):
        # Each level names the one below twice: 2^8 here, 4096^8 with more of them.
        node = craft.inner(node, NodeRef(b"", b"b%d" % level, node.chunk_id, node.length, node.count))
    craft.tree([node], depth=8)


@case
def inner_nodes_that_share_their_children_and_hide_it(craft: Craft) -> None:
    shared = craft.inner(craft.leaf(Group(b"d", names(b"a"))))
    children = [shared, *(NodeRef(b"d", b"n%04d" % n, shared.chunk_id, shared.length, 1) for n in range(4000))]
    craft.tree([craft.inner(*children)], depth=2)


@case
def leaves_that_overlap(craft: Craft) -> None:
    craft.tree([craft.leaf(Group(b"", names(b"a", b"x"))), craft.leaf(Group(b"", names(b"b")))])


@case
def subtrees_that_overlap(craft: Craft) -> None:
    first = craft.inner(craft.leaf(Group(b"", names(b"a"))), craft.leaf(Group(b"", names(b"x"))))
    craft.tree([first, craft.inner(craft.leaf(Group(b"", names(b"b"))))], depth=1)


@case
def a_leaf_where_an_inner_node_should_be(craft: Craft) -> None:
    craft.tree([craft.leaf(Group(b"", names(b"a")))], depth=3)


@case
def an_inner_node_where_a_leaf_should_be(craft: Craft) -> None:
    craft.tree([craft.inner(craft.leaf(Group(b"", names(b"a"))))])


@case
def one_node_as_both(craft: Craft) -> None:
    leaf = craft.leaf(Group(b"", names(b"a")))
    craft.tree([craft.inner(leaf), NodeRef(b"", b"b", leaf.chunk_id, leaf.length, 1)], depth=1)


@case
def counts_that_lie(craft: Craft) -> None:
    leaf = craft.leaf(Group(b"", names(b"a")))
    craft.tree([NodeRef(b"", b"a", leaf.chunk_id, leaf.length, 1 << 60)])


@case
def counts_beyond_64_bits(craft: Craft) -> None:
    leaf = craft.leaf(Group(b"", names(b"a")))
    craft.tree([NodeRef(b"", b"a", leaf.chunk_id, leaf.length, (1 << 64) - 1)], totals=(0, 0, 0, 0))


@case
def totals_that_lie(craft: Craft) -> None:
    craft.tree([craft.leaf(Group(b"", names(b"a")))], totals=(1, 0, 0, 5))


@case
def a_checksum_that_lies(craft: Craft) -> None:
    craft.tree([craft.leaf(Group(b"", names(b"a")))])


@case
def a_first_name_that_lies(craft: Craft) -> None:
    leaf = craft.leaf(Group(b"", names(b"b")))
    craft.tree([NodeRef(b"", b"a", leaf.chunk_id, leaf.length, 1)])


@case
def a_node_that_is_missing(craft: Craft) -> None:
    craft.tree([NodeRef(b"", b"a", MISSING, 100, 1)])


@case
def a_node_of_another_length(craft: Craft) -> None:
    leaf = craft.leaf(Group(b"", names(b"a")))
    craft.tree([NodeRef(b"", b"a", leaf.chunk_id, leaf.length + 1, 1)])


@case
def a_root_with_a_depth_and_nothing_below(craft: Craft) -> None:
    craft.tree([], depth=5)


@case
def a_root_deeper_than_any(craft: Craft) -> None:
    craft.tree([craft.leaf(Group(b"", names(b"a")))], depth=1 << 40)


for number, data in enumerate([
    b"", b"\xc0", b"\x90", b"\x91\x90", b"\x91\x92\xc4\x00\x90", b"\xdd\xff\xff\xff\xff",
    b"\x91\x92\xc4\x00\xdd\xff\xff\xff\xff", b"\x91\x92\xc6\xff\xff\xff\xff", b"\x91" * 100_000,
    b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\x81" * 100_000,
    msgspec.msgpack.encode([["text", []]]), b"\x91\x92\xc4\x00\x91\x9b" + b"\x01" * 11,
]):  # fmt: skip
    CASES[f"a leaf of noise {number}"] = lambda craft, data=data: craft.raw_leaf(data or b"\0")
    CASES[f"a root of noise {number}"] = lambda craft, data=data: craft.manifest(manifest.ROOT_MAGIC + data)
CASES["a root without its first line"] = lambda craft: craft.manifest(b"something else")
CASES["a leaf that is a bomb"] = lambda craft: craft.raw_leaf(bytes(16 << 20), length=2 << 20)
CASES["a leaf that is a bomb and says so"] = lambda craft: craft.raw_leaf(bytes(16 << 20))
CASES["a leaf of very many entries"] = lambda craft: craft.raw_leaf(
    encode_leaf([Group(b"", [row(b"%07d" % n) for n in range(60_000)])]), count=60_000
)
CASES["a leaf of very many folders"] = lambda craft: craft.raw_leaf(
    encode_leaf([Group(b"%07d" % n, [row(b"a")]) for n in range(50_000)]), count=50_000
)
CASES["an endless path"] = lambda craft: craft.tree([craft.leaf(Group(b"/".join([b"d"] * 40_000), names(b"a")))])
CASES["an endless name"] = lambda craft: craft.tree([craft.leaf(Group(b"", names(b"n" * 70_000)))])

ROWS = {
    "a parent that is missing": [Group(b"d", names(b"a"))],
    "a parent that is a file": [Group(b"", names(b"d")), Group(b"d", names(b"a"))],
    "a parent that is a link": [Group(b"", names(b"d", kind=3)), Group(b"d", names(b"a"))],
    "a grandparent that is missing": [Group(b"", names(b"d", kind=2)), Group(b"d/e/f", names(b"a"))],
    "a name twice": [Group(b"", names(b"a", b"a"))],
    "folders out of order": [Group(b"e", names(b"a")), Group(b"d", names(b"a"))],
    "a target with a NUL": [Group(b"", [row(b"a", 3, target=b"x\0y")])],
    "a link without a target": [Group(b"", [row(b"a", 3, target=b"")])],
    "an endless target": [Group(b"", [row(b"a", 3, target=b"t" * 70_000)])],
    "a file with a target": [Group(b"", [row(b"a", 1, target=b"t")])],
    "a folder with a target": [Group(b"", [row(b"a", 2, target=b"t")])],
    "a folder that shares its inode": [Group(b"", [row(b"a", 2, link=1)])],
    "a folder with chunks": [Group(b"", [row(b"a", 2, refs=CHUNK_REF.pack(NOWHERE, 5), size=5)])],
    "a negative link": [Group(b"", [row(b"a", 1, link=-1)])],
    "a time beyond 64 bits": [Group(b"", [row(b"a", 1, mtime_ns=(1 << 64) - 1)])],
    "attributes without end": [Group(b"", [row(b"a", 1, xattrs=[(b"user.%d" % n, b"v" * 60) for n in range(2000)])])],
    "attributes twice": [Group(b"", [row(b"a", 1, xattrs=[(b"user.a", b""), (b"user.a", b"")])])],
}
for title, groups in ROWS.items():
    CASES[title] = lambda craft, groups=groups: craft.tree([craft.leaf(*groups)])


# ---- files


def levels(craft: Craft, count: int, depth: int, leaf: bytes, length: int) -> tuple[int, bytes]:
    """Chunk lists, ``depth`` levels of them, in which every node is named ``count`` times by the one above."""
    refs, size = leaf, length
    for _ in range(depth):
        refs, size = NODE_REF.pack(craft.chunk(refs), size) * count, size * count
    return size, refs


@case
def a_list_of_nothing_without_end(craft: Craft) -> None:
    _, refs = levels(craft, 64, 8, CHUNK_REF.pack(craft.chunk(b""), 0) * 1000, 0)
    craft.file(0, 8, refs)


@case
def a_list_that_covers_an_exbibyte(craft: Craft) -> None:
    chunk = craft.chunk(bytes(1 << 20))
    size, refs = levels(craft, 64, 6, CHUNK_REF.pack(chunk, 1 << 20) * 64, 64 << 20)
    assert size == 1 << 62
    craft.file(size, 6, refs)


@case
def a_list_that_covers_a_pebibyte_with_another_sum(craft: Craft) -> None:
    chunk = craft.chunk(bytes(1 << 20))
    size, refs = levels(craft, 64, 4, CHUNK_REF.pack(chunk, 1 << 20) * 64, 64 << 20)
    assert size == 1 << 50
    craft.file(size - 1, 4, refs)


@case
def a_list_whose_nodes_lie(craft: Craft) -> None:
    node = craft.chunk(CHUNK_REF.pack(craft.chunk(b"x"), 1))
    craft.file(2, 1, NODE_REF.pack(node, 2))


@case
def a_list_node_of_too_many_records(craft: Craft) -> None:
    node = craft.chunk(CHUNK_REF.pack(craft.chunk(b"x"), 1) * 50_000)
    craft.file(50_000, 1, NODE_REF.pack(node, 50_000))


@case
def a_list_too_long_for_a_row(craft: Craft) -> None:
    craft.file(65, 0, CHUNK_REF.pack(craft.chunk(b"x"), 1) * 65)


@case
def a_list_node_that_is_its_parent_level(craft: Craft) -> None:
    refs = CHUNK_REF.pack(craft.chunk(b"x"), 1)
    craft.file(1, 2, NODE_REF.pack(craft.chunk(refs), 1))


@case
def a_list_node_that_is_missing(craft: Craft) -> None:
    craft.file(5, 1, NODE_REF.pack(MISSING, 5))


@case
def a_list_node_that_is_a_bomb(craft: Craft) -> None:
    craft.file(1 << 40, 1, NODE_REF.pack(craft.chunk(bytes(16 << 20)), 1 << 40))


@case
def a_chunk_of_another_length(craft: Craft) -> None:
    craft.file(2, 0, CHUNK_REF.pack(craft.chunk(b"x"), 2))


@case
def a_chunk_that_is_missing(craft: Craft) -> None:
    craft.file(2, 0, CHUNK_REF.pack(MISSING, 2))


@case
def a_chunk_longer_than_any(craft: Craft) -> None:
    craft.file(1 << 31, 0, CHUNK_REF.pack(NOWHERE, 1 << 31))


# ---- packs and frames


def crafted_pack(craft: Craft, footer: bytes, *, body: bytes = b"x" * 10, trailer: bytes | None = None) -> None:
    head = header(PackKind.DATA)
    tail = footer + (trailer or struct.pack("<II8s", len(footer), len(footer) // 52, b"CASPEND1"))
    craft.put(layout.pack_key(hashing.digest(head + tail)), head + body + tail)


FOOTERS = {
    "a raw length beyond every limit": encode_record(NOWHERE, 10, 1 << 31, ZSTD, bytes(8)),
    "more stored than raw": encode_record(NOWHERE, 10, 5, ZSTD, bytes(8)),
    "a raw frame of another length": encode_record(NOWHERE, 10, 11, RAW, bytes(8)),
    "an unknown codec": encode_record(NOWHERE, 10, 10, 9, bytes(8)),
    "frames that overflow": encode_record(NOWHERE, 1 << 24, 1 << 24, RAW, bytes(8)) * 1000,
    "frames longer than the pack": encode_record(NOWHERE, 11, 11, RAW, bytes(8)),
    "a frame that is another chunk": encode_record(NOWHERE, 10, 10, RAW, bytes(8)),
    "no frames": b"",
}
for title, footer in FOOTERS.items():
    CASES[f"a pack with {title}"] = lambda craft, footer=footer: crafted_pack(craft, footer)
for title, trailer in {
    "a footer longer than itself": struct.pack("<II8s", 52 << 20, 1 << 20, b"CASPEND1"),
    "a count beyond every limit": struct.pack("<II8s", (52 * 0xFFFFFFFF) & 0xFFFFFFFF, 0xFFFFFFFF, b"CASPEND1"),
    "another end": struct.pack("<II8s", 52, 1, b"CASPEND2"),
}.items():
    CASES[f"a pack with {title}"] = lambda craft, trailer=trailer: crafted_pack(
        craft, encode_record(NOWHERE, 10, 10, RAW, bytes(8)), trailer=trailer
    )
CASES["an empty pack"] = lambda craft: craft.put(layout.pack_key(NOWHERE), b"")
CASES["a pack of noise"] = lambda craft: craft.put(layout.pack_key(NOWHERE), os.urandom(1000))
CASES["a pack in the wrong folder"] = lambda craft: craft.put(f"packs/00/{NOWHERE.hex()}", b"x" * 100)
CASES["a pack with another name"] = lambda craft: craft.put("packs/zz/notes.txt", b"x" * 100)


def frame_bomb(declared: int, content: bytes) -> Callable[[Craft], None]:
    def make(craft: Craft) -> None:
        frame = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(content)
        if declared:
            frame = b"\x28\xb5\x2f\xfd\xe0" + declared.to_bytes(8, "little") + frame[6:]
        craft.frames.append((NOWHERE, min(declared or 1 << 20, 16 << 20), ZSTD, frame))
        craft.segment(index.encode(craft.pack()))

    return make


CASES["a frame that decodes to far more than it says"] = frame_bomb(1 << 20, bytes(300 << 20))
CASES["a frame that says a terabyte"] = frame_bomb(TIB, bytes(300 << 20))
CASES["a frame that says nothing"] = frame_bomb(0, bytes(300 << 20))


# ---- the index


def segment_of(
    *, bits: int = 0, packs: int = 1, records: int = 1, fanout: list[int] | None = None, rows: bytes = b""
) -> bytes:
    slots = fanout if fanout is not None else [0] * (1 << bits) + [records]
    head = struct.pack("<8sB7xII8x", b"CASIDX01", bits, packs, records)
    return head + NOWHERE + struct.pack(f"<{len(slots)}I", *slots) + rows


def place(chunk_id: bytes = NOWHERE, number: int = 0, offset: int = 16, stored: int = 1, raw: int = 1, codec: int = 0):  # type: ignore[no-untyped-def]
    return chunk_id + struct.pack("<IIIIB3x", number, offset, stored, raw, codec)


SEGMENTS = {
    "nothing": b"",
    "noise": b"\x77" * 500,
    "more packs than bytes": segment_of(packs=0xFFFFFFFF, rows=place()),
    "more records than bytes": segment_of(records=0xFFFFFFFF, rows=place()),
    "a fan-out beyond every limit": segment_of(rows=place()).replace(b"CASIDX01\0", b"CASIDX01\xff"),
    "a fan-out that runs backwards": segment_of(
        bits=2, records=2, fanout=[0, 2, 0, 4_000_000_000, 2], rows=place() * 2
    ),
    "a pack that it does not list": segment_of(rows=place(number=7)),
    "a place beyond the pack": segment_of(rows=place(offset=4_000_000_000)),
    "a raw length beyond every limit": segment_of(rows=place(raw=1 << 31)),
    "more stored than raw": segment_of(rows=place(stored=100)),
    "a pack that is missing": segment_of(rows=place()),
    "a chunk twice": segment_of(records=2, rows=place() * 2),
    "chunks out of order": segment_of(records=2, rows=place(b"\x22" * 32) + place()),
}
for title, data in SEGMENTS.items():
    CASES[f"a segment with {title}"] = lambda craft, data=data: craft.segment(data)
CASES["a segment that is another one"] = lambda craft: craft.put(layout.index_key(NOWHERE), segment_of(rows=place()))
CASES["a segment with another name"] = lambda craft: craft.put("index/notes.txt", segment_of(rows=place()))


@case
def a_segment_that_leads_to_another_chunk(craft: Craft) -> None:
    craft.chunk(b"one")
    ((_, found),) = craft.pack()
    craft.segment(index.encode([(hashing.digest(b"two"), found)]))


# ---- records

VERSION = VersionRecord(
    number=1, manifest="ab" * 32, checksum="cd" * 32, totals=Totals(), created_at="2026-01-01T00:00:00Z",
    created_by="x", write_id="00" * 16,
)  # fmt: skip
ID = "A" * 22


def sealed(kind: str, body: bytes) -> bytes:
    return f"casstore-record 1 {kind} {hashing.digest(body).hex()}\n".encode() + body


def config(**changed: Any) -> bytes:
    return record.encode("store", msgspec.structs.replace(CONFIG, **changed))


RECORDS = {
    "a store that is no record": (layout.STORE, b"{}"),
    "a store of another format": (layout.STORE, config(format=1 << 70)),
    "a store with a path for an id": (layout.STORE, config(id="../../x")),
    "a store with very many features": (
        layout.STORE, config(features=["f" * 50] * 1000),
    ),
    "a store that is deep": (layout.STORE, sealed("store", b'{"format":1,"id":"x","chunker":' + b'{"a":' * 5000)),
    "a store with impossible chunks": (
        layout.STORE,
        config(chunker={**CONFIG.chunker, "max": 1 << 40}),
    ),
    "a version of a missing manifest": (layout.version_key(ID, 1), record.encode("version", VERSION)),
    "a version that is another one": (layout.version_key(ID, 2), record.encode("version", VERSION)),
    "a version with a path for a manifest": (
        layout.version_key(ID, 1), record.encode("version", msgspec.structs.replace(VERSION, manifest="../" * 20)),
    ),
    "a version without a number": (f"datasets/{ID}/versions/latest", record.encode("version", VERSION)),
    "a version that is deep": (layout.version_key(ID, 1), sealed("version", b"[" * 200_000)),
    "a head of noise": (layout.head_key(ID), os.urandom(500)),
    "a head with numbers without end": (
        layout.head_key(ID), sealed("head", b'{"last_version":' + b"9" * 100_000 + b"}"),
    ),
    "a head that says of very many versions": (
        layout.head_key(ID),
        record.encode("head", Head(
            id=ID, name="x", type=DatasetType.DATASET, created_at="2026-01-01T00:00:00Z", created_by="x",
            write_id="00" * 16, last_version=1 << 60,
        )),
    ),
    "a head that is another type": (layout.head_key(ID), record.encode("version", VERSION)),
    "a name of noise": ("names/robot", b"\0" * 100),
    "something that is no part of a store": ("notes.txt", b"hello"),
    "something among the datasets": ("datasets/robot/notes.txt", b"hello"),
}  # fmt: skip
for title, (key, data) in RECORDS.items():
    CASES[title] = lambda craft, key=key, data=data: craft.put(key, data)


def vast(key: str) -> Callable[[Craft], None]:
    def make(craft: Craft) -> None:
        craft.backend.vast[craft.put(key, b"x" * 100)] = TIB

    return make


for key in (
    layout.STORE, layout.pack_key(NOWHERE), layout.index_key(NOWHERE), layout.manifest_key(NOWHERE),
    layout.head_key(ID), layout.version_key(ID, 1), "names/robot",
):  # fmt: skip
    CASES[f"a terabyte at {key.partition('/')[0]} {key[-3:]}"] = vast(key)


# ---- the tests


def consume(backend: Vast, folder: str) -> list[str]:
    """Do with a store what its users do; returns what was found wrong. Anything but ``CasstoreError`` gets out."""
    wrong: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except CasstoreError as error:
            wrong.append(error.message)

    def look(manifest_id: bytes) -> None:
        tree = store.tree(manifest_id)
        entries = list(itertools.islice(tree.entries(), 10_000))
        for entry in entries:
            assert tree.lookup(entry.path) == entry
            if entry.kind == Kind.DIRECTORY:
                list(tree.listdir(entry.path))
            for _ in itertools.islice(tree.chunks(entry), 1000):
                pass
            list(tree.list_nodes(entry))
        list(tree.nodes())
        wrong.extend(problem.message for problem in verify_tree(store, tree).problems)

    try:
        store = Store.open(backend)
    except CasstoreError as error:
        return [error.message]
    wrong += [problem.message for problem in verify_store(store).problems]
    for info in list(backend.list("manifests/")):
        attempt(lambda info=info: look(layout.id_of(info.key)))  # type: ignore[misc]
    attempt(lambda: store.read_chunk(NOWHERE))
    attempt(lambda: list(store.read_chunks([(NOWHERE, 1)])))
    # Whoever uploads into it gets an error, or a version that is whole.
    attempt(lambda: look(upload_tree(store, [Source(os.fsencode(folder), b"", contents=True)]).manifest))
    assert not any("\n" in message or len(message) > 2000 for message in wrong)
    return wrong


SUMS = "its checksum or its totals are not those of its entries"


def run(title: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").write_bytes(b"some content" * 100)
        craft = Craft()
        clean = consume(craft.backend, folder)
        craft = Craft()
        CASES[title](craft)
        found = consume(craft.backend, folder)
    # An empty store lacks the chunk that is asked for, and nothing else. Few of the trees have a right checksum.
    return [message for message in found if message not in clean and (SUMS not in message or "lie" in title)]


@pytest.mark.parametrize("title", CASES)
def test_a_hostile_store_is_refused_in_words(title: str) -> None:
    assert run(title)


def test_a_file_of_a_pebibyte_of_zeros_is_verified_soon(tmp_path: Path) -> None:
    """It is what it says it is, and a few KiB: nothing may take as long as it is large."""
    craft = Craft()
    chunk = craft.chunk(bytes(1 << 20))
    size, refs = levels(craft, 64, 4, CHUNK_REF.pack(chunk, 1 << 20) * 64, 64 << 20)
    sums = ChecksumBuilder()
    sums.add([Entry(b"a", Kind.FILE, 0o644, 0, size, manifest.entry_of(b"", row(b"a", depth=4, refs=refs)).content)])
    leaf = craft.leaf(Group(b"", [row(b"a", 1, size=size, depth=4, refs=refs)]))
    craft.tree([leaf], totals=(1, 0, 0, size), checksum=sums.checksum())
    assert sum(info.size for info in craft.backend.list("")) < 64 << 10
    store = Store.open(craft.backend)
    assert verify_store(store).problems == []
    (info,) = craft.backend.list("manifests/")
    tree = store.tree(layout.id_of(info.key))
    assert verify_tree(store, tree).problems == []
    (entry,) = tree.entries()
    assert entry.size == 1 << 50
    assert len(list(itertools.islice(tree.chunks(entry), 5000))) == 5000
    assert len(list(tree.list_nodes(entry))) == 4


MEASURE = """
import json, resource, runpy, sys
sys.path[:0] = sys.path
module = runpy.run_path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = sum(bool(module["run"](title)) for title in module["CASES"])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"refused": refused, "cases": len(module["CASES"]), "grown": (after - before) << 10}))
"""


def test_hostile_stores_take_little_memory() -> None:
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, __file__], stdout=subprocess.PIPE, check=True, timeout=250
    ).stdout
    found = json.loads(output)
    assert found["refused"] == found["cases"]
    # Making them takes a part of it. An upload takes buffers of its own, whatever the store.
    assert found["grown"] < 192 << 20
