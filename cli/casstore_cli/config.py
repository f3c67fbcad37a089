"""Changing what the user configured.

Decided here and only here: how ``config.yaml`` is written. It is shared with OSMO: what we do not know is kept as it
is. What the file holds is decided in ``casstore.config``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from casstore.config import Config, find_paths, given, mapping_of, parse_raw, read_raw
from casstore.errors import UsageError

__all__ = ["change_config", "change_raw_config", "private_dir"]


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
    import fcntl

    import yaml

    paths = find_paths()
    private_dir(paths.config)
    with open(os.path.join(paths.config, ".config.lock"), "a", encoding="ascii", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        raw = read_raw(paths.config_file)
        change(raw)
        config = parse_raw(raw, paths, paths.config_file)
        text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
        _write_atomic(os.path.realpath(paths.config_file), text)
    return config


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_atomic(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
