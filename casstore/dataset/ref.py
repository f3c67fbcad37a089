"""How people name a dataset, a version of it, and a tag.

Decided here and only here: the grammar ``[bucket/]name[:tag]``. Every part has ASCII letters, digits, ``_``
and ``-``; a tag of digits is a version number. It is OSMO's grammar, with a limit on lengths.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from casstore.errors import UsageError
from casstore.repo.layout import MAX_NAME, is_name
from casstore.repo.refs import is_tag

__all__ = ["LATEST", "Ref", "check_name", "check_tag", "parse_ref", "version_number"]

LATEST = "latest"
"""The tag that always means the highest version that is ready. Nobody sets or deletes it."""

_REF = re.compile(r"(?:([A-Za-z0-9_-]+)/)?([A-Za-z0-9_-]+)(?::([A-Za-z0-9_-]*))?\Z", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,11}\Z", re.ASCII)


class Ref(NamedTuple):
    """A parsed reference. ``tag`` is a tag or a version number; None means the latest version."""

    bucket: str | None
    name: str
    tag: str | None

    def __str__(self) -> str:
        bucket = f"{self.bucket}/" if self.bucket else ""
        return f"{bucket}{self.name}{f':{self.tag}' if self.tag else ''}"


def parse_ref(text: str) -> Ref:
    """Parse ``[bucket/]name[:tag]``; an empty tag is none. ``UsageError`` for anything else."""
    match = _REF.match(text)
    if match is None or any(len(part or "") > MAX_NAME for part in match.groups()):
        raise UsageError(
            f"{text[:120]!r} does not name a dataset",
            hint=f"write [BUCKET/]NAME[:TAG] with letters, digits, '_' and '-', at most {MAX_NAME} in each part",
        )
    return Ref(match[1], match[2], match[3] or None)


def version_number(tag: str) -> int | None:
    """Return the number when this names a version by its number, else None."""
    return int(tag) if _NUMBER.match(tag) else None


def check_name(name: str) -> str:
    """Return a legal name of a dataset or collection; ``UsageError`` otherwise."""
    if not is_name(name):
        raise UsageError(
            f"illegal name {name[:120]!r}", hint=f"use letters, digits, '_' and '-', at most {MAX_NAME} of them"
        )
    return name


def check_tag(tag: str) -> str:
    """Return a tag that may be set or deleted; ``UsageError`` says why another may not."""
    if tag == LATEST:
        raise UsageError(
            "the tag 'latest' can't be set or deleted", hint="it always is the highest version that is ready"
        )
    if tag.isdigit():
        raise UsageError(f"the tag {tag!r} is a number", hint="numbers name versions: choose a tag with a letter")
    if not is_tag(tag):
        raise UsageError(f"illegal tag {tag[:120]!r}", hint=f"use letters, digits, '_' and '-', at most {MAX_NAME}")
    return tag
