"""From a bucket's name to its open store.

Decided here and only here: which store a command works on, when it is created, and what a read-only bucket
refuses. The buckets of a server that was logged in to are in ``remote``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from casstore.config import DEFAULT_BUCKET, BucketConfig, Config, load_config
from casstore.errors import AccessError, StorageError, UsageError
from casstore_cli.config import private_dir
from casstore_cli.credentials import ConfigCredentials
from casstore_cli.output import warn

if TYPE_CHECKING:
    from casstore.dataset import Bucket
    from casstore.repo.store import Store


@contextlib.contextmanager
def open_bucket(name: str | None = None, *, write: bool = False, config: Config | None = None) -> Iterator[Bucket]:
    """The bucket called ``name`` (the default one when None), closed at the end of the block.

    ``write`` says that it is going to be changed: ``UsageError`` for a read-only bucket. The undeclared
    default bucket is created; any other that is not there is an error, because a missing disk must not look
    like an empty one.
    """
    from casstore.dataset import Bucket
    from casstore_cli import remote

    config = config or remote.visible()
    found = remote.find(config, name)
    if write and found.mode == "read-only":
        raise UsageError(f"bucket {found.name!r} is read-only", hint=f"it is declared so in {config.paths.config_file}")
    if remote.is_served(found):
        with _served(found, config, write=write) as bucket:
            yield bucket
        return
    undeclared = found.name == DEFAULT_BUCKET and not config.has_own_default
    if undeclared:
        private_dir(config.paths.data)
    with open_store(found, create=undeclared, config=config) as store:
        paths = config.paths
        yield Bucket(
            store,
            name=found.name,
            user=config.user,
            state_dir=paths.state,
            cache_dir=paths.cache,
            credentials=ConfigCredentials(config),
            warn=warn,
        )


def is_writable(name: str) -> bool:
    """Whether a bucket may be written to, by its declaration."""
    from casstore_cli import remote

    return remote.find(remote.visible(), name).mode != "read-only"


@contextlib.contextmanager
def _served(found: BucketConfig, config: Config, *, write: bool) -> Iterator[Bucket]:
    from casstore.dataset import Bucket
    from casstore_cli.remote import open_served

    store, info = open_served(found, config)
    with store:
        if write and not info.write:
            raise AccessError(
                f"{info.user} has no right dataset:Write in bucket {found.name}",
                hint="Rights come with roles: ask whoever runs the server.",
            )
        yield Bucket(
            store,
            name=found.name,
            user=info.user,
            state_dir=config.paths.state,
            cache_dir=config.paths.cache,
            credentials=ConfigCredentials(config),
            warn=warn,
        )


@contextlib.contextmanager
def open_store(bucket: BucketConfig, *, create: bool = False, config: Config | None = None) -> Iterator[Store]:
    """The store of a bucket, with the credentials of ``config``. ``create`` makes the folder and the store where there
    is none.
    """
    from casstore.dataset.opening import open_store as open_declared
    from casstore_cli.remote import require_local

    require_local(bucket, "This command")
    config = config or load_config()
    with open_declared(bucket, config=config, create=create, credentials=ConfigCredentials(config)) as store:
        yield store


def probe_store(store: Store) -> list[str]:
    """Try what the place of a store really does, where that is not known; return what was found, a line each.

    ``StorageError`` when several writers would not be safe there though the store was made for them.
    """
    from casstore.backend.probe import probe
    from casstore.backend.wrap.single import SingleWriterBackend

    single = isinstance(store.backend, SingleWriterBackend)
    report = store.probed
    if report is None and store.backend.capabilities.probe:
        report = probe(store.backend)
        if not report.conditional or not report.usable:
            broken = next(finding for finding in report.findings if not finding.kept)
            raise StorageError(
                f"{store.url} can't be written safely: not so that {broken.promise}: {broken.detail}",
                hint="that held when the store was made: look at the endpoint, or use the bucket with --mode read-only",
            )
    lines = report.lines if report is not None else []
    if single:
        lines = [*lines, "This store has one writer, because the service has no conditional writes: see the guide."]
    return lines


def normal_url(text: str) -> str:
    """A URL, from a URL or the path of a folder."""
    if not text:
        raise UsageError("'' is neither a URL nor the path of a folder")
    if text.startswith("file:") and not text.startswith("file://"):
        raise UsageError(f"not a URL of a local folder: {text}", hint="write file:///absolute/path, or just the path")
    if "://" in text:
        return text
    from urllib.parse import quote

    return "file://" + quote(os.path.abspath(os.path.expanduser(text)))
