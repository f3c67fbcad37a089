"""Format 1 as it was released: what was written then is read now, and what is written now has the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore import hashing
from casstore.backend.registry import open_backend
from casstore.compression import RAW, ZSTD
from casstore.dataset import Bucket
from casstore.format import index, manifest, record
from casstore.format.index import Location, Segment
from casstore.format.manifest import NodeRef
from casstore.format.pack import (
    HEADER_SIZE,
    TRAILER_SIZE,
    Footer,
    PackKind,
    decode_frame,
    parse_footer,
    tail_size,
    verify_frames,
)
from casstore.model import Content, Entry, Head, Kind, VersionRecord
from casstore.repo.leases import LeaseRecord
from casstore.repo.packs import PackBuilder
from casstore.repo.records import NameRecord
from casstore.repo.store import Store, StoreConfig
from casstore.repo.tree import ListBuilder, Tree, TreeBuilder
from casstore.repo.verify import verify_store
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "format-v1.json").read_text())
EPOCHS: dict[str, Any] = json.loads((FOLDER / "records-epochs.json").read_text())
STORE: dict[str, Any] = json.loads((FOLDER / "store-v1.json").read_text())


def noise(seed: str, size: int) -> bytes:
    return hashing.Hasher(seed.encode()).digest(size)


class Nodes:
    """A sink of nodes, and a source."""

    def __init__(self, *known: bytes) -> None:
        self.nodes = {hashing.digest(data): data for data in known}
        self.root = b""

    def put_node(self, data: bytes) -> bytes:
        self.nodes[hashing.digest(data)] = data
        return hashing.digest(data)

    def put_manifest(self, data: bytes) -> bytes:
        self.root = data
        return hashing.digest(data)

    def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
        assert raw in (None, len(self.nodes[chunk_id]))
        return self.nodes[chunk_id]


# ---- packs


def parsed(vector: dict[str, Any]) -> tuple[bytes, bytes, Footer]:
    pack_id, pack = bytes.fromhex(vector["id"]), bytes.fromhex(vector["bytes"])
    tail = tail_size(pack[-TRAILER_SIZE:])
    return pack_id, pack, parse_footer(pack_id, pack[:HEADER_SIZE], pack[-tail:], len(pack))


@pytest.mark.parametrize("name", ["pack raw", "pack zstd"])
def test_a_pack_is_read(name: str) -> None:
    vector = VECTORS[name]
    _, pack, footer = parsed(vector)
    assert footer.kind == PackKind(vector["kind"])
    assert footer.size == len(pack)
    assert verify_frames(footer.records, pack) == []
    for frame, chunk in zip(footer.records, map(bytes.fromhex, vector["chunks"]), strict=True):
        payload = pack[frame.offset : frame.offset + frame.stored]
        assert decode_frame(frame.chunk_id, frame.codec, payload, frame.raw) == chunk
        assert frame.chunk_id == hashing.digest(chunk)
    assert {frame.codec for frame in footer.records} == ({RAW, ZSTD} if "zstd" in name else {RAW})


@pytest.mark.parametrize("name", ["pack raw", "pack zstd"])
def test_a_pack_is_written(name: str) -> None:
    """The builder, given the stored frames: their bytes are zstd's, all around them is ours."""
    vector = VECTORS[name]
    pack_id, pack, footer = parsed(vector)
    builder = PackBuilder(PackKind(vector["kind"]))
    for frame in footer.records:
        payload = pack[frame.offset : frame.offset + frame.stored]
        builder.append(frame.chunk_id, frame.raw, frame.codec, payload)
    sealed = builder.seal()
    assert (sealed.pack_id, b"".join(bytes(part) for part in sealed.parts)) == (pack_id, pack)


