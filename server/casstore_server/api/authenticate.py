"""Where a request comes from, by which name the server was called, and who asks.

Decided here and only here: for which hosts the server answers (a page in a browser on the same machine can't have
another name lead to it); which headers of a proxy count, and only from the proxies that the operator named, so that
nobody says from where they come by a header of their own; and that requests which did not come through one of them are
refused where the server itself does not speak TLS. ``/health`` and ``/ready`` are for whatever probes the server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

from casstore.errors import AccessError, UsageError
from casstore.wire.protocol import USER_HEADER
from casstore.wire.v1 import BLOB_PATH
from casstore_server.db.callers import Callers
from casstore_server.identity.bearer import Bearers
from casstore_server.identity.caller import Caller, Links
from casstore_server.identity.failures import RefusedError
from casstore_server.identity.logins import POOLS_HEADER, ROLES_HEADER, Asking, Logins
from casstore_server.identity.oidc import Provider
from casstore_server.identity.settings import IdentitySettings
from casstore_server.identity.urls import is_loopback
from casstore_server.services.audit import note
from casstore_server.services.context import Services

__all__ = ["Door", "authenticate", "make_logins", "naming", "no_signature", "public_address"]

PROBED: Final = frozenset({"/health", "/ready"})
_LOCAL: Final = re.compile(r"(?:127(?:\.\d{1,3}){3}|localhost|\[::1\])(?::\d{1,5})?", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9._\[\]:-]{1,255}", re.ASCII)
_ONCE: Final = ("host", "authorization", USER_HEADER, ROLES_HEADER, POOLS_HEADER)
_MAX_HOPS: Final = 32


def make_logins(services: Services) -> Logins:
    """Who may come to this server, by its settings."""
    settings = services.settings.identity
    provider = None
    if settings.oidc_issuer:
        clients = {settings.oidc_client_id, settings.oidc_browser_client_id, *settings.oidc_audiences} - {""}
        provider = Provider(
            settings.oidc_issuer,
            clients,
            user_claim=settings.oidc_user_claim,
            groups_claim=settings.oidc_groups_claim,
        )
    return Logins(
        settings,
        Callers(services.database),
        Bearers(services.keys, settings.public_url or "casstore", settings.token_life),
        owner=services.settings.user,
        dev=settings.allows_dev(services.settings.host),
        provider=provider,
        roles=services.roles,
    )


def authenticate(connection: HTTPConnection) -> Caller:
    """Who asks; it may take a look into the database, or a question to the identity provider. See ``Logins.who``."""
    logins: Logins = connection.app.state.logins
    with naming():
        caller = logins.who(connection.state.asking)
    connection.state.caller = caller
    return caller


@contextmanager
def naming() -> Iterator[None]:
    """Have the audit log name who is refused here, where that is certain."""
    try:
        yield
    except RefusedError as error:
        if error.user:
            note(user=error.user)
        raise


def no_signature(connection: HTTPConnection) -> None:
    """The same of somebody whose signature is none."""
    logins: Logins = connection.app.state.logins
    logins.anybody(connection.state.asking)


def public_address(connection: HTTPConnection) -> None:
    """See that whoever asks without saying who they are does not ask too often; a signature says it."""
    asking: Asking = connection.state.asking
    if asking.path not in PROBED and not BLOB_PATH.match(asking.path):
        logins: Logins = connection.app.state.logins
        logins.anybody(asking)


class Door:
    """By the settings of a server that listens on ``host``."""

    def __init__(self, settings: IdentitySettings, host: str) -> None:
        self._settings = settings
        self._inside = is_loopback(host)
        self._proxies = [ipaddress.ip_network(network) for network in settings.proxies]
        self._public = urlsplit(settings.public_url).netloc.lower()
        self._hosts = frozenset(name.lower() for name in settings.hosts) | ({self._public} if self._public else set())

    def asking(self, scope: Scope) -> Asking:
        """What is known of a request before anything of it is read. Raises ``AccessError`` or ``UsageError``."""
        headers = Headers(scope=scope)
        client = scope.get("client")
        peer = str(client[0]) if client else ""
        if peer == "unix":
            return Asking("unix", headers, path=scope["path"])
        for name in _ONCE:
            if len(headers.getlist(name)) > 1:
                raise UsageError(f"The header {name} is there more than once")
        proxied = bool(self._proxies) and self._is_proxy(peer)
        if scope["path"] in PROBED:
            return Asking(peer, headers, path=scope["path"])
        if self._proxies and not (proxied or self._settings.tls or is_loopback(peer)):
            raise AccessError("This server is reached through its proxy only")
        address = self._before(headers, peer) if proxied else peer
        links = Links(self._base(headers, scope, proxied=proxied))
        return Asking(address, headers, links, vouched=proxied and self._settings.gateway, path=scope["path"])

    def is_own(self, netloc: str, headers: Headers) -> bool:
        """Whether this is the name of an origin of this server: where it was asked, or another of its names."""
        return netloc.lower() in (self._hosts | {headers.get("host", "").lower()}) - {""}

    def _base(self, headers: Headers, scope: Scope, *, proxied: bool) -> str:
        """The URL that the caller used, for links in replies; checks that it is one of this server's."""
        host = headers.get("host", "")
        if host.lower() == self._public and self._public:
            return self._settings.public_url
        allowed = host.lower() in self._hosts or (self._inside and _LOCAL.fullmatch(host))
        if not allowed or not _HOST.fullmatch(host):
            raise AccessError(
                f"This server does not answer for the host '{host[:100]}'",
                hint="Whoever runs it can add names: the settings public_url and hosts.",
            )
        scheme = str(scope.get("scheme", "http")).replace("ws", "http")
        if proxied:
            said = headers.get("x-forwarded-proto", "").strip().lower()
            scheme = said if said in {"http", "https"} else scheme
        return f"{scheme}://{host}"

    def _before(self, headers: Headers, peer: str) -> str:
        """The address behind our proxies: the last one in ``X-Forwarded-For`` that is not theirs."""
        hops = [hop.strip() for hop in ",".join(headers.getlist("x-forwarded-for")).split(",")]
        found = peer
        for hop in reversed(hops[-_MAX_HOPS:]):
            try:
                found = str(ipaddress.ip_address(hop.strip("[]")))
            except ValueError:
                break
            if not self._is_proxy(found):
                break
        return found

    def _is_proxy(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._proxies)
