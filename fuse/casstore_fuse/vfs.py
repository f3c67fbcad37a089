"""A version as a file system, without a kernel.

Decided here and only here: which number each inode has, and what ``stat`` shows. The root is 1, the entry with number
n in the manifest n + 2. Names of one file have inodes of their own here, and one number for users. Nothing can be
changed: the bits for writing are not shown, unless something that can be changed lies above.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from casstore.errors import NotFoundError
from casstore.format.manifest import Row
from casstore.model import Content, Kind, Totals
from casstore.repo.tree import Tree
from casstore_fuse.abi import Attributes
from casstore_fuse.habits import BLOCK, LEAST
from casstore_fuse.positions import Positions

__all__ = ["FIRST", "LINKS", "ROOT", "Vfs", "shown"]

ROOT = 1
FIRST = 2
"""The inode of the first entry of the manifest."""
LINKS = 1 << 62
"""Names of one file show this and their number in the manifest as their inode."""
_NO_WRITE = 0o555
_PERMISSIONS = 0o7777
_TYPES = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


class Vfs:
    """The tree of one version. Thread-safe. ``uid`` and ``gid`` own everything in it."""

    def __init__(self, tree: Tree, *, uid: int, gid: int, mtime_ns: int = 0, below: bool = False) -> None:
        """``below``: under an overlay, so that modes are shown as they are."""
        self.tree = tree
        self._mask = _PERMISSIONS if below else _NO_WRITE
        self._entries = Positions(tree)
        self._uid, self._gid = uid, gid
        self._root = Attributes(ROOT, ROOT, stat.S_IFDIR | (0o755 & self._mask), 0, mtime_ns, 2, uid, gid)
        # The kernel names folders by their numbers; it knows none that was not looked up here.
        self._folders: dict[int, bytes] = {ROOT: b""}
        self._begins: dict[int, int] = {}

    @property
    def total(self) -> int:
        """How many entries there are, without the root."""
        return self._entries.total

    @property
    def totals(self) -> Totals:
        """Sums over all entries."""
        return self.tree.totals

    def on_wait(self, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """Have what may take long, because a part of the manifest is not in memory, happen within ``waiting()``."""
        self._entries.waiting = waiting

    def attributes(self, node: int) -> Attributes:
        """Return what ``stat`` shows of an inode."""
        if node == ROOT:
            return self._root
        return self._attributes(node, self._entries.row(node - FIRST)[1])

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Return an entry of a folder, or None."""
        folder = self._path(parent)
        found = self._entries.find(folder, name)
        if found is None:
            return None
        number, row = found
        return self._seen(folder, number + FIRST, row)

    def listing(self, node: int, offset: int) -> Iterator[tuple[bytes, int, Attributes]]:
        """Yield ``(name, offset of the next one, attributes)`` of a folder's entries, from an offset on."""
        folder = self._path(node)
        if node not in self._begins:
            self._begins[node] = self._entries.begin(folder)
        number = self._begins[node] + offset
        while True:
            number, rows = self._entries.run(number, folder)
            if not rows:
                return
            for row in rows:
                number += 1
                offset += 1
                yield row.name, offset, self._seen(folder, number - 1 + FIRST, row)

    def path(self, node: int) -> bytes:
        """Return the path of an inode within the version; empty for the root."""
        if node == ROOT:
            return b""
        folder, row = self._entries.row(node - FIRST)
        return folder + b"/" + row.name if folder else row.name

    def files(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield inode, path and size of every file, in order."""
        for number, entry in enumerate(self.tree.entries()):
            if entry.kind == Kind.FILE:
                yield number + FIRST, entry.path, entry.size

    def sample(self) -> Iterator[int]:
        """Yield the sizes of some of the files, from all over the version."""
        return (row.size for row in self._entries.some_rows() if row.kind == Kind.FILE)

    def target(self, node: int) -> bytes:
        """Return what a symbolic link points to."""
        return self._entries.row(node - FIRST)[1].target

    def content(self, node: int) -> tuple[int, Content]:
        """Return size and chunk list of a file."""
        row = self._entries.row(node - FIRST)[1]
        return row.size, Content(row.depth, row.refs)

    def xattrs(self, node: int) -> dict[bytes, bytes]:
        """Return the extended attributes of an inode."""
        return {} if node == ROOT else dict(self._entries.row(node - FIRST)[1].xattrs or ())

    def _path(self, node: int) -> bytes:
        path = self._folders.get(node)
        if path is None:
            # Known to the kernel from before: a file handle, or a process that was forked off.
            folder, row = self._entries.row(node - FIRST)
            if row.kind != Kind.DIRECTORY:
                raise NotFoundError(f"inode {node} is no folder")
            path = self._folders[node] = folder + b"/" + row.name if folder else row.name
        return path

    def _seen(self, folder: bytes, node: int, row: Row) -> Attributes:
        if row.kind == Kind.DIRECTORY and node not in self._folders:
            self._folders[node] = folder + b"/" + row.name if folder else row.name
        return self._attributes(node, row)

    def _attributes(self, node: int, row: Row) -> Attributes:
        kind = row.kind
        size = len(row.target) if kind == Kind.SYMLINK else row.size
        links = 2 if row.link or kind == Kind.DIRECTORY else 1
        mode = _TYPES[Kind(kind)] | (0o777 if kind == Kind.SYMLINK else row.mode & self._mask)
        ino = LINKS + row.link if row.link else node
        block = BLOCK if kind == Kind.FILE and size >= LEAST else 4096
        return Attributes(node, ino, mode, size, row.mtime_ns, links, self._uid, self._gid, block)


def shown(path: bytes) -> str:
    """Return a path for a log: one line, whatever is in it."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
