"""The files that a raw upload takes.

Decided here and only here: which files there are below a path, what they are called, and what is left out.

As with datasets, a folder keeps its own last name, ``FOLDER/*`` stands for its content, and a file keeps its name; of
two files that would get the same name the first one wins. Links to files are followed, links to folders are not;
where the paths are not the user's own doing (``follow`` is false) no link is, not even by somebody who puts one in the
way at the last moment.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence

import msgspec

from casstore.errors import SourceError
from casstore.transfer.safefs import show

__all__ = ["Source", "open_file", "parse_sources", "walk"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_DEEPEST = 400


class Source(msgspec.Struct, frozen=True):
    """One argument: ``path`` is on the disk, ``prefix`` what its names begin with. ``alone``: it is a file."""

    path: bytes
    prefix: bytes
    alone: bool = False


class LocalFile(msgspec.Struct, frozen=True):
    """One file to send: where it is, relative to an open folder, and what it is called."""

    source: Source
    inside: bytes
    """Path below the source; empty for the source itself."""
    name: bytes

    @property
    def path(self) -> bytes:
        """For messages."""
        return os.path.join(self.source.path, self.inside) if self.inside else self.source.path


def parse_sources(paths: Sequence[str]) -> list[Source]:
    """The sources behind arguments. ``SourceError`` for one that is not there."""
    sources = []
    for text in paths:
        content = text == "*" or text.endswith("/*")
        path = os.fsencode((text[:-1] or ".") if content else text)
        if not os.path.exists(path):
            raise SourceError(f"{show(path)} does not exist")
        if os.path.isdir(path):
            full = os.path.realpath(path)
            sources.append(Source(full, b"" if content else os.path.basename(os.path.abspath(path)) + b"/"))
        else:
            sources.append(Source(os.path.abspath(path), os.path.basename(path), alone=True))
    return sources


def walk(
    sources: Sequence[Source], pattern: re.Pattern[str] | None, *, left_out: Callable[[str], None], follow: bool
) -> Iterator[LocalFile]:
    """Yield the files; ``left_out`` is told of what is none. ``pattern`` is not asked about single files."""
    seen: set[bytes] | None = set() if len(sources) > 1 else None
    for source in sources:
        if source.alone:
            found = iter([LocalFile(source, b"", source.prefix)])
        else:
            try:
                descriptor = os.open(source.path, _FOLDER)
            except OSError as error:
                raise SourceError(f"{show(source.path)} can't be read: {error.strerror}") from None
            found = _below(source, b"", descriptor, left_out, follow, 0)
        for file in found:
            name = file.name.decode("utf-8", "surrogateescape")
            if not source.alone and pattern is not None and not pattern.match(name):
                continue
            if seen is not None:
                if file.name in seen:
                    continue
                seen.add(file.name)
            yield file


def _below(
    source: Source, inside: bytes, descriptor: int, left_out: Callable[[str], None], follow: bool, depth: int
) -> Iterator[LocalFile]:
    """Takes over the descriptor."""
    try:
        with os.scandir(descriptor) as entries:
            names = sorted(os.fsencode(entry.name) for entry in entries)
        for name in names:
            path = inside + name
            kind, why = _kind(name, descriptor, follow)
            if kind == "folder" and depth >= _DEEPEST:
                kind, why = "", "too deep"
            if kind == "folder":
                try:
                    below = os.open(name, _FOLDER, dir_fd=descriptor)
                except OSError as error:
                    where = show(os.path.join(source.path, path))
                    raise SourceError(f"{where} can't be read: {error.strerror}") from None
                yield from _below(source, path + b"/", below, left_out, follow, depth + 1)
            elif kind == "file":
                yield LocalFile(source, path, source.prefix + path)
            else:
                left_out(f"{show(os.path.join(source.path, path))}: {why}")
    finally:
        os.close(descriptor)


def _kind(name: bytes, folder: int, follow: bool) -> tuple[str, str]:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            if not follow:
                return "", "a symbolic link"
            try:
                status = os.stat(name, dir_fd=folder)
            except OSError:
                return "file", ""  # it leads nowhere: opening it says so
            if stat.S_ISDIR(status.st_mode):
                return "", "a symbolic link to a folder"
    except FileNotFoundError:
        return "", "it vanished"
    if stat.S_ISDIR(status.st_mode):
        return "folder", ""
    return ("file", "") if stat.S_ISREG(status.st_mode) else ("", "not a regular file")


def open_file(file: LocalFile, *, follow: bool) -> int:
    """Open a file for reading. ``SourceError`` when it can't be, or is not a file any more."""
    try:
        if follow or not file.inside:
            descriptor = os.open(file.path, _FILE | (0 if follow else os.O_NOFOLLOW))
        else:
            descriptor = _open_below(file)
    except OSError as error:
        reason = "a symbolic link is in the way" if error.errno == errno.ELOOP else error.strerror
        raise SourceError(f"{show(file.path)} can't be read: {reason}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{show(file.path)} is not a file any more")
    return descriptor


def _open_below(file: LocalFile) -> int:
    """Open component by component, following no link."""
    folder = os.open(file.source.path, _FOLDER)
    try:
        *above, name = file.inside.split(b"/")
        for part in above:
            below = os.open(part, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, _FILE | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
