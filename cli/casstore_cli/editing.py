"""Documents that a person edits, or gives as a file, and says why.

Decided here and only here: that nothing is changed without a text and, where somebody can be asked, a reason; and that
a text which somebody wrote is not lost when it is refused.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import tempfile
from typing import Any

import click

from casstore.errors import CancelledError, SourceError, UsageError

__all__ = ["colored", "described", "difference", "edited", "kept", "parsed", "read"]

_ABORTS = "an empty description aborts the change"
_MAX_FILE = 8 << 20


def read(path: str) -> str:
    """The text of a file, ``-`` is standard input. Raises ``SourceError`` and ``UsageError``."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MAX_FILE + 1)
        else:
            with open(os.path.expanduser(path), "rb") as file:
                data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise UsageError(f"{path} is larger than {_MAX_FILE >> 20} MiB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def edited(before: Any) -> str:
    """What somebody made of a document in an editor. Raises ``UsageError`` without a terminal."""
    if not _terminal():
        raise UsageError("No file was given, and there is no terminal for an editor", hint="Give --file.")
    return _editor(json.dumps(before, indent=2), ".json")


def _editor(text: str, extension: str) -> str:
    try:
        return click.edit(text, extension=extension, require_save=False) or ""
    except click.ClickException as error:
        raise SourceError(f"the editor can't be used: {error.message}", hint="Set EDITOR, or give --file.") from None


def parsed(text: str, *, keep: bool) -> Any:
    """The document in a text; one that is no JSON is kept, if ``keep``. Raises ``UsageError``."""
    if not text.strip():
        raise CancelledError("the text is empty: nothing was changed")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"Invalid JSON: {error}", hint=kept(text) if keep else None) from None


def kept(text: str) -> str:
    """Leave a text where its author finds it."""
    with tempfile.NamedTemporaryFile("w", prefix="osmo-config-", suffix=".json", delete=False) as file:
        file.write(text)
    return f"Your text is in {file.name}."


def described(before: Any, after: Any) -> str | None:
    """Why it is changed, from an editor; None where nobody can be asked."""
    if not _terminal():
        return None
    lines = [] if before is None else difference(before, after, "before", "after")
    note = f"\n# Why is it changed? Lines that begin with # are left out; {_ABORTS}.\n"
    note += "".join(f"# {line}\n" for line in lines)
    said = "\n".join(line for line in _editor(note, ".txt").splitlines() if not line.startswith("#")).strip()
    if not said:
        raise CancelledError(f"{_ABORTS}: nothing was changed")
    return said


def difference(one: Any, other: Any, name: str, other_name: str) -> list[str]:
    """A unified diff of two documents, as lines."""
    first, second = (json.dumps(data, indent=2, sort_keys=True).splitlines() for data in (one, other))
    return list(difflib.unified_diff(first, second, name, other_name, lineterm=""))


def colored(line: str) -> str:
    """A line of a diff, in color on a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return line
    color = {"+": "32", "-": "31", "@": "36"}.get(line[:1])
    return f"\x1b[{color}m{line}\x1b[0m" if color else line


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
