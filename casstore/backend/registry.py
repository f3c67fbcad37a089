"""From the URL of a store to its back end.

Decided here and only here: which URLs there are and how they are spelled.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from casstore.backend.base import Backend
from casstore.backend.file import FileBackend
from casstore.backend.memory import MemoryBackend
from casstore.errors import AccessError, NotFoundError, StorageError, UsageError

__all__ = ["open_backend"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LATER = {"s3", "gs", "azure", "swift", "tos"}
_SUPPORTED = "supported are file:///absolute/path, a plain path, and memory://name"


def open_backend(url: str, *, create: bool = False) -> Backend:
    """Open the place that ``url`` names: ``file:///absolute/path``, a plain path, or ``memory://name``.

    ``create`` makes a folder (or a name in memory) that does not exist yet. Raises ``UsageError`` for a URL
    that names no place, ``NotFoundError`` for a place that does not exist, ``AccessError`` or
    ``StorageError`` when it can't be opened.
    """
    match = _SCHEME.match(url)
    if match is None:
        return _open_folder(os.path.expanduser(url), url, create=create)
    scheme = match[1].lower()
    if scheme == "file":
        return _open_folder(_file_path(url), url, create=create)
    if scheme == "memory":
        return _open_memory(url, create=create)
    if scheme in _LATER:
        raise UsageError(f"{scheme}:// stores are not supported by this version: {_shown(url)}", hint=_SUPPORTED)
    raise UsageError(f"unknown scheme {scheme}:// of a store: {_shown(url)}", hint=_SUPPORTED)


def _file_path(url: str) -> str:
    rest = url[len("file:") :]
    if not rest.startswith("///"):
        raise UsageError(
            f"not a URL of a local folder: {_shown(url)}",
            hint="a file URL has no host and three slashes: file:///absolute/path",
        )
    if "?" in rest or "#" in rest:
        raise UsageError(
            f"a file URL has no query and no fragment: {_shown(url)}",
            hint="write %3F for a question mark and %23 for a hash sign in a name",
        )
    if _BAD_ESCAPE.search(rest):
        raise UsageError(f"bad percent-encoding in {_shown(url)}", hint="write %25 for a percent sign")
    return unquote(rest[2:], errors="surrogateescape")


def _open_folder(path: str, url: str, *, create: bool) -> FileBackend:
    if not path or "\0" in path:
        raise UsageError(f"not a path of a folder: {_shown(url)}", hint=_SUPPORTED)
    path = os.path.abspath(path)
    if path == "/":
        raise UsageError("a store can't be the root of the file system", hint="name a folder of its own")
    try:
        if create:
            os.makedirs(path, exist_ok=True)
        elif not os.path.lexists(path):
            raise NotFoundError(
                f"there is no store at {_shown(path)}: the folder does not exist",
                hint="check the path, or create it",
            )
        if not os.path.isdir(path):
            raise UsageError(f"not a folder: {_shown(path)}")
    except FileExistsError as error:
        raise UsageError(f"not a folder: {_shown(path)}") from error
    except PermissionError as error:
        raise AccessError(f"can't create {_shown(path)}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"can't create {_shown(path)}: {error.strerror}") from error
    return FileBackend(path)


def _open_memory(url: str, *, create: bool) -> MemoryBackend:
    name = url.partition("://")[2]
    if not _NAME.match(name):
        raise UsageError(
            f"not a store in memory: {_shown(url)}",
            hint="memory:// is followed by a name of letters, digits, '_', '.' and '-'",
        )
    if not create and not MemoryBackend.exists(name):
        raise NotFoundError(
            f"there is no store {_shown(url)} in this process", hint="a store in memory ends with its process"
        )
    return MemoryBackend(name)


def _shown(text: str) -> str:
    """The text for a message: one printable line without a password."""
    text = re.sub(r"//[^/@]*@", "//", text[:200])
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
