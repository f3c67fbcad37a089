"""One version, by all the names that people have for it.

Decided here and only here: the grammar ``[bucket/]name[:tag]`` or ``[bucket/]name@digest``, where a digest is the first
digits, eight or more, of the id of a version's manifest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casstore.dataset.ref import Ref, parse_ref
from casstore.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket
    from casstore.dataset.summary import Version

__all__ = ["find_version", "parse_pick"]

_DIGEST = re.compile(r"[0-9a-f]{8,64}\Z", re.ASCII)


def parse_pick(text: str) -> tuple[Ref, str | None]:
    """Return the reference, and the digest if one is given. ``UsageError`` for anything else."""
    name, at, digest = text.partition("@")
    ref = parse_ref(name)
    if at and ref.tag:
        raise UsageError(f"{text[:200]!r} names a tag and a digest", hint="give one of them")
    return ref, _checked(digest) if at else None


def find_version(bucket: Bucket, name: str, tag: str | None = None, digest: str | None = None) -> Version:
    """Return the version of a dataset that a tag, a number or the first digits of its manifest's id mean."""
    if digest is None:
        return bucket.resolve(name, tag)
    _checked(digest)
    infos = bucket.info(name, count=1 << 30).versions
    found = [info.version for info in infos if info.version.record.manifest.startswith(digest)]
    if not found:
        raise NotFoundError(f"no version of {name!r} has the digest {digest}", hint=f"see: osmo dataset info {name}")
    if len({version.record.manifest for version in found}) > 1:
        raise UsageError(f"{digest} begins the digests of {len(found)} versions of {name!r}", hint="write more of it")
    return max(found, key=lambda version: version.number)


def _checked(digest: str) -> str:
    if not _DIGEST.match(digest):
        raise UsageError(f"{digest[:80]!r} is no digest", hint="write at least 8 hexadecimal digits of it")
    return digest
