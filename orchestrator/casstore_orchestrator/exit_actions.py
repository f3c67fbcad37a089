"""Exit actions: what a code means for a task, as its author (or the pool) decided.

Decided here and only here: the grammar ``"0,1-10,16"`` and which action wins when several match (the first in
the order COMPLETE, FAIL, RESCHEDULE of one mapping is its writing order).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from casstore.errors import UsageError

from .typed import nearest

__all__ = ["ExitAction", "find_action", "parse_exit_actions"]

_ITEM: Final = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", re.ASCII)


MAX_RANGES: Final = 256


class ExitAction(StrEnum):
    """What happens to a task that ends with a code."""

    COMPLETE = "COMPLETE"
    FAIL = "FAIL"
    RESCHEDULE = "RESCHEDULE"


Ranges = tuple[tuple[int, int], ...]


def parse_exit_actions(actions: Mapping[str, str]) -> dict[ExitAction, Ranges]:
    """The inclusive ranges of codes of each action, in the order written. Raises UsageError."""
    parsed: dict[ExitAction, Ranges] = {}
    for name, text in actions.items():
        if name.upper() not in ExitAction.__members__:
            raise UsageError(f"unknown action {name!r}", hint=nearest(name, ExitAction))
        ranges = []
        if text.count(",") >= MAX_RANGES:
            raise UsageError(f"{name}: more than {MAX_RANGES} codes and ranges")
        for item in text.split(","):
            match = _ITEM.fullmatch(item)
            if match is None:
                raise UsageError(f"{name}: {item.strip()!r} is not a code", hint="write for example '0,1-10,16'")
            low, high = int(match[1]), int(match[2] or match[1])
            if low > high:
                raise UsageError(f"{name}: the range {low}-{high} is empty")
            ranges.append((low, high))
        parsed[ExitAction[name.upper()]] = tuple(ranges)
    return parsed


def find_action(code: int, *mappings: Mapping[str, str]) -> ExitAction | None:
    """The first action that names ``code``, looking through ``mappings`` in order; None when none does."""
    for actions in mappings:
        for action, ranges in parse_exit_actions(actions).items():
            if any(low <= code <= high for low, high in ranges):
                return action
    return None
