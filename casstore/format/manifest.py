"""Manifests: the tree of one version, as nodes.

Decided here and only here: the bytes of the nodes of a manifest, how entries and chunk lists are cut into nodes, and
what the checksum of a version covers. See ``docs/format/manifest.md``.

Entries are sorted by ``casstore.model.sort_key``: the entries of a directory are adjacent. They are cut into *leaves*
by their names (a hash of the path decides), so that a change in one place leaves the other leaves as they were. Leaves,
the inner nodes above them and the nodes of long chunk lists are ordinary chunks, stored in metadata packs; the
*root* is an object of its own, ``manifests/<id>``, and its BLAKE3 is the digest of the version.

Nodes are MessagePack. Everything is checked when it is parsed: names, order, kinds, lengths and sums, and every number
has a bound, so that a few stored bytes can't stand for an endless tree or an endless file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from casstore.compression import MAX_RAW
from casstore.errors import FormatError
from casstore.model import DIGEST_SIZE, Content, Entry, Totals

ROOT_MAGIC = b"casstore-manifest-1\n"
CHUNK_REF = struct.Struct("<32sI")
NODE_REF = struct.Struct("<32sQ")
INLINE_REFS = 64
"""A file keeps at most this many records in its entry; a longer list goes into nodes."""
LIST_MIN, LIST_MAX = 64, 1024
LEAF_MAX = 4096
"""Entries in a leaf, and children of an inner node or of the root, at most."""
NODE_BYTES = 1 << 20
"""A leaf ends when paths, chunk lists, targets and attributes in it reach this; an inner node when paths do."""
MAX_DEPTH = 8
MAX_NODE = 2 << 20
"""Bytes of a node or a root, at most."""
MAX_PATH = 64 << 10
"""Bytes of a path, of a link's target, and of an entry's extended attributes together, at most."""
MAX_FILE = 1 << 50
"""Bytes of a file, at most."""

_LEAF_MASK = 511
_LIST_MASK = 255
_INNER_MASK = 255
_INT64 = (1 << 63) - 1

_Count = Annotated[int, Meta(ge=0, le=_INT64)]
_Id = Annotated[bytes, Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]
_Path = Annotated[bytes, Meta(max_length=MAX_PATH)]


class Row(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """An entry inside a leaf, without its directory."""

    name: Annotated[bytes, Meta(min_length=1, max_length=MAX_PATH)]
    kind: Annotated[int, Meta(ge=1, le=3)]
    mode: Annotated[int, Meta(ge=0, le=0o7777)]
    mtime_ns: Annotated[int, Meta(ge=-_INT64 - 1, le=_INT64)]
    size: Annotated[int, Meta(ge=0, le=MAX_FILE)]
    depth: Annotated[int, Meta(ge=0, le=MAX_DEPTH)]
    refs: Annotated[bytes, Meta(max_length=INLINE_REFS * NODE_REF.size)]
    target: _Path
    link: _Count
    flags: _Count
    xattrs: list[tuple[bytes, bytes]] | None


class Group(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A run of entries of one directory."""

    directory: _Path
    rows: Annotated[list[Row], Meta(min_length=1, max_length=LEAF_MAX)]


