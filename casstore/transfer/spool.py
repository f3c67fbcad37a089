"""Files of a source that comes in no order, put in the order of a version, on disk.

Decided here and only here: that any number of entries is sorted in bounded memory, that folders which nobody listed
exist where a file is below them, and that a path is there once and is one thing. A SQLite file in a temporary folder.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from casstore.errors import FormatError
from casstore.format.manifest import MAX_FILE, MAX_PATH
from casstore.structs import from_msgpack
from casstore.transfer.digests import Expected

__all__ = ["UNKNOWN", "ForeignFile", "ForeignFolder", "Select", "Spool", "path_problem"]

Select = Callable[[bytes], bool]

UNKNOWN = -1
"""Size of a file that has to be looked at first."""
_NAME_MAX = 255
_FOLDERS = 1 << 16
_DIRECTORY, _FILE = 0, 1

_SCHEMA = """
CREATE TABLE entry (
    parent BLOB, name BLOB, kind INTEGER, size INTEGER, bucket TEXT, key TEXT, etag TEXT, mode INTEGER, mtime INTEGER,
    expected BLOB, PRIMARY KEY (parent, name)) WITHOUT ROWID;
"""


class ForeignFile(NamedTuple):
    """A file of a version to be, and the object that holds its bytes.

    ``bucket`` is the URL of its bucket, as its client's. ``etag``: the state of the object that is meant, ``""`` for
    the one that it is in when it is first read. ``size`` in bytes, or ``UNKNOWN``.
    """

    path: bytes
    size: int
    bucket: str
    key: str
    etag: str = ""
    mode: int = 0o644
    mtime_ns: int = 0
    expected: Expected | None = None

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return f"{self.bucket}/{self.key}"


class ForeignFolder(NamedTuple):
    """A folder of a version to be."""

    path: bytes
    mode: int = 0o755
    mtime_ns: int = 0


def path_problem(path: bytes) -> str | None:
    """Return why this can't be the path of an entry, or None. Nothing that is written below a folder may leave it."""
    if not path or path.startswith(b"/"):
        return "it is absolute" if path else "it is empty"
    if b"\0" in path:
        return "it holds a zero byte"
    parts = path.split(b"/")
    if b".." in parts:
        return "it leaves the dataset"
    if b"" in parts or b"." in parts:
        return "a part of it is empty or '.'"
    if len(path) > MAX_PATH or max(map(len, parts)) > _NAME_MAX:
        return "it is too long"
    return None


class Spool:
    """Collects entries and yields them in order. Used by one thread at a time; close it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="casstore-spool-", ignore_cleanup_errors=True)
        self._db = sqlite3.connect(
            os.path.join(self._folder.name, "entries"), isolation_level=None, check_same_thread=False
        )
        try:
            self._db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA} BEGIN;")
        except BaseException:
            self.close()
            raise
        self._folders: set[bytes] = set()
        self.files = 0
        self.size = 0
        """Bytes of the files whose size is known."""
        self.unknown = 0
        """Files whose size is not."""

    def add(self, entry: ForeignFile | ForeignFolder) -> None:
        """Add one entry; ``FormatError`` says why it can't be one beside those that are there."""
        problem = path_problem(entry.path)
        if problem is None and isinstance(entry, ForeignFile) and entry.size > MAX_FILE:
            problem = f"it is larger than {MAX_FILE} bytes"
        if problem is not None:
            raise FormatError(problem)
        parent, _, name = entry.path.rpartition(b"/")
        self._make_folders(parent)
        if isinstance(entry, ForeignFolder):
            self._add_folder(entry)
            return
        expected = None if entry.expected is None else msgspec.msgpack.encode(entry.expected)
        row = (_FILE, entry.size, entry.bucket, entry.key, entry.etag, entry.mode, entry.mtime_ns, expected)
        if not self._insert(parent, name, row):
            other = "a folder" if self._kind(parent, name) == _DIRECTORY else "another file"
            raise FormatError(f"{other} has the same path")
        self.files += 1
        self.size += max(0, entry.size)
        self.unknown += entry.size < 0

    def _make_folders(self, path: bytes) -> None:
        if path and path not in self._folders:
            self._make_folders(path.rpartition(b"/")[0])
            self._add_folder(ForeignFolder(path))

    def _add_folder(self, folder: ForeignFolder) -> None:
        parent, _, name = folder.path.rpartition(b"/")
        row = (_DIRECTORY, 0, "", "", "", folder.mode, folder.mtime_ns, None)
        if not self._insert(parent, name, row) and self._kind(parent, name) != _DIRECTORY:
            raise FormatError("a file has the path of a folder")
        if len(self._folders) >= _FOLDERS:
            self._folders.clear()
        self._folders.add(folder.path)

    def _insert(self, parent: bytes, name: bytes, row: tuple[Any, ...]) -> bool:
        sql = "INSERT OR IGNORE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        return bool(self._db.execute(sql, (parent.replace(b"/", b"\0"), name, *row)).rowcount)

    def _kind(self, parent: bytes, name: bytes) -> int:
        found = self._db.execute(
            "SELECT kind FROM entry WHERE parent = ? AND name = ?", (parent.replace(b"/", b"\0"), name)
        ).fetchone()
        return int(found[0])

    def entries(self) -> Iterator[ForeignFile | ForeignFolder]:
        """Yield everything in the order of ``casstore.model.sort_key``."""
        for parent, name, kind, size, bucket, key, etag, mode, mtime, expected in self._db.execute(
            "SELECT * FROM entry ORDER BY parent, name"
        ):
            path = parent.replace(b"\0", b"/") + b"/" + name if parent else name
            if kind == _DIRECTORY:
                yield ForeignFolder(path, mode, mtime)
                continue
            known = None if expected is None else from_msgpack(expected, Expected)
            yield ForeignFile(path, size, bucket, key, etag, mode, mtime, known)

    def close(self) -> None:
        """Remove the file."""
        self._db.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
