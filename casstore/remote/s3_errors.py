"""What goes wrong with S3, in our words.

Decided here and only here: which of our errors an error code, a status or a failed connection becomes, and what the
user is told to do. Services answer with what they like: nothing of it is shown but the code and a line of text, cleaned
and without the secrets that the client knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from casstore.errors import (
    AccessError,
    CasstoreError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    StorageError,
    TransientError,
    UsageError,
)
from casstore.remote.pause import asked

__all__ = ["CODES_OF_NO_BATCH_DELETE", "code_of", "library_error", "service_error", "status_of"]

_MISSING: Final = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404"}
_PRECONDITION: Final = {"PreconditionFailed", "412", "FileAlreadyExists", "ObjectAlreadyExists"}
_ACCESS: Final = {
    "AccessDenied": "ask the owner of the bucket for the permission that is missing",
    "SignatureDoesNotMatch": "the secret access key is wrong, or the endpoint or region is another: set them anew with "
    "`osmo credential set`",
    "InvalidAccessKeyId": "the service does not know this access key: set it anew with `osmo credential set`",
    "ExpiredToken": "the session has expired: log in again",
    "ExpiredTokenException": "the session has expired: log in again",
    "TokenRefreshRequired": "the session has expired: log in again",
    "InvalidToken": "the session token is wrong: log in again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "AuthorizationHeaderMalformed": "the region may be another: set it with the credential, or in AWS_DEFAULT_REGION",
    "AccountProblem": "the service has closed this account: ask its administrator",
    "AllAccessDisabled": "the owner has disabled this bucket",
    "InvalidSecurity": "the credentials are not valid: set them anew with `osmo credential set`",
    "NotSignedUp": "the account has no access to this service",
}
_ACCESS_HINT: Final = "look at the credentials: `osmo credential list`, or AWS_ACCESS_KEY_ID and AWS_PROFILE"
_REDIRECT: Final = {"PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "307", "308", "IncorrectEndpoint"}
_TRANSIENT: Final = {
    "BadDigest",  # the bytes were damaged on their way
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_STATUS: Final = {408, 409, 425, 429, 500, 502, 503, 504}
_SPACE: Final = {
    "InsufficientStorage",
    "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
    "507",
}
_UNSUPPORTED: Final = {"NotImplemented", "501", "MethodNotAllowed", "405", "UnsupportedOperation"}
CODES_OF_NO_BATCH_DELETE: Final = frozenset(
    {*_UNSUPPORTED, "MissingContentMD5", "MalformedXML", "InvalidRequest", "InvalidArgument", "MissingArgument"}
)
"""Answers of services that have no deletion of many objects, or another one than ours."""
_PRINTABLE = re.compile(r"[^\x20-\x7e]+")


def code_of(error: Any) -> str:
    """Return the error code of the service."""
    return _clean(str(_part(error, "Error").get("Code", "")), 60)


def status_of(error: Any) -> int:
    """Return the HTTP status that the service answered with, 0 when it is not known."""
    status = _part(error, "ResponseMetadata").get("HTTPStatusCode", 0)
    return status if isinstance(status, int) else 0


def service_error(error: Any, what: str, *, conditional: bool = False, secrets: tuple[str, ...] = ()) -> CasstoreError:
    """Return our error for one that the service answered with. ``what`` was to be read or written."""
    code, status = code_of(error), status_of(error)
    if code in _PRECONDITION or status == 412:
        return PreconditionError(f"{what} has changed meanwhile")
    if code in _MISSING or (status == 404 and code not in _TRANSIENT):
        if code == "NoSuchBucket":
            return NotFoundError(f"{what}: there is no such bucket", hint="create the bucket, or look at its name")
        return NotFoundError(f"{what} does not exist")
    if code in _SPACE or status == 507:
        return OutOfSpaceError(f"{what}: the storage service is full ({code})", hint="raise the quota, or free space")
    if code in _UNSUPPORTED or status in {405, 501}:
        subject = "conditional writes" if conditional else "this request"
        return StorageError(f"{what}: the service does not support {subject} ({code or status})")
    if (refusal := _refusal(error, code, status, what)) is not None:
        return refusal
    if code in _TRANSIENT or status in _TRANSIENT_STATUS or status >= 520:
        return TransientError(
            f"{what}: the service answered {code or status}", retry_after=asked(_headers(error).get("retry-after", ""))
        )
    text = _clean(str(_part(error, "Error").get("Message", "")), 200)
    for secret in secrets:
        text = text.replace(secret, "***") if secret else text
    return StorageError(f"{what}: the service answered {code or status}" + (f": {text}" if text else ""))


def _refusal(error: Any, code: str, status: int, what: str) -> CasstoreError | None:
    """Return the error of a request that was refused to this client, or sent elsewhere; else None."""
    region = _region_of(error)
    if code in _REDIRECT or status in {301, 307, 308} or (region and code == "AuthorizationHeaderMalformed"):
        where = f"the bucket is in region {region}" if region else "the bucket is in another region"
        return AccessError(
            f"{what}: {where}",
            hint=f"set region {region or '...'} with the credential, or AWS_DEFAULT_REGION={region or '...'}",
        )
    if code == "InvalidObjectState":
        return StorageError(f"{what} is archived", hint="restore it from the archive first")
    if code in _ACCESS or (status in {401, 403} and code not in _TRANSIENT):
        return AccessError(f"{what}: access denied ({code or status})", hint=_ACCESS.get(code, _ACCESS_HINT))
    return None


def library_error(error: BaseException, what: str) -> CasstoreError:
    """Return our error for one of botocore itself: no credentials, no connection, an answer that is none."""
    from botocore import exceptions as boto  # noqa: PLC0415 - loaded only where S3 is used

    without = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.NoAuthTokenError,
        boto.SSOError,
        boto.ProfileNotFound,
        boto.MetadataRetrievalError,
    )
    if isinstance(error, without):
        return AccessError(
            f"{what}: no usable credentials ({type(error).__name__})",
            hint="set them with `osmo credential set`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StorageError(f"{what}: the server's certificate is not trusted", hint="set AWS_CA_BUNDLE to its root")
    lost = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError)
    if isinstance(error, lost) or type(error).__module__.startswith("urllib3") or isinstance(error, OSError):
        return TransientError(f"{what}: {_reason(error)}", hint="look at the network and the endpoint")
    if type(error).__name__ == "ResponseParserError":
        return TransientError(f"{what}: the answer is not that of an S3 service", hint="look at the endpoint")
    wrong = (boto.ValidationError, boto.ParamValidationError, boto.InvalidDNSNameError, boto.EndpointProviderError)
    if isinstance(error, (*wrong, ValueError)):
        return UsageError(f"{what}: not a name, a region or an endpoint that S3 allows")
    return StorageError(f"{what}: {type(error).__name__}")


def _reason(error: BaseException) -> str:
    """Say why a connection failed, from the error at the bottom of the libraries' own."""
    name = type(error).__name__
    seen: BaseException | None = error
    for _ in range(8):
        inner = getattr(seen, "kwargs", {}).get("error") if hasattr(seen, "kwargs") else None
        following = inner or getattr(seen, "reason", None) or (seen.__cause__ or seen.__context__ if seen else None)
        if isinstance(following, OSError) and following.strerror:
            return _clean(following.strerror, 100)
        if not isinstance(following, BaseException):
            break
        seen = following
    return {
        "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "no answer in time",
        "EndpointConnectionError": "no connection to the endpoint",
        "ConnectionClosedError": "the connection was closed",
        "ResponseStreamingError": "the connection was closed amid the answer",
        "IncompleteReadError": "the connection was closed amid the answer",
        "ProxyConnectionError": "no connection to the proxy",
    }.get(name, f"the connection failed ({name})")


def _part(error: Any, name: str) -> Mapping[str, Any]:
    response = getattr(error, "response", None)
    part = response.get(name) if isinstance(response, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _headers(error: Any) -> Mapping[str, Any]:
    headers = _part(error, "ResponseMetadata").get("HTTPHeaders")
    return headers if isinstance(headers, Mapping) else {}


def _region_of(error: Any) -> str:
    region = _part(error, "Error").get("Region") or _headers(error).get("x-amz-bucket-region") or ""
    return _clean(str(region), 40)


def _clean(text: str, longest: int) -> str:
    return _PRINTABLE.sub(" ", text).strip()[:longest]
