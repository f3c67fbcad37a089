"""What OSMO's service knew of a dataset, from what its users kept: the JSON of `osmo dataset info -t json`.

Decided here and only here: which parts of it are restored, and in which form. It is input like any other: its types are
checked, what can't be kept as it is becomes part of the provenance, and a warning says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from casstore.dataset import attributes
from casstore.dataset.ref import check_tag
from casstore.errors import CasstoreError, UsageError
from casstore.structs import from_json

__all__ = ["COLLECTION", "MAX_INFO", "Info", "InfoVersion", "load_info"]

COLLECTION = "COLLECTION"
MAX_INFO = 64 << 20
"""Bytes of one document."""
_CUT = 100
"""Versions that the command shows unless it is told another number."""
_TEXT = 256
_PLACE = re.compile(r"/([A-Za-z0-9_-]{1,64})/(?:hashes/?|manifests/[0-9]+\.json)\Z", re.ASCII)


class InfoVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version, as the service described it; of a collection, one member."""

    version: str
    name: str = ""
    uri: str | None = None
    hash_location: str | None = None
    status: str = "READY"
    created_by: str | None = None
    created_date: str | None = None
    checksum: str | None = None
    metadata: dict[str, Any] | None = None
    tags: list[str] | None = None

    @property
    def number(self) -> int:
        """Its number."""
        return int(self.version)

    @property
    def dataset_id(self) -> str | None:
        """The id of its dataset, from where its files are."""
        for text in (self.hash_location, self.uri):
            match = _PLACE.search(text or "")
            if match:
                return match[1]
        return None

    @property
    def user(self) -> str | None:
        """Who made it."""
        return self.created_by[:_TEXT] if self.created_by and self.created_by.isprintable() else None

    @property
    def time(self) -> str | None:
        """When it was made, as it is written in records; None when that is not to be read."""
        return record_time(self.created_date)

    def plain_metadata(self, warn: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the metadata as it can be kept, and what can't."""
        return plain(self.metadata or {}, f"metadata of version {self.version}", warn)

    def plain_tags(self, warn: Callable[[str], None]) -> list[str]:
        """Return the tags that can be set. ``latest`` is none: it follows from the versions."""
        kept: list[str] = []
        for tag in self.tags or []:
            if tag == "latest":
                continue
            try:
                kept.append(check_tag(tag))
            except UsageError as error:
                warn(f"a tag of version {self.version} is left out: {error.message}")
        return kept


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """One dataset, or a collection: then ``versions`` are its members."""

    name: str
    id: str
    type: str = "DATASET"
    created_by: str | None = None
    labels: dict[str, Any] | None = None
    versions: list[InfoVersion] = []


def load_info(name: str, data: bytes, warn: Callable[[str], None]) -> list[Info]:
    """Return the datasets in a document: one object, or an array of them. ``UsageError`` names what is wrong."""
    if len(data) > MAX_INFO:
        raise UsageError(f"{name} is larger than {MAX_INFO} bytes")
    several = data.lstrip()[:1] == b"["
    try:
        infos = from_json(data, list[Info]) if several else [from_json(data, Info)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{name} is not what `osmo dataset info NAME -t json` of OSMO prints: {error}",
            hint="export it with the old client, with --count as large as the number of versions",
        ) from None
    for info in infos:
        if info.type not in ("DATASET", COLLECTION):
            raise UsageError(f"{name}: {info.name[:80]!r} is neither a dataset nor a collection")
        if not all(version.version.isdigit() and len(version.version) <= 12 for version in info.versions):
            raise UsageError(f"{name}: {info.name[:80]!r} has a version without a number")
        if len(info.versions) == _CUT and info.type != COLLECTION:
            warn(f"{name} has exactly {_CUT} versions: was it cut off? Versions that it does not have are left out")
    return infos


def plain(tree: dict[str, Any], what: str, warn: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the part of a tree of attributes that can be kept, and the rest: whole keys of the top level."""
    kept: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        try:
            kept |= attributes.check({key: value}, what)
        except CasstoreError as error:
            rest[key] = value
            warn(f"{error.message}: kept in the provenance")
    return kept, rest


def record_time(text: str | None) -> str | None:
    """Return a time in the form of our records; one without a zone is UTC, as OSMO's are."""
    try:
        found = datetime.fromisoformat(text or "")
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        return None
