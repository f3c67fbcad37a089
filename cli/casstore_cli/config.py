"""Changing what the user configured.

Decided here and only here: how ``config.yaml`` is written. It is shared with OSMO: what we do not know is kept as it
is. What the file holds is decided in ``casstore.config``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from casstore.config import Config, find_paths, given, mapping_of, parse_raw, read_raw
from casstore.errors import UsageError

__all__ = ["change_config", "change_raw_config", "locked", "private_dir", "replacing"]


def private_dir(path: str) -> str:
    """Make a folder that only this user can enter, if it is missing; returns it."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {path}: {error.strerror}") from None
    return path


def change_config(change: Callable[[dict[str, Any]], None]) -> Config:
    """Apply ``change`` to the ``casstore`` mapping of ``config.yaml``, as ``change_raw_config`` does to the whole."""

    def change_own(raw: dict[str, Any]) -> None:
        own = mapping_of(given(raw, "casstore"), find_paths().config_file, "casstore")
        raw["casstore"] = own
        change(own)

    return change_raw_config(change_own)


def change_raw_config(change: Callable[[dict[str, Any]], None]) -> Config:
    """Apply ``change`` to what ``config.yaml`` holds and write it: atomic, 0600, locked.

    The file is read again under the lock, so that two commands that change it at once both have their effect.
    What the result holds is checked before it is written. Comments in the file are lost.
    """
    import yaml

    paths = find_paths()
    with locked(paths.config, ".config.lock"):
        raw = read_raw(paths.config_file)
        change(raw)
        config = parse_raw(raw, paths, paths.config_file)
        text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
        with replacing(paths.config_file) as write:
            write(text)
    return config


@contextlib.contextmanager
def locked(folder: str, name: str) -> Iterator[None]:
    """Hold a lock among all processes of this user; ``folder`` is made if it is missing."""
    import fcntl

    private_dir(folder)
    path = os.path.join(folder, name)
    try:
        lock = open(path, "a", encoding="ascii", opener=_private)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def replacing(path: str) -> Iterator[Callable[[str], None]]:
    """A function that writes a file anew, atomic and 0600; that it can be written is tried before the block begins."""
    path = os.path.realpath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        file = open(temporary, "w", encoding="utf-8", opener=_private)  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None

    def write(text: str) -> None:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise UsageError(f"can't write {path}: {error.strerror}") from None

    try:
        with file:
            yield write
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
