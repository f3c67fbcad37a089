"""What a simulation shows, in figures.

Decided here and only here: how each figure is worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from .world import Outcome, Result

__all__ = ["Report", "Waits", "report"]

_SIZES = ((1, "1 GPU or less"), (8, "2 to 8 GPUs"), (64, "9 to 64 GPUs"), (1 << 60, "more than 64 GPUs"))


class Waits(msgspec.Struct, kw_only=True):
    """Seconds from submission to the first start, of the groups of one kind; ``never``: not started at all."""

    name: str
    groups: int
    mean: float
    p95: float
    most: float
    never: int = 0


class Report(msgspec.Struct, kw_only=True):
    """One simulation.

    ``span`` is the time from the first submission to the last end, ``bound`` the shortest that any scheduler could need
    even if groups could be cut into pieces: at every moment what is submitted from then on is more work than ``gpus``
    can do in less. ``utilisation`` is the share of GPU time over ``span`` in which work was done that was not done
    again, ``lost`` the share that was held and was of no use (preempted runs, nodes not given back yet), ``possible``
    the utilisation over ``bound``. ``fair_users`` and ``fair_pools`` are Jain's index (1: all alike) of how fast their
    groups were: run time over waiting and run time. ``passes`` took ``pass_mean`` and at most ``pass_most`` seconds of
    this machine, with everything that the scheduler does in a step; ``decisions`` are placements a second.
    """

    groups: int
    tasks: int
    gpus: int
    span: float
    bound: float
    utilisation: float
    lost: float
    possible: float
    preemptions: int
    unfinished: int
    fair_users: float
    fair_pools: float
    passes: int
    pass_mean: float
    pass_most: float
    decisions: float
    waits: list[Waits]


def report(result: Result) -> Report:
    """The figures of a simulation."""
    outcomes = result.outcomes
    start = min((outcome.job.submit for outcome in outcomes), default=0.0)
    end = max((outcome.ended for outcome in outcomes if outcome.ended is not None), default=start)
    bound = max(_bound(outcomes, result.gpus) - start, 1e-9)
    area = sum(_area(outcome) for outcome in outcomes if outcome.ended is not None)
    spent = sum(result.step_seconds)
    kinds: list[tuple[str, Callable[[Outcome], bool]]] = [("all", lambda _: True)]
    kinds += [(name, lambda outcome, name=name: outcome.job.priority == name) for name in ("HIGH", "NORMAL", "LOW")]  # type: ignore[misc]
    least = -1
    for most, name in _SIZES:
        kinds.append((name, lambda outcome, low=least, high=most: low < outcome.job.tasks * outcome.job.gpu <= high))  # type: ignore[misc]
        least = most
    return Report(
        groups=len(outcomes),
        tasks=sum(outcome.job.tasks for outcome in outcomes),
        gpus=result.gpus,
        span=end - start,
        bound=bound,
        utilisation=_share(area, result.gpus * (end - start)),
        lost=max(0.0, _share(result.busy - area, result.gpus * (end - start))),
        possible=_share(area, result.gpus * bound),
        preemptions=result.preemptions,
        unfinished=sum(outcome.ended is None for outcome in outcomes),
        fair_users=_jain(_speeds(outcomes, lambda outcome: outcome.job.user)),
        fair_pools=_jain(_speeds(outcomes, lambda outcome: outcome.job.pool)),
        passes=result.steps,
        pass_mean=_share(spent, result.steps),
        pass_most=max(result.step_seconds, default=0.0),
        decisions=_share(sum(outcome.runs for outcome in outcomes), spent),
        waits=[found for name, chosen in kinds if (found := _waits(name, filter(chosen, outcomes))).groups],
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _area(outcome: Outcome) -> float:
    return outcome.job.duration * outcome.job.tasks * outcome.job.gpu


def _bound(outcomes: Sequence[Outcome], gpus: int) -> float:
    """The earliest end of everything: of each group alone, and of all that is submitted from any moment on."""
    bound, area = 0.0, 0.0
    for outcome in sorted(outcomes, key=lambda outcome: outcome.job.submit, reverse=True):
        area += _area(outcome)
        bound = max(bound, outcome.job.submit + outcome.job.duration, outcome.job.submit + _share(area, gpus))
    return bound


def _waits(name: str, outcomes: Iterable[Outcome]) -> Waits:
    chosen = list(outcomes)
    waits = sorted(outcome.started - outcome.job.submit for outcome in chosen if outcome.started is not None)
    return Waits(
        name=name,
        groups=len(chosen),
        mean=_share(sum(waits), len(waits)),
        p95=waits[min(len(waits) - 1, int(0.95 * len(waits)))] if waits else 0.0,
        most=waits[-1] if waits else 0.0,
        never=len(chosen) - len(waits),
    )


def _speeds(outcomes: Sequence[Outcome], whose: Callable[[Outcome], str]) -> list[float]:
    speeds: dict[str, list[float]] = {}
    for outcome in outcomes:
        took = 0.0 if outcome.ended is None else outcome.ended - outcome.job.submit
        speeds.setdefault(whose(outcome), []).append(min(1.0, _share(outcome.job.duration, took)))
    return [sum(found) / len(found) for found in speeds.values()]


def _jain(values: Sequence[float]) -> float:
    return _share(sum(values) ** 2, len(values) * sum(value * value for value in values)) if values else 1.0
