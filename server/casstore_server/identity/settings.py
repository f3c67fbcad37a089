"""What an operator says of who may come, from where, and how they prove who they are.

Decided here and only here: the names and defaults of these settings, and when it is safe to listen where others reach
the server: when nobody's word is taken for their name, nobody on the way can read or change anything, and the server
knows by which name it is called.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from casstore.errors import UsageError
from casstore_server.identity.actions import ROLE_NAME
from casstore_server.identity.urls import check_url, is_loopback

__all__ = ["OPTIONS", "IdentitySettings", "check_listening"]

_MAX_LIST: Final = 200


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """See ``OPTIONS`` and the guide. ``oidc_roles`` is pairs of a group and its roles."""

    dev_login: str = "auto"
    public_url: str = ""
    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    gateway: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    oidc_issuer: str = ""
    oidc_client_id: str = ""
    oidc_browser_client_id: str = ""
    oidc_audiences: tuple[str, ...] = ()
    oidc_user_claim: str = "preferred_username"
    oidc_groups_claim: str = "groups"
    oidc_roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    default_roles: tuple[str, ...] = ("osmo-user",)
    token_life: float = 900.0
    rate_limit: float = 100.0
    rate_limit_open: float = 20.0
    audit_days: float = 365.0

    def allows_dev(self, host: str) -> bool:
        """Whether a caller's own word is taken for who they are, on a server that listens on this address."""
        if self.dev_login != "auto":
            return self.dev_login == "on"
        outside = self.proxies or self.oidc_issuer or not is_loopback(urlsplit(self.public_url).hostname or host)
        return is_loopback(host) and not outside

    @property
    def tls(self) -> bool:
        """Whether the server itself speaks TLS."""
        return bool(self.tls_cert)


def check_listening(host: str, port: int | None, settings: IdentitySettings) -> None:
    """Raise ``UsageError`` saying what is missing, unless it is safe to listen on ``host``."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise UsageError("tls_cert and tls_key are set together or not at all")
    if settings.oidc_issuer and not (settings.oidc_client_id or settings.oidc_audiences):
        raise UsageError(
            "oidc_issuer needs oidc_client_id or oidc_audiences",
            hint="Without it, tokens that the provider issued for other applications would be taken.",
        )
    if settings.gateway and not settings.proxies:
        raise UsageError("gateway needs proxies: the addresses from which its word is taken for who somebody is")
    if port is None or is_loopback(host):
        return
    where = f"The server does not listen on {host}: others could reach it there, and"
    if settings.allows_dev(host):
        raise UsageError(
            f"{where} with dev_login they could say that they are anybody",
            hint="Leave dev_login out, or off: they log in by oidc_issuer, or with personal tokens.",
        )
    if not settings.tls and not settings.proxies:
        raise UsageError(
            f"{where} read on the way what is secret",
            hint="Set tls_cert and tls_key; or proxies, the addresses of what speaks TLS in front of it.",
        )
    if not settings.public_url:
        raise UsageError(f"{where} it does not know its name", hint="Set public_url, as https://osmo.example.org.")


class IdentityOption(NamedTuple):
    """As ``options.Option``."""

    name: str
    default: Any
    check: Callable[[Any], Any]


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        word = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # as YAML reads them
        if word not in words:
            raise ValueError(f"must be one of: {', '.join(words)}")
        return str(word)

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():
        raise ValueError("must be a text")
    return value


def _claim(value: Any) -> str:
    if not _text(value):
        raise ValueError("must be the name of a claim")
    return str(value)


def _url(value: Any) -> str:
    if value == "":
        return ""
    try:
        return check_url(value, "")
    except UsageError:
        raise ValueError("must be a URL of https, or of http on this machine") from None


def _own_url(value: Any) -> str:
    found = _url(value).rstrip("/")
    if urlsplit(found).path or urlsplit(found).query:
        raise ValueError("must be a URL without a path")
    return found


def _list(value: Any) -> tuple[str, ...]:
    """A list, or a text with commas."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, Sequence) or len(found) > _MAX_LIST or not all(isinstance(one, str) for one in found):
        raise ValueError("must be a list of texts")
    return tuple(one.strip() for one in found if one.strip())


def _networks(value: Any) -> tuple[str, ...]:
    found = _list(value)
    try:
        return tuple(str(ipaddress.ip_network(one)) for one in found)
    except ValueError:
        raise ValueError("must be addresses or networks such as 10.0.0.0/8") from None


def _roles(value: Any) -> tuple[str, ...]:
    found = _list(value)
    if not all(ROLE_NAME.fullmatch(one) for one in found):
        raise ValueError("must be names of roles")
    return found


def _mapping(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """``{group: role or roles}``, or ``group=role,group=role``."""
    pairs: dict[str, tuple[str, ...]] = {}
    if isinstance(value, Mapping):
        pairs = {str(group): _roles(roles) for group, roles in value.items()}
    else:
        for one in _list(value):
            group, sign, role = one.rpartition("=")
            if not sign or not group:
                raise ValueError("must be written as group=role,group=role")
            pairs[group] = (*pairs.get(group, ()), *_roles(role))
    if len(pairs) > _MAX_LIST:
        raise ValueError(f"must have at most {_MAX_LIST} groups")
    return tuple(sorted(pairs.items()))


def _number(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}")
        return number

    return check


def _switch(value: Any) -> bool:
    if str(value).lower() not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise ValueError("must be true or false")
    return str(value).lower() in {"1", "true", "yes", "on"}


_DEFAULT: Final = IdentitySettings()
OPTIONS: Final = tuple(
    IdentityOption(name, getattr(_DEFAULT, name), check)
    for name, check in (
        ("dev_login", _one_of("auto", "on", "off")),
        ("public_url", _own_url),
        ("hosts", _list),
        ("proxies", _networks),
        ("gateway", _switch),
        ("tls_cert", _text),
        ("tls_key", _text),
        ("oidc_issuer", _url),
        ("oidc_client_id", _text),
        ("oidc_browser_client_id", _text),
        ("oidc_audiences", _list),
        ("oidc_user_claim", _claim),
        ("oidc_groups_claim", _claim),
        ("oidc_roles", _mapping),
        ("default_roles", _roles),
        ("token_life", _number(60, 3600)),
        ("rate_limit", _number(0, 1e6)),
        ("rate_limit_open", _number(0, 1e6)),
        ("audit_days", _number(0, 36500)),
    )
)
"""``dev_login``: whether ``x-osmo-user`` alone is who somebody is; ``auto`` is on a server that only this machine
reaches and that was told of nobody else to ask. ``public_url`` is where clients reach the server, ``hosts`` other names
that it answers for. ``proxies`` are addresses that speak TLS in front of it; ``gateway``: they also say, by ``x-osmo-
user``, ``x-osmo-roles`` and ``x-osmo-allowed-pools``, who asks. ``token_life`` is the seconds that an id token of this
server is good, ``rate_limit`` and ``rate_limit_open`` requests a second of one user, and of one address that nobody is
known of (0: no limit), ``audit_days`` how long the audit log is kept (0: for ever).
"""
