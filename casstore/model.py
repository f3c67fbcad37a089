"""The vocabulary of the store: what a chunk, an entry, a version and a dataset are.

Decided here and only here: the shape of the values that the layers hand to each other. Nothing here does I/O
and nothing here knows how a value is laid out in a bucket (that is ``casstore.format``).

Paths inside a version are relative, ``/``-separated ``bytes``: file names on POSIX need not be UTF-8. For
display they are decoded with ``os.fsdecode``.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, TypeAlias

import msgspec

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes in memory, however they are held; a memoryview is contiguous."""

DIGEST_SIZE = 32
"""Bytes in a BLAKE3 digest; every id in the store is one."""


class Kind(IntEnum):
    """What an entry of a version is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


class Flag(IntEnum):
    """Bits of ``Entry.flags``."""

    SPARSE = 1
    """The source had holes: all-zero chunks are written back as holes."""


class Content(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a file, as the list of its chunks.

    ``depth`` 0: ``refs`` is a run of 36-byte records, a chunk id (32 bytes) and its raw length (u32, little
    endian). ``depth`` n > 0: ``refs`` is a run of 40-byte records, the id of a list node of depth n-1 (itself
    stored as a chunk) and the raw length it covers (u64, little endian). Lists are cut into nodes by content,
    so that a change inside a large file changes a few nodes only. See ``docs/format/manifest.md``.
    """

    depth: int = 0
    refs: bytes = b""


class Entry(msgspec.Struct, frozen=True):
    """One file, directory or symbolic link of a version.

    ``path`` is relative to the root of the version, without leading or trailing slash. ``mode`` holds the
    permission bits only (``st_mode & 0o7777``). ``size`` is the length in bytes of a file, 0 for anything
    else. ``target`` is a symlink's. Entries with the same non-zero ``link`` are names of one inode.
    ``xattrs`` is None when not recorded.
    """

    path: bytes
    kind: int
    mode: int = 0o644
    mtime_ns: int = 0
    size: int = 0
    content: Content = Content()
    target: bytes = b""
    link: int = 0
    flags: int = 0
    xattrs: dict[bytes, bytes] | None = None

    @property
    def parent(self) -> bytes:
        """Path of the directory that holds this entry; empty for the root."""
        return self.path.rpartition(b"/")[0]

    @property
    def name(self) -> bytes:
        """Last component of the path."""
        return self.path.rpartition(b"/")[2]


def sort_key(path: bytes) -> tuple[bytes, bytes]:
    """Order of entries in a manifest: directory by directory, depth first, names by their bytes inside each.

    The entries of one directory are adjacent, so that listing it reads one run of the manifest. ``/`` sorts
    before every other byte, so that the directories are in depth-first order.
    """
    parent, _, name = path.rpartition(b"/")
    return parent.replace(b"/", b"\0"), name


class Totals(msgspec.Struct, frozen=True):
    """Sums over the entries of a version. ``size`` is in logical bytes."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    size: int = 0


class VersionStatus(StrEnum):
    """OSMO's states of a version. PENDING is an unfinished upload (known only to the machine that runs it)."""

    PENDING = "PENDING"
    READY = "READY"
    PENDING_DELETE = "PENDING_DELETE"


class DatasetType(StrEnum):
    """What a name in a bucket stands for."""

    DATASET = "DATASET"
    COLLECTION = "COLLECTION"


class VersionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One committed version; immutable. Writing it with put-if-absent *is* the commit and allots the number.

    ``manifest`` is the id (hex) of the manifest: the digest of the version, everything included. ``checksum``
    (hex) covers paths, kinds, permission bits, contents and link targets, not times: equal checksums, equal
    content. ``metadata`` is the tree given at upload; later edits live in the head. ``new_bytes`` is what the
    upload added to the store, in stored bytes. ``write_id`` tells a lost reply from a conflict. ``epoch`` is that of
    the head that the writer read before it looked at what is being deleted; ``lease`` is the id of the lease it held.
    """

    number: int
    manifest: str
    checksum: str
    totals: Totals
    created_at: str
    created_by: str
    write_id: str
    new_bytes: int = 0
    metadata: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    epoch: int = 0
    lease: str = ""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of a collection: a dataset, by its id, at one version."""

    dataset_id: str
    version: int


class VersionState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What can change about a version after its commit. ``metadata``, when not None, replaces the record's."""

    status: VersionStatus = VersionStatus.READY
    metadata: dict[str, Any] | None = None
    last_used: str | None = None


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which versions of a dataset are kept when others go: what one of the rules keeps is kept.

    ``keep_last``: so many of the newest. ``keep_tagged``: those with a tag. ``keep_within_s``: those that are not older
    than so many seconds.
    """

    keep_last: int | None = None
    keep_tagged: bool = False
    keep_within_s: int | None = None


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The mutable state of a dataset or collection; changed by compare-and-swap only.

    ``tags`` maps a tag to a version number; ``latest`` is never in it: it is the highest READY version.
    ``versions`` holds only versions about which something changed. ``last_version`` is at least the highest
    number that was ever deleted, so that numbers are not used twice. ``deleted`` marks a dataset on its way
    out. ``epoch`` is raised before anything is deleted from the store: see ``casstore.repo.versions``. ``retention``
    None keeps everything.
    """

    id: str
    name: str
    type: DatasetType
    created_at: str
    created_by: str
    write_id: str
    labels: dict[str, Any] = {}
    tags: dict[str, int] = {}
    versions: dict[int, VersionState] = {}
    last_version: int = 0
    members: list[Member] = []
    deleted: bool = False
    epoch: int = 0
    retention: Retention | None = None
