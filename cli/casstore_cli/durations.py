"""Spans of time and shares on the command line.

Decided here and only here: how they are written.
"""

from __future__ import annotations

import re

import click

from casstore_cli import output

__all__ = ["seconds", "share", "span"]

_SPAN = re.compile(r"(\d{1,9})\s*([smhdw]?)\Z", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Callback of an option: a whole number with one unit of ``s m h d w``, in seconds; ``0`` needs none."""
    if value is None:
        return None
    match = _SPAN.match(value.strip())
    if match is None or (not match[2] and int(match[1])):
        raise click.BadParameter(f"{output.escape(value[:40])!r} is no span of time: write 90s, 15m, 24h, 30d, 2w or 0")
    return int(match[1]) * _UNITS[match[2] or "s"]


def share(_: click.Context, __: click.Parameter, value: str) -> float:
    """Callback of an option: a percentage, as a share of 0 to 1."""
    text = value.strip().removesuffix("%")
    if not text.isascii() or not text.isdigit() or int(text) > 100:
        raise click.BadParameter(f"{output.escape(value[:40])!r} is no share: write 0% to 100%")
    return int(text) / 100


def span(length: float) -> str:
    """A span of time as it would be given: ``30d``, ``90m``."""
    whole = int(length)
    for unit in "wdhm":
        if whole and whole % _UNITS[unit] == 0:
            return f"{whole // _UNITS[unit]}{unit}"
    return f"{whole}s"
