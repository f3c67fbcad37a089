"""Why something waits, as whoever asks may know it.

Decided here and only here: that reasons name workflows of pools that somebody may read, and no others: pools share
nodes, so that what is missing may be held by whoever nobody there is to know of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from casstore_orchestrator.reasons import Why
from casstore_server.db import queries
from casstore_server.services.context import Caller, Services

__all__ = ["visible", "visible_text"]

_NAMED: Final = re.compile(r"\b(?P<id>[A-Za-z][A-Za-z0-9_-]*-\d+)(?P<more> of [A-Za-z0-9._@+-]+| \([A-Za-z0-9_-]+\))?")
_OTHER: Final = "another workflow"


def visible(services: Services, caller: Caller, why: Why) -> Why:
    """The reason without workflows that the caller may not read."""
    if caller.grants.scope("workflow:Read").all:
        return why
    lacks = tuple(
        msgspec.structs.replace(
            lack, holders=tuple(one for one in lack.holders if caller.may("workflow:Read", pool=one.pool))
        )
        for lack in why.lacks
    )
    hidden = _hidden(services, caller, [why.behind] if why.behind else [])
    return msgspec.structs.replace(
        why,
        line=visible_text(services, caller, why.line),
        lacks=lacks,
        behind=None if why.behind in hidden else why.behind,
    )


def visible_text(services: Services, caller: Caller, text: str) -> str:
    """A text about why something waits, with other words for workflows that the caller may not read."""
    if caller.grants.scope("workflow:Read").all:
        return text
    hidden = _hidden(services, caller, (found["id"] for found in _NAMED.finditer(text)))
    return _NAMED.sub(lambda found: _OTHER if found["id"] in hidden else found[0], text)


def _hidden(services: Services, caller: Caller, ids: Iterable[str]) -> set[str]:
    names = sorted(set(ids))
    if not names:
        return set()
    with services.database.reading() as connection:
        pools = queries.pools_of(connection, names)
    return {name for name, pool in pools.items() if not caller.may("workflow:Read", pool=pool)}
