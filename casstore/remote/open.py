"""From a storage URL to a client that is ready for work.

Decided here and only here: which adapter a scheme has, which extra it needs, and that every client comes with the
retries and within the process's limits.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from casstore.errors import UsageError
from casstore.remote.base import ObjectClient
from casstore.remote.credentials import AmbientCredentials, CredentialSource, StorageCredential
from casstore.remote.limit import LimitClient
from casstore.remote.local import LocalClient
from casstore.remote.retry import RetryClient
from casstore.remote.urls import StorageUrl, parse_url

__all__ = ["open_client", "open_objects"]


def open_objects(url: str, credentials: CredentialSource | None = None) -> tuple[ObjectClient, str]:
    """Open the bucket that a URL is in; return its client and the URL's path in it, without a slash at either end.

    For a ``file:`` URL the bucket is the deepest folder of the path that exists. No connection is made yet.
    ``UsageError`` for a URL that is not sound and for a service whose library is not installed. Close the client.
    """
    place = parse_url(url)
    if place.scheme == "file":
        root, prefix = _existing("/" + place.prefix)
        return _guarded(LocalClient(root)), prefix
    return open_client(place, credentials), place.prefix


def open_client(place: StorageUrl, credentials: CredentialSource | None = None) -> ObjectClient:
    """Open the bucket of a service that ``place`` is in."""
    credential = (credentials or AmbientCredentials()).find(place.profile)
    return _guarded(_ADAPTERS[place.scheme](place, credential))


def _guarded(client: ObjectClient) -> ObjectClient:
    # Outside in: what waits before it tries again holds none of what the limits share out.
    return RetryClient(LimitClient(client))


def _s3(place: StorageUrl, credential: StorageCredential | None) -> ObjectClient:
    make = _load("casstore.remote.s3", "S3Client", "s3", place)
    endpoint = f"https://{place.endpoint}" if place.endpoint else None
    return make(place.bucket, url=place.bucket_url, endpoint=endpoint, credential=credential)


def _azure(place: StorageUrl, credential: StorageCredential | None) -> ObjectClient:
    make = _load("casstore.remote.azure", "AzureClient", "azure", place)
    return make(place.account, place.bucket, url=place.bucket_url, credential=credential)


def _gcs(place: StorageUrl, credential: StorageCredential | None) -> ObjectClient:
    make = _load("casstore.remote.gcs", "GcsClient", "gcs", place)
    return make(place.bucket, url=place.bucket_url, credential=credential)


_ADAPTERS: dict[str, Callable[[StorageUrl, StorageCredential | None], ObjectClient]] = {
    "s3": _s3,
    "tos": _s3,
    "swift": _s3,
    "azure": _azure,
    "gs": _gcs,
}


def _load(module: str, name: str, extra: str, place: StorageUrl) -> Callable[..., ObjectClient]:
    """The class of an adapter, with its libraries' absence told in one line wherever it comes to light."""

    def make(*arguments: object, **options: object) -> ObjectClient:
        try:
            client: ObjectClient = getattr(importlib.import_module(module), name)(*arguments, **options)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{place.scheme}:// needs the {extra} extra: pip install 'casstore[{extra}]'",
                hint=f"the Python module {error.name} is not installed",
            ) from None
        return client

    return make


def _existing(path: str) -> tuple[str, str]:
    """The deepest folder of a path that exists, and the rest of the path below it."""
    root, rest = path, ""
    while not os.path.isdir(root):
        root, _, name = root.rpartition("/")
        root = root or "/"
        rest = f"{name}/{rest}" if rest else name
    return root, rest
