"""What an interrupted upload had stored already.

Decided here and only here: how a running upload leaves word of its packs, and how the next one finds it. Each upload
has a file of its own in the state folder, locked for as long as it runs: first a line that says what it is, then the
ids of the packs that are durable but perhaps not in the index yet. A file without a holder was left by a crash: the
next upload to that store adopts its packs and removes it. Losing these files costs time, never data: where they can't
be written, nothing is remembered. They are this machine's, and on its local disk: see ``localfs``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

import msgspec

from casstore import hashing
from casstore.errors import FormatError
from casstore.structs import from_json
from casstore.transfer.localfs import local_folder


class Header(msgspec.Struct, frozen=True):
    """First line of a journal: the dataset, and when the upload began (seconds since the epoch)."""

    dataset: str
    started: float


class Unfinished(msgspec.Struct, frozen=True):
    """An upload that was interrupted: its journal, and the packs that it left."""

    path: str
    header: Header
    packs: tuple[bytes, ...]


class Journal:
    """The journal of one running upload. ``add`` may be called from any thread."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def create(cls, state_dir: str, store_id: str, dataset: str) -> Journal | None:
        """Start a journal, held by this process until it is closed. None where there can be none."""
        folder = _folder(state_dir, store_id)
        if folder is None:
            return None
        path = os.path.join(folder, f"{time.time_ns():020d}-{os.urandom(4).hex()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        except OSError:
            return None
        try:
            # Another upload may be looking whether it is held, for a moment: wait.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, msgspec.json.encode(Header(dataset, time.time())) + b"\n")
        except OSError:
            os.close(descriptor)
            return None
        return cls(descriptor, path)

    def add(self, pack_id: bytes) -> None:
        """Note a pack that is durable. One short append: whole or not there after a crash."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, pack_id.hex().encode() + b"\n")

    def finish(self) -> None:
        """The upload is committed: remove the journal."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Let go of the journal and leave it for the next upload."""
        os.close(self._descriptor)


def unfinished(state_dir: str, store_id: str) -> Iterator[Unfinished]:
    """Yield the interrupted uploads to this store, newest first."""
    folder = _folder(state_dir, store_id)
    if folder is None:
        return
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except OSError:
        return
    for name in names:
        found = _read(os.path.join(folder, name))
        if found is not None:
            yield found


def discard(upload: Unfinished) -> None:
    """Remove the journal of an interrupted upload whose packs were adopted."""
    with contextlib.suppress(OSError):
        os.unlink(upload.path)


def _folder(state_dir: str, store_id: str) -> str | None:
    local = local_folder(state_dir)
    return None if local is None else os.path.join(local, "uploads", store_id)


def _read(path: str) -> Unfinished | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            first, *lines = file.read().split(b"\n")
        except OSError:
            return None  # running, or not to be read
    try:
        header = from_json(first, Header)
    except msgspec.MsgspecError:
        return None
    packs: list[bytes] = []
    for line in lines:
        with contextlib.suppress(FormatError, UnicodeDecodeError):
            packs.append(hashing.from_hex(line.decode("ascii")))
    return Unfinished(path, header, tuple(packs))
