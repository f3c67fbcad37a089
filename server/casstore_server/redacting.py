"""Keeping secrets out of what people read.

Decided here and only here: what in a text looks like a secret: the password of a URL, and the value after a name that
secrets have. It is the second line: nothing that is logged should hold a secret to begin with.
"""

from __future__ import annotations

import re

__all__ = ["HIDDEN", "redact", "redact_url"]

HIDDEN = "***"
_IN_URL = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s:/@]*:)[^\s\"'<>]+@")
_NAMED = re.compile(
    r"""(?ix) ( (?: password | passwd | secret | token | api[_-]?key | access[_-]?key(?:_?id)? | signature | credential
        | authorization | cookie | \bsig ) ["']? \s* [=:] \s* ["']? )
        (?! (?-i: Own | Manage ) \b )  # what follows is a right, such as token:Own
        (?: (?:bearer|basic) \s+ )? [^\s"'&,;)}\]]+""",
)


def redact(text: str) -> str:
    """The text with ``***`` where a secret seems to be."""
    if "://" in text:
        text = _IN_URL.sub(rf"\1{HIDDEN}@", text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def redact_url(url: str) -> str:
    """A URL of which nothing but the user, the host and the path is shown."""
    head, scheme, rest = url.partition("://")
    if not scheme:
        return HIDDEN
    authority, slash, path = rest.rpartition("@") if "@" in rest else ("", "", rest)
    user = authority.partition(":")
    shown = f"{user[0]}{':' + HIDDEN if user[1] else ''}@" if slash else ""
    where, question, _ = path.partition("?")
    return f"{head}://{shown}{where}" + (f"?{HIDDEN}" if question else "")