class NodeRef(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A child of an inner node or of the root: its first entry, chunk id and length, and how many entries it holds."""

    directory: _Path
    name: _Path
    chunk_id: _Id
    length: Annotated[int, Meta(ge=1, le=MAX_NODE)]
    count: Annotated[int, Meta(ge=1, le=_INT64)]

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Sort key of the first entry below this node."""
        return self.directory.replace(b"/", b"\0"), self.name


class Root(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The root of a manifest. ``depth`` 0: the children are leaves; n: inner nodes of depth n-1."""

    checksum: _Id
    totals: tuple[_Count, _Count, _Count, _Count]
    depth: Annotated[int, Meta(ge=0, le=MAX_DEPTH)]
    children: Annotated[list[NodeRef], Meta(max_length=LEAF_MAX)]


_encoder = msgspec.msgpack.Encoder()
_leaf_decoder = msgspec.msgpack.Decoder(Annotated[list[Group], Meta(min_length=1, max_length=LEAF_MAX)])
_inner_decoder = msgspec.msgpack.Decoder(Annotated[list[NodeRef], Meta(min_length=1, max_length=LEAF_MAX)])
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
    _check_children(root.children)
    if sum(root.totals[:3]) != sum(child.count for child in root.children):
        raise FormatError("the totals of a manifest are not those of its nodes")
    if root.depth and not root.children:
        raise FormatError("the root of a manifest is damaged")
    return root


def decode_inner(data: bytes) -> list[NodeRef]:
    """Parse an inner node."""
    children: list[NodeRef] = _decode(_inner_decoder, data)
    _check_children(children)
    return children


def decode_leaf(data: bytes) -> list[Group]:
    """Parse a leaf: names are single components, entries are in order, kinds and lengths are possible."""
    groups: list[Group] = _decode(_leaf_decoder, data)
    before: tuple[bytes, bytes] | None = None
    entries = 0
    for group in groups:
        directory, rows = group.directory, group.rows
        if directory:
            for component in directory.split(b"/"):
                _check_name(component)
        key = directory.replace(b"/", b"\0")
        if before is not None and (key, rows[0].name) <= before:
            raise FormatError("the entries of a manifest are out of order")
        last = b""
        for row in rows:
            name = row.name
            if name in {b".", b".."} or b"/" in name or b"\0" in name:
                _check_name(name)
            if name <= last:
                raise FormatError("the entries of a manifest are out of order")
            last = name
            check_row(row)
        before = key, last
        entries += len(rows)
    if entries > LEAF_MAX:
        raise FormatError("a leaf of a manifest holds too many entries")
    return groups


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    if len(data) > MAX_NODE:
        raise FormatError("a node of a manifest is too large")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"a node of a manifest can't be parsed: {error}") from None


def _check_name(name: bytes) -> None:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FormatError(f"a manifest holds the illegal name {name[:80]!r}")


def check_row(row: Row) -> None:
    """Check what the types of a row do not say; ``FormatError`` for an entry that can't be.

    Writers call it too: a tree that nobody can read must not be committed.
    """
    if row.kind == 1:
        refs = row.refs
        if row.depth == 0 and len(refs) == CHUNK_REF.size:
            length = int.from_bytes(refs[DIGEST_SIZE:], "little")
            if length != row.size or not 0 < length <= MAX_RAW:
                raise FormatError("the chunks of a file do not add up to its size")
        elif refs or row.size or row.depth:
            check_list(row.depth, refs, row.size, most=INLINE_REFS)
        if row.target:
            raise FormatError("a manifest holds a file with a link's target")
    elif row.refs or row.size or row.depth or row.link:
        raise FormatError("a manifest holds a folder or link with a file's content")
    elif row.kind == 3 and (not row.target or b"\0" in row.target):
        raise FormatError("a manifest holds a link without a possible target")
    elif row.kind == 2 and row.target:
        raise FormatError("a manifest holds a folder with a link's target")
    if row.xattrs:
        _check_xattrs(row.xattrs)


def _check_xattrs(xattrs: Sequence[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in xattrs]
    size = sum(len(name) + len(value) for name, value in xattrs)
    if names != sorted(set(names)) or size > MAX_PATH:
        raise FormatError("a manifest holds impossible extended attributes")


def _check_children(children: Sequence[NodeRef]) -> None:
    before: tuple[bytes, bytes] | None = None
    for child in children:
        key = child.key
        if before is not None and key <= before:
            raise FormatError("the nodes of a manifest are out of order")
        before = key


def list_records(depth: int, refs: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield ``(id, raw length)`` of each record of a chunk list, or of a list node of this depth."""
    record = CHUNK_REF if depth == 0 else NODE_REF
    if len(refs) % record.size:
        raise FormatError("a chunk list is damaged")
    return record.iter_unpack(refs)


def check_list(depth: int, refs: bytes, size: int, *, most: int = LIST_MAX) -> None:
    """Check that a chunk list, or a list node of this depth, has at most ``most`` records and covers ``size`` bytes.

    No record may be empty: otherwise lists that share nodes could be longer than anyone can read, and cover nothing.
    """
    lengths = [length for _, length in list_records(depth, refs)]
    if not 0 < len(lengths) <= most or sum(lengths) != size or not min(lengths):
        raise FormatError("the chunks of a file do not add up to its size")
    if depth == 0 and max(lengths) > MAX_RAW:
        raise FormatError("a manifest holds an impossible chunk")


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
