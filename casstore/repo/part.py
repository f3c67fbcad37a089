"""A part of a version, as a tree of its own.

Decided here and only here: that such a tree is built anew, in memory, out of the entries that are wanted, and reads the
rest from the store, so that whoever shows or reads a version does the same with a part of it. The chunks of files are
those of the version. A folder is in it when a file or link below it is. What it costs is reading the whole manifest
twice, and about 100 bytes for each entry that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

from casstore.errors import SourceError
from casstore.format.manifest import decode_root
from casstore.hashing import digest
from casstore.model import Kind
from casstore.repo.tree import NodeSource, Tree, TreeBuilder

__all__ = ["part_of"]


class _Nodes:
    """Nodes in memory, and those of the version below them."""

    def __init__(self, source: NodeSource) -> None:
        self._source = source
        self._own: dict[bytes, bytes] = {}

    def put_node(self, data: bytes) -> bytes:
        """Keep a node; returns its id."""
        node_id = digest(data)
        self._own[node_id] = data
        return node_id

    put_manifest = put_node

    def read_chunk(self, chunk_id: bytes, raw: int | None = None) -> bytes:
        """Return a node."""
        found = self._own.get(chunk_id)
        return self._source.read_chunk(chunk_id, raw) if found is None else found

    def own(self, node_id: bytes) -> bytes:
        """Return a node that was kept here."""
        return self._own[node_id]


def part_of(tree: Tree, source: NodeSource, select: Callable[[bytes], bool]) -> Tree:
    """Return the tree of the files and links whose path ``select`` wants, with the version's own id. The same part of
    the same version is always the same tree, entry by entry.

    Raises ``SourceError`` when there are none, and what reading ``source``, the store of the version, raises.
    """
    wanted = bytearray()
    folders: set[bytes] = set()
    for entry in tree.entries():
        take = entry.kind != Kind.DIRECTORY and select(entry.path)
        wanted.append(take)
        folder = entry.parent
        while take and folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition(b"/")[0]
    if not any(wanted):
        raise SourceError("no file of the version matches")
    nodes = _Nodes(source)
    builder = TreeBuilder(nodes)
    for chosen, entry in zip(wanted, tree.entries(), strict=True):
        if chosen or (entry.kind == Kind.DIRECTORY and entry.path in folders):
            builder.add(entry)
    return Tree(nodes, tree.id, decode_root(nodes.own(builder.finish())))
