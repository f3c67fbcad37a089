"""Connections to a URL: to a server of workflows, and to the identity provider that it trusts.

Decided here and only here: that what is secret travels over https or stays on this machine, how failures of a
connection are told in one line, which proxy is used, and how long an identity provider may take. Nothing is redirected
anywhere.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

import msgspec

from casstore import __version__
from casstore.errors import ServiceError, UsageError

__all__ = ["Answer", "ask", "check_private", "clock_off", "connection", "explain", "is_loopback", "split"]

TIMEOUT_S = 60.0
_MAX_REPLY_BYTES = 1 << 20
_CLOCK_S = 90.0
_PROXY_PORT = 3128
_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){3}|::1|(?:.+\.)?localhost", re.ASCII | re.IGNORECASE)


class Answer(NamedTuple):
    """A whole reply."""

    status: int
    body: bytes


def split(url: str) -> SplitResult | None:
    """The parts of a URL of http or https without a user, a query or a fragment; None for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    sound = url.isascii() and url.isprintable() and " " not in url and port != 0
    if not sound or parts.scheme not in {"http", "https"} or not parts.hostname:
        return None
    return None if parts.username or parts.password or parts.fragment else parts


def is_loopback(host: str | None) -> bool:
    """Whether a name or an address of a URL is this machine for everybody."""
    return _LOOPBACK.fullmatch(host or "") is not None


def check_private(url: str, what: str) -> None:
    """Raise ``UsageError`` unless nobody on the way can read what is sent to ``url``."""
    parts = split(url)
    if parts is None:
        raise UsageError(f"{what} '{url}' is not a URL of https")
    if parts.scheme != "https" and not is_loopback(parts.hostname):
        raise UsageError(
            f"{what} {url} is not encrypted: what you log in with could be read on the way",
            hint="Use https://, or a tunnel to this machine: ssh -L 8000:localhost:8000 HOST",
        )


def connection(url: str, timeout: float | None) -> http.client.HTTPConnection:
    """A connection, not opened yet, to the host of ``url``, whose certificate is checked; through the proxy that the
    environment names. ``UsageError`` when that is none.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=timeout)
    proxy = _proxy(host)
    if proxy is None:
        return http.client.HTTPSConnection(host, parts.port, timeout=timeout)
    through = http.client.HTTPSConnection(proxy.hostname or "", proxy.port or _PROXY_PORT, timeout=timeout)
    headers = {}
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login.encode()).decode('ascii')}"
    through.set_tunnel(host, parts.port or http.client.HTTPS_PORT, headers)
    return through


def ask(url: str, what: str, *, form: dict[str, str] | None = None, body: object = None) -> Answer:
    """The reply to a POST of a form, or of JSON, or (with neither) to a GET; whatever its status is.

    ``what`` is told in errors. ``ServiceError`` when there is no reply; it never holds what was sent.
    """
    parts = urlsplit(url)
    headers = {"Accept": "application/json", "User-Agent": f"osmo-cli/{__version__}"}
    data: bytes | None = None
    if form is not None:
        headers["Content-Type"], data = "application/x-www-form-urlencoded", urlencode(form).encode("ascii")
    elif body is not None:
        headers["Content-Type"], data = "application/json", msgspec.json.encode(body)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    line = connection(url, TIMEOUT_S)
    try:
        line.request("GET" if data is None else "POST", target, body=data, headers=headers)
        with line.getresponse() as response:
            return Answer(response.status, response.read(_MAX_REPLY_BYTES))
    except (OSError, http.client.HTTPException) as exc:
        host = f"{parts.scheme}://{parts.netloc}"
        raise ServiceError(f"Cannot connect to {what} at {host}: {explain(exc)}", hint=_hint(exc)) from None
    finally:
        line.close()


def explain(exc: Exception) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"it does not speak TLS as it should: {(exc.reason or 'no reason given').replace('_', ' ').lower()}"
    if isinstance(exc, TimeoutError):
        return "it did not answer in time"
    if isinstance(exc, socket.gaierror):
        return f"its name is not known: {exc.strerror}"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return " ".join(str(exc).split()) or type(exc).__name__


def _proxy(host: str) -> SplitResult | None:
    """What ``https_proxy`` and ``no_proxy`` say of a host. Nobody's proxy reaches this machine."""
    named = os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")
    if not named or is_loopback(host):
        return None
    from urllib.request import proxy_bypass

    if proxy_bypass(host):
        return None
    try:
        found = urlsplit(named if "://" in named else f"http://{named}")
        found.port  # noqa: B018  # raises for one that is none
    except ValueError:
        found = urlsplit("")
    if found.scheme != "http" or not found.hostname:
        raise UsageError("The variable HTTPS_PROXY is not the URL of a proxy", hint="Such as http://proxy:3128")
    return found


def clock_off(date: str | None) -> str:
    """One sentence when this machine's clock is not that of a server, by the ``Date`` of its reply; else nothing."""
    from email.utils import parsedate_to_datetime

    try:
        off = time.time() - parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return ""
    if abs(off) < _CLOCK_S:
        return ""
    return f"This machine's clock is {abs(off) / 60:.0f} minutes {'ahead of' if off > 0 else 'behind'} the server's."


def _hint(exc: Exception) -> str | None:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "Where its authority is your own: SSL_CERT_FILE=FILE osmo ..."
    return None
