"""Deleting objects.

Decided here and only here: what is looked at before anything is deleted, and that a dataset store is not deleted by
somebody who took it for plain files: neither the store itself, nor anything below it, nor a folder that holds one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import msgspec

from casstore.errors import AccessError, CancelledError, NotFoundError, UsageError
from casstore.remote.urls import parse_url
from casstore.repo.layout import STORE
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.raw.crew import Stop
from casstore.transfer.raw.listing import Place, matcher

__all__ = ["Doomed", "delete_objects", "look_before_deleting"]

_BATCH = 1000


class Doomed(msgspec.Struct, frozen=True):
    """What a deletion would take: objects, their bytes, and the first keys of stores among or above them."""

    objects: int
    size: int
    stores: list[str]


def look_before_deleting(place: Place, *, regex: str | None = None, stop: Stop | None = None) -> Doomed:
    """Count what ``delete_objects`` would delete, and find the dataset stores that it would harm."""
    pattern = matcher(regex)
    objects = size = 0
    stores = [key for key in _above(place.prefix) if _is_there(place, key)] + _around(place.url)
    for found in place.objects():
        if stop is not None and stop():
            raise CancelledError("interrupted: nothing was deleted")
        if found.info.key.rpartition("/")[2] == STORE and found.info.key not in stores and len(stores) < 10:
            stores.append(found.info.key)
        if _chosen(pattern, found.name):
            objects += 1
            size += found.info.size
    return Doomed(objects, size, stores)


def delete_objects(
    place: Place, *, regex: str | None = None, progress: Progress | None = None, stop: Stop | None = None
) -> int:
    """Delete what is at a place, or those of it whose names ``regex`` matches; return how many there were.

    What is gone already is passed over. When it ends early, what was deleted stays deleted.
    """
    pattern = matcher(regex)
    progress = progress or Silent()
    deleted = 0
    for batch in _batches(place, pattern):
        if stop is not None and stop():
            raise CancelledError(f"the deletion was stopped after {deleted} objects")
        place.client.delete([key for key, _ in batch])
        deleted += len(batch)
        for key, size in batch:
            progress.advance(size)
            progress.file_done(key.encode("utf-8", "surrogateescape"))
    return deleted


def _batches(place: Place, pattern: re.Pattern[str] | None) -> Iterator[list[tuple[str, int]]]:
    batch: list[tuple[str, int]] = []
    for found in place.objects():
        if not _chosen(pattern, found.name):
            continue
        batch.append((found.info.key, found.info.size))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _chosen(pattern: re.Pattern[str] | None, name: str) -> bool:
    return pattern is None or pattern.match(name) is not None


def _above(prefix: str) -> Iterator[str]:
    """Keys of the stores that the prefix can be in."""
    parts = prefix.split("/") if prefix else []
    for depth in range(len(parts) + 1):
        yield "/".join([*parts[:depth], STORE])


def _around(url: str) -> list[str]:
    """The stores that a local folder is in, above what is taken for its bucket."""
    found = parse_url(url)
    paths = _above(found.prefix) if found.scheme == "file" else iter(())
    return [f"/{path}" for path in paths if os.path.lexists(f"/{path}")]


def _is_there(place: Place, key: str) -> bool:
    with contextlib.suppress(NotFoundError, AccessError, UsageError):
        place.client.head(key)
        return True
    return False
