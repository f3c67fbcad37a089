"""One pass over the queue of a pool, in the form in which the scheduler uses it.

Decided here and only here: nothing but that form; ``queueing`` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import queueing
from .pools import Pool
from .reasons import Why, explain
from .records import GroupRecord, Held, WorkflowRecord
from .waiting import Holding, Memory, Waiting

__all__ = ["Decisions", "Holding", "Memory", "Waiting", "decide", "holding_of"]


@dataclass(frozen=True)
class Decisions:
    """``placed``: groups with what each of their tasks holds, in the order of decision. ``preempt``: the (workflow,
    group) of those that have to make room, each with the reason that its user is told.
    """

    placed: Sequence[tuple[Waiting, tuple[Held, ...]]]
    preempt: Sequence[tuple[tuple[str, str], str]]
    made: queueing.Decisions

    def why(self, waiting: Waiting) -> Why | None:
        """Why a group waits; None when it does not. To be asked before the memory is used again."""
        verdict = self.made.verdicts.get(waiting.key)
        return None if verdict is None else explain(self.made.source, waiting, verdict)


def holding_of(record: WorkflowRecord, group: GroupRecord) -> Holding:
    """What a placed group holds."""
    return Holding.of(record, group)


def decide(
    pools: Mapping[str, Pool],
    queue: Sequence[Waiting],
    holdings: Sequence[Holding],
    now: float,
    memory: Memory | None = None,
) -> Decisions:
    """Who gets nodes now, who has to give theirs up, and why the others wait."""
    made = queueing.decide(pools, queue, holdings, now, memory)
    return Decisions(
        [(placing.waiting, placing.held) for placing in made.placed],
        [(entry.victim.key, entry.message) for entry in made.preempt],
        made,
    )
