"""The words for where a workflow, a group or a task stands, and the numbers a task can end with.

Decided here and only here: the status enumerations (those of OSMO 6.2), which of them are final, the order in
which a task passes through them, the exit codes that the service itself gives, and the code that belongs to
each failure.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final

__all__ = [
    "FAILURE_CODES",
    "ExitCode",
    "GroupStatus",
    "Priority",
    "TaskPhase",
    "TaskStatus",
    "WorkflowStatus",
]


class Priority(StrEnum):
    """How a workflow competes for a pool. LOW may borrow and can be preempted."""

    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"

    @property
    def rank(self) -> int:
        """Position in the queue: 0 goes first."""
        return (Priority.HIGH, Priority.NORMAL, Priority.LOW).index(self)


class WorkflowStatus(StrEnum):
    """Where a workflow stands. WAITING is part of the vocabulary and never set."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    FAILED_SUBMISSION = "FAILED_SUBMISSION"
    FAILED_SERVER_ERROR = "FAILED_SERVER_ERROR"
    FAILED_EXEC_TIMEOUT = "FAILED_EXEC_TIMEOUT"
    FAILED_QUEUE_TIMEOUT = "FAILED_QUEUE_TIMEOUT"
    FAILED_CANCELED = "FAILED_CANCELED"
    FAILED_BACKEND_ERROR = "FAILED_BACKEND_ERROR"
    FAILED_IMAGE_PULL = "FAILED_IMAGE_PULL"
    FAILED_EVICTED = "FAILED_EVICTED"
    FAILED_START_ERROR = "FAILED_START_ERROR"
    FAILED_START_TIMEOUT = "FAILED_START_TIMEOUT"
    FAILED_PREEMPTED = "FAILED_PREEMPTED"

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self is WorkflowStatus.COMPLETED or self.failed

    @property
    def failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.value.startswith("FAILED")


class GroupStatus(StrEnum):
    """Where a group stands."""

    SUBMITTING = "SUBMITTING"
    WAITING = "WAITING"
    PROCESSING = "PROCESSING"
    SCHEDULING = "SCHEDULING"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    FAILED_UPSTREAM = "FAILED_UPSTREAM"
    FAILED_SERVER_ERROR = "FAILED_SERVER_ERROR"
    FAILED_PREEMPTED = "FAILED_PREEMPTED"
    FAILED_EVICTED = "FAILED_EVICTED"
    FAILED_CANCELED = "FAILED_CANCELED"
    FAILED_EXEC_TIMEOUT = "FAILED_EXEC_TIMEOUT"
    FAILED_QUEUE_TIMEOUT = "FAILED_QUEUE_TIMEOUT"

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self is GroupStatus.COMPLETED or self.failed

    @property
    def failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.value.startswith("FAILED")

    @property
    def active(self) -> bool:
        """Whether the group holds resources: it was placed and has not ended."""
        return self in {GroupStatus.INITIALIZING, GroupStatus.RUNNING}


class TaskStatus(StrEnum):
    """Where one attempt of a task stands. RESCHEDULED ends an attempt that another one replaces."""

    SUBMITTING = "SUBMITTING"
    WAITING = "WAITING"
    PROCESSING = "PROCESSING"
    SCHEDULING = "SCHEDULING"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    RESCHEDULED = "RESCHEDULED"
    FAILED = "FAILED"
    FAILED_UPSTREAM = "FAILED_UPSTREAM"
    FAILED_SERVER_ERROR = "FAILED_SERVER_ERROR"
    FAILED_PREEMPTED = "FAILED_PREEMPTED"
    FAILED_EVICTED = "FAILED_EVICTED"
    FAILED_CANCELED = "FAILED_CANCELED"
    FAILED_EXEC_TIMEOUT = "FAILED_EXEC_TIMEOUT"
    FAILED_QUEUE_TIMEOUT = "FAILED_QUEUE_TIMEOUT"
    FAILED_BACKEND_ERROR = "FAILED_BACKEND_ERROR"
    FAILED_IMAGE_PULL = "FAILED_IMAGE_PULL"
    FAILED_START_ERROR = "FAILED_START_ERROR"
    FAILED_START_TIMEOUT = "FAILED_START_TIMEOUT"

    @property
    def finished(self) -> bool:
        """Whether this attempt will not change any more."""
        return self in {TaskStatus.COMPLETED, TaskStatus.RESCHEDULED} or self.failed

    @property
    def failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.value.startswith("FAILED")

    @property
    def rank(self) -> int:
        """How far along; a task only moves to a higher rank. All final states share the highest."""
        return 6 if self.finished else _ORDER.index(self)


_ORDER: Final = (
    TaskStatus.SUBMITTING,
    TaskStatus.WAITING,
    TaskStatus.PROCESSING,
    TaskStatus.SCHEDULING,
    TaskStatus.INITIALIZING,
    TaskStatus.RUNNING,
)


class TaskPhase(StrEnum):
    """What a task that holds resources is doing; a finer grain than its status, and internal.

    NONE: not placed, or ended. INPUTS: inputs are being put in place. READY: they are, and it waits for its
    release. COMMAND: the user's command was released. OUTPUTS: the command ended and the outputs are being
    stored.
    """

    NONE = "NONE"
    INPUTS = "INPUTS"
    READY = "READY"
    COMMAND = "COMMAND"
    OUTPUTS = "OUTPUTS"


class ExitCode(IntEnum):
    """Codes given by the service; 0 to 255 are the command's own (killed by signal n: 128+n)."""

    IMAGE_PULL_BACK_OFF = 301
    IMAGE_PULL = 302
    CONTAINER_CONFIG = 303
    CRASH_LOOP = 304
    CONTAINER_UNKNOWN = 305
    PREFLIGHT = 1001
    RUNTIME_UNKNOWN = 2002
    DOWNLOAD_FAILED = 2010
    MOUNT_FAILED = 2011
    UPLOAD_FAILED = 2012
    DATA_AUTH_CHECK_FAILED = 2013
    DATA_UNAUTHORIZED = 2014
    TOKEN_INVALID = 2020
    SERVICE_TIMEOUT = 2021
    WEBSOCKET_FAILURE = 2022
    USER_SOCKET_FAILURE = 2023
    BARRIER_FAILED = 2024
    METRICS_FAILED = 2025
    INVALID_INPUT = 2030
    COMMAND_FAILED = 2031
    FILE_FAILED = 2032
    MISCELLANEOUS = 2040
    UPSTREAM_FAILED = 3000
    BACKEND_ERROR = 3001
    SERVER_ERROR = 3002
    START_ERROR = 3003
    EVICTED = 3004
    START_TIMEOUT = 3005
    PREEMPTED = 3006
    UNKNOWN = 4000


FAILURE_CODES: Final = MappingProxyType(
    {
        TaskStatus.FAILED_UPSTREAM: ExitCode.UPSTREAM_FAILED,
        TaskStatus.FAILED_BACKEND_ERROR: ExitCode.BACKEND_ERROR,
        TaskStatus.FAILED_SERVER_ERROR: ExitCode.SERVER_ERROR,
        TaskStatus.FAILED_START_ERROR: ExitCode.START_ERROR,
        TaskStatus.FAILED_EVICTED: ExitCode.EVICTED,
        TaskStatus.FAILED_START_TIMEOUT: ExitCode.START_TIMEOUT,
        TaskStatus.FAILED_PREEMPTED: ExitCode.PREEMPTED,
        TaskStatus.FAILED_IMAGE_PULL: ExitCode.IMAGE_PULL,
    }
)
"""The exit code of a failure that no command reported. Cancellation and timeouts have none."""
