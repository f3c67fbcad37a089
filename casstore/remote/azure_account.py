"""Who asks Azure, and where.

Decided here and only here: the endpoint of an account, and the order in which its credentials are looked for: what was
configured (a connection string, an account key or a shared access signature), AZURE_STORAGE_CONNECTION_STRING,
AZURE_STORAGE_KEY, and then the machine's identity. What is in the environment for another account is passed over; what
was configured for another account is a mistake.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from casstore.errors import AccessError, UsageError
from casstore.remote.credentials import StorageCredential

__all__ = ["Login", "find_login"]

_SUFFIX = "core.windows.net"
_HINT = "check the credential with 'osmo credential list', or set AZURE_STORAGE_CONNECTION_STRING"


class Login(msgspec.Struct, frozen=True):
    """Where the account answers, and what proves who asks: a key, a signature, or neither (the machine's identity)."""

    endpoint: str
    key: str = ""
    signature: str = ""

    def __repr__(self) -> str:
        return f"Login(endpoint={self.endpoint!r})"


def find_login(account: str, credential: StorageCredential | None, environ: Mapping[str, str] = os.environ) -> Login:
    """Return how to reach ``account``. ``AccessError`` for a credential that can't be one, or is another account's."""
    secret = credential.access_key.strip() if credential is not None else ""
    override = credential.override_url if credential is not None else None
    if not secret:
        secret = _from_environment(account, environ)
    settings: dict[str, str] = {}
    if _is_connection_string(secret):
        settings = _settings(secret)
        if settings.get("accountname", account) != account:
            raise AccessError(f"the connection string for azure://{account} is another account's", hint=_HINT)
        secret = settings.get("accountkey", "") or settings.get("sharedaccesssignature", "")
        if not secret:
            raise AccessError(
                f"the connection string for azure://{account} has neither a key nor a signature", hint=_HINT
            )
    endpoint = _endpoint(account, settings, override)
    if not secret and endpoint.startswith("http:"):
        raise AccessError(
            f"{endpoint} is not encrypted: it takes an account key, and none is configured for azure://{account}",
            hint="set the credential with 'osmo credential set'",
        )
    if "sig=" in secret:
        return Login(endpoint, signature=secret.lstrip("?"))
    if secret:
        _check_key(account, secret)
    return Login(endpoint, key=secret)


def _from_environment(account: str, environ: Mapping[str, str]) -> str:
    found = environ.get("AZURE_STORAGE_CONNECTION_STRING", "").strip()
    if _is_connection_string(found) and _settings(found).get("accountname", account) == account:
        return found
    if environ.get("AZURE_STORAGE_ACCOUNT", account) == account:
        return environ.get("AZURE_STORAGE_KEY", "").strip()
    return ""


def _is_connection_string(text: str) -> bool:
    # A key is base64, a signature is a query: neither has this.
    return any(name in text.lower() for name in ("accountname=", "accountkey=", "sharedaccesssignature="))


def _settings(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(";") if "=" in pair)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _check_key(account: str, key: str) -> None:
    try:
        base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise AccessError(
            f"the credential for azure://{account} is neither an account key nor a connection string", hint=_HINT
        ) from None


def _endpoint(account: str, settings: Mapping[str, str], override: str | None) -> str:
    if override:
        parts: Any = urlsplit(override)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
            raise UsageError(f"override_url of azure://{account} is not a URL such as https://host:port")
        found = override.rstrip("/")
        # An endpoint that several accounts share (Azurite, appliances) has the account in the path.
        shared = parts.path in {"", "/"} and not parts.hostname.startswith(f"{account}.")
        return f"{found}/{account}" if shared else found
    if settings.get("blobendpoint"):
        return settings["blobendpoint"].rstrip("/")
    scheme = settings.get("defaultendpointsprotocol", "https")
    return f"{scheme}://{account}.blob.{settings.get('endpointsuffix', _SUFFIX)}"
