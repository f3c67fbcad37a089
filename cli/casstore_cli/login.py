"""Which server the workflow commands talk to: the one that was logged in to, or the user's own.

Decided here and only here: the content of ``login.yaml``, which is OSMO's, so that both commands share a login.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from casstore.config import Config, Paths, load_config
from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.client import Client, Target
from casstore_cli.config import private_dir

__all__ = ["Login", "connect", "forget", "read", "save"]

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Login:
    """A remote server and the name we have there."""

    url: str
    user: str


def connect(config: Config | None = None) -> Client:
    """A client of the server to use; the user's own is started when it does not run."""
    config = config or load_config()
    login = read(config.paths)
    if login is None:
        from casstore_cli.background import ensure

        return ensure(config)
    return Client(Target(login.user, url=login.url), on_warning=output.warn)


def read(paths: Paths) -> Login | None:
    """The login in force, None when there is none. Raises ``UsageError`` for one that can't be used."""
    path = _file(paths)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror}") from None
    from casstore import safeyaml

    raw = safeyaml.load(data, what=path)
    if not isinstance(raw, dict) or not isinstance(raw.get("url"), str):
        raise UsageError(f"{path}: 'url' is missing", hint="Log in again, or out: osmo logout")
    dev = raw.get("dev_login")
    user = dev.get("username") if isinstance(dev, dict) else None
    if not isinstance(user, str):
        raise UsageError(
            f"{path}: only logins of the method dev can be used", hint="osmo login URL --method dev --username NAME"
        )
    return Login(check_url(raw["url"]), check_user(user))


def save(paths: Paths, login: Login) -> None:
    """Remember a login."""
    import yaml

    raw: dict[str, Any] = {
        "dev_login": {"username": login.user},
        "name": login.user,
        "osmo_token": False,
        "token_login": None,
        "url": login.url,
    }
    path = _file(paths)
    private_dir(os.path.dirname(path))
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            yaml.safe_dump(raw, file)
        os.replace(temporary, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise UsageError(f"can't write {path}: {exc.strerror}") from None


def forget(paths: Paths) -> bool:
    """Log out; whether there was a login."""
    try:
        os.unlink(_file(paths))
    except FileNotFoundError:
        return False
    return True


def check_url(url: str) -> str:
    """The URL without a slash at its end. Raises ``UsageError`` when it is not one of a server."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"'{url}' is not the URL of a server", hint="Such as http://127.0.0.1:8000")
    return url.rstrip("/")


def check_user(name: str) -> str:
    """The name. Raises ``UsageError`` when it can't be one."""
    if not _USER.fullmatch(name):
        raise UsageError(f"'{name}' is not a user name", hint="Letters, digits and . _ @ + - only.")
    return name


def _file(paths: Paths) -> str:
    return os.path.join(paths.config, "login.yaml")
