"""oidc-provider, a certified OpenID provider, as a process of its own on loopback, and the browser of its users.

Decided here and only here: how it is started, and what a person does with its pages: log in, consent, confirm a code.
It comes from npm: `scripts/setup dev` installs the version that `tests/servers/oidc` pins.
"""

from __future__ import annotations

import html.parser
import http.cookiejar
import json
import os
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlencode, urljoin

from casstore.errors import StorageError

__all__ = ["BROWSER_CLIENT", "DEVICE_CLIENT", "Browser", "IdentityProvider"]

BROWSER_CLIENT: Final = "osmo-browser"
DEVICE_CLIENT: Final = "osmo-device"
START_SECONDS: Final = 60
_LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:\d+)")
_PATIENCE = 60
_MAX_PAGES = 12


class IdentityProvider:
    """A running provider. ``folder`` is where npm installed it, ``accounts`` the groups of each user.

    ``StorageError`` when it does not start.
    """

    def __init__(self, folder: Path, accounts: Mapping[str, Sequence[str]], *, id_token_seconds: int = 300) -> None:
        if not (folder / "node_modules/oidc-provider").exists():
            raise StorageError(f"oidc-provider is not installed in {folder}", hint="run scripts/setup dev")
        settings = {"ACCOUNTS": json.dumps(accounts), "ID_TOKEN_SECONDS": str(id_token_seconds)}
        self._process = subprocess.Popen(
            ["node", str(folder / "server.mjs")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | settings,
            cwd="/",
        )
        watchdog = threading.Timer(START_SECONDS, self._process.kill)
        watchdog.start()
        try:
            self.issuer = self._wait()
        except BaseException:
            self.stop()
            raise
        finally:
            watchdog.cancel()
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()

    def _wait(self) -> str:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if found := _LISTENS.search(line):
                return found[1]
        raise StorageError(f"oidc-provider does not start: {''.join(said[-5:]).strip()}")

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass

    def rotate(self, *, forget: bool = False) -> None:
        """Sign with a new key from now on; ``forget`` the old ones, which is what a stolen key needs."""
        url = f"{self.issuer}/test/rotate{'?forget=1' if forget else ''}"
        _post(url, {})

    def revoke(self, refresh_token: str, client: str) -> None:
        """Take a login back, as an administrator of the provider does."""
        form = {"token": refresh_token, "token_type_hint": "refresh_token", "client_id": client}
        _post(f"{self.issuer}/token/revocation", form)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        if drainer := getattr(self, "_drainer", None):
            drainer.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _post(url: str, form: dict[str, str]) -> None:
    with urllib.request.urlopen(url, urlencode(form).encode(), timeout=_PATIENCE) as reply:  # noqa: S310  # our own
        reply.read()


class _Page(html.parser.HTMLParser):
    """The form of a page, and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what matters."""
        found = {key: value or "" for key, value in attrs}
        if tag == "form":
            self.action = found.get("action", "")
        elif tag == "input" and found.get("name"):
            self.fields[found["name"]] = found.get("value", "")
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])


class Browser:
    """The browser of one person, without a screen: plain HTTP, cookies and forms."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()), urllib.request.ProxyHandler({})
        )

    def visit(self, url: str, *, deny: bool = False) -> str:
        """Log in and agree to everything from ``url`` on; the text of the last page. ``deny`` goes back instead."""
        address, text = self._get(url)
        for _ in range(_MAX_PAGES):
            page = _Page(text)
            back = [link for link in page.links if link.endswith("/abort")]
            if deny and back:
                address, text = self._get(urljoin(address, back[0]))
            elif page.action:
                refused = deny and "user_code" in page.fields
                fields = self._filled(page.fields) | ({"abort": "yes"} if refused else {})
                address, text = self._get(urljoin(address, page.action), fields)
                if refused:
                    return text
            else:
                return text
        raise StorageError(f"{url} leads from page to page")

    def _filled(self, fields: dict[str, str]) -> dict[str, str]:
        answers = {"login": self._user, "password": "any"}
        return {name: answers.get(name, value) for name, value in fields.items()}

    def _get(self, url: str, form: dict[str, str] | None = None) -> tuple[str, str]:
        data = None if form is None else urlencode(form).encode()
        try:
            with self._opener.open(url, data, timeout=_PATIENCE) as reply:
                return reply.url, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return url, error.read().decode()
