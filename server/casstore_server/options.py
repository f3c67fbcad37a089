"""What the operator of a server may set, and who wins.

Decided here and only here: the names of the settings and their defaults, and that an option of the command line counts
more than the environment, that more than ``casstore.server`` in the configuration, and that more than the default.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from casstore.errors import UsageError
from casstore_server.identity.settings import OPTIONS as IDENTITY
from casstore_server.redacting import redact_url

__all__ = ["DATABASE_VARIABLE", "NAMES", "OPTIONS", "Option", "Setting", "check_host", "resolve"]

DATABASE_VARIABLE: Final = "CASSTORE_DATABASE_URL"
_PREFIX = "CASSTORE_SERVER_"
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


class Option(NamedTuple):
    """Something that can be set. ``check`` gives the value, or raises ``ValueError`` saying what it should be."""

    name: str
    default: Any
    check: Callable[[Any], Any]
    secret: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return DATABASE_VARIABLE if self.name == "database" else _PREFIX + self.name.upper()


class Setting(NamedTuple):
    """What an option is, and where that comes from."""

    option: Option
    value: Any
    source: str

    @property
    def shown(self) -> Any:
        """The value for people to see: never a password."""
        return redact_url(self.value) if self.option.secret and self.value else self.value


def check_host(value: Any) -> str:
    """An address. Whether it is safe to listen there depends on others: ``identity.settings.check_listening``."""
    host = "127.0.0.1" if value == "localhost" else str(value)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("must be an address such as 127.0.0.1") from None
    return host


def _port(value: Any) -> int | None:
    if value is None or value == "":
        return None
    number = _whole(value)
    if number is None or not 0 <= number <= 65535:
        raise ValueError("must be a number from 0 to 65535")
    return number


def _whole(value: Any) -> int | None:
    text = str(value)
    return int(text) if not isinstance(value, bool) and text.isascii() and text.isdigit() else None


def _seconds(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise ValueError(f"must be a number of seconds from {least:g} to {most:g}")
        return number

    return check


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of: {', '.join(words)}")
        return str(value)

    return check


def _switch(value: Any) -> bool:
    word = str(value).lower()
    if word not in _YES | _NO:
        raise ValueError("must be true or false")
    return word in _YES


def _url(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a URL such as postgresql://user@host/name")  # noqa: TRY004  # all checks raise this
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be the path of a file")
    return os.path.abspath(os.path.expanduser(value)) if value else ""


OPTIONS: Final = (
    Option("database", "", _url, secret=True),
    Option("host", "127.0.0.1", check_host),
    Option("port", None, _port),
    Option("log_format", "text", _one_of("text", "json")),
    Option("log_level", "info", _one_of("debug", "info", "warning", "error")),
    Option("log_requests", False, _switch),
    Option("metrics", True, _switch),
    Option("drain", 5.0, _seconds(0, 3600)),
    Option("lease", 15.0, _seconds(0.1, 3600)),
    Option("secret_key_file", "", _path),
    *(Option(*option) for option in IDENTITY),
)
"""All of them: ``database`` is the URL of a PostgreSQL (empty: SQLite in the state folder), ``port`` none for the unix
socket alone, ``drain`` the seconds that open replies get when the server ends, ``lease`` the seconds without a sign of
a server after which others take over what it did, ``secret_key_file`` what opens the secrets in the database (empty:
the one in the state folder). Those about who may come are ``identity.settings.OPTIONS``.
"""
NAMES: Final = frozenset(option.name for option in OPTIONS)


def resolve(
    given: Mapping[str, Any], environment: Mapping[str, str], section: Mapping[str, Any], file: object
) -> dict[str, Setting]:
    """What is in force, by name: ``given`` by the command line, or in ``section``, ``casstore.server`` of ``file``.

    Raises ``UsageError`` naming the place of a value that is wrong, without the value where it is secret.
    """
    unknown = sorted(set(map(str, section)) - NAMES)
    if unknown:
        raise UsageError(f"{file}: unknown key casstore.server.{unknown[0]}", hint=f"known: {', '.join(sorted(NAMES))}")
    return {option.name: _resolve(option, given, environment, section, file) for option in OPTIONS}


def _resolve(
    option: Option, given: Mapping[str, Any], environment: Mapping[str, str], section: Mapping[str, Any], file: object
) -> Setting:
    name = option.name
    if given.get(name) is not None:
        value, source, place = given[name], "command line", f"--{name.replace('_', '-')}"
    elif environment.get(option.variable):
        value, source = environment[option.variable], f"environment ({option.variable})"
        place = option.variable
    elif section.get(name) is not None:
        value, source, place = section[name], "file", f"{file}: casstore.server.{name}"
    else:
        return Setting(option, option.default, "default")
    try:
        return Setting(option, option.check(value), source)
    except ValueError as exc:
        raise UsageError(f"{place} {exc}") from None
