"""Stores with one writer: those on services without conditional writes.

Decided here and only here: who the writer is. ``store.json`` has the feature ``single-writer`` and the BLAKE3 of a
random token; the token itself is in the state folder of the user and machine that made the store, with the machine's
id, so that a home folder shared by several machines makes no second writer. Everybody else reads. The token is
replaced by ``take_over``, after which the former writer's changes are refused: every change of a name, a head or a
version looks at ``store.json`` first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from casstore import hashing
from casstore.backend.base import Backend
from casstore.backend.wrap.single import SingleWriterBackend
from casstore.errors import AccessError, ConflictError, StorageError, UsageError
from casstore.format import record
from casstore.repo import layout
from casstore.structs import from_json

if TYPE_CHECKING:
    from casstore.repo.store import StoreConfig

__all__ = ["FEATURE", "guarded", "is_writer", "new_token", "take_over"]

FEATURE = "single-writer"
_CONTEXT = "casstore single-writer token 1"
_FRESH = 30.0
"""Seconds for which a look at ``store.json`` is good enough for objects that are new."""


class _Token(msgspec.Struct, frozen=True):
    token: str
    machine: str

    def __repr__(self) -> str:
        return "_Token()"


def guarded(backend: Backend, config: StoreConfig) -> Backend:
    """The back end of a store with one writer: conditions kept by this machine, and writes refused to all others."""
    looked = -_FRESH

    def permit(fresh: bool) -> None:
        nonlocal looked
        if not fresh and time.monotonic() - looked < _FRESH:
            return
        if not is_writer(config.id, _read_config(backend)):
            raise AccessError(
                f"{backend.url} has no conditional writes, and another machine or user is its one writer",
                hint="write through a server that runs there, or take its place: osmo store take-over",
            )
        looked = time.monotonic()

    return SingleWriterBackend(backend, os.path.join(_folder(config.id), "locks"), permit)


def is_writer(store_id: str, config: StoreConfig) -> bool:
    """Whether this user on this machine is the writer of a store."""
    try:
        with open(_token_path(store_id), "rb") as file:
            found = from_json(file.read(4096), _Token)
    except (OSError, msgspec.MsgspecError):
        return False
    return config.id == store_id and config.writer == _digest(found.token) and found.machine == _machine()


def new_token(store_id: str) -> str:
    """Make this user on this machine the writer, as far as that is decided here; return what ``store.json`` says.

    ``StorageError`` when the token can't be kept.
    """
    token = secrets.token_hex(32)
    path = _token_path(store_id)
    temp = f"{path}.{os.urandom(4).hex()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(_Token(token, _machine())))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temp, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise StorageError(f"can't keep the writer's token in {path}: {error.strerror}") from error
    return _digest(token)


def take_over(backend: Backend) -> None:
    """Become the writer of the store with one writer on this back end, in place of whoever is.

    Whoever was may be in the middle of an upload: stop it first. Its next change is refused; what it has stored is
    garbage then, and no version is lost. ``UsageError`` for a store that anybody may write.
    """
    inner = backend.inner if isinstance(backend, SingleWriterBackend) else backend
    config = _read_config(inner)
    if FEATURE not in config.features:
        raise UsageError(f"the store at {inner.url} has conditional writes: everybody may write already")
    mine = msgspec.structs.replace(config, writer=new_token(config.id))
    inner.put(layout.STORE, [record.encode("store", mine)])
    if _read_config(inner).writer != mine.writer:
        raise ConflictError(f"somebody else takes over {inner.url} at the same time", hint="agree who is to write")


def _read_config(backend: Backend) -> StoreConfig:
    from casstore.repo.store import read_config  # noqa: PLC0415 - they need each other

    return read_config(backend)


def _digest(token: str) -> str:
    return hashing.derive(_CONTEXT, token.encode()).hex()


def _machine() -> str:
    """An id of this machine that is no secret and says nothing about it."""
    name = socket.gethostname()
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii", errors="replace") as file:
        name = file.read(64).strip() or name
    return hashing.derive("casstore single-writer machine 1", name.encode()).hex()[:32]


def _folder(store_id: str) -> str:
    home = os.environ.get("XDG_STATE_HOME", "")
    state = home if os.path.isabs(home) else os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "casstore", "writer", store_id)


def _token_path(store_id: str) -> str:
    return os.path.join(_folder(store_id), "token")
