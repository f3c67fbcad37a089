"""Manifests: the tree of one version, as nodes.

Decided here and only here: the bytes of the nodes of a manifest, how entries and chunk lists are cut into nodes, and
what the checksum of a version covers. See ``docs/format/manifest.md``.

Entries are sorted by ``casstore.model.sort_key``: the entries of a directory are adjacent. They are cut into *leaves*
by their names (a hash of the path decides), so that a change in one place leaves the other leaves as they were. Leaves,
the inner nodes above them and the nodes of long chunk lists are ordinary chunks, stored in metadata packs; the
*root* is an object of its own, ``manifests/<id>``, and its BLAKE3 is the digest of the version.

Nodes are MessagePack. Everything is checked when it is parsed: names, order, kinds and lengths.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from casstore.errors import FormatError
from casstore.model import DIGEST_SIZE, Content, Entry, Kind, Totals

ROOT_MAGIC = b"casstore-manifest-1\n"
CHUNK_REF = struct.Struct("<32sI")
NODE_REF = struct.Struct("<32sQ")
INLINE_REFS = 64
"""A file keeps at most this many records in its entry; a longer list goes into nodes."""
LIST_MIN, LIST_MAX = 64, 1024
LEAF_MAX = 4096
MAX_DEPTH = 8
MAX_NODE = 8 << 20

_LEAF_MASK = 511
_LIST_MASK = 255
_INNER_MASK = 255
_KINDS = frozenset(Kind)


class Row(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """An entry inside a leaf, without its directory."""

    name: bytes
    kind: int
    mode: int
    mtime_ns: int
    size: int
    depth: int
    refs: bytes
    target: bytes
    link: int
    flags: int
    xattrs: list[tuple[bytes, bytes]] | None


class Group(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A run of entries of one directory."""

    directory: bytes
    rows: list[Row]


