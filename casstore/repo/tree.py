"""The tree of a version: building one, and reading one without loading it.

Decided here and only here: how a stream of sorted entries becomes nodes, and how a path is found again. Building keeps
one leaf and the list of the children of the levels above in memory; reading keeps a few leaves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from casstore.errors import FormatError, NotFoundError
from casstore.format.manifest import (
    CHUNK_REF,
    INLINE_REFS,
    LEAF_MAX,
    LIST_MAX,
    LIST_MIN,
    MAX_DEPTH,
    MAX_NODE,
    MAX_PATH,
    NODE_BYTES,
    NODE_REF,
    Group,
    NodeRef,
    Root,
    check_list,
    check_row,
    checksum_bytes,
    decode_inner,
    decode_leaf,
    decode_root,
    encode_inner,
    encode_leaf,
    encode_root,
    ends_inner,
    ends_leaf,
    ends_list,
    entry_of,
    list_records,
    row_of,
)
from casstore.hashing import Hasher, digest
from casstore.model import Content, Entry, Kind, Totals, sort_key

_CACHED_NODES = 64

_Key: TypeAlias = tuple[bytes, bytes]


class NodeSink(Protocol):
    """Where a builder puts its nodes; a ``Writer`` is one."""

    def put_node(self, data: bytes) -> bytes:
        """Store a node and return its id."""
        ...

    def put_manifest(self, data: bytes) -> bytes:
        """Store the root after everything below it and return its id."""
        ...


class _Node(NamedTuple):
    """A parsed node, its first entry, the sort key of its last one, and how many entries it stands for."""

    below: list[NodeRef] | list[Group]
    first: tuple[bytes, bytes]
    last: tuple[bytes, bytes]
    entries: int


class NodeSource(Protocol):
    """Where a tree reads its nodes; a ``Store`` is one."""

    def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
        """Return a verified chunk."""
        ...


def _width(depth: int) -> int:
    return CHUNK_REF.size if depth == 0 else NODE_REF.size


class ListBuilder:
    """Turns the chunks of one file, in order, into its ``Content``. Equal lists give equal contents, always."""

    def __init__(self, sink: NodeSink) -> None:
        self._sink = sink
        self._levels: list[bytearray] = [bytearray()]
        self.size = 0

    def add(self, chunk_id: bytes, length: int) -> None:
        """Append one chunk."""
        self.size += length
        self._levels[0] += CHUNK_REF.pack(chunk_id, length)
        self._cut(0, chunk_id)

    def extend(self, records: Iterable[tuple[bytes, int]]) -> None:
        """Append several chunks."""
        for chunk_id, length in records:
            self.add(chunk_id, length)

    def _cut(self, depth: int, last_id: bytes) -> None:
        count = len(self._levels[depth]) // _width(depth)
        # Nothing is cut before the list is longer than an entry may hold, so that short lists have one form only.
        if count > INLINE_REFS and (count >= LIST_MAX or (count >= LIST_MIN and ends_list(last_id))):
            self._emit(depth)

    def _emit(self, depth: int) -> None:
        data = bytes(self._levels[depth])
        length = sum(length for _, length in list_records(depth, data))
        node_id = self._sink.put_node(data)
        self._levels[depth].clear()
        if depth + 1 == len(self._levels):
            self._levels.append(bytearray())
        self._levels[depth + 1] += NODE_REF.pack(node_id, length)
        self._cut(depth + 1, node_id)

    def finish(self) -> Content:
        """Return the content; the builder can't be used afterwards."""
        depth = 0
        while depth + 1 < len(self._levels) or len(self._levels[depth]) > INLINE_REFS * _width(depth):
            if self._levels[depth]:
                self._emit(depth)
            depth += 1
        return Content(depth, bytes(self._levels[depth]))


class ChecksumBuilder:
    """The checksum and the totals of a stream of sorted entries. See ``format.manifest.checksum_bytes``."""

    def __init__(self) -> None:
        self._hasher = Hasher(derive_key_context="casstore 2026 version checksum 1")
        self._files = self._directories = self._symlinks = self._size = 0

    def add(self, entries: Sequence[Entry]) -> None:
        """Count these entries in."""
        self._hasher.update(checksum_bytes(entries))
        for entry in entries:
            if entry.kind == Kind.FILE:
                self._files += 1
                self._size += entry.size
            elif entry.kind == Kind.DIRECTORY:
                self._directories += 1
            else:
                self._symlinks += 1

    def checksum(self) -> bytes:
        """Return the checksum of all entries so far."""
        return self._hasher.digest()

    def totals(self) -> Totals:
        """Return the sums over all entries so far."""
        return Totals(self._files, self._directories, self._symlinks, self._size)


