"""Who asks Google Cloud Storage, and where.

Decided here and only here: the endpoint, and what proves who asks: an HMAC key (what OSMO calls a credential), the JSON
of a service account, or the machine's identity as google-auth finds it.

HMAC keys sign with Google's own algorithm, GOOG4-HMAC-SHA256. With Amazon's, which the service takes too, a write can't
be conditional: it knows the conditions of S3 for reads alone, and passes over them silently where something is written.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

import google.auth
import google.auth.exceptions
import google.auth.transport.urllib3
import google.oauth2.credentials
import google.oauth2.service_account
import urllib3

from casstore.errors import AccessError, TransientError, UsageError
from casstore.remote.credentials import StorageCredential

__all__ = ["HmacSigner", "Signer", "find_endpoint", "find_signer", "key_of", "signature_of", "text_to_sign"]

ENDPOINT: Final = "https://storage.googleapis.com"
SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)
ALGORITHM: Final = "GOOG4-HMAC-SHA256"
_HINT = "set it anew with `osmo credential set`: an HMAC key, or the JSON of a service account's key as access_key"
_AMBIENT_HINT = "set a credential with `osmo credential set`, or GOOGLE_APPLICATION_CREDENTIALS, or log in with gcloud"


class Signer(Protocol):
    """Proves who asks. Thread-safe."""

    def sign(self, method: str, url: str, query: Sequence[tuple[str, str]], headers: MutableMapping[str, str]) -> None:
        """Add the proof to the headers of a request. ``AccessError``, ``TransientError``."""
        ...


def find_endpoint(credential: StorageCredential | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the service, without a slash at its end."""
    found = (credential.override_url if credential is not None else None) or environ.get("STORAGE_EMULATOR_HOST", "")
    if not found:
        return ENDPOINT
    if "://" not in found:
        found = f"http://{found}"
    parts = urlsplit(found)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise UsageError("the endpoint of Google Cloud Storage is not a URL such as https://host:port")
    return found.rstrip("/")


def find_signer(url: str, credential: StorageCredential | None, endpoint: str, http: urllib3.PoolManager) -> Signer:
    """Return what proves who asks for the bucket ``url``."""
    secret = credential.access_key.strip() if credential is not None else ""
    if secret.startswith("{"):
        return _TokenSigner(url, http, _key_file(url, secret))
    if credential is not None and secret:
        if not credential.access_key_id:
            raise AccessError(f"{url}: the credential has a secret but no access_key_id", hint=_HINT)
        return HmacSigner(credential.access_key_id, secret, credential.region or "auto")
    host = urlsplit(endpoint).hostname or ""
    if host == "googleapis.com" or host.endswith(".googleapis.com"):
        return _TokenSigner(url, http, None)
    return _Nobody()  # an emulator; the machine's identity is nobody else's business


def _key_file(url: str, text: str) -> Any:
    try:
        info = json.loads(text)
        if info.get("type") == "authorized_user":
            return google.oauth2.credentials.Credentials.from_authorized_user_info(info, scopes=SCOPES)  # type: ignore[no-untyped-call]
        return google.oauth2.service_account.Credentials.from_service_account_info(info, scopes=SCOPES)  # type: ignore[no-untyped-call]
    except (ValueError, AttributeError, TypeError, google.auth.exceptions.GoogleAuthError):
        raise AccessError(f"{url}: the credential is not the JSON of a service account's key", hint=_HINT) from None


class _Nobody:
    def sign(self, method: str, url: str, query: Sequence[tuple[str, str]], headers: MutableMapping[str, str]) -> None:
        """Public buckets and emulators."""


class _TokenSigner:
    """A bearer token, renewed in time."""

    def __init__(self, url: str, http: urllib3.PoolManager, credentials: Any) -> None:
        self._url = url
        self._request: Any = google.auth.transport.urllib3.Request(http)  # type: ignore[no-untyped-call]
        self._credentials = credentials
        self._lock = threading.Lock()

    def sign(self, method: str, url: str, query: Sequence[tuple[str, str]], headers: MutableMapping[str, str]) -> None:
        """Add the token."""
        with self._lock:
            try:
                if self._credentials is None:
                    self._credentials, _ = google.auth.default(scopes=SCOPES, request=self._request)
                self._credentials.before_request(self._request, method, url, headers)
            except google.auth.exceptions.DefaultCredentialsError:
                raise AccessError(f"{self._url}: no credentials are configured", hint=_AMBIENT_HINT) from None
            except google.auth.exceptions.GoogleAuthError as error:
                if error.retryable or isinstance(error, google.auth.exceptions.TransportError):
                    raise TransientError(f"{self._url}: no token for the moment ({type(error).__name__})") from None
                raise AccessError(
                    f"{self._url}: the credentials are not accepted ({type(error).__name__})", hint=_AMBIENT_HINT
                ) from None


class HmacSigner:
    """An HMAC key of a service account or a user."""

    def __init__(self, key_id: str, secret: str, region: str = "auto") -> None:
        self._key_id = key_id
        self._secret = secret
        self._region = region

    def __repr__(self) -> str:
        return "HmacSigner()"

    def sign(
        self,
        method: str,
        url: str,
        query: Sequence[tuple[str, str]],
        headers: MutableMapping[str, str],
        now: datetime | None = None,
    ) -> None:
        """Add the signature."""
        stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
        parts = urlsplit(url)
        headers["x-goog-date"] = stamp
        # The connection is encrypted, and a checksum of the body is among the headers.
        headers["x-goog-content-sha256"] = "UNSIGNED-PAYLOAD"
        signed = {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-goog-")}
        signed["host"] = parts.netloc
        scope = f"{stamp[:8]}/{self._region}/storage/goog4_request"
        signature = signature_of(self._secret, method, parts.path, query, signed, scope)
        names = ";".join(sorted(signed))
        headers["Authorization"] = (
            f"{ALGORITHM} Credential={self._key_id}/{scope},SignedHeaders={names},Signature={signature}"
        )


def signature_of(
    secret: str, method: str, path: str, query: Sequence[tuple[str, str]], headers: Mapping[str, str], scope: str
) -> str:
    """Return the signature of a request; ``headers`` are those that are signed, their names in small letters."""
    text = text_to_sign(
        ALGORITHM, method, path, query, headers, headers["x-goog-content-sha256"], headers["x-goog-date"], scope
    )
    return hmac.digest(key_of(secret, scope), text.encode(), "sha256").hex()


def text_to_sign(
    algorithm: str,
    method: str,
    path: str,
    query: Sequence[tuple[str, str]],
    headers: Mapping[str, str],
    payload: str,
    stamp: str,
    scope: str,
) -> str:
    """Return what is signed of a request, by version 4 of Google's signatures: in its headers or in its query."""
    canonical = "\n".join(
        [
            method,
            path,
            "&".join(sorted(f"{quote(name, safe='-._~')}={quote(value, safe='-._~')}" for name, value in query)),
            *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)),
            "",
            ";".join(sorted(headers)),
            payload,
        ]
    )
    return "\n".join([algorithm, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])


def key_of(secret: str, scope: str) -> bytes:
    """Return the key that signs within a scope, ``date/region/service/goog4_request``."""
    key = f"GOOG4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