class NodeRef(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A child of an inner node or of the root: its first entry, chunk id and length, and how many entries it holds."""

    directory: bytes
    name: bytes
    chunk_id: bytes
    length: int
    count: int

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Sort key of the first entry below this node."""
        return self.directory.replace(b"/", b"\0"), self.name


class Root(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The root of a manifest. ``depth`` 0: the children are leaves; n: inner nodes of depth n-1."""

    checksum: bytes
    totals: tuple[int, int, int, int]
    depth: int
    children: list[NodeRef]


_encoder = msgspec.msgpack.Encoder()
_leaf_decoder = msgspec.msgpack.Decoder(list[Group])
_inner_decoder = msgspec.msgpack.Decoder(list[NodeRef])
_root_decoder = msgspec.msgpack.Decoder(Root)


def row_of(entry: Entry) -> Row:
    """Return the entry as it stands in a leaf."""
    return Row(
        entry.path.rpartition(b"/")[2],
        int(entry.kind),
        entry.mode,
        entry.mtime_ns,
        entry.size,
        entry.content.depth,
        entry.content.refs,
        entry.target,
        entry.link,
        entry.flags,
        None if entry.xattrs is None else sorted(entry.xattrs.items()),
    )


def entry_of(directory: bytes, row: Row) -> Entry:
    """Return the row as an entry of this directory."""
    return Entry(
        directory + b"/" + row.name if directory else row.name,
        row.kind,
        row.mode,
        row.mtime_ns,
        row.size,
        Content(row.depth, row.refs) if row.refs else _NO_CONTENT,
        row.target,
        row.link,
        row.flags,
        None if row.xattrs is None else dict(row.xattrs),
    )


_NO_CONTENT = Content()


def ends_leaf(path: bytes) -> bool:
    """Whether a leaf ends after the entry with this path."""
    return zlib.crc32(path) & _LEAF_MASK == 0


def ends_inner(chunk_id: bytes) -> bool:
    """Whether an inner node ends after the child with this id."""
    return chunk_id[0] & _INNER_MASK == 0


def ends_list(record_id: bytes) -> bool:
    """Whether a list node may end after the record with this id."""
    return record_id[0] & _LIST_MASK == 0


def encode_leaf(groups: Sequence[Group]) -> bytes:
    """Return the bytes of a leaf."""
    return _encoder.encode(groups)


def encode_inner(children: Sequence[NodeRef]) -> bytes:
    """Return the bytes of an inner node."""
    return _encoder.encode(children)


def encode_root(checksum: bytes, totals: Totals, depth: int, children: Sequence[NodeRef]) -> bytes:
    """Return the bytes of a root object."""
    sums = (totals.files, totals.directories, totals.symlinks, totals.size)
    return ROOT_MAGIC + _encoder.encode(Root(checksum, sums, depth, list(children)))


def decode_root(data: bytes) -> Root:
    """Parse a root object; ``FormatError`` when it is not one."""
    if not data.startswith(ROOT_MAGIC):
        raise FormatError("a manifest has an unknown header")
    root: Root = _decode(_root_decoder, data[len(ROOT_MAGIC) :])
    if len(root.checksum) != DIGEST_SIZE or not 0 <= root.depth <= MAX_DEPTH or min(root.totals) < 0:
        raise FormatError("the root of a manifest is damaged")
    _check_children(root.children)
    return root


def decode_inner(data: bytes) -> list[NodeRef]:
    """Parse an inner node."""
    children: list[NodeRef] = _decode(_inner_decoder, data)
    if not children:
        raise FormatError("an inner node of a manifest is empty")
    _check_children(children)
    return children


def decode_leaf(data: bytes) -> list[Group]:
    """Parse a leaf: names are single components, entries are in order, kinds and lengths are possible."""
    groups: list[Group] = _decode(_leaf_decoder, data)
    before: tuple[bytes, bytes] | None = None
    for group in groups:
        directory = group.directory
        if directory:
            for component in directory.split(b"/"):
                _check_name(component)
        key = directory.replace(b"/", b"\0")
        last: bytes | None = None
        if not group.rows or (before is not None and (key, group.rows[0].name) <= before):
            raise FormatError("the entries of a manifest are out of order")
        for row in group.rows:
            name = row.name
            if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
                _check_name(name)
            if last is not None and name <= last:
                raise FormatError("the entries of a manifest are out of order")
            last = name
            if row.kind == 1:
                _check_file(row)
            elif row.kind not in _KINDS or row.refs or row.size:
                raise FormatError("a manifest holds an entry of unknown kind")
            if not 0 <= row.mode <= 0o7777:
                raise FormatError("a manifest holds impossible permission bits")
        before = key, group.rows[-1].name
    return groups


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"a node of a manifest can't be parsed: {error}") from None


def _check_name(name: bytes) -> None:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FormatError(f"a manifest holds the illegal name {name[:80]!r}")


def _check_file(row: Row) -> None:
    if row.size < 0 or not 0 <= row.depth <= MAX_DEPTH:
        raise FormatError("a manifest holds an impossible file")
    if row.depth == 0 and len(row.refs) == CHUNK_REF.size:
        length = int.from_bytes(row.refs[DIGEST_SIZE:], "little")
    else:
        length = sum(length for _, length in list_records(row.depth, row.refs))
    if length != row.size:
        raise FormatError("the chunks of a file do not add up to its size")


def _check_children(children: Sequence[NodeRef]) -> None:
    before: tuple[bytes, bytes] | None = None
    for child in children:
        key = child.key
        if len(child.chunk_id) != DIGEST_SIZE or child.count < 1 or not 0 < child.length <= MAX_NODE:
            raise FormatError("a node of a manifest is damaged")
        if before is not None and key <= before:
            raise FormatError("the nodes of a manifest are out of order")
        before = key


def list_records(depth: int, refs: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield ``(id, raw length)`` of each record of a chunk list, or of a list node of this depth."""
    record = CHUNK_REF if depth == 0 else NODE_REF
    if len(refs) % record.size:
        raise FormatError("a chunk list is damaged")
    return record.iter_unpack(refs)


def checksum_bytes(entries: Sequence[Entry]) -> bytes:
    """Return what these entries add to the checksum of a version.

    Paths, kinds, permission bits, sizes, chunk lists and link targets count; times, link groups, holes and extended
    attributes do not. Two trees with equal checksums have equal content.
    """
    return b"".join(
        [
            _encoder.encode((e.path, int(e.kind), e.mode, e.size, e.content.depth, e.content.refs, e.target))
            for e in entries
        ]
    )