class TreeBuilder:
    """Builds the manifest of a version from entries that arrive in the order of ``sort_key``."""

    def __init__(self, sink: NodeSink) -> None:
        self._sink = sink
        self._sums = ChecksumBuilder()
        self._leaf: list[Entry] = []
        self._leaf_size = 0
        self._children: list[NodeRef] = []
        self._last: tuple[bytes, bytes] | None = None
        self.checksum = b""
        self.totals = Totals()

    def add(self, entry: Entry) -> None:
        """Append one entry; ``FormatError`` when it is out of order or twice there."""
        key = sort_key(entry.path)
        if self._last is not None and key <= self._last:
            raise FormatError(f"entry {entry.path[:200]!r} is out of order")
        if len(entry.path) > MAX_PATH:
            raise FormatError(f"the path {_show(entry.path[:200])}... is longer than {MAX_PATH} bytes")
        self._last = key
        self._leaf.append(entry)
        self._leaf_size += len(entry.path) + len(entry.content.refs) + len(entry.target)
        if entry.xattrs:
            self._leaf_size += sum(len(name) + len(value) for name, value in entry.xattrs.items())
        if len(self._leaf) >= LEAF_MAX or self._leaf_size >= NODE_BYTES or ends_leaf(entry.path):
            self._emit()

    def _emit(self) -> None:
        entries, self._leaf, self._leaf_size = self._leaf, [], 0
        groups: list[Group] = []
        for entry in entries:
            directory = entry.parent
            if not groups or groups[-1].directory != directory:
                groups.append(Group(directory, []))
            row = row_of(entry)
            check_row(row)
            groups[-1].rows.append(row)
        self._sums.add(entries)
        data = encode_leaf(groups)
        if len(data) > MAX_NODE:
            raise FormatError(f"an entry is too large near {_show(entries[0].path[:200])}")
        node_id = self._sink.put_node(data)
        self._children.append(NodeRef(groups[0].directory, groups[0].rows[0].name, node_id, len(data), len(entries)))

    def finish(self) -> bytes:
        """Store the root, after everything below it, and return the manifest's id."""
        if self._leaf:
            self._emit()
        depth, children = 0, self._children
        while len(children) > LEAF_MAX or sum(map(_width_of, children)) > NODE_BYTES:
            children = [self._inner(run) for run in _runs(children)]
            depth += 1
        self.checksum, self.totals = self._sums.checksum(), self._sums.totals()
        return self._sink.put_manifest(encode_root(self.checksum, self.totals, depth, children))

    def _inner(self, children: list[NodeRef]) -> NodeRef:
        data = encode_inner(children)
        node_id = self._sink.put_node(data)
        first = children[0]
        return NodeRef(first.directory, first.name, node_id, len(data), sum(child.count for child in children))


def living_root(sink: NodeSink, data: bytes, dying: Container[bytes]) -> tuple[bytes, bytes]:
    """Return the id and the bytes of a root of this tree that is not about to be deleted, this one if possible.

    The nodes that another root needs are stored.
    """
    while (manifest_id := digest(data)) in dying:
        other = _rewrapped(sink, data)
        if other == data:
            break  # a root of the last kind: those are never collected
        data = other
    return manifest_id, data


def _rewrapped(sink: NodeSink, data: bytes) -> bytes:
    """Return another root of the same tree, with one more level, so that its id is another one.

    The tree without entries has one root only, which comes back; so does one that can't have more levels.
    """
    root = decode_root(data)
    if not root.children or root.depth == MAX_DEPTH:
        return data
    first = root.children[0]
    node = encode_inner(root.children)
    entries = sum(child.count for child in root.children)
    top = NodeRef(first.directory, first.name, sink.put_node(node), len(node), entries)
    return encode_root(root.checksum, Totals(*root.totals), root.depth + 1, [top])


def _width_of(child: NodeRef) -> int:
    return len(child.directory) + len(child.name)


def _runs(children: Sequence[NodeRef]) -> Iterator[list[NodeRef]]:
    run: list[NodeRef] = []
    size = 0
    for child in children:
        run.append(child)
        size += _width_of(child)
        if len(run) >= LEAF_MAX or size >= NODE_BYTES or ends_inner(child.chunk_id):
            yield run
            run, size = [], 0
    if run:
        yield run


