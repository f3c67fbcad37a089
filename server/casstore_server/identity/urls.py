"""Addresses that are safe to speak to.

Decided here and only here: that it is https, or stays on this machine.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from casstore.errors import UsageError

__all__ = ["check_url", "is_loopback"]


def is_loopback(host: str | None) -> bool:
    """Whether the name or address of a URL is this machine for everybody."""
    name = (host or "").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_url(url: object, what: str) -> str:
    """A URL that nobody on the way can read or answer for. Raises ``UsageError``."""
    try:
        parts = urlsplit(str(url))
        parts.port  # noqa: B018  # raises for one that is none
    except ValueError:
        parts = urlsplit("")
    secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
    sound = isinstance(url, str) and url.isascii() and url.isprintable() and " " not in url
    if not sound or not secure or not parts.hostname or parts.username or parts.fragment:
        raise UsageError(f"{what} '{str(url)[:200]}' is not a URL of https")
    return str(url)
