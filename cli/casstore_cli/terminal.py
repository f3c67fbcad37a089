"""Printing what tasks wrote.

Decided here and only here: what of a task's output reaches a terminal. Colours do; everything else that could act on
the terminal (moving the cursor, setting its title, asking it to answer) is removed, because a task's output is not
trusted. When standard output is not a terminal the bytes pass as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

__all__ = ["copy_lines", "harmless"]

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI
    r"|[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, SOS, PM, APC with their text
    r"|[ -/]*[0-~])?"  # everything shorter, and a lone ESC
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PREFIX = re.compile(r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\]){0,2} ?)(.*)", re.DOTALL)
_RESET = "\x1b[0m"


def harmless(line: str) -> str:
    """A line, without newline, that can't act on a terminal beyond its colours.

    Of a line that a program overwrote with carriage returns (a progress bar), the last state is kept.
    """
    prefix, text = "", line
    if "\r" in line:
        match = _PREFIX.fullmatch(line)
        if match:
            prefix, text = match[1], match[2]
        text = next((part for part in reversed(text.split("\r")) if part), "")
    text = prefix + text
    if "\x1b" in text:
        text = _SEQUENCE.sub(lambda match: match[0] if _COLOUR.fullmatch(match[0]) else "", text)
        if "\x1b" in text:
            text += _RESET
    return _CONTROL.sub("", text)


def copy_lines(pieces: Iterable[bytes]) -> None:
    """Copy a stream to standard output as it comes."""
    sys.stdout.flush()
    if not sys.stdout.isatty():
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            sys.stdout.write(harmless(line.decode("utf-8", "replace")) + "\n")
        sys.stdout.flush()
    if rest:
        sys.stdout.write(harmless(rest.decode("utf-8", "replace")) + "\n")
        sys.stdout.flush()
