"""What was read from where: lets an object that several versions share be read once, also after an interruption.

Decided here and only here: what identifies the bytes of an object elsewhere (its URL, its ETag and its size), and that
what is remembered is only a hint: it counts for chunks that the store really has. A SQLite file for each source, held
by a lock; without a folder for it, or when it has become too large, memory of the moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from types import TracebackType
from typing import Self

from casstore import hashing
from casstore.errors import ConflictError
from casstore.model import Content
from casstore.transfer.digests import Check
from casstore.transfer.spool import ForeignFile

__all__ = ["Memo", "identity"]

_KEEP_EVERY = 1024
_LARGEST = 1 << 30
_SCHEMA = "CREATE TABLE IF NOT EXISTS seen (id BLOB PRIMARY KEY, size INTEGER, verdict TEXT, depth INTEGER, refs BLOB)"


def identity(file: ForeignFile) -> bytes | None:
    """Return what stands for the bytes of this file and what is known of them; None when nothing does."""
    state = file.etag or (file.expected.value if file.expected else "")
    if not state:
        return None
    wanted = (file.expected.value, file.expected.text, file.expected.state) if file.expected else None
    return hashing.digest(repr((file.bucket, file.key, state, file.size, wanted)).encode("utf-8", "surrogatepass"))


class Memo:
    """The memory for one source and one store. Used by one thread at a time; close it.

    ``exclusive``: ``ConflictError`` when another process has it; otherwise nothing is remembered then.
    """

    def __init__(self, folder: str | None, source: str, store_id: str, *, exclusive: bool = True) -> None:
        self._path: str | None = None
        self._lock = -1
        if folder is not None:
            name = hashing.digest(f"{store_id} {source}".encode("utf-8", "surrogateescape")).hex()[:32]
            with contextlib.suppress(OSError):  # where nothing can be kept, more is read
                below = os.path.join(folder, "sources")
                os.makedirs(below, mode=0o700, exist_ok=True)
                self._lock = os.open(os.path.join(below, name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._path = os.path.join(below, name + ".sqlite")
        if self._lock >= 0:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                self._lock, self._path = -1, None
            if self._lock < 0 and exclusive:
                raise ConflictError(
                    f"{source} is being taken over already, by another process of yours", hint="wait until it is done"
                )
        self._db = self._open()
        self._pending = 0

    def _open(self) -> sqlite3.Connection:
        with contextlib.suppress(OSError):
            if self._path is not None and os.path.getsize(self._path) > _LARGEST:
                self._remove()
        for path in (self._path, ":memory:"):
            if path is None:
                continue
            try:
                db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            except sqlite3.Error:
                continue
            try:
                db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {_SCHEMA}; BEGIN;")
                return db
            except sqlite3.Error:
                db.close()
                if path is not None and path == self._path:
                    self._remove()  # damaged: it is only a memory
        raise sqlite3.OperationalError("no memory for a database")

    def get(self, file: ForeignFile) -> tuple[Content, int, Check] | None:
        """Return the content of this object, its size, and what was compared when it was read."""
        key = identity(file)
        if key is None:
            return None
        try:
            row = self._db.execute("SELECT size, verdict, depth, refs FROM seen WHERE id = ?", (key,)).fetchone()
            return None if row is None else (Content(row[2], row[3]), row[0], Check(row[1]))
        except (sqlite3.Error, ValueError):
            return None

    def put(self, file: ForeignFile, content: Content, size: int, verdict: Check) -> None:
        """Remember it."""
        key = identity(file)
        if key is None:
            return
        with contextlib.suppress(sqlite3.Error):
            row = (key, size, verdict.value, content.depth, content.refs)
            self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", row)
            self._pending += 1
            if self._pending % _KEEP_EVERY == 0:
                self.keep()

    def keep(self) -> None:
        """Write down what was remembered so far."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("COMMIT")
            self._db.execute("BEGIN")

    def _remove(self) -> None:
        if self._path is not None:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.unlink(self._path + suffix)

    def close(self) -> None:
        """Write it down, close it and let others go on."""
        self.keep()
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
