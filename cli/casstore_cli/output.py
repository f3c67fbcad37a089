r"""How results look: tables, JSON, sizes, dates, messages and questions.

Decided here and only here: the format of everything a command prints. Results go to standard output, messages
and questions to standard error, so that with ``--format-type json`` standard output is exactly one JSON
document. Names that come from a bucket can hold anything; in text output ``escape`` shows control characters,
terminal escapes and bytes that are not UTF-8 as ``\xNN`` or ``\uNNNN``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

if TYPE_CHECKING:
    from datetime import datetime

_F = TypeVar("_F", bound=Callable[..., Any])

FORMAT_KEY = "casstore_cli.format"
LEVEL_KEY = "casstore_cli.level"
_ARRAY_KEY = "casstore_cli.array"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905 - easier to read
_GAP = "   "


def format_option(*choices: str) -> Callable[[_F], _F]:
    """``-t/--format-type`` as every command has it; the value also decides how an error is shown."""

    def remember(ctx: click.Context, _: click.Parameter, value: str) -> str:
        ctx.meta[FORMAT_KEY] = value
        return value

    return click.option(
        "-t",
        "--format-type",
        type=click.Choice(choices or ("text", "json")),
        default="text",
        show_default=True,
        callback=remember,
        is_eager=True,
        help="Format of the result.",
    )


def is_json(ctx: click.Context | None = None) -> bool:
    """Whether the running command was asked for JSON."""
    ctx = ctx or click.get_current_context(silent=True)
    return ctx is not None and ctx.meta.get(FORMAT_KEY) == "json"


def asks_for_json(args: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, as far as can be told before it is parsed."""
    before = ""
    for word in args:
        if word == "--":
            return False
        name, _, value = word.partition("=")
        if name == "-tjson" or ((value or word) == "json" and _is_format(name if value else before)):
            return True
        before = word
    return False


def _is_format(word: str) -> bool:
    return word == "-t" or (len(word) > len("--f") and "--format-type".startswith(word))


def text(line: str = "") -> None:
    """Print one line of a result. The caller escapes what came from outside."""
    sys.stdout.write(line + "\n")


def document(value: object, *, indent: int = 4, stream: TextIO | None = None) -> None:
    """Print a result as one JSON document (OSMO: 4 spaces for datasets and buckets, 2 for workflows)."""
    import json

    (stream or sys.stdout).write(json.dumps(value, indent=indent) + "\n")


class Array:
    """A JSON array that is written item by item: a million of them take no memory.

    Nothing is written before the first item. When the command fails after that, ``errors`` ends the array, so that
    standard output still is one document.
    """

    def __init__(self, *, indent: int = 4) -> None:
        import json

        self._dumps = json.dumps
        self._encode = json.JSONEncoder().encode
        self._indent = indent
        self._empty = True

    def add(self, value: object) -> None:
        """Write one item."""
        if self._empty:
            click.get_current_context().meta[_ARRAY_KEY] = self
        body = self._body(value)
        sys.stdout.write(("[" if self._empty else ",") + "\n" + " " * self._indent + body)
        self._empty = False

    def _body(self, value: object) -> str:
        pad = "\n" + " " * self._indent
        if not isinstance(value, dict) or any(isinstance(item, (dict, list, tuple)) for item in value.values()):
            return self._dumps(value, indent=self._indent).replace("\n", pad)
        # The library indents in Python, five times slower than this; most items are flat.
        lines = [f"{pad}{' ' * self._indent}{self._encode(key)}: {self._encode(item)}" for key, item in value.items()]
        return "{" + ",".join(lines) + (pad if lines else "") + "}"

    def close(self) -> None:
        """End the document."""
        sys.stdout.write("[]\n" if self._empty else "\n]\n")
        click.get_current_context().meta.pop(_ARRAY_KEY, None)


def end_array(ctx: click.Context | None) -> bool:
    """End the array that a failing command has begun; whether there was one."""
    array = None if ctx is None else ctx.meta.pop(_ARRAY_KEY, None)
    if array is None:
        return False
    sys.stdout.write("\n]\n")
    return True


def current_level() -> str:
    """What ``--log-level`` says, as far as the current thread knows."""
    ctx = click.get_current_context(silent=True)
    found: str = ctx.meta.get(LEVEL_KEY, "INFO") if ctx else "INFO"
    return found


def message(line: str, *, level: str = "INFO", wanted: str | None = None) -> None:
    """Tell the user something that is not the result: standard error, if ``--log-level`` (``wanted``)
    allows.
    """
    if LEVELS.index(level) >= LEVELS.index(wanted or current_level()):
        prefix = "" if level == "INFO" else f"{level}: "
        sys.stderr.write(prefix + line + "\n")
        sys.stderr.flush()


def warn(line: str) -> None:
    """A message that should be seen."""
    message(line, level="WARNING")


def confirm(question: str, *, unasked: str = "--force") -> bool:
    """Ask ``question [y/N]``; anything but yes is no. Without anyone to answer it is an error: nothing was
    done. ``unasked`` is the option with which the command does not ask.
    """
    from casstore.errors import UsageError

    sys.stdout.flush()
    sys.stderr.write(f"{question} [y/N]: ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    if not answer:
        raise UsageError("not confirmed: there was no answer, nothing was changed", hint=f"{unasked} does not ask")
    return answer.strip().lower() in {"y", "yes"}


def escape(name: str | bytes) -> str:
    """``name`` as one line that can't act on a terminal."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escaped(ord(c)) for c in name)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, total: Sequence[object] | None = None) -> str:
    """A table as OSMO prints it: left-aligned, three spaces apart, a rule of ``=`` under the header.

    None is shown as ``N/A``. ``total`` is a last row under a rule of its own. No newline at the end.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    last = [] if total is None else [[_cell(value) for value in total]]
    widths = [max(map(_width, column)) for column in zip(headers, *cells, *last, strict=True)]
    rule = "=" * (sum(widths) + len(_GAP) * (len(widths) - 1))
    lines = [_line(headers, widths), rule, *(_line(row, widths) for row in cells)]
    if last:
        lines += [rule, _line(last[0], widths)]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "N/A" if value is None else escape(str(value))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True))
    return _GAP.join(padded).rstrip()


def _width(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in cell)


def size(count: int) -> str:
    """Bytes as OSMO shows them: ``0 B``, ``12 B``, ``1.5 KiB`` ... ``TiB``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if value < 1023.95 or unit == _UNITS[-1]:
            return f"{value:.1f} {unit}"
    raise AssertionError


def date(moment: str | datetime | None) -> str | None:
    """A point in time in the local zone, ``Nov 21, 2026 00:01 UTC``. A string is ISO 8601; UTC when it has no
    zone.
    """
    if not moment:
        return None
    from datetime import UTC, datetime

    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    local = moment.astimezone()
    return f"{_MONTHS[local.month - 1]} {local:%d, %Y %H:%M %Z}"


def tree_text(value: Mapping[str, Any], indent: int = 0) -> list[str]:
    """A JSON tree as lines of indented YAML."""
    import yaml

    dumped = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return [" " * indent + escape(line) for line in dumped.splitlines()]
