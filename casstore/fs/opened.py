"""The stores that this process reads through the file system, and the versions that it has chosen.

Decided here and only here: that all instances of a process share open stores, the chunks in memory, and what each tag
meant when it was first asked for; and that a process which was forked off opens everything anew but keeps that meaning,
so that all workers see the same versions. Buckets and credentials are those of the user's ``config.yaml``. What was
read from far away stays on the disk, in the user's cache.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from casstore.cache.remote import RemoteCache
from casstore.config import DEFAULT_BUCKET, BucketConfig, Config, find_paths, load_config
from casstore.dataset.bucket import Bucket
from casstore.dataset.opening import open_store
from casstore.dataset.pick import find_version
from casstore.dataset.summary import Version
from casstore.errors import AccessError, CasstoreError, NotFoundError, StorageError, UsageError
from casstore.model import DatasetType
from casstore.remote.urls import file_path
from casstore.repo.tree import Tree
from casstore.transfer.ranges import Ranges

__all__ = ["Chosen", "Source", "Sources", "as_os_error", "close_all", "here", "of", "translated"]

PARALLEL = 8
"""Reads from an object store that are under way at once."""
FILES_AHEAD = 4
"""Files that are read ahead at once."""


class Chosen(NamedTuple):
    """A version, or those of a collection's members by their names. Nothing in it is open."""

    version: Version | None
    members: Mapping[str, Version]


class Source:
    """One open bucket. Thread-safe."""

    def __init__(self, config: Config, declared: BucketConfig) -> None:
        self._stack = contextlib.ExitStack()
        try:
            store = self._stack.enter_context(open_store(declared, config=config))
        except NotFoundError as error:  # not a file that is missing, but all of them
            raise StorageError(error.message, hint=error.hint) from None
        store.use(RemoteCache.default(config.paths.cache), recall=True)
        far = not store.backend.capabilities.local
        pool = self._threads(PARALLEL) if far else None
        self.bucket = Bucket(store, name=declared.name, user=config.user)
        self.ranges = Ranges(store, pool=pool)
        self._stack.callback(self.ranges.close)
        self.ahead = self._threads(FILES_AHEAD) if far else None
        """Threads that fetch what is likely to be read next; None where that is as quick when it is read."""
        self._trees: dict[str, Tree] = {}

    def _threads(self, count: int) -> ThreadPoolExecutor:
        return self._stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="casstore-fs"))

    def tree(self, version: Version) -> Tree:
        """Return the files of a version, opened once."""
        found = self._trees.get(version.record.manifest)
        if found is None:
            found = self._trees.setdefault(version.record.manifest, self.bucket.tree(version))
        return found

    def close(self) -> None:
        """Release everything."""
        self._stack.close()


class Sources:
    """What is open in this process for one ``config.yaml``. Thread-safe."""

    def __init__(self, chosen: Mapping[tuple[str, str, str | None, str | None], Chosen] | None = None) -> None:
        self._lock = threading.RLock()
        self._config: Config | None = None
        self._sources: dict[BucketConfig, Source] = {}
        self._chosen = dict(chosen or {})

    @property
    def config(self) -> Config:
        """The configuration, read once."""
        with self._lock:
            if self._config is None:
                self._config = load_config()
            return self._config

    @property
    def buckets(self) -> list[str]:
        """The names of the buckets, sorted; without the default one that nobody declared or has made."""
        config = self.config
        made = config.has_own_default or os.path.isdir(file_path(config.buckets[DEFAULT_BUCKET].url))
        return sorted(name for name in config.buckets if made or name != DEFAULT_BUCKET)

    def source(self, bucket: str | None) -> Source:
        """Return a bucket, opened once; None is the default one."""
        declared = self.config.bucket(bucket)
        with self._lock:
            found = self._sources.get(declared)
            if found is None:
                found = self._sources[declared] = Source(self.config, declared)
            return found

    def choose(self, bucket: str | None, name: str, tag: str | None, digest: str | None) -> Chosen:
        """Return what a name means: what it meant before, if it was asked for before."""
        source = self.source(bucket)
        key = source.bucket.name, name, tag, digest
        with self._lock:
            if key not in self._chosen:
                self._chosen[key] = _choose(source.bucket, name, tag, digest)
            return self._chosen[key]

    def forget(self) -> None:
        """Read the configuration, and look up what tags mean, when that is asked for next."""
        with self._lock:
            self._config = None
            self._chosen.clear()

    def forked(self) -> Sources:
        """Return what a process that was forked off begins with: what was chosen, and nothing open."""
        return Sources(self._chosen)

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            while self._sources:
                self._sources.popitem()[1].close()
            self.forget()


def _choose(bucket: Bucket, name: str, tag: str | None, digest: str | None) -> Chosen:
    head = bucket.refs.find(name)
    if head.type == DatasetType.DATASET:
        return Chosen(find_version(bucket, name, tag, digest), {})
    if digest is not None:
        raise NotFoundError(f"{name!r} is a collection: it has no digest")
    versions = bucket.resolve_all(name, tag)
    members = {version.dataset: version for version in versions}
    if len(members) < len(versions):
        raise UsageError(f"{name!r} has several versions of one dataset", hint="name them one by one")
    return Chosen(None, members)


_all: dict[str, Sources] = {}
_parents: list[dict[str, Sources]] = []
"""What was open before a fork: never touched again, and kept, because closing it would talk on another's sockets."""


def here() -> str:
    """Return the name of this user's configuration, for ``of``."""
    paths = find_paths()
    return f"{paths.config_file}\0{paths.data}"


def of(configuration: str) -> Sources:
    """Return what is open in this process for a configuration."""
    found = _all.get(configuration)
    return found or _all.setdefault(configuration, Sources())


def close_all() -> None:
    """Close everything that is open in this process."""
    while _all:
        _all.popitem()[1].close()


def _after_fork() -> None:
    _parents.append(dict(_all))
    for key, sources in list(_all.items()):
        _all[key] = sources.forked()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close_all)


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise what users of files expect in place of the store's errors."""
    try:
        yield
    except CasstoreError as error:
        raise as_os_error(error, path) from error


def as_os_error(error: CasstoreError, path: str) -> Exception:
    """Return an error of the store as one that users of files expect."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, UsageError):
        return ValueError(text)
    number = errno.EIO
    if isinstance(error, NotFoundError):
        number = errno.ENOENT
    elif isinstance(error, AccessError):
        number = errno.EACCES
    return OSError(number, text, path)  # makes a FileNotFoundError or PermissionError of it
