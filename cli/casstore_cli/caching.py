"""The cache of this machine, as commands use it.

Decided here and only here: where it is, and when a command uses it: always when it is there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casstore.config import find_paths

if TYPE_CHECKING:
    from casstore.cache.files import FileCache
    from casstore.cache.remote import RemoteCache
    from casstore.cache.space import Space

__all__ = ["cache_dir", "open_cache", "open_files", "open_space"]


def cache_dir() -> str:
    """Where it is kept what was read from stores."""
    from casstore.cache.remote import FOLDER

    return os.path.join(find_paths().cache, FOLDER)


def open_space() -> Space:
    """The cache, made when it is missing."""
    from casstore.cache.space import Space, default_limit

    folder = cache_dir()
    return Space(folder, default_limit(folder))


def open_files(*, make: bool = False) -> FileCache | None:
    """The whole files in the cache; None where there are none and ``make`` does not want some."""
    from casstore.cache.files import FileCache

    if not make and not os.path.isdir(os.path.join(cache_dir(), "files")):
        return None
    return FileCache(open_space())


def open_cache() -> RemoteCache | None:
    """What is kept of stores that are far away; None where nothing is."""
    from casstore.cache.remote import RemoteCache

    return RemoteCache(open_space()) if os.path.isdir(cache_dir()) else None
