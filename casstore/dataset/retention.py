"""Which versions of a dataset are kept when others go.

Decided here and only here: what the rules of a dataset mean. What one rule keeps is kept; the latest version and the
members of collections always are. Ages are told from the times in the version records, which are those of the
machines that uploaded. A rule does nothing by itself: garbage collection applies it, and expired versions are deleted
as ``osmo dataset delete`` would.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from casstore.dataset.catalog import Catalog, require_dataset
from casstore.errors import NotFoundError, UsageError
from casstore.model import DatasetType, Head, Member, Retention
from casstore.repo.refs import Refs, is_active

__all__ = ["Expiry", "Why", "apply", "change", "expire", "plan"]

MAX_WITHIN_S = 100 * 366 * 24 * 3600
"""Seconds that a rule may keep versions for, at most."""


class Why(StrEnum):
    """What keeps a version; append-only, these appear in JSON output."""

    LATEST = "latest"
    COLLECTION = "collection"
    LAST = "last"
    TAGGED = "tagged"
    WITHIN = "within"


@dataclass(frozen=True, slots=True)
class Expiry:
    """What the rule of one dataset means now: the versions that go, and why each of the others stays."""

    dataset_id: str
    name: str
    rule: Retention
    expired: tuple[int, ...]
    kept: Mapping[int, Why]


def expire(
    rule: Retention, created: Mapping[int, datetime], tagged: Container[int], collected: Container[int], now: datetime
) -> tuple[list[int], dict[int, Why]]:
    """Return the expired ones of the versions whose times are ``created``, and why the others stay. Pure."""
    numbers = sorted(created)
    last = set(numbers[-rule.keep_last :]) if rule.keep_last else set()
    within = None if rule.keep_within_s is None else now - timedelta(seconds=rule.keep_within_s)
    expired: list[int] = []
    kept: dict[int, Why] = {}
    for number in numbers:
        if number == numbers[-1]:
            kept[number] = Why.LATEST
        elif number in collected:
            kept[number] = Why.COLLECTION
        elif number in last:
            kept[number] = Why.LAST
        elif rule.keep_tagged and number in tagged:
            kept[number] = Why.TAGGED
        elif within is not None and created[number] > within:
            kept[number] = Why.WITHIN
        else:
            expired.append(number)
    return expired, kept


def change(
    refs: Refs,
    name: str,
    *,
    keep_last: int | None = None,
    keep_tagged: bool | None = None,
    keep_within_s: int | None = None,
    clear: bool = False,
) -> Retention | None:
    """Change the rule of a dataset, with ``clear`` from none at all, and return it; None keeps everything.

    What is None stays as it is. ``UsageError`` for a rule that would keep nothing but the latest version by accident.
    """
    if keep_last is not None and not 1 <= keep_last <= 1_000_000:
        raise UsageError("keep at least one version, and at most a million")
    if keep_within_s is not None and not 0 < keep_within_s <= MAX_WITHIN_S:
        raise UsageError("keep versions for more than no time, and at most for a hundred years")
    given = {
        name: value
        for name, value in (
            ("keep_last", keep_last),
            ("keep_tagged", keep_tagged),
            ("keep_within_s", keep_within_s),
        )
        if value is not None
    }

    def update(head: Head) -> Head:
        before = Retention() if clear or head.retention is None else head.retention
        after: Retention | None = msgspec.structs.replace(before, **given)
        if after == Retention():
            if given and not clear:
                raise UsageError(
                    f"this rule keeps nothing of {head.name!r} but its latest version",
                    hint="say so with --keep-last 1, or keep everything again with --clear",
                )
            after = None
        return head if after == head.retention else msgspec.structs.replace(head, retention=after)

    head = require_dataset(refs.find(name), to="set what is kept of")
    return refs.update_head(head.id, update).retention if given or clear else head.retention


def plan(refs: Refs, catalog: Catalog, now: float) -> list[Expiry]:
    """Return what the rules of all datasets mean at ``now`` (seconds since the epoch), sorted by name."""
    heads = refs.heads()
    ruled = [head for head in heads if head.retention is not None and head.type == DatasetType.DATASET]
    collected = catalog.containing(heads) if ruled else {}
    return [_plan(refs, catalog, head, collected, now) for head in ruled]


def _plan(refs: Refs, catalog: Catalog, head: Head, collected: Collection[Member], now: float) -> Expiry:
    rule = head.retention or Retention()
    created = _created(refs, head, catalog.ready(head))
    members = {member.version for member in collected if member.dataset_id == head.id}
    expired, kept = expire(rule, created, set(head.tags.values()), members, _time(now))
    return Expiry(head.id, head.name, rule, tuple(expired), kept)


def _created(refs: Refs, head: Head, numbers: Sequence[int]) -> dict[int, datetime]:
    def read(number: int) -> datetime:
        return datetime.fromisoformat(refs.read_version(head.id, number).created_at)

    return dict(zip(numbers, refs.each(read, numbers), strict=True))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def apply(refs: Refs, catalog: Catalog, expiries: Sequence[Expiry], now: float) -> list[tuple[str, tuple[int, ...]]]:
    """Delete the expired versions that still are expired, and return the datasets' names with what was deleted.

    Tags, rules and collections are looked at again: what was kept meanwhile stays.
    """
    done: list[tuple[str, tuple[int, ...]]] = []
    for expiry in expiries:
        if expiry.expired:
            deleted = _apply(refs, catalog, expiry, now)
            if deleted:
                done.append((expiry.name, deleted))
    return done


def _apply(refs: Refs, catalog: Catalog, expiry: Expiry, now: float) -> tuple[int, ...]:
    members = {member.version for member in catalog.containing() if member.dataset_id == expiry.dataset_id}
    deleted: list[int] = []

    def choose(head: Head, active: Sequence[int]) -> list[int]:
        created = _created(refs, head, [number for number in active if is_active(head, number)])
        still, _ = (
            expire(head.retention, created, set(head.tags.values()), members, _time(now))
            if head.retention
            else ([], {})
        )
        deleted[:] = [number for number in still if number in expiry.expired]
        return deleted

    try:
        refs.delete_versions(expiry.dataset_id, _unless_none(choose))
    except (NotFoundError, _NothingToDo):
        return ()
    return tuple(deleted)


class _NothingToDo(Exception):  # noqa: N818 - not an error
    """Ends a change of a head without a write."""


def _unless_none(choose: Callable[[Head, list[int]], list[int]]) -> Callable[[Head, list[int]], list[int]]:
    def chosen(head: Head, active: list[int]) -> list[int]:
        numbers = choose(head, active)
        if not numbers:
            raise _NothingToDo
        return numbers

    return chosen
