"""Logging in with a browser on this machine: the authorization code flow with PKCE (RFC 7636, 8252).

Decided here and only here: that the browser comes back to a port of 127.0.0.1 that listens for this one purpose, what
it must bring along (the ``state`` that only it was given), and the page that it shows then.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from casstore.errors import AccessError, CasstoreError, UsageError
from casstore_cli import oauth, web
from casstore_cli.login import Tokens

__all__ = ["by_browser"]

WAIT_S = 600.0
"""How long somebody may take in the browser."""
_TURN_S = 0.5
_SLOW_S = 10.0
_PATH = "/callback"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body style="font-family: sans-serif; margin: 4em"><h1>{title}</h1><p>{text}</p></body></html>
"""


def by_browser(
    browser_endpoint: str,
    token_endpoint: str,
    client_id: str | None,
    *,
    port: int = 0,
    tell: Callable[[str], None],
    wait: float = WAIT_S,
) -> Tokens:
    """The tokens of whoever logs in with the browser. ``tell`` gets the URL to visit; ``port`` 0 takes a free one.

    ``UsageError`` when the port is taken, ``AccessError`` when the login is denied or takes too long.
    """
    web.check_private(browser_endpoint, "The browser endpoint")
    visit = _Visit(token_endpoint, client_id)
    with _listen(port, visit) as server:
        visit.redirect_uri = f"http://127.0.0.1:{server.server_address[1]}{_PATH}"
        url = visit.url(browser_endpoint)
        opened = _open(url)
        tell(f"{'If your browser does not open, visit' if opened else 'Visit'} {url}")
        ends = time.monotonic() + wait
        while not visit.over.is_set():
            if time.monotonic() > ends:
                raise AccessError("Nobody logged in with the browser in time", hint="Log in again.")
            server.handle_request()
    if visit.error is not None:
        raise visit.error
    if visit.tokens is None:
        raise AssertionError
    return visit.tokens


class _Visit:
    """One login: the secrets that tie the request to what comes back, and then its outcome."""

    def __init__(self, token_endpoint: str, client_id: str | None) -> None:
        self._token_endpoint = token_endpoint
        self._client_id = client_id
        self._state = secrets.token_urlsafe(32)
        self._nonce = secrets.token_urlsafe(32)
        self._verifier = secrets.token_urlsafe(64)
        self.redirect_uri = ""
        self._lock = threading.Lock()
        self.tokens: Tokens | None = None
        self.error: CasstoreError | None = None
        self.over = threading.Event()
        """Set once the last page is shown."""

    def url(self, endpoint: str) -> str:
        """Where the browser begins."""
        digest = hashlib.sha256(self._verifier.encode("ascii")).digest()
        query = {
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "scope": oauth.SCOPE,
            "state": self._state,
            "nonce": self._nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii"),
            "code_challenge_method": "S256",
        } | ({"client_id": self._client_id} if self._client_id else {})
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"

    def come_back(self, query: str) -> tuple[int, str, str]:
        """What the browser is shown: status, title and text. What did not begin with us changes nothing."""
        try:
            found = {key: values[0] for key, values in parse_qs(query, max_num_fields=20).items() if len(values) == 1}
        except ValueError:
            found = {}
        ours = hmac.compare_digest(found.get("state", "").encode(), self._state.encode())
        with self._lock:
            if not ours or self.ended:
                return 400, "This is no answer to a login", "Start again with: osmo login"
            try:
                self.tokens = self._redeem(found)
            except CasstoreError as exc:
                self.error = exc
                return 200, "You are not logged in", "The command that you started says why. You can close this page."
        return 200, "You are logged in", "You can close this page and go back to the command."

    @property
    def ended(self) -> bool:
        """Whether it is known how it ended."""
        return self.tokens is not None or self.error is not None

    def _redeem(self, found: dict[str, str]) -> Tokens:
        if "error" in found or "code" not in found:
            grant = oauth.Grant(error=found.get("error", "no code"), error_description=found.get("error_description"))
            raise oauth.refusal(grant)
        tokens = oauth.by_code(
            self._token_endpoint,
            self._client_id,
            code=found["code"],
            verifier=self._verifier,
            redirect_uri=self.redirect_uri,
        )
        nonce = oauth.claims_of(tokens.id_token).get("nonce")
        if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), self._nonce.encode()):
            raise AccessError("The identity provider answered another login than this one", hint="Log in again.")
        return tokens


def _listen(port: int, visit: _Visit) -> http.server.HTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _SLOW_S

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            status, title, text = visit.come_back(query) if path == _PATH else (404, "There is nothing here", "")
            page = _PAGE.format(title=title, text=text).encode()
            try:
                self.send_response_only(status)
                for name, value in _HEADERS.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
            finally:
                if visit.ended:
                    visit.over.set()

        def log_message(self, *_: Any) -> None:
            """Nothing: the code is in the URL."""

    class Server(http.server.ThreadingHTTPServer):  # browsers open connections ahead, and say nothing on them
        timeout = _TURN_S
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """A browser that hangs up is no matter."""

    try:
        return Server(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no number of a port"
        raise UsageError(
            f"The browser can't come back to port {port} of this machine: {reason}",
            hint="Choose another one that the identity provider knows (--callback-port), or use --method code.",
        ) from None


_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}


def _open(url: str) -> bool:
    """Show ``url`` in a browser with windows, where there may be one; one in this terminal would be in the way.

    Some browsers end when their window is closed, and are waited for: not by us.
    """
    if not any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")):
        return False
    import webbrowser

    def show() -> None:
        with contextlib.suppress(webbrowser.Error, OSError):
            webbrowser.open(url)

    threading.Thread(target=show, daemon=True).start()
    return True
