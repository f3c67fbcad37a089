"""What a record keeps of the agents that run its groups: what they hold, what they reported, what they are to do.

Decided here and only here: how events and effects become part of a record, so that one transaction holds an event, its
number, and the orders that follow from it. Every function is pure; one that finds nothing to do gives the same record.

An order stays in its group's outbox until the agent is known to have it, the closing order until the run has ended:
whoever holds the pool's lease delivers what is there, as often as it takes, and the agent drops what it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from casstore.errors import ServiceError

from .events import (
    CloseGroup,
    Effect,
    Event,
    FinishWorkflow,
    GroupLost,
    GroupPlaced,
    Placed,
    QueueGroup,
    StartGroup,
    Submitted,
)
from .ports import RunKey
from .records import GroupRecord, Held, Order, WorkflowRecord
from .state import apply
from .status import GroupStatus

__all__ = ["closing", "decided", "delivered", "ended", "lost", "placed", "recovered", "reported", "run_of"]


def run_of(record: WorkflowRecord, group: GroupRecord) -> RunKey:
    """The newest run of a group."""
    return RunKey(record.id, group.name, group.placements)


def closing(group: GroupRecord) -> bool:
    """Whether the run of a group was told to end, and has not ended yet."""
    return bool(group.holds) and any(isinstance(order.effect, CloseGroup) for order in group.orders)


def decided(record: WorkflowRecord, event: Event, now: float) -> WorkflowRecord:
    """The record after an event that no agent reported, with the orders that follow from it."""
    after, effects = apply(record, event, now)
    for effect in effects:
        after = _ordered(after, effect)
    return _next(record, after)


def placed(
    record: WorkflowRecord, group: str, holds: Sequence[Held], hosts: Mapping[str, str], now: float
) -> WorkflowRecord:
    """The record once its queued group got these nodes; the same when the group does not wait for any."""
    if record.group(group).holds:
        return record
    places = {held.task: Placed(held.platform, held.node, hosts.get(held.task)) for held in holds}
    after, effects = apply(record, GroupPlaced(group, places), now)
    start = next((effect for effect in effects if isinstance(effect, StartGroup)), None)
    if start is None:
        return record
    found = replace(after.group(group), holds=tuple(holds), seen=0, orders=(Order(1, start),), next_order=2)
    return _next(record, _put(after, found))


def reported(record: WorkflowRecord, run: RunKey, number: int, event: Event, now: float) -> WorkflowRecord:
    """The record after the event ``number`` of a run; the same when it knows the event, or the run is over.

    ``ServiceError`` when an event before it is missing.
    """
    group = _current(record, run)
    if group is None or number <= group.seen:
        return record
    if number != group.seen + 1:
        msg = f"event {number} of {run} came after {group.seen}"
        raise ServiceError(msg)
    after = decided(record, event, now)
    return _next(record, _put(after, replace(after.group(run.group), seen=number)))


def delivered(record: WorkflowRecord, run: RunKey, upto: int) -> WorkflowRecord:
    """The record without the orders that the agent has; not worth a transaction of its own."""
    group = _current(record, run)
    if group is None:
        return record
    rest = tuple(order for order in group.orders if order.number > upto or isinstance(order.effect, CloseGroup))
    return record if len(rest) == len(group.orders) else _next(record, _put(record, replace(group, orders=rest)))


def ended(record: WorkflowRecord, run: RunKey, now: float) -> WorkflowRecord:
    """The record once nothing of a run is left; one that was not told to end is lost."""
    group = _current(record, run)
    if group is None:
        return record
    if group.status.active and not closing(group):
        return lost(record, run, "The agent of the group ended by itself.", now)
    return _next(record, _put(record, _freed(group)))


def lost(record: WorkflowRecord, run: RunKey, why: str, now: float) -> WorkflowRecord:
    """The record once it is certain that nothing of a run is left, though nobody ended it."""
    group = _current(record, run)
    if group is None:
        return record
    free = _put(record, _freed(group))  # first: no order can reach it any more
    return _next(record, decided(free, GroupLost(run.group, why), now) if group.status.active else free)


def recovered(record: WorkflowRecord, now: float) -> WorkflowRecord:
    """The record of a workflow that is taken up: what an older version left half done is done or lost."""
    if any(group.status is GroupStatus.SUBMITTING for group in record.groups):
        record = decided(record, Submitted(), now)
    for group in record.groups:
        if group.status.active and not group.holds:
            record = decided(record, GroupLost(group.name, "The server that ran the group is gone."), now)
    return record


def _current(record: WorkflowRecord, run: RunKey) -> GroupRecord | None:
    """The group, when this run is its newest and not over."""
    try:
        group = record.group(run.group)
    except KeyError:
        return None
    return group if group.holds and group.placements == run.placement else None


def _ordered(record: WorkflowRecord, effect: Effect) -> WorkflowRecord:
    """Put an effect into the outbox of its group; what nobody is there to do follows from the record itself."""
    if isinstance(effect, QueueGroup | FinishWorkflow):
        return record
    group = record.group(effect.group)
    if not group.holds or closing(group):
        return record
    order = Order(group.next_order, effect)
    return _put(record, replace(group, orders=(*group.orders, order), next_order=order.number + 1))


def _freed(group: GroupRecord) -> GroupRecord:
    return replace(group, holds=(), orders=())


def _put(record: WorkflowRecord, group: GroupRecord) -> WorkflowRecord:
    groups = tuple(group if old.name == group.name else old for old in record.groups)
    return replace(record, groups=groups)


def _next(before: WorkflowRecord, after: WorkflowRecord) -> WorkflowRecord:
    if after is before or after == before:
        return before
    return replace(after, revision=before.revision + 1)
