"""What is to be uploaded, as it is written on a command line.

Decided here and only here: where the files of an argument land in the version. ``dir`` keeps its last
component, ``dir/*`` is its content, a file keeps its base name; of an update, ``SOURCE:DEST`` puts all that
below ``DEST``. The same holds for URLs of object storage: a prefix keeps its last component, ``prefix/*`` does not.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from urllib.parse import unquote, unquote_to_bytes

import msgspec

from casstore.errors import SourceError, UsageError
from casstore.transfer.scan import Source

__all__ = [
    "RemoteSource",
    "compile_regex",
    "matcher",
    "parse_additions",
    "parse_mixed",
    "parse_sources",
    "refuse_store",
]

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"(?:tos|swift)://[^/]*", re.IGNORECASE)
_MAX_REGEX = 4096

Select = Callable[[bytes], bool]


class RemoteSource(msgspec.Struct, frozen=True):
    """A prefix or an object to upload, below ``dest``. ``contents``: without the prefix's own last component."""

    url: str
    dest: bytes
    contents: bool = False


def parse_sources(arguments: Sequence[str]) -> list[Source]:
    """Return the sources that these arguments name, in their order. ``SourceError`` for one that does not exist."""
    for argument in arguments:
        if _URI.match(argument):
            raise UsageError(f"{argument!r}: only local files are possible here", hint="download the files first")
    return [_source(argument, b"") for argument in arguments]


def parse_mixed(arguments: Sequence[str]) -> list[Source | RemoteSource]:
    """The same, with URLs of object storage among them."""
    return [_remote(argument, b"") or _source(argument, b"") for argument in arguments]


def refuse_store(sources: Sequence[Source | RemoteSource], url: str) -> None:
    """``UsageError`` for a source that holds the store at ``url``: each upload of it would add to the next one."""
    for source in sources:
        if _holds(source, url):
            name = source.url if isinstance(source, RemoteSource) else os.fsdecode(source.path)
            raise UsageError(
                f"{name} holds the store itself, at {unquote(url.removeprefix('file://'))}",
                hint="upload the folders beside it, or keep the store elsewhere: osmo bucket add",
            )


def _holds(source: Source | RemoteSource, url: str) -> bool:
    if isinstance(source, RemoteSource):
        return (url.rstrip("/") + "/").startswith(source.url.rstrip("/") + "/")
    if not url.startswith("file://"):
        return False
    store = unquote_to_bytes(url[len("file://") :])
    return (store + b"/").startswith(os.path.realpath(source.path).rstrip(b"/") + b"/")


def parse_additions(arguments: Sequence[str]) -> list[Source | RemoteSource]:
    r"""Return the sources that ``SOURCE[:DEST]`` arguments name; ``\:`` is a colon in a name."""
    sources: list[Source | RemoteSource] = []
    for argument in arguments:
        source, text = _split(argument)
        dest = _destination(text, argument) if text is not None else b""
        sources.append(_remote(source, dest) or _source(source, dest))
    return sources


def _split(argument: str) -> tuple[str, str | None]:
    """Split at the first colon that is neither escaped nor part of ``://`` or of a host and its port."""
    host = _HOST.match(argument)
    at = host.end() if host else 0
    while at < len(argument):
        if argument[at] == "\\" and argument[at + 1 : at + 2] == ":":
            at += 2
        elif argument[at] == ":" and not argument.startswith("://", at):
            return _unescape(argument[:at]), _unescape(argument[at + 1 :])
        else:
            at += 3 if argument[at] == ":" else 1
    return _unescape(argument), None


def _unescape(text: str) -> str:
    return text.replace("\\:", ":")


def _destination(text: str, argument: str) -> bytes:
    path = os.fsencode(text)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if path.startswith(b"/") or b".." in parts or b"\0" in path:
        raise UsageError(
            f"{argument!r}: the destination must be a folder inside the dataset",
            hint="write it relative to the top of the dataset, without '..'",
        )
    return b"/".join(parts)


def _remote(argument: str, dest: bytes) -> RemoteSource | None:
    """Return the source that a URL names; None for a path."""
    if not _URI.match(argument):
        return None
    from casstore.remote.urls import parse_url  # noqa: PLC0415 - most uploads have none

    contents = argument.endswith("/*")
    place = parse_url(argument.removesuffix("*"))
    if place.scheme == "file":
        raise UsageError(f"{argument!r} is a local folder", hint="write it as a path")
    if not contents and not place.prefix:
        raise UsageError(f"{argument} has no name of its own", hint=f"upload its content: {argument.rstrip('/')}/*")
    return RemoteSource(place.url, dest, contents)


def _source(argument: str, dest: bytes) -> Source:
    path = os.fsencode(argument)
    if not path or b"\0" in path:
        raise UsageError(f"{argument!r} is not a path")
    contents = path == b"*" or path.endswith(b"/*")
    if contents:
        path = path[:-1].rstrip(b"/") or (b"/" if path.startswith(b"/") else b".")
    path = os.path.join(os.getcwdb(), path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{argument} does not exist", hint="check the path; nothing was stored") from None
    except OSError as error:
        raise SourceError(f"can't read {argument}: {error.strerror}", hint="nothing was stored") from None
    if contents and not stat.S_ISDIR(mode):
        raise SourceError(f"{argument}: {os.fsdecode(path)} is not a folder")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise SourceError(f"{argument} is neither a file nor a folder")
    if contents:
        return Source(path, dest, contents=True)
    name = _last_component(path)
    if not name:
        raise UsageError(f"{argument} has no name of its own", hint=f"upload its content: {argument.rstrip('/')}/*")
    return Source(path.rstrip(b"/"), dest + b"/" + name if dest else name)


def _last_component(path: bytes) -> bytes:
    name = os.path.basename(path.rstrip(b"/"))
    return os.path.basename(os.path.realpath(path)) if name in (b".", b"..") else name


def compile_regex(pattern: str) -> re.Pattern[str]:
    """Compile a user's pattern; ``UsageError`` for an illegal one. It is matched at the start of a path."""
    if len(pattern) > _MAX_REGEX:
        raise UsageError(f"the regular expression is longer than {_MAX_REGEX} characters")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{pattern[:120]!r} is not a regular expression: {error}") from None


def matcher(pattern: str | None, *, named: Sequence[Source | RemoteSource] = ()) -> Select | None:
    """Return a test of paths for a pattern, or None for none (``""`` is none).

    Files that were named one by one are always taken, as in OSMO.
    """
    if not pattern:
        return None
    match = compile_regex(pattern).match
    local = (source for source in named if isinstance(source, Source) and not source.contents)
    single = {source.dest for source in local if not os.path.isdir(source.path)}
    return lambda path: path in single or match(path.decode("utf-8", "surrogateescape")) is not None
