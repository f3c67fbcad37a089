"""Folders on the host that tasks leave behind or are given.

Decided here and only here: how what a task left is read without leaving its folder (a task may put symbolic links,
devices or unreadable folders anywhere), how a tree is copied, what a listing in a log looks like, and how a home is
removed.

Symbolic links are copied as links and never followed; devices, pipes and sockets are left out and counted.
A folder handed in here must be one whose tasks have ended: nothing defends against changes made meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from casstore.errors import CancelledError, SourceError

__all__ = [
    "CopyResult",
    "confined",
    "copy_bytes",
    "copy_tree",
    "is_empty",
    "listing",
    "local_path",
    "read_small",
    "remove_tree",
    "size_text",
]

_FICLONE = 0x40049409
_COPY_STEP = 8 << 20
LISTING_DEPTH = 2
LISTING_LINES = 20


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy took: ``size`` in bytes; ``skipped`` counts devices, pipes and sockets."""

    files: int
    size: int
    skipped: int


def confined(root: Path, relative: str) -> Path:
    """``root/relative``, once it is certain that no component of it is or passes through a symbolic link.

    ``SourceError`` when it leaves the root or does not exist.
    """
    path = root
    _require(path)
    for part in relative.split("/"):
        if part in {"", "."}:
            continue
        if part == ".." or "\0" in part:
            msg = f"{relative!r} leaves the output folder"
            raise SourceError(msg, hint="Name a path below {{output}}, without '..'.")
        if not stat.S_ISDIR(path.lstat().st_mode):
            msg = f"{relative!r} does not exist in the output folder"
            raise SourceError(msg)
        path /= part
        _require(path, shown=relative)
    return path


def _require(path: Path, *, shown: str = "") -> None:
    name = repr(shown) if shown else "the output folder"
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        msg = f"{name} does not exist" + (" in the output folder" if shown else "")
        raise SourceError(msg) from None
    if stat.S_ISLNK(mode):
        msg = f"{name} is, or is behind, a symbolic link, which is not followed"
        raise SourceError(msg, hint="Copy the files into {{output}} instead of linking to them.")


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; ``SourceError`` otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        msg = f"{path.name} can't be read: {error.strerror}"
        raise SourceError(msg) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = f"{path.name} is not a file"
            raise SourceError(msg)
        data = b""
        while len(data) <= limit and (block := os.read(descriptor, limit + 1 - len(data))):
            data += block
    finally:
        os.close(descriptor)
    if len(data) > limit:
        msg = f"{path.name} is larger than {limit} bytes"
        raise SourceError(msg)
    return data


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in the folder (or no folder)."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        return True


def copy_tree(
    source: Path,
    target: Path,
    *,
    regex: str | None = None,
    replace: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> CopyResult:
    """Copy what is in ``source`` into ``target`` (made when absent), sharing blocks where the disk can.

    ``regex`` selects files and links by ``re.match`` against their path relative to ``source``; then only
    folders that hold some are made. ``replace``: files that are there already give way, each at once
    to a whole one. ``CancelledError`` once ``stop`` says so, ``SourceError`` where something can't be read.
    """
    pattern = re.compile(regex) if regex else None
    files = size = skipped = 0
    target.mkdir(parents=True, exist_ok=True)
    times: list[tuple[Path, os.stat_result]] = []
    for entry, relative in _walk(source):
        if stop():
            msg = "copying was interrupted"
            raise CancelledError(msg)
        place = target / relative
        info = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            if pattern is None:
                place.mkdir(exist_ok=True)
                times.append((place, info))
            continue
        if pattern is not None:
            if not pattern.match(relative):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name[:200]}.casstore-new") if replace else place
        if replace:
            draft.unlink(missing_ok=True)  # left by a copy that was interrupted
        if stat.S_ISLNK(info.st_mode):
            draft.symlink_to(os.readlink(entry.path))
            os.utime(draft, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
        elif stat.S_ISREG(info.st_mode):
            _copy_file(entry.path, draft, stop)
            size += info.st_size
        else:
            skipped += 1
            continue
        if replace:
            draft.replace(place)
        files += 1
    for place, info in reversed(times):
        place.chmod(stat.S_IMODE(info.st_mode) & 0o777 | 0o700)
        os.utime(place, ns=(info.st_atime_ns, info.st_mtime_ns))
    return CopyResult(files, size, skipped)


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[os.DirEntry[str], str]]:
    pending = [(str(folder), prefix)]
    while pending:
        path, below = pending.pop()
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            msg = f"{below or 'the folder'} can't be read: {error.strerror}"
            raise SourceError(msg) from None
        for entry in entries:
            relative = f"{below}/{entry.name}" if below else entry.name
            yield entry, relative
            if entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, relative))


