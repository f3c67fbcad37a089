"""Why a group waits, for people and for programs.

Decided here and only here: the words, who is named as the holder of what is missing, and how many of them are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from .capacity import Bucket, Cluster, Kind
from .fitting import fit, stuck
from .gang import TaskRequest, amount_text
from .pools import describe
from .quota import MAXIMUM, QUOTA
from .status import Priority
from .waiting import Ask, Holding, Key, Waiting

if TYPE_CHECKING:
    from .queueing import Pass, Verdict

__all__ = ["Holder", "Lack", "Why", "explain"]

_HOLDERS: Final = 3
_FAR: Final = 14 * 86400.0
"""Seconds: what lies further away follows from default limits, and tells nobody anything."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has what is missing. ``until`` is when it is free at the latest, in seconds since the epoch."""

    workflow_id: str
    group: str
    user: str
    pool: str
    priority: str
    amount: float
    until: float | None = None


class Lack(msgspec.Struct, frozen=True, kw_only=True):
    """``missing`` more of ``resource`` (cores, bytes, devices) is needed on ``node``, the one that comes closest;
    without a node it is a limit of the pool that is too low.
    """

    resource: str
    missing: float
    node: str
    holders: tuple[Holder, ...] = ()


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why a group waits. ``line`` says all of it to people.

    ``code`` is one of ``nodes`` (no node has room), ``behind`` (``behind`` comes first), ``soon`` (its nodes are being
    cleared), ``quota`` and ``maximum`` (of GPUs of the pool), ``never`` (not even when everything is free),
    ``offline``, ``undeclared`` (the pool), ``refused`` (the request does not suit the pool), ``leaving`` (its last
    run is being cleaned up). ``before`` groups of its pool wait before it; ``starts_by`` is when it starts at the
    latest, if all before it keep to their limits.
    """

    code: str
    line: str
    group: str
    task: str | None = None
    platforms: tuple[str, ...] = ()
    lacks: tuple[Lack, ...] = ()
    behind: str | None = None
    before: int = 0
    starts_by: float | None = None


def explain(current: Pass, waiting: Waiting, verdict: Verdict) -> Why:
    """Why a group was not placed by this pass."""
    code, detail, before = verdict
    pool = current.pools.get(waiting.pool)
    ask = current.memory.ask(waiting, pool) if pool is not None else ""
    why = Why(code=code, line="", group=waiting.group, before=before)
    if code == "nodes" and isinstance(ask, Ask):
        why = _nodes(current, waiting, ask, why)
    elif code == "behind" and isinstance(detail[0], Waiting):
        why = _replace(why, behind=detail[0].workflow_id)
        why = _replace(why, line=f"waits behind {_named(detail[0])}, which asks for the same")
    elif code in {QUOTA, MAXIMUM}:
        why = _limited(current, waiting, code, detail, why)
    else:
        why = _replace(why, line=_plain(current, waiting, code, detail, ask))
    return _replace(why, line=why.line + "".join(f"; {part}" for part in _outlook(current, waiting, why)))


def _replace(why: Why, **changes: object) -> Why:
    return msgspec.structs.replace(why, **changes)


def _named(waiting: Waiting | Holding) -> str:
    return f"{waiting.workflow_id} ({waiting.group})"


def _plain(current: Pass, waiting: Waiting, code: str, detail: tuple[object, ...], ask: Ask | str) -> str:
    """What is said where no node has to be named."""
    pool = waiting.pool
    if code == "soon":
        leaving = _leaving(current, waiting)
        return f"its nodes are being cleared of {', '.join(leaving)}" if leaving else "its nodes are being cleared"
    if code == "never" and isinstance(ask, Ask):
        request = ask.requests[0][0]
        task = f"task '{request.task}' ({describe(request.amount)})"
        return f"{task} and its group do not fit pool '{pool}' even when it is empty"
    texts = {
        "undeclared": f"pool '{pool}' is not declared any more",
        "offline": f"pool '{pool}' is offline",
        "leaving": "its last run is being cleaned up",
        "refused": str(detail[0]) if detail else "",
    }
    return texts.get(code, code)


def _limited(current: Pass, waiting: Waiting, code: str, detail: tuple[object, ...], why: Why) -> Why:
    """A limit of GPUs that a pool would exceed, and who uses them."""
    gpus, used, limit = (int(str(number)) for number in detail)
    amounts = {
        held.key: current.memory.gpus(held.key)
        for held in current.holdings
        if held.pool == waiting.pool and (code == MAXIMUM or held.priority is not Priority.LOW)
    }
    holders = _most(current, {key: amount for key, amount in amounts.items() if amount}, 1)
    line = f"{gpus} GPUs would exceed the {code} of pool '{waiting.pool}': {used} of {limit} are in use"
    lack = Lack(resource="gpu", missing=used + gpus - limit, node="", holders=holders)
    return _replace(why, line=f"{line}{_held_by((lack,))}", lacks=(lack,))


def _leaving(current: Pass, waiting: Waiting) -> list[str]:
    """Who makes room for a group: those that were just told to, or are ending on its nodes."""
    told = [_named(entry.victim) for entry in current.preempt if entry.for_whom.key == waiting.key]
    nodes = {name for entry in current.reservations if entry.waiting.key == waiting.key for name in entry.nodes}
    ending = [
        _named(held) for held in current.holdings if held.ending and any(part.node in nodes for part in held.held)
    ]
    return [*told, *ending][:_HOLDERS]


def _outlook(current: Pass, waiting: Waiting, why: Why) -> Iterator[str]:
    left = None if why.starts_by is None else why.starts_by - current.now
    if left is not None and 0 < left < _FAR:
        yield f"starts in {_span(left)} at the latest"
    if why.before:
        yield f"{why.before} before it in pool '{waiting.pool}'"


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


# --- nodes


def _nodes(current: Pass, waiting: Waiting, ask: Ask, why: Why) -> Why:
    """What is missing where; or who is ahead, when nothing would be."""
    reserved = next((entry for entry in current.reservations if entry.waiting.key == waiting.key), None)
    why = _replace(why, starts_by=None if reserved is None else reserved.at)
    truth = current.truth
    mark = truth.mark()
    try:
        if fit(truth, ask.shape) is not None:
            ahead = _ahead(current, waiting, ask)
            if ahead is None:
                return _replace(why, line="waiting for its turn")
            line = f"waits behind {_named(ahead)}, which asks for the same platform"
            return _replace(why, code="behind", behind=ahead.workflow_id, line=line)
        part, done = stuck(truth, ask.shape)
        kind = ask.shape.parts[part][0]
        request = ask.requests[part][min(done, len(ask.requests[part]) - 1)]
        together = done + sum(count for _, count in ask.shape.parts[:part])
        why = _replace(why, task=request.task, platforms=request.platforms)
        start = f"task '{request.task}' ({describe(request.amount)})"
        if together:
            start = f"{start} beside {together} other task{'s' if together > 1 else ''} of its group"
        return _missing(current, truth, kind, request, why, start)
    finally:
        truth.rollback(mark)


def _ahead(current: Pass, waiting: Waiting, ask: Ask) -> Waiting | None:
    """Whose reservation keeps a group from nodes that are free."""
    together = current.layout.together
    owners = [entry.waiting for entry in current.reservations if entry.waiting.key != waiting.key]
    for owner in owners:
        if owner.pool == waiting.pool or together(owner.pool, waiting.pool):
            return owner
    closed = current.closed(ask.shape)
    return closed if closed is not None and closed.key != waiting.key else None


def _missing(current: Pass, truth: Cluster, kind: Kind, request: TaskRequest, why: Why, start: str) -> Why:
    platforms = " or ".join(f"'{name}'" for name in request.platforms)
    closest = _closest(truth, kind)
    if closest is None:
        what = "topology" if request.required else "no free node"
        return _replace(why, line=f"{start}: platform {platforms} has {what} for it")
    bucket, count = closest
    node = next(truth.members(bucket, kind.excluded))
    capacity = bucket.cls.views[kind.pool].capacity
    names = current.layout.resources
    lacks = []
    for index, need in kind.needs:
        gap = need - (capacity[index] - bucket.used[index])
        if gap > 0:
            unit = 1_000_000 if index == 0 else 1
            holders = _holders(current, node, index, unit)
            name = current.layout.names[node]
            lacks.append(Lack(resource=names[index], missing=gap / unit, node=name, holders=holders))
    if not lacks:
        return _replace(why, line=f"{start}: no arrangement on platform {platforms} satisfies its topology")
    many = f" (the closest of {count})" if count > 1 else ""
    missing = ", ".join(amount_text(lack.resource, lack.missing) for lack in lacks)
    line = f"{start}: platform {platforms} has no node free; '{lacks[0].node}'{many} lacks {missing}"
    return _replace(why, line=f"{line}{_held_by(lacks)}", lacks=tuple(lacks))


def _held_by(lacks: Sequence[Lack]) -> str:
    held = dict.fromkeys(
        f"{holder.workflow_id} of {holder.user or 'unknown'} ({amount_text(lack.resource, holder.amount)})"
        for lack in lacks
        for holder in lack.holders
    )
    return f"; held by {', '.join(list(held)[:_HOLDERS])}" if held else ""


def _closest(truth: Cluster, kind: Kind) -> tuple[Bucket, int] | None:
    """The nodes that lack the fewest resources, and of those the least; and how many nodes there are in all."""
    best: tuple[tuple[float, ...], Bucket] | None = None
    nodes = 0
    for bucket in truth.live(kind):
        if kind.limit(bucket.cls) is None:
            continue
        if kind.excluded and next(truth.members(bucket, kind.excluded), None) is None:
            continue
        nodes += bucket.count
        capacity = bucket.cls.views[kind.pool].capacity
        gaps = [
            (need - capacity[index] + bucket.used[index]) / need
            for index, need in kind.needs
            if need > capacity[index] - bucket.used[index]
        ]
        rank = (len(gaps) or 99, max(gaps, default=0.0), bucket.cls.number, truth.first(bucket))
        if best is None or rank < best[0]:
            best = rank, bucket
    return None if best is None else (best[1], nodes)


def _holders(current: Pass, node: int, index: int, unit: int) -> tuple[Holder, ...]:
    """Who has most of a resource of a node."""
    amounts: dict[Key, int] = {}
    for key in current.by_node().get(node, ()):
        total = sum(amount[index] for at, amount in current.memory.known[key].amounts if at == node)
        if total:
            amounts[key] = total
    return _most(current, amounts, unit)


def _most(current: Pass, amounts: Mapping[Key, int], unit: int) -> tuple[Holder, ...]:
    """Those of groups that have most of something."""
    found = []
    for key in sorted(amounts, key=lambda key: (-amounts[key], key))[:_HOLDERS]:
        held = current.held.get(key)
        if held is not None:
            found.append(
                Holder(
                    workflow_id=held.workflow_id,
                    group=held.group,
                    user=held.user,
                    pool=held.pool,
                    priority=str(held.priority),
                    amount=amounts[key] / unit,
                    until=held.until,
                )
            )
    return tuple(found)
