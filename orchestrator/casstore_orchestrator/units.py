"""Quantities and durations as people write them.

Decided here and only here: the grammar of ``32Gi`` and ``15m``. Every unit of size is binary, as on OSMO
(``1G`` equals ``1Gi``); a bare number is bytes, or seconds.
"""

from __future__ import annotations

import math
import re
from typing import Final

from casstore.errors import UsageError

__all__ = ["format_duration", "format_quantity", "parse_duration", "parse_quantity"]

_SCALE: Final = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_QUANTITY: Final = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*(?:([TGMK])(?:iB|i)?|(B)|(m))?\s*", re.ASCII)
_DURATION: Final = re.compile(r"\s*(\d{1,12})\s*(d|h|ms|m|s|us|)\s*", re.ASCII)
_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "": 1.0}
_LIMIT: Final = 1 << 62


def parse_quantity(value: object, *, what: str) -> int:
    """Bytes in ``value``: a number, or text with one of the units ``T Ti TiB G Gi GiB M Mi MiB K Ki KiB B
    m``.

    ``m`` is a thousandth of a byte, rounded up, as Kubernetes writes it. Raises UsageError naming ``what``.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size: float = value
    elif isinstance(value, float):
        size = value
    elif isinstance(value, str) and (match := _QUANTITY.fullmatch(value)):
        number, unit, _, milli = match.groups()
        amount = float(number) if "." in number else int(number)
        size = amount / 1000 if milli else amount * _SCALE[unit or ""]
    else:
        msg = f"{what}: {_shown(value)} is not a quantity"
        raise UsageError(msg, hint="write a number with a unit, such as 512Mi or 32Gi")
    if not math.isfinite(size) or size < 0 or size > _LIMIT:
        msg = f"{what}: {_shown(value)} is out of range"
        raise UsageError(msg)
    return math.ceil(size)


def parse_duration(value: object, *, what: str) -> float:
    """Seconds in ``value``: a number, or an integer with one unit of ``d h m s ms us``. Raises UsageError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = int(match[1]) * _SECONDS[match[2]]
    else:
        msg = f"{what}: {_shown(value)} is not a duration"
        raise UsageError(msg, hint="write an integer with one unit of d, h, m, s, ms, us, such as 15m")
    if not math.isfinite(seconds) or seconds < 0 or seconds > 1e11:
        msg = f"{what}: {_shown(value)} is out of range"
        raise UsageError(msg)
    return seconds


def format_quantity(size: float) -> str:
    """``size`` bytes with the largest binary unit that keeps it readable: ``1.5Gi``."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        scale = _SCALE[unit[0]]
        if abs(size) >= scale:
            return f"{round(size / scale, 2):g}{unit}"
    return f"{size:g}"


def format_duration(seconds: float) -> str:
    """``seconds`` in the largest unit that divides it: ``15m``."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
