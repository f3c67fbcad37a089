"""Lists that are longer than one reply.

Decided here and only here: how many entries are asked for at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["PAGE", "collect"]

PAGE = 1000


class _List(Protocol):
    more_entries: bool


_L = TypeVar("_L", bound=_List)
_E = TypeVar("_E")


def collect(ask: Callable[[int, int], _L], entries: Callable[[_L], list[_E]], count: int, offset: int = 0) -> _L:
    """The first ``count`` entries behind ``offset``, as one reply; ``ask`` gets a limit and an offset."""
    found = ask(min(PAGE, count), offset)
    rows = entries(found)
    while len(rows) < count and found.more_entries:
        page = ask(min(PAGE, count - len(rows)), offset + len(rows))
        rows += entries(page)
        found.more_entries = page.more_entries and bool(entries(page))
    return found
