"""Which folders hold which versions.

Decided here and only here: how a download is remembered, and how its folder is known again. Nothing is put into the
folder itself, where other programs would stumble over it: a SQLite file in the user's state folder has a record for
each folder. It is found by the folder's path, or by its inode when it was moved, if some files of the version are
there with the size and time that they had.

The record has the moment (by the clock of the file system) at which the download was complete. A file with the size and
the modification time of the version that the system has not touched since then (ctime) has not changed, and so nothing
needs to be kept for each file. Only of files that had to be read because they were touched all the same it is kept what
was found, with their state at that time.

Losing this file costs time and never data: such folders are not known any more.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from typing import Any, Self

import msgspec

from casstore.transfer.localfs import local_folder
from casstore.transfer.scan import State

__all__ = ["Checkout", "Checkouts", "Sample"]

FILE = "checkouts.sqlite"
SAMPLES = 16
"""Files by which a folder is known again that is not where it was."""
_RACY_NS = 2_000_000_000
"""A file that was touched less than so long ago may be changed again without a trace."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkout (path BLOB PRIMARY KEY, inode INTEGER, record BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_inode ON checkout (inode);
CREATE TABLE IF NOT EXISTS file (
    checkout TEXT, path BLOB, content BLOB, state BLOB, same INTEGER,
    PRIMARY KEY (checkout, path, content)) WITHOUT ROWID;
"""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A file of a version; ``mtime_ns`` None where it has another time here."""

    path: bytes
    size: int
    mtime_ns: int | None


class Checkout(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds. ``regexes``: the parts of the version that were asked for; None for all of it.

    ``finished_ns``: what was touched later may have been changed. ``linked``: files may be hard links into the cache.
    ``pending``: manifests of versions that it was to become when an update was interrupted.
    """

    id: str
    store: str
    bucket: str
    dataset: str
    dataset_id: str
    version: int
    manifest: str
    made_at: str
    finished_ns: int
    regexes: tuple[str, ...] | None = None
    linked: bool = False
    pending: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkout).decode
_decode_state = msgspec.msgpack.Decoder(State).decode


class Checkouts:
    """The records of this user. Thread-safe; several processes may have it open. Close it, or use it as a context."""

    def __init__(self, state_dir: str | None) -> None:
        self._lock = threading.Lock()
        self._db = _open(state_dir) if state_dir else None

    @property
    def usable(self) -> bool:
        """Whether anything can be remembered."""
        return self._db is not None

    def find(self, folder: str | bytes) -> Checkout | None:
        """Return what this folder is known to hold."""
        path = os.path.realpath(os.fsencode(folder))
        try:
            inode = os.stat(path).st_ino
        except OSError:
            return None
        for known_path, known_inode, blob in self._query(
            "SELECT path, inode, record FROM checkout WHERE path = ? UNION ALL "
            "SELECT path, inode, record FROM checkout WHERE inode = ? AND path != ?",
            (path, inode, path),
        ):
            found = _decoded(blob)
            if found is None:
                continue
            here = known_path == path
            if not (here and known_inode == inode):
                if not here and _is_inode(known_path, inode):
                    continue  # another name of it, such as a bind mount, or a file system with the same numbers
                if not _is_likely(path, found):
                    continue
                self._change("DELETE FROM checkout WHERE path = ?", (known_path,))
                self.put(path, found)
            return found
        return None

    def put(self, folder: str | bytes, found: Checkout) -> None:
        """Remember what a folder holds."""
        path = os.path.realpath(os.fsencode(folder))
        with contextlib.suppress(OSError):
            inode = os.stat(path).st_ino
            self._change("INSERT OR REPLACE INTO checkout VALUES (?, ?, ?)", (path, inode, _encode(found)))

    def seen(self, checkout: str, path: bytes, content: bytes, state: State) -> bool | None:
        """Return whether a file in this state has this content; None when it was not looked at."""
        rows = self._query(
            "SELECT state, same FROM file WHERE checkout = ? AND path = ? AND content = ?", (checkout, path, content)
        )
        with contextlib.suppress(msgspec.MsgspecError):
            if rows and _decode_state(rows[0][0]) == state:
                return bool(rows[0][1])
        return None

    def saw(self, checkout: str, path: bytes, content: bytes, state: State, *, same: bool) -> None:
        """Remember whether a file in this state has this content."""
        if time.time_ns() - max(state[2], state[3]) > _RACY_NS:
            self._change(
                "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?)", (checkout, path, content, _encode(state), same)
            )

    def flush(self) -> None:
        """Write down what was remembered."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error), self._lock:
                self._db.commit()

    def _query(self, sql: str, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._db is None:
            return []
        try:
            with self._lock:
                return self._db.execute(sql, arguments).fetchall()
        except sqlite3.Error:
            return []

    def _change(self, sql: str, arguments: tuple[Any, ...]) -> None:
        if self._db is None:
            return
        with contextlib.suppress(sqlite3.Error), self._lock:
            self._db.execute(sql, arguments)

    def close(self) -> None:
        """Write it down and close it."""
        if self._db is not None:
            self.flush()
            with contextlib.suppress(sqlite3.Error):
                self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(state_dir: str) -> sqlite3.Connection | None:
    folder = local_folder(state_dir)
    if folder is None:
        return None
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        db = sqlite3.connect(os.path.join(folder, FILE), timeout=10, check_same_thread=False)
    except (sqlite3.Error, OSError):
        return None
    try:
        db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_SCHEMA}")
    except sqlite3.Error:
        db.close()
        return None
    return db


def _decoded(blob: Any) -> Checkout | None:
    try:
        return _decode(blob)
    except (msgspec.MsgspecError, TypeError):
        return None


def _is_inode(path: bytes, inode: int) -> bool:
    try:
        return os.stat(path).st_ino == inode
    except OSError:
        return False


def _is_likely(folder: bytes, found: Checkout) -> bool:
    for sample in found.samples:
        with contextlib.suppress(OSError, ValueError):
            status = os.lstat(os.path.join(folder, sample.path))
            if status.st_size == sample.size and sample.mtime_ns in {None, status.st_mtime_ns}:
                return True
    return False
