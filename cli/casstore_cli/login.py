"""Which server the commands talk to, and as whom: the one that was logged in to, or the user's own.

Decided here and only here: the content of ``login.yaml``, which is OSMO's, so that both commands share a login, and
that whoever changes it holds a lock, since most identity providers take a refresh token once.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.config import Config, Paths, load_config
from casstore.errors import UsageError
from casstore_cli import config as files

if TYPE_CHECKING:
    from casstore_cli.client import Client

__all__ = ["Login", "Tokens", "change", "check_url", "check_user", "client_of", "connect", "forget", "read", "save"]

_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}", re.ASCII)
_AGAIN = "Log in again, or out: osmo logout"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What proves who we are. ``personal``: ``refresh_token`` was made by ``osmo token set``, ``refresh_url`` is of the
    server; else both are the identity provider's, to whom we are ``client_id``.
    """

    id_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    refresh_url: str | None = None
    client_id: str | None = None
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """A remote server and the name we have there; without ``tokens`` the server believes the name."""

    url: str
    user: str
    tokens: Tokens | None = None


def connect(config: Config | None = None) -> Client:
    """A client of the server to use; the user's own is started when it does not run."""
    config = config or load_config()
    login = read(config.paths)
    if login is None:
        from casstore_cli.background import ensure

        return ensure(config)
    return client_of(login, config.paths)


def client_of(login: Login, paths: Paths) -> Client:
    """A client that asks as this login."""
    # Who is not logged in anywhere must not wait until HTTP and TLS are loaded.
    from casstore_cli import output
    from casstore_cli.client import Client, Target

    if login.tokens is None:
        return Client(Target(login.user, url=login.url), on_warning=output.warn)
    from casstore_cli.bearer import Bearer

    return Client(Target(login.user, url=login.url, bearer=Bearer(paths, login)), on_warning=output.warn)


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
        raise UsageError(f"{path}: 'url' is missing", hint=_AGAIN)
    url = check_url(raw["url"])
    dev, token = raw.get("dev_login"), raw.get("token_login")
    if isinstance(dev, dict) and token is None and isinstance(dev.get("username"), str):
        return Login(url, check_user(dev["username"]))
    if isinstance(token, dict) and dev is None:
        found = _tokens(token, bool(raw.get("osmo_token")))
        if found is not None:
            name = token.get("username") or raw.get("name")
            return Login(url, name if isinstance(name, str) else "", found)
    raise UsageError(f"{path}: neither 'dev_login' nor 'token_login' is as it should be", hint=_AGAIN)


def save(paths: Paths, login: Login) -> None:
    """Remember a login."""
    with change(paths) as write:
        write(login)


@contextlib.contextmanager
def change(paths: Paths) -> Iterator[Callable[[Login], None]]:
    """A function that remembers a login; nobody else changes it during the block, and the file can be written."""
    with files.locked(paths.config, ".login.lock"), files.replacing(_file(paths)) as write:
        yield lambda login: write(_dump(login))


def forget(paths: Paths) -> bool:
    """Log out; whether there was a login."""
    path = _file(paths)
    if not os.path.lexists(path):
        return False
    with files.locked(paths.config, ".login.lock"):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise UsageError(f"can't remove {path}: {exc.strerror}") from None
    return True


def check_url(url: str) -> str:
    """The URL without a slash at its end. Raises ``UsageError`` when it is not one of a server."""
    from casstore_cli import web

    parts = web.split(url)
    if parts is None or parts.query:
        raise UsageError(f"'{_shown(url)}' is not the URL of a server", hint="Such as http://127.0.0.1:8000")
    return url.rstrip("/")


def check_user(name: str) -> str:
    """The name. Raises ``UsageError`` when it can't be one."""
    if not _USER.fullmatch(name):
        raise UsageError(f"'{name}' is not a user name", hint="Letters, digits and . _ @ + - only.")
    return name


def _shown(url: str) -> str:
    """A URL without what stands before the @: somebody's password."""
    head, at, host = url.rpartition("@")
    return f"{head.partition('//')[0]}//...@{host}" if at else url


def _tokens(raw: dict[Any, Any], personal: bool) -> Tokens | None:
    found: dict[str, Any] = {key: raw.get(key) for key in ("id_token", "refresh_token", "refresh_url", "client_id")}
    sound = all(value is None or _plain(value) for value in found.values())
    return Tokens(**found, personal=personal) if sound and found["id_token"] else None


def _plain(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _dump(login: Login) -> str:
    import yaml

    tokens, token_login = login.tokens, None
    if tokens is not None:
        token_login = {
            "client_id": tokens.client_id,
            "id_token": tokens.id_token,
            "refresh_token": tokens.refresh_token,
            "refresh_url": tokens.refresh_url,
            "username": login.user,
        }
    raw: dict[str, Any] = {
        "dev_login": {"username": login.user} if tokens is None else None,
        "name": login.user,
        "osmo_token": tokens is not None and tokens.personal,
        "token_login": token_login,
        "url": login.url,
    }
    text: str = yaml.safe_dump(raw, allow_unicode=True)
    return text


def _file(paths: Paths) -> str:
    return os.path.join(paths.config, "login.yaml")