def test_a_pack_is_laid_out_as_documented() -> None:
    """``docs/format/pack.md``, read without any of our code."""
    pack = bytes.fromhex(VECTORS["pack zstd"]["bytes"])
    assert pack[:16] == b"CASPACK1" + b"\x02" + bytes(7)
    length, count, magic = struct.unpack("<II8s", pack[-16:])
    assert (length, count, magic) == (52 * 2, 2, b"CASPEND1")
    footer = pack[-16 - length : -16]
    at = 16
    for number in range(count):
        chunk_id, stored, raw, codec, zero, check = struct.unpack_from("<32sIIB3s8s", footer, 52 * number)
        frame = pack[at : at + stored]
        assert zero == bytes(3)
        if codec == 0:
            assert (stored, check, hashing.digest(frame)) == (raw, bytes(8), chunk_id)
        else:
            assert (codec, check) == (1, hashing.digest(frame)[:8])
        at += stored
    assert at == len(pack) - 16 - length
    assert hashing.digest(pack[:16] + pack[at:]).hex() == VECTORS["pack zstd"]["id"]


# ---- index


def test_an_index_segment() -> None:
    vector = VECTORS["index"]
    data = bytes.fromhex(vector["bytes"])
    records = [
        (bytes.fromhex(chunk_id), Location(bytes.fromhex(pack_id), *place))
        for chunk_id, pack_id, *place in vector["records"]
    ]
    assert index.encode(records) == data
    assert hashing.digest(data).hex() == vector["id"]
    segment = Segment(data)
    assert dict(segment.items()) == dict(records)
    assert all(segment.locate(chunk_id) == place for chunk_id, place in records)


