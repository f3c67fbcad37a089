"""From the names of objects to local paths, and back.

Decided here and only here: which names can be a file below a folder on every machine. A key is whatever somebody put
into a bucket: what would leave the folder, or be something else elsewhere, is refused by name, never mended.
"""

from __future__ import annotations

from casstore.errors import CasstoreError, FormatError
from casstore.transfer.safefs import check_name, show

__all__ = ["MAX_NAME", "key_of", "local_name"]

MAX_NAME = 3000
"""Bytes of a path below the folder."""
_HINT = "it was left out: choose others with --regex, or rename it in the bucket"


def local_name(name: str, key: str) -> bytes:
    """Return the relative path for the object ``name`` below a URL; ``FormatError`` that names the key."""
    try:
        path = name.encode("utf-8", "surrogateescape")
        problem = _problem(path)
        if problem is None:
            for part in path.split(b"/"):
                check_name(part)
    except UnicodeEncodeError:
        problem = "is not a text that UTF-8 can hold"
    except CasstoreError as error:
        problem = f"can't be a file's path: {error.message}"
    if problem is not None:
        raise FormatError(f"the key {show(key)!r} {problem}", hint=_HINT)
    return path


def key_of(path: bytes) -> str:
    """Return the name below a URL for a local path; ``FormatError`` for one that could not be downloaded again."""
    problem = _problem(path)
    if problem is not None:
        raise FormatError(f"the path {show(path)!r} {problem}", hint="rename the file")
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(
            f"the name {show(path)!r} is not UTF-8", hint="rename the file: keys are UTF-8 text"
        ) from None


def _problem(path: bytes) -> str | None:
    if path.startswith(b"/"):
        return "is an absolute path"
    if b"\0" in path:
        return "holds a NUL"
    if b"\\" in path:
        return "holds a backslash, which parts folders elsewhere"
    if len(path) > MAX_NAME:
        return f"is longer than {MAX_NAME} bytes"
    return None
