"""The conventions that every request and reply keeps: header names, times, errors, warnings, versions.

Decided here and only here: how a time is written (ISO 8601, UTC, without a zone), how an error travels and
becomes an exception again, and how warnings are put in a header.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime

import msgspec

from casstore.errors import (
    OUTCOMES,
    AccessError,
    CasstoreError,
    ConflictError,
    ErrorKind,
    FormatError,
    IntegrityError,
    NotFoundError,
    OutOfSpaceError,
    PreconditionError,
    ServiceError,
    SpecError,
    StorageError,
    TransientError,
    UsageError,
)
from casstore.structs import from_json

__all__ = [
    "CLIENT_VERSION_HEADER",
    "MAX_REQUEST_BYTES",
    "PROTOCOL_VERSION",
    "SERVICE_VERSION_HEADER",
    "USER_HEADER",
    "WARNING_HEADER",
    "ErrorBody",
    "decode_warning",
    "encode_warning",
    "error_body",
    "from_iso",
    "to_exception",
    "to_iso",
]

PROTOCOL_VERSION = "6.2.0"
"""The release of OSMO whose wire both sides speak."""

USER_HEADER = "x-osmo-user"
CLIENT_VERSION_HEADER = "x-osmo-client-version"
SERVICE_VERSION_HEADER = "x-osmo-service-version"
WARNING_HEADER = "x-osmo-warning"

MAX_REQUEST_BYTES = 10 * 2**20
"""The largest request body that the server reads."""

_MAX_WARNING_BYTES = 6000
"""Bytes of text in a warning header: clients refuse header lines of more than 64 KiB, some proxies of 8
KiB.
"""


class ErrorBody(msgspec.Struct, kw_only=True):
    """The body of every reply that is an error. ``hint`` and ``kind`` are ours; other clients skip them."""

    message: str
    error_code: str | None = None
    workflow_id: str | None = None
    hint: str | None = None
    kind: str | None = None


_CLASSES: dict[str, type[CasstoreError]] = {
    ErrorKind.USAGE: UsageError,
    ErrorKind.SPEC: SpecError,
    ErrorKind.NOT_FOUND: NotFoundError,
    ErrorKind.CONFLICT: ConflictError,
    ErrorKind.PRECONDITION: PreconditionError,
    ErrorKind.ACCESS: AccessError,
    ErrorKind.INTEGRITY: IntegrityError,
    ErrorKind.FORMAT: FormatError,
    ErrorKind.STORAGE: StorageError,
    ErrorKind.OUT_OF_SPACE: OutOfSpaceError,
    ErrorKind.TRANSIENT: TransientError,
    ErrorKind.SERVICE: ServiceError,
}
_BY_CODE: dict[str, type[CasstoreError]] = {
    "USAGE": SpecError,
    "RESOURCE": SpecError,
    "CREDENTIAL": AccessError,
    "NOTFOUND": NotFoundError,
}


def error_body(error: CasstoreError, *, workflow_id: str | None = None) -> ErrorBody:
    """The body for an error raised on purpose."""
    return ErrorBody(
        message=error.message,
        error_code=OUTCOMES[error.kind].wire_code,
        workflow_id=workflow_id,
        hint=error.hint,
        kind=str(error.kind),
    )


def to_exception(status: int, body: bytes) -> CasstoreError:
    """The exception that a reply with this status (400 or more) and body stands for."""
    try:
        error = from_json(body, ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = " ".join(body[:500].decode("utf-8", "replace").split())
        message = f"The server answered with status {status}: {text or 'no explanation'}"
        return ServiceError(message) if status >= 500 else UsageError(message)
    default = ServiceError if status >= 500 else UsageError
    chosen = _CLASSES.get(error.kind or "") or _BY_CODE.get(error.error_code or "") or default
    return chosen(error.message, hint=error.hint)


def to_iso(seconds: float | None) -> str | None:
    """Seconds since the epoch as ``YYYY-MM-DDTHH:MM:SS.ffffff``, UTC, without a zone."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def from_iso(text: str) -> float:
    """Seconds since the epoch for an ISO 8601 date or time; one without a zone is UTC.

    Raises ``UsageError``.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"'{text}' is not a date or time", hint="Write it as YYYY-MM-DD.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def encode_warning(lines: list[str]) -> str:
    """Warnings as the value of a header."""
    text = "\n".join(lines).encode("utf-8")
    if len(text) > _MAX_WARNING_BYTES:
        text = text[:_MAX_WARNING_BYTES].decode("utf-8", "ignore").encode() + b" ..."
    return base64.b64encode(text).decode("ascii")


def decode_warning(value: str) -> list[str]:
    """The warnings in a header; something that is not valid gives none."""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8", "replace").splitlines()
    except (binascii.Error, ValueError):
        return []
