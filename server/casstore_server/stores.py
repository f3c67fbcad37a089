"""The buckets that workflows read and write, opened as their declarations say.

Decided here and only here: that the undeclared default bucket is made when first used while any other that is missing
is an error (a disk that is not mounted must not look like an empty bucket), and that a store is opened once.
"""

from __future__ import annotations

import threading
from urllib.parse import unquote, urlsplit

from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import NotFoundError
from casstore.remote.credentials import CredentialSource, StorageCredential
from casstore.remote.urls import parse_url
from casstore.repo.references import References
from casstore.repo.store import Store
from casstore_server.config import DEFAULT_BUCKET, BucketConfig, Watched
from casstore_server.settings import Settings

__all__ = ["Stores", "local_folder"]


class Stores:
    """Open stores by URL; safe to use from any thread."""

    def __init__(self, config: Watched, settings: Settings, credentials: CredentialSource | None = None) -> None:
        self._config = config
        self._credentials: CredentialSource = _OfBuckets(config, credentials)
        self._settings = settings
        self._lock = threading.Lock()
        self._stores: dict[tuple[str, StorageCredential | None], Store] = {}

    def open(self, name: str | None, user: str) -> Bucket:
        """The bucket ``name`` (the default one when None) for ``user``. Raises ``NotFoundError``."""
        config = self._config.last_good()
        wanted = config.default_bucket if name is None else name
        declared = config.buckets.get(wanted)
        if declared is None:
            raise NotFoundError(f"there is no bucket '{wanted}'", hint="See: osmo bucket list")
        return Bucket(
            self._store(declared, config.references),
            name=wanted,
            user=user,
            state_dir=str(self._settings.state_dir),
            cache_dir=str(self._settings.cache_dir),
        )

    def is_writable(self, name: str) -> bool:
        """Whether a bucket is declared, and not as one that is only read."""
        declared = self._config.last_good().buckets.get(name)
        return declared is not None and declared.writable

    @property
    def credentials(self) -> CredentialSource:
        """What the stores are opened with."""
        return self._credentials

    def credential(self, profile: str) -> StorageCredential | None:
        """What they are opened with at this profile."""
        return self._credentials.find(profile)

    def prepare(self, bucket: BucketConfig) -> None:
        """See that a bucket which is about to be declared can be opened, and make the store in it if there is none."""
        credentials = _One(bucket.credential) if bucket.credential is not None else self._credentials
        backend = open_backend(bucket.url, create=bucket.writable, credentials=credentials)
        Store.open(backend, create=bucket.writable).close()

    def close(self) -> None:
        """Close every store."""
        with self._lock:
            for store in self._stores.values():
                store.close()
            self._stores.clear()

    def _store(self, bucket: BucketConfig, allowed: tuple[str, ...]) -> Store:
        with self._lock:
            key = (bucket.url, bucket.credential)
            found = self._stores.get(key)
            if found is None:
                create = bucket.name == DEFAULT_BUCKET and not bucket.declared
                if create:
                    self._settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
                backend = open_backend(bucket.url, create=create, credentials=self._credentials)
                found = Store.open(backend, create=create, references=References(self._credentials, allowed))
                self._stores[key] = found
            return found


class _One:
    """Implements ``CredentialSource`` with a single credential."""

    def __init__(self, credential: StorageCredential) -> None:
        self._credential = credential

    def find(self, _: str) -> StorageCredential | None:
        """See ``CredentialSource``."""
        return self._credential


class _OfBuckets:
    """Implements ``CredentialSource``: what a declared bucket comes with, else what the server's owner has."""

    def __init__(self, config: Watched, others: CredentialSource | None) -> None:
        self._config = config
        self._others = others

    def find(self, profile: str) -> StorageCredential | None:
        """See ``CredentialSource``."""
        for bucket in self._config.last_good().buckets.values():
            if bucket.credential is not None and parse_url(bucket.url).profile == profile:
                return bucket.credential
        return None if self._others is None else self._others.find(profile)


def local_folder(url: str) -> str | None:
    """The folder behind a ``file:`` URL, None for any other."""
    parts = urlsplit(url)
    return unquote(parts.path) if parts.scheme == "file" else None
