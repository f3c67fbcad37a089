"""The bytes of files in versions.

Decided here and only here: how a range of a file is found without reading the list of all its chunks, how much of it is
in memory, and that every chunk is checked before a byte of it leaves.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from typing import NamedTuple

from casstore.errors import NotFoundError, UsageError
from casstore.format.manifest import list_records
from casstore.model import Entry, Kind
from casstore.repo.tree import Tree
from casstore_server.services.v1.versions import Opened, digest_of

__all__ = ["Content", "content_of", "media_of", "pieces"]

BATCH = 4 << 20
"""Bytes of chunks that are read together."""
INLINE = frozenset(
    {
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp", "image/tiff"),
        *("video/mp4", "video/webm", "video/quicktime", "video/x-matroska"),
        *("audio/mpeg", "audio/wav", "audio/x-wav", "audio/ogg", "audio/flac"),
        *("application/json", "text/plain", "text/csv", "text/markdown"),
    }
)
"""What a browser may show: nothing of it runs."""
OCTETS = "application/octet-stream"


class Content(NamedTuple):
    """A file of a version."""

    entry: Entry
    digest: str
    media: str
    inline: bool


def content_of(opened: Opened, path: bytes) -> Content:
    """Return a file of a version. ``NotFoundError``; ``UsageError`` for a folder or a link."""
    entry = opened.tree.lookup(path) if path else None
    if entry is None:
        raise NotFoundError(f"{_shown(path)} is not in {opened.version}")
    if entry.kind == Kind.DIRECTORY:
        raise UsageError(f"{_shown(path)} is a folder", hint="List it: .../files?path=")
    if entry.kind != Kind.FILE:
        raise UsageError(f"{_shown(path)} is a link to {_shown(entry.target)}")
    media = media_of(entry.name)
    return Content(entry, digest_of(entry), media, media in INLINE)


def media_of(name: bytes) -> str:
    """What a file says that it is, by its name; bytes, where a browser could run it."""
    found, encoding = mimetypes.guess_type(name.decode("utf-8", "replace"))
    return found if encoding is None and found in INLINE else OCTETS


def pieces(opened: Opened, entry: Entry, start: int, length: int) -> Iterator[bytes]:
    """Yield the bytes of a range of a file, each chunk checked. ``IntegrityError``, ``NotFoundError``."""
    end = start + length
    batch: list[tuple[bytes, int, int]] = []
    size = 0
    for chunk in _chunks(opened.tree, entry.content.depth, entry.content.refs, 0, start, end):
        batch.append(chunk)
        size += chunk[1]
        if size >= BATCH:
            yield _read(opened, batch, start, end)
            batch, size = [], 0
    if batch:
        yield _read(opened, batch, start, end)


def _read(opened: Opened, batch: list[tuple[bytes, int, int]], start: int, end: int) -> bytes:
    found: list[bytes] = []
    chunks = opened.bucket.store.read_chunks([(chunk_id, raw) for chunk_id, raw, _ in batch])
    for data, (_, raw, begin) in zip(chunks, batch, strict=True):
        found.append(bytes(memoryview(data)[max(0, start - begin) : min(raw, end - begin)]))
    return b"".join(found)


def _chunks(tree: Tree, depth: int, refs: bytes, begin: int, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield id, length and begin of the chunks that a range touches; nodes beside it are not read."""
    for node_id, raw in list_records(depth, refs):
        if begin >= end:
            return
        if begin + raw > start:
            if depth == 0:
                yield node_id, raw, begin
            else:
                below = tree.list_node(depth - 1, node_id, raw)
                yield from _chunks(tree, depth - 1, below, begin, start, end)
        begin += raw


def _shown(path: bytes) -> str:
    return path[:200].decode("utf-8", "backslashreplace") or "/"
