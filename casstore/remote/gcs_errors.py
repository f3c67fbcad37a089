"""What goes wrong with Google Cloud Storage, in our words.

Decided here and only here: which of our errors a code, a status or a failed connection becomes. Of an answer only its
code is shown: the text of a refused signature holds what was signed.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Final

import urllib3.exceptions as http

from casstore.errors import (
    AccessError,
    CasstoreError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    StorageError,
    TransientError,
)
from casstore.remote.pause import asked

__all__ = ["code_of", "lost_connection", "refused"]

_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,80})</Code>")
_TRANSIENT: Final = {
    "BadDigest",  # the bytes were damaged on their way
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RateLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
}
_ACCESS: Final = {
    "AccessDenied": "ask the owner of the bucket for the role 'Storage Object User'",
    "AuthenticationRequired": "no credentials were sent: set them with `osmo credential set`",
    "ExpiredToken": "the session has expired: log in again",
    "InvalidAccessKeyId": "the service does not know this HMAC key: set it anew with `osmo credential set`",
    "InvalidSecurity": "the credentials are not valid: set them anew with `osmo credential set`",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "SignatureDoesNotMatch": "the secret of the HMAC key is wrong: set it anew with `osmo credential set`",
    "UserProjectMissing": "the bucket is paid for by who reads: set a quota project with gcloud",
}
_ACCESS_HINT: Final = "look at the credentials: `osmo credential list`, or GOOGLE_APPLICATION_CREDENTIALS"


def code_of(body: bytes) -> str:
    """Return the code in the body of an error, or an empty string."""
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def refused(status: int, code: str, headers: Mapping[str, str], what: str) -> CasstoreError:
    """Return our error for an answer that is one."""
    said = code or str(status)
    if status == 412 or code == "PreconditionFailed":
        return PreconditionError(f"{what} has changed meanwhile")
    if code == "NoSuchBucket":
        return NotFoundError(f"{what}: there is no such bucket", hint="create the bucket, or look at its name")
    if code in _TRANSIENT or status in {408, 409, 425, 429, 500, 502, 503, 504}:
        return TransientError(f"{what}: the service answered {said}", retry_after=asked(headers.get("retry-after", "")))
    if status == 404 and code != "NoSuchUpload":
        return NotFoundError(f"{what} does not exist")
    if code in _ACCESS or status in {401, 403}:
        return AccessError(f"{what}: access denied ({said})", hint=_ACCESS.get(code, _ACCESS_HINT))
    if status == 507 or code in {"InsufficientQuota", "QuotaExceeded"}:
        return OutOfSpaceError(f"{what}: the storage service is full ({said})", hint="raise the quota, or free space")
    return StorageError(f"{what}: the service answered {said}")


def lost_connection(error: Exception, what: str) -> CasstoreError:
    """Return our error for a connection that failed."""
    if isinstance(error, http.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StorageError(
                f"{what}: the server's certificate is not trusted", hint="set SSL_CERT_FILE to its root"
            )
        return TransientError(f"{what}: the encryption of the connection failed")
    for kind, text in _REASONS:
        if isinstance(error, kind):
            return TransientError(f"{what}: {text}", hint="look at the network and the endpoint")
    return TransientError(f"{what}: the connection was closed", hint="look at the network and the endpoint")


_REASONS: Final = (
    (http.ProxyError, "no connection to the proxy"),
    (http.NameResolutionError, "the name of the endpoint is not known"),
    (http.NewConnectionError, "no connection to the endpoint"),  # one of its bases is the next
    (http.ConnectTimeoutError, "no connection in time"),
    (http.TimeoutError, "no answer in time"),
)
