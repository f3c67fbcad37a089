"""Labels and metadata from files and from the command line.

Decided here and only here: which files are read, and how much of them. What a tree may hold, and the syntax of
``--set`` items, are ``casstore.dataset.attributes``'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from casstore.errors import SourceError, UsageError


def from_files(paths: Sequence[str], what: str) -> dict[str, Any] | None:
    """The merger, left to right, of the trees in YAML files; None without files."""
    from casstore.dataset import attributes

    return attributes.load(_read(paths), what) if paths else None


def to_set(items: Sequence[str], what: str, *, files: bool) -> dict[str, Any] | None:
    """The tree of ``--set``: its items, or with ``files`` the YAML files that they name. None without any."""
    from casstore.dataset import attributes

    if files:
        return from_files(items, what)
    return attributes.parse_set(items) if items else None


def to_delete(items: Sequence[str], *, files: bool) -> list[str]:
    """The dotted keys of ``--delete``, or with ``files`` those in the YAML files that it names."""
    from casstore.dataset import attributes

    if files:
        return [key for name, text in _read(items) for key in attributes.load_keys(name, text)]
    for item in items:
        attributes.parse_key(item)
    return list(items)


def read_file(path: str, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes; pipes and devices are refused, they may never end."""
    try:
        if not os.path.isfile(path):
            raise SourceError(f"{path}: {'not a file' if os.path.lexists(path) else 'no such file'}")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror}") from None
    if len(data) > limit:
        raise UsageError(f"{path}: larger than {limit} bytes")
    return data


def _read(paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    from casstore import safeyaml

    for path in paths:
        yield path, read_file(path, safeyaml.MAX_BYTES)