def test_an_index_segment_is_laid_out_as_documented() -> None:
    """``docs/format/index.md``, read without any of our code."""
    data = bytes.fromhex(VECTORS["index"]["bytes"])
    magic, bits, zero, packs, records, more = struct.unpack_from("<8sB7sII8s", data)
    assert (magic, zero, more) == (b"CASIDX01", bytes(7), bytes(8))
    assert (packs, records, bits) == (3, 20, (20 // 8).bit_length())
    fanout = struct.unpack_from(f"<{(1 << bits) + 1}I", data, 32 + 32 * packs)
    at = 32 + 32 * packs + 4 * len(fanout)
    assert len(data) == at + 52 * records
    rows = [struct.unpack_from("<32sIIIIB3s", data, at + 52 * number) for number in range(records)]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    for slot, count in enumerate(fanout):
        assert count == sum(row[0][0] >> (8 - bits) < slot for row in rows)
    listed = [data[32 + 32 * number : 64 + 32 * number].hex() for number in range(packs)]
    found = sorted([row[0].hex(), listed[row[1]], *row[2:6]] for row in rows)
    assert found == sorted(VECTORS["index"]["records"])
    assert all(row[6] == bytes(3) for row in rows)


# ---- manifests


def entry_of(row: dict[str, Any]) -> Entry:
    xattrs = row["xattrs"]
    return Entry(
        bytes.fromhex(row["path"]),
        row["kind"],
        row["mode"],
        row["mtime_ns"],
        row["size"],
        Content(row["depth"], bytes.fromhex(row["refs"])),
        bytes.fromhex(row["target"]),
        row["link"],
        row["flags"],
        None if xattrs is None else {bytes.fromhex(name): bytes.fromhex(value) for name, value in xattrs.items()},
    )


def test_a_small_tree() -> None:
    vector = VECTORS["tree"]
    entries = [entry_of(row) for row in vector["entries"]]
    sink = Nodes()
    builder = TreeBuilder(sink)
    for entry in entries:
        builder.add(entry)
    assert builder.finish().hex() == vector["id"]
    assert builder.checksum.hex() == vector["checksum"]
    assert sink.root.hex() == vector["root"]
    assert [data.hex() for data in sink.nodes.values()] == vector["leaves"]
    root = bytes.fromhex(vector["root"])
    source = Nodes(*(bytes.fromhex(leaf) for leaf in vector["leaves"]))
    tree = Tree(source, hashing.digest(root), manifest.decode_root(root))
    assert list(tree.entries()) == entries
    assert (tree.totals.files, tree.totals.directories, tree.totals.symlinks, tree.totals.size) == (4, 1, 1, 314)


def test_a_tree_is_laid_out_as_documented() -> None:
    """``docs/format/manifest.md``, read without any of our code."""
    vector = VECTORS["tree"]
    magic, _, body = bytes.fromhex(vector["root"]).partition(b"\n")
    assert magic == b"casstore-manifest-1"
    checksum, totals, depth, children = msgspec.msgpack.decode(body)
    assert (checksum.hex(), totals, depth) == (vector["checksum"], [4, 1, 1, 314], 0)
    hasher = hashing.Hasher(derive_key_context="casstore 2026 version checksum 1")
    rows = []
    for child, leaf in zip(children, map(bytes.fromhex, vector["leaves"]), strict=True):
        groups = msgspec.msgpack.decode(leaf)
        assert child[:2] == [groups[0][0], groups[0][1][0][0]]
        assert child[2:] == [hashing.digest(leaf), len(leaf), sum(len(group[1]) for group in groups)]
        for directory, group in groups:
            for name, kind, mode, mtime, size, deep, refs, target, link, flags, xattrs in group:
                path = directory + b"/" + name if directory else name
                hasher.update(msgspec.msgpack.encode([path, kind, mode, size, deep, refs, target]))
                rows.append((path, mode, mtime, link, flags, xattrs))
    assert hasher.digest().hex() == vector["checksum"]
    expected = [entry_of(row) for row in vector["entries"]]
    assert [row[:5] for row in rows] == [(e.path, e.mode, e.mtime_ns, e.link, e.flags) for e in expected]
    assert [row[5] for row in rows if row[5]] == [[[b"user.a", b"1"], [b"user.b", b"\0"]]]


def test_an_empty_tree() -> None:
    vector = VECTORS["empty tree"]
    sink = Nodes()
    builder = TreeBuilder(sink)
    assert builder.finish().hex() == vector["id"]
    assert (sink.root.hex(), builder.checksum.hex()) == (vector["root"], vector["checksum"])
    assert manifest.decode_root(bytes.fromhex(vector["root"])).children == []


def test_an_inner_node() -> None:
    vector = VECTORS["inner node"]
    children = [
        NodeRef(bytes.fromhex(directory), bytes.fromhex(name), bytes.fromhex(chunk_id), length, count)
        for directory, name, chunk_id, length, count in vector["children"]
    ]
    data = bytes.fromhex(vector["bytes"])
    assert manifest.encode_inner(children) == data
    assert manifest.decode_inner(data) == children
    assert hashing.digest(data).hex() == vector["id"]


def test_where_leaves_end() -> None:
    vector = VECTORS["large tree"]
    sink = Nodes()
    builder = TreeBuilder(sink)
    for number in range(vector["files"]):
        builder.add(Entry(b"f%05d" % number, Kind.FILE, 0o644))
    assert builder.finish().hex() == vector["id"]
    assert (builder.checksum.hex(), len(sink.nodes)) == (vector["checksum"], vector["leaves"])


@pytest.mark.parametrize("vector", VECTORS["lists"], ids=lambda vector: str(vector["count"]))
def test_chunk_lists(vector: dict[str, Any]) -> None:
    chunks = [(noise(f"list {number}", 32), 1 + number % 1000) for number in range(vector["count"])]
    sink = Nodes()
    builder = ListBuilder(sink)
    builder.extend(chunks)
    content = builder.finish()
    assert (content.depth, builder.size) == (vector["depth"], vector["size"])
    assert hashing.digest(content.refs).hex() == vector["refs"]
    assert content.refs[:80].hex() == vector["first"]
    assert hashing.digest(b"".join(sorted(sink.nodes))).hex() == vector["nodes"]
    leaf = manifest.encode_leaf(
        [manifest.Group(b"", [manifest.row_of(Entry(b"f", Kind.FILE, 0o644, 0, builder.size, content))])]
    )
    assert manifest.decode_leaf(leaf)[0].rows[0].refs == content.refs


def test_depths_0_1_and_2_are_pinned() -> None:
    assert {vector["depth"] for vector in VECTORS["lists"]} == {0, 1, 2}


# ---- records

TYPES: dict[str, type[msgspec.Struct]] = {
    "store": StoreConfig,
    "name": NameRecord,
    "head": Head,
    "version": VersionRecord,
    "lease": LeaseRecord,
}
LATER: dict[str, dict[str, object]] = {
    "head": {"epoch": 0, "retention": None},
    "version": {"epoch": 0, "lease": ""},
}


@pytest.mark.parametrize("name", VECTORS["records"])
def test_records(name: str) -> None:
    """What lacks the fields that came later is read with their defaults, and written with them."""
    vector = VECTORS["records"][name]
    data = vector["text"].encode()
    value = record.decode(vector["type"], data, TYPES[vector["type"]])
    head, _, body = data.partition(b"\n")
    assert head == f"casstore-record 1 {vector['type']} {hashing.digest(body).hex()}".encode()
    _, _, written = record.encode(vector["type"], value).partition(b"\n")
    assert json.loads(written) == {**json.loads(body), **LATER.get(vector["type"], {})}


@pytest.mark.parametrize("name", EPOCHS)
def test_records_with_epochs(name: str) -> None:
    vector = EPOCHS[name]
    data = vector["text"].encode()
    value = record.decode(vector["type"], data, TYPES[vector["type"]])
    assert record.encode(vector["type"], value) == data
    head, _, body = data.partition(b"\n")
    assert head == f"casstore-record 1 {vector['type']} {hashing.digest(body).hex()}".encode()


# ---- a whole store


@pytest.fixture
def golden(tmp_path: Path) -> str:
    """A copy of the store of format 1; returns its URL."""
    shutil.copytree(FOLDER / "store-v1", tmp_path / "store")
    return f"file://{tmp_path / 'store'}"


def test_a_store_of_format_1_is_whole(golden: str) -> None:
    with Store.open(open_backend(golden)) as store:
        report = verify_store(store)
        assert report.problems == []
        assert report.objects == sum(path.is_file() for path in (FOLDER / "store-v1").rglob("*")) - 1


def test_a_store_of_format_1_says_what_it_holds(golden: str) -> None:
    with Store.open(open_backend(golden)) as store:
        bucket = Bucket(store, name="b", user="u")
        assert sorted((s.name, s.type) for s in bucket.list()) == [
            ("after", "DATASET"),
            ("all", "COLLECTION"),
            ("robot", "DATASET"),
        ]
        assert bucket.resolve("robot").number == 2
        assert bucket.resolve("robot", "golden").number == 1
        assert bucket.resolve("robot", "golden").record.metadata == {"site": "lab", "n": [1, 2.5]}
        info = bucket.info("robot", all_states=True)
        assert info.summary.labels == {"kind": "arm"}
        assert [item.version.number for item in info.versions] == [1, 2, 3]
        members = bucket.info("all").members
        assert {(member.name, member.number) for member in members} == {("robot", 1), ("after", 1)}


@pytest.mark.parametrize("reference", STORE)
def test_a_store_of_format_1_gives_back_its_files(golden: str, reference: str) -> None:
    name, _, tag = reference.partition(":")
    expected = STORE[reference]
    with Store.open(open_backend(golden)) as store:
        bucket = Bucket(store, name="b", user="u")
        tree = bucket.tree(bucket.resolve(name, tag))
        assert (tree.id.hex(), tree.checksum.hex()) == (expected["manifest"], expected["checksum"])
        found = []
        for entry in tree.entries():
            content = b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))
            found.append({
                "path": entry.path.hex(), "kind": entry.kind, "mode": entry.mode, "mtime_ns": entry.mtime_ns,
                "size": entry.size, "depth": entry.content.depth, "link": entry.link, "flags": entry.flags,
                "target": entry.target.hex(), "blake3": hashing.digest(content).hex(),
            })  # fmt: skip
        assert found == expected["entries"]


def test_a_store_of_format_1_takes_the_same_files_without_storing_them_again(golden: str, tmp_path: Path) -> None:
    """The chunker, the lists and the tree make today what they made then."""
    with Store.open(open_backend(golden)) as store:
        bucket = Bucket(store, name="b", user="u")
        (tmp_path / "out").mkdir()
        bucket.download("robot", str(tmp_path / "out"), tag="golden")
        source = Source(os.fsencode(tmp_path / "out" / "robot"), b"", contents=True)
        result = upload_tree(store, [source])
        assert (result.manifest.hex(), result.new_bytes) == (STORE["robot:1"]["manifest"], 0)
        assert result.checksum.hex() == STORE["robot:1"]["checksum"]
