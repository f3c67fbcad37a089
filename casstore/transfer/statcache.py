"""What was uploaded from where: lets an unchanged file, or a whole unchanged tree, go unread.

Decided here and only here: when a file counts as unchanged (mode, size, times of modification and change, inode all
the same, and not changed just before it was looked at), and how that is kept. A SQLite file in the user's cache folder;
losing it costs time, never data: what it says is used only for chunks that the store really has.

On a network file system SQLite's locks can't be trusted: see ``localfs``. A cache that can't be opened or is damaged is
passed over.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from casstore.transfer.localfs import local_folder
from casstore.transfer.scan import State

SLICE = 4096
"""Files of one directory that are kept and looked up together."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tree (
    store TEXT, key BLOB, signature BLOB, result BLOB, PRIMARY KEY (store, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folder (
    store TEXT, path BLOB, first BLOB, last BLOB, files BLOB, PRIMARY KEY (store, path, first)) WITHOUT ROWID;
"""


class Known(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A file as it was when it was last uploaded, and the list of its chunks."""

    state: State
    depth: int
    refs: bytes


class CachedTree(msgspec.Struct, array_like=True, frozen=True):
    """The outcome of an upload of a whole tree. ``packs``: all packs that it needs, with their sizes."""

    manifest: bytes
    checksum: bytes
    totals: tuple[int, int, int, int]
    skipped: tuple[str, ...]
    packs: list[tuple[bytes, int]]


_encode = msgspec.msgpack.Encoder().encode
_decode_files = msgspec.msgpack.Decoder(dict[bytes, Known])
_decode_tree = msgspec.msgpack.Decoder(CachedTree)


class StatCache:
    """The cache for one store. Used by one thread at a time; several processes may have it open."""

    def __init__(self, path: str | None, store_id: str) -> None:
        self._store = store_id
        self._lock = threading.Lock()
        self._db = _open(path) if path else None

    def _query(self, sql: str, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._db is None:
            return []
        try:
            with self._lock:
                return self._db.execute(sql, args).fetchall()
        except sqlite3.Error:
            return []

    def _change(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error), self._lock, self._db:
            for sql, args in statements:
                self._db.execute(sql, args)

    def tree(self, key: bytes, signature: bytes) -> CachedTree | None:
        """Return the outcome of the last upload with this key, if nothing was touched since."""
        rows = self._query(
            "SELECT result FROM tree WHERE store = ? AND key = ? AND signature = ?",
            (self._store, key, signature),
        )
        return _decoded(_decode_tree, rows[0][0]) if rows else None

    def has_tree(self, key: bytes) -> bool:
        """Whether there was an upload with this key, so that asking for the signature is worth its cost."""
        return bool(self._query("SELECT 1 FROM tree WHERE store = ? AND key = ?", (self._store, key)))

    def keep_tree(self, key: bytes, signature: bytes, result: CachedTree) -> None:
        """Remember the outcome of an upload."""
        sql = "INSERT OR REPLACE INTO tree VALUES (?, ?, ?, ?)"
        self._change([(sql, (self._store, key, signature, _encode(result)))])

    def folder(self, path: bytes, first: bytes, last: bytes) -> dict[bytes, Known]:
        """Return what is known of the files of a directory whose names are between ``first`` and ``last``."""
        found: dict[bytes, Known] = {}
        sql = "SELECT files FROM folder WHERE store = ? AND path = ? AND first <= ? AND last >= ?"
        for (blob,) in self._query(sql, (self._store, path, last, first)):
            found.update(_decoded(_decode_files, blob) or {})
        return found

    def keep_folder(self, path: bytes, first: bytes, last: bytes, files: Mapping[bytes, Known]) -> None:
        """Remember files of a directory: all that are between ``first`` and ``last`` now."""
        drop = "DELETE FROM folder WHERE store = ? AND path = ? AND first >= ? AND first <= ?"
        add = "INSERT OR REPLACE INTO folder VALUES (?, ?, ?, ?, ?)"
        self._change(
            [
                (drop, (self._store, path, first, last)),
                (add, (self._store, path, first, last, _encode(files))),
            ]
        )

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()


def _decoded(decoder: msgspec.msgpack.Decoder[Any], blob: Any) -> Any:
    try:
        return decoder.decode(blob)
    except (msgspec.MsgspecError, TypeError):
        return None


def _open(path: str) -> sqlite3.Connection | None:
    folder = local_folder(os.path.dirname(path))
    if folder is None:
        return None
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        db = sqlite3.connect(os.path.join(folder, os.path.basename(path)), timeout=5, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # a cache: losing it in a power cut is fine
        db.executescript(_SCHEMA)
    except (sqlite3.Error, OSError):
        return None
    return db
