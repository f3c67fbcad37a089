"""What Azure's errors mean for the store.

Decided here and only here: the class of each error, and that only codes and states of a reply get into a message. The
text of a refusal holds the signature that was refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from azure.core import exceptions

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

__all__ = ["is_missing_blob", "translated", "translated_reply"]

_CODE = re.compile(r"[A-Za-z0-9]{1,80}\Z")
_ACCESS_HINT = (
    "check the key of the credential, and that its identity has the role 'Storage Blob Data Contributor' here"
)

_ACCESS = {
    "AccountIsDisabled",
    "BlobImmutableDueToPolicy",
    "ContainerDisabled",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "UnauthorizedBlobOverwrite",
}
_CHANGED = {"BlobAlreadyExists", "BlobOverwritten", "ConditionNotMet", "TargetConditionNotMet"}
# InvalidBlockList: another writer of the same blob committed meanwhile, and the service dropped our blocks.
_PASSES = {"InternalError", "InvalidBlockList", "OperationTimedOut", "ServerBusy", "SystemInUse", "TooManyRequests"}
_BROKEN_BODY = {"Md5Mismatch", "Crc64Mismatch"}
_HINTS = {
    "BlobArchived": "rehydrate the blob to an online tier first",
    "LeaseIdMissing": "another program holds a lease on the blob",
    "SnapshotsPresent": "delete the snapshots of the blob first",
}
_GONE = {"BlobNotFound", "ContainerBeingDeleted", "ContainerNotFound", "ResourceNotFound"}


def translated(error: Any, url: str, key: str) -> CasstoreError:
    """Return the store's error for an ``AzureError`` of an operation on ``key``."""
    where = f"{url}/{key}" if key else url
    status = getattr(error, "status_code", None)
    if status is not None:
        response = getattr(error, "response", None)
        return _of_reply(status, str(_plain(getattr(error, "error_code", ""))), _headers(response), url, where)
    if isinstance(error, exceptions.ClientAuthenticationError):
        return AccessError(
            f"{where}: no credential is configured, and this machine has no identity that Azure knows",
            hint="set one with 'osmo credential set', or sign in with 'az login'",
        )
    inner = getattr(error, "inner_exception", None)
    if type(error).__name__ == "AzureSigningError":
        return AccessError(f"{where}: the account key can't be used to sign", hint=_ACCESS_HINT)
    if "certificate verify failed" in str(inner).lower():
        return StorageError(
            f"{where}: the certificate of the service can't be verified",
            hint="is override_url right? A certificate authority of your own goes into REQUESTS_CA_BUNDLE",
        )
    if isinstance(error, exceptions.ServiceRequestTimeoutError | exceptions.ServiceResponseTimeoutError):
        return TransientError(f"{where}: the service did not answer in time")
    if isinstance(error, exceptions.ServiceRequestError):
        return TransientError(f"{where}: no connection to the service")
    return TransientError(f"{where}: the connection broke")


def translated_reply(reply: Any, url: str, key: str) -> CasstoreError:
    """Return the store's error for one reply of a batch."""
    headers = _headers(reply)
    return _of_reply(reply.status_code, headers.get("x-ms-error-code", ""), headers, url, f"{url}/{key}")


def is_missing_blob(reply: Any) -> bool:
    """Whether an error, or one reply of a batch, says that a blob is not there; its container is."""
    code = _plain(getattr(reply, "error_code", "")) or _headers(reply).get("x-ms-error-code", "")
    return getattr(reply, "status_code", None) == 404 and code != "ContainerNotFound"


def _plain(code: Any) -> Any:
    return getattr(code, "value", code) or ""


def _headers(response: Any) -> Mapping[str, str]:
    return getattr(response, "headers", None) or {}


def _of_reply(status: int, code: str, headers: Mapping[str, str], url: str, where: str) -> CasstoreError:
    code = code if _CODE.match(code) else headers.get("x-ms-error-code", "")
    if not _CODE.match(code):
        code = ""
    said = f"{status} {code}".rstrip()
    if code in _PASSES or code in _BROKEN_BODY or status in {408, 429} or (status >= 500 and status not in {501, 507}):
        return TransientError(f"{where}: the service answered {said}", retry_after=_pause(headers))
    if code in _CHANGED or (status == 412 and not code):
        return PreconditionError(f"{where} has changed, or exists already")
    if code in _GONE or status == 404:
        return NotFoundError(f"{url} does not exist" if code.startswith("Container") else f"{where} does not exist")
    if code in _ACCESS or status in {401, 403}:
        return AccessError(f"{where}: Azure refused the request ({said})", hint=_ACCESS_HINT)
    if status == 507:
        return OutOfSpaceError(f"{where}: the service has no space left")
    return StorageError(f"{where}: the service answered {said}", hint=_HINTS.get(code))


def _pause(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("x-ms-retry-after-ms", 1000.0), ("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if (seconds := asked(headers.get(name, ""), unit=unit)) is not None:
            return seconds
    return None
