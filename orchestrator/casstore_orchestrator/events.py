"""What can happen to a workflow, and what the transitions ask for in return.

Decided here and only here: the vocabulary between ``state.apply`` (which decides) and the scheduler with its
group runners (which do). Events are facts that were observed; effects are orders, to be carried out after the
new record is stored, in the order given. Both can be encoded and decoded by msgspec, as members of their unions.

An attempt of a task is named by (task, retry_id); ``run`` tells a restart in place from the run before it. An
event that names an attempt or a run that is over is ignored, so that late reports do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from .status import TaskStatus, WorkflowStatus

__all__ = [
    "Attempt",
    "CancelRequested",
    "CloseGroup",
    "CommandExited",
    "Effect",
    "Event",
    "FinishWorkflow",
    "GroupFailed",
    "GroupLost",
    "GroupPlaced",
    "GroupPreempted",
    "InputsFailed",
    "InputsReady",
    "KillTask",
    "NewAttempt",
    "OutputsFailed",
    "Placed",
    "QueueGroup",
    "ReleaseTasks",
    "RestartInPlace",
    "StartGroup",
    "Submitted",
    "TaskExited",
    "TaskFailed",
    "TaskRunning",
    "TimedOut",
]


class Attempt(NamedTuple):
    """One run of one attempt of one task."""

    task: str
    retry_id: int
    run: int


class Placed(NamedTuple):
    """Where a task goes."""

    platform: str
    node: str
    host: str | None = None


class Submitted(msgspec.Struct, frozen=True, tag=True):
    """The workflow has its id. Groups without upstream are queued."""


class GroupPlaced(msgspec.Struct, frozen=True, tag=True):
    """Nodes were found for every task of a queued group (all, or this event is an error)."""

    group: str
    placement: Mapping[str, Placed]


class GroupFailed(msgspec.Struct, frozen=True, tag=True):
    """The group as a whole could not be prepared or kept. Ends its unfinished tasks; exit actions don't
    apply.
    """

    group: str
    message: str
    status: TaskStatus = TaskStatus.FAILED_START_ERROR
    exit_code: int | None = None


class GroupLost(msgspec.Struct, frozen=True, tag=True):
    """Nothing of the group's gang runs any more, and nothing of it ever will: its agent is gone, and fenced.

    Its unfinished tasks get new attempts, each of which uses up a retry, and the group is queued again.
    """

    group: str
    message: str


class GroupPreempted(msgspec.Struct, frozen=True, tag=True):
    """The group's resources go to another one that comes first.

    Its unfinished tasks get new attempts, which use up no retry, and the group is queued again, unless an exit
    action for code 3006 says that it has failed or is complete. ``CloseGroup`` frees the resources.
    """

    group: str
    message: str


class TaskRunning(msgspec.Struct, frozen=True, tag=True):
    """The attempt's own work began: its inputs are being put in place."""

    attempt: Attempt


class InputsReady(msgspec.Struct, frozen=True, tag=True):
    """The attempt's inputs are in place and its command can be released."""

    attempt: Attempt


class InputsFailed(msgspec.Struct, frozen=True, tag=True):
    """The inputs can't be had."""

    attempt: Attempt
    message: str
    exit_code: int = 2010


class CommandExited(msgspec.Struct, frozen=True, tag=True):
    """The user's command ended; its outputs are about to be stored."""

    attempt: Attempt
    exit_code: int


class TaskExited(msgspec.Struct, frozen=True, tag=True):
    """The command ended and the outputs are stored: the attempt is over. ``oom``: it reached its memory
    limit.
    """

    attempt: Attempt
    exit_code: int
    message: str | None = None
    oom: bool = False


class OutputsFailed(msgspec.Struct, frozen=True, tag=True):
    """The command ended and the outputs can't be stored. ``command_exit_code`` is the command's own."""

    attempt: Attempt
    command_exit_code: int
    message: str
    exit_code: int = 2012


class TaskFailed(msgspec.Struct, frozen=True, tag=True):
    """The attempt ended for a reason outside its command (``FAILED_START_ERROR``, ...)."""

    attempt: Attempt
    status: TaskStatus
    message: str
    exit_code: int | None = None


class CancelRequested(msgspec.Struct, frozen=True, tag=True):
    """A user wants the workflow to end."""

    user: str
    message: str | None = None
    force: bool = False


class TimedOut(msgspec.Struct, frozen=True, tag=True):
    """A deadline from ``next_deadline`` passed.

    ``exec``: the group ran for too long; ``queue``: it waited for nodes for too long; ``start``: tasks that were
    placed did not begin; ``nonlead``: the lead has completed, and the others had their time.
    """

    kind: Literal["exec", "queue", "start", "nonlead"]
    group: str


Event = (
    Submitted
    | GroupPlaced
    | GroupFailed
    | GroupLost
    | GroupPreempted
    | TaskRunning
    | InputsReady
    | InputsFailed
    | CommandExited
    | TaskExited
    | OutputsFailed
    | TaskFailed
    | CancelRequested
    | TimedOut
)


class QueueGroup(msgspec.Struct, frozen=True, tag=True):
    """The group may run: find nodes for it, then send GroupPlaced."""

    group: str


class StartGroup(msgspec.Struct, frozen=True, tag=True):
    """The group was placed: prepare its gang and put the inputs of these attempts in place."""

    group: str
    attempts: tuple[Attempt, ...]


class ReleaseTasks(msgspec.Struct, frozen=True, tag=True):
    """Start these commands together now. ``whole_group``: every task of the group, for the first time."""

    group: str
    attempts: tuple[Attempt, ...]
    whole_group: bool


class KillTask(msgspec.Struct, frozen=True, tag=True):
    """End this attempt at once; its outputs are not stored and no event about it is needed."""

    group: str
    attempt: Attempt
    why: str


class RestartInPlace(msgspec.Struct, frozen=True, tag=True):
    """End the command, prepare it again in the same home, and wait for the release. ``attempt`` is the new
    run.
    """

    group: str
    attempt: Attempt


class NewAttempt(msgspec.Struct, frozen=True, tag=True):
    """Prepare the task afresh on the same node (new home, inputs again) and wait for the release."""

    group: str
    attempt: Attempt


class CloseGroup(msgspec.Struct, frozen=True, tag=True):
    """The group is over, or lost: forget that it was queued, end what is left of it, free its resources."""

    group: str


class FinishWorkflow(msgspec.Struct, frozen=True, tag=True):
    """The workflow is over."""

    status: WorkflowStatus


Effect = QueueGroup | StartGroup | ReleaseTasks | KillTask | RestartInPlace | NewAttempt | CloseGroup | FinishWorkflow
