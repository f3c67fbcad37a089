"""What is at a URL of object storage.

Decided here and only here: that a URL names one object, or everything below it as if it were a folder
(``s3://b/run`` never means ``s3://b/run2/x``), what a name is relative to, and that a service that lists something
else than it was asked for is not believed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import chain
from types import TracebackType
from typing import Self

import msgspec

from casstore.errors import AccessError, NotFoundError, StorageError, UsageError
from casstore.remote.base import ObjectClient, RemoteInfo
from casstore.remote.credentials import CredentialSource
from casstore.remote.open import open_objects
from casstore.remote.urls import parse_url
from casstore.transfer.safefs import show

__all__ = ["Found", "Place", "matcher", "open_place"]


class Found(msgspec.Struct, frozen=True):
    """One object. ``name`` is its path below the URL, its last component when the URL names the object itself.

    A folder, in a listing that does not go into them, ends in ``/``; the marker of the URL's own has no name.
    """

    name: str
    info: RemoteInfo

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, or the empty object that some tools make of one."""
        return self.info.key.endswith("/")


class Place:
    """An open bucket and a path in it. Close it, or use it as a context manager."""

    def __init__(self, client: ObjectClient, prefix: str, url: str) -> None:
        self.client = client
        self.prefix = prefix
        self.url = url

    @property
    def base(self) -> str:
        """What the keys below this place begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    def objects(self, *, begins: str = "", recursive: bool = True) -> Iterator[Found]:
        """Yield what is here, in the order of keys; ``begins`` is what names begin with."""
        below = self._below(begins, recursive)
        first = next(below, None)
        if not begins and (alone := self._alone(marker=first is not None)) is not None:
            yield alone
        if first is not None:
            yield first
            yield from below

    def _alone(self, *, marker: bool) -> Found | None:
        """The object that has the URL's very path. An empty one with others below it is a folder's marker."""
        if not self.prefix:
            return None
        with contextlib.suppress(NotFoundError, AccessError, UsageError):
            info = self.client.head(self.prefix)
            if info.size or not marker:
                return Found(self.prefix.rpartition("/")[2], info)
        return None

    def _below(self, begins: str, recursive: bool) -> Iterator[Found]:
        base = self.base
        for info in self.client.list(base + begins, recursive=recursive):
            if not info.key.startswith(base + begins):
                raise StorageError(f"{self.url}: the service lists {show(info.key)!r}, which it was not asked for")
            if info.size < 0:
                raise StorageError(f"{self.url}: the service gives {show(info.key)!r} a negative size")
            yield Found(info.key[len(base) :], info)

    def close(self) -> None:
        """Release connections."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_place(url: str, credentials: CredentialSource | None = None) -> Place:
    """Open a URL. ``UsageError`` for one that is not sound."""
    client, prefix = open_objects(url, credentials)
    return Place(client, prefix, parse_url(url).url)


def matcher(regex: str | None) -> re.Pattern[str] | None:
    """The compiled expression, matched from the start of a name; None for none. ``UsageError``."""
    if not regex:
        return None
    try:
        return re.compile(regex)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{regex!r} is not a regular expression ({error})") from None


def some(found: Iterator[Found], url: str) -> Iterator[Found]:
    """The same objects; ``NotFoundError`` when there is none."""
    first = next(found, None)
    if first is None:
        raise NotFoundError(f"there is nothing at {url}", hint="see what is there: osmo data list URL")
    return chain([first], found)
