"""Paths of the file system, and paths within a version.

Decided here and only here: what ``[bucket/]name[:tag]/path`` means, and where symbolic links lead. The first part is
a bucket if one is declared under that name, and has neither ``:`` nor ``@``; else it is a dataset or a collection of
the default bucket. Links are followed within their version alone: one that leads out of it leads nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Container
from typing import NamedTuple

from casstore.dataset.pick import parse_pick
from casstore.errors import UsageError
from casstore.model import Entry, Kind
from casstore.repo.tree import Tree

__all__ = ["ROOT", "Address", "follow", "parse"]

HOPS = 40
"""Links that are followed on the way to one file, as in Linux."""
LONGEST = 4096
"""Bytes of a link's target; longer ones lead nowhere."""
ROOT = Entry(b"", Kind.DIRECTORY, 0o755)
"""The top of a version."""


class Address(NamedTuple):
    """A parsed path. ``head`` is the part of it before the path within the dataset, which is ``path``.

    ``bucket`` None is the default one, ``name`` None the bucket itself.
    """

    head: str
    bucket: str | None
    name: str | None = None
    tag: str | None = None
    digest: str | None = None
    path: bytes = b""


def parse(text: str, buckets: Container[str]) -> Address:
    """Parse a path without the protocol. ``UsageError`` where it can't name a dataset."""
    first, _, rest = text.partition("/")
    bucket = None
    if first in buckets:  # no name of a bucket has ':' or '@'
        bucket, (name, _, inside) = first, rest.partition("/")
        if not name and not inside:
            return Address(first, bucket)
    else:
        name, inside = first, rest
    if inside and not all(inside.split("/")):
        raise UsageError(f"{text[:200]!r} has an empty part")
    ref, digest = parse_pick(name)
    head = text[: len(text) - len(inside)].rstrip("/")
    return Address(head, bucket, ref.name, ref.tag, digest, os.fsencode(inside))


def follow(tree: Tree, path: bytes) -> Entry | None:
    """Return what a path leads to, which is no link any more; None where it leads nowhere."""
    if not path:
        return ROOT
    found = tree.lookup(path)
    if found is not None and found.kind != Kind.SYMLINK:
        return found
    pending = path.split(b"/")[::-1]
    if b"." in pending or b".." in pending:
        return None  # these mean something in links alone
    done: list[bytes] = []
    here, hops = ROOT, 0
    while pending:
        part = pending.pop()
        if part in (b"", b"."):
            continue
        if here.kind != Kind.DIRECTORY or (part == b".." and not done):
            return None
        if part == b"..":
            done.pop()
        else:
            done.append(part)
        entry = tree.lookup(b"/".join(done)) if done else ROOT
        if entry is None:
            return None
        if entry.kind == Kind.SYMLINK:
            hops += 1
            if hops > HOPS or entry.target.startswith(b"/") or len(entry.target) > LONGEST:
                return None
            done.pop()
            pending += entry.target.split(b"/")[::-1]
            continue  # `here` is still the folder that holds the link
        here = entry
    return here
