"""The seam between kinds of sources and what makes versions of them.

Decided here and only here: what a source has to say of a version to be, and how clients for its buckets are opened: one
for each bucket, for as long as the work takes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from casstore.remote.base import ObjectClient
from casstore.remote.credentials import CredentialSource
from casstore.remote.open import open_objects
from casstore.remote.urls import REMOTE_SCHEMES, parse_url, scheme_of
from casstore.transfer.spool import ForeignFile, ForeignFolder

__all__ = ["Buckets", "Foreign", "Found", "Opener"]

Opener: TypeAlias = Callable[[str, CredentialSource | None], tuple[ObjectClient, str]]
"""``casstore.remote.open.open_objects``, or what a test puts in its place."""


class Found(NamedTuple):
    """Something that a source names: an entry, or why it can't be one. ``where`` says where it is named."""

    where: str
    entry: ForeignFile | ForeignFolder | None
    path: bytes = b""
    problem: str = ""


class Foreign(Protocol):
    """One version to be, as some other place describes it."""

    @property
    def url(self) -> str:
        """What describes it: a manifest, a file of another tool, a prefix. Without secrets."""
        ...

    def entries(self) -> Iterator[Found]:
        """Yield everything it names, in any order. May be asked several times.

        Raises ``FormatError`` when the description itself can't be read to its end.
        """
        ...

    def provenance(self) -> dict[str, Any]:
        """Return where it comes from, for the version's record. Complete once ``entries`` came to its end."""
        ...


class Buckets:
    """The clients of one piece of work. Thread-safe. Close it, or use it as a context manager."""

    def __init__(self, credentials: CredentialSource | None = None, opener: Opener | None = None) -> None:
        self.credentials = credentials
        self._opener = opener or open_objects
        self._clients: dict[str, ObjectClient] = {}
        self._lock = threading.Lock()

    def open(self, url: str) -> tuple[ObjectClient, str]:
        """Return the client of the bucket that ``url`` is in, and the path in it without slashes at its ends."""
        with self._lock:
            place = parse_url(url) if scheme_of(url) in REMOTE_SCHEMES else None
            if place is not None and place.bucket_url in self._clients:  # a new one costs more than a request
                return self._clients[place.bucket_url], place.prefix
            client, prefix = self._opener(url, self.credentials)
            known = self._clients.setdefault(client.url, client)
        if known is not client:
            client.close()
        return known, prefix

    def client(self, bucket: str) -> ObjectClient:
        """Return the client of a bucket by its URL."""
        found = self._clients.get(bucket)
        return found if found is not None else self.open(bucket)[0]

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients.values():
            with contextlib.suppress(Exception):
                client.close()
        self._clients.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
