"""Every error that the store raises on purpose, grouped by what a caller would do about it.

Decided here and only here: the exception tree, the stable machine-readable ``kind`` of each error, and the one
table from which the exit code of a command and the status of an HTTP reply derive.

    CasstoreError
    ├── UsageError            the request itself is wrong: fix it and ask again
    │   └── SpecError         a workflow specification is wrong
    ├── NotFoundError         what was named does not exist
    ├── ConflictError         somebody else changed it, or it exists already
    │   └── PreconditionError a conditional write found another state (internal: callers retry)
    ├── AccessError           credentials are missing or do not allow it
    ├── IntegrityError        stored bytes are not what their name says
    │   └── FormatError       stored bytes can't be parsed
    ├── SourceError           a local file can't be read, or changed while it was read
    ├── StorageError          the back end failed: try again, or look at the disk or the network
    │   ├── OutOfSpaceError
    │   └── TransientError    it may pass: connections, timeouts, throttling
    ├── ServiceError          the workflow service failed or can't be reached
    └── CancelledError        the user interrupted
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "AccessError",
    "CancelledError",
    "CasstoreError",
    "ConflictError",
    "ErrorKind",
    "FormatError",
    "IntegrityError",
    "NotFoundError",
    "OutOfSpaceError",
    "PreconditionError",
    "ServiceError",
    "SourceError",
    "SpecError",
    "StorageError",
    "TransientError",
    "UsageError",
]


class ErrorKind(StrEnum):
    """Stable names of the kinds of error; append-only, they appear in JSON output."""

    USAGE = "usage"
    SPEC = "spec"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    ACCESS = "access"
    INTEGRITY = "integrity"
    FORMAT = "format"
    SOURCE = "source"
    STORAGE = "storage"
    OUT_OF_SPACE = "out_of_space"
    TRANSIENT = "transient"
    SERVICE = "service"
    CANCELLED = "cancelled"


class Outcome(NamedTuple):
    """What one kind of error means outside the process."""

    exit_code: int
    http_status: int
    wire_code: str


# Exit codes are those of the OSMO command: 1 submission, 2 other errors, 3 Ctrl-C, 10 server or connection.
OUTCOMES: dict[ErrorKind, Outcome] = {
    ErrorKind.USAGE: Outcome(2, 400, "USER"),
    ErrorKind.SPEC: Outcome(1, 400, "USAGE"),
    ErrorKind.NOT_FOUND: Outcome(2, 404, "NOTFOUND"),
    ErrorKind.CONFLICT: Outcome(2, 409, "USER"),
    ErrorKind.PRECONDITION: Outcome(2, 409, "USER"),
    ErrorKind.ACCESS: Outcome(2, 403, "CREDENTIAL"),
    ErrorKind.INTEGRITY: Outcome(2, 500, "DATA_STORAGE"),
    ErrorKind.FORMAT: Outcome(2, 500, "DATA_STORAGE"),
    ErrorKind.SOURCE: Outcome(2, 400, "USER"),
    ErrorKind.STORAGE: Outcome(10, 502, "DATA_STORAGE"),
    ErrorKind.OUT_OF_SPACE: Outcome(10, 507, "DATA_STORAGE"),
    ErrorKind.TRANSIENT: Outcome(10, 503, "DATA_STORAGE"),
    ErrorKind.SERVICE: Outcome(10, 503, "SERVER"),
    ErrorKind.CANCELLED: Outcome(3, 499, "USER"),
}


class CasstoreError(Exception):
    """Base of all errors raised on purpose.

    ``message`` is one clear line: what went wrong, and where. ``hint``, when given, is the next step for the user.
    Neither ever holds a secret.
    """

    kind: ErrorKind = ErrorKind.USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this error."""
        return OUTCOMES[self.kind].exit_code

    @property
    def http_status(self) -> int:
        """The status of an HTTP reply that carries this error."""
        return OUTCOMES[self.kind].http_status

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(cls: type[CasstoreError], message: str, hint: str | None) -> CasstoreError:
    return cls(message, hint=hint)


class UsageError(CasstoreError):
    """The request itself is wrong."""

    kind = ErrorKind.USAGE


class SpecError(UsageError):
    """A workflow specification is wrong."""

    kind = ErrorKind.SPEC


class NotFoundError(CasstoreError):
    """What was named does not exist."""

    kind = ErrorKind.NOT_FOUND


class ConflictError(CasstoreError):
    """It exists already, or somebody else changed it meanwhile."""

    kind = ErrorKind.CONFLICT


class PreconditionError(ConflictError):
    """A conditional write found another state than it was told to expect."""

    kind = ErrorKind.PRECONDITION


class AccessError(CasstoreError):
    """Credentials are missing, or do not allow the operation."""

    kind = ErrorKind.ACCESS


class IntegrityError(CasstoreError):
    """Stored bytes are not what their name says."""

    kind = ErrorKind.INTEGRITY


class FormatError(IntegrityError):
    """Stored bytes can't be parsed as the format they should be in."""

    kind = ErrorKind.FORMAT


class SourceError(CasstoreError):
    """A local file can't be read, or changed while it was read."""

    kind = ErrorKind.SOURCE


class StorageError(CasstoreError):
    """The back end failed."""

    kind = ErrorKind.STORAGE


class OutOfSpaceError(StorageError):
    """The back end, or the local disk, is full."""

    kind = ErrorKind.OUT_OF_SPACE


class TransientError(StorageError):
    """The back end failed in a way that may pass. ``retry_after``: the pause it asked for, in seconds."""

    kind = ErrorKind.TRANSIENT

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class ServiceError(CasstoreError):
    """The workflow service failed or can't be reached."""

    kind = ErrorKind.SERVICE


class CancelledError(CasstoreError):
    """The user interrupted the operation."""

    kind = ErrorKind.CANCELLED
