"""Requests and replies of ``/api/v1``: what OSMO has nothing for.

Decided here and only here: the fields. Keys are those of the store's objects, ids are in hexadecimal, sizes in bytes,
times of objects in seconds since the epoch by the clock of the place that holds them. What an address may be used for
lasts ``seconds`` from when it was asked for, so that no two clocks have to agree.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import quote, unquote

import msgspec
from msgspec import Meta

__all__ = [
    "BLOB_PATH",
    "MAX_BLOB",
    "MAX_KEYS",
    "MAX_LISTED",
    "BucketInfo",
    "Change",
    "CommitBody",
    "CommitReply",
    "DeleteBody",
    "DiffReply",
    "FileEntry",
    "FilesReply",
    "GarbageReply",
    "IndexBody",
    "Kept",
    "LineageReply",
    "ListedObject",
    "Marked",
    "ObjectReply",
    "ObjectsReply",
    "Origin",
    "PackBody",
    "PackWish",
    "Signed",
    "UrlsBody",
    "UrlsReply",
    "VersionName",
    "Written",
    "etag_header",
    "etag_of",
]

MAX_KEYS = 256
"""Keys in one request, at most."""
MAX_LISTED = 1000
"""Objects, or entries of a version, in one reply, at most."""
MAX_BLOB = 32 << 20
"""Bytes of an object that a client stores, at most: packs are made half as large."""

BLOB_PATH = re.compile(r"/api/v1/bucket/[^/]+/blob/")
"""Begin of the paths of signed addresses."""

_Key = Annotated[str, Meta(min_length=1, max_length=512)]
_Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class BucketInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket, as the one who asks knows it: under which name, and what they may do beyond reading."""

    name: str
    user: str
    write: bool
    delete: bool
    manage: bool


# ---- objects of a store


def etag_header(tag: str) -> str:
    """A tag as a header: those of some services have quotes of their own."""
    return f'"{quote(tag, safe="")}"'


def etag_of(header: str) -> str:
    """The tag in a header; empty where there is none."""
    text = header.strip().removeprefix("W/")
    return unquote(text[1:-1]) if len(text) > 2 and text[0] == text[-1] == '"' else ""


class ObjectReply(msgspec.Struct, frozen=True):
    """One object, without its bytes."""

    key: str
    size: int
    mtime: float


ListedObject = tuple[str, int, float]
"""Key, size and time."""


class ObjectsReply(msgspec.Struct, frozen=True):
    """A page of a listing. ``more``: ask again, after the last key."""

    objects: list[ListedObject]
    more: bool


class Written(msgspec.Struct, frozen=True):
    """The tag of what was stored."""

    etag: str


class DeleteBody(msgspec.Struct, frozen=True):
    """What is to be deleted."""

    keys: Annotated[list[_Key], Meta(max_length=MAX_KEYS)]


class PackWish(msgspec.Struct, frozen=True, kw_only=True):
    """A pack that is going to be stored."""

    pack: _Id
    size: Annotated[int, Meta(ge=1, le=MAX_BLOB)]


class UrlsBody(msgspec.Struct, frozen=True, kw_only=True):
    """What addresses are wanted for: keys to read, packs to store. Not ``direct``: addresses of the server itself."""

    read: Annotated[list[_Key], Meta(max_length=MAX_KEYS)] = []
    write: Annotated[list[PackWish], Meta(max_length=MAX_KEYS)] = []
    direct: bool = True


class Signed(msgspec.Struct, frozen=True):
    """An address that works without credentials, once these headers are sent with it.

    It begins with a slash where it is one of the server itself. What is put at one that has ``incoming`` is to be told
    to the server then; at any other it is in its place at once.
    """

    url: str
    headers: dict[str, str] = {}
    incoming: str = ""


class UrlsReply(msgspec.Struct, frozen=True):
    """Addresses, in the order of what was asked for, and for how many seconds they work."""

    read: list[Signed]
    write: list[Signed]
    seconds: float


class PackBody(msgspec.Struct, frozen=True, kw_only=True):
    """What was put at an address is this pack. ``fresh``: it must not be there yet."""

    pack: _Id
    incoming: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")]
    fresh: bool = True


class IndexBody(msgspec.Struct, frozen=True):
    """The packs whose chunks everybody may rely on from now on."""

    packs: Annotated[list[_Id], Meta(max_length=100_000)]


# ---- versions


class VersionName(msgspec.Struct, frozen=True, kw_only=True):
    """A version: its dataset, its number, its digest (``manifest``) and that of its content."""

    name: str
    version: str
    checksum: str
    manifest: str
    created_at: str
    created_by: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One path that differs, as ``osmo dataset diff --format-type json`` tells it."""

    status: str
    path: str
    old_path: str | None
    type: str
    what: list[str]
    old_size: int
    new_size: int


class DiffReply(msgspec.Struct, frozen=True, kw_only=True):
    """What changed from one version to another. ``more``: changes beyond those that are listed."""

    old: VersionName
    new: VersionName
    identical: bool
    added: int
    removed: int
    modified: int
    renamed: int
    shared_bytes: int
    new_bytes: int
    changes: list[Change]
    more: bool = False


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a version was made from: ``version`` where it is known in this bucket, and in any case what was noted."""

    kind: str
    ref: str
    manifest: str = ""
    checksum: str = ""
    version: VersionName | None = None


class LineageReply(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version comes from and what came from it, one step each way.

    ``made_by`` is the workflow, the task and the like, as they were noted. ``looked_at`` counts the versions that were
    searched for what came from it; ``more``: there are others that were not.
    """

    version: VersionName
    made_by: dict[str, Any]
    made_from: list[Origin]
    made_of_it: list[VersionName]
    looked_at: int
    more: bool = False


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of a version. ``path`` is from the version's root, in UTF-8 with escapes where it is none (``raw`` then
    is what it is, in base64). ``digest`` is that of a file's content.
    """

    path: str
    type: str
    mode: int
    mtime: float
    size: int = 0
    digest: str = ""
    target: str = ""
    raw: str = ""


class FilesReply(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the files of a version; ``cursor`` leads to the next one, and is empty on the last."""

    version: VersionName
    path: str
    entries: list[FileEntry]
    cursor: str = ""


class CommitBody(msgspec.Struct, frozen=True, kw_only=True):
    """A version to be made of a manifest that is in the store, with all that it needs."""

    manifest: _Id
    metadata: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    description: Annotated[str, Meta(max_length=65_536)] = ""
    tag: Annotated[str, Meta(max_length=200)] = ""
    force: bool = False


class CommitReply(msgspec.Struct, frozen=True, kw_only=True):
    """The version, and whether it was made now: not when the latest one is like it."""

    version: VersionName
    created: bool


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stays although nothing refers to it, and why."""

    reason: str
    packs: int
    size: int
    until: float | None = None
    who: str = ""
    what: str = ""


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """What was marked before."""

    id: str
    since: float
    packs: int
    size: int
    begun: bool


class GarbageReply(msgspec.Struct, frozen=True, kw_only=True):
    """What collecting garbage would do. Nothing was changed."""

    bucket: str
    grace: float
    repack_below: float
    total: int
    needed: int
    frees: int
    dead_packs: int
    sparse_packs: int
    manifests: int
    datasets: int
    versions: int
    expired: int
    abandoned: int
    leftovers: int
    due: list[Marked]
    waiting: list[Marked]
    kept: list[Kept]
    empty: bool