class Tree:
    """A version's tree, opened by reading its root alone. Safe for concurrent readers."""

    def __init__(self, source: NodeSource, manifest_id: bytes, root: Root) -> None:
        self._source = source
        self._root = root
        self._nodes: OrderedDict[tuple[bytes, bool], _Node] = OrderedDict()
        self.id = manifest_id
        self.checksum = root.checksum
        self.totals = Totals(*root.totals)

    @property
    def root(self) -> Root:
        """The parsed root, for comparing and for checking trees node by node."""
        return self._root

    def entries(self, prefix: bytes = b"", *, skip: Container[bytes] = ()) -> Iterator[Entry]:
        """Yield the entries in order: all of them, or the entry ``prefix`` and everything below it.

        ``NotFoundError`` when there is no such entry. Nodes whose id is in ``skip`` are passed over unread, with all
        that is below them.
        """
        if not prefix:
            yield from self._from((b"", b""), skip)
            return
        top = self.lookup(prefix)
        if top is None:
            raise NotFoundError(f"{_show(prefix)} is not in this version")
        yield top
        if top.kind == Kind.DIRECTORY:
            inside, below = prefix, prefix + b"/"
            for entry in self._from((prefix.replace(b"/", b"\0"), b""), skip):
                parent = entry.parent
                if parent != inside and not parent.startswith(below):
                    return
                yield entry

    def listdir(self, path: bytes = b"") -> Iterator[Entry]:
        """Yield the entries of one directory, by name. ``NotFoundError`` when there is no such directory."""
        if path:
            top = self.lookup(path)
            if top is None or top.kind != Kind.DIRECTORY:
                raise NotFoundError(f"{_show(path)} is not a directory of this version")
        for entry in self._from((path.replace(b"/", b"\0"), b"")):
            if entry.parent != path:
                return
            yield entry

    def entries_from(self, directory: bytes, name: bytes = b"") -> Iterator[Entry]:
        """Yield all entries in order, from the first one on that is ``name`` in ``directory`` or comes after it."""
        yield from self._from((directory.replace(b"/", b"\0"), name))

    def lookup(self, path: bytes) -> Entry | None:
        """Return the entry with this path, or None."""
        directory, _, name = path.rpartition(b"/")
        for groups in self._leaves((directory.replace(b"/", b"\0"), name)):
            for group in groups:
                if group.directory == directory:
                    for row in group.rows:
                        if row.name == name:
                            return entry_of(directory, row)
            return None
        return None

    def chunks(self, entry: Entry) -> Iterator[tuple[bytes, int]]:
        """Yield ``(chunk id, raw length)`` of a file's chunks in order."""
        yield from self.records(entry.content.depth, entry.content.refs)

    def list_nodes(self, entry: Entry) -> Iterator[bytes]:
        """Yield the ids of the nodes that a file's chunk list is kept in, each once."""
        pending = [(entry.content.depth, entry.content.refs)]
        seen: set[tuple[int, bytes, int]] = set()
        while pending:
            depth, refs = pending.pop()
            if depth:
                for node_id, length in list_records(depth, refs):
                    if (depth, node_id, length) not in seen:
                        seen.add((depth, node_id, length))
                        yield node_id
                        pending.append((depth - 1, self.list_node(depth - 1, node_id, length)))

    def nodes(self) -> Iterator[bytes]:
        """Yield the ids of the nodes that the entries are kept in, the root excepted."""
        yield from self._nodes_below(self._root.children, self._root.depth, None)

    def leaf_refs(self) -> list[NodeRef]:
        """Return the references to all leaves, in order. Reads the inner nodes, if there are any, and no leaf."""
        return [ref for ref, _ in self._leaf_refs_below(self._root.children, self._root.depth, None)]

    def leaf_groups(self, ref: NodeRef, end: _Key | None) -> list[Group]:
        """Return the entries of a leaf; ``end`` is the key of the leaf after it. It is not kept."""
        return self._leaf_node(ref, end, keep=False)

    def _leaf_refs_below(
        self, children: Sequence[NodeRef], depth: int, end: _Key | None
    ) -> Iterator[tuple[NodeRef, _Key | None]]:
        for child, before in _bounded(children, end):
            if depth:
                yield from self._leaf_refs_below(self._inner_node(child, before), depth - 1, before)
            else:
                yield child, before

    def _nodes_below(self, children: Sequence[NodeRef], depth: int, end: _Key | None) -> Iterator[bytes]:
        for child, before in _bounded(children, end):
            yield child.chunk_id
            if depth:
                yield from self._nodes_below(self._inner_node(child, before), depth - 1, before)

    def records(self, depth: int, refs: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the chunks of a list, or of a list node of this depth, in order."""
        if depth == 0:
            yield from list_records(0, refs)
            return
        for node_id, length in list_records(depth, refs):
            yield from self.records(depth - 1, self.list_node(depth - 1, node_id, length))

    def list_node(self, depth: int, node_id: bytes, length: int) -> bytes:
        """Return the records of a node of a chunk list, checked against what the level above says of it."""
        refs = self._source.read_chunk(node_id)
        check_list(depth, refs, length)
        return refs

    def _from(self, key: tuple[bytes, bytes], skip: Container[bytes] = ()) -> Iterator[Entry]:
        for groups in self._leaves(key, skip):
            for group in groups:
                directory = group.directory
                ordered = directory.replace(b"/", b"\0")
                if ordered < key[0]:
                    continue
                at_key = ordered == key[0] and key[1]
                for row in group.rows:
                    if not (at_key and row.name < key[1]):
                        yield entry_of(directory, row)

    def _leaves(self, key: tuple[bytes, bytes], skip: Container[bytes] = ()) -> Iterator[list[Group]]:
        """Yield the leaves from the one that may hold ``key`` on."""
        yield from self._below(self._root.children, self._root.depth, key, skip, None)

    def _below(
        self, children: Sequence[NodeRef], depth: int, key: _Key, skip: Container[bytes], end: _Key | None
    ) -> Iterator[list[Group]]:
        for child, before in _bounded(children, end, _last_at_most(children, key)):
            if child.chunk_id in skip:
                continue
            if depth == 0:
                yield self._leaf_node(child, before)
            else:
                yield from self._below(self._inner_node(child, before), depth - 1, key, skip, before)

    def _leaf_node(self, child: NodeRef, end: _Key | None, *, keep: bool = True) -> list[Group]:
        node = self._nodes.get((child.chunk_id, True))
        if node is None:
            groups = decode_leaf(self._source.read_chunk(child.chunk_id, child.length))
            first, last = groups[0], groups[-1]
            node = _Node(
                groups,
                (first.directory, first.rows[0].name),
                (last.directory.replace(b"/", b"\0"), last.rows[-1].name),
                sum(len(group.rows) for group in groups),
            )
            if keep:
                self._keep(child, node, leaf=True)
        _check(node, child, end)
        return node.below  # type: ignore[return-value]  # what is kept as a leaf was decoded as one

    def _inner_node(self, child: NodeRef, end: _Key | None) -> list[NodeRef]:
        node = self._nodes.get((child.chunk_id, False))
        if node is None:
            below = decode_inner(self._source.read_chunk(child.chunk_id, child.length))
            first = below[0].directory, below[0].name
            node = _Node(below, first, below[-1].key, sum(one.count for one in below))
            self._keep(child, node, leaf=False)
        _check(node, child, end)
        return node.below  # type: ignore[return-value]  # what is kept as an inner node was decoded as one

    def _keep(self, child: NodeRef, node: _Node, *, leaf: bool) -> None:
        self._nodes[child.chunk_id, leaf] = node
        while len(self._nodes) > _CACHED_NODES:
            try:
                self._nodes.popitem(last=False)
            except KeyError:  # another reader was faster
                return


def _bounded(children: Sequence[NodeRef], end: _Key | None, start: int = 0) -> Iterator[tuple[NodeRef, _Key | None]]:
    """Yield each child from ``start`` on, with the key that all entries below it come before: that of the next one."""
    for number in range(start + 1, len(children)):
        yield children[number - 1], children[number].key
    if children:
        yield children[-1], end


def _check(node: _Node, child: NodeRef, end: _Key | None) -> None:
    # At every use, not only when it was read: one node may be named by several parents, who could say different things.
    # Nodes that may not overlap can't be shared within a tree, so that it is never larger than what is stored of it.
    if (*node.first, node.entries) != (child.directory, child.name, child.count):
        raise FormatError("a node of a manifest is not what its parent says")
    if end is not None and node.last >= end:
        raise FormatError("the nodes of a manifest overlap")


def _last_at_most(children: Sequence[NodeRef], key: tuple[bytes, bytes]) -> int:
    low, high = 0, len(children)
    while low < high:
        middle = (low + high) // 2
        if children[middle].key <= key:
            low = middle + 1
        else:
            high = middle
    return max(0, low - 1)


def _show(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
