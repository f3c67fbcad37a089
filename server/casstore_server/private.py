"""What is secret about a server's start, and how its own processes come to know it.

Decided here and only here: that the URL of the database (it may hold a password) and the key for secrets are in no
command line, no environment and no file on their way: a process of ours inherits a descriptor of memory that has no
name, reads it and closes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from casstore.errors import NotFoundError
from casstore_server.secrets import KEY_VARIABLE, Key, KeyFile, SecretBox, parse_keys
from casstore_server.settings import Settings

__all__ = ["Private", "box_of", "handed", "received"]

_MAX_BYTES = 1 << 16


class Private(msgspec.Struct, frozen=True, kw_only=True):
    """``database`` is the URL of a PostgreSQL, empty for the SQLite file; the key is the first of ``keys``, or in
    ``key_file`` where there are none. ``buckets`` are for a process that has no other use for the database: those of
    its configs that it needs, with their credentials.
    """

    database: str = ""
    keys: tuple[str, ...] = ()
    key_file: str = ""
    buckets: dict[str, dict[str, Any]] = {}

    def __repr__(self) -> str:
        return "Private()"


def box_of(private: Private, settings: Settings) -> SecretBox:
    """The box with this key; the file is read when first something is sealed or opened."""
    if private.keys:
        keys = tuple(key for line in private.keys for key in parse_keys(line, KEY_VARIABLE))
        return SecretBox(lambda: keys)
    return SecretBox(_Lazy(Path(private.key_file or settings.own_key_file)))


class _Lazy:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: KeyFile | None = None

    def __call__(self) -> tuple[Key, ...]:
        if self._file is None:
            try:
                self._file = KeyFile(self._path)
            except NotFoundError as error:
                raise NotFoundError(error.message, hint="Put it back: nothing that is sealed opens without.") from None
        return self._file()


@contextlib.contextmanager
def handed(private: Private) -> Iterator[int]:
    """A descriptor for ``pass_fds`` of a process that calls ``received``; it can be read any number of times."""
    descriptor = os.memfd_create("casstore", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, msgspec.json.encode(private))
        yield descriptor
    finally:
        os.close(descriptor)


def received(descriptor: int) -> Private:
    """What whoever started this process handed to it."""
    try:
        return msgspec.json.decode(os.pread(descriptor, _MAX_BYTES, 0), type=Private)
    finally:
        os.close(descriptor)
