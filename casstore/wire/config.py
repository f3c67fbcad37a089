"""Requests and replies about configs: what an operator changes while a server runs, with its history.

Decided here and only here: the field names of these shapes (OSMO's), the types there are, and what stands for a secret.
"""

from __future__ import annotations

from typing import Any

import msgspec

from casstore.errors import UsageError

__all__ = [
    "MASK",
    "NAMED",
    "TYPES",
    "BucketAdmin",
    "ConfigChange",
    "ConfigEntry",
    "ConfigHistory",
    "DiffReply",
    "Rollback",
    "TagsChange",
    "parse_revision",
    "parse_type",
]

TYPES = (
    "BACKEND",
    "BACKEND_TEST",
    "DATASET",
    "GROUP_TEMPLATE",
    "POD_TEMPLATE",
    "POOL",
    "RESOURCE_VALIDATION",
    "ROLE",
    "SERVICE",
    "WORKFLOW",
)
NAMED = frozenset(TYPES) - {"SERVICE", "WORKFLOW"}
"""Those of which there are several, each with a name."""
MASK = "**********"
"""Stands for a secret in replies; sent back, it leaves the secret as it is."""


class ConfigChange(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of a change: what is new in ``configs`` or ``configs_dict``, whichever the route takes.

    ``revision`` is ours: the change is refused when the type has another one by now.
    """

    configs: Any = None
    configs_dict: Any = None
    new_name: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    revision: int | None = None
    force: bool = False


class ConfigEntry(msgspec.Struct, kw_only=True):
    """One revision. ``name`` is the config that was changed, empty for all of the type; ``created_at`` an ISO time."""

    config_type: str
    name: str
    revision: int
    username: str
    created_at: str
    description: str
    tags: list[str] | None = None
    data: Any = None


class ConfigHistory(msgspec.Struct, kw_only=True):
    """Revisions."""

    configs: list[ConfigEntry]


class Rollback(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of a rollback."""

    config_type: str
    revision: int
    description: str | None = None
    tags: list[str] | None = None


class TagsChange(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Body of a change of tags."""

    set_tags: list[str] | None = None
    delete_tags: list[str] | None = None


class DiffReply(msgspec.Struct, kw_only=True):
    """Two revisions, secrets masked."""

    first_data: Any = None
    second_data: Any = None


class BucketAdmin(msgspec.Struct, kw_only=True):
    """A bucket that was changed or removed."""

    name: str
    revision: int


def parse_type(text: str) -> str:
    """A type, however it is written. Raises ``UsageError``."""
    found = text.upper()
    if found not in TYPES:
        raise UsageError(f"'{text[:40]}' is no type of configs", hint=f"There are: {', '.join(TYPES)}")
    return found


def parse_revision(text: str) -> tuple[str, int | None]:
    """``TYPE`` or ``TYPE:REVISION``. Raises ``UsageError``."""
    name, colon, number = text.partition(":")
    kind = parse_type(name)
    if not colon:
        return kind, None
    if not (number.isascii() and number.isdigit()) or not 0 < int(number[:10]) < 2**31:
        raise UsageError(f"'{text[:40]}' names no revision", hint=f"Such as {kind}:3")
    return kind, int(number)
