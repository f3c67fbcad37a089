"""What the kernel says is mounted, and who uses it.

Decided here and only here: how ``/proc`` is read. Nothing in a mount itself is touched: one that answers nobody would
hold up whoever asks.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["KIND", "MountPoint", "Process", "at", "elsewhere", "mounts", "users"]

KIND = "fuse.casstore"
"""The type that our mounts have."""
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountPoint(NamedTuple):
    """A line of ``mountinfo``."""

    path: str
    kind: str
    source: str
    options: str


class Process(NamedTuple):
    """A process that keeps a mount in use. ``what`` is ``cwd``, ``root``, ``exe``, ``fd`` or ``namespace``."""

    pid: int
    name: str
    what: str


def mounts() -> list[MountPoint]:
    """Return what is mounted for this process, in the order in which it came to be."""
    return _mounts("self")


def _mounts(pid: str) -> list[MountPoint]:
    found: list[MountPoint] = []
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            fields, rest = before.split(b" "), after.split(b" ")
            if len(fields) > 5 and len(rest) > 2:
                found.append(MountPoint(*map(_plain, (fields[4], rest[0], rest[1], rest[2]))))
    return found


def at(path: str) -> MountPoint | None:
    """Return the topmost mount at exactly this path."""
    return next((point for point in reversed(mounts()) if point.path == path), None)


def users(path: str) -> Iterator[Process]:
    """Yield the processes that use what is below ``path``, each once, as far as ``/proc`` shows them."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            what = next((what for what, target in _links(entry) if target == path or target.startswith(path + "/")), "")
            if what:
                yield Process(int(entry), _name(entry), what)


def elsewhere(path: str) -> Process | None:
    """Return a process that sees a mount of ours at a path where this one sees none, as far as ``/proc`` shows it."""
    if (here := at(path)) is not None and here.kind == KIND:
        return None
    seen = {_namespace("self")}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if (space := _namespace(pid)) not in seen:
                seen.add(space)
                # What a sandbox moved into itself has another place there, and the same end.
                if any(one.kind in {KIND, "overlay"} and one.path.endswith(path) for one in _mounts(pid)):
                    return Process(int(pid), _name(pid), "namespace")
    return None


def _namespace(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def _links(pid: str) -> Iterator[tuple[str, str]]:
    for what in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield what, os.readlink(f"/proc/{pid}/{what}")
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for number in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield "fd", os.readlink(f"{folder}/{number}")


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read(64)).rstrip("\n")
    except OSError:
        return "?"


def _plain(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
