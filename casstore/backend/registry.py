"""From the URL of a store to its back end.

Decided here and only here: which URLs name a store: those of object storage (``casstore.remote.urls``), a folder as a
``file:`` URL or a plain path, and a name in memory.
"""

from __future__ import annotations

import os
import re

from casstore.backend.base import Backend
from casstore.backend.file import FileBackend
from casstore.backend.memory import MemoryBackend
from casstore.errors import AccessError, NotFoundError, StorageError, UsageError
from casstore.remote.credentials import CredentialSource
from casstore.remote.urls import REMOTE_SCHEMES, file_path, parse_url, scheme_of, shown

__all__ = ["open_backend"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z", re.ASCII)
_SUPPORTED = "supported are file:///absolute/path, a plain path, s3, gs, azure, tos and swift URLs, and memory://name"


def open_backend(url: str, *, create: bool = False, credentials: CredentialSource | None = None) -> Backend:
    """Open the place that ``url`` names: a bucket, ``file:///absolute/path``, a plain path, or ``memory://name``.

    ``create`` makes a folder (or a name in memory) that does not exist yet; buckets are never made. ``credentials``
    are asked for those of a bucket; None leaves it to the environment. Raises ``UsageError`` for a URL that names no
    place or needs a library that is not installed, ``NotFoundError`` for a place that does not exist (a bucket: when
    it is first used), ``AccessError`` or ``StorageError`` when it can't be opened.
    """
    scheme = scheme_of(url)
    if scheme is None:
        return _open_folder(os.path.expanduser(url), url, create=create)
    if scheme == "file":
        return _open_folder(file_path(url), url, create=create)
    if scheme == "memory":
        return _open_memory(url, create=create)
    if scheme in REMOTE_SCHEMES:
        from casstore.backend.objects import ObjectBackend  # noqa: PLC0415 - local stores never need them
        from casstore.remote.open import open_client  # noqa: PLC0415

        place = parse_url(url)
        return ObjectBackend(open_client(place, credentials), place.prefix)
    raise UsageError(f"unknown scheme {scheme}:// of a store: {shown(url)}", hint=_SUPPORTED)


def _open_folder(path: str, url: str, *, create: bool) -> FileBackend:
    if not path or "\0" in path:
        raise UsageError(f"not a path of a folder: {shown(url)}", hint=_SUPPORTED)
    path = os.path.abspath(path)
    if path == "/":
        raise UsageError("a store can't be the root of the file system", hint="name a folder of its own")
    try:
        if create:
            os.makedirs(path, exist_ok=True)
        elif not os.path.lexists(path):
            raise NotFoundError(
                f"there is no store at {shown(path)}: the folder does not exist",
                hint="check the path, or create it",
            )
        if not os.path.isdir(path):
            raise UsageError(f"not a folder: {shown(path)}")
    except FileExistsError as error:
        raise UsageError(f"not a folder: {shown(path)}") from error
    except PermissionError as error:
        raise AccessError(f"can't create {shown(path)}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"can't create {shown(path)}: {error.strerror}") from error
    return FileBackend(path)


def _open_memory(url: str, *, create: bool) -> MemoryBackend:
    name = url.partition("://")[2]
    if not _NAME.match(name):
        raise UsageError(
            f"not a store in memory: {shown(url)}",
            hint="memory:// is followed by a name of letters, digits, '_', '.' and '-'",
        )
    if not create and not MemoryBackend.exists(name):
        raise NotFoundError(
            f"there is no store {shown(url)} in this process", hint="a store in memory ends with its process"
        )
    return MemoryBackend(name)
