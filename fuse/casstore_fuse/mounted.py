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

__all__ = ["KIND", "MountPoint", "Process", "at", "mounts", "users"]

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
    """A process that keeps a mount in use. ``what`` is ``cwd``, ``root``, ``exe`` or ``fd``."""

    pid: int
    name: str
    what: str


def mounts() -> list[MountPoint]:
    """Return what is mounted for this process, in the order in which it came to be."""
    found: list[MountPoint] = []
    with open("/proc/self/mountinfo", "rb") as file:
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
