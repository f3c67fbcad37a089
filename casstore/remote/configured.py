"""The credentials that a user keeps in OSMO's ``config.yaml``.

Decided here and only here: the shape of ``auth.data`` there, which OSMO's own command reads and writes too:

    auth:
      data:
        s3://bucket:                        # the profile
          access_key_id: TEXT
          access_key: TEXT
          region: TEXT                      # optional, as all below
          override_url: http(s)://host[:port]
          session_token: TEXT               # ours
          addressing_style: path | virtual  # ours

Keys that are not known here are left alone. Messages name the file and the key, and never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from casstore.errors import UsageError
from casstore.remote.credentials import StorageCredential

__all__ = ["ADDRESSING_STYLES", "ConfiguredCredentials", "check_credential", "profile_key", "stored_form"]

ADDRESSING_STYLES = ("path", "virtual")
_FIELDS = StorageCredential.__struct_fields__


class ConfiguredCredentials:
    """Implements ``CredentialSource`` over the whole mapping of a ``config.yaml``.

    A profile is looked at when it is asked for: a mistake in another one is no hindrance.
    """

    def __init__(self, raw: Mapping[str, Any], file: str) -> None:
        self._file = file
        auth = _mapping(raw.get("auth"), file, "auth")
        self._data: dict[str, tuple[str, object]] = {}
        for profile, fields in _mapping(auth.get("data"), file, "auth.data").items():
            self._data[profile_key(str(profile))] = (str(profile), fields)

    def __repr__(self) -> str:
        return f"ConfiguredCredentials({self._file!r})"

    @property
    def profiles(self) -> list[str]:
        """The profiles there are, sorted."""
        return sorted(self._data)

    def find(self, profile: str) -> StorageCredential | None:
        """The credential of a profile, None where nothing is configured; ``UsageError`` for one that is wrong."""
        found = self._data.get(profile_key(profile))
        if found is None:
            return None
        name, fields = found
        return _parse(fields, self._file, f"auth.data.{name}")


def profile_key(profile: str) -> str:
    """A profile as it is compared: the scheme in small letters, no slash at the end."""
    scheme, mark, rest = profile.strip().partition("://")
    return f"{scheme.lower()}{mark}{rest.rstrip('/')}"


def check_credential(credential: StorageCredential, where: str) -> StorageCredential:
    """The credential, if its parts can go together; ``UsageError`` that begins with ``where``."""
    if credential.access_key_id and not credential.access_key:
        raise UsageError(f"{where}: access_key_id without access_key", hint="give both, or neither of them")
    if credential.addressing_style not in {None, *ADDRESSING_STYLES}:
        raise UsageError(f"{where}.addressing_style must be one of: {', '.join(ADDRESSING_STYLES)}")
    if credential.override_url is not None:
        try:
            parts = urlsplit(credential.override_url)
            right = parts.scheme in {"http", "https"} and bool(parts.hostname) and not parts.username
            _ = parts.port
        except ValueError:
            right = False
        if not right:
            raise UsageError(f"{where}.override_url must be like https://host:port, without a user in it")
    return credential


def stored_form(credential: StorageCredential) -> dict[str, str]:
    """The mapping to keep under ``auth.data.<profile>``."""
    pairs = ((name, getattr(credential, name)) for name in _FIELDS)
    return {name: value for name, value in pairs if value or name in {"access_key_id", "access_key"}}


def _parse(fields: object, file: str, where: str) -> StorageCredential:
    given: dict[str, str] = {}
    for name, value in _mapping(fields, file, where).items():
        if name not in _FIELDS or value is None:
            continue
        if not isinstance(value, str):
            raise UsageError(f"{file}: {where}.{name} must be a text", hint="put quotes around it")
        given[name] = value
    return check_credential(StorageCredential(**given), f"{file}: {where}")


def _mapping(value: object, file: str, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{file}: {where} must be a mapping of keys to values")
    return value
