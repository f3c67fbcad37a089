"""Requests and replies about apps: workflow files that a server keeps under a name.

Decided here and only here: the field names of these shapes, which are OSMO's, and what an app may be called.
"""

from __future__ import annotations

import re

import msgspec

from casstore.errors import UsageError

__all__ = [
    "MAX_DESCRIPTION",
    "AppDeleted",
    "AppEdit",
    "AppList",
    "AppReply",
    "AppSummary",
    "AppVersion",
    "app_and_version",
    "check_app_name",
]

MAX_DESCRIPTION = 4096
"""Characters of a description."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)
_MOST = 10**9


class AppVersion(msgspec.Struct, kw_only=True):
    """One version; ``status`` is READY or DELETED."""

    version: int
    created_by: str
    created_date: str
    status: str


class AppReply(msgspec.Struct, kw_only=True):
    """One app with a page of its versions."""

    uuid: str
    name: str
    description: str
    created_date: str
    owner: str
    versions: list[AppVersion]


class AppEdit(msgspec.Struct, kw_only=True):
    """The version that an app has now; ``created`` (ours) is False when nothing had changed."""

    uuid: str
    name: str
    version: int
    created_by: str
    created_date: str
    created: bool = True


class AppSummary(msgspec.Struct, kw_only=True):
    """One row of a list of apps."""

    uuid: str
    owner: str
    name: str
    description: str
    created_date: str
    latest_version: int


class AppList(msgspec.Struct, kw_only=True):
    """``more_entries``: a larger offset gives more."""

    apps: list[AppSummary]
    more_entries: bool = False


class AppDeleted(msgspec.Struct, kw_only=True):
    """The versions that were deleted."""

    versions: list[int]


def check_app_name(name: str) -> str:
    """The name, if it can be one. ``UsageError``."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} can't be the name of an app", hint="letters, digits, '_' and '-' only, at most 64"
        )
    return name


def app_and_version(text: str) -> tuple[str, int | None]:
    """Take ``NAME`` or ``NAME:VERSION`` apart. ``UsageError``."""
    name, colon, number = text.partition(":")
    check_app_name(name)
    if not colon:
        return name, None
    if not (number.isascii() and number.isdigit()) or not 0 < int(number[:12]) < _MOST:
        raise UsageError(f"{number[:40]!r} is not the version of an app", hint=f"write it like {name}:1")
    return name, int(number)