def _copy_file(source: str, target: Path, stop: Callable[[], bool]) -> None:
    try:
        reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        msg = f"{os.path.basename(source)} can't be read: {error.strerror}"
        raise SourceError(msg) from None
    try:
        info = os.fstat(reader)
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            copy_bytes(reader, writer, stop)
            os.fchmod(writer, stat.S_IMODE(info.st_mode) & 0o777)
            os.utime(writer, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def copy_bytes(reader: int, writer: int, stop: Callable[[], bool]) -> None:
    """Copy an open file from its start into an empty one, sharing blocks where the disk can. ``CancelledError``."""
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
        return
    except OSError:
        pass  # this file system can't share blocks: copy
    kernel = True
    while True:
        if stop():
            msg = "copying was interrupted"
            raise CancelledError(msg)
        if kernel:
            try:
                copied = os.copy_file_range(reader, writer, _COPY_STEP)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                    raise
                kernel = False
                continue
        else:
            copied = _write_all(writer, os.read(reader, _COPY_STEP))
        if copied == 0:
            return


def _write_all(writer: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
    return len(data)


def listing(folder: Path, *, lines: int = LISTING_LINES, shown: Mapping[str, Path] | None = None) -> list[str]:
    """A picture of what is in the folder, two levels deep, of at most ``lines`` lines (and one that says "more").

    ``shown``: folders that tasks see in place of those of that name in it, or (no name) in place of itself. They may
    be large: no more of them is read than is told.
    """
    instead = dict(shown or {})
    picture: list[str] = []
    for depth, name in _picture(instead.get("", folder), 0, instead, lines + 1 if "" in instead else None):
        if len(picture) == lines:
            picture.append("...")
            break
        picture.append("  " * depth + name)
    return picture


def _picture(folder: Path, depth: int, instead: Mapping[str, Path], most: int | None) -> Iterator[tuple[int, str]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(itertools.islice(found, most), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        name = os.fsencode(entry.name).decode("utf-8", "replace")
        if entry.is_dir(follow_symlinks=False):
            yield depth, name + "/"
            if depth + 1 < LISTING_DEPTH:
                if depth == 0 and entry.name in instead:
                    yield from _picture(instead[entry.name], depth + 1, {}, LISTING_LINES + 1)
                else:
                    yield from _picture(Path(entry.path), depth + 1, {}, most)
        else:
            yield depth, f"{name} ({size_text(entry.stat(follow_symlinks=False).st_size)})"


def size_text(size: int) -> str:
    """``n B``, then one decimal of KiB to TiB."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def remove_tree(path: Path) -> None:
    """Remove a folder whatever a task did to the permissions inside; nothing happens when it is absent."""
    if path.is_symlink():
        path.unlink()
        return
    if not path.exists():
        return
    try:
        shutil.rmtree(path)
    except OSError:
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):
            for name in names:
                inner = os.path.join(folder, name)
                if not os.path.islink(inner):
                    os.chmod(inner, 0o700)
        shutil.rmtree(path)


def local_path(url: str) -> Path | None:
    """The folder or file that a ``file://`` URL names; None for any other scheme."""
    if not url.startswith("file://"):
        return None
    rest = url.removeprefix("file://")
    if not rest.startswith("/"):
        host, _, rest = rest.partition("/")
        if host != "localhost":
            return None
        rest = "/" + rest
    return Path(os.path.normpath(rest))
