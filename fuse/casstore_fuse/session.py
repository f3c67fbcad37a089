"""One mount, from a version to the last request.

Decided here and only here: how its files are opened, in which order a mount is put together, and where it leaves word
of what went wrong. The process that holds the mount opens no store and has no threads; each of its servers opens the
store anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import msgspec

from casstore import hashing
from casstore.cache.remote import RemoteCache
from casstore.cache.space import default_limit
from casstore.dataset.sources import matcher
from casstore.errors import CasstoreError, StorageError
from casstore.model import Content
from casstore.repo.part import part_of
from casstore.repo.store import Store
from casstore.repo.tree import Tree
from casstore_fuse import layers, modes
from casstore_fuse.ahead import Ahead
from casstore_fuse.connection import READ_AHEAD, Connection
from casstore_fuse.contents import Contents, Neighbours
from casstore_fuse.guard import Guard
from casstore_fuse.habits import Habits
from casstore_fuse.layers import Layer
from casstore_fuse.library import Library
from casstore_fuse.members import Members
from casstore_fuse.mounting import mount, read_ahead, unmount
from casstore_fuse.records import Record, Registry, namespace, started_at, take_away
from casstore_fuse.state import State
from casstore_fuse.supervisor import RefusedError, supervise
from casstore_fuse.vfs import Vfs

__all__ = ["Member", "Settings", "default_limit", "run"]

_log = logging.getLogger("casstore.fuse")

LOG_SIZE = 1 << 20
"""Bytes after which a log is begun anew; the one before is kept."""
_LIMIT = 20 << 30
_PATIENCE = 600.0
_PAUSE = 30.0

OpenStore = Callable[[], AbstractContextManager[Store]]
Ready = Callable[[CasstoreError | None], None]
"""Told once: the mount can be used, or why it can't be."""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of a collection, by the digest of its manifest."""

    dataset: str
    version: int
    manifest: str


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is mounted where, and how.

    A collection has ``members``, each for a folder of its name, and no version and manifest of its own (0 and "").

    ``runtime`` and ``state`` are the folders of the ``Registry``; ``cache`` is where what was read is kept, None for
    nowhere; ``prefetch`` is a pattern, empty for all files and None for none. ``regex``: only files whose path matches
    are there. ``below``: somebody else lays something over it that can be written to. ``hold``: with a lease, see
    ``Guard``; not where nothing may be written.
    """

    path: str
    bucket: str
    dataset: str
    version: int
    manifest: str
    runtime: str
    state: str
    members: tuple[Member, ...] = ()
    writable: bool = False
    below: bool = False
    cache: str | None = None
    limit: int = _LIMIT
    prefetch: str | None = None
    regex: str = ""
    hold: bool = True

    @property
    def title(self) -> str:
        """What is mounted."""
        return f"{self.dataset}:{self.version}" if self.version else self.dataset

    @property
    def source(self) -> str:
        """What ``mount`` and ``df`` show."""
        return f"osmo:{self.bucket}/{self.title}"


def run(settings: Settings, open_store: OpenStore, ready: Ready, *, verbose: bool = False) -> int:
    """Mount, and return when the mount is gone: 0 when it was unmounted.

    To be called by a process of its own. ``verbose`` shows the log on standard error, too. Raises what stands against
    mounting.
    """
    registry = Registry(settings.runtime, settings.state)
    registry.make()
    path, log = settings.path, registry.log_file(settings.path)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    _log.addHandler(_Log(log))
    if verbose:
        stream = logging.StreamHandler()
        stream.setLevel(logging.WARNING)
        _log.addHandler(stream)
    layer = registry.layer(path) if settings.writable else None
    target = registry.lower(path) if settings.writable else path
    record = Record(
        path=path,
        bucket=settings.bucket,
        dataset=settings.dataset,
        version=settings.version,
        manifest=settings.manifest,
        pid=os.getpid(),
        clock=started_at(os.getpid()),
        namespace=namespace(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        log=log,
        layer=layer,
        lower=target if layer else None,
    )
    if layer is not None:
        layers.check()
        layers.prepare(layer, _layer_of(settings))
        os.makedirs(target, mode=0o700, exist_ok=True)
    page = registry.page(path, os.getpid())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(page)
    state = State.create(page)
    try:
        registry.put(record)
        descriptor = None if modes.by_library() else mount(target, settings.source)
        server = _Server(settings, registry, record, state, open_store, ready)
        return supervise(
            descriptor,
            path,
            state,
            lambda deaths: server.serve(descriptor, deaths),
            release=lambda: take_away(registry.get(path) or record, lazy=True),
        )
    finally:
        registry.remove(record)
        state.close()
        if record.lower is not None:
            with contextlib.suppress(OSError):
                os.rmdir(record.lower)


def _layer_of(settings: Settings) -> Layer:
    return Layer(
        path=settings.path,
        bucket=settings.bucket,
        dataset=settings.dataset,
        version=settings.version,
        manifest=settings.manifest,
    )


class _Server:
    """What answers the kernel, in a process of its own."""

    def __init__(
        self, settings: Settings, registry: Registry, record: Record, state: State, open_store: OpenStore, ready: Ready
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._record = record
        self._state = state
        self._open_store = open_store
        self._ready = ready

    def serve(self, descriptor: int | None, deaths: int) -> None:
        """Answer until the mount is gone. No ``descriptor``: libfuse mounts. ``deaths``: servers that died before."""
        if deaths:
            _log.error("a server of %s died (%d so far): another one goes on", self._settings.path, deaths)
            record = self._registry.get(self._settings.path)
            if record is not None and not record.ready:
                self._ready(StorageError("the server of the mount died while it started"))
                raise RefusedError
        with contextlib.ExitStack() as stack:
            try:
                cache = self._cache()
                store, trees = self._open(stack, cache, again=deaths > 0)
                vfs = self._vfs(trees)
                files = None if cache is None else cache.files
                unasked = descriptor is None or modes.opens_unasked(vfs, cached=files is not None)
                contents = Contents(store, trees[0], files=files, state=self._state, neighbours=_neighbours(vfs))
            except CasstoreError as error:
                _log.error("can't serve %s: %s", self._settings.path, error.message)
                if deaths:
                    raise
                self._ready(error)
                raise RefusedError from None
            ahead = None
            if self._settings.prefetch is not None:
                ahead = Ahead(vfs, contents, self._settings.prefetch, self._settings.limit)
                ahead.start()
            guard = Guard(store.backend, self._settings.title, [tree.id for tree in trees], self._state)
            if self._settings.hold:
                guard.start()
            try:
                if descriptor is None:
                    self._by_library(vfs, contents)
                else:
                    habits = Habits(self._habits())
                    connection = Connection(
                        descriptor, vfs, contents, state=self._state, no_open=unasked, first=not deaths, habits=habits
                    )
                    if not deaths:
                        self._settling()
                    connection.serve()
            finally:
                if ahead is not None:
                    ahead.stop()
                contents.close()
                guard.stop()

    def _by_library(self, vfs: Vfs | Members, contents: Contents) -> None:
        target = self._record.lower or self._settings.path
        try:
            Library(vfs, contents, state=self._state, ready=self._settling).serve(target, self._settings.source)
        except CasstoreError as error:
            _log.error("%s", error.message)
            self._ready(error)
            raise RefusedError from None

    def _settling(self) -> None:
        threading.Thread(target=self._settle, daemon=True).start()

    def _vfs(self, trees: list[Tree]) -> Vfs | Members:
        settings, uid, gid = self._settings, os.getuid(), os.getgid()
        found = [Vfs(tree, uid=uid, gid=gid, below=settings.writable or settings.below) for tree in trees]
        if not settings.members:
            return found[0]
        names = [member.dataset.encode() for member in settings.members]
        return Members(list(zip(names, found, strict=True)), uid=uid, gid=gid)

    def _cache(self) -> RemoteCache | None:
        if self._settings.cache is None:
            return None
        cache = RemoteCache.at(self._settings.cache, self._settings.limit)
        if cache is None:
            _log.warning("nothing that is read is kept: can't make the cache %s", self._settings.cache)
        return cache

    def _habits(self) -> str | None:
        if self._settings.cache is None:
            return None
        name = hashing.digest(f"{self._settings.bucket}/{self._settings.dataset}".encode()).hex()
        return os.path.join(self._settings.cache, "habits", name)

    def _open(self, stack: contextlib.ExitStack, cache: RemoteCache | None, *, again: bool) -> tuple[Store, list[Tree]]:
        """Open the store; where a server was before, wait for a service that doesn't answer."""
        manifests = [member.manifest for member in self._settings.members] or [self._settings.manifest]
        pause, waited = 1.0, 0.0
        while True:
            try:
                store = stack.enter_context(self._open_store())
                store.use(cache, recall=True)
                return store, [self._tree(store, bytes.fromhex(manifest)) for manifest in manifests]
            except StorageError as error:
                if not again or waited >= _PATIENCE:
                    raise
                _log.error("can't open the store of %s: %s", self._settings.path, error.message)
            time.sleep(pause)
            waited, pause = waited + pause, min(_PAUSE, 2 * pause)

    def _tree(self, store: Store, manifest: bytes) -> Tree:
        tree, select = store.tree(manifest), matcher(self._settings.regex)
        return tree if select is None else part_of(tree, store, select)

    def _settle(self) -> None:
        """What can only be done once the kernel gets answers."""
        settings, record = self._settings, self._record
        try:
            lower = record.lower or settings.path
            read_ahead(lower, READ_AHEAD)
            if record.layer is not None:
                record = self._lay(record, record.layer, lower)
            self._registry.put(msgspec.structs.replace(record, ready=True))
            _log.info("%s is mounted at %s", settings.source, settings.path)
            self._ready(None)
        except (CasstoreError, OSError) as error:
            told = error if isinstance(error, CasstoreError) else StorageError(f"can't mount: {error}")
            _log.error("can't mount at %s: %s", settings.path, told.message)
            self._ready(told)
            with contextlib.suppress(CasstoreError):
                take_away(record, lazy=True)

    def _lay(self, record: Record, layer: str, lower: str) -> Record:
        if layers.lay(lower, layer, record.path, self._settings.source):
            # The kernel holds it by itself now: whoever unmounts the folder, ends all of it.
            unmount(lower, lazy=True)
            os.rmdir(lower)
            return msgspec.structs.replace(record, lower=None)
        found = layers.read(layer)
        if found is not None:
            layers.write(layer, msgspec.structs.replace(found, named=True))
        return record


def _neighbours(vfs: Vfs | Members) -> Neighbours:
    def after(node: int) -> Iterator[tuple[int, int, Content]]:
        with contextlib.suppress(CasstoreError):  # there is a last one
            while True:
                node += 1
                yield node, *vfs.content(node)

    return after


class _Log(logging.Handler):
    """A file that is begun anew when it is long. Each line opens it, so that several processes can write."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a log that can't be written ends no mount."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.write(descriptor, (self.format(record) + "\n").encode("utf-8", "backslashreplace"))
                long = os.fstat(descriptor).st_size > LOG_SIZE
            finally:
                os.close(descriptor)
            if long:
                os.replace(self._path, f"{self._path}.1")
